//! How an operation ends: the `oneof result` of google.longrunning.Operation,
//! with wrong values unrepresentable, and the failures that the server itself
//! records.

use crate::proto::google::rpc::{Code, ErrorInfo, Status};

use super::payload::{InvalidAny, Payload};

/// The `domain` of every `google.rpc.ErrorInfo` that this server makes.
pub(crate) const ERROR_DOMAIN: &str = "longrunning.dev";

/// The result of a done operation: exactly one of the two.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// `Operation.response`.
    Response(Payload),
    /// `Operation.error`; its code is 1 to 16.
    Error(Box<Status>),
}

/// Why an outcome is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOutcome {
    /// The code is no error: clients would take 0 for success.
    #[error("{0} is not the code of an error: use a google.rpc.Code from 1 to 16")]
    Code(i32),
    /// A detail is no proper `Any`.
    #[error("a detail of the error is malformed: {0}")]
    Detail(InvalidAny),
}

/// How an attempt failed, as its worker tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub(crate) error: Status,
    pub(crate) retryable: bool,
    pub(crate) retry_after: Option<std::time::Duration>,
}

// === impl Outcome ===

impl Outcome {
    /// An error, checked: its code must be 1 to 16, its details proper `Any`s.
    ///
    /// # Errors
    /// [`InvalidOutcome`] that says which rule is broken.
    pub fn from_status(mut status: Status) -> Result<Self, InvalidOutcome> {
        if !(1..=16).contains(&status.code) {
            return Err(InvalidOutcome::Code(status.code));
        }
        for detail in &mut status.details {
            let checked = Payload::new(std::mem::take(detail)).map_err(InvalidOutcome::Detail)?;
            *detail = checked.any().clone();
        }
        Ok(Self::Error(Box::new(status)))
    }

    /// A failure that the server records, with its ErrorInfo.
    pub(crate) fn server_error(code: Code, reason: &str, message: impl Into<String>) -> Self {
        Self::Error(Box::new(status_with_reason(code, reason, message)))
    }

    /// The end of a cancelled operation: code 1.
    pub(crate) fn cancelled() -> Self {
        Self::server_error(
            Code::Cancelled,
            "OPERATION_CANCELLED",
            "the operation was cancelled",
        )
    }

    /// How many bytes it holds, about.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Response(response) => response.size(),
            Self::Error(error) => prost::Message::encoded_len(&**error),
        }
    }
}

/// A Status with one ErrorInfo of our domain.
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
    /// A failure that is not worth another attempt. The message is for people;
    /// the error's ErrorInfo has the reason `HANDLER_FAILED` until
    /// [`Failure::with_reason`] gives a better one.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        status_with_reason(code, "HANDLER_FAILED", message).into()
    }

    /// The work stopped because somebody cancelled it.
    pub fn cancelled() -> Self {
        status_with_reason(
            Code::Cancelled,
            "OPERATION_CANCELLED",
            "the operation was cancelled",
        )
        .into()
    }

    /// Puts a machine-readable reason, `[A-Z][A-Z0-9_]+[A-Z0-9]`, into the ErrorInfo.
    #[must_use]
    pub fn with_reason(mut self, reason: &str) -> Self {
        let code = Code::try_from(self.error.code).unwrap_or(Code::Unknown);
        self.error = status_with_reason(code, reason, std::mem::take(&mut self.error.message));
        self
    }

    /// Says that another attempt may succeed.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// Says that another attempt may succeed, but not before this time is over.
    #[must_use]
    pub fn retryable_after(mut self, delay: std::time::Duration) -> Self {
        self.retryable = true;
        self.retry_after = Some(delay);
        self
    }
}

impl From<Status> for Failure {
    /// A failure with this very error, not worth another attempt.
    fn from(error: Status) -> Self {
        Self {
            error,
            retryable: false,
            retry_after: None,
        }
    }
}

impl From<InvalidAny> for Failure {
    /// The handler made an `Any` that no client could unpack.
    fn from(error: InvalidAny) -> Self {
        Self::new(Code::Internal, error.to_string()).with_reason("INVALID_RESULT")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
