//! One operation of the model: where it stands, and what its worker, its clients
//! and time make of it (BEHAVIOUR §4).

use std::collections::BTreeSet;

use super::{
    answers::{Lease, Metadata, Outcome, Shown},
    steps::{Report, Spec},
};

/// How long a lease lasts whose creator leaves it out.
pub(super) const LEASE: i64 = 30_000;

/// One operation.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) spec: Spec,
    pub(super) created: i64,
    pub(super) started: Option<i64>,
    pub(super) updated: i64,
    pub(super) attempt: i32,
    /// Attempts that were not given back.
    pub(super) counted: u32,
    pub(super) asked: bool,
    pub(super) hidden: bool,
    pub(super) at: At,
    /// Whether workers can find it in its queue.
    pub(super) offered: bool,
    pub(super) report: Report,
    /// When the server will look at it.
    pub(super) looks: BTreeSet<i64>,
}

/// Where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum At {
    Waiting {
        ready: i64,
    },
    Held {
        grant: usize,
        until: i64,
        attempt_until: Option<i64>,
        cancel_until: Option<i64>,
    },
    Done(Outcome),
}

// === impl Operation ===

impl Operation {
    pub(super) fn hold(&mut self, grant: usize, now: i64) {
        (self.attempt, self.counted) = (self.attempt + 1, self.counted + 1);
        self.started = self.started.or(Some(now));
        (self.updated, self.offered) = (now, false);
        self.at = At::Held {
            grant,
            until: now + self.spec.lease.unwrap_or(LEASE),
            attempt_until: self.spec.attempt_timeout.map(|limit| now + limit),
            cancel_until: None,
        };
    }

    pub(super) fn wait(&mut self, ready: i64, now: i64) {
        (self.updated, self.offered) = (now, ready <= now);
        self.at = At::Waiting { ready };
    }

    pub(super) fn end(&mut self, outcome: Outcome, now: i64) {
        (self.updated, self.offered) = (now, false);
        self.at = At::Done(outcome);
    }

    pub(super) fn may_retry(&self) -> bool {
        self.spec.queue.is_some() && self.counted < self.spec.attempts
    }

    pub(super) fn fail(&mut self, outcome: Outcome, retry_after: Option<i64>, now: i64) {
        if !self.may_retry() {
            return self.end(outcome, now);
        }
        let pause = self.spec.pause(self.counted);
        self.wait(now + pause.max(retry_after.unwrap_or(0)), now);
    }

    pub(super) fn is_too_late(&self, now: i64) -> bool {
        (self.spec.total_timeout).is_some_and(|limit| self.created + limit <= now)
    }

    /// What time alone does; whether that is something.
    pub(super) fn lapse(&mut self, now: i64) -> bool {
        let over = |at: Option<i64>| at.is_some_and(|at| at <= now);
        match self.at {
            At::Done(_) => return false,
            _ if self.is_too_late(now) => self.end(Outcome::Server(4, "TOTAL_TIMEOUT"), now),
            At::Waiting { .. } => return false,
            At::Held {
                until,
                attempt_until,
                cancel_until,
                ..
            } if self.asked => {
                if !(until <= now || over(attempt_until) || over(cancel_until)) {
                    return false;
                }
                self.end(Outcome::Server(1, "OPERATION_CANCELLED"), now);
            }
            At::Held { attempt_until, .. } if over(attempt_until) => {
                self.fail(Outcome::Server(4, "ATTEMPT_TIMEOUT"), None, now);
            }
            At::Held { until, .. } if now < until => return false,
            At::Held { .. } if self.may_retry() => self.wait(now, now),
            At::Held { .. } => self.end(Outcome::Server(14, "WORKER_LOST"), now),
        }
        true
    }

    /// Whether nobody will ask for it any more.
    pub(super) fn is_forgotten(&self, now: i64) -> bool {
        let is_over = match self.at {
            At::Done(_) => true,
            // Deleted, and no worker took it up.
            At::Waiting { .. } => self.hidden,
            At::Held { .. } => false,
        };
        is_over && self.updated + self.spec.retention <= now
    }

    /// The next time, after `now` if it only becomes ready then, that time
    /// alone does something.
    pub(super) fn due(&self, now: i64) -> Option<i64> {
        let total = self.spec.total_timeout.map(|limit| self.created + limit);
        let forgotten = Some(self.updated + self.spec.retention);
        let due = match self.at {
            At::Done(_) => return forgotten,
            At::Waiting { ready } => {
                let ready = (now < ready).then_some(ready);
                [ready, total, forgotten.filter(|_| self.hidden), None]
            }
            At::Held {
                until,
                attempt_until,
                cancel_until,
                ..
            } => [Some(until), total, attempt_until, cancel_until],
        };
        due.into_iter().flatten().min()
    }

    pub(super) fn shown(&self) -> Shown {
        let outcome = match &self.at {
            At::Done(outcome) => Some(outcome.clone()),
            At::Waiting { .. } | At::Held { .. } => None,
        };
        let ours = Metadata::Ours {
            state: match (&self.at, &outcome) {
                (At::Waiting { .. }, _) => "PENDING",
                (_, Some(Outcome::Response(_))) => "SUCCEEDED",
                (_, Some(Outcome::Said { code: 1, .. } | Outcome::Server(1, _))) => "CANCELLED",
                (_, Some(_)) => "FAILED",
                (_, None) => "RUNNING",
            },
            created: self.created,
            started: self.started,
            updated: self.updated,
            ended: outcome.as_ref().map(|_| self.updated),
            progress: self.report.progress,
            detail: self.report.detail,
            attempt: self.attempt,
            asked: self.asked,
            queue: self.spec.queue.unwrap_or_default().to_owned(),
        };
        Shown {
            name: self.spec.name(),
            metadata: self.report.metadata.map_or(ours, Metadata::Own),
            outcome,
        }
    }

    pub(super) fn lease(&self, now: i64) -> Lease {
        let At::Held {
            grant,
            until,
            attempt_until,
            ..
        } = self.at
        else {
            panic!("nobody holds {self:?}");
        };
        Lease {
            name: self.spec.name(),
            grant,
            attempt: self.attempt,
            remaining: until - now,
            attempt_remaining: attempt_until.map(|at| (at - now).max(0)),
            checkpoint: self.report.checkpoint,
            asked: self.asked,
            queue: self.spec.queue.unwrap_or_default().to_owned(),
            grace: self.spec.grace,
        }
    }
}
