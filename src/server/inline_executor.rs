//! The executor of HTTP/2 streams: most calls are answered without a task.
//!
//! hyper hands over a future for every request. Reading a stored operation
//! never waits, so the future is polled once where it stands and only becomes
//! a task when it pends. The tasks are counted here; who waits for them, or
//! drops them with their connection, is decided in `accept`.

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

/// Polls a future once in place, and spawns it on the current runtime if it
/// has to wait. A panic ends that one future only: its stream is reset.
#[derive(Clone, Debug)]
pub(super) struct InlineFirstExecutor {
    tasks: TaskTracker,
}

// === impl InPlace ===

impl InlineFirstExecutor {
    pub(super) fn new(tasks: TaskTracker) -> Self {
        Self { tasks }
    }
}

impl<F> Executor<F> for InlineFirstExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        let mut future = Box::pin(future);
        // Nobody is woken for this poll: should the future pend, the task polls
        // it again and so leaves its own waker.
        let cx = &mut Context::from_waker(Waker::noop());

        // Each call takes its share of the connection's turn. When the turn is
        // over, the rest become tasks, so that one busy connection cannot hold
        // up the others of its lane.
        if let Poll::Ready(coop_budget) = coop::poll_proceed(cx) {
            coop_budget.made_progress();
            match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
                Ok(Poll::Pending) => {}
                Ok(Poll::Ready(())) => return,
                Err(panic) => return log_panic(&*panic),
            }
        }
        self.tasks.spawn(async {
            if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
                log_panic(&*panic);
            }
        });
    }
}

fn log_panic(panic: &(dyn Any + Send)) {
    let panic_message = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(message), _) => message,
        (_, Some(message)) => message.as_str(),
        _ => "no message",
    };
    tracing::error!(panic_message, "a call panicked; its stream is reset");
}
