//! A model of an operation with whole seconds and four phases, written from
//! docs/specification.md and not from the transition table.

pub(super) const LEASE_DURATION_SECS: u64 = 30;
pub(super) const RETENTION_SECS: u64 = 100;

/// One step of a test case.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    AdvanceClock(u64),
    /// With the seconds within which the lease must be confirmed, if it must.
    AcquireLease(Option<u64>),
    Heartbeat(TokenKind),
    Report(TokenKind, u8),
    RequestCancel,
    ReleaseLease(TokenKind),
    RevokeLease(TokenKind),
    Fail(TokenKind),
    Finish(TokenKind, i32),
    FireTimer,
}

/// The lease token that accompanies a step.
#[derive(Clone, Copy, Debug)]
pub(super) enum TokenKind {
    Current,
    /// The token of an earlier attempt.
    Stale,
    /// A token that was never issued.
    Foreign,
}

/// The execution options in the model's units.
#[derive(Clone, Debug)]
pub(super) struct ModelOptions {
    pub(super) is_queued: bool,
    pub(super) max_attempts: u32,
    pub(super) max_worker_losses: u32,
    pub(super) total_timeout_secs: Option<u64>,
    pub(super) attempt_timeout_secs: Option<u64>,
    pub(super) cancel_grace_secs: Option<u64>,
    pub(super) has_custom_metadata: bool,
}

/// The model. Times are in seconds since the creation.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) options: ModelOptions,
    pub(super) now: u64,
    pub(super) phase: ModelPhase,
    pub(super) attempt: u32,
    pub(super) failed_attempts: u32,
    pub(super) worker_losses: u32,
    pub(super) unconfirmed_leases: u32,
    pub(super) start_time: Option<u64>,
    /// The number of each attempt and the code with which it ended, oldest first.
    pub(super) ended_attempts: Vec<(u32, i32)>,
    pub(super) cancel_requested: bool,
    pub(super) is_cancelled_after_failure: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum ModelPhase {
    Pending {
        ready_at: u64,
    },
    Running {
        granted_at: u64,
        /// The start of the attempt, or `None` while the lease is unconfirmed.
        start_time: Option<u64>,
        /// When the lease ends: the end of the time to confirm it, or its expiry.
        ends_at: u64,
        attempt_deadline: u64,
        cancel_deadline: u64,
    },
    Done {
        code: i32,
        finished_at: u64,
    },
    Removed,
}

/// The effect of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ModelResult {
    Changed,
    Unchanged,
    Rejected,
    Removed,
}

// === impl Model ===

impl Model {
    pub(super) fn new(options: ModelOptions) -> Self {
        let phase = ModelPhase::Pending { ready_at: 0 };
        let mut model = Self {
            options,
            now: 0,
            phase,
            attempt: 0,
            failed_attempts: 0,
            worker_losses: 0,
            unconfirmed_leases: 0,
            start_time: None,
            ended_attempts: Vec::new(),
            cancel_requested: false,
            is_cancelled_after_failure: false,
        };
        if !model.options.is_queued {
            model.grant_lease(None);
        }
        model
    }

    fn grant_lease(&mut self, confirm_secs: Option<u64>) {
        self.attempt += 1;
        let attempt_timeout = self.options.attempt_timeout_secs.unwrap_or(u64::MAX);
        let limit = LEASE_DURATION_SECS.min(attempt_timeout);
        let confirm_secs = confirm_secs.map(|secs| secs.min(limit));
        self.phase = ModelPhase::Running {
            granted_at: self.now,
            start_time: None,
            ends_at: self.now + confirm_secs.unwrap_or(LEASE_DURATION_SECS),
            attempt_deadline: u64::MAX,
            cancel_deadline: u64::MAX,
        };
        if confirm_secs.is_none() {
            self.confirm_lease();
        }
    }

    /// Starts the attempt, unless it has started.
    fn confirm_lease(&mut self) {
        let timeout = self.options.attempt_timeout_secs;
        if let ModelPhase::Running {
            start_time: start_time @ None,
            attempt_deadline,
            ..
        } = &mut self.phase
        {
            *start_time = Some(self.now);
            *attempt_deadline = timeout.map_or(u64::MAX, |time| self.now + time);
            self.start_time = self.start_time.or(Some(self.now));
            self.unconfirmed_leases = 0;
        }
    }

    fn is_confirmed(&self) -> bool {
        matches!(
            self.phase,
            ModelPhase::Running {
                start_time: Some(_),
                ..
            }
        )
    }

    fn end_attempt(&mut self, code: i32) {
        if self.is_confirmed() {
            self.ended_attempts.push((self.attempt, code));
        }
    }

    fn finish(&mut self, code: i32) -> ModelResult {
        self.end_attempt(code);
        self.phase = ModelPhase::Done {
            code,
            finished_at: self.now,
        };
        ModelResult::Changed
    }

    fn requeue(&mut self, delay: u64, code: i32) -> ModelResult {
        self.end_attempt(code);
        self.phase = ModelPhase::Pending {
            ready_at: self.now + delay,
        };
        ModelResult::Changed
    }

    fn retry_or_fail(&mut self, code: i32) -> ModelResult {
        self.failed_attempts += 1;
        if self.options.is_queued && self.failed_attempts < self.options.max_attempts {
            self.requeue(1 << (self.failed_attempts - 1), code)
        } else {
            self.finish(code)
        }
    }

    fn end_lease(&mut self) -> ModelResult {
        let is_confirmed = self.is_confirmed();
        if !is_confirmed {
            self.unconfirmed_leases += 1;
        }
        let is_loss = is_confirmed || self.unconfirmed_leases.is_multiple_of(5);
        self.worker_losses += u32::from(is_loss);
        if is_loss && self.worker_losses > self.options.max_worker_losses {
            return self.finish(14);
        }
        let delay = match self.unconfirmed_leases {
            _ if is_confirmed => 1 << (self.worker_losses - 1),
            1 | 2 => 0,
            count => 1 << (count - 3),
        };
        self.requeue(delay, 14)
    }

    fn fire_timer(&mut self) -> ModelResult {
        let is_total_timeout_exceeded = self
            .options
            .total_timeout_secs
            .is_some_and(|total| total <= self.now);
        match self.phase {
            ModelPhase::Done { finished_at, .. } if finished_at + RETENTION_SECS <= self.now => {
                self.phase = ModelPhase::Removed;
                ModelResult::Removed
            }
            ModelPhase::Done { .. } | ModelPhase::Removed => ModelResult::Unchanged,
            _ if is_total_timeout_exceeded => self.finish(4),
            ModelPhase::Pending { .. } => ModelResult::Unchanged,
            ModelPhase::Running {
                ends_at,
                attempt_deadline,
                cancel_deadline,
                ..
            } if self.cancel_requested => {
                if ends_at.min(attempt_deadline).min(cancel_deadline) <= self.now {
                    self.finish(1)
                } else {
                    ModelResult::Unchanged
                }
            }
            ModelPhase::Running {
                attempt_deadline, ..
            } if attempt_deadline <= self.now => self.retry_or_fail(4),
            ModelPhase::Running { ends_at, .. } if ends_at <= self.now => {
                if self.options.is_queued {
                    self.end_lease()
                } else {
                    self.finish(14)
                }
            }
            ModelPhase::Running { .. } => ModelResult::Unchanged,
        }
    }

    fn request_cancel(&mut self) -> ModelResult {
        match &mut self.phase {
            ModelPhase::Pending { .. } => {
                self.cancel_requested = true;
                self.finish(1)
            }
            ModelPhase::Running {
                cancel_deadline, ..
            } if !self.cancel_requested => {
                self.cancel_requested = true;
                *cancel_deadline = self
                    .options
                    .cancel_grace_secs
                    .map_or(u64::MAX, |grace| self.now + grace);
                ModelResult::Changed
            }
            _ => ModelResult::Unchanged,
        }
    }

    fn acquire_lease(&mut self, confirm_secs: Option<u64>) -> ModelResult {
        match self.phase {
            ModelPhase::Running { .. } | ModelPhase::Done { .. } | ModelPhase::Removed => {
                ModelResult::Rejected
            }
            ModelPhase::Pending { ready_at } if self.now < ready_at => ModelResult::Rejected,
            ModelPhase::Pending { .. }
                if self
                    .options
                    .total_timeout_secs
                    .is_some_and(|total| total <= self.now) =>
            {
                self.finish(4)
            }
            ModelPhase::Pending { .. } => {
                self.grant_lease(confirm_secs);
                ModelResult::Changed
            }
        }
    }

    /// Returns `true` if the token is that of a valid lease.
    fn accepts_token(&self, token: TokenKind) -> bool {
        let is_lease_valid =
            matches!(self.phase, ModelPhase::Running { ends_at, .. } if self.now < ends_at);
        is_lease_valid && matches!(token, TokenKind::Current)
    }

    pub(super) fn apply(&mut self, step: Step) -> ModelResult {
        let before = self.clone();
        let result = self.transition(step);
        if result == ModelResult::Rejected {
            *self = before;
        }
        result
    }

    fn transition(&mut self, step: Step) -> ModelResult {
        match step {
            Step::AdvanceClock(seconds) => {
                self.now += seconds;
                ModelResult::Unchanged
            }
            Step::AcquireLease(confirm_secs) => self.acquire_lease(confirm_secs),
            Step::RequestCancel => self.request_cancel(),
            Step::FireTimer => self.fire_timer(),
            Step::Finish(_, code) if matches!(self.phase, ModelPhase::Done { code: done, .. } if done == code && (7..).contains(&code)) => {
                ModelResult::Unchanged
            }
            Step::Finish(_, 0) if matches!(self.phase, ModelPhase::Done { code: 0, .. }) => {
                ModelResult::Unchanged
            }
            Step::Fail(_)
                if matches!(self.phase, ModelPhase::Done { code: 9, .. })
                    || self.is_cancelled_after_failure =>
            {
                ModelResult::Unchanged
            }
            Step::Heartbeat(token)
            | Step::Report(token, _)
            | Step::ReleaseLease(token)
            | Step::RevokeLease(token)
            | Step::Fail(token)
            | Step::Finish(token, _)
                if !self.accepts_token(token) =>
            {
                ModelResult::Rejected
            }
            Step::RevokeLease(_) => {
                let revoked = self.clone();
                let result = if self.cancel_requested {
                    self.finish(1)
                } else if self.options.is_queued {
                    self.requeue(0, 0)
                } else {
                    self.finish(14)
                };
                if self.options.is_queued && !self.cancel_requested {
                    self.ended_attempts = revoked.ended_attempts;
                    if self.ended_attempts.is_empty() {
                        self.start_time = None;
                    }
                }
                result
            }
            Step::Heartbeat(_) => {
                self.confirm_lease();
                if let ModelPhase::Running { ends_at, .. } = &mut self.phase {
                    *ends_at = self.now + LEASE_DURATION_SECS;
                }
                ModelResult::Changed
            }
            Step::Report(..) => {
                self.confirm_lease_by_report();
                ModelResult::Changed
            }
            Step::ReleaseLease(_) | Step::Fail(_) | Step::Finish(..) => self.end_by_holder(step),
        }
    }

    /// Confirms the lease, which then lasts until it expires.
    fn confirm_lease_by_report(&mut self) {
        if !self.is_confirmed()
            && let ModelPhase::Running {
                granted_at,
                ends_at,
                ..
            } = &mut self.phase
        {
            *ends_at = *granted_at + LEASE_DURATION_SECS;
        }
        self.confirm_lease();
    }

    /// Applies the end of an attempt by its holder, which confirms the lease as of its grant.
    fn end_by_holder(&mut self, step: Step) -> ModelResult {
        if let ModelPhase::Running {
            granted_at,
            start_time: start_time @ None,
            ..
        } = &mut self.phase
        {
            *start_time = Some(*granted_at);
            self.start_time = self.start_time.or(*start_time);
            self.unconfirmed_leases = 0;
        }
        match step {
            Step::ReleaseLease(_) if self.cancel_requested => self.finish(1),
            Step::Fail(_) if self.cancel_requested => {
                self.finish(1);
                // The history has the failure, and so has the error.
                self.ended_attempts.pop();
                self.ended_attempts.push((self.attempt, 9));
                self.is_cancelled_after_failure = true;
                ModelResult::Changed
            }
            Step::ReleaseLease(_) if self.options.is_queued => self.requeue(0, 10),
            Step::ReleaseLease(_) => self.finish(14),
            Step::Fail(_) => self.retry_or_fail(9),
            Step::Finish(_, code) => self.finish(code),
            _ => unreachable!("not an end of an attempt: {step:?}"),
        }
    }
}
