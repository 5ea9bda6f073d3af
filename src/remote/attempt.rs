//! One attempt at an operation that was leased from a server elsewhere: runs
//! the handler and tells the server how it ended, however long that takes.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{
    pin, select,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};
use tracing::{Instrument, Span, debug, info, info_span, warn};

use super::{
    backoff::{Backoff, is_passing, is_too_large},
    held::Held,
    keeper::{CALL, Keeper},
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
        google::{
            longrunning::{Operation, operation},
            rpc::Code,
        },
        longrunning::v1::{
            FinishOperationRequest, Lease,
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

/// The end of a grace, in two steps.
#[derive(Clone, Debug, Default)]
pub(super) struct Release {
    /// Handlers are told to stop; what they do not finish goes to another.
    pub(super) stop: CancellationToken,
    /// Handlers are aborted, and nothing is tried again.
    pub(super) now: CancellationToken,
}

// === impl Release ===

impl Release {
    /// Waits for the work until the grace is over. Handlers are told to stop
    /// when this much of it is left, at most a quarter.
    pub(super) async fn after(
        &self,
        grace: Duration,
        left: Duration,
        work: impl Future<Output = ()>,
    ) {
        let left = left.min(grace / 4);
        pin!(work);
        if timeout(grace - left, &mut work).await.is_err() {
            self.stop.cancel();
            if timeout(left, work).await.is_err() {
                self.now.cancel();
            }
        }
    }

    /// There is no grace, or no more of it.
    pub(super) fn at_once(&self) {
        self.stop.cancel();
        self.now.cancel();
    }
}

// === impl Attempt ===

impl Attempt {
    /// An attempt with a lease that came just now. None if it is held already,
    /// or makes no sense, which a server of another version may bring about.
    pub(super) fn new(keeper: &Arc<Keeper>, lease: Lease) -> Option<Self> {
        let assignment = assignment(&lease)?;
        let remaining = parse_duration(lease.lease_remaining?).ok()?;
        let held = keeper.hold(&lease.name, assignment.token, remaining)?;
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

    /// Runs the handler and returns what became of the operation; none if the
    /// server took the end, but all that it said of it was lost. `release` ends
    /// it early: the operation goes back to its queue.
    pub(super) async fn run(
        self,
        handler: Arc<dyn AnyHandler>,
        tasks: &Tasks,
        release: &Release,
    ) -> Result<Option<Operation>, Status> {
        let Self {
            keeper,
            held,
            assignment,
        } = self;
        let span = span(&assignment);
        let work = async {
            info!("started");
            let context = Context::new(assignment, held.desk.clone(), Clock::system());
            let desk = held.desk.clone();
            let (stop, now) = (&release.stop, Some(&release.now));
            let ended = execute(handler, context, desk, tasks, stop, now, held.lost()).await;
            let finished = match ended {
                Ended::With(end) | Ended::Panicked(end) => {
                    finish(&keeper, &held, end, &release.now).await
                }
                Ended::Lost => Err(Status::failed_precondition("the lease is lost")),
            };
            if let Err(status) = &finished {
                warn!(%status, "the end of the attempt is not recorded");
            }
            keeper.forget(&held);
            finished
        };
        work.instrument(span).await
    }

    /// Gives the operation back before anything was done.
    pub(super) async fn give_back(self, release: &Release) {
        let finished = finish(&self.keeper, &self.held, End::Release, &release.now);
        let finished = finished.instrument(span(&self.assignment)).await;
        if let Err(status) = finished {
            warn!(operation.name = %self.held.name, %status, "an operation could not be given back");
        }
        self.keeper.forget(&self.held);
    }
}

fn span(assignment: &Assignment) -> Span {
    let Assignment { name, attempt, .. } = assignment;
    info_span!("attempt", operation.name = name, attempt)
}

/// Tells the server how an attempt ended, until it has taken it, the lease is
/// lost, or `hurry` says that there is no more time for another try.
async fn finish(
    keeper: &Keeper,
    held: &Held,
    end: End,
    hurry: &CancellationToken,
) -> Result<Option<Operation>, Status> {
    held.begin_end();
    // A heartbeat under way may bring an older report, or give it back.
    let mut last = select! {
        _turn = keeper.turn() => held.desk.take().unwrap_or_default(),
        () = held.lost() => return Err(Status::failed_precondition("the lease is lost")),
    };
    let mut outcome = said(end);
    let (mut is_replaced, mut may_be_recorded) = (false, false);
    let mut backoff = Backoff::default();
    loop {
        match say(keeper, held, &outcome, &mut last).await {
            Ok(operation) => {
                log(&outcome, operation.result.as_ref());
                return Ok(Some(operation));
            }
            // The server does not take it: an error that says so is recorded.
            Err(status) if let (false, Some(instead)) = (is_replaced, replacement(&status)) => {
                is_replaced = true;
                outcome = failure(instead);
            }
            Err(status) if is_passing(&status) && !hurry.is_cancelled() => {
                debug!(operation.name = %held.name, %status, "the end of an attempt did not get through; trying again");
                may_be_recorded |= last.is_empty() && hands_on(&outcome);
                select! {
                    () = sleep(backoff.pause()) => {}
                    () = hurry.cancelled() => {}
                    () = held.over() => return Err(status),
                    () = held.lost(), if !may_be_recorded => return Err(status),
                }
            }
            // This very end ended the lease, and the answer to it got lost: the
            // lease is not over, and only its holder could give it up. Another
            // attempt may even have finished the operation.
            Err(status) if may_be_recorded && status.code() == tonic::Code::FailedPrecondition => {
                log(&outcome, None);
                return Ok(None);
            }
            Err(status) => return Err(status),
        }
    }
}

/// Says it once: the last report, of which FinishOperation takes the metadata
/// only, and then the end. A report that the server refuses holds up no end.
async fn say(
    keeper: &Keeper,
    held: &Held,
    outcome: &Outcome,
    last: &mut Report,
) -> Result<Operation, Status> {
    if !last.is_empty() {
        match keeper.tell(held, last).await {
            Err(status) if is_passing(&status) => return Err(status),
            Err(status) => {
                warn!(operation.name = %held.name, %status, "the last report of an attempt was dropped");
            }
            Ok(()) => {}
        }
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

/// Whether the operation may be another's as soon as this end is recorded.
fn hands_on(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Response(_) => false,
        Outcome::Failure(failure) => failure.retryable,
        Outcome::Release(_) => true,
    }
}

/// Logs how an attempt ended, by what became of the operation, if that is
/// known: a failure that was meant to be retried may have been the last one.
fn log(outcome: &Outcome, result: Option<&operation::Result>) {
    let known = |code: i32| Code::try_from(code).unwrap_or_default();
    match (result, outcome) {
        (Some(operation::Result::Error(error)), _) if known(error.code) == Code::Cancelled => {
            info!("cancelled");
        }
        (Some(operation::Result::Error(error)), _) => {
            warn!(
                code = known(error.code).as_str_name(),
                error.message, "failed"
            );
        }
        (Some(operation::Result::Response(_)), _) | (None, Outcome::Response(_)) => {
            info!("succeeded");
        }
        (None, Outcome::Failure(failure)) => {
            let error = failure.error.clone().unwrap_or_default();
            let code = known(error.code).as_str_name();
            warn!(code, error.message, "failed; another attempt may follow");
        }
        (None, Outcome::Release(_)) => info!("given back"),
    }
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
