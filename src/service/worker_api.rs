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
        Operation,
        attempt_result::AttemptResult,
        lease::{LeaseToken, WorkerId},
        name::OperationName,
        options::QueueName,
        outcome::Failure,
        transition::{Event, Report},
    },
    store::directives::{LeaseDirective, Subscription},
};

/// The notices for one worker, as they come: see [`Operations::directives`].
#[derive(Debug)]
pub(crate) struct DirectiveStream {
    subscription: Subscription,
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
                .lease_batch(queues, worker, 1, std::future::pending())
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
        max_operations: usize,
        wait_timeout: Duration,
    ) -> Result<Vec<Arc<Operation>>> {
        self.store().ensure_read_consistency().await?;
        let mut subscription = self.store().view.directives.subscribe(worker);
        let deadline = Instant::now()
            .checked_add(wait_timeout)
            .unwrap_or_else(far_future);
        let wait_ended = async {
            // Over the limit of those who wait, there is no wait.
            if let Some(subscription) = &mut subscription {
                select! {
                    () = sleep_until(deadline) => {}
                    () = subscription.wait_for_drain() => {}
                }
            }
        };
        let leased = self
            .store()
            .lease_batch(queues, worker, max_operations, wait_ended)
            .await?;
        if leased.is_empty() && !wait_timeout.is_zero() && subscription.is_none() {
            // An empty list would be asked for again at once.
            return Err(self.too_many_waiters());
        }
        Ok(leased)
    }

    /// Says that a worker takes nothing more: the leases that it waits for just
    /// now are answered with none.
    pub fn drain_worker(&self, worker: &WorkerId) {
        self.store().view.directives.notify_drain(worker);
    }

    /// Follows what becomes of the operations that a worker holds.
    pub(crate) fn watch_directives(&self, worker: &WorkerId) -> Result<DirectiveStream> {
        let subscription = self.store().view.directives.subscribe(worker);
        Ok(DirectiveStream {
            subscription: subscription.ok_or_else(|| self.too_many_waiters())?,
            stopping: self.store().tasks.stop_token().clone(),
        })
    }

    fn too_many_waiters(&self) -> Error {
        Error::TooManyWaiters {
            limit: self.store().limits.max_waiters,
        }
    }

    /// Whether the server shuts down, so that workers take nothing new.
    pub(crate) fn is_stopping(&self) -> bool {
        self.store().tasks.stop_token().is_cancelled()
    }

    /// How long leases last whose creator leaves it out.
    pub(crate) fn default_lease_duration(&self) -> Duration {
        self.default_options().lease_duration
    }

    /// Renews a lease.
    ///
    /// # Errors
    /// FAILED_PRECONDITION with LEASE_LOST, or OPERATION_ALREADY_DONE, if it is not held
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
        self.store()
            .commit(name, Event::RenewLease(token, report))
            .await
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
    /// FAILED_PRECONDITION with LEASE_LOST or OPERATION_ALREADY_DONE, INVALID_ARGUMENT
    /// for a malformed `Any` or a code that is no error, RESOURCE_EXHAUSTED if it
    /// is too large.
    pub async fn finish(
        &self,
        name: &OperationName,
        token: LeaseToken,
        result: AttemptResult,
        report: Report,
    ) -> Result<Arc<Operation>> {
        report.check()?;
        let event = result.into_event(token, report)?;
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
        let result = AttemptResult::Succeeded(response);
        self.finish(name, token, result, Report::default()).await
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
        let result = AttemptResult::Failed(failure);
        self.finish(name, token, result, Report::default()).await
    }

    /// Gives an operation back to its queue; the attempt does not count.
    ///
    /// # Errors
    /// As [`Operations::finish`].
    pub async fn release(&self, name: &OperationName, token: LeaseToken) -> Result<Arc<Operation>> {
        self.finish(name, token, AttemptResult::Released, Report::default())
            .await
    }
}

// === impl DirectiveStream ===

impl DirectiveStream {
    /// The next notice; none when the server shuts down.
    pub(crate) async fn next(&mut self) -> Option<LeaseDirective> {
        select! {
            biased;
            () = self.stopping.cancelled() => None,
            notice = self.subscription.next_directive() => Some(notice),
        }
    }
}
