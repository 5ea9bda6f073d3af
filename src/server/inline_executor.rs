//! The executor of HTTP/2 streams: answers most calls without spawning a task.
//!
//! hyper passes one future per request. Reading a cached operation never blocks, so
//! the first poll is inline, and only a pending future becomes a task.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    task::{Context, Poll, Waker},
};

use futures_util::FutureExt;
use hyper::rt::Executor;
use tokio::task::coop;
use tokio_util::task::TaskTracker;

#[cfg(test)]
mod tests;

/// Polls a future once inline and spawns it on the current runtime if it is pending.
/// A panic ends only that future: its stream is reset. The tracker counts the spawned
/// futures.
#[derive(Clone, Debug)]
pub(super) struct InlineFirstExecutor(pub(super) TaskTracker);

// === impl InlineFirstExecutor ===

impl<F> Executor<F> for InlineFirstExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        let mut future = Box::pin(future);
        // If the future is pending, the task polls it again and registers its waker.
        let cx = &mut Context::from_waker(Waker::noop());

        // Each inline poll takes one unit of the coop budget of the connection's task.
        // When it is exhausted, the rest become tasks, so that a busy connection does
        // not delay the others of its thread.
        if let Poll::Ready(coop_budget) = coop::poll_proceed(cx) {
            coop_budget.made_progress();
            match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
                Ok(Poll::Pending) => {}
                Ok(Poll::Ready(())) => return,
                Err(panic) => return log_panic(&*panic),
            }
        }
        self.0.spawn(async {
            if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
                log_panic(&*panic);
            }
        });
    }
}

fn log_panic(panic: &(dyn Any + Send)) {
    let panic = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text.as_str(),
        _ => "no message",
    };
    tracing::error!(panic, "call panicked; its stream is reset");
}
