//! The steps of a run, and the effect of each.

use longrunning::{
    Any,
    proto::{
        google::{longrunning::operation, rpc::Code},
        longrunning::v1::finish_operation_request,
    },
};

use crate::support::{expected_state::Effect, harness::failure, string_value};

/// A call concerning the operation with an id, or a restart.
#[derive(Clone, Copy, Debug)]
pub(super) enum RunStep {
    CreateSelfExecuted(&'static str),
    /// With the size of its input in bytes.
    CreateQueued(&'static str, usize),
    Lease(&'static str),
    /// With the number of units done.
    Report(&'static str, i64),
    /// With the size of its response in bytes.
    Succeed(&'static str, usize),
    Fail(&'static str),
    Cancel(&'static str),
    Delete(&'static str),
    /// Shuts the server down and starts it again.
    Stop,
    /// Kills the server and starts it again.
    Kill,
}

// === impl RunStep ===

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
            Self::Stop | Self::Kill => unreachable!("stop and kill are not calls"),
        }
    }

    /// Returns the effect of a call. A lease is recorded when its response arrives.
    pub(super) fn effect(self) -> Option<Effect> {
        Some(match self {
            Self::CreateSelfExecuted(_) | Self::CreateQueued(..) => Effect::Create,
            Self::Lease(_) => Effect::AcquireLease,
            Self::Report(_, units) => Effect::ReportUnits(units),
            Self::Succeed(_, size) => Effect::Finish(operation::Result::Response(payload(size))),
            Self::Fail(_) => match failure(Code::Internal, "broken") {
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

/// Builds a payload of about `size` bytes.
pub(super) fn payload(size: usize) -> Any {
    string_value(&"0123456789".repeat(size / 10))
}
