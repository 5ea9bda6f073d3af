//! One attempt at an operation leased from a remote server: runs the handler and
//! reports the result with FinishOperation.

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
    lease_manager::{CALL_TIMEOUT, LeaseManager, MAX_RESPONSE_BYTES},
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

/// An attempt at a leased operation.
pub(super) struct Attempt {
    lease_manager: Arc<LeaseManager>,
    held: Arc<HeldLease>,
    leased_operation: LeasedOperation,
}

/// The two steps of a shutdown.
#[derive(Clone, Debug, Default)]
pub(super) struct ShutdownSignals {
    /// Cancels the contexts of handlers; unfinished operations are released.
    pub(super) stop: CancellationToken,
    /// Aborts handlers and stops retries.
    pub(super) abort: CancellationToken,
}

// === impl ShutdownSignals ===

impl ShutdownSignals {
    /// Waits for `work` until `shutdown_timeout` expires. Triggers `stop` when
    /// `handler_grace` of it remains, at most a quarter, and `abort` at its end.
    pub(super) async fn drain(
        &self,
        shutdown_timeout: Duration,
        handler_grace: Duration,
        work: impl Future<Output = ()>,
    ) {
        let handler_grace = handler_grace.min(shutdown_timeout / 4);
        pin!(work);
        let finished = timeout(shutdown_timeout - handler_grace, &mut work).await;
        if finished.is_err() {
            self.stop.cancel();
            if timeout(handler_grace, work).await.is_err() {
                self.abort.cancel();
            }
        }
    }

    /// Triggers both steps at once.
    pub(super) fn trigger_all(&self) {
        self.stop.cancel();
        self.abort.cancel();
    }
}

// === impl Attempt ===

impl Attempt {
    /// Creates an attempt for a lease that was just received, and that a heartbeat
    /// must confirm within `confirm_within`, if set. Returns `None` if it is already
    /// held or malformed, as from a server of another version.
    pub(super) fn new(
        lease_manager: &Arc<LeaseManager>,
        lease: Lease,
        confirm_within: Option<Duration>,
    ) -> Option<Self> {
        let leased_operation = parse_lease(&lease)?;
        let remaining = parse_duration(lease.lease_remaining?).ok()?;
        let token = leased_operation.token;
        let held = lease_manager.track(&lease.name, token, remaining, confirm_within)?;
        if lease.cancel_requested {
            held.attempt_state.cancellation_token.cancel();
        }
        Some(Self {
            lease_manager: lease_manager.clone(),
            held,
            leased_operation,
        })
    }

    /// Returns a token that stops the handler, as a client's cancellation does.
    pub(super) fn cancellation_token(&self) -> CancellationToken {
        self.held.attempt_state.cancellation_token.clone()
    }

    /// Runs the handler once the lease is confirmed, reports its result and returns
    /// the operation, or `None` if the result was recorded but the response was lost.
    /// `shutdown_signals`
    /// end the attempt early and return the operation to its queue.
    pub(super) async fn run(
        self,
        handler: Arc<dyn DynHandler>,
        tasks: &Tasks,
        shutdown_signals: &ShutdownSignals,
    ) -> Result<Option<Operation>, Status> {
        let span = attempt_span(&self.leased_operation);
        let (lease_manager, held) = (self.lease_manager, self.held);
        let work = async {
            let ShutdownSignals { stop, abort } = shutdown_signals;
            let run = async {
                info!("attempt started");
                let state = held.attempt_state.clone();
                let context = Context::new(self.leased_operation, state, Clock::system());
                run_handler(handler, context, tasks, stop, Some(abort), held.lost()).await
            };
            let outcome = select! {
                biased;
                () = held.confirmed() => run.await,
                () = held.lost() => RunOutcome::LeaseLost,
                () = tasks.stop_token().cancelled() => RunOutcome::Finished(AttemptResult::Released),
            };
            let finish_result = match outcome {
                RunOutcome::Finished(result) | RunOutcome::Panicked(result) => {
                    finish(&lease_manager, &held, result, abort)
                        .await
                        .inspect_err(|error| warn!(%error, "failed to report attempt result"))
                }
                // The loss itself is logged.
                RunOutcome::LeaseLost => Err(Status::failed_precondition("lease lost")),
            };
            lease_manager.untrack(&held);
            finish_result
        };
        work.instrument(span).await
    }

    /// Returns the operation to its queue without running the handler.
    pub(super) async fn release(self, shutdown_signals: &ShutdownSignals) {
        let (lease_manager, held) = (&self.lease_manager, &self.held);
        let abort = &shutdown_signals.abort;
        let finish_call = finish(lease_manager, held, AttemptResult::Released, abort);
        let span = attempt_span(&self.leased_operation);
        if let Err(error) = finish_call.instrument(span).await {
            warn!(operation.name = %held.name, %error, "failed to release operation");
        }
        lease_manager.untrack(held);
    }
}

fn attempt_span(leased_operation: &LeasedOperation) -> Span {
    let LeasedOperation { name, attempt, .. } = leased_operation;
    info_span!("attempt", operation.name = name, attempt)
}

/// Reports the result of an attempt. Retries until the server accepts it or says that
/// the lease is lost, or `abort` is cancelled. Returns `None` if the result was recorded
/// but the response was lost.
async fn finish(
    lease_manager: &LeaseManager,
    held: &HeldLease,
    result: AttemptResult,
    abort: &CancellationToken,
) -> Result<Option<Operation>, Status> {
    held.begin_finish();
    // A heartbeat in flight may carry an older report, or restore it on failure.
    let mut last_report = select! {
        _send_lock = lease_manager.send_lock.lock() => held.attempt_state.take_report().unwrap_or_default(),
        () = held.lost_by_report() => return Err(Status::failed_precondition("lease lost")),
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
            // The server rejects this result for good: record an error instead.
            Err(status)
                if let (false, Some(replacement)) = (is_replaced, replacement_failure(&status)) =>
            {
                is_replaced = true;
                outcome = to_proto_failure(replacement);
            }
            Err(status) if is_transient(&status) && !abort.is_cancelled() => {
                let delay = backoff.next_delay();
                debug!(operation.name = %held.name, error = %status, retry_in = ?delay, "retrying FinishOperation");
                possibly_recorded |= last_report.is_empty() && can_be_retried(&outcome);
                select! {
                    () = sleep(delay) => {}
                    () = abort.cancelled() => {}
                    () = held.lost_by_report(), if !possibly_recorded => return Err(status),
                }
            }
            // An earlier try was recorded and ended the lease, but its response was
            // lost: before it expires, only the holder can end a lease. Another
            // attempt may already have finished the operation.
            Err(status)
                if possibly_recorded
                    && !held.is_expired()
                    && status.code() == tonic::Code::FailedPrecondition =>
            {
                log_outcome(&outcome, None);
                return Ok(None);
            }
            Err(status) => return Err(status),
        }
    }
}

/// Sends the last report, then FinishOperation, once each: FinishOperation carries
/// only the metadata of a report. A report that the server rejects is dropped.
async fn send_finish(
    lease_manager: &LeaseManager,
    held: &HeldLease,
    outcome: &Outcome,
    last_report: &mut Report,
) -> Result<Operation, Status> {
    if !last_report.is_empty() {
        match lease_manager.send_report(held, last_report).await {
            Err(status) if is_transient(&status) => return Err(status),
            Err(error) => {
                warn!(operation.name = %held.name, %error, "dropping the last report of the attempt");
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
        progress: None,
    });
    request.set_timeout(CALL_TIMEOUT);
    let client = lease_manager.client();
    // The response echoes the result and adds the metadata.
    let mut client = client.max_decoding_message_size(MAX_RESPONSE_BYTES);
    Ok(client.finish_operation(request).await?.into_inner())
}

/// Returns `true` if another attempt may follow once this outcome is recorded.
fn can_be_retried(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Response(_) => false,
        Outcome::Failure(failure) => failure.retryable,
        Outcome::Release(_) => true,
    }
}

/// Logs the outcome of an attempt, by the recorded result if known: a retryable
/// failure may have used up the last attempt.
fn log_outcome(outcome: &Outcome, result: Option<&operation::Result>) {
    let to_code = |code: i32| Code::try_from(code).unwrap_or_default();
    match (result, outcome) {
        (Some(operation::Result::Error(error)), _) if to_code(error.code) == Code::Cancelled => {
            info!("operation cancelled");
        }
        (Some(operation::Result::Error(error)), _) => {
            let code = to_code(error.code).as_str_name();
            warn!(code, error = error.message, "operation failed");
        }
        (Some(operation::Result::Response(_)), _) | (None, Outcome::Response(_)) => {
            info!("operation succeeded");
        }
        (None, Outcome::Failure(failure)) => {
            let error = failure.error.clone().unwrap_or_default();
            let code = to_code(error.code).as_str_name();
            warn!(
                code,
                error = error.message,
                "attempt failed, may be retried"
            );
        }
        (None, Outcome::Release(_)) => info!("operation released"),
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

/// Returns the failure to record instead of an outcome that the server rejected
/// for good, or `None` if the rejection has another cause.
fn replacement_failure(status: &Status) -> Option<Failure> {
    if is_too_large(status) {
        let (code, reason) = (Code::ResourceExhausted, "TOO_LARGE");
        return Some(outcome::status_with_reason(code, reason, status.message()).into());
    }
    let is_invalid = status.code() == tonic::Code::InvalidArgument;
    is_invalid.then(|| invalid_result_failure(&status.message()))
}

/// Converts a lease of the server. Returns `None` if a field is malformed.
fn parse_lease(lease: &Lease) -> Option<LeasedOperation> {
    let to_payload = |any: &Option<prost_types::Any>| Payload::new(any.clone()?).ok();
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
            .and_then(|period| parse_duration(period).ok()),
    })
}
