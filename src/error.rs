//! The error of every call on `Operations`, with its canonical code and reason.

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

/// Result of a call on `Operations`.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Error of a call on `Operations`. The message says what the caller can do.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operation never existed, was deleted, or has expired.
    #[error("operation {name:?} not found: it never existed, was deleted, or has expired")]
    NotFound {
        /// Name of the operation.
        name: String,
    },
    /// An argument is invalid.
    #[error("{field}: {message}")]
    Invalid {
        /// Field of the request.
        field: &'static str,
        /// Reason of the ErrorInfo, such as `INVALID_NAME`.
        reason: &'static str,
        /// Description of the problem.
        message: String,
    },
    /// The operation id is in use.
    #[error("operation {name:?} already exists; choose another operation_id or omit it")]
    OperationExists {
        /// Name of the existing operation.
        name: String,
    },
    /// The operation id belongs to an operation that was deleted and is still queued
    /// or running.
    #[error(
        "operation {name:?} was deleted and is still queued or running; choose another operation_id or omit it, or end it with OperationAdmin.CancelOperation"
    )]
    DeletedOperationExists {
        /// Name of the deleted operation.
        name: String,
    },
    /// The request id was used before for a request with other content.
    #[error(
        "request_id {request_id:?} was used for another request; use a new one for each request"
    )]
    RequestIdReused {
        /// The request id.
        request_id: String,
    },
    /// The state of the operation or of its lease does not allow the change.
    #[error("{name}: {error}")]
    FailedPrecondition {
        /// Name of the operation.
        name: String,
        /// The rejected transition.
        error: TransitionError,
    },
    /// The queue has reached its length limit.
    #[error("queue {queue:?} is full: {limit} operations are waiting; retry later")]
    QueueFull {
        /// Name of the queue.
        queue: String,
        /// The limit, in operations.
        limit: usize,
    },
    /// The store has reached a capacity limit.
    #[error(
        "the store is full: it has reached its limit of {limit} {unit}; delete done operations, or retry after some have expired"
    )]
    StoreFull {
        /// Unit of `limit`: `operations` or `bytes`.
        unit: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The server has reached its limit of open waits and watches.
    #[error(
        "the server has reached its limit of {limit} open waits and watches; retry later, or poll GetOperation"
    )]
    TooManyWaiters {
        /// The limit, in waits and watches.
        limit: usize,
    },
    /// The operation would exceed its size limit.
    #[error("{field} makes the operation {size} bytes large; the limit is {limit} bytes")]
    TooLarge {
        /// The field that exceeds the limit.
        field: &'static str,
        /// Size of the operation in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Writes to the storage are failing.
    #[error("the storage is unavailable; retry")]
    StoreUnavailable,
    /// The server is shutting down.
    #[error("the server is shutting down; retry")]
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

    /// Returns the canonical code (AIP-193).
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::OperationExists { .. }
            | Self::DeletedOperationExists { .. }
            | Self::RequestIdReused { .. } => Code::AlreadyExists,
            Self::FailedPrecondition { .. } => Code::FailedPrecondition,
            Self::QueueFull { .. }
            | Self::StoreFull { .. }
            | Self::TooLarge { .. }
            | Self::TooManyWaiters { .. } => Code::ResourceExhausted,
            Self::StoreUnavailable | Self::ShuttingDown => Code::Unavailable,
        }
    }

    /// Returns the `reason` of the ErrorInfo, which is stable.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "OPERATION_NOT_FOUND",
            Self::Invalid { reason, .. } => reason,
            Self::OperationExists { .. } | Self::DeletedOperationExists { .. } => {
                "OPERATION_EXISTS"
            }
            Self::RequestIdReused { .. } => "REQUEST_ID_REUSED",
            Self::FailedPrecondition { error, .. } => match error {
                TransitionError::AlreadyDone => "OPERATION_ALREADY_DONE",
                TransitionError::LeaseLost(_) => "LEASE_LOST",
                TransitionError::LeaseHeld => "LEASE_HELD",
                TransitionError::NotReady => "NOT_READY",
            },
            Self::QueueFull { .. } => "QUEUE_FULL",
            Self::StoreFull { .. } => "STORE_FULL",
            Self::TooManyWaiters { .. } => "TOO_MANY_WAITERS",
            Self::TooLarge { .. } => "TOO_LARGE",
            Self::StoreUnavailable => "STORE_UNAVAILABLE",
            Self::ShuttingDown => "SHUTTING_DOWN",
        }
    }

    /// Returns the metadata of the ErrorInfo: the values in the message, with their keys.
    pub fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::NotFound { name }
            | Self::OperationExists { name }
            | Self::DeletedOperationExists { name }
            | Self::FailedPrecondition { name, .. } => vec![("name", name.clone())],
            Self::Invalid { field, message, .. } => vec![
                ("field", (*field).to_owned()),
                ("description", message.clone()),
            ],
            Self::RequestIdReused { request_id } => vec![("requestId", request_id.clone())],
            Self::QueueFull { queue, limit } => {
                vec![("queue", queue.clone()), ("limit", limit.to_string())]
            }
            Self::StoreFull { unit, limit } => {
                vec![("unit", (*unit).to_owned()), ("limit", limit.to_string())]
            }
            Self::TooManyWaiters { limit } => vec![("limit", limit.to_string())],
            Self::TooLarge { field, size, limit } => vec![
                ("field", (*field).to_owned()),
                ("size", size.to_string()),
                ("limit", limit.to_string()),
            ],
            Self::StoreUnavailable | Self::ShuttingDown => Vec::new(),
        }
    }

    /// Returns the delay before a retry, or `None` if a retry cannot succeed.
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
