//! Clients that make random calls about a few shared operations, each at a random server.

use std::{sync::Arc, time::Duration};

use longrunning::{
    Progress,
    proto::{
        google::longrunning::{CancelOperationRequest, DeleteOperationRequest},
        google::rpc::Code,
        longrunning::v1::{
            FinishOperationRequest, LeaseHeartbeat, directive::Kind,
            finish_operation_request::Outcome,
        },
    },
};
use tokio::time::{sleep, timeout};
use tonic::{Response, Status};

use super::{
    cluster::ReplicaProcess,
    events::{CallResponse, FinishRequest, HeartbeatDirective, Invocation, ReadMode},
    recorder::{HistoryKey, KEY_LABEL, ObservedLease, QUEUE, Recorder, snapshot},
};
use crate::support::{
    error_reason, get_request,
    harness::{
        failure, heartbeat_request, lease_request, lease_request_with_wait, release,
        retryable_failure,
    },
    persistent_server::RpcError,
    rng::TestRng,
    string_value,
};

/// Timeout of a call. Shorter than most faults.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(900);

/// Maps an error to a response; `Unknown` if the call may have taken effect.
fn error_response(status: Status) -> CallResponse {
    match RpcError::from(status) {
        RpcError::Rejected(_, reason) => match reason.as_str() {
            "OPERATION_NOT_FOUND" => CallResponse::NotFound,
            "OPERATION_EXISTS" => CallResponse::AlreadyExists,
            "LEASE_LOST" => CallResponse::LeaseLost,
            "OPERATION_ALREADY_DONE" => CallResponse::AlreadyDone,
            "STORE_UNAVAILABLE" => CallResponse::Unknown,
            other => panic!("unexpected rejection: {other}"),
        },
        RpcError::Unknown(_) => CallResponse::Unknown,
    }
}

/// Returns the message of a successful call, or else its response.
async fn call_response<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CallResponse> {
    match timeout(RESPONSE_TIMEOUT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(error_response(status)),
        Err(_) => Err(CallResponse::Unknown),
    }
}

/// A client that makes random calls.
pub(super) struct RandomClient {
    recorder: Arc<Recorder>,
    rng: TestRng,
    worker_id: String,
}

// === impl RandomClient ===

impl RandomClient {
    pub(super) fn new(recorder: &Arc<Recorder>, rng: TestRng, number: usize) -> Self {
        Self {
            recorder: recorder.clone(),
            rng,
            worker_id: format!("w{number}"),
        }
    }

    /// Makes calls until the recorder stops the clients.
    pub(super) async fn run(mut self) {
        let mut stop = self.recorder.is_stopped.subscribe();
        let mut unanswered = 0;
        while !*stop.borrow_and_update() {
            let processes = self.recorder.cluster.open_processes();
            let was_answered = match self.rng.choose(&processes) {
                Some(process) => self.call_random(process.clone()).await,
                None => false,
            };
            // Backs off without responses, as clients do. Many calls without a response
            // make a history expensive to check.
            unanswered = if was_answered {
                0
            } else {
                4.min(unanswered + 1)
            };
            let delay_ms = match unanswered {
                0 => 1..8,
                misses => 10 << misses..40 << misses,
            };
            sleep(Duration::from_millis(self.rng.random_range(delay_ms))).await;
        }
    }

    /// Makes a random call and returns `true` if it got a response. The other methods do too.
    async fn call_random(&mut self, mut process: ReplicaProcess) -> bool {
        let keys: Vec<HistoryKey> = HistoryKey::all().collect();
        let key = *self.rng.choose(&keys).unwrap();
        match self.rng.random_range(0..24) {
            0..3 => self.create(&mut process, key).await,
            3..7 => self.lease(&mut process).await,
            7..10 => self.heartbeat(&mut process).await,
            10..14 => self.finish(&mut process).await,
            choice => {
                let latest = self.recorder.record.lock().names_by_key.get(&key).cloned();
                let names = latest.unwrap_or_default();
                // Mostly the newest operation.
                let age = usize::from(self.rng.one_in(6));
                let Some(name) = names.iter().rev().nth(age).cloned() else {
                    return true;
                };
                match choice {
                    14 | 15 => self.cancel(&mut process, name).await,
                    16 | 17 => self.delete(&mut process, name).await,
                    _ => self.get(&mut process, &name).await,
                }
            }
        }
    }

    async fn create(&mut self, process: &mut ReplicaProcess, key: HistoryKey) -> bool {
        if key.has_client_id() {
            self.recorder
                .name_id(key, &format!("operations/{}", key.label()));
        }
        let pending = self.recorder.begin_call(process);
        let response =
            match call_response(process.worker_client.create_operation(key.create_request())).await
            {
                Ok(created) => {
                    let operation = created.operation.unwrap();
                    let name = self.recorder.name_id(key, &operation.name);
                    if created.already_existed {
                        let invocation = Invocation::Get(name, ReadMode::Linearizable);
                        let snapshot = CallResponse::Snapshot(snapshot(&operation));
                        self.recorder
                            .record_call(&pending, key, invocation, snapshot);
                    }
                    let already_existed = created.already_existed;
                    CallResponse::Created {
                        name,
                        already_existed,
                    }
                }
                Err(response) => response,
            };
        let is_answered = response != CallResponse::Unknown;
        self.recorder
            .record_call(&pending, key, Invocation::Create, response);
        is_answered
    }

    async fn lease(&mut self, process: &mut ReplicaProcess) -> bool {
        let max_leases = if self.rng.one_in(3) { 3 } else { 1 };
        let mut request = lease_request(&[QUEUE], &self.worker_id, max_leases);
        if self.rng.one_in(3) {
            request = lease_request_with_wait(&[QUEUE], &self.worker_id, 1);
            request.wait_timeout = Duration::from_millis(300).try_into().ok();
        }
        let pending = self.recorder.begin_call(process);
        let result = call_response(process.worker_client.lease_operations(request)).await;
        let is_answered = result.is_ok();
        let leases = result.map_or_else(|_| Vec::new(), |leased| leased.leases);
        let max_leases = usize::try_from(max_leases).unwrap();
        let is_slow = self.recorder.lease_duration - super::MAX_CLOCK_SKEW_NS
            <= self.recorder.cluster.now() - pending.invoked_at;
        // A response without all requested leases may hide some: a lease that could not be
        // stored, or that expired before the response, may still have been granted.
        if !is_answered || (leases.len() < max_leases && (max_leases != 1 || is_slow)) {
            for key in HistoryKey::all() {
                self.recorder
                    .record_call(&pending, key, Invocation::Lease, CallResponse::Unknown);
            }
        }
        for lease in leases {
            let key = HistoryKey::from_label(&lease.labels[KEY_LABEL]).unwrap();
            let name = self.recorder.name_id(key, &lease.name);
            assert!(
                !lease.cancel_requested,
                "expected no cancellation of a pending operation: {lease:?}"
            );
            let token = {
                let mut record = self.recorder.record.lock();
                record.last_token += 1;
                let token = record.last_token;
                record.leases.push(ObservedLease {
                    name: lease.name,
                    token,
                    lease_token: lease.lease_token,
                    unconfirmed_finish: None,
                });
                token
            };
            let attempt = lease.attempt.try_into().unwrap();
            let leased = CallResponse::Leased {
                name,
                token,
                attempt,
            };
            self.recorder
                .record_call(&pending, key, Invocation::Lease, leased);
        }
        is_answered
    }

    /// Returns one of the latest leases.
    fn choose_lease(&mut self) -> Option<ObservedLease> {
        let leases = self.recorder.record.lock().leases.clone();
        let recent = &leases[leases.len().saturating_sub(6)..];
        self.rng.choose(recent).cloned()
    }

    async fn heartbeat(&mut self, process: &mut ReplicaProcess) -> bool {
        let Some(lease) = self.choose_lease() else {
            return true;
        };
        let (key, name) = self.recorder.lookup_name(&lease.name);
        let units = (!self.rng.one_in(3)).then(|| self.unique_number());
        let report = LeaseHeartbeat {
            name: lease.name,
            lease_token: lease.lease_token,
            progress: units.map(|done_units| Progress {
                done_units,
                ..Progress::default()
            }),
            ..LeaseHeartbeat::default()
        };
        let pending = self.recorder.begin_call(process);
        let response = match call_response(
            process
                .worker_client
                .heartbeat(heartbeat_request(&self.worker_id, [report])),
        )
        .await
        {
            Ok(heartbeat) => {
                let directive = &heartbeat.directives[0];
                match directive.kind() {
                    Kind::Continue => CallResponse::Renewed(HeartbeatDirective::Continue),
                    Kind::CancelRequested => {
                        CallResponse::Renewed(HeartbeatDirective::CancelRequested)
                    }
                    Kind::OperationDeleted => CallResponse::Renewed(HeartbeatDirective::Deleted),
                    Kind::LeaseLost => {
                        match error_reason(directive.error.as_ref().unwrap()).as_str() {
                            "OPERATION_NOT_FOUND" => CallResponse::NotFound,
                            "OPERATION_ALREADY_DONE" => CallResponse::AlreadyDone,
                            "LEASE_LOST" => CallResponse::LeaseLost,
                            other => panic!("unexpected reason of a lost lease: {other}"),
                        }
                    }
                    other => panic!("unexpected directive: {other:?}"),
                }
            }
            Err(response) => response,
        };
        let is_answered = response != CallResponse::Unknown;
        let invocation = Invocation::Heartbeat(name, lease.token, units);
        self.recorder
            .record_call(&pending, key, invocation, response);
        is_answered
    }

    async fn finish(&mut self, process: &mut ReplicaProcess) -> bool {
        let Some(lease) = self.choose_lease() else {
            return true;
        };
        let (key, name) = self.recorder.lookup_name(&lease.name);
        let finish_request = match lease.unconfirmed_finish {
            Some(finish_request) if self.rng.one_in(2) => finish_request,
            _ => match self.rng.random_range(0..10) {
                0..5 => FinishRequest::Response(self.unique_number()),
                5 => FinishRequest::Failure(self.unique_number()),
                6 | 7 => FinishRequest::RetryableFailure(self.unique_number()),
                _ => FinishRequest::Release,
            },
        };
        let outcome = match finish_request {
            FinishRequest::Response(number) => Outcome::Response(string_value(&number.to_string())),
            FinishRequest::Failure(number) => failure(Code::Internal, &number.to_string()),
            FinishRequest::RetryableFailure(number) => {
                retryable_failure(Code::Internal, &number.to_string())
            }
            FinishRequest::Release => release(),
        };
        let request = FinishOperationRequest {
            name: lease.name,
            lease_token: lease.lease_token,
            outcome: Some(outcome),
            ..FinishOperationRequest::default()
        };
        let pending = self.recorder.begin_call(process);
        let response = match call_response(process.worker_client.finish_operation(request)).await {
            Ok(operation) => CallResponse::Snapshot(snapshot(&operation)),
            Err(response) => response,
        };
        let is_answered = response != CallResponse::Unknown;
        let keeps_lease = self.rng.one_in(3);
        let mut record = self.recorder.record.lock();
        if let Some(index) = record
            .leases
            .iter()
            .position(|held| held.token == lease.token)
        {
            if !is_answered {
                record.leases[index].unconfirmed_finish = Some(finish_request);
            } else if !keeps_lease {
                record.leases.remove(index);
            }
        }
        drop(record);
        let invocation = Invocation::Finish(name, lease.token, finish_request);
        self.recorder
            .record_call(&pending, key, invocation, response);
        is_answered
    }

    async fn cancel(&mut self, process: &mut ReplicaProcess, name: String) -> bool {
        let (key, number) = self.recorder.lookup_name(&name);
        let pending = self.recorder.begin_call(process);
        let call = process
            .client
            .cancel_operation(CancelOperationRequest { name });
        let response = call_response(call)
            .await
            .map_or_else(|response| response, |()| CallResponse::Ok);
        let is_answered = response != CallResponse::Unknown;
        self.recorder
            .record_call(&pending, key, Invocation::Cancel(number), response);
        is_answered
    }

    async fn delete(&mut self, process: &mut ReplicaProcess, name: String) -> bool {
        let (key, number) = self.recorder.lookup_name(&name);
        let pending = self.recorder.begin_call(process);
        let call = process
            .client
            .delete_operation(DeleteOperationRequest { name });
        let response = call_response(call)
            .await
            .map_or_else(|response| response, |()| CallResponse::Ok);
        let is_answered = response != CallResponse::Unknown;
        self.recorder
            .record_call(&pending, key, Invocation::Delete(number), response);
        is_answered
    }

    async fn get(&mut self, process: &mut ReplicaProcess, name: &str) -> bool {
        let (key, number) = self.recorder.lookup_name(name);
        let pending = self.recorder.begin_call(process);
        let response = match call_response(process.client.get_operation(get_request(name))).await {
            Ok(operation) => CallResponse::Snapshot(snapshot(&operation)),
            Err(response) => response,
        };
        // A read without a response constrains nothing.
        if response == CallResponse::Unknown {
            return false;
        }
        let invocation = Invocation::Get(number, self.recorder.read_mode);
        self.recorder
            .record_call(&pending, key, invocation, response);
        true
    }

    /// Returns a number not used by any other call.
    fn unique_number(&self) -> i64 {
        let mut record = self.recorder.record.lock();
        record.last_number += 1;
        record.last_number
    }
}
