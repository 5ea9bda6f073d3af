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
    context::{Context, Desk},
    handler::{AnyHandler, HandlerResult},
};
use crate::{
    operation::{
        end::End,
        outcome::{Failure, status},
    },
    proto::google::rpc::Code,
    tasks::Tasks,
};

/// The most patience with a handler that was told to stop, where there is no
/// grace left: enough for a program that tidies up at SIGTERM.
const STOP_PATIENCE: Duration = Duration::from_secs(1);
/// How long an aborted handler may take to its next await.
const ABORT_PATIENCE: Duration = Duration::from_secs(1);

/// How a run ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// With this, to be recorded.
    With(End),
    /// With a panic; this is to be recorded.
    Panicked(End),
    /// The lease is lost, and nothing is to be recorded.
    Lost,
}

/// The run of a handler. It stops at its next await when this is dropped.
struct Work {
    task: JoinHandle<HandlerResult>,
    desk: Arc<Desk>,
    patience: Duration,
}

/// Runs `handler` to its end, until `lost` resolves, or until `release` asks
/// for the operation to be given back. A handler that is to end early is told
/// to stop first, if it wants time for that: on a release until `now` is
/// cancelled, else, and where there is no `now`, very little.
pub(crate) async fn execute(
    handler: Arc<dyn AnyHandler>,
    context: Context,
    desk: Arc<Desk>,
    tasks: &Tasks,
    release: &CancellationToken,
    now: Option<&CancellationToken>,
    lost: impl Future<Output = ()>,
) -> Ended {
    let patience = handler.patience().min(STOP_PATIENCE);
    let task = tasks.spawn("handler", handler.start(context));
    let mut work = Work {
        task,
        desk,
        patience,
    };
    pin!(lost);
    select! {
        biased;
        result = &mut work.task => return concluded(result),
        () = release.cancelled() => {}
        () = &mut lost => return work.give_up().await,
    }
    work.desk.cancelled.cancel();
    let hurry = async {
        match now {
            Some(now) => now.cancelled().await,
            None if patience.is_zero() => {}
            None => sleep(patience).await,
        }
    };
    let result = select! {
        biased;
        result = &mut work.task => Some(result),
        () = hurry => {
            // The operation is offered again only when nobody works on it any
            // more. A handler that blocks its thread is not waited for.
            work.task.abort();
            timeout(ABORT_PATIENCE, &mut work.task).await.ok()
        }
        () = lost => return work.give_up().await,
    };
    match result {
        Some(Ok(Ok(response))) => Ended::With(End::Response(response)),
        // It broke off because it was told to, not because it failed.
        _ => Ended::With(End::Release),
    }
}

// === impl Work ===

impl Work {
    /// Ends work that is somebody else's now, and hardly waits for it.
    async fn give_up(mut self) -> Ended {
        self.desk.cancelled.cancel();
        if !self.patience.is_zero() {
            let _ = timeout(self.patience, &mut self.task).await;
        }
        Ended::Lost
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.desk.cancelled.cancel();
        self.task.abort();
    }
}

fn concluded(result: Result<HandlerResult, JoinError>) -> Ended {
    match result {
        Ok(Ok(response)) => Ended::With(End::Response(response)),
        Ok(Err(failure)) => Ended::With(End::Failure(failure)),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => Ended::Panicked(End::Failure(panicked(&*panic))),
            // It was aborted, here or by a runtime that shuts down.
            Err(_) => Ended::With(End::Release),
        },
    }
}

fn panicked(panic: &(dyn Panic + Send)) -> Failure {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    let text = text.unwrap_or_else(|| "no message".to_owned());
    error!(panic = text, "a handler panicked");
    let message = format!("the handler of the operation panicked: {text}");
    status(Code::Internal, "HANDLER_PANICKED", message).into()
}

/// What is recorded instead of an end that cannot be one.
pub(crate) fn bad_result(error: &dyn std::fmt::Display) -> Failure {
    let message = format!("the handler returned a bad result: {error}");
    status(Code::Internal, "BAD_RESULT", message).into()
}
