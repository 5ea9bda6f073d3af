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
    backoff::{Backoff, is_too_large, is_transient},
    held_lease::HeldLease,
    lease_manager::{CALL_TIMEOUT, LeaseManager},
};
use crate::{
    clock::{Clock, parse_duration, to_proto_duration},
    operation::{
        attempt_result::AttemptResult,
        labels::Labels,
        lease::LeaseToken,
        options::QueueName,
        outcome::{self, Failure},
        payload::Payload,
        trace::TraceContext,
        transition::Report,
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
        context::{Context, LeasedOperation},
        handler::DynHandler,
        runner::{RunOutcome, invalid_result_failure, run_handler},
    },
};

/// A leased operation and who works on it.
pub(super) struct Attempt {
    lease_manager: Arc<LeaseManager>,
    held: Arc<HeldLease>,
    leased_operation: LeasedOperation,
}

/// The end of a grace, in two steps.
#[derive(Clone, Debug, Default)]
pub(super) struct ShutdownSignals {
    /// Handlers are told to stop; what they do not finish goes to another.
    pub(super) stop: CancellationToken,
    /// Handlers are aborted, and nothing is tried again.
    pub(super) abort: CancellationToken,
}

// === impl Release ===

impl ShutdownSignals {
    /// Waits for the work until the grace is over. Handlers are told to stop
    /// when this much of it is left, at most a quarter.
    pub(super) async fn drain(
        &self,
        shutdown_timeout: Duration,
        handler_grace: Duration,
        work: impl Future<Output = ()>,
    ) {
        let handler_grace = handler_grace.min(shutdown_timeout / 4);
        pin!(work);
        if timeout(shutdown_timeout - handler_grace, &mut work)
            .await
            .is_err()
        {
            self.stop.cancel();
            if timeout(handler_grace, work).await.is_err() {
                self.abort.cancel();
            }
        }
    }

    /// There is no grace, or no more of it.
    pub(super) fn trigger_all(&self) {
        self.stop.cancel();
        self.abort.cancel();
    }
}

// === impl Attempt ===

impl Attempt {
    /// An attempt with a lease that came just now. None if it is held already,
    /// or makes no sense, which a server of another version may bring about.
    pub(super) fn new(lease_manager: &Arc<LeaseManager>, lease: Lease) -> Option<Self> {
        let leased_operation = parse_lease(&lease)?;
        let remaining = parse_duration(lease.lease_remaining?).ok()?;
        let held = lease_manager.track(&lease.name, leased_operation.token, remaining)?;
        if lease.cancel_requested {
            held.report_buffer.cancellation_token.cancel();
        }
        Some(Self {
            lease_manager: lease_manager.clone(),
            held,
            leased_operation,
        })
    }

    /// Tells the handler to stop, as a cancellation by a client does.
    pub(super) fn cancellation_token(&self) -> CancellationToken {
        self.held.report_buffer.cancellation_token.clone()
    }

    /// Runs the handler and returns what became of the operation; none if the
    /// server took the end, but all that it said of it was lost. `release` ends
    /// it early: the operation goes back to its queue.
    pub(super) async fn run(
        self,
        handler: Arc<dyn DynHandler>,
        tasks: &Tasks,
        shutdown_signals: &ShutdownSignals,
    ) -> Result<Option<Operation>, Status> {
        let Self {
            lease_manager,
            held,
            leased_operation,
        } = self;
        let span = attempt_span(&leased_operation);
        let work = async {
            info!("started");
            let context = Context::new(
                leased_operation,
                held.report_buffer.clone(),
                Clock::system(),
            );
            let report_buffer = held.report_buffer.clone();
            let (stop, abort) = (&shutdown_signals.stop, Some(&shutdown_signals.abort));
            let outcome = run_handler(
                handler,
                context,
                report_buffer,
                tasks,
                stop,
                abort,
                held.lost(),
            )
            .await;
            let finish_result = match outcome {
                RunOutcome::Finished(result) | RunOutcome::Panicked(result) => {
                    finish(&lease_manager, &held, result, &shutdown_signals.abort).await
                }
                RunOutcome::LeaseLost => Err(Status::failed_precondition("the lease is lost")),
            };
            if let Err(status) = &finish_result {
                warn!(%status, "the end of the attempt is not recorded");
            }
            lease_manager.untrack(&held);
            finish_result
        };
        work.instrument(span).await
    }

    /// Gives the operation back before anything was done.
    pub(super) async fn release(self, shutdown_signals: &ShutdownSignals) {
        let finish_call = finish(
            &self.lease_manager,
            &self.held,
            AttemptResult::Released,
            &shutdown_signals.abort,
        );
        let finish_result = finish_call
            .instrument(attempt_span(&self.leased_operation))
            .await;
        if let Err(status) = finish_result {
            warn!(operation.name = %self.held.name, %status, "an operation could not be given back");
        }
        self.lease_manager.untrack(&self.held);
    }
}

fn attempt_span(leased_operation: &LeasedOperation) -> Span {
    let LeasedOperation { name, attempt, .. } = leased_operation;
    info_span!("attempt", operation.name = name, attempt)
}

/// Tells the server how an attempt ended, until it has taken it, the lease is
/// lost, or `hurry` says that there is no more time for another try.
async fn finish(
    lease_manager: &LeaseManager,
    held: &HeldLease,
    result: AttemptResult,
    abort: &CancellationToken,
) -> Result<Option<Operation>, Status> {
    held.begin_finish();
    // A heartbeat under way may bring an older report, or give it back.
    let mut last_report = select! {
        _turn = lease_manager.acquire_send_lock() => held.report_buffer.take().unwrap_or_default(),
        () = held.lost() => return Err(Status::failed_precondition("the lease is lost")),
    };
    let mut outcome = to_proto_outcome(result);
    let (mut is_replaced, mut possibly_recorded) = (false, false);
    let mut backoff = Backoff::default();
    loop {
        match send_finish(lease_manager, held, &outcome, &mut last_report).await {
            Ok(operation) => {
                log_outcome(&outcome, operation.result.as_ref());
                return Ok(Some(operation));
            }
            // The server does not take it: an error that says so is recorded.
            Err(status)
                if let (false, Some(replacement)) = (is_replaced, replacement_failure(&status)) =>
            {
                is_replaced = true;
                outcome = to_proto_failure(replacement);
            }
            Err(status) if is_transient(&status) && !abort.is_cancelled() => {
                debug!(operation.name = %held.name, %status, "the end of an attempt did not get through; trying again");
                possibly_recorded |= last_report.is_empty() && can_be_retried(&outcome);
                select! {
                    () = sleep(backoff.next_delay()) => {}
                    () = abort.cancelled() => {}
                    () = held.expired() => return Err(status),
                    () = held.lost(), if !possibly_recorded => return Err(status),
                }
            }
            // This very end ended the lease, and the answer to it got lost: the
            // lease is not over, and only its holder could give it up. Another
            // attempt may even have finished the operation.
            Err(status)
                if possibly_recorded && status.code() == tonic::Code::FailedPrecondition =>
            {
                log_outcome(&outcome, None);
                return Ok(None);
            }
            Err(status) => return Err(status),
        }
    }
}

/// Says it once: the last report, of which FinishOperation takes the metadata
/// only, and then the end. A report that the server refuses holds up no end.
async fn send_finish(
    lease_manager: &LeaseManager,
    held: &HeldLease,
    outcome: &Outcome,
    last_report: &mut Report,
) -> Result<Operation, Status> {
    if !last_report.is_empty() {
        match lease_manager.send_report(held, last_report).await {
            Err(status) if is_transient(&status) => return Err(status),
            Err(status) => {
                warn!(operation.name = %held.name, %status, "the last report of an attempt was dropped");
            }
            Ok(()) => {}
        }
        *last_report = Report::default();
    }
    let mut request = Request::new(FinishOperationRequest {
        name: held.name.clone(),
        lease_token: held.token.as_bytes().to_vec(),
        outcome: Some(outcome.clone()),
        metadata: None,
    });
    request.set_timeout(CALL_TIMEOUT);
    let client = lease_manager.client();
    // The answer may hold all that was sent, and the metadata.
    let mut client = client.max_decoding_message_size(64 << 20);
    Ok(client.finish_operation(request).await?.into_inner())
}

/// Whether the operation may be another's as soon as this end is recorded.
fn can_be_retried(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Response(_) => false,
        Outcome::Failure(failure) => failure.retryable,
        Outcome::Release(_) => true,
    }
}

/// Logs how an attempt ended, by what became of the operation, if that is
/// known: a failure that was meant to be retried may have been the last one.
fn log_outcome(outcome: &Outcome, result: Option<&operation::Result>) {
    let to_code = |code: i32| Code::try_from(code).unwrap_or_default();
    match (result, outcome) {
        (Some(operation::Result::Error(error)), _) if to_code(error.code) == Code::Cancelled => {
            info!("cancelled");
        }
        (Some(operation::Result::Error(error)), _) => {
            warn!(
                code = to_code(error.code).as_str_name(),
                error.message, "failed"
            );
        }
        (Some(operation::Result::Response(_)), _) | (None, Outcome::Response(_)) => {
            info!("succeeded");
        }
        (None, Outcome::Failure(failure)) => {
            let error = failure.error.clone().unwrap_or_default();
            let code = to_code(error.code).as_str_name();
            warn!(code, error.message, "failed; another attempt may follow");
        }
        (None, Outcome::Release(_)) => info!("given back"),
    }
}

fn to_proto_outcome(result: AttemptResult) -> Outcome {
    match result {
        AttemptResult::Succeeded(response) => Outcome::Response(response),
        AttemptResult::Failed(failed) => to_proto_failure(failed),
        AttemptResult::Released => Outcome::Release(finish::Release {}),
    }
}

fn to_proto_failure(failure: Failure) -> Outcome {
    Outcome::Failure(finish::Failure {
        error: Some(failure.error),
        retryable: failure.retryable,
        retry_after: failure.retry_after.map(to_proto_duration),
    })
}

/// What is recorded instead of an outcome that the server refused for good.
fn replacement_failure(status: &Status) -> Option<Failure> {
    if is_too_large(status) {
        let (code, reason) = (Code::ResourceExhausted, "TOO_LARGE");
        return Some(outcome::status_with_reason(code, reason, status.message()).into());
    }
    let is_invalid = status.code() == tonic::Code::InvalidArgument;
    is_invalid.then(|| invalid_result_failure(&status.message()))
}

fn parse_lease(lease: &Lease) -> Option<LeasedOperation> {
    let to_payload = |any: &Option<prost_types::Any>| {
        let any = any.clone()?;
        Payload::new(any).ok()
    };
    Some(LeasedOperation {
        name: lease.name.clone(),
        queue: QueueName::parse(&lease.queue).ok(),
        token: LeaseToken::from_bytes(&lease.lease_token)?,
        attempt: u32::try_from(lease.attempt).ok()?,
        input: to_payload(&lease.input),
        checkpoint: to_payload(&lease.checkpoint),
        labels: Labels::new(lease.labels.clone().into_iter().collect()).ok()?,
        method: lease.method.clone(),
        trace_context: TraceContext::new(lease.trace_context.clone().into_iter().collect()).ok()?,
        cancel_grace_period: lease
            .cancel_grace_period
            .and_then(|grace| parse_duration(grace).ok()),
    })
}
