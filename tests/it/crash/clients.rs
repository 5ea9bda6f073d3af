//! The clients of a server that is killed: each goes on until an answer is lost.
//! Those that only look at what others make are in `lookers`.

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

/// The queue that workers take from.
pub(super) const WORK_QUEUE: &str = "work";
/// The queue that nobody takes from before the server was killed.
pub(super) const ORDER_QUEUE: &str = "order";

/// One client, with connections of its own.
pub(super) struct CrashTestClient {
    pub(super) number: u64,
    pub(super) state: Arc<CrashTestState>,
    pub(super) rng: TestRng,
    pub(super) client: GrpcClient,
    pub(super) worker_client: OperationWorkerClient<Channel>,
}

// === impl Hand ===

impl CrashTestClient {
    pub(super) fn new(
        number: u64,
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

    /// Does what its number says until an answer is lost.
    pub(super) async fn run(mut self) {
        loop {
            let result = match self.number % 8 {
                0 | 1 => self.execute().await,
                2 => self.create_queued(WORK_QUEUE).await,
                3 | 4 => self.lease_and_work().await,
                5 => self.create_queued(ORDER_QUEUE).await,
                6 => self.cancel_or_delete().await,
                _ => self.read_any().await,
            };
            match result {
                Ok(()) => {}
                // A server that was asked to end.
                Err(RpcError::Unknown(_) | RpcError::Rejected(Code::Unavailable, _)) => return,
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    /// Creates an operation and executes it, or goes on with one.
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
                    lease_token: created_request.lease_token.expect("its creator holds it"),
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
            // Longer than a round takes on the slowest machine.
            lease_duration: proto_seconds(3600),
            ..CreateOperationRequest::default()
        }
    }

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
        let mut ages = self.state.creation_order.lock();
        ages.entry(self.number)
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

    /// Asks for an operation, maybe not for the first time.
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
        let operation = created.operation.as_ref().expect("it is in the answer");
        assert!(name.is_none_or(|name| name == operation.name));
        self.state.observe(&before, operation);
        Ok(created)
    }

    /// Takes operations from the queue and works on them.
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

    /// Goes on with an operation, to its end or not.
    pub(super) async fn work_on_lease(&mut self, lease: WorkerLease) -> Result<(), RpcError> {
        for _ in 0..self.rng.random_range(0..4) {
            match self.report(&lease).await {
                Ok(Kind::CancelRequested) if self.rng.one_in(2) => {
                    return self.finish(lease, failure(1, "stopped"), None).await;
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
            1 => self.finish(lease, failure(13, "broken"), None).await,
            2 if !lease.queue.is_empty() => {
                self.finish(lease, release(), Some(Effect::Requeue)).await
            }
            // There is a pause before the next attempt, which the order would show.
            3 if lease.queue == WORK_QUEUE => {
                let failure = retryable_failure(14, "once more");
                self.finish(lease, failure, Some(Effect::Requeue)).await
            }
            n => {
                let size = if n == 4 { 5000 } else { 5 };
                let response = string_value(&lease.name.repeat(size / lease.name.len() + 1));
                self.finish(lease, Outcome::Response(response), None).await
            }
        }
    }

    /// Tells how far it is, and what to do if it gets lost.
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
                // Of one that is deleted nobody else will hear.
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

    /// A sign of life for a lease that was held over a restart.
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

/// What an operation that ends like this shows.
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
