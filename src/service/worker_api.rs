//! The worker-side API of [`Operations`]: leases, heartbeats, reports and results.

use std::{future::pending, sync::Arc, time::Duration};

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
    store::{
        directives::{LeaseDirective, Subscription},
        lease_delivery::UndeliveredLease,
    },
};

/// The directives for one worker: see [`Operations::watch_directives`].
#[derive(Debug)]
pub(crate) struct DirectiveStream {
    subscription: Subscription,
    stopping: CancellationToken,
}

// === impl Operations ===

impl Operations {
    /// Leases the next operation of a queue; waits until there is one.
    ///
    /// In-process handlers need no calls of this API: their pool makes them.
    ///
    /// # Errors
    /// UNAVAILABLE while the store cannot write or shuts down.
    pub async fn lease(&self, queue: &QueueName, worker: &WorkerId) -> Result<Arc<Operation>> {
        let queues = std::slice::from_ref(queue);
        loop {
            let leased = self.store().lease_batch(queues, worker, 1, None, pending());
            if let Some(lease) = leased.await?.pop() {
                return Ok(lease.deliver());
            }
        }
    }

    /// Leases up to `max_operations` operations of some queues, by priority, then
    /// age. Waits up to `wait_timeout` for the first one. Returns an empty list
    /// after that, and when the worker [drains](Operations::drain_worker).
    ///
    /// # Errors
    /// As [`Operations::lease`]; RESOURCE_EXHAUSTED if the call would wait and the
    /// server has too many waiters.
    pub async fn lease_batch(
        &self,
        queues: &[QueueName],
        worker: &WorkerId,
        max_operations: usize,
        wait_timeout: Duration,
    ) -> Result<Vec<Arc<Operation>>> {
        let leases = self.lease_undelivered(queues, worker, max_operations, wait_timeout, None);
        let leases = leases.await?.into_iter();
        Ok(leases.map(UndeliveredLease::deliver).collect())
    }

    /// As [`lease_batch`](Self::lease_batch), for a worker that must confirm its leases within a time, at most that of
    /// the lease. `None`: they are confirmed at once.
    pub(crate) async fn lease_undelivered(
        &self,
        queues: &[QueueName],
        worker: &WorkerId,
        max_operations: usize,
        wait_timeout: Duration,
        confirm_within: Option<Duration>,
    ) -> Result<Vec<UndeliveredLease>> {
        self.store().ensure_linearizable().await?;
        let mut subscription = self.store().view.directives.subscribe(worker);
        let deadline = Instant::now()
            .checked_add(wait_timeout)
            .unwrap_or_else(far_future);
        let wait_ended = async {
            // Over the limit of waiters, the call does not wait.
            if let Some(subscription) = &mut subscription {
                select! {
                    () = sleep_until(deadline) => {}
                    () = subscription.wait_for_drain() => {}
                }
            }
        };
        let store = self.store();
        let leased = store
            .lease_batch(queues, worker, max_operations, confirm_within, wait_ended)
            .await?;
        if leased.is_empty() && !wait_timeout.is_zero() && subscription.is_none() {
            // After an empty list the worker would call again immediately.
            return Err(self.too_many_waiters());
        }
        Ok(leased)
    }

    /// Ends the open [`lease_batch`](Self::lease_batch) calls of a worker with an
    /// empty list.
    pub fn drain_worker(&self, worker: &WorkerId) {
        self.store().view.directives.notify_drain(worker);
    }

    /// Subscribes to the directives for a worker.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if the server has too many waiters.
    pub(crate) fn watch_directives(&self, worker: &WorkerId) -> Result<DirectiveStream> {
        let subscription = self.store().view.directives.subscribe(worker);
        Ok(DirectiveStream {
            subscription: subscription.ok_or_else(|| self.too_many_waiters())?,
            stopping: self.store().tasks.stop_token().clone(),
        })
    }

    pub(super) fn too_many_waiters(&self) -> Error {
        Error::TooManyWaiters {
            limit: self.store().limits.max_waiters,
        }
    }

    /// Returns `true` if the server is shutting down.
    pub(crate) fn is_stopping(&self) -> bool {
        self.store().tasks.stop_token().is_cancelled()
    }

    /// Returns the lease duration of operations whose creator set none.
    pub(crate) fn default_lease_duration(&self) -> Duration {
        self.0.defaults.options.lease_duration
    }

    /// Renews a lease.
    ///
    /// # Errors
    /// FAILED_PRECONDITION with LEASE_LOST or OPERATION_ALREADY_DONE if the lease is
    /// no longer valid: stop working.
    pub async fn renew(&self, name: &OperationName, token: LeaseToken) -> Result<Arc<Operation>> {
        self.heartbeat(name, token, Report::default()).await
    }

    /// Renews a lease and merges a report.
    ///
    /// # Errors
    /// As [`Operations::renew`]; INVALID_ARGUMENT if the progress is out of range,
    /// RESOURCE_EXHAUSTED if the report is too large. The lease is not renewed then.
    pub async fn heartbeat(
        &self,
        name: &OperationName,
        token: LeaseToken,
        report: Report,
    ) -> Result<Arc<Operation>> {
        report.check()?;
        let event = Event::Heartbeat(token, report);
        self.store().commit(name, event).await
    }

    /// Merges a report without renewing the lease.
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
        let event = Event::Report(token, report);
        self.store().commit(name, event).await
    }

    /// Records the result of an attempt, with a last report. Repeating the call with
    /// the same result succeeds.
    ///
    /// # Errors
    /// FAILED_PRECONDITION with LEASE_LOST or OPERATION_ALREADY_DONE, INVALID_ARGUMENT
    /// for a malformed `Any` or an invalid error code, RESOURCE_EXHAUSTED if the
    /// result or the report is too large.
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

    /// Records a response as the result of an attempt.
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

    /// Records a failure as the result of an attempt.
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

    /// Returns an operation to its queue; the attempt does not count.
    ///
    /// # Errors
    /// As [`Operations::finish`].
    pub async fn release(&self, name: &OperationName, token: LeaseToken) -> Result<Arc<Operation>> {
        let result = AttemptResult::Released;
        self.finish(name, token, result, Report::default()).await
    }
}

// === impl DirectiveStream ===

impl DirectiveStream {
    /// Waits for the next directive. Returns `None` when the server shuts down.
    pub(crate) async fn next(&mut self) -> Option<LeaseDirective> {
        select! {
            biased;
            () = self.stopping.cancelled() => None,
            directive = self.subscription.next_directive() => Some(directive),
        }
    }
}
