//! longrunning.v1.OperationWorker: for those who create operations and do their
//! work. What a lease is and when it is lost is decided by the state machine.

use std::{collections::BTreeMap, pin::Pin, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use prost::Message;
use prost_types::Any;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{
    codec::Encoded,
    lease::{lease_of, lost, noticed, renewed, to_worker},
    operations::grpc_timeout,
};
use crate::{
    clock::{parse_duration, proto_duration},
    error::{Error, Result},
    operation::{
        end::End,
        lease::{LeaseToken, WorkerId},
        name::OperationName,
        outcome::Failure,
        payload::Payload,
        retry::MAX_BACKOFF,
        stage::{Loss, Refusal, Report},
        terms::QueueName,
        trace::TraceContext,
        wire,
    },
    operations::{
        calls::{WaitLimits, lookup},
        creation::NewOperation,
        operations::Operations,
    },
    proto::longrunning::v1::{
        CreateOperationRequest, CreateOperationResponse, Directive, FinishOperationRequest,
        HeartbeatRequest, HeartbeatResponse, LeaseOperationsRequest, LeaseOperationsResponse,
        LeaseReport, WatchDirectivesRequest,
        create_operation_request::Execution,
        directive::Kind,
        finish_operation_request::{self as finish, Outcome},
    },
};

#[expect(unreachable_pub, reason = "generated")]
mod generated {
    include!(concat!(
        env!("OUT_DIR"),
        "/longrunning.v1.OperationWorker.rs"
    ));
}

pub use generated::operation_worker_server::OperationWorkerServer;

/// How many queues one call may name.
const MAX_QUEUES: usize = 64;
/// How many leases one call gives out.
const MAX_LEASES: usize = 1000;
/// How many leases of one heartbeat are renewed side by side, so that a journal
/// can keep them in one go.
const RENEWALS_AT_ONCE: usize = 256;
/// How often a lease is renewed before it is over.
const BEATS: u32 = 3;
/// How many reports a heartbeat may have. Its answer must be smaller than what
/// clients take in without a setting.
const MAX_REPORTS: usize = 1000;
/// The headers of a W3C trace.
const TRACE_HEADERS: [&str; 2] = ["traceparent", "tracestate"];

/// Serves [`Operations`] as longrunning.v1.OperationWorker.
#[derive(Clone, Debug)]
pub struct WorkerService {
    operations: Operations,
    waits: WaitLimits,
}

/// The longrunning.v1.OperationWorker service, to be added to a tonic server.
/// Whoever reaches it may create and finish operations: give it a listener that
/// clients cannot reach.
pub fn worker_server(operations: &Operations) -> OperationWorkerServer<WorkerService> {
    worker_server_with(operations, WaitLimits::default())
}

/// As [`worker_server`], with other limits on how long a lease is waited for.
pub fn worker_server_with(
    operations: &Operations,
    waits: WaitLimits,
) -> OperationWorkerServer<WorkerService> {
    OperationWorkerServer::new(WorkerService {
        operations: operations.clone(),
        waits,
    })
}

#[tonic::async_trait]
impl generated::operation_worker_server::OperationWorker for WorkerService {
    async fn create_operation(
        &self,
        request: Request<CreateOperationRequest>,
    ) -> Result<Response<Encoded>, Status> {
        let headers = trace_headers(request.metadata());
        let mut request = request.into_inner();
        if request.trace_context.is_empty() {
            request.trace_context.extend(headers);
        }
        let creator = match &request.execution {
            Some(Execution::SelfExecuted(own)) => Some(own.worker_id.clone()),
            _ => None,
        };
        let new = NewOperation::try_from(request)?;
        let created = self.operations.create(new).await?;
        let now = self.operations.clock().now();
        // Another instance of the creator may ask for it again; the lease stays
        // with the one that works.
        let is_holder = created
            .operation
            .lease()
            .is_some_and(|lease| creator.is_some_and(|creator| creator == lease.holder.as_str()));
        let rest = CreateOperationResponse {
            operation: None,
            lease: is_holder
                .then(|| lease_of(&created.operation, now))
                .flatten(),
            reused: created.reused,
        };
        let mut bytes = wire::encode_field(1, created.operation.bytes());
        rest.encode(&mut bytes).expect("a vector has room");
        Ok(Response::new(Encoded::Bytes(bytes.into())))
    }

    async fn lease_operations(
        &self,
        request: Request<LeaseOperationsRequest>,
    ) -> Result<Response<Encoded>, Status> {
        let deadline = grpc_timeout(request.metadata());
        let request = request.into_inner();
        let worker = WorkerId::parse(&request.worker_id).map_err(Error::from)?;
        let queues = queues(&request.queues)?;
        let most = most(request.max_leases)?;
        let wait = request.wait.map(parse_duration).transpose();
        let wait = wait.map_err(|error| Error::invalid("wait", "INVALID_TIMEOUT", error))?;
        let wait = self.waits.limit(wait, deadline);
        let leased = self
            .operations
            .lease_batch(&queues, &worker, most, wait)
            .await?;
        let now = self.operations.clock().now();
        let leases = leased
            .iter()
            .filter_map(|operation| lease_of(operation, now));
        Ok(encoded(&LeaseOperationsResponse {
            leases: leases.collect(),
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<Encoded>, Status> {
        let request = request.into_inner();
        let worker = WorkerId::parse(&request.worker_id).map_err(Error::from)?;
        if MAX_REPORTS < request.reports.len() {
            let rule = format!("at most {MAX_REPORTS} fit into one call; make several of it");
            return Err(Error::invalid("reports", "INVALID_REPORTS", rule).into());
        }
        if request.draining {
            self.operations.drain_worker(&worker);
        }
        let renewals = stream::iter(request.reports)
            .map(|report| self.renew(report))
            .buffered(RENEWALS_AT_ONCE)
            .collect::<Vec<_>>();
        let mut shortest = None;
        let mut directives = Vec::new();
        for renewal in renewals.await {
            let (directive, lease) = renewal?;
            shortest = shortest.into_iter().chain(lease).min();
            directives.push(directive);
        }
        if self.operations.is_stopping() {
            directives.push(to_worker(Kind::Drain));
        }
        let lease = shortest.unwrap_or_else(|| self.operations.lease_duration());
        Ok(encoded(&HeartbeatResponse {
            directives,
            next_heartbeat: Some(proto_duration(lease / BEATS)),
        }))
    }

    async fn finish_operation(
        &self,
        request: Request<FinishOperationRequest>,
    ) -> Result<Response<Encoded>, Status> {
        let request = request.into_inner();
        let name = lookup(request.name)?;
        let token = token(&name, &request.lease_token)?;
        let end = match request.outcome {
            None => End::Response(Any::default()),
            Some(Outcome::Response(response)) => End::Response(response),
            Some(Outcome::Failure(failure)) => End::Failure(failed(failure)?),
            Some(Outcome::Release(finish::Release {})) => End::Release,
        };
        let report = Report {
            metadata: payload("metadata", request.metadata)?,
            ..Report::default()
        };
        let operation = self.operations.finish(&name, token, end, report).await?;
        Ok(Response::new(Encoded::Operation(operation)))
    }

    type WatchDirectivesStream = Pin<Box<dyn Stream<Item = Result<Encoded, Status>> + Send>>;

    async fn watch_directives(
        &self,
        request: Request<WatchDirectivesRequest>,
    ) -> Result<Response<Self::WatchDirectivesStream>, Status> {
        let worker = WorkerId::parse(&request.into_inner().worker_id).map_err(Error::from)?;
        let notices = self.operations.directives(&worker)?;
        let clock = self.operations.clock();
        let news = stream::unfold(Some(notices), move |notices| async move {
            let mut notices = notices?;
            Some(match notices.next().await {
                Some(notice) => (noticed(&notice, clock.now()), Some(notices)),
                None => (to_worker(Kind::Drain), None),
            })
        });
        let open = stream::iter([to_worker(Kind::Continue)]);
        let directives = open
            .chain(news)
            .map(|directive: Directive| Ok(Encoded::Bytes(directive.encode_to_vec().into())));
        Ok(Response::new(Box::pin(directives)))
    }
}

// === impl WorkerService ===

impl WorkerService {
    /// Renews one lease; tells what its holder should do, and how long leases
    /// of the operation last. A report that cannot be taken does not cost the
    /// lease.
    async fn renew(&self, report: LeaseReport) -> Result<(Directive, Option<Duration>)> {
        let LeaseReport {
            name, lease_token, ..
        } = &report;
        let (full_name, bytes) = (name.clone(), lease_token.clone());
        let held = lookup(full_name.clone()).and_then(|name| {
            let token = token(&name, &bytes)?;
            Ok((name, token))
        });
        let (name, token) = match held {
            Ok(held) => held,
            Err(error) => return Ok((lost(full_name, bytes, error), None)),
        };
        let renewed_with = match reported(report) {
            Ok(report) => self.operations.heartbeat(&name, token, report).await,
            Err(error) => Err(error),
        };
        let (outcome, refused) = match renewed_with {
            Err(
                error @ (Error::Invalid { .. } | Error::TooLarge { .. } | Error::StoreFull { .. }),
            ) => (self.operations.renew(&name, token).await, Some(error)),
            outcome => (outcome, None),
        };
        match outcome {
            Ok(operation) => {
                let mut directive = renewed(&operation, self.operations.clock().now());
                directive.error = refused.map(Into::into);
                Ok((directive, Some(operation.terms().lease_duration)))
            }
            Err(error @ (Error::Refused { .. } | Error::NotFound { .. })) => {
                Ok((lost(full_name, bytes, error), None))
            }
            Err(error) => Err(error),
        }
    }
}

fn encoded(message: &impl Message) -> Response<Encoded> {
    Response::new(Encoded::Bytes(Bytes::from(message.encode_to_vec())))
}

fn queues(names: &[String]) -> Result<Vec<QueueName>> {
    if !(1..=MAX_QUEUES).contains(&names.len()) {
        let rule = format!("name 1 to {MAX_QUEUES} queues to take from");
        return Err(Error::invalid("queues", "INVALID_QUEUE", rule));
    }
    let mut queues = names
        .iter()
        .map(|name| Ok(QueueName::parse(name)?))
        .collect::<Result<Vec<_>>>()?;
    queues.sort();
    queues.dedup();
    Ok(queues)
}

fn most(max_leases: i32) -> Result<usize> {
    match usize::try_from(max_leases) {
        Ok(0) => Ok(1),
        Ok(most) => Ok(most.min(MAX_LEASES)),
        Err(_) => {
            let rule = "it must not be negative; 0 stands for 1";
            Err(Error::invalid("max_leases", "INVALID_MAX_LEASES", rule))
        }
    }
}

/// What cannot be a token of ours is no token of this operation.
fn token(name: &OperationName, bytes: &[u8]) -> Result<LeaseToken> {
    if bytes.is_empty() {
        let rule = "send the lease_token that came with the lease";
        return Err(Error::invalid("lease_token", "INVALID_LEASE_TOKEN", rule));
    }
    LeaseToken::from_bytes(bytes).ok_or_else(|| Error::Refused {
        name: name.to_string(),
        refusal: Refusal::LeaseLost(Loss::Taken),
    })
}

fn reported(report: LeaseReport) -> Result<Report> {
    Ok(Report {
        progress: report.progress,
        metadata: payload("metadata", report.metadata)?,
        detail: payload("detail", report.detail)?,
        checkpoint: payload("checkpoint", report.checkpoint)?,
    })
}

fn payload(field: &'static str, any: Option<Any>) -> Result<Option<Payload>> {
    any.map(Payload::new)
        .transpose()
        .map_err(|error| Error::invalid(field, "INVALID_ANY", error))
}

fn failed(failure: finish::Failure) -> Result<Failure> {
    let mut failed = Failure::from(failure.error.unwrap_or_default());
    failed.retryable = failure.retryable;
    failed.retry_after = failure
        .retry_after
        .map(parse_duration)
        .transpose()
        .map_err(|error| Error::invalid("retry_after", "INVALID_DURATION", error))?;
    if failed.retry_after.is_some_and(|after| MAX_BACKOFF < after) {
        let rule = "it must be at most 366 days";
        return Err(Error::invalid("retry_after", "INVALID_DURATION", rule));
    }
    Ok(failed)
}

/// The trace that the call itself belongs to. One that is malformed is left out.
fn trace_headers(headers: &MetadataMap) -> BTreeMap<String, String> {
    let found = TRACE_HEADERS.into_iter().filter_map(|key| {
        let value = headers.get(key)?.to_str().ok()?;
        Some((key.to_owned(), value.to_owned()))
    });
    let found: BTreeMap<_, _> = found.collect();
    match TraceContext::new(found.clone()) {
        Ok(_) => found,
        Err(_) => BTreeMap::new(),
    }
}
