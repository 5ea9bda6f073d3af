//! Responses in normalized form: times in milliseconds, leases by number, rejections by
//! reason.

use longrunning::proto::{
    google::rpc::Code,
    longrunning::v1::{directive::Kind, operation_metadata::State},
};

/// The outcome of an operation.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ModelOutcome {
    Response(u8),
    /// An error reported by a worker.
    WorkerError {
        code: Code,
        message: u8,
    },
    /// An error recorded by the server.
    ServerError {
        code: Code,
        reason: ErrorReason,
    },
}

/// The lease token in a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum PresentedToken {
    /// The token of this lease.
    Lease(usize),
    /// A well-formed token that was never granted.
    Unknown,
    /// Bytes of a wrong length.
    Malformed,
    Empty,
}

/// The reason of an error.
pub(super) type ErrorReason = &'static str;

/// The response of a call.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ModelResponse {
    Empty,
    Rejected(ErrorReason),
    Operation(ModelSnapshot),
    Created {
        operation: ModelSnapshot,
        lease: Option<ModelLease>,
        already_existed: bool,
    },
    Leases(Vec<ModelLease>),
    Directives {
        directives: Vec<ModelDirective>,
        heartbeat_interval_ns: i64,
    },
}

/// An operation as clients see it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelSnapshot {
    pub(super) name: String,
    pub(super) metadata: ModelMetadata,
    pub(super) outcome: Option<ModelOutcome>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum ModelMetadata {
    /// Metadata of a type unknown to the server.
    Custom(u8),
    Standard {
        state: State,
        create_time: i64,
        start_time: Option<i64>,
        update_time: i64,
        end_time: Option<i64>,
        progress: Option<u8>,
        detail: Option<u8>,
        attempt: i32,
        cancel_requested: bool,
        queue: String,
    },
}

/// A lease as returned to its worker.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelLease {
    pub(super) name: String,
    pub(super) lease_id: usize,
    pub(super) attempt: i32,
    pub(super) remaining_ms: i64,
    pub(super) attempt_remaining_ms: Option<i64>,
    pub(super) checkpoint: Option<u8>,
    pub(super) cancel_requested: bool,
    pub(super) queue: String,
    pub(super) cancel_grace_ms: Option<i64>,
}

/// The directive for one lease.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelDirective {
    pub(super) kind: Kind,
    pub(super) remaining_ms: Option<i64>,
    pub(super) grace_remaining_ms: Option<i64>,
    pub(super) error: Option<ErrorReason>,
}
