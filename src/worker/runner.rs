//! Runs a handler until it finishes, panics, loses its lease or is stopped by a
//! shutdown.

use std::{any::Any as Panic, future::Future, sync::Arc, time::Duration};

use tokio::{
    pin, select,
    task::{JoinError, JoinHandle},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{
    context::{AttemptState, Context},
    handler::{DynHandler, HandlerResult},
};
use crate::{
    operation::{
        attempt_result::AttemptResult,
        outcome::{Failure, status_with_reason},
    },
    proto::google::rpc::Code,
    tasks::Tasks,
};

/// The maximum cleanup time of a handler when no shutdown time is left: enough
/// for a program that handles SIGTERM.
const MAX_STOP_GRACE: Duration = Duration::from_secs(1);
/// The maximum time until an aborted handler reaches its next await point.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);

/// The outcome of [`run_handler`].
#[derive(Debug)]
pub(crate) enum RunOutcome {
    /// The handler returned or was stopped; the caller records this result.
    Finished(AttemptResult),
    /// The handler panicked; the caller records this result.
    Panicked(AttemptResult),
    /// The lease was lost, so no result can be recorded.
    LeaseLost,
}

/// A running handler. Dropping it aborts the handler at its next await point.
struct RunningHandler {
    task: JoinHandle<HandlerResult>,
    state: Arc<AttemptState>,
    stop_grace: Duration,
}

/// Runs `handler` until it finishes, `lost` resolves or `stop` is cancelled.
///
/// On `stop`, cancels the context and gives the handler its cleanup time: until
/// `abort` is cancelled, or at most [`MAX_STOP_GRACE`] without `abort`. A handler
/// that does not return a response by then yields [`AttemptResult::Released`].
/// Dropping the future aborts the handler.
pub(crate) async fn run_handler(
    handler: Arc<dyn DynHandler>,
    context: Context,
    tasks: &Tasks,
    stop: &CancellationToken,
    abort: Option<&CancellationToken>,
    lost: impl Future<Output = ()>,
) -> RunOutcome {
    let stop_grace = handler.shutdown_grace().min(MAX_STOP_GRACE);
    let state = context.state.clone();
    let task = tasks.spawn("handler", handler.start(context));
    let mut running = RunningHandler {
        task,
        state,
        stop_grace,
    };
    pin!(lost);
    select! {
        biased;
        result = &mut running.task => return outcome_of(result),
        () = stop.cancelled() => {}
        () = &mut lost => return running.abandon().await,
    }
    running.state.cancellation_token.cancel();
    let grace_elapsed = async {
        match abort {
            Some(abort) => abort.cancelled().await,
            None if stop_grace.is_zero() => {}
            None => sleep(stop_grace).await,
        }
    };
    let result = select! {
        biased;
        result = &mut running.task => Some(result),
        () = grace_elapsed => {
            // Wait for the abort, so that two attempts do not overlap. The
            // timeout bounds the wait for a handler that blocks its thread.
            running.task.abort();
            timeout(ABORT_TIMEOUT, &mut running.task).await.ok()
        }
        () = lost => return running.abandon().await,
    };
    match result {
        Some(Ok(Ok(response))) => RunOutcome::Finished(AttemptResult::Succeeded(response)),
        // A failure after a stop request is a consequence of the stop.
        _ => RunOutcome::Finished(AttemptResult::Released),
    }
}

// === impl RunningHandler ===

impl RunningHandler {
    /// Stops a handler whose lease is lost, waiting at most `stop_grace`.
    async fn abandon(mut self) -> RunOutcome {
        self.state.cancellation_token.cancel();
        if !self.stop_grace.is_zero() {
            let _ = timeout(self.stop_grace, &mut self.task).await;
        }
        RunOutcome::LeaseLost
    }
}

impl Drop for RunningHandler {
    fn drop(&mut self) {
        self.state.cancellation_token.cancel();
        self.task.abort();
    }
}

fn outcome_of(result: Result<HandlerResult, JoinError>) -> RunOutcome {
    match result {
        Ok(Ok(response)) => RunOutcome::Finished(AttemptResult::Succeeded(response)),
        Ok(Err(failure)) => RunOutcome::Finished(AttemptResult::Failed(failure)),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => RunOutcome::Panicked(AttemptResult::Failed(panic_failure(&*panic))),
            // Aborted because the runtime shuts down.
            Err(_) => RunOutcome::Finished(AttemptResult::Released),
        },
    }
}

fn panic_failure(panic: &(dyn Panic + Send)) -> Failure {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    let text = text.unwrap_or_else(|| "no message".to_owned());
    error!(panic = text, "handler panicked");
    let message = format!("handler panicked: {text}");
    status_with_reason(Code::Internal, "HANDLER_PANICKED", message).into()
}

/// Returns the failure to record instead of an invalid result.
pub(crate) fn invalid_result_failure(error: &dyn std::fmt::Display) -> Failure {
    let message = format!("handler returned an invalid result: {error}");
    status_with_reason(Code::Internal, "INVALID_RESULT", message).into()
}
