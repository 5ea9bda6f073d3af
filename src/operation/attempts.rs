//! The attempts at an operation: their start, confirmation and end, and their history in `OperationMetadata`.

use super::{
    Operation,
    outcome::{status_with_reason, truncated},
    transition::{self, Event, Phase, RequeueReason},
};
use crate::{
    clock::Timestamp,
    proto::{
        google::rpc::{Code, Status},
        longrunning::v1::operation_metadata::Attempt,
    },
};

/// The number of attempts in the history, the current one included.
pub(super) const MAX_ATTEMPTS: usize = 10;

impl Operation {
    /// Sets the phase. A new lease token starts the next attempt.
    pub(super) fn enter_phase(&mut self, phase: Phase) {
        let token = |phase: &Phase| phase.lease().map(|lease| lease.token);
        if token(&phase).is_some_and(|new| token(&self.phase) != Some(new)) {
            self.attempt += 1;
        }
        self.phase = phase;
        self.start_if_confirmed();
    }

    /// Confirms the lease by the first call of its holder. Returns `false` if it was confirmed before.
    pub(super) fn confirm_lease(&mut self, event: &Event, now: Timestamp) -> bool {
        let attempt_deadline = self.transition_context(now, false).attempt_deadline();
        let Some(lease) = self.phase.lease_mut() else {
            return false;
        };
        let is_unconfirmed = lease.confirm_by.take().is_some();
        if is_unconfirmed {
            // An attempt whose first call ends it began with the grant: no better time is known.
            if let Event::Heartbeat(..) | Event::Report(..) = event {
                lease.start_time = now;
                lease.attempt_deadline = attempt_deadline;
            }
            self.start_if_confirmed();
        }
        is_unconfirmed
    }

    /// Returns `true` if the end of the unconfirmed lease counts as a lost worker.
    pub(crate) fn loses_worker_if_unconfirmed(&self) -> bool {
        let is_unconfirmed = self.lease().is_some_and(|lease| !lease.is_confirmed());
        is_unconfirmed && transition::is_unconfirmed_loss(self.unconfirmed_leases + 1)
    }

    /// Starts the first attempt with its lease, unless that is unconfirmed.
    fn start_if_confirmed(&mut self) {
        if let Some(lease) = self.phase.lease().filter(|lease| lease.is_confirmed()) {
            self.start_time = self.start_time.or(Some(lease.start_time));
            self.unconfirmed_leases = 0;
        }
    }

    /// Ends the attempt and makes the operation pending. The next attempt starts without progress.
    pub(super) fn requeue(&mut self, ready_at: Timestamp, reason: &RequeueReason, now: Timestamp) {
        let released = || {
            let message = "the worker released the operation";
            status_with_reason(Code::Aborted, "RELEASED", message)
        };
        match reason {
            RequeueReason::Failed(error) => {
                self.failed_attempts += 1;
                self.end_attempt(error, now);
            }
            RequeueReason::WorkerLost(error) => {
                self.worker_losses += 1;
                self.end_attempt(error, now);
            }
            RequeueReason::Released => self.end_attempt(&released(), now),
            RequeueReason::Unconfirmed => {
                self.unconfirmed_leases += 1;
                if transition::is_unconfirmed_loss(self.unconfirmed_leases) {
                    self.worker_losses += 1;
                }
            }
            // The first attempt has not begun after all.
            RequeueReason::Revoked if self.ended_attempts().is_empty() => self.start_time = None,
            RequeueReason::Revoked => {}
        }
        self.change_work_state(|work| {
            if let Some(report) = &mut work.latest_report {
                report.progress = None;
            }
        });
        self.phase = Phase::Pending { ready_at };
    }

    /// Returns the current attempt, if there is one, as it ends: with `status`, or `None` if it succeeded.
    pub(super) fn ended_attempt(&self, status: Option<&Status>, now: Timestamp) -> Option<Attempt> {
        let mut attempt = self.current_attempt()?;
        attempt.end_time = Some(now.into());
        attempt.status = Some(status.map(truncated).unwrap_or_default());
        Some(attempt)
    }

    /// Adds the current attempt, if there is one, to those that ended.
    fn end_attempt(&mut self, status: &Status, now: Timestamp) {
        if let Some(attempt) = self.ended_attempt(Some(status), now) {
            self.change_work_state(|work| push(&mut work.ended_attempts, attempt));
        }
    }
}

/// Adds an attempt that ended, and drops the oldest one beyond [`MAX_ATTEMPTS`].
fn push(attempts: &mut Vec<Attempt>, attempt: Attempt) {
    if attempts.len() == MAX_ATTEMPTS {
        attempts.remove(0);
    }
    attempts.push(attempt);
}
