//! One attempt at an operation that was leased from a server elsewhere: runs
//! the handler and tells the server how it ended, however long that takes.

use std::sync::Arc;

use tokio::{select, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};
use tracing::{Instrument, debug, info, info_span, warn};

use super::{
    backoff::{Backoff, is_passing, is_too_large},
    keeper::{CALL, Held, Keeper},
};
use crate::{
    clock::{Clock, parse_duration, proto_duration},
    operation::{
        end::End,
        labels::Labels,
        lease::LeaseToken,
        outcome::{self, Failure},
        payload::Payload,
        stage::Report,
        terms::QueueName,
        trace::TraceContext,
    },
    proto::{
        google::{longrunning::Operation, rpc::Code},
        longrunning::v1::{
            FinishOperationRequest, HeartbeatRequest, Lease,
            finish_operation_request::{self as finish, Outcome},
        },
    },
    tasks::Tasks,
    worker::{
        context::{Assignment, Context},
        execution::{Ended, bad_result, execute},
        handler::AnyHandler,
    },
};

/// A leased operation and who works on it.
pub(super) struct Attempt {
    keeper: Arc<Keeper>,
    held: Arc<Held>,
    assignment: Assignment,
}

impl Attempt {
    /// An attempt with a lease that came just now. None if the lease makes no
    /// sense, which a server of another version may bring about.
    pub(super) fn new(keeper: &Arc<Keeper>, lease: Lease) -> Option<Self> {
        let assignment = assignment(&lease)?;
        let remaining = parse_duration(lease.lease_remaining?).ok()?;
        let held = keeper.hold(&lease.name, assignment.token, remaining);
        if lease.cancel_requested {
            held.desk.cancelled.cancel();
        }
        Some(Self {
            keeper: keeper.clone(),
            held,
            assignment,
        })
    }

    /// Tells the handler to stop, as a cancellation by a client does.
    pub(super) fn stop_signal(&self) -> CancellationToken {
        self.held.desk.cancelled.clone()
    }

    /// Runs the handler and returns what became of the operation. `release`
    /// ends it early: the operation goes back to its queue.
    pub(super) async fn run(
        self,
        handler: Arc<dyn AnyHandler>,
        tasks: &Tasks,
        release: &CancellationToken,
    ) -> Result<Operation, Status> {
        let Self {
            keeper,
            held,
            assignment,
        } = self;
        let span = info_span!(
            "attempt",
            operation.name = assignment.name,
            attempt = assignment.attempt
        );
        let work = async {
            info!("started");
            let context = Context::new(assignment, held.desk.clone(), Clock::system());
            let desk = held.desk.clone();
            let ended = execute(handler, context, desk, tasks, release, held.lost()).await;
            let finished = match ended {
                Ended::With(end) | Ended::Panicked(end) => {
                    finish(&keeper, &held, end, release).await
                }
                Ended::Lost => Err(Status::failed_precondition("the lease is lost")),
            };
            match &finished {
                Ok(operation) if operation.done => info!("finished"),
                Ok(_) => info!("ended; another attempt may follow"),
                Err(status) => warn!(%status, "the end of the attempt is not recorded"),
            }
            keeper.forget(&held);
            finished
        };
        work.instrument(span).await
    }

    /// Gives the operation back before anything was done.
    pub(super) async fn give_back(self, release: &CancellationToken) {
        if let Err(status) = finish(&self.keeper, &self.held, End::Release, release).await {
            warn!(operation.name = %self.held.name, %status, "an operation could not be given back");
        }
        self.keeper.forget(&self.held);
    }
}

/// Tells the server how an attempt ended, until it has taken it, the lease is
/// lost, or `release` says that there is no more time for another try.
async fn finish(
    keeper: &Keeper,
    held: &Held,
    end: End,
    release: &CancellationToken,
) -> Result<Operation, Status> {
    let mut last = held.desk.take().unwrap_or_default();
    let mut outcome = said(end);
    let mut is_replaced = false;
    let mut backoff = Backoff::default();
    loop {
        match say(keeper, held, &outcome, &mut last).await {
            Ok(operation) => return Ok(operation),
            // The server does not take it: an error that says so is recorded.
            Err(status) if let (false, Some(instead)) = (is_replaced, replacement(&status)) => {
                is_replaced = true;
                outcome = failure(instead);
            }
            Err(status) if is_passing(&status) && !release.is_cancelled() => {
                debug!(operation.name = %held.name, %status, "the end of an attempt did not get through; trying again");
                select! {
                    () = sleep(backoff.pause()) => {}
                    () = release.cancelled() => {}
                    () = held.lost() => return Err(status),
                }
            }
            Err(status) => return Err(status),
        }
    }
}

/// Says it once: the last report, of which FinishOperation takes the metadata
/// only, and then the end.
async fn say(
    keeper: &Keeper,
    held: &Held,
    outcome: &Outcome,
    last: &mut Report,
) -> Result<Operation, Status> {
    if !last.is_empty() {
        let mut request = Request::new(HeartbeatRequest {
            worker_id: keeper.worker_id(),
            reports: vec![held.report(last)],
            draining: false,
        });
        request.set_timeout(CALL);
        keeper.client().heartbeat(request).await?;
        *last = Report::default();
    }
    let mut request = Request::new(FinishOperationRequest {
        name: held.name.clone(),
        lease_token: held.token.as_bytes().to_vec(),
        outcome: Some(outcome.clone()),
        metadata: None,
    });
    request.set_timeout(CALL);
    let client = keeper.client();
    // The answer may hold all that was sent, and the metadata.
    let mut client = client.max_decoding_message_size(64 << 20);
    Ok(client.finish_operation(request).await?.into_inner())
}

fn said(end: End) -> Outcome {
    match end {
        End::Response(response) => Outcome::Response(response),
        End::Failure(failed) => failure(failed),
        End::Release => Outcome::Release(finish::Release {}),
    }
}

fn failure(failure: Failure) -> Outcome {
    Outcome::Failure(finish::Failure {
        error: Some(failure.error),
        retryable: failure.retryable,
        retry_after: failure.retry_after.map(proto_duration),
    })
}

/// What is recorded instead of an outcome that the server refused for good.
fn replacement(status: &Status) -> Option<Failure> {
    if is_too_large(status) {
        let (code, reason) = (Code::ResourceExhausted, "TOO_LARGE");
        return Some(outcome::status(code, reason, status.message()).into());
    }
    let is_invalid = status.code() == tonic::Code::InvalidArgument;
    is_invalid.then(|| bad_result(&status.message()))
}

fn assignment(lease: &Lease) -> Option<Assignment> {
    let payload = |any: &Option<prost_types::Any>| {
        let any = any.clone()?;
        Payload::new(any).ok()
    };
    Some(Assignment {
        name: lease.name.clone(),
        queue: QueueName::parse(&lease.queue).ok(),
        token: LeaseToken::from_bytes(&lease.lease_token)?,
        attempt: u32::try_from(lease.attempt).ok()?,
        input: payload(&lease.input),
        checkpoint: payload(&lease.checkpoint),
        labels: Labels::new(lease.labels.clone().into_iter().collect()).ok()?,
        method: lease.method.clone(),
        trace_context: TraceContext::new(lease.trace_context.clone().into_iter().collect()).ok()?,
        cancel_grace: lease
            .cancel_grace
            .and_then(|grace| parse_duration(grace).ok()),
    })
}
