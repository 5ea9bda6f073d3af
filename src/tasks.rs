//! The only spawn outside of connections: every background task has a name, a
//! span, an owner and an end. What the tasks do lives with those who start them.

use std::{
    future::{Future, poll_fn},
    panic::resume_unwind,
    pin::Pin,
    task::Poll,
};

use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, info_span};

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

#[cfg(test)]
mod tests {
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
}
