//! The `longrunning.v1.OperationWorker` service, for creators and workers.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt, stream};
use prost::Message;
use prost_types::Any;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{
    codec::{EncodedMessage, ResponseStream, UnaryResult},
    lease_proto::{
        lease_lost_directive, renewed_directive, to_proto_directive, to_proto_lease,
        worker_directive,
    },
    operations::grpc_timeout,
};
use crate::{
    clock::to_proto_duration,
    error::{Error, Result},
    operation::{
        attempt_result::AttemptResult,
        encoded,
        lease::{LeaseToken, WorkerId},
        name::OperationName,
        options::QueueName,
        outcome::Failure,
        retry::MAX_BACKOFF,
        trace::TraceContext,
        transition::{LeaseLostReason, Report, TransitionError},
    },
    proto::longrunning::v1::{
        CreateOperationRequest, CreateOperationResponse, Directive, FinishOperationRequest,
        HeartbeatRequest, HeartbeatResponse, LeaseHeartbeat, LeaseOperationsRequest,
        LeaseOperationsResponse, WatchDirectivesRequest,
        create_operation_request::Execution,
        directive::Kind,
        finish_operation_request::{self as finish, Outcome},
    },
    service::{
        operations::Operations,
        request_params::{WaitLimits, parse_duration_field, parse_lookup_name, parse_payload},
    },
    store::lease_delivery::UndeliveredLease,
};

#[expect(unreachable_pub, reason = "generated")]
mod generated {
    tonic::include_proto!("longrunning.v1.OperationWorker");
}

pub use generated::operation_worker_server::OperationWorkerServer;

/// Maximum number of queues of one LeaseOperations call.
const MAX_QUEUES: usize = 64;
/// Maximum number of leases that one LeaseOperations call returns.
const MAX_LEASES: usize = 1000;
/// Maximum number of concurrent renewals of one heartbeat. Concurrent renewals share a
/// storage commit.
const MAX_CONCURRENT_RENEWALS: usize = 256;
/// Recommended number of heartbeats per lease duration.
const HEARTBEATS_PER_LEASE: u32 = 3;
/// Maximum number of reports in a heartbeat. Keeps the response below the default
/// message limit of clients.
const MAX_REPORTS: usize = 1000;
/// The headers of the W3C trace context.
const TRACE_HEADERS: [&str; 2] = ["traceparent", "tracestate"];

/// Implements `longrunning.v1.OperationWorker` on [`Operations`].
#[derive(Clone, Debug)]
pub struct WorkerService {
    operations: Operations,
    wait_limits: WaitLimits,
}

/// Returns the `longrunning.v1.OperationWorker` service for a tonic server, with the
/// default wait limits. Its callers can create and finish any operation: use a
/// listener that clients cannot reach.
pub fn worker_server(operations: &Operations) -> OperationWorkerServer<WorkerService> {
    worker_server_with(operations, WaitLimits::default())
}

/// Returns the service of [`worker_server`] with other limits on the wait of
/// LeaseOperations.
pub fn worker_server_with(
    operations: &Operations,
    wait_limits: WaitLimits,
) -> OperationWorkerServer<WorkerService> {
    OperationWorkerServer::new(WorkerService {
        operations: operations.clone(),
        wait_limits,
    })
}

#[tonic::async_trait]
impl generated::operation_worker_server::OperationWorker for WorkerService {
    async fn create_operation(&self, request: Request<CreateOperationRequest>) -> UnaryResult {
        let trace_context = trace_headers(request.metadata());
        let mut request = request.into_inner();
        if request.trace_context.is_empty() {
            request.trace_context.extend(trace_context);
        }
        let creator_id = match &request.execution {
            Some(Execution::SelfExecuted(self_executed)) => Some(self_executed.worker_id.clone()),
            _ => None,
        };
        let created = self.operations.create(request.try_into()?).await?;
        // Only the holder gets the lease: another instance of the creator may have sent
        // the same request before.
        let holder = created.operation.lease().map(|lease| lease.holder.as_str());
        let lease = match holder {
            Some(holder) if creator_id.as_deref() == Some(holder) => {
                to_proto_lease(&created.operation, self.operations.clock().now())
            }
            _ => None,
        };
        let response = CreateOperationResponse {
            operation: None,
            lease,
            already_existed: created.already_existed,
        };
        let operation = created.operation.bytes();
        let mut bytes = Vec::with_capacity(operation.len() + 256);
        encoded::put_field(1, operation, &mut bytes);
        response.encode(&mut bytes).expect("a Vec grows as needed");
        Ok(Response::new(EncodedMessage::Bytes(bytes.into())))
    }

    async fn lease_operations(&self, request: Request<LeaseOperationsRequest>) -> UnaryResult {
        let client_timeout = grpc_timeout(request.metadata());
        let request = request.into_inner();
        let worker = WorkerId::parse(&request.worker_id).map_err(Error::from)?;
        let queues = parse_queues(&request.queues)?;
        let max_leases = parse_max_leases(request.max_leases)?;
        let timeout =
            parse_duration_field("wait_timeout", "INVALID_TIMEOUT", request.wait_timeout)?;
        let wait_timeout = self.wait_limits.effective_timeout(timeout, client_timeout);
        let confirm_within = parse_confirm_within(request.confirm_within)?;
        let leases = self
            .operations
            .lease_undelivered(
                &queues,
                &worker,
                max_leases,
                wait_timeout,
                Some(confirm_within),
            )
            .await?;
        let now = self.operations.clock().now();
        let to_proto = |lease: &UndeliveredLease| to_proto_lease(lease.operation(), now);
        let response = LeaseOperationsResponse {
            leases: leases.iter().filter_map(to_proto).collect(),
        };
        Ok(Response::new(EncodedMessage::Leases {
            response: response.encode_to_vec().into(),
            leases,
        }))
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> UnaryResult {
        let request = request.into_inner();
        let worker = WorkerId::parse(&request.worker_id).map_err(Error::from)?;
        if request.reports.len() > MAX_REPORTS {
            let message =
                format!("at most {MAX_REPORTS} are allowed; split them into several calls");
            return Err(Error::invalid("reports", "INVALID_REPORTS", message).into());
        }
        if request.draining {
            self.operations.drain_worker(&worker);
        }
        let renewals = stream::iter(request.reports)
            .map(|report| self.renew_lease(report))
            .buffered(MAX_CONCURRENT_RENEWALS)
            .collect::<Vec<_>>();
        let mut shortest_lease = None;
        let mut directives = Vec::new();
        for renewal in renewals.await {
            let (directive, lease) = renewal?;
            shortest_lease = shortest_lease.into_iter().chain(lease).min();
            directives.push(directive);
        }
        if self.operations.is_stopping() {
            directives.push(worker_directive(Kind::Drain));
        }
        let lease_duration =
            shortest_lease.unwrap_or_else(|| self.operations.default_lease_duration());
        Ok(EncodedMessage::encode(&HeartbeatResponse {
            directives,
            heartbeat_interval: Some(to_proto_duration(lease_duration / HEARTBEATS_PER_LEASE)),
        }))
    }

    async fn finish_operation(&self, request: Request<FinishOperationRequest>) -> UnaryResult {
        let request = request.into_inner();
        let name = parse_lookup_name(request.name)?;
        let token = parse_lease_token(&name, &request.lease_token)?;
        let result = match request.outcome {
            None => AttemptResult::Succeeded(Any::default()),
            Some(Outcome::Response(response)) => AttemptResult::Succeeded(response),
            Some(Outcome::Failure(failure)) => AttemptResult::Failed(parse_failure(failure)?),
            Some(Outcome::Release(finish::Release {})) => AttemptResult::Released,
        };
        let report = Report {
            progress: request.progress,
            metadata: parse_payload("metadata", request.metadata)?,
            ..Report::default()
        };
        let operation = self.operations.finish(&name, token, result, report).await?;
        Ok(Response::new(EncodedMessage::Operation(operation)))
    }

    type WatchDirectivesStream = ResponseStream;

    async fn watch_directives(
        &self,
        request: Request<WatchDirectivesRequest>,
    ) -> Result<Response<ResponseStream>, Status> {
        let worker = WorkerId::parse(&request.into_inner().worker_id).map_err(Error::from)?;
        let subscription = self.operations.watch_directives(&worker)?;
        let clock = self.operations.clock();
        let updates = stream::unfold(Some(subscription), move |subscription| async move {
            let mut subscription = subscription?;
            Some(match subscription.next().await {
                Some(directive) => {
                    let directive = to_proto_directive(&directive, clock.now());
                    (directive, Some(subscription))
                }
                None => (worker_directive(Kind::Drain), None),
            })
        });
        let initial = stream::iter([worker_directive(Kind::Continue)]);
        let directives = initial.chain(updates).map(|directive: Directive| {
            Ok(EncodedMessage::Bytes(directive.encode_to_vec().into()))
        });
        Ok(Response::new(Box::pin(directives)))
    }
}

// === impl WorkerService ===

impl WorkerService {
    /// Renews one lease. Returns the directive for its holder, and the lease duration of
    /// the operation or `None` if the lease is lost. An invalid report is rejected in the
    /// directive, but the lease is still renewed.
    ///
    /// # Errors
    /// The store is unavailable or the server is shutting down.
    async fn renew_lease(&self, report: LeaseHeartbeat) -> Result<(Directive, Option<Duration>)> {
        let (full_name, token_bytes) = (report.name.clone(), report.lease_token.clone());
        let parsed = parse_lookup_name(full_name.clone())
            .and_then(|name| Ok((parse_lease_token(&name, &token_bytes)?, name)));
        let (token, name) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => return Ok((lease_lost_directive(full_name, token_bytes, error), None)),
        };
        let heartbeat_result = match parse_report(report) {
            Ok(report) => self.operations.heartbeat(&name, token, report).await,
            Err(error) => Err(error),
        };
        let (outcome, rejected_report) = match heartbeat_result {
            Err(
                error @ (Error::Invalid { .. } | Error::TooLarge { .. } | Error::StoreFull { .. }),
            ) => (self.operations.renew(&name, token).await, Some(error)),
            outcome => (outcome, None),
        };
        match outcome {
            Ok(operation) => {
                let mut directive = renewed_directive(&operation, self.operations.clock().now());
                directive.error = rejected_report.map(Into::into);
                Ok((directive, Some(operation.options().lease_duration)))
            }
            Err(error @ (Error::FailedPrecondition { .. } | Error::NotFound { .. })) => {
                Ok((lease_lost_directive(full_name, token_bytes, error), None))
            }
            Err(error) => Err(error),
        }
    }
}

fn parse_queues(names: &[String]) -> Result<Vec<QueueName>> {
    if !(1..=MAX_QUEUES).contains(&names.len()) {
        let message = format!("name 1 to {MAX_QUEUES} queues");
        return Err(Error::invalid("queues", "INVALID_QUEUE", message));
    }
    let queues: Result<Vec<_>, _> = names.iter().map(|name| QueueName::parse(name)).collect();
    let mut queues = queues?;
    queues.sort();
    queues.dedup();
    Ok(queues)
}

/// Returns the number of leases, limited to [`MAX_LEASES`]; 0 becomes 1.
fn parse_max_leases(max_leases: i32) -> Result<usize> {
    match usize::try_from(max_leases) {
        Ok(0) => Ok(1),
        Ok(count) => Ok(count.min(MAX_LEASES)),
        Err(_) => {
            let message = "must not be negative; 0 means 1";
            Err(Error::invalid("max_leases", "INVALID_MAX_LEASES", message))
        }
    }
}

/// Returns the time within which leases must be confirmed; without one, they may stay unconfirmed until they expire.
fn parse_confirm_within(time: Option<prost_types::Duration>) -> Result<Duration> {
    let (field, reason) = ("confirm_within", "INVALID_DURATION");
    match parse_duration_field(field, reason, time)? {
        Some(Duration::ZERO) => {
            let message = "must be more than 0 s; leave it unset to allow the whole lease";
            Err(Error::invalid(field, reason, message))
        }
        Some(within) => Ok(within),
        None => Ok(Duration::MAX),
    }
}

/// Returns the token. A malformed one belongs to no lease and yields LEASE_LOST.
fn parse_lease_token(name: &OperationName, bytes: &[u8]) -> Result<LeaseToken> {
    if bytes.is_empty() {
        let (field, message) = ("lease_token", "missing; send the lease_token of the lease");
        return Err(Error::invalid(field, "INVALID_LEASE_TOKEN", message));
    }
    LeaseToken::from_bytes(bytes).ok_or_else(|| Error::FailedPrecondition {
        name: name.to_string(),
        error: TransitionError::LeaseLost(LeaseLostReason::Superseded),
    })
}

fn parse_report(report: LeaseHeartbeat) -> Result<Report> {
    Ok(Report {
        progress: report.progress,
        metadata: parse_payload("metadata", report.metadata)?,
        detail: parse_payload("detail", report.detail)?,
        checkpoint: parse_payload("checkpoint", report.checkpoint)?,
    })
}

fn parse_failure(failure: finish::Failure) -> Result<Failure> {
    let mut parsed = Failure::from(failure.error.unwrap_or_default());
    parsed.retryable = failure.retryable;
    parsed.retry_after =
        parse_duration_field("retry_after", "INVALID_DURATION", failure.retry_after)?;
    if parsed.retry_after.is_some_and(|after| after > MAX_BACKOFF) {
        let message = "must be at most 366 days";
        return Err(Error::invalid("retry_after", "INVALID_DURATION", message));
    }
    Ok(parsed)
}

/// Returns the trace context of the call. Empty if it is missing or malformed.
fn trace_headers(headers: &MetadataMap) -> BTreeMap<String, String> {
    let present = TRACE_HEADERS.into_iter().filter_map(|key| {
        let value = headers.get(key)?.to_str().ok()?;
        Some((key.to_owned(), value.to_owned()))
    });
    let present: BTreeMap<_, _> = present.collect();
    let is_valid = TraceContext::new(present.clone()).is_ok();
    if is_valid { present } else { BTreeMap::new() }
}
