//! What an event means for an attempt and its lease: the decisions behind the table of the state machine.

use std::time::Duration;

use super::{LeaseLostReason, Phase, RequeueReason, Transition, TransitionError};
use crate::{
    clock::Timestamp,
    operation::{
        lease::{Lease, LeaseToken, WorkerId},
        options::ExecutionOptions,
        outcome::{Outcome, status_with_reason},
    },
    proto::google::rpc::{Code, Status},
};

/// The number of unconfirmed leases in a row that count as one lost worker, so that no operation circles for ever.
const UNCONFIRMED_LEASES_PER_LOSS: u32 = 5;

/// The facts about an operation, besides its phase, that a transition depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransitionContext<'a> {
    pub(crate) now: Timestamp,
    pub(crate) options: &'a ExecutionOptions,
    pub(crate) create_time: Timestamp,
    pub(crate) update_time: Timestamp,
    /// Earlier attempts that failed or exceeded their timeout.
    pub(crate) failed_attempts: u32,
    /// Earlier attempts whose worker was lost.
    pub(crate) worker_losses: u32,
    /// Leases in a row, before the current one, that their workers did not confirm.
    pub(crate) unconfirmed_leases: u32,
    /// `true` if the operation is done with the very result that the event brings.
    pub(crate) same_outcome: bool,
}

impl TransitionContext<'_> {
    /// Returns the phase of an attempt that begins now, or when its worker confirms the lease.
    pub(in crate::operation) fn acquire_lease(
        self,
        token: LeaseToken,
        worker: &WorkerId,
        confirm_within: Option<Duration>,
    ) -> Phase {
        let lease_duration = self.options.lease_duration;
        Phase::Running(Box::new(Lease {
            token,
            holder: worker.clone(),
            start_time: self.now,
            expires_at: self.now + lease_duration,
            confirm_by: confirm_within.map(|within| {
                // The holder may work without a call, but no longer than an attempt may take.
                let attempt_timeout = self.options.attempt_timeout.unwrap_or(Duration::MAX);
                self.now + within.min(lease_duration).min(attempt_timeout)
            }),
            attempt_deadline: self.attempt_deadline(),
            cancel_deadline: None,
        }))
    }

    pub(super) fn check_lease(
        self,
        lease: &Lease,
        token: LeaseToken,
    ) -> Result<(), TransitionError> {
        if lease.token != token {
            return Err(TransitionError::LeaseLost(LeaseLostReason::Superseded));
        }
        if lease.is_expired(self.now) {
            return Err(TransitionError::LeaseLost(LeaseLostReason::Expired));
        }
        Ok(())
    }

    /// Returns the deadline of an attempt that begins now.
    pub(in crate::operation) fn attempt_deadline(self) -> Option<Timestamp> {
        let attempt_timeout = self.options.attempt_timeout;
        attempt_timeout.map(|timeout| self.now + timeout)
    }

    pub(super) fn with_cancel_deadline(self, lease: &Lease) -> Box<Lease> {
        let grace_period = self.options.cancel_grace_period;
        Box::new(Lease {
            cancel_deadline: grace_period.map(|grace_period| self.now + grace_period),
            ..lease.clone()
        })
    }

    /// Without a queue no other worker can acquire the lease, so the operation fails.
    pub(super) fn requeue_or_fail(self, reason: RequeueReason) -> Transition {
        match self.options.queue {
            Some(_) => Transition::Requeue {
                ready_at: self.now,
                reason,
            },
            None => Transition::Finish(Outcome::Error(worker_lost("its creator released it"))),
        }
    }

    pub(super) fn retry_or_fail(
        self,
        lease: &Lease,
        error: &Status,
        retry_after: Option<Duration>,
    ) -> Transition {
        let error = Box::new(error.clone());
        let failed_attempts = self.failed_attempts + 1;
        if self.options.queue.is_none() || failed_attempts >= self.options.retry_policy.max_attempts
        {
            return Transition::Finish(Outcome::Error(error));
        }
        let backoff = self.backoff(failed_attempts, lease);
        let delay = retry_after.map_or(backoff, |min_delay| backoff.max(min_delay));
        Transition::Requeue {
            ready_at: self.now + delay,
            reason: RequeueReason::Failed(error),
        }
    }

    /// Returns the effect of a lease that ended without a call of its holder.
    fn retry_after_lease_end(self, lease: &Lease) -> Transition {
        const EXPIRED: &str = "no heartbeat arrived before its lease expired";
        const UNCONFIRMED: &str = "five in a row did not confirm their lease";
        let (is_loss, cause, backoff) = if lease.is_confirmed() {
            let backoff = self.backoff(self.worker_losses + 1, lease);
            (true, EXPIRED, backoff)
        } else {
            let unconfirmed_leases = self.unconfirmed_leases + 1;
            // The first two may be chance: workers that just went away.
            let backoff = match unconfirmed_leases.checked_sub(2) {
                None | Some(0) => Duration::ZERO,
                Some(count) => self.backoff(count, lease),
            };
            (
                is_unconfirmed_loss(unconfirmed_leases),
                UNCONFIRMED,
                backoff,
            )
        };
        if self.options.queue.is_none() {
            return Transition::Finish(Outcome::Error(worker_lost(cause)));
        }
        let worker_losses = self.worker_losses + u32::from(is_loss);
        if is_loss && worker_losses > self.options.retry_policy.max_worker_losses {
            let cause = match worker_losses {
                1 => cause.to_owned(),
                losses => format!("{cause}; {losses} workers were lost in all"),
            };
            return Transition::Finish(Outcome::Error(worker_lost(&cause)));
        }
        let reason = match lease.confirm_by {
            None => RequeueReason::WorkerLost(worker_lost(cause)),
            Some(_) => RequeueReason::Unconfirmed,
        };
        Transition::Requeue {
            ready_at: self.now + backoff,
            reason,
        }
    }

    fn backoff(self, count: u32, lease: &Lease) -> Duration {
        let policy = &self.options.retry_policy;
        policy.backoff(count, lease.token.jitter_fraction())
    }

    /// Returns the effect of passed deadlines on a running attempt.
    pub(super) fn check_deadlines(self, lease: &Lease) -> Transition {
        if self.is_total_timeout_exceeded() {
            return self.fail_with_total_timeout();
        }
        let is_passed = |deadline| deadline <= self.now;
        if lease.attempt_deadline().is_some_and(is_passed) {
            let message = "the attempt exceeded its attempt_timeout";
            let error = status_with_reason(Code::DeadlineExceeded, "ATTEMPT_TIMEOUT", message);
            return self.retry_or_fail(lease, &error, None);
        }
        if !lease.is_expired(self.now) {
            return Transition::Unchanged;
        }
        self.retry_after_lease_end(lease)
    }

    /// Returns the effect of passed deadlines on an attempt with requested cancellation.
    pub(super) fn check_cancel_deadlines(self, lease: &Lease) -> Transition {
        if self.is_total_timeout_exceeded() {
            return self.fail_with_total_timeout();
        }
        if lease.next_deadline() > self.now {
            return Transition::Unchanged;
        }
        Transition::Finish(Outcome::cancelled())
    }

    pub(super) fn is_total_timeout_exceeded(self) -> bool {
        self.options
            .total_timeout
            .is_some_and(|timeout| self.create_time + timeout <= self.now)
    }

    pub(super) fn fail_with_total_timeout(self) -> Transition {
        let message = "the operation exceeded its total_timeout";
        Transition::Finish(Outcome::server_error(
            Code::DeadlineExceeded,
            "TOTAL_TIMEOUT",
            message,
        ))
    }
}

/// Returns whether this many unconfirmed leases in a row, the last one included, count as a lost worker.
pub(in crate::operation) fn is_unconfirmed_loss(unconfirmed_leases: u32) -> bool {
    unconfirmed_leases.is_multiple_of(UNCONFIRMED_LEASES_PER_LOSS)
}

fn worker_lost(cause: &str) -> Box<Status> {
    let message =
        format!("the worker was lost: {cause}; its side effects may or may not have happened");
    Box::new(status_with_reason(
        Code::Unavailable,
        "WORKER_LOST",
        message,
    ))
}
