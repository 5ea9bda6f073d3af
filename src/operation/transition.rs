//! The state machine: the table of (phase, event) that decides the next phase.

mod context;

use std::time::Duration;

pub(super) use self::context::{TransitionContext, is_unconfirmed_loss};
use super::{
    lease::{Lease, LeaseToken, WorkerId},
    outcome::Outcome,
};
pub use super::{
    report::Report,
    transition_error::{LeaseLostReason, TransitionError},
};
use crate::{
    clock::Timestamp,
    proto::{
        google::rpc::{Code, Status},
        longrunning::v1::operation_metadata::State,
    },
};

/// The position of an operation in the state machine. Finer than the public
/// [`State`]: it has a phase for requested cancellation, and contains the lease.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Phase {
    /// No worker holds the lease; none may acquire it before `ready_at`.
    Pending { ready_at: Timestamp },
    /// A worker holds the lease.
    Running(Box<Lease>),
    /// A worker holds the lease, and cancellation was requested.
    Cancelling(Box<Lease>),
    /// The operation has its final result.
    Done(TerminalState),
}

/// The kind of a final result. The values are part of the storage format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum TerminalState {
    /// A response.
    Succeeded = 1,
    /// An error of any code but CANCELLED.
    Failed = 2,
    /// An error of code CANCELLED.
    Cancelled = 3,
}

/// An input of the state machine. Each event of a lease holder carries a report,
/// which may be empty.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// A worker asks for the lease, under a new token.
    AcquireLease {
        token: LeaseToken,
        worker: WorkerId,
        /// The time within which the worker must confirm the lease, at most its duration. `None`: it is confirmed at
        /// once.
        confirm_within: Option<Duration>,
    },
    /// The server takes back a lease that it could not hand over. It was no attempt.
    RevokeLease(LeaseToken),
    /// The holder renews the lease for its full duration and merges the report.
    Heartbeat(LeaseToken, Report),
    /// The holder reports without renewing the lease.
    Report(LeaseToken, Report),
    /// A client requests cancellation.
    RequestCancel,
    /// The holder returns the operation to its queue; the attempt does not count.
    ReleaseLease(LeaseToken, Report),
    /// The attempt failed, and another one may succeed.
    Fail {
        token: LeaseToken,
        /// The final result if no attempt is left.
        error: Box<Status>,
        /// The minimum delay before the next attempt.
        retry_after: Option<Duration>,
        report: Report,
    },
    /// The holder finishes the operation with this result.
    Finish(LeaseToken, Outcome, Report),
    /// A deadline may have passed.
    TimerFired,
}

/// The effect of an event.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Transition {
    /// Nothing changes.
    Unchanged,
    /// The operation enters this phase, which is not `Done`. The attempt, if one runs, goes on.
    To(Phase),
    /// The attempt ended without the operation, which is pending again until `ready_at`.
    Requeue {
        ready_at: Timestamp,
        reason: RequeueReason,
    },
    /// The phase stays, and the lease lasts until this time.
    RenewLease { expires_at: Timestamp },
    /// The phase stays, and the report is merged.
    MergeReport,
    /// The operation is done with this result.
    Finish(Outcome),
    /// The operation is removed.
    Remove,
}

/// Why an attempt ended without its operation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RequeueReason {
    /// The worker reported this error, or the attempt exceeded its timeout.
    Failed(Box<Status>),
    /// No heartbeat arrived before the lease expired.
    WorkerLost(Box<Status>),
    /// The worker returned the operation.
    Released,
    /// The worker did not confirm the lease in time.
    Unconfirmed,
    /// The lease could not be handed over.
    Revoked,
}

/// Returns the effect of `event` in `phase`.
///
/// # Errors
/// [`TransitionError`] if the event is not allowed in `phase`.
pub(crate) fn transition(
    phase: &Phase,
    event: &Event,
    context: TransitionContext<'_>,
) -> Result<Transition, TransitionError> {
    use Event::{
        AcquireLease, Fail, Finish, Heartbeat, ReleaseLease, Report, RequestCancel, RevokeLease,
        TimerFired,
    };
    let now = context.now;
    if let (Some(lease), Some(token)) = (phase.lease(), event.token()) {
        context.check_lease(lease, token)?;
    }
    Ok(match (phase, event) {
        (Phase::Pending { ready_at }, AcquireLease { .. }) if *ready_at > now => {
            return Err(TransitionError::NotReady);
        }
        (Phase::Pending { .. }, AcquireLease { .. } | TimerFired)
            if context.is_total_timeout_exceeded() =>
        {
            context.fail_with_total_timeout()
        }
        (
            Phase::Pending { .. },
            AcquireLease {
                token,
                worker,
                confirm_within,
            },
        ) => Transition::To(context.acquire_lease(*token, worker, *confirm_within)),
        (Phase::Pending { .. }, RequestCancel) => Transition::Finish(Outcome::cancelled()),
        (Phase::Pending { .. }, TimerFired) => Transition::Unchanged,
        (
            Phase::Pending { .. },
            Heartbeat(..)
            | Report(..)
            | ReleaseLease(..)
            | RevokeLease(..)
            | Fail { .. }
            | Finish(..),
        ) => return Err(TransitionError::LeaseLost(LeaseLostReason::Requeued)),

        (Phase::Running(lease), RequestCancel) => {
            Transition::To(Phase::Cancelling(context.with_cancel_deadline(lease)))
        }
        (Phase::Running(_), ReleaseLease(..)) => context.requeue_or_fail(RequeueReason::Released),
        (Phase::Running(_), RevokeLease(..)) => context.requeue_or_fail(RequeueReason::Revoked),
        (
            Phase::Running(lease),
            Fail {
                error, retry_after, ..
            },
        ) => context.retry_or_fail(lease, error, *retry_after),
        (Phase::Running(lease), TimerFired) => context.check_deadlines(lease),

        (Phase::Cancelling(_), RequestCancel) => Transition::Unchanged,
        (Phase::Cancelling(_), ReleaseLease(..) | RevokeLease(..)) => {
            Transition::Finish(Outcome::cancelled())
        }
        (Phase::Cancelling(_), Fail { error, .. }) => {
            Transition::Finish(Outcome::cancelled_after(error))
        }
        (Phase::Cancelling(lease), TimerFired) => context.check_cancel_deadlines(lease),

        // Only a timer ends a lease.
        (Phase::Running(_) | Phase::Cancelling(_), AcquireLease { .. }) => {
            return Err(TransitionError::LeaseHeld);
        }
        (Phase::Running(_) | Phase::Cancelling(_), Heartbeat(..)) => Transition::RenewLease {
            expires_at: now + context.options.lease_duration,
        },
        (Phase::Running(_) | Phase::Cancelling(_), Report(..)) => Transition::MergeReport,
        (Phase::Running(_) | Phase::Cancelling(_), Finish(_, outcome, _)) => {
            Transition::Finish(outcome.clone())
        }

        (Phase::Done(_), RequestCancel) => Transition::Unchanged,
        (Phase::Done(_), Finish(..) | Fail { .. }) if context.same_outcome => Transition::Unchanged,
        (Phase::Done(_), TimerFired) if context.update_time + context.options.retention <= now => {
            Transition::Remove
        }
        (Phase::Done(_), TimerFired) => Transition::Unchanged,
        (
            Phase::Done(_),
            AcquireLease { .. }
            | Heartbeat(..)
            | Report(..)
            | ReleaseLease(..)
            | RevokeLease(..)
            | Fail { .. }
            | Finish(..),
        ) => return Err(TransitionError::AlreadyDone),
    })
}

// === impl Event ===

impl Event {
    /// Returns the token and the report of a lease holder's event, or `None` for other events.
    fn holder_parts(&self) -> Option<(LeaseToken, &Report)> {
        match self {
            Self::Heartbeat(token, report)
            | Self::Report(token, report)
            | Self::ReleaseLease(token, report)
            | Self::Fail { token, report, .. }
            | Self::Finish(token, _, report) => Some((*token, report)),
            Self::AcquireLease { .. }
            | Self::RevokeLease(_)
            | Self::RequestCancel
            | Self::TimerFired => None,
        }
    }

    /// Returns the token of the lease that the event concerns, or `None` if it concerns none.
    fn token(&self) -> Option<LeaseToken> {
        match self {
            Self::RevokeLease(token) => Some(*token),
            _ => self.holder_parts().map(|(token, _)| token),
        }
    }

    /// Returns the report of a lease holder's event, or `None` for other events.
    pub(crate) fn report(&self) -> Option<&Report> {
        self.holder_parts().map(|(_, report)| report)
    }

    /// Returns `true` if a report that is not empty accompanies the event.
    pub(crate) fn has_report(&self) -> bool {
        self.report().is_some_and(|report| !report.is_empty())
    }

    /// Replaces the report by an empty one.
    pub(crate) fn without_report(mut self) -> Self {
        match &mut self {
            Self::Heartbeat(_, report)
            | Self::Report(_, report)
            | Self::ReleaseLease(_, report)
            | Self::Fail { report, .. }
            | Self::Finish(_, _, report) => *report = Report::default(),
            Self::AcquireLease { .. }
            | Self::RevokeLease(_)
            | Self::RequestCancel
            | Self::TimerFired => {}
        }
        self
    }
}

// === impl Phase ===

impl Phase {
    pub(super) fn lease_mut(&mut self) -> Option<&mut Lease> {
        match self {
            Self::Running(lease) | Self::Cancelling(lease) => Some(lease),
            Self::Pending { .. } | Self::Done(_) => None,
        }
    }

    /// Returns the public state. A requested cancellation is still `Running`.
    pub(crate) fn state(&self) -> State {
        match self {
            Self::Pending { .. } => State::Pending,
            Self::Running(_) | Self::Cancelling(_) => State::Running,
            Self::Done(TerminalState::Succeeded) => State::Succeeded,
            Self::Done(TerminalState::Failed) => State::Failed,
            Self::Done(TerminalState::Cancelled) => State::Cancelled,
        }
    }

    /// Returns the lease, or `None` while pending and when done.
    pub(crate) fn lease(&self) -> Option<&Lease> {
        match self {
            Self::Running(lease) | Self::Cancelling(lease) => Some(lease),
            Self::Pending { .. } | Self::Done(_) => None,
        }
    }
}

// === impl TerminalState ===

impl From<&Outcome> for TerminalState {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Response(_) => Self::Succeeded,
            Outcome::Error(error) if error.code == i32::from(Code::Cancelled) => Self::Cancelled,
            Outcome::Error(_) => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests;
