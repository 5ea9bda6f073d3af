//! What can go wrong for a caller: the errors of the leaves, summed once. How
//! an error looks to a client is decided in `status`.

use std::time::Duration;

use crate::{
    operation::{
        attempt_result::InvalidAttemptResult,
        labels::InvalidLabels,
        lease::InvalidWorkerId,
        name::InvalidName,
        options::{InvalidExecutionOptions, InvalidQueueName},
        outcome::InvalidOutcome,
        payload::InvalidAny,
        progress::InvalidProgress,
        trace::InvalidTraceContext,
        transition::TransitionError,
    },
    proto::google::rpc::Code,
    query::{filter::InvalidFilter, page_token::InvalidPage},
};

/// The result of everything that a caller can ask.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed. The text says what to do about it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such operation: it never was, was deleted, or has expired.
    #[error("operation {name:?} not found: it never existed, was deleted, or has expired")]
    NotFound {
        /// The name that was asked for.
        name: String,
    },
    /// An argument breaks a rule.
    #[error("{field}: {message}")]
    Invalid {
        /// The field of the request.
        field: &'static str,
        /// The reason for machines, such as `INVALID_NAME`.
        reason: &'static str,
        /// The rule, for people.
        message: String,
    },
    /// The id is taken.
    #[error("operation {name:?} exists already; choose another operation_id, or leave it out")]
    OperationExists {
        /// The name that is taken.
        name: String,
    },
    /// The request id came before, with other content.
    #[error(
        "request_id {request_id:?} was used for another request; use a new one for each new request"
    )]
    RequestIdReused {
        /// The id.
        request_id: String,
    },
    /// The operation is not in a stage for that, or the lease is not right.
    #[error("{name}: {error}")]
    FailedPrecondition {
        /// The operation.
        name: String,
        /// Why.
        error: TransitionError,
    },
    /// The queue holds as many waiting operations as it may.
    #[error("queue {queue:?} is full: {limit} operations wait in it; try again later")]
    QueueFull {
        /// The queue.
        queue: String,
        /// The limit that is reached.
        limit: usize,
    },
    /// The store holds as much as it may.
    #[error(
        "the store is full: it holds {limit} {unit}; try again when operations have expired, or delete done ones"
    )]
    StoreFull {
        /// `operations` or `bytes`.
        unit: &'static str,
        /// The limit that is reached.
        limit: usize,
    },
    /// Too many clients wait.
    #[error(
        "the server has {limit} open waits and watches, which is its limit; try again later, or poll GetOperation"
    )]
    TooManyWaiters {
        /// The limit that is reached.
        limit: usize,
    },
    /// One operation is too large.
    #[error("{field} makes the operation {size} bytes large; at most {limit} are allowed")]
    TooLarge {
        /// What is too large.
        field: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The most bytes that are allowed.
        limit: usize,
    },
    /// The store cannot write at present.
    #[error("the store cannot write at present; try again")]
    StoreUnavailable,
    /// The server drains.
    #[error("the server is shutting down; try again")]
    ShuttingDown,
}

// === impl Error ===

impl Error {
    pub(crate) fn invalid(
        field: &'static str,
        reason: &'static str,
        message: impl ToString,
    ) -> Self {
        Self::Invalid {
            field,
            reason,
            message: message.to_string(),
        }
    }

    pub(crate) fn not_found(name: impl Into<String>) -> Self {
        Self::NotFound { name: name.into() }
    }

    /// The canonical code (AIP-193).
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::OperationExists { .. } | Self::RequestIdReused { .. } => Code::AlreadyExists,
            Self::FailedPrecondition { .. } => Code::FailedPrecondition,
            Self::QueueFull { .. }
            | Self::StoreFull { .. }
            | Self::TooLarge { .. }
            | Self::TooManyWaiters { .. } => Code::ResourceExhausted,
            Self::StoreUnavailable | Self::ShuttingDown => Code::Unavailable,
        }
    }

    /// The `reason` of the ErrorInfo: stable, for machines.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "OPERATION_NOT_FOUND",
            Self::Invalid { reason, .. } => reason,
            Self::OperationExists { .. } => "OPERATION_EXISTS",
            Self::RequestIdReused { .. } => "REQUEST_ID_REUSED",
            Self::FailedPrecondition {
                error: TransitionError::AlreadyDone,
                ..
            } => "OPERATION_ALREADY_DONE",
            Self::FailedPrecondition {
                error: TransitionError::LeaseLost(_),
                ..
            } => "LEASE_LOST",
            Self::FailedPrecondition {
                error: TransitionError::LeaseHeld,
                ..
            } => "LEASE_HELD",
            Self::FailedPrecondition {
                error: TransitionError::NotReady,
                ..
            } => "NOT_READY",
            Self::QueueFull { .. } => "QUEUE_FULL",
            Self::StoreFull { .. } => "STORE_FULL",
            Self::TooManyWaiters { .. } => "TOO_MANY_WAITERS",
            Self::TooLarge { .. } => "TOO_LARGE",
            Self::StoreUnavailable => "STORE_UNAVAILABLE",
            Self::ShuttingDown => "SHUTTING_DOWN",
        }
    }

    /// The values in the message, by the keys of the ErrorInfo's metadata.
    pub fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::NotFound { name }
            | Self::OperationExists { name }
            | Self::FailedPrecondition { name, .. } => {
                vec![("name", name.clone())]
            }
            Self::Invalid { field, message, .. } => {
                vec![
                    ("field", (*field).to_owned()),
                    ("description", message.clone()),
                ]
            }
            Self::RequestIdReused { request_id } => vec![("requestId", request_id.clone())],
            Self::QueueFull { queue, limit } => {
                vec![("queue", queue.clone()), ("limit", limit.to_string())]
            }
            Self::StoreFull { unit, limit } => {
                vec![("unit", (*unit).to_owned()), ("limit", limit.to_string())]
            }
            Self::TooManyWaiters { limit } => vec![("limit", limit.to_string())],
            Self::TooLarge { field, size, limit } => {
                vec![
                    ("field", (*field).to_owned()),
                    ("size", size.to_string()),
                    ("limit", limit.to_string()),
                ]
            }
            Self::StoreUnavailable | Self::ShuttingDown => Vec::new(),
        }
    }

    /// How long to wait before another try, where one may help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { .. }
            | Self::TooManyWaiters { .. }
            | Self::StoreUnavailable
            | Self::ShuttingDown => Some(Duration::from_secs(1)),
            Self::StoreFull { .. } => Some(Duration::from_secs(10)),
            _ => None,
        }
    }
}

impl From<InvalidName> for Error {
    fn from(error: InvalidName) -> Self {
        let field = match error {
            InvalidName::Empty | InvalidName::Malformed(_) => "name",
            InvalidName::Parent(_) => "parent",
            InvalidName::Id(_) => "operation_id",
        };
        Self::invalid(field, "INVALID_NAME", error)
    }
}

impl From<InvalidPage> for Error {
    fn from(error: InvalidPage) -> Self {
        match error {
            InvalidPage::Size(_) => Self::invalid("page_size", "INVALID_PAGE_SIZE", error),
            InvalidPage::Token => Self::invalid("page_token", "INVALID_PAGE_TOKEN", error),
        }
    }
}

impl From<InvalidFilter> for Error {
    fn from(error: InvalidFilter) -> Self {
        Self::invalid("filter", "INVALID_FILTER", error)
    }
}

impl From<InvalidLabels> for Error {
    fn from(error: InvalidLabels) -> Self {
        Self::invalid("labels", "INVALID_LABELS", error)
    }
}

impl From<InvalidWorkerId> for Error {
    fn from(error: InvalidWorkerId) -> Self {
        Self::invalid("worker_id", "INVALID_WORKER_ID", error)
    }
}

impl From<InvalidProgress> for Error {
    fn from(error: InvalidProgress) -> Self {
        Self::invalid("progress", "INVALID_PROGRESS", error)
    }
}

impl From<InvalidTraceContext> for Error {
    fn from(error: InvalidTraceContext) -> Self {
        Self::invalid("trace_context", "INVALID_TRACE_CONTEXT", error)
    }
}

impl From<InvalidAny> for Error {
    fn from(error: InvalidAny) -> Self {
        Self::invalid("type_url", "INVALID_ANY", error)
    }
}

impl From<InvalidOutcome> for Error {
    fn from(error: InvalidOutcome) -> Self {
        Self::invalid("error", "INVALID_ERROR", error)
    }
}

impl From<InvalidAttemptResult> for Error {
    fn from(error: InvalidAttemptResult) -> Self {
        match error {
            InvalidAttemptResult::Response(error) => {
                Self::invalid("response", "INVALID_ANY", error)
            }
            InvalidAttemptResult::Error(error) => error.into(),
        }
    }
}

impl From<InvalidQueueName> for Error {
    fn from(error: InvalidQueueName) -> Self {
        Self::invalid("queue", "INVALID_QUEUE", error)
    }
}

impl From<InvalidExecutionOptions> for Error {
    fn from(error: InvalidExecutionOptions) -> Self {
        let field = match error {
            InvalidExecutionOptions::LeaseDuration(_) => "lease_duration",
            InvalidExecutionOptions::ZeroTimeout(field) => field,
            InvalidExecutionOptions::RetryPolicy(_) => "retry_policy",
        };
        Self::invalid(field, "INVALID_EXECUTION_OPTIONS", error)
    }
}
