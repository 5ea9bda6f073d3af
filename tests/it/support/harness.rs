//! Calls the real gRPC services through their generated clients without a socket,
//! so that paused time stays exact; with builders for worker requests.

use longrunning::{
    Any, Builder, OperationWorkerServer, Operations, OperationsServer, OperationsService,
    WorkerService, operations_server,
    proto::{
        google::{
            longrunning::{
                CancelOperationRequest, DeleteOperationRequest, Operation,
                operations_client::OperationsClient,
            },
            rpc,
        },
        longrunning::v1::{
            CreateOperationRequest, CreateOperationResponse, Directive, FinishOperationRequest,
            HeartbeatRequest, HeartbeatResponse, Lease, LeaseHeartbeat, LeaseOperationsRequest,
            RetryPolicy, WatchDirectivesRequest,
            create_operation_request::{Execution, Queued, SelfExecuted},
            finish_operation_request::{Failure, Outcome, Release},
            operation_worker_client::OperationWorkerClient,
        },
    },
    worker_server,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tonic::{Status, Streaming};

use super::{get_request, random_balancer::RandomBalancer, start_replicas};

/// Operations with clients of their services. With replicas, each call goes to a random one.
#[derive(Clone)]
pub(crate) struct Harness {
    pub(crate) operations: Operations,
    pub(crate) worker: OperationWorkerClient<RandomBalancer<OperationWorkerServer<WorkerService>>>,
    pub(crate) client: OperationsClient<RandomBalancer<OperationsServer<OperationsService>>>,
}

// === impl Harness ===

impl Harness {
    pub(crate) async fn start() -> Self {
        Self::start_with(crate::support::operations_builder()).await
    }

    pub(crate) async fn start_with(builder: Builder) -> Self {
        let servers = start_replicas(builder).await;
        Self {
            worker: OperationWorkerClient::new(RandomBalancer::new(
                servers.iter().map(worker_server),
            )),
            client: OperationsClient::new(RandomBalancer::new(
                servers.iter().map(operations_server),
            )),
            operations: servers[0].clone(),
        }
    }

    pub(crate) async fn try_create(
        &self,
        request: CreateOperationRequest,
    ) -> Result<CreateOperationResponse, Status> {
        let mut worker = self.worker.clone();
        Ok(worker.create_operation(request).await?.into_inner())
    }

    /// Creates an operation in a queue and returns its name.
    pub(crate) async fn create_queued(&self, queue: &str) -> String {
        self.create_operation(queued_request(queue)).await
    }

    /// Creates an operation and returns its name.
    pub(crate) async fn create_operation(&self, request: CreateOperationRequest) -> String {
        let created = self.try_create(request).await.unwrap();
        created.operation.unwrap().name
    }

    /// Creates an operation that `worker` executes itself, and returns the lease.
    pub(crate) async fn create_self_executed(&self, worker: &str) -> Lease {
        let created = self.try_create(self_executed_request(worker)).await;
        created
            .unwrap()
            .lease
            .expect("expected a lease for the creator")
    }

    pub(crate) async fn try_lease(
        &self,
        request: LeaseOperationsRequest,
    ) -> Result<Vec<Lease>, Status> {
        let mut worker = self.worker.clone();
        Ok(worker.lease_operations(request).await?.into_inner().leases)
    }

    /// Leases the next operation of a queue; panics if none is ready.
    pub(crate) async fn lease_one(&self, queue: &str, worker: &str) -> Lease {
        let mut leases = self
            .try_lease(lease_request(&[queue], worker, 1))
            .await
            .unwrap();
        assert_eq!(leases.len(), 1, "expected a ready operation in {queue}");
        leases.remove(0)
    }

    pub(crate) async fn try_heartbeat(
        &self,
        request: HeartbeatRequest,
    ) -> Result<HeartbeatResponse, Status> {
        let mut worker = self.worker.clone();
        Ok(worker.heartbeat(request).await?.into_inner())
    }

    /// Sends a heartbeat for one lease without a report, and returns its directive.
    pub(crate) async fn heartbeat_one(&self, lease: &Lease) -> Directive {
        let response = self
            .try_heartbeat(heartbeat_request("w", [lease_heartbeat(lease)]))
            .await
            .unwrap();
        let [directive] =
            <[_; 1]>::try_from(response.directives).expect("expected exactly one directive");
        directive
    }

    pub(crate) async fn try_finish(
        &self,
        request: FinishOperationRequest,
    ) -> Result<Operation, Status> {
        let mut worker = self.worker.clone();
        Ok(worker.finish_operation(request).await?.into_inner())
    }

    pub(crate) async fn finish(&self, lease: &Lease, outcome: Outcome) -> Operation {
        self.try_finish(finish_request(lease, outcome))
            .await
            .unwrap()
    }

    /// Opens a stream of directives and waits for its initial message.
    pub(crate) async fn watch_directives(&self, worker: &str) -> Streaming<Directive> {
        let mut client = self.worker.clone();
        let request = WatchDirectivesRequest {
            worker_id: worker.into(),
        };
        let mut stream = client.watch_directives(request).await.unwrap().into_inner();
        let first_message = stream.message().await.unwrap().unwrap();
        assert_eq!(
            (first_message.kind(), first_message.name.as_str()),
            (Kind::Continue, "")
        );
        stream
    }

    pub(crate) async fn get(&self, name: &str) -> Operation {
        let mut client = self.client.clone();
        client
            .get_operation(get_request(name))
            .await
            .unwrap()
            .into_inner()
    }

    pub(crate) async fn cancel(&self, name: &str) {
        let (mut client, name) = (self.client.clone(), name.to_owned());
        let request = CancelOperationRequest { name };
        client.cancel_operation(request).await.unwrap();
    }

    pub(crate) async fn delete(&self, name: &str) {
        let (mut client, name) = (self.client.clone(), name.to_owned());
        let request = DeleteOperationRequest { name };
        client.delete_operation(request).await.unwrap();
    }

    /// Like [`queue_depth`].
    pub(crate) fn queue_depth(&self, queue: &str) -> Option<usize> {
        queue_depth(&self.operations, queue)
    }
}

pub(crate) use longrunning::proto::longrunning::v1::directive::Kind;

/// Returns the depth of a queue according to the metrics, or `None` if there is
/// no series, because the queue is empty and has no waiters.
pub(crate) fn queue_depth(operations: &Operations, queue: &str) -> Option<usize> {
    let (mut registry, mut text) = (Registry::default(), String::new());
    operations.metrics().register(&mut registry);
    encode(&mut text, &registry).unwrap();
    let series = format!("queue_depth{{queue=\"{queue}\"}} ");
    let line = text.lines().find_map(|line| line.split_once(&series));
    line.map(|(_, depth)| depth.parse().unwrap())
}

/// Builds a request that creates an operation in a queue.
pub(crate) fn queued_request(queue: &str) -> CreateOperationRequest {
    queued_request_with_input(queue, None)
}

pub(crate) fn queued_request_with_input(queue: &str, input: Option<Any>) -> CreateOperationRequest {
    let queued = Queued {
        queue: queue.into(),
        input,
        ..Queued::default()
    };
    CreateOperationRequest {
        execution: Some(Execution::Queued(queued)),
        ..CreateOperationRequest::default()
    }
}

pub(crate) fn queued_request_with_priority(queue: &str, priority: i32) -> CreateOperationRequest {
    let queued = Queued {
        queue: queue.into(),
        priority,
        ..Queued::default()
    };
    CreateOperationRequest {
        execution: Some(Execution::Queued(queued)),
        ..CreateOperationRequest::default()
    }
}

/// Builds a request that creates an operation executed by `worker` itself.
pub(crate) fn self_executed_request(worker: &str) -> CreateOperationRequest {
    let worker_id = worker.into();
    CreateOperationRequest {
        execution: Some(Execution::SelfExecuted(SelfExecuted { worker_id })),
        ..CreateOperationRequest::default()
    }
}

/// Builds a retry policy with delays of exactly 1 s, 2 s, 4 s ….
pub(crate) fn max_attempts(max_attempts: i32) -> Option<RetryPolicy> {
    Some(RetryPolicy {
        max_attempts,
        jitter: Some(0.0),
        ..RetryPolicy::default()
    })
}

/// Builds a lease request that does not wait.
pub(crate) fn lease_request(
    queues: &[&str],
    worker: &str,
    max_leases: i32,
) -> LeaseOperationsRequest {
    LeaseOperationsRequest {
        max_leases,
        ..lease_request_with_wait(queues, worker, 0)
    }
}

/// Builds a request for one lease that waits for up to `wait_secs` seconds.
pub(crate) fn lease_request_with_wait(
    queues: &[&str],
    worker: &str,
    wait_secs: i64,
) -> LeaseOperationsRequest {
    LeaseOperationsRequest {
        queues: queues.iter().map(|queue| (*queue).to_owned()).collect(),
        worker_id: worker.into(),
        max_leases: 1,
        wait_timeout: proto_seconds(wait_secs),
        confirm_within: None,
    }
}

/// Builds a heartbeat entry without a report.
pub(crate) fn lease_heartbeat(lease: &Lease) -> LeaseHeartbeat {
    LeaseHeartbeat {
        name: lease.name.clone(),
        lease_token: lease.lease_token.clone(),
        ..LeaseHeartbeat::default()
    }
}

pub(crate) fn heartbeat_request(
    worker: &str,
    reports: impl IntoIterator<Item = LeaseHeartbeat>,
) -> HeartbeatRequest {
    HeartbeatRequest {
        worker_id: worker.into(),
        reports: reports.into_iter().collect(),
        draining: false,
    }
}

pub(crate) fn finish_request(
    lease: &Lease,
    outcome: impl Into<Option<Outcome>>,
) -> FinishOperationRequest {
    FinishOperationRequest {
        name: lease.name.clone(),
        lease_token: lease.lease_token.clone(),
        outcome: outcome.into(),
        ..FinishOperationRequest::default()
    }
}

/// Builds a failure without retry.
pub(crate) fn failure(code: impl Into<i32>, message: &str) -> Outcome {
    Outcome::Failure(Failure {
        error: Some(rpc::Status {
            code: code.into(),
            message: message.into(),
            details: Vec::new(),
        }),
        ..Failure::default()
    })
}

/// Builds a failure that permits another attempt.
pub(crate) fn retryable_failure(code: impl Into<i32>, message: &str) -> Outcome {
    match failure(code, message) {
        Outcome::Failure(failure) => Outcome::Failure(Failure {
            retryable: true,
            ..failure
        }),
        other => other,
    }
}

pub(crate) fn release() -> Outcome {
    Outcome::Release(Release {})
}

#[expect(clippy::unnecessary_wraps, reason = "message fields are optional")]
pub(crate) fn proto_seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}
