//! The client-side API of [`Operations`], and its lifecycle.

use std::{sync::Arc, time::Duration};

use prost_types::Any;
use tokio::{
    select,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    list::{ListSource, Page},
    new_operation::{ExecutionDefaults, NewOperation, OptionsInterner},
};
use crate::{
    clock::Clock,
    error::{Error, Result},
    metrics::Metrics,
    operation::{Operation, name::OperationName},
    proto::google::longrunning::ListOperationsRequest,
    store::{create::Created, state::Store, waiters::WaitFor},
    tasks::Tasks,
    types::TypeRegistry,
};

/// The minimum time that the first read of a wait may take, more than a read of
/// consistency `Auto` waits for the storage.
const MIN_READ_TIMEOUT: Duration = Duration::from_secs(2);

/// A handle to the operations of one server. Clones share them. Dropping the last
/// handle stops the workers.
#[derive(Clone, Debug)]
pub struct Operations(pub(super) Arc<OperationsInner>);

#[derive(Debug)]
pub(super) struct OperationsInner {
    pub(super) store: Arc<Store>,
    pub(super) defaults: ExecutionDefaults,
    pub(super) options_interner: OptionsInterner,
    pub(super) metrics: Metrics,
    pub(super) types: TypeRegistry,
    /// The worker pools and their attempts.
    pub(super) worker_tasks: Tasks,
    /// Makes running attempts release their leases.
    pub(super) release_token: CancellationToken,
}

// === impl Operations ===

impl Operations {
    pub(super) fn store(&self) -> &Arc<Store> {
        &self.0.store
    }

    /// Creates an operation. It is durable and visible to all clients on return.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for an invalid value, ALREADY_EXISTS if the id is taken or
    /// the request id was used for another request, RESOURCE_EXHAUSTED at a limit,
    /// UNAVAILABLE while the store cannot write or shuts down.
    pub async fn create(&self, new_operation: NewOperation) -> Result<Created> {
        let spec = new_operation.into_spec(&self.0.defaults, &self.0.options_interner)?;
        self.0.store.create(spec).await
    }

    /// Creates an operation that a worker of `queue` executes.
    ///
    /// # Errors
    /// As [`Operations::create`].
    pub async fn submit(&self, queue: &str, input: Any) -> Result<Arc<Operation>> {
        let new_operation = NewOperation::queued(queue).input(input);
        Ok(self.create(new_operation).await?.operation)
    }

    /// Returns an operation from this server's memory, without waiting. With a
    /// [`SharedStorage`](crate::SharedStorage) it may be stale or missing.
    ///
    /// # Errors
    /// NOT_FOUND if this server knows no such operation.
    pub fn get_cached(&self, name: &OperationName) -> Result<Arc<Operation>> {
        let found = self.0.store.view.get_visible(name.as_str());
        found.ok_or_else(|| Error::not_found(name.as_str()))
    }

    /// Returns an operation. With a [`SharedStorage`](crate::SharedStorage) an
    /// operation that is not in memory is read from the storage, and the
    /// [`ReadConsistency`](crate::ReadConsistency) decides which changes of other
    /// servers the result includes.
    ///
    /// # Errors
    /// NOT_FOUND if it never existed, was deleted or has expired; UNAVAILABLE if the
    /// storage cannot be read.
    pub async fn get(&self, name: &OperationName) -> Result<Arc<Operation>> {
        if let Some(done) = self.0.store.get_settled(name.as_str()) {
            return Ok(done);
        }
        self.0.store.ensure_read_consistency().await?;
        match self.get_cached(name) {
            Err(error) if self.0.store.is_shared() => {
                self.0.store.read_through(name).await?.ok_or(error)
            }
            found => found,
        }
    }

    /// Returns one page of operations, newest first. A page ends after 100 000
    /// examined operations or 100 ms: with a filter it may be short or even empty
    /// and still have a next page.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for an invalid name, page size, token or filter, or for
    /// `return_partial_success` with a single parent; UNAVAILABLE if the storage
    /// cannot be read.
    pub async fn list(&self, request: &ListOperationsRequest) -> Result<Page> {
        self.list_any(request, false).await
    }

    /// Returns one page of operations like [`list`](Self::list), with `show_deleted`
    /// also those that were deleted and are still queued or running.
    ///
    /// # Errors
    /// As [`Operations::list`].
    pub async fn list_any(
        &self,
        request: &ListOperationsRequest,
        show_deleted: bool,
    ) -> Result<Page> {
        let OperationsInner { store, types, .. } = &*self.0;
        let is_up_to_date = match store.ensure_read_consistency().await {
            Err(_) if request.return_partial_success => false,
            result => result?,
        };
        let source = ListSource {
            view: &store.view,
            shared_store: store.is_shared().then_some(&**store),
            is_up_to_date,
            types,
            clock: store.clock,
        };
        source.list_page(request, show_deleted).await
    }

    /// Requests cancellation. A pending operation is done on return; a running one
    /// may still succeed; a done one stays unchanged.
    ///
    /// # Errors
    /// NOT_FOUND; UNAVAILABLE while the store cannot write.
    pub async fn cancel(&self, name: &OperationName) -> Result<Arc<Operation>> {
        self.0.store.cancel(name, false).await
    }

    /// Requests cancellation like [`cancel`](Self::cancel), also of an operation that
    /// was deleted and is still queued or running.
    ///
    /// # Errors
    /// As [`Operations::cancel`].
    pub async fn cancel_any(&self, name: &OperationName) -> Result<Arc<Operation>> {
        self.0.store.cancel(name, true).await
    }

    /// Deletes an operation: it is invisible to clients on return. Running work is
    /// not cancelled; its result is discarded.
    ///
    /// # Errors
    /// NOT_FOUND, also for a repeated call; UNAVAILABLE while the store cannot write.
    pub async fn delete(&self, name: &OperationName) -> Result<()> {
        self.0.store.delete(name).await
    }

    /// Waits until the operation is done, or for `max_wait`, and returns its current
    /// state. Returns early if the server shuts down or has too many waiters.
    ///
    /// # Errors
    /// As [`Operations::get`]; NOT_FOUND also if it is deleted or expires meanwhile.
    pub async fn wait(&self, name: &OperationName, max_wait: Duration) -> Result<Arc<Operation>> {
        let deadline = Instant::now().checked_add(max_wait);
        let current = if self.0.store.is_shared() {
            // The storage may be silent for longer than the caller wants to wait.
            let read = timeout(max_wait.max(MIN_READ_TIMEOUT), self.get(name)).await;
            read.map_err(|_| Error::StoreUnavailable)??
        } else {
            self.get(name).await?
        };
        if current.is_done() || max_wait.is_zero() {
            return Ok(current);
        }
        let stopping = self.0.store.tasks.stop_token();
        let waiters = &self.0.store.view.waiters;
        let number = current.number();
        let Some(mut waiter) = waiters.register(number, WaitFor::Done) else {
            return Ok(current);
        };
        drop(current);
        loop {
            let current = self.get_instance(name, number).await?;
            if current.is_done() || stopping.is_cancelled() {
                return Ok(current);
            }
            drop(current);
            select! {
                () = waiter.notified() => {}
                () = stopping.cancelled() => {}
                () = sleep_until(deadline.unwrap_or_else(far_future)) => {
                    return self.get_instance(name, number).await;
                }
            }
        }
    }

    /// Shuts down: open waits return the current state, and no more operations are
    /// leased. Handlers that have not finished after `shutdown_timeout` are stopped,
    /// and their operations go back to the queue.
    pub async fn shutdown(&self, shutdown_timeout: Duration) {
        self.0.store.tasks.stop_token().cancel();
        let worker_tasks = &self.0.worker_tasks;
        let stopped = timeout(shutdown_timeout, worker_tasks.stop()).await;
        if stopped.is_err() {
            self.0.release_token.cancel();
            worker_tasks.stop().await;
        }
        self.0.store.tasks.stop().await;
    }

    /// Closes the storage. Call it after [`shutdown`](Self::shutdown): later writes
    /// fail. Without it the storage is closed with the last handle.
    pub async fn close(&self) {
        self.0.store.close().await;
    }

    /// Returns the metrics, to register them with a Prometheus registry.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Returns the message types that filters and JSON can decode.
    pub fn types(&self) -> &TypeRegistry {
        &self.0.types
    }

    /// Returns the clock of the operations.
    pub fn clock(&self) -> Clock {
        self.0.store.clock
    }

    /// Returns why the storage rejects writes, or `None` while it accepts them.
    pub fn write_error(&self) -> Option<String> {
        self.0.store.write_error()
    }

    /// Returns the time since this server had applied all changes of other servers,
    /// or `None` if the storage is not shared.
    pub fn replication_lag(&self) -> Option<Duration> {
        let store = &self.0.store;
        Some(store.clock.now().since(store.applied_through()?))
    }

    /// Returns the number of open waits and watches.
    pub fn waiter_count(&self) -> usize {
        self.0.store.view.waiters.client_count()
    }

    /// Returns the operation with this name and number.
    ///
    /// # Errors
    /// NOT_FOUND if it is gone, also if a newer operation has its name.
    pub(super) async fn get_instance(
        &self,
        name: &OperationName,
        number: u64,
    ) -> Result<Arc<Operation>> {
        let current = match self.get_cached(name) {
            // A done operation may be evicted from the view.
            Err(error) if self.0.store.view.eviction.evicted_below() != 0 => {
                if self.0.store.is_tombstoned(number) {
                    return Err(error);
                }
                self.0.store.read_through(name).await?.ok_or(error)?
            }
            current => current?,
        };
        if current.number() == number {
            Ok(current)
        } else {
            Err(Error::not_found(name.as_str()))
        }
    }
}

impl Drop for OperationsInner {
    fn drop(&mut self) {
        self.worker_tasks.stop_token().cancel();
        self.release_token.cancel();
        self.store.tasks.stop_token().cancel();
        self.store.stop_replication();
    }
}

/// Returns the deadline of a timeout too long for an `Instant`.
pub(super) fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(86_400 * 365 * 30)
}
