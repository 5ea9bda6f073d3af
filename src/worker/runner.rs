//! One run of a handler, wherever its operation was leased: it ends by itself,
//! by a panic, because the lease is lost, or because it must be given back.
//! Keeping the lease and recording the end are the affairs of the caller.

use std::{any::Any as Panic, future::Future, sync::Arc, time::Duration};

use tokio::{
    pin, select,
    task::{JoinError, JoinHandle},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{
    context::{Context, ReportBuffer},
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

/// The most patience with a handler that was told to stop, where there is no
/// grace left: enough for a program that tidies up at SIGTERM.
const MAX_STOP_GRACE: Duration = Duration::from_secs(1);
/// How long an aborted handler may take to its next await.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);

/// How a run ended.
#[derive(Debug)]
pub(crate) enum RunOutcome {
    /// With this, to be recorded.
    Finished(AttemptResult),
    /// With a panic; this is to be recorded.
    Panicked(AttemptResult),
    /// The lease is lost, and nothing is to be recorded.
    LeaseLost,
}

/// The run of a handler. It stops at its next await when this is dropped.
struct RunningHandler {
    task: JoinHandle<HandlerResult>,
    report_buffer: Arc<ReportBuffer>,
    stop_grace: Duration,
}

/// Runs `handler` to its end, until `lost` resolves, or until `release` asks
/// for the operation to be given back. A handler that is to end early is told
/// to stop first, if it wants time for that: on a release until `now` is
/// cancelled, else, and where there is no `now`, very little.
pub(crate) async fn run_handler(
    handler: Arc<dyn DynHandler>,
    context: Context,
    report_buffer: Arc<ReportBuffer>,
    tasks: &Tasks,
    stop: &CancellationToken,
    abort: Option<&CancellationToken>,
    lost: impl Future<Output = ()>,
) -> RunOutcome {
    let stop_grace = handler.shutdown_grace().min(MAX_STOP_GRACE);
    let task = tasks.spawn("handler", handler.start(context));
    let mut running = RunningHandler {
        task,
        report_buffer,
        stop_grace,
    };
    pin!(lost);
    select! {
        biased;
        result = &mut running.task => return outcome_of(result),
        () = stop.cancelled() => {}
        () = &mut lost => return running.abandon().await,
    }
    running.report_buffer.cancellation_token.cancel();
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
            // The operation is offered again only when nobody works on it any
            // more. A handler that blocks its thread is not waited for.
            running.task.abort();
            timeout(ABORT_TIMEOUT, &mut running.task).await.ok()
        }
        () = lost => return running.abandon().await,
    };
    match result {
        Some(Ok(Ok(response))) => RunOutcome::Finished(AttemptResult::Succeeded(response)),
        // It broke off because it was told to, not because it failed.
        _ => RunOutcome::Finished(AttemptResult::Released),
    }
}

// === impl Work ===

impl RunningHandler {
    /// Ends work that is somebody else's now, and hardly waits for it.
    async fn abandon(mut self) -> RunOutcome {
        self.report_buffer.cancellation_token.cancel();
        if !self.stop_grace.is_zero() {
            let _ = timeout(self.stop_grace, &mut self.task).await;
        }
        RunOutcome::LeaseLost
    }
}

impl Drop for RunningHandler {
    fn drop(&mut self) {
        self.report_buffer.cancellation_token.cancel();
        self.task.abort();
    }
}

fn outcome_of(result: Result<HandlerResult, JoinError>) -> RunOutcome {
    match result {
        Ok(Ok(response)) => RunOutcome::Finished(AttemptResult::Succeeded(response)),
        Ok(Err(failure)) => RunOutcome::Finished(AttemptResult::Failed(failure)),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => RunOutcome::Panicked(AttemptResult::Failed(panic_failure(&*panic))),
            // It was aborted, here or by a runtime that shuts down.
            Err(_) => RunOutcome::Finished(AttemptResult::Released),
        },
    }
}

fn panic_failure(panic: &(dyn Panic + Send)) -> Failure {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    let text = text.unwrap_or_else(|| "no message".to_owned());
    error!(panic = text, "a handler panicked");
    let message = format!("the handler of the operation panicked: {text}");
    status_with_reason(Code::Internal, "HANDLER_PANICKED", message).into()
}

/// What is recorded instead of an end that cannot be one.
pub(crate) fn invalid_result_failure(error: &dyn std::fmt::Display) -> Failure {
    let message = format!("the handler returned a bad result: {error}");
    status_with_reason(Code::Internal, "INVALID_RESULT", message).into()
}
