//! Random clients of a server that is killed: each makes calls of its role until one
//! fails.

use std::sync::Arc;

use longrunning::{
    Progress,
    proto::{
        google::longrunning::operation,
        google::rpc,
        longrunning::v1::{
            CreateOperationRequest, CreateOperationResponse, Lease, LeaseHeartbeat,
            create_operation_request::{Execution, Queued, SelfExecuted},
            finish_operation_request::Outcome,
            operation_worker_client::OperationWorkerClient,
        },
    },
};
use prost::Message;
use prost_types::Any;
use tonic::{Code, transport::Channel};

use super::shared_state::{
    Checkpoints, CrashTestState, CreatedRequest, WorkerLease, input, priority,
};
use crate::support::{
    GrpcClient,
    expected_state::{Effect, KEY_LABEL, units_metadata},
    harness::{
        Kind, failure, finish_request, heartbeat_request, lease_heartbeat, lease_request,
        max_attempts, proto_seconds, release, retryable_failure,
    },
    persistent_server::{PersistentServer, RpcError},
    rng::TestRng,
    string_value,
};

/// The queue from which workers lease.
pub(super) const WORK_QUEUE: &str = "work";
/// The queue that is only leased after a restart, to check the order.
pub(super) const ORDER_QUEUE: &str = "order";

/// What a client does.
#[derive(Clone, Copy)]
pub(super) enum ClientRole {
    /// Creates and executes operations.
    Execute,
    /// Creates operations in [`WORK_QUEUE`].
    CreateWork,
    /// Leases operations and works on them.
    Work,
    /// Creates operations in [`ORDER_QUEUE`].
    CreateOrdered,
    CancelOrDelete,
    Read,
}

/// A client with its own connections.
pub(super) struct CrashTestClient {
    pub(super) number: usize,
    pub(super) state: Arc<CrashTestState>,
    pub(super) rng: TestRng,
    pub(super) client: GrpcClient,
    pub(super) worker_client: OperationWorkerClient<Channel>,
}

// === impl CrashTestClient ===

impl CrashTestClient {
    pub(super) fn new(
        number: usize,
        state: &Arc<CrashTestState>,
        rng: TestRng,
        server: &PersistentServer,
    ) -> Self {
        Self {
            number,
            state: state.clone(),
            rng,
            client: server.client(),
            worker_client: server.worker_client(),
        }
    }

    /// Makes calls until one fails because the server was killed or shut down.
    pub(super) async fn run(mut self, role: ClientRole) {
        loop {
            let result = match role {
                ClientRole::Execute => self.execute().await,
                ClientRole::CreateWork => self.create_queued(WORK_QUEUE).await,
                ClientRole::Work => self.lease_and_work().await,
                ClientRole::CreateOrdered => self.create_queued(ORDER_QUEUE).await,
                ClientRole::CancelOrDelete => self.cancel_or_delete().await,
                ClientRole::Read => self.read_any().await,
            };
            match result {
                Ok(()) => {}
                // Unavailable: the server is shutting down.
                Err(RpcError::Unknown(_) | RpcError::Rejected(Code::Unavailable, _)) => return,
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    /// Creates an operation and executes it, or continues with one.
    async fn execute(&mut self) -> Result<(), RpcError> {
        let lease = self.state.leases.lock().pop();
        let lease = match lease {
            Some(lease) if !self.rng.one_in(3) => lease,
            lease => {
                self.state.leases.lock().extend(lease);
                let key = self.state.new_key();
                let has_custom_metadata = self.rng.one_in(3);
                let execution = Execution::SelfExecuted(SelfExecuted {
                    worker_id: format!("w{}", self.number),
                });
                let mut request = self.build_request(&key, execution, has_custom_metadata);
                request.metadata = has_custom_metadata.then(|| units_metadata(0));
                let created_request = self.create_operation(request).await?;
                WorkerLease {
                    name: created_request.name,
                    lease_token: created_request
                        .lease_token
                        .expect("expected a lease for the creator"),
                    has_custom_metadata,
                    queue: String::new(),
                }
            }
        };
        self.work_on_lease(lease).await
    }

    /// Creates a queued operation.
    pub(super) async fn create_queued(&mut self, queue: &str) -> Result<(), RpcError> {
        let key = self.state.new_key();
        let queued = Queued {
            queue: queue.into(),
            input: input(&key),
            priority: priority(&key),
            not_before: None,
        };
        let mut request = self.build_request(&key, Execution::Queued(queued), false);
        request.retry_policy = max_attempts(1000);
        self.create_operation(request).await.map(drop)
    }

    fn build_request(
        &mut self,
        key: &str,
        execution: Execution,
        is_named: bool,
    ) -> CreateOperationRequest {
        let operation_id = (is_named || !self.rng.one_in(4)).then(|| key.to_owned());
        let parent = if self.rng.one_in(3) { "projects/p" } else { "" };
        let request_id = self.rng.one_in(2).then(|| format!("request of {key}"));
        CreateOperationRequest {
            parent: parent.into(),
            operation_id: operation_id.unwrap_or_default(),
            request_id: request_id.unwrap_or_default(),
            labels: [(KEY_LABEL.to_owned(), key.to_owned())].into(),
            execution: Some(execution),
            // Longer than a round takes on a slow machine.
            lease_duration: proto_seconds(3600),
            ..CreateOperationRequest::default()
        }
    }

    /// Creates an operation, and remembers the request if the call fails.
    async fn create_operation(
        &mut self,
        request: CreateOperationRequest,
    ) -> Result<CreatedRequest, RpcError> {
        let name = match (&*request.parent, &*request.operation_id) {
            (_, "") => None,
            ("", id) => Some(format!("operations/{id}")),
            (parent, id) => Some(format!("{parent}/operations/{id}")),
        };
        let created = match self.try_create(request.clone(), name.as_deref()).await {
            Ok(created) => created,
            Err(error) => {
                self.state.unanswered_creates.lock().push((request, name));
                return Err(error);
            }
        };
        assert!(!created.already_existed, "{request:?}");
        let created_name = created.operation.unwrap().name;
        let mut creation_order = self.state.creation_order.lock();
        creation_order
            .entry(self.number)
            .or_default()
            .push(created_name.clone());
        let created_request = CreatedRequest {
            request,
            name: created_name,
            lease_token: created.lease.map(|lease| lease.lease_token),
        };
        if !created_request.request.request_id.is_empty() {
            self.state
                .created_requests
                .lock()
                .push(created_request.clone());
        }
        Ok(created_request)
    }

    /// Makes a creation request, possibly a repeated one.
    pub(super) async fn try_create(
        &mut self,
        request: CreateOperationRequest,
        name: Option<&str>,
    ) -> Result<CreateOperationResponse, RpcError> {
        let before = self.state.known_state(name.unwrap_or_default());
        let key = request.labels[KEY_LABEL].clone();
        let response = self.worker_client.create_operation(request);
        let created = if let Some(name) = name {
            self.state.call(name, Effect::Create, response).await?
        } else {
            self.state.expected.lock().expect_key(&key);
            let created = response.await?.into_inner();
            self.state.count_response();
            created
        };
        let operation = created
            .operation
            .as_ref()
            .expect("expected an operation in the response");
        assert!(name.is_none_or(|name| name == operation.name));
        self.state.observe(&before, operation);
        Ok(created)
    }

    /// Leases operations and works on one.
    async fn lease_and_work(&mut self) -> Result<(), RpcError> {
        let max_leases = i32::try_from(self.rng.random_range(1..4)).unwrap();
        let request = lease_request(&[WORK_QUEUE], &format!("w{}", self.number), max_leases);
        let leases = match self.worker_client.lease_operations(request).await {
            Ok(response) => response.into_inner().leases,
            Err(status) => {
                let max_leases = usize::try_from(max_leases).unwrap();
                self.state.expected.lock().allow_lost_leases(max_leases);
                return Err(status.into());
            }
        };
        let new_leases: Vec<_> = leases
            .iter()
            .map(|lease| self.state.check_lease(lease))
            .collect();
        self.state.count_response();
        self.state.leases.lock().extend(new_leases);
        let lease = self.state.leases.lock().pop();
        match lease {
            Some(lease) => self.work_on_lease(lease).await,
            None => self.create_queued(WORK_QUEUE).await,
        }
    }

    /// Reports progress on an operation, then finishes it or keeps its lease.
    pub(super) async fn work_on_lease(&mut self, lease: WorkerLease) -> Result<(), RpcError> {
        for _ in 0..self.rng.random_range(0..4) {
            match self.report(&lease).await {
                Ok(Kind::CancelRequested) if self.rng.one_in(2) => {
                    return self
                        .finish(lease, failure(Code::Cancelled, "stopped"), None)
                        .await;
                }
                Ok(Kind::Continue | Kind::CancelRequested | Kind::OperationDeleted) => {}
                Ok(directive) => panic!("{directive:?} for {lease:?}"),
                Err(error) => {
                    self.state.leases.lock().push(lease);
                    return Err(error);
                }
            }
        }
        match self.rng.random_range(0..8) {
            0 => {
                self.state.leases.lock().push(lease);
                Ok(())
            }
            1 => {
                self.finish(lease, failure(Code::Internal, "broken"), None)
                    .await
            }
            2 if !lease.queue.is_empty() => {
                self.finish(lease, release(), Some(Effect::Requeue)).await
            }
            // Only here, because the retry delay would affect the order.
            3 if lease.queue == WORK_QUEUE => {
                let failure = retryable_failure(Code::Unavailable, "once more");
                self.finish(lease, failure, Some(Effect::Requeue)).await
            }
            choice => {
                let size = if choice == 4 { 5000 } else { 5 };
                let response = string_value(&lease.name.repeat(size / lease.name.len() + 1));
                self.finish(lease, Outcome::Response(response), None).await
            }
        }
    }

    /// Reports progress and sometimes a checkpoint, and returns the directive.
    async fn report(&mut self, lease: &WorkerLease) -> Result<Kind, RpcError> {
        let done_units = self.state.next_units();
        let checkpoint =
            (!lease.queue.is_empty() && self.rng.one_in(2)).then(|| checkpoint(lease, done_units));
        let report = LeaseHeartbeat {
            name: lease.name.clone(),
            lease_token: lease.lease_token.clone(),
            progress: (!lease.has_custom_metadata).then(|| Progress {
                done_units,
                ..Progress::default()
            }),
            metadata: lease
                .has_custom_metadata
                .then(|| units_metadata(done_units)),
            checkpoint: checkpoint.clone(),
            detail: None,
        };
        let update_checkpoints = |change: fn(&mut Checkpoints, Any)| {
            if let Some(checkpoint) = checkpoint.clone() {
                let mut checkpoints = self.state.checkpoints.lock();
                change(
                    checkpoints.entry(lease.name.clone()).or_default(),
                    checkpoint,
                );
            }
        };
        update_checkpoints(|checkpoints, checkpoint| checkpoints.unacknowledged.push(checkpoint));
        let mut worker = self.worker_client.clone();
        let response = worker.heartbeat(heartbeat_request(&format!("w{}", self.number), [report]));
        let effect = Effect::ReportUnits(done_units);
        let response = self.state.call(&lease.name, effect, response).await?;
        update_checkpoints(|checkpoints, checkpoint| {
            checkpoints.unacknowledged.clear();
            checkpoints.acknowledged = Some(checkpoint);
        });
        let directive = &response.directives[0];
        assert_eq!(directive.error, None, "{lease:?}");
        Ok(directive.kind())
    }

    /// Finishes an operation, and remembers the request if the call fails.
    async fn finish(
        &mut self,
        lease: WorkerLease,
        outcome: Outcome,
        effect: Option<Effect>,
    ) -> Result<(), RpcError> {
        let effect = effect.unwrap_or_else(|| Effect::Finish(operation_result(&outcome)));
        let proto_lease = Lease {
            name: lease.name.clone(),
            lease_token: lease.lease_token.clone(),
            ..Lease::default()
        };
        let request = finish_request(&proto_lease, outcome);
        let before = self.state.known_state(&lease.name);
        let mut worker = self.worker_client.clone();
        let response = worker.finish_operation(request.clone());
        match self.state.call(&lease.name, effect.clone(), response).await {
            Ok(operation) => {
                // A deleted operation is only visible in this response.
                if !self.state.known_state(&lease.name).is_deleted {
                    self.state.observe(&before, &operation);
                }
                Ok(())
            }
            Err(error) => {
                self.state
                    .unanswered_finishes
                    .lock()
                    .push((request, effect));
                Err(error)
            }
        }
    }

    /// Sends a heartbeat for a lease and returns the directive.
    pub(super) async fn heartbeat(&mut self, worker_lease: &WorkerLease) -> Kind {
        let lease = Lease {
            name: worker_lease.name.clone(),
            lease_token: worker_lease.lease_token.clone(),
            ..Lease::default()
        };
        let request = heartbeat_request("w", [lease_heartbeat(&lease)]);
        let response = self
            .worker_client
            .heartbeat(request)
            .await
            .unwrap()
            .into_inner();
        response.directives[0].kind()
    }
}

/// Returns the result of an operation that is finished with an outcome.
fn operation_result(outcome: &Outcome) -> operation::Result {
    match outcome {
        Outcome::Response(response) => operation::Result::Response(response.clone()),
        Outcome::Failure(failure) => operation::Result::Error(failure.error.clone().unwrap()),
        Outcome::Release(_) => operation::Result::Error(rpc::Status::default()),
    }
}

fn checkpoint(lease: &WorkerLease, units: i64) -> Any {
    let description = format!("{} at {units}", lease.name);
    Any {
        type_url: "type.googleapis.com/google.protobuf.StringValue".into(),
        value: description
            .repeat(usize::try_from(units % 3).unwrap() * 30 + 1)
            .encode_to_vec(),
    }
}
