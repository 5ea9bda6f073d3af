//! What an operation begins with, and what it is called by. What becomes of it
//! lives in `operation`.

use std::sync::Arc;

use uuid::Uuid;

use super::{
    labels::Labels,
    lease::{LeaseToken, WorkerId},
    name::OperationName,
    payload::Payload,
    terms::Terms,
    trace::TraceContext,
};
use crate::clock::Timestamp;

/// What a new operation begins with.
#[derive(Clone, Debug)]
pub(crate) struct Birth {
    pub(crate) name: OperationName,
    pub(crate) number: u64,
    pub(crate) terms: Arc<Terms>,
    pub(crate) tags: Option<Arc<Tags>>,
    pub(crate) input: Option<Payload>,
    pub(crate) metadata: Option<Payload>,
    pub(crate) not_before: Option<Timestamp>,
    /// The creator's lease, if it executes the operation itself.
    pub(crate) holder: Option<(LeaseToken, WorkerId)>,
}

/// What an operation is called by, besides its name.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Tags {
    pub(crate) labels: Labels,
    pub(crate) request: Option<Request>,
    pub(crate) method: Box<str>,
    pub(crate) trace_context: TraceContext,
}

/// The creator's request id, with a digest of what it asked for (AIP-155).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) id: Box<str>,
    pub(crate) digest: Uuid,
}

// === impl Tags ===

impl Tags {
    /// How many bytes it holds that vary with what people put in.
    pub(crate) fn size(&self) -> usize {
        let request = self.request.as_ref().map_or(0, |request| request.id.len());
        self.labels.size() + request + self.method.len() + self.trace_context.size()
    }
}
