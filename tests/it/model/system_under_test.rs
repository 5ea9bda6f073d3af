//! The system under test: calls the real service through its generated clients and
//! normalizes the responses.

use std::{cell::RefCell, collections::HashMap};

use longrunning::{
    Progress,
    proto::{
        google::{
            longrunning::{
                CancelOperationRequest, DeleteOperationRequest, ListOperationsRequest, Operation,
                WaitOperationRequest, operation,
            },
            rpc::{self, Code},
        },
        longrunning::v1::{
            CreateOperationRequest, Directive, FinishOperationRequest, Lease, LeaseHeartbeat,
            LeaseOperationsRequest, OperationMetadata, RetryPolicy,
            create_operation_request::{Execution, Queued, SelfExecuted},
            finish_operation_request::{Failure, Outcome, Release},
        },
    },
};
use prost::{Message, Name};
use tonic::Status;

use super::{
    responses::{
        ErrorReason, ModelDirective, ModelLease, ModelMetadata, ModelOutcome, ModelResponse,
        ModelSnapshot, PresentedToken,
    },
    steps::{ModelFinish, ModelReport, ModelSpec},
    timer_granularity::NANOS_PER_MILLI,
};
use crate::support::{
    custom_metadata,
    error_details::ErrorDetails,
    get_request,
    harness::{Harness, heartbeat_request, lease_request},
    string_value,
};

/// The service with its clients.
pub(super) struct SystemUnderTest {
    harness: Harness,
    pub(super) start_wall_ns: i64,
    /// The token of each lease, by lease number.
    tokens: RefCell<Vec<Vec<u8>>>,
}

/// One entry of a Heartbeat request.
#[derive(Clone, Debug)]
pub(super) struct HeartbeatEntry {
    pub(super) name: String,
    pub(super) token: PresentedToken,
    pub(super) report: ModelReport,
}

/// A FinishOperation request.
#[derive(Clone, Debug)]
pub(super) struct FinishCall {
    pub(super) name: String,
    pub(super) token: PresentedToken,
    pub(super) finish: ModelFinish,
    pub(super) metadata: Option<u8>,
}

// === impl SystemUnderTest ===

impl SystemUnderTest {
    pub(super) async fn start() -> Self {
        let harness = Harness::start().await;
        let start_wall_ns = harness.operations.clock().now().nanos();
        Self {
            harness,
            start_wall_ns,
            tokens: RefCell::default(),
        }
    }

    pub(super) async fn create(&self, spec: &ModelSpec) -> ModelResponse {
        match self.harness.try_create(self.create_request(spec)).await {
            Ok(created) => ModelResponse::Created {
                operation: self.snapshot(&created.operation.unwrap()),
                lease: created.lease.map(|lease| self.model_lease(lease)),
                already_existed: created.already_existed,
            },
            Err(status) => rejected(&status),
        }
    }

    pub(super) async fn lease(
        &self,
        queues: &[&str],
        max_leases: i32,
        confirm_within: Option<i64>,
    ) -> ModelResponse {
        let request = LeaseOperationsRequest {
            confirm_within: confirm_within.map(duration),
            ..lease_request(queues, "w", max_leases)
        };
        match self.harness.try_lease(request).await {
            Ok(leases) => ModelResponse::Leases(
                leases
                    .into_iter()
                    .map(|lease| self.model_lease(lease))
                    .collect(),
            ),
            Err(status) => rejected(&status),
        }
    }

    pub(super) async fn heartbeat(&self, entries: &[HeartbeatEntry]) -> ModelResponse {
        let heartbeats = entries.iter().map(|entry| LeaseHeartbeat {
            name: entry.name.clone(),
            lease_token: self.token(entry.token),
            progress: entry.report.progress.map(progress),
            metadata: entry.report.metadata.map(custom_metadata),
            checkpoint: entry.report.checkpoint.map(custom_metadata),
            detail: entry.report.detail.map(custom_metadata),
        });
        let response = self
            .harness
            .try_heartbeat(heartbeat_request("w", heartbeats))
            .await
            .unwrap();
        let count = response.directives.len();
        assert_eq!(count, entries.len(), "expected one directive per report");
        let directives = entries.iter().zip(&response.directives);
        ModelResponse::Directives {
            directives: directives
                .map(|(entry, directive)| self.directive(entry, directive))
                .collect(),
            heartbeat_interval_ns: nanos(response.heartbeat_interval.unwrap()),
        }
    }

    pub(super) async fn finish(&self, finish: &FinishCall) -> ModelResponse {
        let outcome = match finish.finish {
            ModelFinish::Response(n) => Outcome::Response(string_value(&n.to_string())),
            ModelFinish::Failure {
                code,
                message,
                retryable,
                retry_after,
            } => Outcome::Failure(Failure {
                error: Some(rpc::Status {
                    code: code.into(),
                    message: message.to_string(),
                    details: Vec::new(),
                }),
                retryable,
                retry_after: retry_after.map(duration),
            }),
            ModelFinish::Release => Outcome::Release(Release {}),
        };
        let request = FinishOperationRequest {
            name: finish.name.clone(),
            lease_token: self.token(finish.token),
            outcome: Some(outcome),
            metadata: finish.metadata.map(custom_metadata),
            progress: None,
        };
        self.operation(self.harness.try_finish(request).await)
    }

    pub(super) async fn cancel(&self, name: &str) -> ModelResponse {
        let mut client = self.harness.client.clone();
        let name = name.to_owned();
        let request = CancelOperationRequest { name };
        empty_response(client.cancel_operation(request).await.map(drop))
    }

    pub(super) async fn delete(&self, name: &str) -> ModelResponse {
        let name = name.to_owned();
        let mut client = self.harness.client.clone();
        let request = DeleteOperationRequest { name };
        empty_response(client.delete_operation(request).await.map(drop))
    }

    pub(super) async fn wait(&self, name: &str) -> ModelResponse {
        let request = WaitOperationRequest {
            name: name.to_owned(),
            timeout: Some(duration(0)),
        };
        let mut client = self.harness.client.clone();
        let result = client.wait_operation(request).await;
        self.operation(result.map(tonic::Response::into_inner))
    }

    pub(super) async fn get(&self, name: &str) -> ModelResponse {
        let mut client = self.harness.client.clone();
        let result = client.get_operation(get_request(name)).await;
        self.operation(result.map(tonic::Response::into_inner))
    }

    pub(super) async fn list(&self, parent: &str) -> Vec<ModelSnapshot> {
        let slash = if parent.is_empty() { "" } else { "/" };
        let request = ListOperationsRequest {
            name: format!("{parent}{slash}operations"),
            page_size: 1000,
            ..ListOperationsRequest::default()
        };
        let mut client = self.harness.client.clone();
        let page = client.list_operations(request).await.unwrap().into_inner();
        assert_eq!(page.next_page_token, "", "expected one page");
        page.operations
            .iter()
            .map(|operation| self.snapshot(operation))
            .collect()
    }

    fn operation(&self, result: Result<Operation, Status>) -> ModelResponse {
        match result {
            Ok(operation) => ModelResponse::Operation(self.snapshot(&operation)),
            Err(status) => rejected(&status),
        }
    }

    fn create_request(&self, spec: &ModelSpec) -> CreateOperationRequest {
        let execution = match spec.queue {
            Some(queue) => Execution::Queued(Queued {
                queue: queue.to_owned(),
                input: Some(string_value(&spec.id())),
                priority: spec.priority,
                not_before: spec.not_before.map(|millis| self.wall_time(millis)),
            }),
            None => Execution::SelfExecuted(SelfExecuted {
                worker_id: spec.worker.to_owned(),
            }),
        };
        let backoff = &spec.backoff;
        let policy = RetryPolicy {
            max_attempts: i32::try_from(spec.max_attempts).unwrap(),
            initial_backoff: Some(duration(backoff.initial)),
            max_backoff: Some(duration(backoff.max)),
            multiplier: Some(f64::from(i32::try_from(backoff.multiplier).unwrap())),
            jitter: Some(0.0),
            max_worker_losses: Some(i32::try_from(spec.max_worker_losses).unwrap()),
        };
        let altered = spec
            .is_altered
            .then(|| ("altered".to_owned(), String::new()));
        CreateOperationRequest {
            parent: spec.parent.to_owned(),
            operation_id: spec.id(),
            request_id: spec
                .request_id
                .map_or_else(String::new, |n| format!("r{n}")),
            metadata: spec.metadata.map(custom_metadata),
            labels: HashMap::from_iter(altered),
            execution: Some(execution),
            total_timeout: spec.total_timeout.map(duration),
            attempt_timeout: spec.attempt_timeout.map(duration),
            lease_duration: spec.lease_duration.map(duration),
            retry_policy: spec.queue.map(|_| policy),
            retention: Some(duration(spec.retention)),
            cancel_grace_period: spec.cancel_grace_period.map(duration),
            ..CreateOperationRequest::default()
        }
    }

    fn token(&self, token: PresentedToken) -> Vec<u8> {
        match token {
            PresentedToken::Lease(lease_id) => self.tokens.borrow()[lease_id].clone(),
            PresentedToken::Unknown => vec![7; 16],
            PresentedToken::Malformed => vec![7; 3],
            PresentedToken::Empty => Vec::new(),
        }
    }

    /// Returns the number of a lease, and registers a new token.
    fn lease_id(&self, token: Vec<u8>) -> usize {
        let mut tokens = self.tokens.borrow_mut();
        let index = tokens.iter().position(|seen| *seen == token);
        index.unwrap_or_else(|| {
            tokens.push(token);
            tokens.len() - 1
        })
    }

    fn model_lease(&self, proto_lease: Lease) -> ModelLease {
        let id = proto_lease.name.rsplit('/').next().unwrap();
        let input = (!proto_lease.queue.is_empty()).then(|| string_value(id));
        assert_eq!(
            proto_lease.input, input,
            "expected the input of the creation"
        );
        ModelLease {
            lease_id: self.lease_id(proto_lease.lease_token),
            attempt: proto_lease.attempt,
            remaining_ms: millis(proto_lease.lease_remaining.unwrap()),
            attempt_remaining_ms: proto_lease.attempt_remaining.map(millis),
            checkpoint: proto_lease.checkpoint.as_ref().map(custom_metadata_value),
            cancel_requested: proto_lease.cancel_requested,
            queue: proto_lease.queue,
            cancel_grace_ms: proto_lease.cancel_grace_period.map(millis),
            name: proto_lease.name,
        }
    }

    fn directive(&self, entry: &HeartbeatEntry, directive: &Directive) -> ModelDirective {
        assert_eq!(directive.name, entry.name);
        assert_eq!(directive.lease_token, self.token(entry.token));
        let error = directive.error.as_ref().map(|error| {
            let (code, details) = (error.code.into(), error.encode_to_vec().into());
            let status = Status::with_details(code, &error.message, details);
            known_reason(&ErrorDetails::from_status(&status).reason)
        });
        ModelDirective {
            kind: directive.kind(),
            remaining_ms: directive.lease_remaining.map(millis),
            grace_remaining_ms: directive.cancel_grace_remaining.map(millis),
            error,
        }
    }

    fn snapshot(&self, operation: &Operation) -> ModelSnapshot {
        let outcome = operation.result.as_ref().map(|result| match result {
            operation::Result::Response(any) => {
                let value = String::decode(any.value.as_slice()).unwrap();
                ModelOutcome::Response(value.parse().unwrap())
            }
            operation::Result::Error(error) if error.details.is_empty() => {
                ModelOutcome::WorkerError {
                    code: Code::try_from(error.code).unwrap(),
                    message: error.message.parse().unwrap(),
                }
            }
            operation::Result::Error(error) => ModelOutcome::ServerError {
                code: Code::try_from(error.code).unwrap(),
                reason: known_reason(&crate::support::error_reason(error)),
            },
        });
        assert_eq!(
            operation.done,
            outcome.is_some(),
            "expected a result if and only if the operation is done"
        );
        let metadata = operation.metadata.as_ref().expect("expected metadata");
        ModelSnapshot {
            name: operation.name.clone(),
            metadata: if metadata.type_url == OperationMetadata::type_url() {
                self.standard_metadata(
                    &OperationMetadata::decode(metadata.value.as_slice()).unwrap(),
                )
            } else {
                ModelMetadata::Custom(custom_metadata_value(metadata))
            },
            outcome,
        }
    }

    fn standard_metadata(&self, metadata: &OperationMetadata) -> ModelMetadata {
        let model_time = |time: &prost_types::Timestamp| {
            let nanos = time.seconds * 1_000_000_000 + i64::from(time.nanos) - self.start_wall_ns;
            assert_eq!(nanos % NANOS_PER_MILLI, 0, "expected full milliseconds");
            nanos / NANOS_PER_MILLI
        };
        let done_units = |progress: &Progress| u8::try_from(progress.done_units).unwrap();
        ModelMetadata::Standard {
            state: metadata.state(),
            create_time: model_time(metadata.create_time.as_ref().unwrap()),
            start_time: metadata.start_time.as_ref().map(model_time),
            update_time: model_time(metadata.update_time.as_ref().unwrap()),
            end_time: metadata.end_time.as_ref().map(model_time),
            progress: metadata.progress.as_ref().map(done_units),
            detail: metadata.detail.as_ref().map(custom_metadata_value),
            attempt: metadata.attempt,
            cancel_requested: metadata.cancel_requested,
            queue: metadata.queue.clone(),
        }
    }

    fn wall_time(&self, millis: i64) -> prost_types::Timestamp {
        let nanos = self.start_wall_ns + millis * NANOS_PER_MILLI;
        prost_types::Timestamp {
            seconds: nanos.div_euclid(1_000_000_000),
            nanos: i32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap(),
        }
    }
}

fn rejected(status: &Status) -> ModelResponse {
    let details = ErrorDetails::from_status(status);
    assert_eq!(details.code, expected_code(&details.reason), "{details:?}");
    ModelResponse::Rejected(known_reason(&details.reason))
}

/// Returns the code of each reason (docs/specification.md).
fn expected_code(reason: &str) -> tonic::Code {
    match reason {
        "OPERATION_NOT_FOUND" => tonic::Code::NotFound,
        "OPERATION_EXISTS" | "REQUEST_ID_REUSED" => tonic::Code::AlreadyExists,
        "INVALID_LEASE_TOKEN" => tonic::Code::InvalidArgument,
        _ => tonic::Code::FailedPrecondition,
    }
}

/// Returns a reason that the model can produce; panics for any other.
fn known_reason(reason: &str) -> ErrorReason {
    let reasons = [
        "LEASE_LOST",
        "OPERATION_ALREADY_DONE",
        "OPERATION_NOT_FOUND",
        "OPERATION_EXISTS",
        "REQUEST_ID_REUSED",
        "INVALID_LEASE_TOKEN",
        "TOTAL_TIMEOUT",
        "ATTEMPT_TIMEOUT",
        "WORKER_LOST",
        "OPERATION_CANCELLED",
    ];
    let known = reasons.into_iter().find(|known| *known == reason);
    known.unwrap_or_else(|| panic!("expected a reason known to the model, got {reason}"))
}

fn empty_response(result: Result<(), Status>) -> ModelResponse {
    match result {
        Ok(()) => ModelResponse::Empty,
        Err(status) => rejected(&status),
    }
}

/// Returns the number in the result of [`custom_metadata`].
fn custom_metadata_value(any: &longrunning::Any) -> u8 {
    assert_eq!(
        *any,
        custom_metadata(any.value[1]),
        "expected unchanged bytes"
    );
    any.value[1]
}

fn progress(n: u8) -> Progress {
    crate::support::progress(n.into())
}

fn duration(millis: i64) -> prost_types::Duration {
    prost_types::Duration {
        seconds: millis / 1_000,
        nanos: i32::try_from(millis % 1_000 * NANOS_PER_MILLI).unwrap(),
    }
}

fn nanos(duration: prost_types::Duration) -> i64 {
    duration.seconds * 1_000_000_000 + i64::from(duration.nanos)
}

fn millis(duration: prost_types::Duration) -> i64 {
    let nanos = nanos(duration);
    assert_eq!(nanos % NANOS_PER_MILLI, 0, "expected full milliseconds");
    nanos / NANOS_PER_MILLI
}
