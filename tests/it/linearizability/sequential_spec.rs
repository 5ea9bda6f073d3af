//! The sequential specification of one operation: which responses a call may get in a
//! state, and to which states it leads. Derived from docs/specification.md and
//! `worker.proto`, independently of the server's code.

use super::{
    events::{
        Call, CallResponse, FinishRequest, HeartbeatDirective, Invocation, Nanos, Outage, ReadMode,
        TerminalOutcome, TokenId,
    },
    spec_state::{SpecOperation, SpecPhase, SpecState},
};

/// The parameters of the specification.
#[derive(Clone, Copy, Debug)]
pub(super) struct SequentialSpec {
    /// Whether the operation has an id chosen by the client, instead of a request id and
    /// names chosen by the server.
    pub(super) has_client_id: bool,
    /// The limit of failed attempts, or `None` if it is never reached.
    pub(super) max_attempts: Option<u32>,
    /// The limit of lost workers, or `None` if it is never reached.
    pub(super) max_worker_losses: Option<u32>,
    pub(super) lease_duration: Nanos,
    /// Upper bound for the difference of two servers' clocks.
    pub(super) max_clock_skew: Nanos,
    /// A lease that expires during the outage gets its full duration afterwards.
    pub(super) outage: Option<Outage>,
}

// === impl SequentialSpec ===

impl SequentialSpec {
    /// Returns the successor states if `call` takes effect in `state` with its response; none
    /// if that is impossible.
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
            // Only a change advances the time. A stale read may take effect before its
            // invocation.
            if successor != state && !matches!(call.invocation, Invocation::Get(_, ReadMode::Local))
            {
                successor.min_time = successor.min_time.max(call.invoked_at);
            }
        }
        successors
    }

    /// Returns the successor states without a call until `latest`: a lease expires, or an
    /// unreceived lease is revoked because its request was abandoned. Of unconfirmed leases
    /// only each fifth in a row is a loss.
    pub(super) fn unprompted_steps(&self, state: &SpecState, latest: Nanos) -> Vec<SpecState> {
        let mut successors = Vec::new();
        for index in 0..state.operations.len() {
            let SpecPhase::Leased {
                token,
                is_confirmed,
                earliest,
                ..
            } = state.operations[index].phase
            else {
                continue;
            };
            let expires_at = earliest + self.lease_duration - self.max_clock_skew;
            // If lost workers are not counted, expiry and release of an unreceived lease are
            // equivalent.
            if expires_at <= latest && (token.is_some() || self.max_worker_losses.is_some()) {
                let mut next = state.clone();
                next.min_time = next.min_time.max(expires_at);
                let operation = &mut next.operations[index];
                let max_losses = self.max_worker_losses;
                operation.unconfirmed_leases += u32::from(!is_confirmed);
                let is_loss = is_confirmed || operation.unconfirmed_leases.is_multiple_of(5);
                operation.worker_losses += u32::from(is_loss && max_losses.is_some());
                let is_last = max_losses.is_some_and(|max| operation.worker_losses > max);
                operation.requeue(is_last.then_some(TerminalOutcome::WorkerLost));
                successors.push(next.without_deleted_done());
            }
            if token.is_none() {
                let mut next = state.clone();
                next.operations[index].requeue(None);
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
                failed_attempts: 0,
                worker_losses: 0,
                unconfirmed_leases: 0,
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
            // A client id has only name number 0.
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
            let token = match call.response {
                CallResponse::Leased { attempt, .. } if attempt != operation.attempt => continue,
                CallResponse::Leased { token, .. } => Some(token),
                _ => None,
            };
            let is_time_irrelevant = token.is_none() && self.max_worker_losses.is_none();
            operation.phase = SpecPhase::Leased {
                token,
                is_confirmed: self.max_worker_losses.is_none(),
                // The lease was granted after the changes before it were durable.
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

    /// Returns the successor states of a call that concerns an existing operation.
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
                    operation.unconfirmed_leases = 0;
                    operation.phase = SpecPhase::Leased {
                        token: Some(*token),
                        is_confirmed: true,
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
                let mut finished = operation;
                finished.unconfirmed_leases = 0;
                match request {
                    FinishRequest::Response(_) | FinishRequest::Failure(_) => {
                        finished.phase = request
                            .terminal_outcome()
                            .map_or(finished.phase, SpecPhase::Done);
                    }
                    FinishRequest::RetryableFailure(_) => {
                        finished.failed_attempts += u32::from(self.max_attempts.is_some());
                        let max_attempts = self.max_attempts;
                        let is_last =
                            max_attempts.is_some_and(|max| finished.failed_attempts >= max);
                        finished.requeue(request.terminal_outcome().filter(|_| is_last));
                    }
                    FinishRequest::Release => finished.requeue(None),
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

    /// Returns the latest expiry of a lease that expires at `expires_at` without an outage.
    fn latest_expiry(&self, expires_at: Nanos) -> Nanos {
        match self.outage {
            Some(outage) if outage.start <= expires_at => {
                expires_at.max(outage.end + self.lease_duration + self.max_clock_skew)
            }
            _ => expires_at,
        }
    }

    /// Returns the rejection that the holder of a token may get, and whether the call may
    /// succeed.
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
                ..
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
