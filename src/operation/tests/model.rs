//! A model of an operation with whole seconds and four phases, written from
//! docs/specification.md and not from the transition table.

pub(super) const LEASE_DURATION_SECS: u64 = 30;
pub(super) const RETENTION_SECS: u64 = 100;

/// One step of a test case.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    AdvanceClock(u64),
    AcquireLease,
    RenewLease(TokenKind),
    Report(TokenKind, u8),
    RequestCancel,
    ReleaseLease(TokenKind),
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
    pub(super) counted_attempts: u32,
    pub(super) cancel_requested: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum ModelPhase {
    Pending {
        ready_at: u64,
    },
    Running {
        expires_at: u64,
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
            counted_attempts: 0,
            cancel_requested: false,
        };
        if !model.options.is_queued {
            model.start_attempt();
        }
        model
    }

    fn start_attempt(&mut self) {
        (self.attempt, self.counted_attempts) = (self.attempt + 1, self.counted_attempts + 1);
        self.phase = ModelPhase::Running {
            expires_at: self.now + LEASE_DURATION_SECS,
            attempt_deadline: self
                .options
                .attempt_timeout_secs
                .map_or(u64::MAX, |time| self.now + time),
            cancel_deadline: u64::MAX,
        };
    }

    fn finish(&mut self, code: i32) -> ModelResult {
        self.phase = ModelPhase::Done {
            code,
            finished_at: self.now,
        };
        ModelResult::Changed
    }

    fn requeue(&mut self, delay: u64) -> ModelResult {
        self.phase = ModelPhase::Pending {
            ready_at: self.now + delay,
        };
        ModelResult::Changed
    }

    fn can_retry(&self) -> bool {
        self.options.is_queued && self.counted_attempts < self.options.max_attempts
    }

    fn retry_or_fail(&mut self, code: i32) -> ModelResult {
        if self.can_retry() {
            self.requeue(1 << (self.counted_attempts - 1))
        } else {
            self.finish(code)
        }
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
                expires_at,
                attempt_deadline,
                cancel_deadline,
            } if self.cancel_requested => {
                if expires_at.min(attempt_deadline).min(cancel_deadline) <= self.now {
                    self.finish(1)
                } else {
                    ModelResult::Unchanged
                }
            }
            ModelPhase::Running {
                attempt_deadline, ..
            } if attempt_deadline <= self.now => self.retry_or_fail(4),
            ModelPhase::Running { expires_at, .. }
                if expires_at <= self.now && self.can_retry() =>
            {
                self.requeue(0)
            }
            ModelPhase::Running { expires_at, .. } if expires_at <= self.now => self.finish(14),
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

    fn acquire_lease(&mut self) -> ModelResult {
        match self.phase {
            ModelPhase::Pending { .. } => {}
            // The lease is available only if a timer would end the attempt.
            ModelPhase::Running { .. } if self.clone().fire_timer() == ModelResult::Unchanged => {
                return ModelResult::Rejected;
            }
            ModelPhase::Running { .. } => {
                self.fire_timer();
            }
            ModelPhase::Done { .. } | ModelPhase::Removed => return ModelResult::Rejected,
        }
        match self.phase {
            ModelPhase::Done { .. } => ModelResult::Changed,
            ModelPhase::Pending { ready_at } if self.now < ready_at => ModelResult::Rejected,
            _ if self
                .options
                .total_timeout_secs
                .is_some_and(|total| total <= self.now) =>
            {
                self.finish(4)
            }
            _ => {
                self.start_attempt();
                ModelResult::Changed
            }
        }
    }

    /// Returns `true` if the token is that of a valid lease.
    fn accepts_token(&self, token: TokenKind) -> bool {
        let is_lease_valid =
            matches!(self.phase, ModelPhase::Running { expires_at, .. } if self.now < expires_at);
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
            Step::AcquireLease => self.acquire_lease(),
            Step::RequestCancel => self.request_cancel(),
            Step::FireTimer => self.fire_timer(),
            Step::Finish(_, code) if matches!(self.phase, ModelPhase::Done { code: done, .. } if done == code && (7..).contains(&code)) => {
                ModelResult::Unchanged
            }
            Step::Finish(_, 0) if matches!(self.phase, ModelPhase::Done { code: 0, .. }) => {
                ModelResult::Unchanged
            }
            Step::Fail(_) if matches!(self.phase, ModelPhase::Done { code: 9, .. }) => {
                ModelResult::Unchanged
            }
            Step::RenewLease(token)
            | Step::Report(token, _)
            | Step::ReleaseLease(token)
            | Step::Fail(token)
            | Step::Finish(token, _)
                if !self.accepts_token(token) =>
            {
                ModelResult::Rejected
            }
            Step::RenewLease(_) => {
                if let ModelPhase::Running { expires_at, .. } = &mut self.phase {
                    *expires_at = self.now + LEASE_DURATION_SECS;
                }
                ModelResult::Changed
            }
            Step::Report(..) => ModelResult::Changed,
            Step::ReleaseLease(_) | Step::Fail(_) if self.cancel_requested => self.finish(1),
            Step::ReleaseLease(_) if self.options.is_queued => {
                self.counted_attempts -= 1;
                self.requeue(0)
            }
            Step::ReleaseLease(_) => self.finish(14),
            Step::Fail(_) => self.retry_or_fail(9),
            Step::Finish(_, code) => self.finish(code),
        }
    }
}
