//! The state machine: the table of (phase, event) that decides the next phase.

use std::time::Duration;

use super::{
    lease::{Lease, LeaseToken, WorkerId},
    options::ExecutionOptions,
    outcome::{Outcome, status_with_reason},
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
    AcquireLease { token: LeaseToken, worker: WorkerId },
    /// The holder renews the lease for its full duration.
    RenewLease(LeaseToken, Report),
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
    /// The operation enters this phase, which is not `Done`.
    To(Phase),
    /// The phase stays, and the report is merged.
    MergeReport,
    /// The operation is done with this result.
    Finish(Outcome),
    /// The operation is removed.
    Remove,
}

/// The facts about an operation, besides its phase, that a transition depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransitionContext<'a> {
    pub(crate) now: Timestamp,
    pub(crate) options: &'a ExecutionOptions,
    pub(crate) create_time: Timestamp,
    pub(crate) update_time: Timestamp,
    /// Attempts that count against the retry policy.
    pub(crate) counted_attempts: u32,
    /// `true` if the operation is done with the very result that the event brings.
    pub(crate) same_outcome: bool,
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
        AcquireLease, Fail, Finish, ReleaseLease, RenewLease, Report, RequestCancel, TimerFired,
    };
    let now = context.now;
    if let (Some(lease), Some((token, _))) = (phase.lease(), event.holder_parts()) {
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
        (Phase::Pending { .. }, AcquireLease { token, worker }) => {
            Transition::To(context.acquire_lease(*token, worker))
        }
        (Phase::Pending { .. }, RequestCancel) => Transition::Finish(Outcome::cancelled()),
        (Phase::Pending { .. }, TimerFired) => Transition::Unchanged,
        (
            Phase::Pending { .. },
            RenewLease(..) | Report(..) | ReleaseLease(..) | Fail { .. } | Finish(..),
        ) => return Err(TransitionError::LeaseLost(LeaseLostReason::Requeued)),

        (Phase::Running(lease), AcquireLease { token, worker }) => match context.on_timer(lease) {
            Transition::Unchanged => return Err(TransitionError::LeaseHeld),
            // The attempt timed out, and the backoff before the next one has begun.
            Transition::To(Phase::Pending { ready_at }) if ready_at > now => {
                return Err(TransitionError::NotReady);
            }
            Transition::To(_) => Transition::To(context.acquire_lease(*token, worker)),
            transition => transition,
        },
        (Phase::Running(lease), RenewLease(..)) => {
            Transition::To(Phase::Running(context.renew_lease(lease)))
        }
        (Phase::Running(lease), RequestCancel) => {
            Transition::To(Phase::Cancelling(context.with_cancel_deadline(lease)))
        }
        (Phase::Running(_), ReleaseLease(..)) => context.release_lease(),
        (
            Phase::Running(lease),
            Fail {
                error, retry_after, ..
            },
        ) => context.retry_or_fail(lease, error, *retry_after),
        (Phase::Running(lease), TimerFired) => context.on_timer(lease),

        (Phase::Cancelling(lease), AcquireLease { .. }) => match context.on_cancel_timer(lease) {
            Transition::Unchanged => return Err(TransitionError::LeaseHeld),
            transition => transition,
        },
        (Phase::Cancelling(lease), RenewLease(..)) => {
            Transition::To(Phase::Cancelling(context.renew_lease(lease)))
        }
        (Phase::Cancelling(_), RequestCancel) => Transition::Unchanged,
        (Phase::Cancelling(_), ReleaseLease(..) | Fail { .. }) => {
            Transition::Finish(Outcome::cancelled())
        }
        (Phase::Cancelling(lease), TimerFired) => context.on_cancel_timer(lease),

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
            | RenewLease(..)
            | Report(..)
            | ReleaseLease(..)
            | Fail { .. }
            | Finish(..),
        ) => return Err(TransitionError::AlreadyDone),
    })
}

// === impl TransitionContext ===

impl TransitionContext<'_> {
    /// Returns the phase of an attempt that begins now.
    pub(super) fn acquire_lease(self, token: LeaseToken, worker: &WorkerId) -> Phase {
        let attempt_timeout = self.options.attempt_timeout;
        Phase::Running(Box::new(Lease {
            token,
            holder: worker.clone(),
            expires_at: self.now + self.options.lease_duration,
            attempt_deadline: attempt_timeout.map(|timeout| self.now + timeout),
            cancel_deadline: None,
        }))
    }

    fn check_lease(self, lease: &Lease, token: LeaseToken) -> Result<(), TransitionError> {
        if lease.token != token {
            return Err(TransitionError::LeaseLost(LeaseLostReason::Superseded));
        }
        if lease.is_expired(self.now) {
            return Err(TransitionError::LeaseLost(LeaseLostReason::Expired));
        }
        Ok(())
    }

    fn renew_lease(self, lease: &Lease) -> Box<Lease> {
        Box::new(Lease {
            expires_at: self.now + self.options.lease_duration,
            ..lease.clone()
        })
    }

    fn with_cancel_deadline(self, lease: &Lease) -> Box<Lease> {
        let grace_period = self.options.cancel_grace_period;
        Box::new(Lease {
            cancel_deadline: grace_period.map(|grace_period| self.now + grace_period),
            ..lease.clone()
        })
    }

    /// Without a queue no other worker can acquire the lease, so the operation fails.
    fn release_lease(self) -> Transition {
        match self.options.queue {
            Some(_) => Transition::To(Phase::Pending { ready_at: self.now }),
            None => Transition::Finish(worker_lost_outcome("its creator released it")),
        }
    }

    fn retry_or_fail(
        self,
        lease: &Lease,
        error: &Status,
        retry_after: Option<Duration>,
    ) -> Transition {
        if !self.can_retry() {
            return Transition::Finish(Outcome::Error(Box::new(error.clone())));
        }
        let backoff = self
            .options
            .retry_policy
            .backoff(self.counted_attempts, lease.token.jitter_fraction());
        let delay = retry_after.map_or(backoff, |min_delay| backoff.max(min_delay));
        Transition::To(Phase::Pending {
            ready_at: self.now + delay,
        })
    }

    /// Returns the effect of passed deadlines on a running attempt.
    fn on_timer(self, lease: &Lease) -> Transition {
        if self.is_total_timeout_exceeded() {
            return self.fail_with_total_timeout();
        }
        let is_passed = |deadline| deadline <= self.now;
        if lease.attempt_deadline.is_some_and(is_passed) {
            let message = "the attempt exceeded its attempt_timeout";
            let error = status_with_reason(Code::DeadlineExceeded, "ATTEMPT_TIMEOUT", message);
            return self.retry_or_fail(lease, &error, None);
        }
        if !lease.is_expired(self.now) {
            return Transition::Unchanged;
        }
        if self.can_retry() {
            return Transition::To(Phase::Pending { ready_at: self.now });
        }
        Transition::Finish(worker_lost_outcome(
            "the worker sent no heartbeat before the lease expired",
        ))
    }

    /// Returns the effect of passed deadlines on an attempt with requested cancellation.
    fn on_cancel_timer(self, lease: &Lease) -> Transition {
        if self.is_total_timeout_exceeded() {
            return self.fail_with_total_timeout();
        }
        if lease.next_deadline() > self.now {
            return Transition::Unchanged;
        }
        Transition::Finish(Outcome::cancelled())
    }

    fn can_retry(self) -> bool {
        self.options.queue.is_some()
            && self.counted_attempts < self.options.retry_policy.max_attempts
    }

    fn is_total_timeout_exceeded(self) -> bool {
        self.options
            .total_timeout
            .is_some_and(|timeout| self.create_time + timeout <= self.now)
    }

    fn fail_with_total_timeout(self) -> Transition {
        let message = "the operation exceeded its total_timeout";
        Transition::Finish(Outcome::server_error(
            Code::DeadlineExceeded,
            "TOTAL_TIMEOUT",
            message,
        ))
    }
}

fn worker_lost_outcome(cause: &str) -> Outcome {
    Outcome::server_error(
        Code::Unavailable,
        "WORKER_LOST",
        format!("the worker was lost: {cause}; its side effects may or may not have happened"),
    )
}

// === impl Event ===

impl Event {
    /// Returns the token and the report of a lease holder's event, or `None` for other events.
    fn holder_parts(&self) -> Option<(LeaseToken, &Report)> {
        match self {
            Self::RenewLease(token, report)
            | Self::Report(token, report)
            | Self::ReleaseLease(token, report)
            | Self::Fail { token, report, .. }
            | Self::Finish(token, _, report) => Some((*token, report)),
            Self::AcquireLease { .. } | Self::RequestCancel | Self::TimerFired => None,
        }
    }

    /// Returns the report of a lease holder's event, or `None` for other events.
    pub(crate) fn report(&self) -> Option<&Report> {
        self.holder_parts().map(|(_, report)| report)
    }

    /// Replaces the report by an empty one.
    pub(crate) fn without_report(mut self) -> Self {
        match &mut self {
            Self::RenewLease(_, report)
            | Self::Report(_, report)
            | Self::ReleaseLease(_, report)
            | Self::Fail { report, .. }
            | Self::Finish(_, _, report) => *report = Report::default(),
            Self::AcquireLease { .. } | Self::RequestCancel | Self::TimerFired => {}
        }
        self
    }
}

// === impl Phase ===

impl Phase {
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
