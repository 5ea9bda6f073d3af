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
    creation::{Defaults, NewOperation, SharedTerms},
    listing::{self, Page},
};
use crate::{
    clock::Clock,
    error::{Error, Result},
    metrics::Metrics,
    operation::{name::OperationName, operation::Operation, stage::Event, terms::Terms},
    proto::google::longrunning::ListOperationsRequest,
    store::{admit::Created, store::Store, waiters::Interest},
    tasks::Tasks,
    types::Types,
};

/// The operations of one server. Clones are handles to the same operations;
/// when the last one is dropped, the workers stop.
#[derive(Clone, Debug)]
pub struct Operations(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) store: Arc<Store>,
    pub(super) defaults: Defaults,
    pub(super) shared: SharedTerms,
    pub(super) metrics: Metrics,
    pub(super) types: Types,
    /// Pools and attempts.
    pub(super) work: Tasks,
    pub(super) release: CancellationToken,
}

// === impl Operations ===

impl Operations {
    pub(super) fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.0.store
    }

    pub(super) fn defaults(&self) -> &Terms {
        &self.0.defaults.terms
    }

    /// Creates an operation. It can be read, from anywhere, when this returns.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a value out of its range, ALREADY_EXISTS if the id
    /// or the request id is taken, RESOURCE_EXHAUSTED at a limit, UNAVAILABLE
    /// while the store cannot write or shuts down.
    pub async fn create(&self, new: NewOperation) -> Result<Created> {
        let birth = new.into_birth(&self.0.defaults, &self.0.shared)?;
        self.0.store.create(birth).await
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
    pub fn get(&self, name: &OperationName) -> Result<Arc<Operation>> {
        self.0
            .store
            .view
            .get(name.as_str())
            .ok_or_else(|| Error::not_found(name.as_str()))
    }

    /// The same, but what is not shown here is looked up in the journal, if
    /// other servers share it: they may have made it just now. With
    /// [`Reads::Fresh`](crate::Reads) it is what any server has made of it.
    ///
    /// # Errors
    /// NOT_FOUND, or UNAVAILABLE if the journal cannot be asked.
    pub async fn look(&self, name: &OperationName) -> Result<Arc<Operation>> {
        self.0.store.freshen().await?;
        match self.get(name) {
            Err(error) if self.0.store.has_others() => {
                self.0.store.look_up(name).await?.ok_or(error)
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
        let Inner { store, types, .. } = &*self.0;
        let is_fresh = match store.freshen().await {
            Err(_) if request.return_partial_success => false,
            fresh => fresh.map(|()| true)?,
        };
        let older = store.has_others().then_some(&**store);
        listing::page(&store.view, older, is_fresh, types, store.clock, request).await
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
    pub async fn wait(&self, name: &OperationName, limit: Duration) -> Result<Arc<Operation>> {
        let current = self.look(name).await?;
        if current.is_done() || limit.is_zero() {
            return Ok(current);
        }
        let stopping = self.0.store.tasks.stopping();
        let waiters = &self.0.store.view.waiters;
        let Some(mut waiter) = waiters.enter(current.number(), Interest::End) else {
            return Ok(current);
        };
        let number = current.number();
        drop(current);
        let deadline = Instant::now().checked_add(limit);
        loop {
            let current = self.get_numbered(name, number).await?;
            if current.is_done() || stopping.is_cancelled() {
                return Ok(current);
            }
            drop(current);
            select! {
                () = waiter.called() => {}
                () = stopping.cancelled() => {}
                () = sleep_until(deadline.unwrap_or_else(far_future)) => return self.get_numbered(name, number).await,
            }
        }
    }

    /// Ends: open waits are answered with the current state, nothing more is
    /// claimed, handlers get `grace` to finish and are then released, so that
    /// their operations go back to the queue.
    pub async fn shutdown(&self, grace: Duration) {
        self.0.store.tasks.stopping().cancel();
        let work = &self.0.work;
        if timeout(grace, work.stop()).await.is_err() {
            self.0.release.cancel();
            work.stop().await;
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
    pub fn types(&self) -> &Types {
        &self.0.types
    }

    /// The time as the operations see it.
    pub fn clock(&self) -> Clock {
        self.0.store.clock
    }

    /// Why changes cannot be kept at present, as a sentence; none while they can.
    pub fn trouble(&self) -> Option<String> {
        self.0.store.trouble()
    }

    /// How long ago everything was shown that other servers of a shared journal had
    /// done; none if the journal is not shared.
    pub fn follow_age(&self) -> Option<Duration> {
        let store = &self.0.store;
        Some(store.clock.now().since(store.read_until()?))
    }

    /// How many waits and watches are open.
    pub fn waiters(&self) -> usize {
        self.0.store.view.waiters.count()
    }

    pub(super) async fn get_numbered(
        &self,
        name: &OperationName,
        number: u64,
    ) -> Result<Arc<Operation>> {
        let current = match self.get(name) {
            // It may be done for so long that it is not shown any more.
            Err(error) if self.0.store.view.older.floor() != 0 => {
                if self.0.store.is_gone(number) {
                    return Err(error);
                }
                self.0.store.look_up(name).await?.ok_or(error)?
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

impl Drop for Inner {
    fn drop(&mut self) {
        self.work.stopping().cancel();
        self.release.cancel();
        self.store.tasks.stopping().cancel();
        self.store.unfollow();
    }
}

/// Beyond what an `Instant` can express.
pub(super) fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(86_400 * 365 * 30)
}
