//! Spawns background tasks. Every task has a name and a tracing span. The owner of a
//! `Tasks` waits for its tasks on shutdown; helper tasks without an owner end with
//! their input or the runtime.

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

/// Size from which decoding, searching and printing take milliseconds. On an IO
/// thread this would delay its other connections.
pub(crate) const BLOCKING_THRESHOLD_BYTES: usize = 64 * 1024;

/// The tasks of one owner. Clones share the tracker and the stop token.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    stop_token: CancellationToken,
}

impl Tasks {
    /// Spawns `future` on the current runtime, in a span with the field `task.name`.
    pub(crate) fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker
            .spawn(future.instrument(info_span!("task", task.name = name)))
    }

    /// Returns the token that `stop` cancels.
    pub(crate) fn stop_token(&self) -> &CancellationToken {
        &self.stop_token
    }

    /// Cancels the stop token and waits until every task has ended.
    pub(crate) async fn stop(&self) {
        self.stop_token.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Returns a token that counts as a task until it is dropped, for work that runs
    /// outside of `Tasks`.
    pub(crate) fn token(&self) -> TaskTrackerToken {
        self.tracker.token()
    }

    /// Runs `future` to completion even if the returned future is dropped after its
    /// first poll, as tonic drops handlers when the client disconnects. The first poll
    /// is inline, which completes a future without IO; a pending future is spawned.
    ///
    /// # Panics
    /// Resumes a panic of `future`.
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
                // These tasks are never aborted, so a join error is a panic.
                Err(error) => resume_unwind(error.into_panic()),
            },
        }
    }
}

/// Runs `work`, which processes `bytes` bytes: inline below
/// [`BLOCKING_THRESHOLD_BYTES`], else on a blocking thread. Work that has started
/// there completes even if the returned future is dropped.
pub(crate) async fn spawn_blocking_if_large<F, T>(bytes: usize, work: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    if bytes < BLOCKING_THRESHOLD_BYTES {
        return work();
    }
    run_blocking(work).await
}

/// Runs `work` on a blocking thread.
///
/// # Panics
/// Resumes a panic of `work`.
pub(crate) async fn run_blocking<F, T>(work: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    match spawn_blocking(work).await {
        Ok(output) => output,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime is shutting down and drops this future.
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
            gate_receiver.await.unwrap();
            done_sender.send(()).unwrap();
        });
        let mut caller = Box::pin(work);
        assert!(futures_util::poll!(caller.as_mut()).is_pending());
        drop(caller);
        gate_sender.send(()).unwrap();
        done_receiver
            .await
            .expect("the work continues without its caller");
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
