//! The state machine: one table of (stage, event) that decides what happens
//! next. It knows nothing of names, bytes or storage; `operation` applies what
//! it decides.

use crate::{
    clock::Timestamp,
    proto::google::rpc::{Code, Status},
};

use super::{
    lease::{Lease, LeaseToken, WorkerId},
    outcome::{Outcome, status},
    payload::Payload,
    progress::{self, InvalidProgress},
    terms::Terms,
};
use crate::proto::longrunning::v1::{Progress, operation_metadata::State};

/// Where an operation stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// Waits for a worker, not before this time.
    Pending {
        /// The earliest time of the next attempt.
        ready: Timestamp,
    },
    /// A worker holds the lease.
    Running(Box<Lease>),
    /// A worker holds the lease, and somebody asked it to stop.
    Cancelling(Box<Lease>),
    /// Over, for ever.
    Done(Ending),
}

/// How it was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
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
    Claim {
        /// The token of the new lease.
        token: LeaseToken,
        /// Who wants it.
        worker: WorkerId,
    },
    /// The holder lives: the lease begins anew.
    Renew(LeaseToken, Report),
    /// The holder tells how far it is.
    Report(LeaseToken, Report),
    /// Somebody wants the operation to stop.
    RequestCancel,
    /// The holder gives the operation back; the attempt does not count.
    Release(LeaseToken, Report),
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
    Lapse,
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
pub(crate) enum Next {
    /// Nothing changes.
    Same,
    /// Another stage, which is not the last one.
    To(Stage),
    /// The stage stays, the report is taken.
    Note,
    /// The end.
    Done(Outcome),
    /// The record is forgotten.
    Forget,
}

/// Why an event is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The operation is done, with another outcome.
    #[error(
        "the operation is done already: its outcome cannot change, and nobody holds a lease of it; stop working on it"
    )]
    AlreadyDone,
    /// The token is stale, foreign or over.
    #[error("the lease is lost: {0}; stop working on it")]
    LeaseLost(Loss),
    /// Another worker holds the lease.
    #[error("another worker holds the lease")]
    StillHeld,
    /// Its time has not come.
    #[error("the operation must not begin yet")]
    NotReady,
}

/// How a lease was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// Its time is over.
    #[error("it ran out, because no sign of life came in time")]
    Over,
    /// The operation waits for a worker.
    #[error("the operation went back to its queue")]
    Returned,
    /// Somebody else has a lease.
    #[error("the token is not that of the current lease, which another attempt holds")]
    Taken,
}

/// What the table must know of the operation, besides its stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) now: Timestamp,
    pub(crate) terms: &'a Terms,
    pub(crate) create_time: Timestamp,
    pub(crate) update_time: Timestamp,
    /// How many attempts count against the retry policy.
    pub(crate) attempts: u32,
    /// Whether the event would finish the operation as it is finished already.
    pub(crate) same_outcome: bool,
}

/// The table. Each row is a stage, each arm says what one event does to it.
pub(crate) fn next(stage: &Stage, event: &Event, facts: Facts<'_>) -> Result<Next, Refusal> {
    use Event::{Claim, Fail, Finish, Lapse, Release, Renew, Report, RequestCancel};
    let now = facts.now;
    match (stage, event) {
        (Stage::Pending { ready }, Claim { .. }) if now < *ready => Err(Refusal::NotReady),
        (Stage::Pending { .. }, Claim { .. }) if facts.total_timeout_is_over() => {
            Ok(facts.too_late())
        }
        (Stage::Pending { .. }, Claim { token, worker }) => Ok(facts.leased(*token, worker)),
        (Stage::Pending { .. }, RequestCancel) => Ok(Next::Done(Outcome::cancelled())),
        (Stage::Pending { .. }, Lapse) if facts.total_timeout_is_over() => Ok(facts.too_late()),
        (Stage::Pending { .. }, Lapse) => Ok(Next::Same),
        (
            Stage::Pending { .. },
            Renew(..) | Report(..) | Release(..) | Fail { .. } | Finish(..),
        ) => Err(Refusal::LeaseLost(Loss::Returned)),

        (Stage::Running(lease), Claim { token, worker }) => match facts.lapsed(lease) {
            Next::Same => Err(Refusal::StillHeld),
            // Its attempt took too long, and the pause before the next one has begun.
            Next::To(Stage::Pending { ready }) if now < ready => Err(Refusal::NotReady),
            Next::To(_) => Ok(facts.leased(*token, worker)),
            over => Ok(over),
        },
        (Stage::Running(lease), Renew(token, _)) => facts
            .held(lease, *token)
            .map(|()| Next::To(Stage::Running(facts.renewed(lease)))),
        (Stage::Running(lease), Report(token, _)) => facts.held(lease, *token).map(|()| Next::Note),
        (Stage::Running(lease), RequestCancel) => {
            Ok(Next::To(Stage::Cancelling(facts.cancelling(lease))))
        }
        (Stage::Running(lease), Release(token, _)) => {
            facts.held(lease, *token).map(|()| facts.released())
        }
        (
            Stage::Running(lease),
            Fail {
                token,
                error,
                retry_after,
                ..
            },
        ) => facts
            .held(lease, *token)
            .map(|()| facts.failed(lease, error, *retry_after)),
        (Stage::Running(lease), Finish(token, outcome, _)) => facts
            .held(lease, *token)
            .map(|()| Next::Done(outcome.clone())),
        (Stage::Running(lease), Lapse) => Ok(facts.lapsed(lease)),

        (Stage::Cancelling(lease), Claim { .. }) => match facts.cancel_lapsed(lease) {
            Next::Same => Err(Refusal::StillHeld),
            over => Ok(over),
        },
        (Stage::Cancelling(lease), Renew(token, _)) => facts
            .held(lease, *token)
            .map(|()| Next::To(Stage::Cancelling(facts.renewed(lease)))),
        (Stage::Cancelling(lease), Report(token, _)) => {
            facts.held(lease, *token).map(|()| Next::Note)
        }
        (Stage::Cancelling(_), RequestCancel) => Ok(Next::Same),
        (Stage::Cancelling(lease), Release(token, _) | Fail { token, .. }) => facts
            .held(lease, *token)
            .map(|()| Next::Done(Outcome::cancelled())),
        (Stage::Cancelling(lease), Finish(token, outcome, _)) => facts
            .held(lease, *token)
            .map(|()| Next::Done(outcome.clone())),
        (Stage::Cancelling(lease), Lapse) => Ok(facts.cancel_lapsed(lease)),

        (Stage::Done(_), RequestCancel) => Ok(Next::Same),
        (Stage::Done(_), Finish(..) | Fail { .. }) if facts.same_outcome => Ok(Next::Same),
        (Stage::Done(_), Lapse) if facts.retention_is_over() => Ok(Next::Forget),
        (Stage::Done(_), Lapse) => Ok(Next::Same),
        (
            Stage::Done(_),
            Claim { .. } | Renew(..) | Report(..) | Release(..) | Fail { .. } | Finish(..),
        ) => Err(Refusal::AlreadyDone),
    }
}

// === impl Facts ===

impl Facts<'_> {
    fn leased(self, token: LeaseToken, worker: &WorkerId) -> Next {
        Next::To(Stage::Running(Box::new(Lease {
            token,
            holder: worker.clone(),
            until: self.now + self.terms.lease_duration,
            attempt_until: self.terms.attempt_timeout.map(|timeout| self.now + timeout),
            cancel_until: None,
        })))
    }

    fn held(self, lease: &Lease, token: LeaseToken) -> Result<(), Refusal> {
        if lease.token != token {
            return Err(Refusal::LeaseLost(Loss::Taken));
        }
        if lease.is_over(self.now) {
            return Err(Refusal::LeaseLost(Loss::Over));
        }
        Ok(())
    }

    fn renewed(self, lease: &Lease) -> Box<Lease> {
        Box::new(Lease {
            until: self.now + self.terms.lease_duration,
            ..lease.clone()
        })
    }

    fn cancelling(self, lease: &Lease) -> Box<Lease> {
        let cancel_until = self.terms.cancel_grace.map(|grace| self.now + grace);
        Box::new(Lease {
            cancel_until,
            ..lease.clone()
        })
    }

    /// Nobody can take up what its creator executes, so that it ends.
    fn released(self) -> Next {
        match self.terms.queue {
            Some(_) => Next::To(Stage::Pending { ready: self.now }),
            None => Next::Done(worker_lost("its creator gave it up")),
        }
    }

    fn failed(
        self,
        lease: &Lease,
        error: &Status,
        retry_after: Option<std::time::Duration>,
    ) -> Next {
        if !self.may_retry() {
            return Next::Done(Outcome::Error(Box::new(error.clone())));
        }
        let backoff = self
            .terms
            .retry
            .backoff(self.attempts, lease.token.fraction());
        let pause = retry_after.map_or(backoff, |least| backoff.max(least));
        Next::To(Stage::Pending {
            ready: self.now + pause,
        })
    }

    /// What time alone does to a running attempt.
    fn lapsed(self, lease: &Lease) -> Next {
        if self.total_timeout_is_over() {
            return self.too_late();
        }
        if lease.attempt_until.is_some_and(|until| until <= self.now) {
            let message = "the attempt took longer than its attempt_timeout";
            return self.failed(
                lease,
                &status(Code::DeadlineExceeded, "ATTEMPT_TIMEOUT", message),
                None,
            );
        }
        if !lease.is_over(self.now) {
            return Next::Same;
        }
        if self.may_retry() {
            return Next::To(Stage::Pending { ready: self.now });
        }
        Next::Done(worker_lost(
            "its lease ran out without a word from the worker",
        ))
    }

    /// What time alone does to an attempt that was asked to stop.
    fn cancel_lapsed(self, lease: &Lease) -> Next {
        if self.total_timeout_is_over() {
            return self.too_late();
        }
        if self.now < lease.deadline() {
            Next::Same
        } else {
            Next::Done(Outcome::cancelled())
        }
    }

    fn may_retry(self) -> bool {
        self.terms.queue.is_some() && self.attempts < self.terms.retry.max_attempts
    }

    fn total_timeout_is_over(self) -> bool {
        self.terms
            .total_timeout
            .is_some_and(|timeout| self.create_time + timeout <= self.now)
    }

    fn retention_is_over(self) -> bool {
        self.update_time + self.terms.retention <= self.now
    }

    fn too_late(self) -> Next {
        let message = "the operation was not done within its total_timeout";
        Next::Done(Outcome::failed(
            Code::DeadlineExceeded,
            "TOTAL_TIMEOUT",
            message,
        ))
    }
}

fn worker_lost(why: &str) -> Outcome {
    Outcome::failed(
        Code::Unavailable,
        "WORKER_LOST",
        format!(
            "the worker of the operation was lost ({why}); whether its work took effect is not known"
        ),
    )
}

// === impl Event ===

impl Event {
    /// What the holder tells with it about its work.
    pub(crate) fn report(&self) -> Option<&Report> {
        match self {
            Self::Renew(_, report)
            | Self::Report(_, report)
            | Self::Release(_, report)
            | Self::Fail { report, .. }
            | Self::Finish(_, _, report) => Some(report),
            Self::Claim { .. } | Self::RequestCancel | Self::Lapse => None,
        }
    }

    /// The same, without a word about the work.
    pub(crate) fn without_report(mut self) -> Self {
        match &mut self {
            Self::Renew(_, report)
            | Self::Report(_, report)
            | Self::Release(_, report)
            | Self::Fail { report, .. }
            | Self::Finish(_, _, report) => *report = Report::default(),
            Self::Claim { .. } | Self::RequestCancel | Self::Lapse => {}
        }
        self
    }
}

// === impl Report ===

impl Report {
    /// Takes over what a newer report says; what that leaves out stays.
    pub(crate) fn update(&mut self, newer: &Self) {
        fn take_over<T: Clone>(old: &mut Option<T>, new: &Option<T>) {
            if new.is_some() {
                old.clone_from(new);
            }
        }
        take_over(&mut self.progress, &newer.progress);
        take_over(&mut self.metadata, &newer.metadata);
        take_over(&mut self.detail, &newer.detail);
        take_over(&mut self.checkpoint, &newer.checkpoint);
    }

    /// # Errors
    /// [`InvalidProgress`] if the progress is out of range.
    pub(crate) fn check(&self) -> Result<(), InvalidProgress> {
        self.progress.as_ref().map_or(Ok(()), progress::check)
    }

    /// Whether a newer report says nothing that this one does not.
    pub(crate) fn knows(&self, newer: &Self) -> bool {
        fn is_same<T: PartialEq>(old: &Option<T>, new: &Option<T>) -> bool {
            new.is_none() || old == new
        }
        is_same(&self.progress, &newer.progress)
            && is_same(&self.metadata, &newer.metadata)
            && is_same(&self.detail, &newer.detail)
            && is_same(&self.checkpoint, &newer.checkpoint)
    }

    /// Whether it says nothing.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How many bytes of it clients do not see. Metadata of the producer's own
    /// hides the progress and the detail.
    pub(crate) fn unseen_size(&self) -> usize {
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

impl Stage {
    /// The stage as clients see it.
    pub fn state(&self) -> State {
        match self {
            Self::Pending { .. } => State::Pending,
            Self::Running(_) | Self::Cancelling(_) => State::Running,
            Self::Done(Ending::Succeeded) => State::Succeeded,
            Self::Done(Ending::Failed) => State::Failed,
            Self::Done(Ending::Cancelled) => State::Cancelled,
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

impl From<&Outcome> for Ending {
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
