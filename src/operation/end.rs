//! How an attempt ends, as its worker tells it, wherever the worker is. What
//! becomes of the operation is decided in `stage`.

use prost_types::Any;

use super::{
    lease::LeaseToken,
    outcome::{Failure, InvalidOutcome, Outcome},
    payload::{InvalidAny, Payload},
    stage::{Event, Report},
};

/// How an attempt ends.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// With a response; an empty `Any` means `google.protobuf.Empty`.
    Response(Any),
    /// With a failure: another attempt follows if it is retryable and attempts
    /// are left.
    Failure(Failure),
    /// The operation goes back to its queue; the attempt does not count.
    Release,
}

/// Why an end is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEnd {
    /// The response is no proper `Any`.
    #[error(transparent)]
    Response(#[from] InvalidAny),
    /// The error is none.
    #[error(transparent)]
    Error(#[from] InvalidOutcome),
}

impl End {
    /// What the holder of the lease says with it.
    pub(crate) fn into_event(self, token: LeaseToken, report: Report) -> Result<Event, InvalidEnd> {
        Ok(match self {
            Self::Response(response) if response == Any::default() => {
                Event::Finish(token, Outcome::Response(Payload::empty()), report)
            }
            Self::Response(response) => {
                Event::Finish(token, Outcome::Response(Payload::new(response)?), report)
            }
            Self::Failure(failure) => match Outcome::error(failure.error)? {
                Outcome::Error(error) if failure.retryable => Event::Fail {
                    token,
                    error,
                    retry_after: failure.retry_after,
                    report,
                },
                outcome => Event::Finish(token, outcome, report),
            },
            Self::Release => Event::Release(token, report),
        })
    }
}
