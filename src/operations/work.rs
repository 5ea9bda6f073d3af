//! What workers ask of `Operations`, wherever they are: leases, signs of life,
//! ends. In-process handlers need none of it; their pool does it for them.

use std::{sync::Arc, time::Duration};

use prost_types::Any;
use tokio::{
    select,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::operations::{Operations, far_future};
use crate::{
    error::{Error, Result},
    operation::{
        end::End,
        lease::{LeaseToken, WorkerId},
        name::OperationName,
        operation::Operation,
        outcome::Failure,
        stage::{Event, Report},
        terms::QueueName,
    },
    store::directives::{Desk, Notice},
};

/// The notices for one worker, as they come: see [`Operations::directives`].
#[derive(Debug)]
pub(crate) struct DirectiveStream {
    desk: Desk,
    stopping: CancellationToken,
}

// === impl Operations ===

impl Operations {
    /// Takes the lease of the next operation of a queue; waits for one.
    ///
    /// # Errors
    /// UNAVAILABLE while the store cannot write or shuts down.
    pub async fn lease(&self, queue: &QueueName, worker: &WorkerId) -> Result<Arc<Operation>> {
        let queues = std::slice::from_ref(queue);
        loop {
            let mut leased = self
                .store()
                .claim(queues, worker, 1, std::future::pending())
                .await?;
            if let Some(operation) = leased.pop() {
                return Ok(operation);
            }
        }
    }

    /// Takes the leases of at most `most` operations of some queues, by
    /// priority, then age. Waits at most for `wait` for the first one; none
    /// come if there was none, or when the worker is [draining].
    ///
    /// [draining]: Operations::drain_worker
    ///
    /// # Errors
    /// As [`Operations::lease`]; RESOURCE_EXHAUSTED if there was none, and too
    /// many wait already.
    pub async fn lease_batch(
        &self,
        queues: &[QueueName],
        worker: &WorkerId,
        most: usize,
        wait: Duration,
    ) -> Result<Vec<Arc<Operation>>> {
        self.store().freshen().await?;
        let mut desk = self.store().view.directives.enter(worker);
        let deadline = Instant::now().checked_add(wait).unwrap_or_else(far_future);
        let enough = async {
            // Over the limit of those who wait, there is no wait.
            if let Some(desk) = &mut desk {
                select! {
                    () = sleep_until(deadline) => {}
                    () = desk.draining() => {}
                }
            }
        };
        let leased = self.store().claim(queues, worker, most, enough).await?;
        if leased.is_empty() && !wait.is_zero() && desk.is_none() {
            // An empty list would be asked for again at once.
            return Err(self.too_many_waiters());
        }
        Ok(leased)
    }

    /// Says that a worker takes nothing more: the leases that it waits for just
    /// now are answered with none.
    pub fn drain_worker(&self, worker: &WorkerId) {
        self.store().view.directives.drain(worker);
    }

    /// Follows what becomes of the operations that a worker holds.
    pub(crate) fn directives(&self, worker: &WorkerId) -> Result<DirectiveStream> {
        let desk = self.store().view.directives.enter(worker);
        Ok(DirectiveStream {
            desk: desk.ok_or_else(|| self.too_many_waiters())?,
            stopping: self.store().tasks.stopping().clone(),
        })
    }

    fn too_many_waiters(&self) -> Error {
        Error::TooManyWaiters {
            limit: self.store().limits.max_waiters,
        }
    }

    /// Whether the server shuts down, so that workers take nothing new.
    pub(crate) fn is_stopping(&self) -> bool {
        self.store().tasks.stopping().is_cancelled()
    }

    /// How long leases last whose creator leaves it out.
    pub(crate) fn lease_duration(&self) -> Duration {
        self.defaults().lease_duration
    }

    /// Renews a lease.
    ///
    /// # Errors
    /// FAILED_PRECONDITION with LEASE_LOST, or OPERATION_DONE, if it is not held
    /// any more: stop working.
    pub async fn renew(&self, name: &OperationName, token: LeaseToken) -> Result<Arc<Operation>> {
        self.heartbeat(name, token, Report::default()).await
    }

    /// Renews a lease, and tells how far the work is.
    ///
    /// # Errors
    /// As [`Operations::renew`]; INVALID_ARGUMENT if the progress is out of range,
    /// RESOURCE_EXHAUSTED if the report is too large, and then the lease is not
    /// renewed.
    pub async fn heartbeat(
        &self,
        name: &OperationName,
        token: LeaseToken,
        report: Report,
    ) -> Result<Arc<Operation>> {
        report.check()?;
        self.store().commit(name, Event::Renew(token, report)).await
    }

    /// Tells how far the work is, without renewing the lease.
    ///
    /// # Errors
    /// As [`Operations::heartbeat`].
    pub async fn report(
        &self,
        name: &OperationName,
        token: LeaseToken,
        report: Report,
    ) -> Result<Arc<Operation>> {
        report.check()?;
        self.store()
            .commit(name, Event::Report(token, report))
            .await
    }

    /// Ends an attempt, with a last report. Ending it again the same way is fine.
    ///
    /// # Errors
    /// FAILED_PRECONDITION with LEASE_LOST or OPERATION_DONE, INVALID_ARGUMENT
    /// for a malformed `Any` or a code that is no error, RESOURCE_EXHAUSTED if it
    /// is too large.
    pub async fn finish(
        &self,
        name: &OperationName,
        token: LeaseToken,
        end: End,
        report: Report,
    ) -> Result<Arc<Operation>> {
        report.check()?;
        let event = end.into_event(token, report)?;
        self.store().commit(name, event).await
    }

    /// Finishes an operation with a response.
    ///
    /// # Errors
    /// As [`Operations::finish`].
    pub async fn succeed(
        &self,
        name: &OperationName,
        token: LeaseToken,
        response: Any,
    ) -> Result<Arc<Operation>> {
        let end = End::Response(response);
        self.finish(name, token, end, Report::default()).await
    }

    /// Finishes an attempt with a failure.
    ///
    /// # Errors
    /// As [`Operations::finish`].
    pub async fn fail(
        &self,
        name: &OperationName,
        token: LeaseToken,
        failure: Failure,
    ) -> Result<Arc<Operation>> {
        let end = End::Failure(failure);
        self.finish(name, token, end, Report::default()).await
    }

    /// Gives an operation back to its queue; the attempt does not count.
    ///
    /// # Errors
    /// As [`Operations::finish`].
    pub async fn release(&self, name: &OperationName, token: LeaseToken) -> Result<Arc<Operation>> {
        self.finish(name, token, End::Release, Report::default())
            .await
    }
}

// === impl DirectiveStream ===

impl DirectiveStream {
    /// The next notice; none when the server shuts down.
    pub(crate) async fn next(&mut self) -> Option<Notice> {
        select! {
            biased;
            () = self.stopping.cancelled() => None,
            notice = self.desk.notice() => Some(notice),
        }
    }
}
