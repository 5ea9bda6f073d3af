//! One operation of the reference model and its transitions (STATE-1).

use std::collections::BTreeSet;

use longrunning::proto::{google::rpc::Code, longrunning::v1::operation_metadata::State};

use super::{
    responses::{ErrorReason, ModelLease, ModelMetadata, ModelOutcome, ModelSnapshot},
    steps::{ModelFinish, ModelReport, ModelSpec},
};

/// The lease duration of an operation without one.
pub(super) const DEFAULT_LEASE_MS: i64 = 30_000;

/// An operation; times in milliseconds.
#[derive(Clone, Debug)]
pub(super) struct ModelOperation {
    pub(super) spec: ModelSpec,
    pub(super) create_time: i64,
    pub(super) start_time: Option<i64>,
    pub(super) update_time: i64,
    pub(super) attempt: i32,
    pub(super) failed_attempts: u32,
    pub(super) worker_losses: u32,
    /// Leases in a row that their workers did not confirm.
    pub(super) unconfirmed_leases: u32,
    pub(super) cancel_requested: bool,
    /// The finish after a cancellation that ended the operation as cancelled.
    pub(super) cancelled_by: Option<ModelFinish>,
    pub(super) is_deleted: bool,
    pub(super) phase: ReferencePhase,
    /// Whether the operation is ready in its queue.
    pub(super) is_offered: bool,
    pub(super) report: ModelReport,
    /// When the server will check the deadlines.
    pub(super) check_times: BTreeSet<i64>,
}

/// The phase of an operation.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ReferencePhase {
    Pending {
        ready_at: i64,
    },
    Running {
        lease_id: usize,
        granted_at: i64,
        expires_at: i64,
        /// The end of the lease while its worker has not confirmed it.
        confirm_by: Option<i64>,
        /// `None` also while the lease is unconfirmed.
        attempt_deadline: Option<i64>,
        cancel_deadline: Option<i64>,
    },
    Done(ModelOutcome),
}

// === impl ModelOperation ===

impl ModelOperation {
    /// Grants a lease that must be confirmed within this time, or at the latest before it expires.
    pub(super) fn grant_lease(&mut self, lease_id: usize, confirm_within: Option<i64>, now: i64) {
        let lease_duration = self.spec.lease_duration.unwrap_or(DEFAULT_LEASE_MS);
        let limit = lease_duration.min(self.spec.attempt_timeout.unwrap_or(i64::MAX));
        let confirm_within = confirm_within.unwrap_or(limit).min(limit);
        self.attempt += 1;
        (self.update_time, self.is_offered) = (now, false);
        self.phase = ReferencePhase::Running {
            lease_id,
            granted_at: now,
            expires_at: now + lease_duration,
            confirm_by: Some(now + confirm_within),
            attempt_deadline: None,
            cancel_deadline: None,
        };
    }

    /// Starts the attempt with the first call of the holder at `now`. If that call ends it, it began with the grant.
    pub(super) fn confirm_lease(&mut self, is_end: bool, now: i64) {
        if let ReferencePhase::Running {
            granted_at,
            confirm_by,
            attempt_deadline,
            ..
        } = &mut self.phase
            && confirm_by.take().is_some()
        {
            let start_time = if is_end { *granted_at } else { now };
            *attempt_deadline = self.spec.attempt_timeout.map(|limit| start_time + limit);
            self.start_time = self.start_time.or(Some(start_time));
            (self.update_time, self.unconfirmed_leases) = (now, 0);
        }
    }

    pub(super) fn requeue(&mut self, ready_at: i64, now: i64) {
        (self.update_time, self.is_offered) = (now, ready_at <= now);
        self.phase = ReferencePhase::Pending { ready_at };
        self.report.progress = None;
    }

    pub(super) fn complete(&mut self, outcome: ModelOutcome, now: i64) {
        (self.update_time, self.is_offered) = (now, false);
        self.phase = ReferencePhase::Done(outcome);
    }

    pub(super) fn fail(&mut self, outcome: ModelOutcome, retry_after: Option<i64>, now: i64) {
        self.failed_attempts += 1;
        if self.spec.queue.is_none() || self.failed_attempts >= self.spec.max_attempts {
            return self.complete(outcome, now);
        }
        let backoff = self.spec.backoff_after(self.failed_attempts);
        self.requeue(now + backoff.max(retry_after.unwrap_or(0)), now);
    }

    fn end_lease(&mut self, is_confirmed: bool, now: i64) {
        if !is_confirmed {
            self.unconfirmed_leases += 1;
        }
        let is_loss = is_confirmed || self.unconfirmed_leases.is_multiple_of(5);
        self.worker_losses += u32::from(is_loss);
        let is_last = is_loss && self.worker_losses > self.spec.max_worker_losses;
        if self.spec.queue.is_none() || is_last {
            return self.complete(server_error(Code::Unavailable, "WORKER_LOST"), now);
        }
        let backoff = match self.unconfirmed_leases {
            _ if is_confirmed => self.spec.backoff_after(self.worker_losses),
            1 | 2 => 0,
            count => self.spec.backoff_after(count - 2),
        };
        self.requeue(now + backoff, now);
    }

    pub(super) fn is_past_total_timeout(&self, now: i64) -> bool {
        (self.spec.total_timeout).is_some_and(|limit| self.create_time + limit <= now)
    }

    /// Applies the timeouts due at `now`, and returns `true` if one was.
    pub(super) fn apply_timeouts(&mut self, now: i64) -> bool {
        let is_past = |at: Option<i64>| at.is_some_and(|at| at <= now);
        match self.phase {
            ReferencePhase::Done(_) => return false,
            _ if self.is_past_total_timeout(now) => {
                self.complete(server_error(Code::DeadlineExceeded, "TOTAL_TIMEOUT"), now);
            }
            ReferencePhase::Pending { .. } => return false,
            ReferencePhase::Running {
                expires_at,
                confirm_by,
                attempt_deadline,
                cancel_deadline,
                ..
            } if self.cancel_requested => {
                let ends_at = confirm_by.unwrap_or(expires_at);
                if !(ends_at <= now || is_past(attempt_deadline) || is_past(cancel_deadline)) {
                    return false;
                }
                self.complete(server_error(Code::Cancelled, "OPERATION_CANCELLED"), now);
            }
            ReferencePhase::Running {
                attempt_deadline, ..
            } if is_past(attempt_deadline) => {
                self.fail(
                    server_error(Code::DeadlineExceeded, "ATTEMPT_TIMEOUT"),
                    None,
                    now,
                );
            }
            ReferencePhase::Running {
                expires_at,
                confirm_by,
                ..
            } => {
                if now < confirm_by.unwrap_or(expires_at) {
                    return false;
                }
                self.end_lease(confirm_by.is_none(), now);
            }
        }
        true
    }

    /// Returns `true` if the retention has ended.
    pub(super) fn is_expired(&self, now: i64) -> bool {
        let can_expire = match self.phase {
            ReferencePhase::Done(_) => true,
            ReferencePhase::Pending { .. } => self.is_deleted,
            ReferencePhase::Running { .. } => false,
        };
        can_expire && self.update_time + self.spec.retention <= now
    }

    /// Returns the next time at which a timer changes the operation. Becoming ready counts
    /// only if it is after `now`.
    pub(super) fn next_deadline(&self, now: i64) -> Option<i64> {
        let total_deadline = self
            .spec
            .total_timeout
            .map(|limit| self.create_time + limit);
        let retention_deadline = Some(self.update_time + self.spec.retention);
        let deadlines = match self.phase {
            ReferencePhase::Done(_) => return retention_deadline,
            ReferencePhase::Pending { ready_at } => {
                let ready_at = (now < ready_at).then_some(ready_at);
                [
                    ready_at,
                    total_deadline,
                    retention_deadline.filter(|_| self.is_deleted),
                    None,
                ]
            }
            ReferencePhase::Running {
                expires_at,
                confirm_by,
                attempt_deadline,
                cancel_deadline,
                ..
            } => [
                confirm_by.or(Some(expires_at)),
                total_deadline,
                attempt_deadline,
                cancel_deadline,
            ],
        };
        deadlines.into_iter().flatten().min()
    }

    pub(super) fn snapshot(&self) -> ModelSnapshot {
        let outcome = match &self.phase {
            ReferencePhase::Done(outcome) => Some(outcome.clone()),
            ReferencePhase::Pending { .. } | ReferencePhase::Running { .. } => None,
        };
        let standard = ModelMetadata::Standard {
            state: match &self.phase {
                ReferencePhase::Pending { .. } => State::Pending,
                ReferencePhase::Running { .. } => State::Running,
                ReferencePhase::Done(outcome) => outcome.state(),
            },
            create_time: self.create_time,
            start_time: self.start_time,
            update_time: self.update_time,
            end_time: outcome.as_ref().map(|_| self.update_time),
            progress: self.report.progress,
            detail: self.report.detail,
            attempt: self.attempt,
            cancel_requested: self.cancel_requested,
            queue: self.spec.queue.unwrap_or_default().to_owned(),
        };
        ModelSnapshot {
            name: self.spec.name(),
            metadata: self.report.metadata.map_or(standard, ModelMetadata::Custom),
            outcome,
        }
    }

    pub(super) fn lease(&self, now: i64) -> ModelLease {
        let ReferencePhase::Running {
            lease_id,
            expires_at,
            confirm_by,
            attempt_deadline,
            ..
        } = self.phase
        else {
            panic!("expected a running operation: {self:?}");
        };
        ModelLease {
            name: self.spec.name(),
            lease_id,
            attempt: self.attempt,
            remaining_ms: expires_at - now,
            attempt_remaining_ms: match confirm_by {
                // The attempt has not begun.
                Some(_) => self.spec.attempt_timeout,
                None => attempt_deadline.map(|deadline| (deadline - now).max(0)),
            },
            checkpoint: self.report.checkpoint,
            cancel_requested: self.cancel_requested,
            queue: self.spec.queue.unwrap_or_default().to_owned(),
            cancel_grace_ms: self.spec.cancel_grace_period,
        }
    }
}

// === impl ModelOutcome ===

impl ModelOutcome {
    fn state(&self) -> State {
        match self {
            Self::Response(_) => State::Succeeded,
            Self::WorkerError { code, .. } | Self::ServerError { code, .. } => match code {
                Code::Cancelled => State::Cancelled,
                _ => State::Failed,
            },
        }
    }
}

/// Builds the outcome of an error that the server records.
pub(super) fn server_error(code: Code, reason: ErrorReason) -> ModelOutcome {
    ModelOutcome::ServerError { code, reason }
}
