//! A worker's report about its running attempt.

use super::{
    payload::Payload,
    progress::{self, InvalidProgress},
};
use crate::proto::longrunning::v1::Progress;

/// A worker's report about its attempt. Unset fields leave earlier values unchanged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The progress.
    pub progress: Option<Progress>,
    /// Metadata of the worker's own type, which replaces `OperationMetadata`.
    pub metadata: Option<Payload>,
    /// A message of the worker's own type inside `OperationMetadata`.
    pub detail: Option<Payload>,
    /// The state from which the next attempt resumes if this one is lost.
    pub checkpoint: Option<Payload>,
}

// === impl Report ===

impl Report {
    /// Overwrites the fields that `newer` sets.
    pub(crate) fn merge(&mut self, newer: &Self) {
        fn overwrite_if_some<T: Clone>(old: &mut Option<T>, new: &Option<T>) {
            if new.is_some() {
                old.clone_from(new);
            }
        }
        overwrite_if_some(&mut self.progress, &newer.progress);
        overwrite_if_some(&mut self.metadata, &newer.metadata);
        overwrite_if_some(&mut self.detail, &newer.detail);
        overwrite_if_some(&mut self.checkpoint, &newer.checkpoint);
    }

    /// Validates the progress; payloads are valid by construction.
    pub(crate) fn check(&self) -> Result<(), InvalidProgress> {
        self.progress.as_ref().map_or(Ok(()), progress::check)
    }

    /// Returns `true` if merging `newer` would change nothing.
    pub(crate) fn contains(&self, newer: &Self) -> bool {
        fn is_unchanged<T: PartialEq>(old: &Option<T>, new: &Option<T>) -> bool {
            new.is_none() || old == new
        }
        is_unchanged(&self.progress, &newer.progress)
            && is_unchanged(&self.metadata, &newer.metadata)
            && is_unchanged(&self.detail, &newer.detail)
            && is_unchanged(&self.checkpoint, &newer.checkpoint)
    }

    /// Returns `true` if no field is set.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the size in bytes of the fields that are not part of the encoded
    /// operation: the checkpoint and, with custom metadata, also the progress and
    /// the detail.
    pub(crate) fn hidden_size(&self) -> usize {
        let checkpoint = self.checkpoint.as_ref().map_or(0, Payload::size);
        let Some(_) = &self.metadata else {
            return checkpoint;
        };
        let progress = self
            .progress
            .as_ref()
            .map_or(0, prost::Message::encoded_len);
        checkpoint + progress + self.detail.as_ref().map_or(0, Payload::size)
    }
}
