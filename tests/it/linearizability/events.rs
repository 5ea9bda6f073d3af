//! The elements of a history: calls with their invocations and responses.

use std::fmt;

/// Nanoseconds since the start of the run, by the clock of the test.
pub(super) type Nanos = i64;
/// Numbers of operations and leases, in the order in which they were observed.
pub(super) type NameId = usize;
pub(super) type TokenId = usize;

/// The return time of a call without a response.
pub(super) const NEVER_RETURNED: Nanos = i64::MAX / 4;

/// The time during which some server may have been unable to reach the database.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    pub(super) start: Nanos,
    pub(super) end: Nanos,
}

/// One call, or one of the leases returned by a call.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) invoked_at: Nanos,
    pub(super) returned_at: Nanos,
    /// Number of the called process.
    pub(super) process: usize,
    /// When that process began to serve.
    pub(super) process_started_at: Nanos,
    pub(super) invocation: Invocation,
    pub(super) response: CallResponse,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Invocation {
    Create,
    Lease,
    /// With the reported number of units, unique per call.
    Heartbeat(NameId, TokenId, Option<i64>),
    Finish(NameId, TokenId, FinishRequest),
    Cancel(NameId),
    Delete(NameId),
    Get(NameId, ReadMode),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadMode {
    Linearizable,
    /// From the cache of the process, which may be stale.
    Local,
}

/// How an attempt ends, with a number unique per call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FinishRequest {
    Response(i64),
    Failure(i64),
    RetryableFailure(i64),
    Release,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CallResponse {
    /// None arrived: the call may take effect at any later time, or never.
    Unknown,
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
    Renewed(HeartbeatDirective),
    Ok,
    Snapshot(OperationSnapshot),
    NotFound,
    LeaseLost,
    AlreadyDone,
}

/// The directive to a lease holder.
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

    /// Returns `true` if the response proves that the call changed nothing. A successful
    /// cancel, for one, does not.
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

    /// Returns `false` for a heartbeat whose effect no other call observed.
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

    /// Returns the attempt in the response.
    pub(super) fn observed_attempt(&self) -> Option<u32> {
        match &self.response {
            CallResponse::Snapshot(OperationSnapshot { attempt, .. })
            | CallResponse::Leased { attempt, .. } => Some(*attempt),
            _ => None,
        }
    }

    /// Returns the operation concerned, or `None` if it is unknown.
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

    /// Returns `true` for a local read. Not for `NotFound`, because a cache miss is read
    /// through to the database.
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

// === impl SnapshotPhase ===

impl SnapshotPhase {
    /// Returns `true` for the outcome with a number.
    pub(super) fn is_outcome_of(self, number: i64) -> bool {
        let outcomes = [
            TerminalOutcome::Response(number),
            TerminalOutcome::Failure(number),
        ];
        matches!(self, Self::Done(outcome) if outcomes.contains(&outcome))
    }
}

// === impl FinishRequest ===

impl FinishRequest {
    /// Returns the outcome of the operation if no other attempt follows, or `None` for a
    /// release.
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
