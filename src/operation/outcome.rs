//! The result of a done operation, and the errors that the server records itself.

use crate::proto::google::rpc::{Code, ErrorInfo, Status};

use super::payload::{InvalidAny, Payload};

/// The maximum size of the message of a status that an operation keeps besides its result, and of its details in all: large errors of many attempts
/// must not fill an operation.
const MAX_STATUS_PART_BYTES: usize = 1024;

/// The `domain` of each `google.rpc.ErrorInfo` of this server (AIP-193).
pub(crate) const ERROR_DOMAIN: &str = "longrunning.dev";

/// The result of a done operation: `oneof result` of google.longrunning.Operation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// `Operation.response`.
    Response(Payload),
    /// `Operation.error`, with a code from 1 to 16.
    Error(Box<Status>),
}

/// An invalid error of an operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidOutcome {
    /// The code is not in 1 to 16; clients would take 0 for success.
    #[error("invalid error code {0}: use a google.rpc.Code from 1 to 16")]
    Code(i32),
    /// A detail has a malformed type URL.
    #[error("invalid error detail: {0}")]
    Detail(#[source] InvalidAny),
}

/// The failure of an attempt, as its worker reports it.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub(crate) error: Status,
    pub(crate) retryable: bool,
    pub(crate) retry_after: Option<std::time::Duration>,
}

// === impl Outcome ===

impl Outcome {
    /// Validates an error.
    pub(crate) fn from_status(mut status: Status) -> Result<Self, InvalidOutcome> {
        if !(1..=16).contains(&status.code) {
            return Err(InvalidOutcome::Code(status.code));
        }
        for detail in &mut status.details {
            let checked = Payload::new(std::mem::take(detail)).map_err(InvalidOutcome::Detail)?;
            *detail = checked.any().clone();
        }
        Ok(Self::Error(Box::new(status)))
    }

    /// Makes an error of the server, with an ErrorInfo.
    pub(crate) fn server_error(code: Code, reason: &str, message: impl Into<String>) -> Self {
        Self::Error(Box::new(status_with_reason(code, reason, message)))
    }

    /// Makes the error of a cancelled operation: code 1.
    pub(crate) fn cancelled() -> Self {
        Self::server_error(
            Code::Cancelled,
            "OPERATION_CANCELLED",
            "the operation was cancelled",
        )
    }

    /// Makes the error of a cancelled operation whose worker failed with `cause`, which is among the details, cut like the
    /// statuses of the history.
    pub(crate) fn cancelled_after(cause: &Status) -> Self {
        let message = "the operation was cancelled";
        let mut error = status_with_reason(Code::Cancelled, "OPERATION_CANCELLED", message);
        error
            .details
            .push(Payload::pack(&truncated(cause)).any().clone());
        Self::Error(Box::new(error))
    }

    /// Returns the approximate size in bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Response(response) => response.size(),
            Self::Error(error) => prost::Message::encoded_len(&**error),
        }
    }
}

/// Returns a copy of a status whose message is cut, and which has only the first details that fit.
pub(super) fn truncated(status: &Status) -> Status {
    let message_len = status.message.floor_char_boundary(MAX_STATUS_PART_BYTES);
    let mut details_len = 0;
    let fits = |detail: &&prost_types::Any| {
        details_len += detail.type_url.len() + detail.value.len();
        details_len <= MAX_STATUS_PART_BYTES
    };
    Status {
        code: status.code,
        message: status.message[..message_len].to_owned(),
        details: status.details.iter().take_while(fits).cloned().collect(),
    }
}

/// Makes a Status with an ErrorInfo of [`ERROR_DOMAIN`].
pub(crate) fn status_with_reason(code: Code, reason: &str, message: impl Into<String>) -> Status {
    let info = ErrorInfo {
        reason: reason.into(),
        domain: ERROR_DOMAIN.into(),
        ..Default::default()
    };
    Status {
        code: code.into(),
        message: message.into(),
        details: vec![Payload::pack(&info).any().clone()],
    }
}

// === impl Failure ===

impl Failure {
    /// Makes a failure that is not retried. Its ErrorInfo has the reason
    /// `HANDLER_FAILED`; [`Failure::with_reason`] replaces it.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        status_with_reason(code, "HANDLER_FAILED", message).into()
    }

    /// Makes the failure of an attempt that stopped because of a requested cancellation.
    pub fn cancelled() -> Self {
        Self::new(Code::Cancelled, "the operation was cancelled").with_reason("OPERATION_CANCELLED")
    }

    /// Sets the reason of the ErrorInfo, `[A-Z][A-Z0-9_]+[A-Z0-9]`. Other details
    /// of the error are dropped.
    #[must_use]
    pub fn with_reason(mut self, reason: &str) -> Self {
        let code = Code::try_from(self.error.code).unwrap_or(Code::Unknown);
        self.error = status_with_reason(code, reason, std::mem::take(&mut self.error.message));
        self
    }

    /// Allows another attempt.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// Allows another attempt, at the earliest after `delay`.
    #[must_use]
    pub fn retryable_after(mut self, delay: std::time::Duration) -> Self {
        self.retryable = true;
        self.retry_after = Some(delay);
        self
    }
}

impl From<Status> for Failure {
    /// Makes a failure with this error, which is not retried.
    fn from(error: Status) -> Self {
        Self {
            error,
            retryable: false,
            retry_after: None,
        }
    }
}

impl From<InvalidAny> for Failure {
    /// Makes an INTERNAL failure with the reason `INVALID_RESULT`.
    fn from(error: InvalidAny) -> Self {
        Self::new(Code::Internal, error.to_string()).with_reason("INVALID_RESULT")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Rules: OP-4
    #[test]
    fn error_code_outside_1_to_16_is_rejected() {
        for code in 1..=16 {
            assert!(
                Outcome::from_status(Status {
                    code,
                    ..Default::default()
                })
                .is_ok()
            );
        }
        for code in [0, 17, -1, i32::MAX, i32::MIN] {
            let rejected = Outcome::from_status(Status {
                code,
                ..Default::default()
            });
            assert_eq!(rejected, Err(InvalidOutcome::Code(code)));
        }
    }

    // Rules: OP-5
    #[test]
    fn malformed_error_detail_is_rejected() {
        let error = Status {
            code: 5,
            details: vec![prost_types::Any::default()],
            ..Default::default()
        };
        assert!(matches!(
            Outcome::from_status(error),
            Err(InvalidOutcome::Detail(_))
        ));
    }
}
