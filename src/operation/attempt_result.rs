//! The result of an attempt, as its worker reports it.

use prost_types::Any;

use super::{
    lease::LeaseToken,
    outcome::{Failure, InvalidOutcome, Outcome},
    payload::{InvalidAny, Payload},
    report::Report,
    transition::Event,
};

/// The result of an attempt.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum AttemptResult {
    /// The operation succeeded. An empty `Any` counts as `google.protobuf.Empty`.
    Succeeded(Any),
    /// The attempt failed. The operation is retried if the failure is retryable
    /// and attempts are left.
    Failed(Failure),
    /// The worker returns the operation to its queue; the attempt does not count.
    Released,
}

/// An invalid [`AttemptResult`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidAttemptResult {
    /// The type URL of the response is malformed.
    #[error(transparent)]
    Response(#[from] InvalidAny),
    /// The error has an invalid code or detail.
    #[error(transparent)]
    Error(#[from] InvalidOutcome),
}

// === impl AttemptResult ===

impl AttemptResult {
    /// Converts the result into the event of the lease holder.
    pub(crate) fn into_event(
        self,
        token: LeaseToken,
        report: Report,
    ) -> Result<Event, InvalidAttemptResult> {
        Ok(match self {
            Self::Succeeded(response) if response == Any::default() => {
                Event::Finish(token, Outcome::Response(Payload::empty()), report)
            }
            Self::Succeeded(response) => {
                Event::Finish(token, Outcome::Response(Payload::new(response)?), report)
            }
            Self::Failed(failure) => match Outcome::from_status(failure.error)? {
                Outcome::Error(error) if failure.retryable => Event::Fail {
                    token,
                    error,
                    retry_after: failure.retry_after,
                    report,
                },
                outcome => Event::Finish(token, outcome, report),
            },
            Self::Released => Event::ReleaseLease(token, report),
        })
    }
}
