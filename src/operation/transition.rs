//! The state machine: one table of (stage, event) that decides what happens
//! next. It knows nothing of names, bytes or storage; `operation` applies what
//! it decides.

use crate::{
    clock::Timestamp,
    proto::google::rpc::{Code, Status},
};

use super::{
    lease::{Lease, LeaseToken, WorkerId},
    options::ExecutionOptions,
    outcome::{Outcome, status_with_reason},
    payload::Payload,
    progress::{self, InvalidProgress},
};
use crate::proto::longrunning::v1::{Progress, operation_metadata::State};

/// Where an operation stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Waits for a worker, not before this time.
    Pending {
        /// The earliest time of the next attempt.
        ready_at: Timestamp,
    },
    /// A worker holds the lease.
    Running(Box<Lease>),
    /// A worker holds the lease, and somebody asked it to stop.
    Cancelling(Box<Lease>),
    /// Over, for ever.
    Done(TerminalState),
}

/// How it was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TerminalState {
    /// With a response.
    Succeeded,
    /// With an error.
    Failed,
    /// With an error of code CANCELLED.
    Cancelled,
}

/// What can happen to an operation. Whatever a holder says, it may tell with it
/// how far it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// A worker wants the lease.
    AcquireLease {
        /// The token of the new lease.
        token: LeaseToken,
        /// Who wants it.
        worker: WorkerId,
    },
    /// The holder lives: the lease begins anew.
    RenewLease(LeaseToken, Report),
    /// The holder tells how far it is.
    Report(LeaseToken, Report),
    /// Somebody wants the operation to stop.
    RequestCancel,
    /// The holder gives the operation back; the attempt does not count.
    ReleaseLease(LeaseToken, Report),
    /// The holder failed; another attempt may succeed.
    Fail {
        /// Proves who says it.
        token: LeaseToken,
        /// The result, if no attempt is left.
        error: Box<Status>,
        /// The next attempt must not begin earlier than this long from now.
        retry_after: Option<std::time::Duration>,
        /// The last word on how far it came.
        report: Report,
    },
    /// The holder is through, for good or ill.
    Finish(LeaseToken, Outcome, Report),
    /// Nobody did anything, and time passed.
    TimerFired,
}

/// What a worker tells about its work. What is left out stays as it was.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// How far the work is.
    pub progress: Option<Progress>,
    /// Metadata in the producer's own type, served instead of ours.
    pub metadata: Option<Payload>,
    /// An addition in the producer's own type to the metadata of ours.
    pub detail: Option<Payload>,
    /// Where the next attempt can go on, if this one is lost.
    pub checkpoint: Option<Payload>,
}

/// What an event leads to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Transition {
    /// Nothing changes.
    Unchanged,
    /// Another stage, which is not the last one.
    To(Phase),
    /// The stage stays, the report is taken.
    MergeReport,
    /// The end.
    Finish(Outcome),
    /// The record is forgotten.
    Remove,
}

/// Why an event is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransitionError {
    /// The operation is done, with another outcome.
    #[error(
        "the operation is done already: its outcome cannot change, and nobody holds a lease of it; stop working on it"
    )]
    AlreadyDone,
    /// The token is stale, foreign or over.
    #[error("the lease is lost: {0}; stop working on it")]
    LeaseLost(LeaseLostReason),
    /// Another worker holds the lease.
    #[error("another worker holds the lease")]
    LeaseHeld,
    /// Its time has not come.
    #[error("the operation must not begin yet")]
    NotReady,
}

/// How a lease was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseLostReason {
    /// Its time is over.
    #[error("it ran out, because no sign of life came in time")]
    Expired,
    /// The operation waits for a worker.
    #[error("the operation went back to its queue")]
    Requeued,
    /// Somebody else has a lease.
    #[error("the token is not that of the current lease, which another attempt holds")]
    Superseded,
}

/// What the table must know of the operation, besides its stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransitionContext<'a> {
    pub(crate) now: Timestamp,
    pub(crate) options: &'a ExecutionOptions,
    pub(crate) create_time: Timestamp,
    pub(crate) update_time: Timestamp,
    /// How many attempts count against the retry policy.
    pub(crate) counted_attempts: u32,
    /// Whether the event would finish the operation as it is finished already.
    pub(crate) same_outcome: bool,
}

/// The table. Each row is a stage, each arm says what one event does to it.
pub(crate) fn transition(
    phase: &Phase,
    event: &Event,
    context: TransitionContext<'_>,
) -> Result<Transition, TransitionError> {
    use Event::{
        AcquireLease, Fail, Finish, ReleaseLease, RenewLease, Report, RequestCancel, TimerFired,
    };
    let now = context.now;
    match (phase, event) {
        (Phase::Pending { ready_at }, AcquireLease { .. }) if now < *ready_at => {
            Err(TransitionError::NotReady)
        }
        (Phase::Pending { .. }, AcquireLease { .. }) if context.is_total_timeout_exceeded() => {
            Ok(context.fail_with_total_timeout())
        }
        (Phase::Pending { .. }, AcquireLease { token, worker }) => {
            Ok(context.acquire_lease(*token, worker))
        }
        (Phase::Pending { .. }, RequestCancel) => Ok(Transition::Finish(Outcome::cancelled())),
        (Phase::Pending { .. }, TimerFired) if context.is_total_timeout_exceeded() => {
            Ok(context.fail_with_total_timeout())
        }
        (Phase::Pending { .. }, TimerFired) => Ok(Transition::Unchanged),
        (
            Phase::Pending { .. },
            RenewLease(..) | Report(..) | ReleaseLease(..) | Fail { .. } | Finish(..),
        ) => Err(TransitionError::LeaseLost(LeaseLostReason::Requeued)),

        (Phase::Running(lease), AcquireLease { token, worker }) => match context.on_timer(lease) {
            Transition::Unchanged => Err(TransitionError::LeaseHeld),
            // Its attempt took too long, and the pause before the next one has begun.
            Transition::To(Phase::Pending { ready_at }) if now < ready_at => {
                Err(TransitionError::NotReady)
            }
            Transition::To(_) => Ok(context.acquire_lease(*token, worker)),
            transition => Ok(transition),
        },
        (Phase::Running(lease), RenewLease(token, _)) => context
            .check_lease(lease, *token)
            .map(|()| Transition::To(Phase::Running(context.renew_lease(lease)))),
        (Phase::Running(lease), Report(token, _)) => context
            .check_lease(lease, *token)
            .map(|()| Transition::MergeReport),
        (Phase::Running(lease), RequestCancel) => Ok(Transition::To(Phase::Cancelling(
            context.with_cancel_deadline(lease),
        ))),
        (Phase::Running(lease), ReleaseLease(token, _)) => context
            .check_lease(lease, *token)
            .map(|()| context.release_lease()),
        (
            Phase::Running(lease),
            Fail {
                token,
                error,
                retry_after,
                ..
            },
        ) => context
            .check_lease(lease, *token)
            .map(|()| context.retry_or_fail(lease, error, *retry_after)),
        (Phase::Running(lease), Finish(token, outcome, _)) => context
            .check_lease(lease, *token)
            .map(|()| Transition::Finish(outcome.clone())),
        (Phase::Running(lease), TimerFired) => Ok(context.on_timer(lease)),

        (Phase::Cancelling(lease), AcquireLease { .. }) => match context.on_cancel_timer(lease) {
            Transition::Unchanged => Err(TransitionError::LeaseHeld),
            transition => Ok(transition),
        },
        (Phase::Cancelling(lease), RenewLease(token, _)) => context
            .check_lease(lease, *token)
            .map(|()| Transition::To(Phase::Cancelling(context.renew_lease(lease)))),
        (Phase::Cancelling(lease), Report(token, _)) => context
            .check_lease(lease, *token)
            .map(|()| Transition::MergeReport),
        (Phase::Cancelling(_), RequestCancel) => Ok(Transition::Unchanged),
        (Phase::Cancelling(lease), ReleaseLease(token, _) | Fail { token, .. }) => context
            .check_lease(lease, *token)
            .map(|()| Transition::Finish(Outcome::cancelled())),
        (Phase::Cancelling(lease), Finish(token, outcome, _)) => context
            .check_lease(lease, *token)
            .map(|()| Transition::Finish(outcome.clone())),
        (Phase::Cancelling(lease), TimerFired) => Ok(context.on_cancel_timer(lease)),

        (Phase::Done(_), RequestCancel) => Ok(Transition::Unchanged),
        (Phase::Done(_), Finish(..) | Fail { .. }) if context.same_outcome => {
            Ok(Transition::Unchanged)
        }
        (Phase::Done(_), TimerFired) if context.is_retention_exceeded() => Ok(Transition::Remove),
        (Phase::Done(_), TimerFired) => Ok(Transition::Unchanged),
        (
            Phase::Done(_),
            AcquireLease { .. }
            | RenewLease(..)
            | Report(..)
            | ReleaseLease(..)
            | Fail { .. }
            | Finish(..),
        ) => Err(TransitionError::AlreadyDone),
    }
}

// === impl Facts ===

impl TransitionContext<'_> {
    fn acquire_lease(self, token: LeaseToken, worker: &WorkerId) -> Transition {
        Transition::To(Phase::Running(Box::new(Lease {
            token,
            holder: worker.clone(),
            expires_at: self.now + self.options.lease_duration,
            attempt_deadline: self
                .options
                .attempt_timeout
                .map(|timeout| self.now + timeout),
            cancel_deadline: None,
        })))
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
        let cancel_deadline = self
            .options
            .cancel_grace_period
            .map(|grace| self.now + grace);
        Box::new(Lease {
            cancel_deadline,
            ..lease.clone()
        })
    }

    /// Nobody can take up what its creator executes, so that it ends.
    fn release_lease(self) -> Transition {
        match self.options.queue {
            Some(_) => Transition::To(Phase::Pending { ready_at: self.now }),
            None => Transition::Finish(worker_lost_outcome("its creator gave it up")),
        }
    }

    fn retry_or_fail(
        self,
        lease: &Lease,
        error: &Status,
        retry_after: Option<std::time::Duration>,
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

    /// What time alone does to a running attempt.
    fn on_timer(self, lease: &Lease) -> Transition {
        if self.is_total_timeout_exceeded() {
            return self.fail_with_total_timeout();
        }
        if lease
            .attempt_deadline
            .is_some_and(|deadline| deadline <= self.now)
        {
            let message = "the attempt took longer than its attempt_timeout";
            return self.retry_or_fail(
                lease,
                &status_with_reason(Code::DeadlineExceeded, "ATTEMPT_TIMEOUT", message),
                None,
            );
        }
        if !lease.is_expired(self.now) {
            return Transition::Unchanged;
        }
        if self.can_retry() {
            return Transition::To(Phase::Pending { ready_at: self.now });
        }
        Transition::Finish(worker_lost_outcome(
            "its lease ran out without a word from the worker",
        ))
    }

    /// What time alone does to an attempt that was asked to stop.
    fn on_cancel_timer(self, lease: &Lease) -> Transition {
        if self.is_total_timeout_exceeded() {
            return self.fail_with_total_timeout();
        }
        if self.now < lease.next_deadline() {
            Transition::Unchanged
        } else {
            Transition::Finish(Outcome::cancelled())
        }
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

    fn is_retention_exceeded(self) -> bool {
        self.update_time + self.options.retention <= self.now
    }

    fn fail_with_total_timeout(self) -> Transition {
        let message = "the operation was not done within its total_timeout";
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
        format!(
            "the worker of the operation was lost ({cause}); whether its work took effect is not known"
        ),
    )
}

// === impl Event ===

impl Event {
    /// What the holder tells with it about its work.
    pub(crate) fn report(&self) -> Option<&Report> {
        match self {
            Self::RenewLease(_, report)
            | Self::Report(_, report)
            | Self::ReleaseLease(_, report)
            | Self::Fail { report, .. }
            | Self::Finish(_, _, report) => Some(report),
            Self::AcquireLease { .. } | Self::RequestCancel | Self::TimerFired => None,
        }
    }

    /// The same, without a word about the work.
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

// === impl Report ===

impl Report {
    /// Takes over what a newer report says; what that leaves out stays.
    pub(crate) fn merge(&mut self, newer: &Self) {
        fn overwrite_if_some<T: Clone>(old: &mut Option<T>, new: &Option<T>) {
            if new.is_some() {
                old.clone_from(new);
            }
        }
        overwrite_if_some(&mut self.progress, &newer.progress);
        overwrite_if_some(&mut self.metadata, &newer.metadata);
        overwrite_if_some(&mut self.detail, &newer.detail);
        overwrite_if_some(&mut self.checkpoint, &newer.checkpoint);
    }

    /// # Errors
    /// [`InvalidProgress`] if the progress is out of range.
    pub(crate) fn check(&self) -> Result<(), InvalidProgress> {
        self.progress.as_ref().map_or(Ok(()), progress::check)
    }

    /// Whether a newer report says nothing that this one does not.
    pub(crate) fn contains(&self, newer: &Self) -> bool {
        fn is_unchanged<T: PartialEq>(old: &Option<T>, new: &Option<T>) -> bool {
            new.is_none() || old == new
        }
        is_unchanged(&self.progress, &newer.progress)
            && is_unchanged(&self.metadata, &newer.metadata)
            && is_unchanged(&self.detail, &newer.detail)
            && is_unchanged(&self.checkpoint, &newer.checkpoint)
    }

    /// Whether it says nothing.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How many bytes of it clients do not see. Metadata of the producer's own
    /// hides the progress and the detail.
    pub(crate) fn hidden_size(&self) -> usize {
        let checkpoint = self.checkpoint.as_ref().map_or(0, Payload::size);
        let Some(_) = &self.metadata else {
            return checkpoint;
        };
        let progress = self
            .progress
            .as_ref()
            .map_or(0, prost::Message::encoded_len);
        checkpoint + progress + self.detail.as_ref().map_or(0, Payload::size)
    }
}

// === impl Stage ===

impl Phase {
    /// The stage as clients see it.
    pub fn state(&self) -> State {
        match self {
            Self::Pending { .. } => State::Pending,
            Self::Running(_) | Self::Cancelling(_) => State::Running,
            Self::Done(TerminalState::Succeeded) => State::Succeeded,
            Self::Done(TerminalState::Failed) => State::Failed,
            Self::Done(TerminalState::Cancelled) => State::Cancelled,
        }
    }

    /// The lease, while somebody holds one.
    pub fn lease(&self) -> Option<&Lease> {
        match self {
            Self::Running(lease) | Self::Cancelling(lease) => Some(lease),
            Self::Pending { .. } | Self::Done(_) => None,
        }
    }
}

// === impl Ending ===

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
