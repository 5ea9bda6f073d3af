//! The validated specification of a new operation, and its immutable attributes.

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

/// A validated specification of a new operation.
#[derive(Clone, Debug)]
pub(crate) struct OperationSpec {
    pub(crate) name: OperationName,
    pub(crate) number: u64,
    pub(crate) options: Arc<ExecutionOptions>,
    pub(crate) attributes: Option<Arc<Attributes>>,
    pub(crate) input: Option<Payload>,
    pub(crate) metadata: Option<Payload>,
    pub(crate) not_before: Option<Timestamp>,
    /// The first lease, if the creator executes the operation itself.
    pub(crate) initial_lease: Option<InitialLease>,
}

/// The lease of a creator that executes its operation itself.
#[derive(Clone, Debug)]
pub(crate) struct InitialLease {
    pub(crate) token: LeaseToken,
    pub(crate) worker: WorkerId,
}

/// The immutable attributes of an operation, besides its name.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Attributes {
    pub(crate) labels: Labels,
    pub(crate) idempotency_key: Option<IdempotencyKey>,
    pub(crate) method: Box<str>,
    pub(crate) trace_context: TraceContext,
}

/// The request id of a creation, with a fingerprint of the request (AIP-155).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdempotencyKey {
    pub(crate) request_id: Box<str>,
    pub(crate) fingerprint: Uuid,
}

// === impl Attributes ===

impl Attributes {
    /// Returns the size of all user-supplied content in bytes.
    pub(crate) fn size(&self) -> usize {
        let request_id_len = self
            .idempotency_key
            .as_ref()
            .map_or(0, |key| key.request_id.len());
        self.labels.size() + request_id_len + self.method.len() + self.trace_context.size()
    }
}
