//! What an operation begins with, and what it is called by. What becomes of it
//! lives in `operation`.

use std::sync::Arc;

use uuid::Uuid;

use super::{
    labels::Labels,
    lease::{LeaseToken, WorkerId},
    name::OperationName,
    options::ExecutionOptions,
    payload::Payload,
    trace::TraceContext,
};
use crate::clock::Timestamp;

/// What a new operation begins with.
#[derive(Clone, Debug)]
pub(crate) struct OperationSpec {
    pub(crate) name: OperationName,
    pub(crate) number: u64,
    pub(crate) options: Arc<ExecutionOptions>,
    pub(crate) attributes: Option<Arc<Attributes>>,
    pub(crate) input: Option<Payload>,
    pub(crate) metadata: Option<Payload>,
    pub(crate) not_before: Option<Timestamp>,
    /// The creator's lease, if it executes the operation itself.
    pub(crate) initial_lease: Option<(LeaseToken, WorkerId)>,
}

/// What an operation is called by, besides its name.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Attributes {
    pub(crate) labels: Labels,
    pub(crate) idempotency_key: Option<IdempotencyKey>,
    pub(crate) method: Box<str>,
    pub(crate) trace_context: TraceContext,
}

/// The creator's request id, with a digest of what it asked for (AIP-155).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdempotencyKey {
    pub(crate) request_id: Box<str>,
    pub(crate) fingerprint: Uuid,
}

// === impl Tags ===

impl Attributes {
    /// How many bytes it holds that vary with what people put in.
    pub(crate) fn size(&self) -> usize {
        let request_id_len = self
            .idempotency_key
            .as_ref()
            .map_or(0, |key| key.request_id.len());
        self.labels.size() + request_id_len + self.method.len() + self.trace_context.size()
    }
}
