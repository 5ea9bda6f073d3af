//! What a history is made of: calls, and what they were answered.

use std::fmt;

/// Nanoseconds since the run began, by the clock of the test.
pub(super) type Time = i64;
/// Operations and leases by number, in the order in which they were met.
pub(super) type Name = usize;
pub(super) type Token = usize;

/// When a call ended that never got an answer.
pub(super) const NEVER: Time = i64::MAX / 4;

/// One call, or one of the leases that a call got.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) begun: Time,
    pub(super) ended: Time,
    /// The process that was asked, by number, and when it began to serve.
    pub(super) process: usize,
    pub(super) since: Time,
    pub(super) ask: Ask,
    pub(super) answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Create,
    Lease,
    Beat(Name, Token, Option<i64>),
    Finish(Name, Token, End),
    Cancel(Name),
    Delete(Name),
    /// Whether what this process shows may be older than what others have done.
    Get(Name, Reads),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reads {
    Fresh,
    MayBeLate,
}

/// How an attempt ends. Each has a number that nobody else uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Response(i64),
    Failure(i64),
    Retryable(i64),
    Release,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// None came: it may have taken effect at any time since, or never.
    Lost,
    /// Made, or found again because the request was made before.
    Created {
        name: Name,
        reused: bool,
    },
    Exists,
    Leased {
        name: Name,
        token: Token,
        attempt: u32,
    },
    /// The lease was renewed.
    Go(Go),
    Ok,
    Shown(Shown),
    /// NOT_FOUND.
    Missing,
    /// LEASE_LOST.
    LeaseLost,
    /// OPERATION_DONE.
    Over,
}

/// What the holder of a lease is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Go {
    On,
    Stop,
    Unseen,
}

/// An operation as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) stage: Stage,
    pub(super) attempt: u32,
    pub(super) is_cancelled: bool,
    pub(super) units: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    Waiting,
    Held,
    Done(Outcome),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    Response(i64),
    Failure(i64),
    Cancelled,
    WorkerLost,
}

// === impl Call ===

impl Call {
    pub(super) fn is_answered(&self) -> bool {
        self.answer != Answer::Lost
    }

    /// Whether it changes nothing with this answer, whenever that was. That a
    /// cancellation is granted, for one, does not say so.
    pub(super) fn only_looks(&self) -> bool {
        let is_refused = matches!(
            self.answer,
            Answer::Exists | Answer::Missing | Answer::LeaseLost | Answer::Over
        );
        is_refused || matches!(self.ask, Ask::Get(..))
    }

    /// Whether anything can come of it that somebody else was told of: a renewal
    /// after which nobody was heard is none.
    pub(super) fn can_matter(&self, calls: &[Self]) -> bool {
        let Ask::Beat(_, token, units) = self.ask else {
            return true;
        };
        calls.iter().any(|other| match (&other.ask, &other.answer) {
            (_, Answer::Shown(shown)) if units == Some(shown.units) => true,
            (Ask::Beat(_, theirs, _), Answer::Go(_))
            | (Ask::Finish(_, theirs, _), Answer::Shown(_)) => {
                *theirs == token && self.begun < other.ended
            }
            _ => false,
        })
    }

    /// The attempt that its answer shows.
    pub(super) fn attempt(&self) -> Option<u32> {
        match &self.answer {
            Answer::Shown(Shown { attempt, .. }) | Answer::Leased { attempt, .. } => Some(*attempt),
            _ => None,
        }
    }

    /// The name that it is about, as far as anybody knows.
    pub(super) fn name(&self) -> Option<Name> {
        match (&self.ask, &self.answer) {
            (
                Ask::Beat(name, ..)
                | Ask::Finish(name, ..)
                | Ask::Cancel(name)
                | Ask::Delete(name)
                | Ask::Get(name, _),
                _,
            )
            | (_, Answer::Created { name, .. } | Answer::Leased { name, .. }) => Some(*name),
            (Ask::Create | Ask::Lease, _) => None,
        }
    }

    /// What a process does not show, it asks the database for.
    pub(super) fn may_be_late(&self) -> bool {
        matches!(self.ask, Ask::Get(_, Reads::MayBeLate)) && self.answer != Answer::Missing
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |time: Time| time / 1000;
        let ended = match self.ended {
            NEVER => String::new(),
            ended => micros(ended).to_string(),
        };
        let (begun, process) = (micros(self.begun), self.process);
        let (ask, answer) = (&self.ask, &self.answer);
        write!(
            f,
            "{begun:>9}..{ended:<9} µs  process {process:<2} {ask:?} -> {answer:?}"
        )
    }
}

// === impl Stage ===

impl Stage {
    /// Whether it is the outcome that has this number.
    pub(super) fn is_of(self, number: i64) -> bool {
        let outcomes = [Outcome::Response(number), Outcome::Failure(number)];
        matches!(self, Self::Done(outcome) if outcomes.contains(&outcome))
    }
}

// === impl End ===

impl End {
    /// What becomes of the operation, if no other attempt follows.
    pub(super) fn outcome(self) -> Option<Outcome> {
        match self {
            Self::Response(number) => Some(Outcome::Response(number)),
            Self::Failure(number) | Self::Retryable(number) => Some(Outcome::Failure(number)),
            Self::Release => None,
        }
    }
}
