//! What calls are answered, in the words of the model: times in milliseconds,
//! leases by number, refusals by reason.

/// How it ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ModelOutcome {
    Response(u8),
    /// An error in the words of its worker.
    WorkerError {
        code: i32,
        message: u8,
    },
    /// An error in the server's own words.
    ServerError(i32, &'static str),
}

/// What comes with a word of a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum PresentedToken {
    /// The token of this lease.
    Lease(usize),
    /// A token that nobody ever had.
    Unknown,
    /// What no token looks like.
    Malformed,
    /// Nothing.
    Empty,
}

/// A refusal, by the reason that the client is told.
pub(super) type ErrorReason = &'static str;

/// What a call is answered.
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
    /// In a type of the worker's own.
    Custom(u8),
    Standard {
        state: &'static str,
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

/// A lease as its worker sees it.
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

/// What a heartbeat is answered about one lease.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelDirective {
    pub(super) kind: &'static str,
    pub(super) remaining_ms: Option<i64>,
    pub(super) grace_remaining_ms: Option<i64>,
    pub(super) error: Option<ErrorReason>,
}
