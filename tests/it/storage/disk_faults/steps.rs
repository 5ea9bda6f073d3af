//! What a story consists of: the calls, and what each of them does.

use longrunning::{
    Any,
    proto::{google::longrunning::operation, longrunning::v1::finish_operation_request},
};

use crate::support::{expected_state::Effect, harness::failure, string_value};

/// A step, of the operation with this id.
#[derive(Clone, Copy, Debug)]
pub(super) enum RunStep {
    CreateSelfExecuted(&'static str),
    /// With an input of so many bytes.
    CreateQueued(&'static str, usize),
    Lease(&'static str),
    Report(&'static str, i64),
    Succeed(&'static str, usize),
    Fail(&'static str),
    Cancel(&'static str),
    Delete(&'static str),
    /// The server is asked to end, and started again.
    Stop,
    /// The server is killed, and started again.
    Kill,
}

// === impl Step ===

impl RunStep {
    pub(super) fn id(self) -> &'static str {
        match self {
            Self::CreateSelfExecuted(id)
            | Self::CreateQueued(id, _)
            | Self::Lease(id)
            | Self::Report(id, _)
            | Self::Succeed(id, _)
            | Self::Fail(id)
            | Self::Cancel(id)
            | Self::Delete(id) => id,
            Self::Stop | Self::Kill => unreachable!("they are no calls"),
        }
    }

    /// What it does; a lease notes for itself what it got.
    pub(super) fn effect(self) -> Option<Effect> {
        Some(match self {
            Self::CreateSelfExecuted(_) | Self::CreateQueued(..) => Effect::Create,
            Self::Lease(_) => Effect::AcquireLease,
            Self::Report(_, units) => Effect::ReportUnits(units),
            Self::Succeed(_, size) => Effect::Finish(operation::Result::Response(payload(size))),
            Self::Fail(_) => match failure(13, "broken") {
                finish_operation_request::Outcome::Failure(failure) => {
                    Effect::Finish(operation::Result::Error(failure.error?))
                }
                _ => return None,
            },
            Self::Cancel(_) => Effect::Cancel,
            Self::Delete(_) => Effect::Delete,
            Self::Stop | Self::Kill => return None,
        })
    }
}

/// As many bytes as are wanted.
pub(super) fn payload(size: usize) -> Any {
    string_value(&"0123456789".repeat(size / 10))
}
