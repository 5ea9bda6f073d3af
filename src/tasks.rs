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
pub(crate) const LARGE: usize = 64 * 1024;

/// The tasks of one owner. Clones share the tracker and the stop signal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    stopping: CancellationToken,
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
    pub(crate) fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Raises the signal and waits until every task has ended.
    pub(crate) async fn stop(&self) {
        self.stopping.cancel();
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
    pub(crate) async fn to_the_end<F>(&self, name: &'static str, future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let mut future: Pin<Box<F>> = Box::pin(future);
        let first = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        match first {
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
pub(crate) async fn aside<F, T>(bytes: usize, work: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    if bytes < LARGE {
        return work();
    }
    match spawn_blocking(work).await {
        Ok(done) => done,
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
    async fn work_goes_to_its_end_when_its_caller_leaves() {
        let tasks = Tasks::default();
        let (open, gate) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel::<()>();
        let work = tasks.to_the_end("test", async move {
            gate.await.expect("the test opens the gate");
            tell.send(()).expect("the test listens");
        });
        let mut caller = Box::pin(work);
        assert!(futures_util::poll!(caller.as_mut()).is_pending());
        drop(caller);
        open.send(()).expect("the work waits at the gate");
        told.await.expect("the work goes on without its caller");
    }

    #[tokio::test]
    async fn stop_waits_for_the_last_task() {
        let tasks = Tasks::default();
        let stopping = tasks.stopping().clone();
        let task = tasks.spawn("test", async move { stopping.cancelled().await });
        tasks.stop().await;
        assert!(task.is_finished());
    }

    #[tokio::test]
    async fn much_work_is_done_on_another_thread_and_little_in_place() {
        let here = thread::current().id();
        let place = || thread::current().id();
        assert_eq!(aside(LARGE - 1, place).await, here);
        assert_ne!(aside(LARGE, place).await, here);
    }
}
