//! The only spawn outside of connections: every background task has a name, a
//! span, an owner and an end. What the tasks do lives with those who start them.
//! Work that would keep its thread for long is done aside.

use std::{
    future::{Future, pending, poll_fn},
    panic::resume_unwind,
    pin::Pin,
    task::Poll,
};

use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tracing::{Instrument, info_span};

/// From so many bytes on, decoding, searching and printing take milliseconds,
/// for which the other connections of a lane would stand still.
pub(crate) const BLOCKING_THRESHOLD_BYTES: usize = 64 * 1024;

/// The tasks of one owner. Clones share the tracker and the stop signal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    stop_token: CancellationToken,
}

impl Tasks {
    /// Starts `future` on the current runtime, within a span that bears `name`.
    pub(crate) fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker
            .spawn(future.instrument(info_span!("task", name)))
    }

    /// The signal that tells the tasks to end.
    pub(crate) fn stop_token(&self) -> &CancellationToken {
        &self.stop_token
    }

    /// Raises the signal and waits until every task has ended.
    pub(crate) async fn stop(&self) {
        self.stop_token.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Counts as a task until it is dropped, for work that is in other hands.
    pub(crate) fn token(&self) -> TaskTrackerToken {
        self.tracker.token()
    }

    /// Runs `future` to its end even if the caller goes away, as tonic's
    /// handlers do when their client leaves. It is polled once in place, which
    /// is all that a future without IO needs, and becomes a task only if that
    /// was not enough.
    pub(crate) async fn run_to_completion<F>(&self, name: &'static str, future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let mut future: Pin<Box<F>> = Box::pin(future);
        let first_poll = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        match first_poll {
            Poll::Ready(output) => output,
            Poll::Pending => match self.spawn(name, future).await {
                Ok(output) => output,
                // Nobody aborts these tasks, so a join error is a panic of the future.
                Err(error) => resume_unwind(error.into_panic()),
            },
        }
    }
}

/// Does the work that so many bytes make: at once, or, if they are many, on a
/// thread for such work. If nobody waits for it any longer, it still ends.
pub(crate) async fn spawn_blocking_if_large<F, T>(bytes: usize, work: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    if bytes < BLOCKING_THRESHOLD_BYTES {
        return work();
    }
    match spawn_blocking(work).await {
        Ok(output) => output,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime ends, and this future with it.
            Err(_) => pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn run_to_completion_finishes_after_caller_is_dropped() {
        let tasks = Tasks::default();
        let (gate_sender, gate_receiver) = oneshot::channel::<()>();
        let (done_sender, done_receiver) = oneshot::channel::<()>();
        let work = tasks.run_to_completion("test", async move {
            gate_receiver.await.expect("the test opens the gate");
            done_sender.send(()).expect("the test listens");
        });
        let mut caller = Box::pin(work);
        assert!(futures_util::poll!(caller.as_mut()).is_pending());
        drop(caller);
        gate_sender.send(()).expect("the work waits at the gate");
        done_receiver
            .await
            .expect("the work goes on without its caller");
    }

    #[tokio::test]
    async fn stop_waits_for_all_tasks() {
        let tasks = Tasks::default();
        let stop_token = tasks.stop_token().clone();
        let task = tasks.spawn("test", async move { stop_token.cancelled().await });
        tasks.stop().await;
        assert!(task.is_finished());
    }

    #[tokio::test]
    async fn large_work_is_offloaded_and_small_work_runs_inline() {
        let current_thread = thread::current().id();
        let thread_id = || thread::current().id();
        assert_eq!(
            spawn_blocking_if_large(BLOCKING_THRESHOLD_BYTES - 1, thread_id).await,
            current_thread
        );
        assert_ne!(
            spawn_blocking_if_large(BLOCKING_THRESHOLD_BYTES, thread_id).await,
            current_thread
        );
    }
}
