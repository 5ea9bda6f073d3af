//! What a history is made of: calls, and what they were answered.

use std::fmt;

/// Nanoseconds since the run began, by the clock of the test.
pub(super) type Nanos = i64;
/// Operations and leases by number, in the order in which they were met.
pub(super) type NameId = usize;
pub(super) type TokenId = usize;

/// When a call ended that never got an answer.
pub(super) const NEVER_RETURNED: Nanos = i64::MAX / 4;

/// One call, or one of the leases that a call got.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) invoked_at: Nanos,
    pub(super) returned_at: Nanos,
    /// The process that was asked, by number, and when it began to serve.
    pub(super) process: usize,
    pub(super) process_started_at: Nanos,
    pub(super) invocation: Invocation,
    pub(super) response: CallResponse,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Invocation {
    Create,
    Lease,
    Heartbeat(NameId, TokenId, Option<i64>),
    Finish(NameId, TokenId, FinishRequest),
    Cancel(NameId),
    Delete(NameId),
    /// Whether what this process shows may be older than what others have done.
    Get(NameId, ReadMode),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadMode {
    Linearizable,
    Local,
}

/// How an attempt ends. Each has a number that nobody else uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FinishRequest {
    Response(i64),
    Failure(i64),
    RetryableFailure(i64),
    Release,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CallResponse {
    /// None came: it may have taken effect at any time since, or never.
    Unknown,
    /// Made, or found again because the request was made before.
    Created {
        name: NameId,
        already_existed: bool,
    },
    AlreadyExists,
    Leased {
        name: NameId,
        token: TokenId,
        attempt: u32,
    },
    /// The lease was renewed.
    Renewed(HeartbeatDirective),
    Ok,
    Snapshot(OperationSnapshot),
    /// NOT_FOUND.
    NotFound,
    /// LEASE_LOST.
    LeaseLost,
    /// OPERATION_ALREADY_DONE.
    AlreadyDone,
}

/// What the holder of a lease is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeartbeatDirective {
    Continue,
    CancelRequested,
    Deleted,
}

/// An operation as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OperationSnapshot {
    pub(super) phase: SnapshotPhase,
    pub(super) attempt: u32,
    pub(super) is_cancel_requested: bool,
    pub(super) units: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum SnapshotPhase {
    Pending,
    Running,
    Done(TerminalOutcome),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum TerminalOutcome {
    Response(i64),
    Failure(i64),
    Cancelled,
    WorkerLost,
}

// === impl Call ===

impl Call {
    pub(super) fn has_response(&self) -> bool {
        self.response != CallResponse::Unknown
    }

    /// Whether it changes nothing with this answer, whenever that was. That a
    /// cancellation is granted, for one, does not say so.
    pub(super) fn is_read_only(&self) -> bool {
        let is_rejected = matches!(
            self.response,
            CallResponse::AlreadyExists
                | CallResponse::NotFound
                | CallResponse::LeaseLost
                | CallResponse::AlreadyDone
        );
        is_rejected || matches!(self.invocation, Invocation::Get(..))
    }

    /// Whether anything can come of it that somebody else was told of: a renewal
    /// after which nobody was heard is none.
    pub(super) fn is_observable(&self, calls: &[Self]) -> bool {
        let Invocation::Heartbeat(_, token, units) = self.invocation else {
            return true;
        };
        calls
            .iter()
            .any(|other| match (&other.invocation, &other.response) {
                (_, CallResponse::Snapshot(snapshot)) if units == Some(snapshot.units) => true,
                (Invocation::Heartbeat(_, other_token, _), CallResponse::Renewed(_))
                | (Invocation::Finish(_, other_token, _), CallResponse::Snapshot(_)) => {
                    *other_token == token && self.invoked_at < other.returned_at
                }
                _ => false,
            })
    }

    /// The attempt that its answer shows.
    pub(super) fn observed_attempt(&self) -> Option<u32> {
        match &self.response {
            CallResponse::Snapshot(OperationSnapshot { attempt, .. })
            | CallResponse::Leased { attempt, .. } => Some(*attempt),
            _ => None,
        }
    }

    /// The name that it is about, as far as anybody knows.
    pub(super) fn name(&self) -> Option<NameId> {
        match (&self.invocation, &self.response) {
            (
                Invocation::Heartbeat(name, ..)
                | Invocation::Finish(name, ..)
                | Invocation::Cancel(name)
                | Invocation::Delete(name)
                | Invocation::Get(name, _),
                _,
            )
            | (_, CallResponse::Created { name, .. } | CallResponse::Leased { name, .. }) => {
                Some(*name)
            }
            (Invocation::Create | Invocation::Lease, _) => None,
        }
    }

    /// What a process does not show, it asks the database for.
    pub(super) fn may_be_stale(&self) -> bool {
        matches!(self.invocation, Invocation::Get(_, ReadMode::Local))
            && self.response != CallResponse::NotFound
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = |nanos: Nanos| nanos / 1000;
        let returned_at = match self.returned_at {
            NEVER_RETURNED => String::new(),
            returned_at => micros(returned_at).to_string(),
        };
        let (invoked_at, process) = (micros(self.invoked_at), self.process);
        let (invocation, response) = (&self.invocation, &self.response);
        write!(
            f,
            "{invoked_at:>9}..{returned_at:<9} µs  process {process:<2} {invocation:?} -> {response:?}"
        )
    }
}

// === impl Stage ===

impl SnapshotPhase {
    /// Whether it is the outcome that has this number.
    pub(super) fn is_outcome_of(self, number: i64) -> bool {
        let outcomes = [
            TerminalOutcome::Response(number),
            TerminalOutcome::Failure(number),
        ];
        matches!(self, Self::Done(outcome) if outcomes.contains(&outcome))
    }
}

// === impl End ===

impl FinishRequest {
    /// What becomes of the operation, if no other attempt follows.
    pub(super) fn terminal_outcome(self) -> Option<TerminalOutcome> {
        match self {
            Self::Response(number) => Some(TerminalOutcome::Response(number)),
            Self::Failure(number) | Self::RetryableFailure(number) => {
                Some(TerminalOutcome::Failure(number))
            }
            Self::Release => None,
        }
    }
}
