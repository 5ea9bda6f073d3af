//! `Operations`: the handle that users of the library hold. It reads from the
//! view, writes through the store and owns the workers. What workers elsewhere
//! ask of it is in `work`.

use std::{sync::Arc, time::Duration};

use prost_types::Any;
use tokio::{
    select,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    list::{self, Page},
    new_operation::{ExecutionDefaults, NewOperation, OptionsInterner},
};
use crate::{
    clock::Clock,
    error::{Error, Result},
    metrics::Metrics,
    operation::{Operation, name::OperationName, options::ExecutionOptions, transition::Event},
    proto::google::longrunning::ListOperationsRequest,
    store::{create::Created, state::Store, waiters::WaitFor},
    tasks::Tasks,
    types::TypeRegistry,
};

/// The operations of one server. Clones are handles to the same operations;
/// when the last one is dropped, the workers stop.
#[derive(Clone, Debug)]
pub struct Operations(Arc<OperationsInner>);

#[derive(Debug)]
pub(super) struct OperationsInner {
    pub(super) store: Arc<Store>,
    pub(super) defaults: ExecutionDefaults,
    pub(super) options_interner: OptionsInterner,
    pub(super) metrics: Metrics,
    pub(super) types: TypeRegistry,
    /// Pools and attempts.
    pub(super) worker_tasks: Tasks,
    pub(super) release_token: CancellationToken,
}

// === impl Operations ===

impl Operations {
    pub(super) fn new(inner: OperationsInner) -> Self {
        Self(Arc::new(inner))
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.0.store
    }

    pub(super) fn default_options(&self) -> &ExecutionOptions {
        &self.0.defaults.options
    }

    /// Creates an operation. It can be read, from anywhere, when this returns.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a value out of its range, ALREADY_EXISTS if the id
    /// or the request id is taken, RESOURCE_EXHAUSTED at a limit, UNAVAILABLE
    /// while the store cannot write or shuts down.
    pub async fn create(&self, new_operation: NewOperation) -> Result<Created> {
        let spec = new_operation.into_spec(&self.0.defaults, &self.0.options_interner)?;
        self.0.store.create(spec).await
    }

    /// Creates an operation for the workers of `queue`.
    ///
    /// # Errors
    /// As [`Operations::create`].
    pub async fn submit(&self, queue: &str, input: Any) -> Result<Arc<Operation>> {
        Ok(self
            .create(NewOperation::queued(queue).input(input))
            .await?
            .operation)
    }

    /// The operation as it is now. Never blocks.
    ///
    /// # Errors
    /// NOT_FOUND if it never was, was deleted or has expired.
    pub fn get_cached(&self, name: &OperationName) -> Result<Arc<Operation>> {
        self.0
            .store
            .view
            .get_visible(name.as_str())
            .ok_or_else(|| Error::not_found(name.as_str()))
    }

    /// The same, but what is not shown here is looked up in the journal, if
    /// other servers share it: they may have made it just now. With
    /// [`Reads::Fresh`](crate::Reads) it is what any server has made of it.
    ///
    /// # Errors
    /// NOT_FOUND, or UNAVAILABLE if the journal cannot be asked.
    pub async fn get(&self, name: &OperationName) -> Result<Arc<Operation>> {
        self.0.store.ensure_read_consistency().await?;
        match self.get_cached(name) {
            Err(error) if self.0.store.is_shared() => {
                self.0.store.read_through(name).await?.ok_or(error)
            }
            found => found,
        }
    }

    /// One page of a list, newest first. A page of a list with a filter ends
    /// after 100 000 operations or 100 ms at the latest; it may be short, and
    /// even empty, while its token leads on.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a bad name, page size, token or filter, or for
    /// `return_partial_success` with one concrete parent.
    pub async fn list(&self, request: &ListOperationsRequest) -> Result<Page> {
        let OperationsInner { store, types, .. } = &*self.0;
        let is_up_to_date = match store.ensure_read_consistency().await {
            Err(_) if request.return_partial_success => false,
            result => result.map(|()| true)?,
        };
        let shared_store = store.is_shared().then_some(&**store);
        list::list_page(
            &store.view,
            shared_store,
            is_up_to_date,
            types,
            store.clock,
            request,
        )
        .await
    }

    /// Asks for an operation to stop. A pending one is done at once; a running
    /// one may still succeed; a done one stays as it is.
    ///
    /// # Errors
    /// NOT_FOUND, or UNAVAILABLE while the store cannot write.
    pub async fn cancel(&self, name: &OperationName) -> Result<Arc<Operation>> {
        self.0.store.commit(name, Event::RequestCancel).await
    }

    /// Hides an operation from clients at once. Does not cancel it: what runs
    /// goes on, and is forgotten when it is done.
    ///
    /// # Errors
    /// NOT_FOUND, also the second time; UNAVAILABLE while the store cannot write.
    pub async fn delete(&self, name: &OperationName) -> Result<()> {
        self.0.store.delete(name).await
    }

    /// Waits until the operation is done, but at most for `limit`, and returns
    /// its latest state either way. Also returns early when the server shuts
    /// down or has too many waiters.
    ///
    /// # Errors
    /// NOT_FOUND, also if it is deleted or expires in the meantime.
    pub async fn wait(&self, name: &OperationName, max_wait: Duration) -> Result<Arc<Operation>> {
        let current = self.get(name).await?;
        if current.is_done() || max_wait.is_zero() {
            return Ok(current);
        }
        let stopping = self.0.store.tasks.stop_token();
        let waiters = &self.0.store.view.waiters;
        let Some(mut waiter) = waiters.register(current.number(), WaitFor::Done) else {
            return Ok(current);
        };
        let number = current.number();
        drop(current);
        let deadline = Instant::now().checked_add(max_wait);
        loop {
            let current = self.get_instance(name, number).await?;
            if current.is_done() || stopping.is_cancelled() {
                return Ok(current);
            }
            drop(current);
            select! {
                () = waiter.notified() => {}
                () = stopping.cancelled() => {}
                () = sleep_until(deadline.unwrap_or_else(far_future)) => return self.get_instance(name, number).await,
            }
        }
    }

    /// Ends: open waits are answered with the current state, nothing more is
    /// claimed, handlers get `grace` to finish and are then released, so that
    /// their operations go back to the queue.
    pub async fn shutdown(&self, shutdown_timeout: Duration) {
        self.0.store.tasks.stop_token().cancel();
        let worker_tasks = &self.0.worker_tasks;
        if timeout(shutdown_timeout, worker_tasks.stop())
            .await
            .is_err()
        {
            self.0.release_token.cancel();
            worker_tasks.stop().await;
        }
        self.0.store.tasks.stop().await;
    }

    /// Lets go of the journal, which then refuses every change. After a
    /// shutdown, when nobody has a change to make any more; without it the
    /// journal goes with the last handle.
    pub async fn close(&self) {
        self.0.store.close().await;
    }

    /// The metrics, to be registered where they are served.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// The message types that are known.
    pub fn types(&self) -> &TypeRegistry {
        &self.0.types
    }

    /// The time as the operations see it.
    pub fn clock(&self) -> Clock {
        self.0.store.clock
    }

    /// Why changes cannot be kept at present, as a sentence; none while they can.
    pub fn write_error(&self) -> Option<String> {
        self.0.store.write_error()
    }

    /// How long ago everything was shown that other servers of a shared journal had
    /// done; none if the journal is not shared.
    pub fn replication_lag(&self) -> Option<Duration> {
        let store = &self.0.store;
        Some(store.clock.now().since(store.applied_through()?))
    }

    /// How many waits and watches are open.
    pub fn waiter_count(&self) -> usize {
        self.0.store.view.waiters.client_count()
    }

    pub(super) async fn get_instance(
        &self,
        name: &OperationName,
        number: u64,
    ) -> Result<Arc<Operation>> {
        let current = match self.get_cached(name) {
            // It may be done for so long that it is not shown any more.
            Err(error) if self.0.store.view.eviction.evicted_below() != 0 => {
                if self.0.store.is_tombstoned(number) {
                    return Err(error);
                }
                self.0.store.read_through(name).await?.ok_or(error)?
            }
            current => current?,
        };
        // Another one with the same name is not the one that was waited for.
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

/// Beyond what an `Instant` can express.
pub(super) fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(86_400 * 365 * 30)
}
