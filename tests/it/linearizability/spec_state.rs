//! The states of the sequential specification.

use super::events::{
    CallResponse, NameId, Nanos, OperationSnapshot, SnapshotPhase, TerminalOutcome, TokenId,
};

/// The operations at one moment: at most one for a client id; for a request id one visible
/// operation, and deleted ones that still run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct SpecState {
    pub(super) operations: Vec<SpecOperation>,
    /// Lower bound of the current time.
    pub(super) min_time: Nanos,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SpecOperation {
    /// `None` if unknown, because the creation had no response.
    pub(super) name: Option<NameId>,
    pub(super) is_deleted: bool,
    pub(super) is_cancel_requested: bool,
    pub(super) attempt: u32,
    /// Number of failed attempts; 0 without a limit.
    pub(super) failed_attempts: u32,
    /// Number of lost workers; 0 without a limit.
    pub(super) worker_losses: u32,
    /// Number of leases in a row that were not confirmed; 0 without a limit of lost workers.
    pub(super) unconfirmed_leases: u32,
    pub(super) units: i64,
    pub(super) phase: SpecPhase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum SpecPhase {
    Pending,
    Leased {
        /// `None` if the response with the lease was lost.
        token: Option<TokenId>,
        /// Whether its holder has called; `true` without a limit of lost workers.
        is_confirmed: bool,
        /// Bounds of the time of the grant or the last renewal.
        earliest: Nanos,
        latest: Nanos,
    },
    Done(TerminalOutcome),
}

// === impl SpecState ===

impl SpecState {
    /// Returns the state with time 0, and its time.
    pub(super) fn without_time(&self) -> (Self, Nanos) {
        let state = Self {
            min_time: 0,
            ..self.clone()
        };
        (state, self.min_time)
    }

    /// Returns the highest attempt of any operation.
    pub(super) fn max_attempt(&self) -> u32 {
        let attempts = self.operations.iter().map(|operation| operation.attempt);
        attempts.max().unwrap_or(0)
    }

    /// Returns the attempt of an operation, or `None` if it does not exist.
    pub(super) fn attempt_of(&self, name: NameId) -> Option<u32> {
        let mut operations = self.operations.iter();
        Some(
            operations
                .find(|operation| operation.name == Some(name))?
                .attempt,
        )
    }

    /// Returns the response to a linearizable read.
    pub(super) fn get_response(&self, name: NameId) -> CallResponse {
        let mut operations = self.operations.iter();
        let visible =
            operations.find(|operation| operation.name == Some(name) && !operation.is_deleted);
        visible.map_or(CallResponse::NotFound, |operation| {
            CallResponse::Snapshot(operation.snapshot())
        })
    }

    /// Returns the possible operations with a name as state and index. An operation with an
    /// unknown name may be the one; index `None` means that it does not exist.
    pub(super) fn find_candidates(&self, name: NameId) -> Vec<(Self, Option<usize>)> {
        let mut operations = self.operations.iter();
        if let Some(index) = operations.position(|operation| operation.name == Some(name)) {
            return vec![(self.clone(), Some(index))];
        }
        let mut candidates = vec![(self.clone(), None)];
        for (index, operation) in self.operations.iter().enumerate() {
            if operation.name.is_none() {
                let mut next = self.clone();
                next.operations[index].name = Some(name);
                candidates.push((next, Some(index)));
            }
        }
        candidates
    }

    pub(super) fn with_change(
        mut self,
        index: usize,
        change: impl FnOnce(&mut SpecOperation),
    ) -> Self {
        change(&mut self.operations[index]);
        self.without_deleted_done()
    }

    /// Removes deleted operations that are done.
    pub(super) fn without_deleted_done(mut self) -> Self {
        self.operations.retain(|operation| {
            !operation.is_deleted || !matches!(operation.phase, SpecPhase::Done(_))
        });
        self
    }
}

// === impl SpecOperation ===

impl SpecOperation {
    pub(super) fn snapshot(&self) -> OperationSnapshot {
        OperationSnapshot {
            phase: match self.phase {
                SpecPhase::Pending => SnapshotPhase::Pending,
                SpecPhase::Leased { .. } => SnapshotPhase::Running,
                SpecPhase::Done(outcome) => SnapshotPhase::Done(outcome),
            },
            attempt: self.attempt,
            is_cancel_requested: self.is_cancel_requested,
            units: self.units,
        }
    }

    pub(super) fn cancel(&mut self) {
        match self.phase {
            SpecPhase::Pending => {
                self.is_cancel_requested = true;
                self.phase = SpecPhase::Done(TerminalOutcome::Cancelled);
            }
            SpecPhase::Leased { .. } => self.is_cancel_requested = true,
            SpecPhase::Done(_) => {}
        }
    }

    /// Ends an attempt without a result: as cancelled if requested, else with `last_outcome`,
    /// else with another attempt.
    pub(super) fn requeue(&mut self, last_outcome: Option<TerminalOutcome>) {
        let cancelled = self
            .is_cancel_requested
            .then_some(TerminalOutcome::Cancelled);
        self.phase = match cancelled.or(last_outcome) {
            Some(outcome) => SpecPhase::Done(outcome),
            None => {
                self.units = 0;
                SpecPhase::Pending
            }
        };
    }
}
