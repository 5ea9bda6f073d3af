//! How an attempt ends, as its worker tells it, wherever the worker is. What
//! becomes of the operation is decided in `stage`.

use prost_types::Any;

use super::{
    lease::LeaseToken,
    outcome::{Failure, InvalidOutcome, Outcome},
    payload::{InvalidAny, Payload},
    transition::{Event, Report},
};

/// How an attempt ends.
#[derive(Clone, Debug, PartialEq)]
pub enum AttemptResult {
    /// With a response; an empty `Any` means `google.protobuf.Empty`.
    Succeeded(Any),
    /// With a failure: another attempt follows if it is retryable and attempts
    /// are left.
    Failed(Failure),
    /// The operation goes back to its queue; the attempt does not count.
    Released,
}

/// Why an end is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAttemptResult {
    /// The response is no proper `Any`.
    #[error(transparent)]
    Response(#[from] InvalidAny),
    /// The error is none.
    #[error(transparent)]
    Error(#[from] InvalidOutcome),
}

impl AttemptResult {
    /// What the holder of the lease says with it.
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
