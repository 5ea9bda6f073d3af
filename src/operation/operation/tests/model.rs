//! A model of an operation's life that knows only seconds and four states,
//! written from BEHAVIOUR §4 and not from the table.

/// How long a lease lasts, in seconds.
pub(super) const LEASE: u64 = 30;
/// How long a done operation can be read, in seconds.
pub(super) const RETENTION: u64 = 100;

/// What happens next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Pass(u64),
    Claim,
    Renew(Speaker),
    Report(Speaker, u8),
    Cancel,
    Release(Speaker),
    Fail(Speaker),
    Finish(Speaker, i32),
    Lapse,
}

/// Whose token comes with it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Speaker {
    Holder,
    /// The holder before.
    Stale,
    Foreign,
}

/// What the creator fixed.
#[derive(Clone, Debug)]
pub(super) struct Wishes {
    pub(super) queued: bool,
    pub(super) attempts: u32,
    pub(super) total: Option<u64>,
    pub(super) attempt: Option<u64>,
    pub(super) grace: Option<u64>,
    pub(super) own_metadata: bool,
}

/// The model: seconds since the creation, and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) wishes: Wishes,
    pub(super) now: u64,
    pub(super) at: At,
    pub(super) attempt: u32,
    pub(super) counted: u32,
    pub(super) asked: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum At {
    Pending {
        ready: u64,
    },
    Held {
        until: u64,
        attempt_until: u64,
        grace_until: u64,
    },
    Done {
        code: i32,
        since: u64,
    },
    Forgotten,
}

/// What the model says of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    Changed,
    Same,
    Refused,
    Forgotten,
}

impl Model {
    pub(super) fn new(wishes: Wishes) -> Self {
        let at = At::Pending { ready: 0 };
        let mut model = Self {
            wishes,
            now: 0,
            at,
            attempt: 0,
            counted: 0,
            asked: false,
        };
        if !model.wishes.queued {
            model.hold();
        }
        model
    }

    fn hold(&mut self) {
        (self.attempt, self.counted) = (self.attempt + 1, self.counted + 1);
        self.at = At::Held {
            until: self.now + LEASE,
            attempt_until: self.wishes.attempt.map_or(u64::MAX, |time| self.now + time),
            grace_until: u64::MAX,
        };
    }

    fn done(&mut self, code: i32) -> Verdict {
        self.at = At::Done {
            code,
            since: self.now,
        };
        Verdict::Changed
    }

    fn back(&mut self, pause: u64) -> Verdict {
        self.at = At::Pending {
            ready: self.now + pause,
        };
        Verdict::Changed
    }

    fn may_retry(&self) -> bool {
        self.wishes.queued && self.counted < self.wishes.attempts
    }

    fn failed(&mut self, code: i32) -> Verdict {
        if self.may_retry() {
            self.back(1 << (self.counted - 1))
        } else {
            self.done(code)
        }
    }

    fn lapse(&mut self) -> Verdict {
        let late = self.wishes.total.is_some_and(|total| total <= self.now);
        match self.at {
            At::Done { since, .. } if since + RETENTION <= self.now => {
                self.at = At::Forgotten;
                Verdict::Forgotten
            }
            At::Done { .. } | At::Forgotten => Verdict::Same,
            _ if late => self.done(4),
            At::Pending { .. } => Verdict::Same,
            At::Held {
                until,
                attempt_until,
                grace_until,
            } if self.asked => {
                if until.min(attempt_until).min(grace_until) <= self.now {
                    self.done(1)
                } else {
                    Verdict::Same
                }
            }
            At::Held { attempt_until, .. } if attempt_until <= self.now => self.failed(4),
            At::Held { until, .. } if until <= self.now && self.may_retry() => self.back(0),
            At::Held { until, .. } if until <= self.now => self.done(14),
            At::Held { .. } => Verdict::Same,
        }
    }

    fn cancel(&mut self) -> Verdict {
        match &mut self.at {
            At::Pending { .. } => {
                self.asked = true;
                self.done(1)
            }
            At::Held { grace_until, .. } if !self.asked => {
                self.asked = true;
                *grace_until = self.wishes.grace.map_or(u64::MAX, |grace| self.now + grace);
                Verdict::Changed
            }
            _ => Verdict::Same,
        }
    }

    fn claim(&mut self) -> Verdict {
        match self.at {
            At::Pending { .. } => {}
            // Only a lease that is over is to be had; what becomes of it decides.
            At::Held { .. } if self.clone().lapse() == Verdict::Same => return Verdict::Refused,
            At::Held { .. } => {
                self.lapse();
            }
            At::Done { .. } | At::Forgotten => return Verdict::Refused,
        }
        match self.at {
            At::Done { .. } => Verdict::Changed,
            At::Pending { ready } if self.now < ready => Verdict::Refused,
            _ if self.wishes.total.is_some_and(|total| total <= self.now) => self.done(4),
            _ => {
                self.hold();
                Verdict::Changed
            }
        }
    }

    /// Whether the one who speaks holds the lease.
    fn hears(&self, speaker: Speaker) -> bool {
        let in_time = matches!(self.at, At::Held { until, .. } if self.now < until);
        in_time && matches!(speaker, Speaker::Holder)
    }

    pub(super) fn step(&mut self, step: Step) -> Verdict {
        let before = self.clone();
        let verdict = self.decide(step);
        if verdict == Verdict::Refused {
            *self = before;
        }
        verdict
    }

    fn decide(&mut self, step: Step) -> Verdict {
        match step {
            Step::Pass(seconds) => {
                self.now += seconds;
                Verdict::Same
            }
            Step::Claim => self.claim(),
            Step::Cancel => self.cancel(),
            Step::Lapse => self.lapse(),
            Step::Finish(_, code) if matches!(self.at, At::Done { code: done, .. } if done == code && (7..).contains(&code)) => {
                Verdict::Same
            }
            Step::Finish(_, 0) if matches!(self.at, At::Done { code: 0, .. }) => Verdict::Same,
            Step::Fail(_) if matches!(self.at, At::Done { code: 9, .. }) => Verdict::Same,
            Step::Renew(speaker)
            | Step::Report(speaker, _)
            | Step::Release(speaker)
            | Step::Fail(speaker)
            | Step::Finish(speaker, _)
                if !self.hears(speaker) =>
            {
                Verdict::Refused
            }
            Step::Renew(_) => {
                if let At::Held { until, .. } = &mut self.at {
                    *until = self.now + LEASE;
                }
                Verdict::Changed
            }
            Step::Report(..) => Verdict::Changed,
            Step::Release(_) | Step::Fail(_) if self.asked => self.done(1),
            Step::Release(_) if self.wishes.queued => {
                self.counted -= 1;
                self.back(0)
            }
            Step::Release(_) => self.done(14),
            Step::Fail(_) => self.failed(9),
            Step::Finish(_, code) => self.done(code),
        }
    }
}
