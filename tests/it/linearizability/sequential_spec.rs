//! What one operation may do, as a sequential specification: which answers a call
//! may get in a state, and what it leads to. Written from BEHAVIOUR §§1 to 5 and
//! `worker.proto`, without a line of the server's. In which order calls took
//! effect is found by `checker`.

use super::events::{
    Call, CallResponse, FinishRequest, HeartbeatDirective, Invocation, NameId, Nanos,
    OperationSnapshot, ReadMode, SnapshotPhase, TerminalOutcome, TokenId,
};

/// What a history is checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct SequentialSpec {
    /// Created under an id that its creator chose, not by a request id under
    /// names of the server's.
    pub(super) has_client_id: bool,
    /// How many attempts count before a lost or failed one is the last; none for
    /// more than anybody makes.
    pub(super) max_attempts: Option<u32>,
    /// How long leases last.
    pub(super) lease_duration: Nanos,
    /// By how much two servers may disagree on what time it is.
    pub(super) max_clock_skew: Nanos,
    /// From the first to the last moment at which some server may not have reached the
    /// database: a lease that ran out meanwhile lasts its full time from then on.
    pub(super) outage: Option<(Nanos, Nanos)>,
}

/// What there is at one moment: for an id at most one operation, for a request
/// one that clients see, and those that were deleted and go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct SpecState {
    operations: Vec<SpecOperation>,
    /// Every call so far has taken effect before the present, and the present is
    /// not before this.
    min_time: Nanos,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SpecOperation {
    /// None while nobody knows: the answer to its creator was lost.
    name: Option<NameId>,
    is_deleted: bool,
    is_cancel_requested: bool,
    attempt: u32,
    /// How many attempts count, if they are counted.
    counted_attempts: u32,
    units: i64,
    phase: SpecPhase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum SpecPhase {
    Pending,
    Leased {
        /// None if the answer was lost that had it.
        token: Option<TokenId>,
        /// When it was got or renewed, at the earliest and at the latest.
        earliest: Nanos,
        latest: Nanos,
    },
    Done(TerminalOutcome),
}

// === impl Rules ===

impl SequentialSpec {
    /// Into which states a call may lead that took effect in this one with the
    /// answer it got; none if it cannot have been.
    pub(super) fn apply(&self, state: &SpecState, call: &Call) -> Vec<SpecState> {
        let mut successors = match &call.invocation {
            Invocation::Create => self.create(state, &call.response),
            Invocation::Lease => self.lease(state, call),
            Invocation::Heartbeat(name, ..)
            | Invocation::Finish(name, ..)
            | Invocation::Cancel(name)
            | Invocation::Delete(name)
            | Invocation::Get(name, _) => {
                let candidates = state.find_candidates(*name).into_iter();
                candidates
                    .flat_map(|(state, index)| match index {
                        Some(index) => self.apply_to(state, index, call),
                        None if call.response == CallResponse::NotFound => vec![state],
                        None => Vec::new(),
                    })
                    .collect()
            }
        };
        for successor in &mut successors {
            // What changes nothing need not move the time on, and a read that may be
            // late was before its call.
            if successor != state && !matches!(call.invocation, Invocation::Get(_, ReadMode::Local))
            {
                successor.min_time = successor.min_time.max(call.invoked_at);
            }
        }
        successors
    }

    /// Into which states nobody's call leads, if everything that is still to take
    /// effect may do so at `latest`: a lease runs out, or goes back because whoever
    /// asked for it has left.
    pub(super) fn unprompted_steps(&self, state: &SpecState, latest: Nanos) -> Vec<SpecState> {
        let mut successors = Vec::new();
        for index in 0..state.operations.len() {
            let SpecPhase::Leased {
                token, earliest, ..
            } = state.operations[index].phase
            else {
                continue;
            };
            let expires_at = earliest + self.lease_duration - self.max_clock_skew;
            // Where attempts are not counted, it is all one how a lease that nobody
            // has comes back.
            if expires_at <= latest && (token.is_some() || self.max_attempts.is_some()) {
                let mut next = state.clone();
                next.min_time = next.min_time.max(expires_at);
                let operation = &mut next.operations[index];
                let is_last = self.is_last(operation);
                operation.requeue(is_last.then_some(TerminalOutcome::WorkerLost));
                successors.push(next.without_deleted_done());
            }
            if token.is_none() {
                let mut next = state.clone();
                let operation = &mut next.operations[index];
                operation.counted_attempts = operation.counted_attempts.saturating_sub(1);
                operation.requeue(None);
                successors.push(next.without_deleted_done());
            }
        }
        successors
    }

    fn create(&self, state: &SpecState, response: &CallResponse) -> Vec<SpecState> {
        let with_operation = |name| {
            let mut next = state.clone();
            next.operations.push(SpecOperation {
                name,
                is_deleted: false,
                is_cancel_requested: false,
                attempt: 0,
                counted_attempts: 0,
                units: 0,
                phase: SpecPhase::Pending,
            });
            vec![next]
        };
        let is_name_taken = state
            .operations
            .iter()
            .any(|operation| self.has_client_id || !operation.is_deleted);
        match (is_name_taken, response) {
            (
                false,
                CallResponse::Created {
                    name,
                    already_existed: false,
                },
            ) => with_operation(Some(*name)),
            // The only name that an id gives is number 0.
            (false, CallResponse::Unknown) => with_operation(self.has_client_id.then_some(0)),
            (true, CallResponse::AlreadyExists) if self.has_client_id => vec![state.clone()],
            (
                true,
                CallResponse::Created {
                    name,
                    already_existed: true,
                },
            ) if !self.has_client_id => {
                let candidates = state.find_candidates(*name).into_iter();
                let is_visible = |(next, index): &(SpecState, Option<usize>)| {
                    index.is_some_and(|at| !next.operations[at].is_deleted)
                };
                candidates
                    .filter(is_visible)
                    .map(|(next, _)| next)
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    fn lease(&self, state: &SpecState, call: &Call) -> Vec<SpecState> {
        let candidates = match call.response {
            CallResponse::Leased { name, .. } => state.find_candidates(name),
            CallResponse::Unknown => {
                let indexes = 0..state.operations.len();
                indexes.map(|index| (state.clone(), Some(index))).collect()
            }
            _ => Vec::new(),
        };
        let mut successors = Vec::new();
        for (mut next, index) in candidates {
            let Some(index) = index else { continue };
            let floor = next.min_time;
            let operation = &mut next.operations[index];
            if operation.phase != SpecPhase::Pending {
                continue;
            }
            operation.attempt += 1;
            operation.counted_attempts += u32::from(self.max_attempts.is_some());
            let token = match call.response {
                CallResponse::Leased { attempt, .. } if attempt != operation.attempt => continue,
                CallResponse::Leased { token, .. } => Some(token),
                _ => None,
            };
            let is_time_irrelevant = token.is_none() && self.max_attempts.is_none();
            operation.phase = SpecPhase::Leased {
                token,
                // It was decided after what it builds on was kept.
                earliest: if is_time_irrelevant {
                    0
                } else {
                    call.invoked_at.max(floor)
                },
                latest: call.returned_at,
            };
            successors.push(next);
        }
        successors
    }

    /// What a call does to an operation that is there.
    fn apply_to(&self, state: SpecState, index: usize, call: &Call) -> Vec<SpecState> {
        let operation = state.operations[index].clone();
        let floor = state.min_time;
        let successor_if =
            |is_allowed: bool, next: SpecState| if is_allowed { vec![next] } else { Vec::new() };
        let matches_response = |response: &CallResponse| {
            call.response == CallResponse::Unknown || call.response == *response
        };
        match &call.invocation {
            Invocation::Get(..) if operation.is_deleted => {
                successor_if(call.response == CallResponse::NotFound, state)
            }
            Invocation::Get(..) => successor_if(
                call.response == CallResponse::Snapshot(operation.snapshot()),
                state,
            ),
            Invocation::Cancel(_) | Invocation::Delete(_) if operation.is_deleted => {
                successor_if(call.response == CallResponse::NotFound, state)
            }
            Invocation::Cancel(_) => successor_if(
                matches_response(&CallResponse::Ok),
                state.with_change(index, SpecOperation::cancel),
            ),
            Invocation::Delete(_) => successor_if(
                matches_response(&CallResponse::Ok),
                state.with_change(index, |operation| operation.is_deleted = true),
            ),
            Invocation::Heartbeat(_, token, units) => {
                let (rejection, may_hold) = self.check_lease(&operation, *token, call);
                let directive = match (operation.is_cancel_requested, operation.is_deleted) {
                    (true, _) => HeartbeatDirective::CancelRequested,
                    (false, true) => HeartbeatDirective::Deleted,
                    (false, false) => HeartbeatDirective::Continue,
                };
                let renewed = state.clone().with_change(index, |operation| {
                    operation.units = units.unwrap_or(operation.units);
                    operation.phase = SpecPhase::Leased {
                        token: Some(*token),
                        earliest: call.invoked_at.max(floor),
                        latest: call.returned_at,
                    };
                });
                let mut successors = successor_if(rejection == Some(call.response.clone()), state);
                successors.extend(successor_if(
                    may_hold && matches_response(&CallResponse::Renewed(directive)),
                    renewed,
                ));
                successors
            }
            Invocation::Finish(_, token, request) => {
                let (rejection, may_hold) = self.check_lease(&operation, *token, call);
                if let SpecPhase::Done(outcome) = operation.phase
                    && request.terminal_outcome() == Some(outcome)
                {
                    return successor_if(
                        matches_response(&CallResponse::Snapshot(operation.snapshot())),
                        state,
                    );
                }
                let is_last = self.is_last(&operation);
                let mut finished = operation;
                match request {
                    FinishRequest::Response(_) | FinishRequest::Failure(_) => {
                        finished.phase = request
                            .terminal_outcome()
                            .map_or(finished.phase, SpecPhase::Done);
                    }
                    FinishRequest::RetryableFailure(_) => {
                        finished.requeue(request.terminal_outcome().filter(|_| is_last));
                    }
                    FinishRequest::Release => {
                        finished.counted_attempts = finished.counted_attempts.saturating_sub(1);
                        finished.requeue(None);
                    }
                }
                let snapshot = finished.snapshot();
                let next = state
                    .clone()
                    .with_change(index, |operation| *operation = finished);
                let mut successors = successor_if(rejection == Some(call.response.clone()), state);
                successors.extend(successor_if(
                    may_hold && matches_response(&CallResponse::Snapshot(snapshot)),
                    next,
                ));
                successors
            }
            Invocation::Create | Invocation::Lease => Vec::new(),
        }
    }

    /// Until when a lease may be held that is over by then, if nothing is amiss.
    fn latest_expiry(&self, expires_at: Nanos) -> Nanos {
        match self.outage {
            Some((start, end)) if start <= expires_at => {
                expires_at.max(end + self.lease_duration + self.max_clock_skew)
            }
            _ => expires_at,
        }
    }

    fn is_last(&self, operation: &SpecOperation) -> bool {
        self.max_attempts
            .is_some_and(|attempts| attempts <= operation.counted_attempts)
    }

    /// How the holder of a token may be refused, and whether it need not be.
    fn check_lease(
        &self,
        operation: &SpecOperation,
        token: TokenId,
        call: &Call,
    ) -> (Option<CallResponse>, bool) {
        match operation.phase {
            SpecPhase::Done(_) => (Some(CallResponse::AlreadyDone), false),
            SpecPhase::Leased {
                token: Some(current),
                earliest,
                latest,
            } if current == token => {
                let may_be_over =
                    earliest + self.lease_duration - self.max_clock_skew <= call.returned_at;
                let may_be_held = call.invoked_at
                    <= self.latest_expiry(latest + self.lease_duration + self.max_clock_skew);
                (may_be_over.then_some(CallResponse::LeaseLost), may_be_held)
            }
            SpecPhase::Leased { .. } | SpecPhase::Pending => (Some(CallResponse::LeaseLost), false),
        }
    }
}

// === impl State ===

impl SpecState {
    /// The same at no time, and the time.
    pub(super) fn without_time(&self) -> (Self, Nanos) {
        let state = Self {
            min_time: 0,
            ..self.clone()
        };
        (state, self.min_time)
    }

    /// The most attempts that any of its operations has had.
    pub(super) fn max_attempt(&self) -> u32 {
        let attempts = self.operations.iter().map(|operation| operation.attempt);
        attempts.max().unwrap_or(0)
    }

    /// How many attempts the operation of a name has had, if it is there.
    pub(super) fn attempt_of(&self, name: NameId) -> Option<u32> {
        let mut operations = self.operations.iter();
        Some(
            operations
                .find(|operation| operation.name == Some(name))?
                .attempt,
        )
    }

    /// What a look at the operation of a name shows.
    pub(super) fn get_response(&self, name: NameId) -> CallResponse {
        let mut operations = self.operations.iter();
        let visible =
            operations.find(|operation| operation.name == Some(name) && !operation.is_deleted);
        visible.map_or(CallResponse::NotFound, |operation| {
            CallResponse::Snapshot(operation.snapshot())
        })
    }

    /// The operation of a name, and none if there is no such. An operation whose
    /// name nobody knows may be it.
    fn find_candidates(&self, name: NameId) -> Vec<(Self, Option<usize>)> {
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

    fn with_change(mut self, index: usize, change: impl FnOnce(&mut SpecOperation)) -> Self {
        change(&mut self.operations[index]);
        self.without_deleted_done()
    }

    /// What is deleted and done is forgotten.
    fn without_deleted_done(mut self) -> Self {
        self.operations.retain(|operation| {
            !operation.is_deleted || !matches!(operation.phase, SpecPhase::Done(_))
        });
        self
    }
}

// === impl Operation ===

impl SpecOperation {
    fn snapshot(&self) -> OperationSnapshot {
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

    fn cancel(&mut self) {
        match self.phase {
            SpecPhase::Pending => {
                self.is_cancel_requested = true;
                self.phase = SpecPhase::Done(TerminalOutcome::Cancelled);
            }
            SpecPhase::Leased { .. } => self.is_cancel_requested = true,
            SpecPhase::Done(_) => {}
        }
    }

    /// An attempt ended without a result: another one follows, unless this was the
    /// last, or somebody has cancelled it.
    fn requeue(&mut self, last_outcome: Option<TerminalOutcome>) {
        let cancelled = self
            .is_cancel_requested
            .then_some(TerminalOutcome::Cancelled);
        self.phase = cancelled
            .or(last_outcome)
            .map_or(SpecPhase::Pending, SpecPhase::Done);
    }
}
