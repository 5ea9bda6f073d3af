//! The reference model of the server: a map of operations with plain states. Derived from
//! docs/specification.md and `worker.proto`, independently of the server's code.

use std::collections::{BTreeMap, BTreeSet};

use longrunning::proto::{google::rpc::Code, longrunning::v1::directive::Kind};

use super::{
    operation::{DEFAULT_LEASE_MS, ModelOperation, ReferencePhase, server_error},
    responses::{
        ErrorReason, ModelDirective, ModelLease, ModelOutcome, ModelResponse, ModelSnapshot,
        PresentedToken,
    },
    steps::{ModelFinish, ModelReport, ModelSpec},
};

/// The model of one server.
#[derive(Clone, Debug)]
pub(super) struct ReferenceModel {
    /// The wall-clock time at the start, in nanoseconds.
    pub(super) start_wall_ns: i64,
    /// Milliseconds since the start.
    pub(super) now: i64,
    /// By number, in order of creation.
    pub(super) operations: BTreeMap<u64, ModelOperation>,
    next_number: u64,
    /// Number of leases granted so far, which is the id of the next one.
    pub(super) lease_count: usize,
    /// The operation of each parent and request id.
    requests: BTreeMap<(String, u8), u64>,
}

// === impl ReferenceModel ===

impl ReferenceModel {
    pub(super) fn new(start_wall_ns: i64) -> Self {
        Self {
            start_wall_ns,
            now: 0,
            operations: BTreeMap::new(),
            next_number: 0,
            lease_count: 0,
            requests: BTreeMap::new(),
        }
    }

    /// Returns the number of an operation by name, deleted ones included.
    pub(super) fn find(&self, name: &str) -> Option<u64> {
        let mut matching =
            (self.operations.iter()).filter(|(_, operation)| operation.spec.name() == name);
        matching.next().map(|(number, _)| *number)
    }

    fn find_visible(&self, name: &str) -> Result<u64, ErrorReason> {
        self.find(name)
            .filter(|number| !self.operations[number].is_deleted)
            .ok_or("OPERATION_NOT_FOUND")
    }

    /// Returns the response of Get, and of Wait with timeout 0.
    pub(super) fn get(&self, name: &str) -> Result<ModelResponse, ErrorReason> {
        let number = self.find_visible(name)?;
        Ok(ModelResponse::Operation(
            self.operations[&number].snapshot(),
        ))
    }

    /// Returns the list of a collection, newest first.
    pub(super) fn list(&self, parent: &str) -> Vec<ModelSnapshot> {
        let newest = self.operations.values().rev();
        let listed =
            newest.filter(|operation| !operation.is_deleted && operation.spec.parent == parent);
        listed.map(ModelOperation::snapshot).collect()
    }

    pub(super) fn create(&mut self, spec: &ModelSpec) -> Result<ModelResponse, ErrorReason> {
        let key = spec.request_id.map(|id| (spec.parent.to_owned(), id));
        if let Some(number) = key.as_ref().and_then(|key| self.requests.get(key)) {
            let first = &self.operations[number];
            if !first.spec.is_same_request(spec) {
                return Err("REQUEST_ID_REUSED");
            }
            let has_live_lease = |phase: &ReferencePhase| matches!(phase, ReferencePhase::Running { expires_at, .. } if self.now < *expires_at);
            // Only the worker that created it gets the lease again.
            let is_creator = spec.queue.is_none() && spec.worker == first.spec.worker;
            let has_lease = is_creator && has_live_lease(&first.phase);
            return Ok(ModelResponse::Created {
                operation: first.snapshot(),
                lease: has_lease.then(|| first.lease(self.now)),
                already_existed: true,
            });
        }
        if self.find(&spec.name()).is_some() {
            return Err("OPERATION_EXISTS");
        }
        let number = self.next_number;
        self.next_number += 1;
        if let Some(key) = key {
            self.requests.insert(key, number);
        }
        let ready_at = spec.not_before.unwrap_or(self.now).max(self.now);
        let mut operation = ModelOperation {
            spec: spec.clone(),
            create_time: self.now,
            start_time: None,
            update_time: self.now,
            attempt: 0,
            failed_attempts: 0,
            worker_losses: 0,
            unconfirmed_leases: 0,
            cancel_requested: false,
            cancelled_by: None,
            is_deleted: false,
            phase: ReferencePhase::Pending { ready_at },
            is_offered: ready_at <= self.now,
            report: ModelReport {
                metadata: spec.metadata,
                ..ModelReport::default()
            },
            check_times: BTreeSet::new(),
        };
        if spec.queue.is_none() {
            operation.grant_lease(self.lease_count, None, self.now);
            operation.confirm_lease(false, self.now);
            self.lease_count += 1;
        }
        let response = ModelResponse::Created {
            operation: operation.snapshot(),
            lease: spec.queue.is_none().then(|| operation.lease(self.now)),
            already_existed: false,
        };
        self.operations.insert(number, operation);
        self.schedule_if_changed(number, None);
        Ok(response)
    }

    pub(super) fn lease(
        &mut self,
        queues: &[&str],
        max_leases: usize,
        confirm_within: Option<i64>,
    ) -> Vec<ModelLease> {
        let mut leased = Vec::new();
        // Operations past their total timeout are completed instead of leased.
        while leased.is_empty() {
            let mut ready: Vec<_> = (self.operations.iter())
                .filter(|(_, operation)| operation.is_offered && operation.spec.is_in(queues))
                .map(|(number, operation)| (-operation.spec.priority, *number))
                .collect();
            ready.sort_unstable();
            if ready.is_empty() {
                break;
            }
            for (_, number) in ready.into_iter().take(max_leases.max(1)) {
                let (lease_id, now) = (self.lease_count, self.now);
                let lease = self.change(number, |operation| {
                    if operation.is_past_total_timeout(now) {
                        operation
                            .complete(server_error(Code::DeadlineExceeded, "TOTAL_TIMEOUT"), now);
                        return None;
                    }
                    operation.grant_lease(lease_id, confirm_within, now);
                    Some(operation.lease(now))
                });
                self.lease_count += usize::from(lease.is_some());
                leased.extend(lease);
            }
        }
        leased
    }

    /// Returns the number of the operation if the token is that of its valid lease.
    fn check_lease(&self, name: &str, token: PresentedToken) -> Result<u64, ErrorReason> {
        match token {
            PresentedToken::Empty => return Err("INVALID_LEASE_TOKEN"),
            PresentedToken::Malformed => return Err("LEASE_LOST"),
            PresentedToken::Lease(_) | PresentedToken::Unknown => {}
        }
        let number = self.find(name).ok_or("OPERATION_NOT_FOUND")?;
        match (&self.operations[&number].phase, token) {
            (ReferencePhase::Done(_), _) => Err("OPERATION_ALREADY_DONE"),
            (
                ReferencePhase::Running {
                    lease_id,
                    expires_at,
                    confirm_by,
                    ..
                },
                PresentedToken::Lease(token_lease),
            ) if *lease_id == token_lease && self.now < confirm_by.unwrap_or(*expires_at) => {
                Ok(number)
            }
            _ => Err("LEASE_LOST"),
        }
    }

    /// Applies one report of a heartbeat. Returns its directive and the lease duration.
    pub(super) fn heartbeat(
        &mut self,
        name: &str,
        token: PresentedToken,
        report: &ModelReport,
    ) -> (ModelDirective, Option<i64>) {
        let number = match self.check_lease(name, token) {
            Ok(number) => number,
            Err(reason) => {
                let lost = ModelDirective {
                    kind: Kind::LeaseLost,
                    remaining_ms: None,
                    grace_remaining_ms: None,
                    error: Some(reason),
                };
                return (lost, None);
            }
        };
        let now = self.now;
        self.change(number, |operation| {
            operation.confirm_lease(false, now);
            // A report without a difference is not an update.
            let before = operation.report.clone();
            operation.report.update(report);
            if operation.report != before {
                operation.update_time = now;
            }
            let lease_duration = operation.spec.lease_duration.unwrap_or(DEFAULT_LEASE_MS);
            let mut grace_remaining = None;
            if let ReferencePhase::Running {
                expires_at,
                cancel_deadline,
                ..
            } = &mut operation.phase
            {
                *expires_at = now + lease_duration;
                grace_remaining = cancel_deadline.map(|deadline| (deadline - now).max(0));
            }
            let kind = match (operation.cancel_requested, operation.is_deleted) {
                (true, _) => Kind::CancelRequested,
                (false, true) => Kind::OperationDeleted,
                (false, false) => Kind::Continue,
            };
            let directive = ModelDirective {
                kind,
                remaining_ms: Some(lease_duration),
                grace_remaining_ms: grace_remaining,
                error: None,
            };
            (directive, Some(lease_duration))
        })
    }

    pub(super) fn finish(
        &mut self,
        name: &str,
        token: PresentedToken,
        finish: ModelFinish,
        metadata: Option<u8>,
    ) -> Result<ModelResponse, ErrorReason> {
        let number = match self.check_lease(name, token) {
            // Repeating the recorded outcome is idempotent for any token.
            Err("OPERATION_ALREADY_DONE")
                if let Some(response) = self.completed_with(name, finish) =>
            {
                return Ok(response);
            }
            result => result?,
        };
        let now = self.now;
        let snapshot = self.change(number, |operation| {
            operation.confirm_lease(true, now);
            operation.report.metadata = metadata.or(operation.report.metadata);
            match finish {
                ModelFinish::Release
                | ModelFinish::Failure {
                    retryable: true, ..
                } if operation.cancel_requested => {
                    operation.cancelled_by = Some(finish);
                    operation.complete(server_error(Code::Cancelled, "OPERATION_CANCELLED"), now);
                }
                ModelFinish::Response(text) => {
                    // All units of the work are done.
                    operation.report.progress = operation.report.progress.map(|_| 100);
                    operation.complete(ModelOutcome::Response(text), now);
                }
                ModelFinish::Failure {
                    code,
                    message,
                    retryable: false,
                    ..
                } => operation.complete(ModelOutcome::WorkerError { code, message }, now),
                ModelFinish::Failure {
                    code,
                    message,
                    retry_after,
                    ..
                } => operation.fail(
                    ModelOutcome::WorkerError { code, message },
                    retry_after,
                    now,
                ),
                ModelFinish::Release if operation.spec.queue.is_none() => {
                    operation.complete(server_error(Code::Unavailable, "WORKER_LOST"), now);
                }
                ModelFinish::Release => operation.requeue(now, now),
            }
            operation.snapshot()
        });
        Ok(ModelResponse::Operation(snapshot))
    }

    fn completed_with(&self, name: &str, finish: ModelFinish) -> Option<ModelResponse> {
        let operation = &self.operations[&self.find(name)?];
        // The error of a cancelled operation has the failure that ended its attempt.
        let is_same_failure = |earlier: ModelFinish| {
            matches!(
                (earlier, finish),
                (
                    ModelFinish::Failure { code, message, .. },
                    ModelFinish::Failure { code: again, message: same, retryable: true, .. },
                ) if (code, message) == (again, same)
            )
        };
        if operation.cancelled_by.is_some_and(is_same_failure) {
            return Some(ModelResponse::Operation(operation.snapshot()));
        }
        let outcome = match finish {
            ModelFinish::Response(text) => ModelOutcome::Response(text),
            ModelFinish::Failure { code, message, .. } => {
                ModelOutcome::WorkerError { code, message }
            }
            ModelFinish::Release => return None,
        };
        (operation.phase == ReferencePhase::Done(outcome))
            .then(|| ModelResponse::Operation(operation.snapshot()))
    }

    pub(super) fn cancel(&mut self, name: &str) -> Result<ModelResponse, ErrorReason> {
        let (number, now) = (self.find_visible(name)?, self.now);
        self.change(number, |operation| {
            let grace = operation.spec.cancel_grace_period;
            match &mut operation.phase {
                ReferencePhase::Pending { .. } => {
                    operation.cancel_requested = true;
                    operation.complete(server_error(Code::Cancelled, "OPERATION_CANCELLED"), now);
                }
                ReferencePhase::Running {
                    cancel_deadline, ..
                } if !operation.cancel_requested => {
                    *cancel_deadline = grace.map(|grace| now + grace);
                    (operation.cancel_requested, operation.update_time) = (true, now);
                }
                ReferencePhase::Running { .. } | ReferencePhase::Done(_) => {}
            }
        });
        Ok(ModelResponse::Empty)
    }

    pub(super) fn delete(&mut self, name: &str) -> Result<ModelResponse, ErrorReason> {
        let (number, now) = (self.find_visible(name)?, self.now);
        self.change(number, |operation| {
            (operation.is_deleted, operation.update_time) = (true, now);
        });
        Ok(ModelResponse::Empty)
    }

    /// Changes an operation and updates request ids and timers.
    pub(super) fn change<T>(
        &mut self,
        number: u64,
        mutate: impl FnOnce(&mut ModelOperation) -> T,
    ) -> T {
        let operation = self
            .operations
            .get_mut(&number)
            .expect("expected the operation to exist");
        let previous = operation.clone();
        let result = mutate(operation);
        if operation.is_deleted {
            self.requests.retain(|_, created| *created != number);
        }
        if operation.is_deleted && matches!(operation.phase, ReferencePhase::Done(_)) {
            self.operations.remove(&number);
        } else {
            self.schedule_if_changed(number, Some(&previous));
        }
        result
    }

    pub(super) fn remove(&mut self, number: u64) {
        self.operations.remove(&number);
        self.requests.retain(|_, created| *created != number);
    }
}
