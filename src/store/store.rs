//! The store: the one door for writes. A change takes the operation's turn,
//! asks the state machine, is kept by the journal and only then shown by the
//! view. What a change means is decided in `operation`; what a new operation
//! needs in `admit`, and what time does in `time`.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::oneshot};
use tracing::{debug, warn};

use super::{
    key_locks::{KeyLockGuard, KeyLocks},
    limits::Limits,
    replication::{Peers, ReadConsistency},
    view::View,
};
use crate::{
    clock::Clock,
    error::{Error, Result},
    metrics::Metrics,
    operation::{
        Operation, OperationUpdate,
        name::OperationName,
        transition::{Event, TransitionError},
    },
    storage::{Completion, SharedStorage, Storage, StorageError, Write, WriteError},
    tasks::Tasks,
};

/// How often a change is tried anew because other servers were faster. Each time
/// one of them got on with its own.
pub(super) const MAX_CONFLICT_RETRIES: usize = 64;

/// The operations, and how they change.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) view: View,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    pub(crate) limits: Limits,
    pub(super) read_consistency: ReadConsistency,
    /// Where the store was opened.
    pub(super) runtime: Handle,
    pub(super) storage: StorageHandle,
    /// What other servers of the journal do; none if there are none.
    pub(super) peers: Option<Peers>,
    pub(super) key_locks: KeyLocks,
    pub(super) request_id_locks: KeyLocks,
    pub(super) next_number: AtomicU64,
    /// How many operations there are.
    pub(super) operation_count: AtomicUsize,
    /// Bytes of new operations that the journal is keeping just now.
    pub(super) reserved_bytes: AtomicUsize,
}

/// A journal has no name to print.
pub(super) struct StorageHandle(pub(super) Arc<dyn Storage>);

/// What came of a change, as soon as the journal knows. It comes about whether
/// anybody waits for it or not.
#[derive(Debug)]
pub(super) enum Commit<T> {
    Done(T),
    Pending(oneshot::Receiver<Result<T, CommitError>>),
}

/// Why nothing came of a change.
#[derive(Debug)]
pub(super) enum CommitError {
    Rejected(Error),
    /// Another server was first, and this is what it made; none if the operation
    /// is gone.
    Conflict(Option<Arc<Operation>>),
}

// === impl Told ===

impl<T> Commit<T> {
    pub(super) async fn wait(self) -> Result<T, CommitError> {
        match self {
            Self::Done(value) => Ok(value),
            // Nobody tells only if showing the change panicked.
            Self::Pending(rx) => rx.await.unwrap_or(Err(Error::StoreUnavailable.into())),
        }
    }
}

// === impl Lost ===

impl From<Error> for CommitError {
    fn from(error: Error) -> Self {
        Self::Rejected(error)
    }
}

impl From<WriteError> for CommitError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Unavailable(error) => {
                // The journal says once what ails it; here it would be said per call.
                debug!(%error, "a change was refused, because it could not be kept");
                Self::Rejected(Error::StoreUnavailable)
            }
            WriteError::Conflict(current) => Self::Conflict(current),
        }
    }
}

// === impl Store ===

impl Store {
    /// Opens a store: replays what the journal kept, then begins to keep time.
    pub(crate) async fn open(
        storage: Arc<dyn Storage>,
        clock: Clock,
        metrics: &Metrics,
        limits: Limits,
        read_consistency: ReadConsistency,
    ) -> Result<Arc<Self>, StorageError> {
        let clock = storage
            .shared()
            .and_then(SharedStorage::clock)
            .unwrap_or(clock);
        let clock = match storage.last_timestamp() {
            Some(last_timestamp) if clock.now() < last_timestamp => {
                let clock_lag = last_timestamp.since(clock.now());
                warn!(
                    seconds = clock_lag.as_secs_f64(),
                    "the clock is behind the newest change that was kept; time goes on from that"
                );
                clock.not_before(last_timestamp)
            }
            Some(_) | None => clock,
        };
        let store = Arc::new(Self {
            view: View::new(
                clock,
                metrics,
                limits.max_waiters,
                storage.shared().and_then(SharedStorage::cache_limit),
            ),
            clock,
            tasks: Tasks::default(),
            limits,
            read_consistency,
            runtime: Handle::current(),
            peers: storage.shared().map(|_| Peers::default()),
            storage: StorageHandle(storage),
            key_locks: KeyLocks::default(),
            request_id_locks: KeyLocks::default(),
            next_number: AtomicU64::new(1),
            operation_count: AtomicUsize::new(0),
            reserved_bytes: AtomicUsize::new(0),
        });
        store.load().await?;
        store.start_timers();
        store.start_replication();
        Ok(store)
    }

    async fn load(self: &Arc<Self>) -> Result<(), StorageError> {
        let leased = Arc::new(Mutex::new(Vec::new()));
        let sink = {
            let (store, leased) = (self.clone(), leased.clone());
            move |operation: Operation| {
                let is_leased = operation.lease().is_some();
                let operation = Arc::new(operation);
                if is_leased {
                    leased.lock().push(operation);
                } else {
                    store.insert_existing(&operation);
                }
            }
        };
        self.storage.0.load(Arc::new(sink)).await?;
        // Their holders reach the server from now on, however long it has read; if
        // there are other servers, they were never out of reach.
        let is_single_server = self.peers.is_none();
        let (leased, now) = (std::mem::take(&mut *leased.lock()), self.clock.now());
        for mut operation in leased {
            if is_single_server && let Some(operation) = Arc::get_mut(&mut operation) {
                operation.restart_lease(now);
            }
            self.insert_existing(&operation);
        }
        self.view.eviction.mark_unloaded_as_evicted();
        Ok(())
    }

    /// Takes an operation out of what is shown.
    pub(super) fn remove(&self, operation: &Operation) {
        self.view.remove(operation);
        self.operation_count.fetch_sub(1, Ordering::Relaxed);
        if let Some(peers) = &self.peers {
            peers.insert_tombstone(operation.number());
        }
    }

    /// Shows an operation that another process, or an earlier one, has made.
    pub(super) fn insert_existing(&self, operation: &Arc<Operation>) {
        self.next_number
            .fetch_max(operation.number() + 1, Ordering::Relaxed);
        self.operation_count.fetch_add(1, Ordering::Relaxed);
        if let (Some(queue), None) = (operation.queue(), operation.lease())
            && !operation.is_done()
        {
            self.view.ready_queues.get_or_create(queue).add_pending();
        }
        self.view.publish(operation);
        self.remove_if_tombstoned(operation);
    }

    /// Why changes cannot be kept at present; none while they can.
    pub(crate) fn write_error(&self) -> Option<String> {
        self.storage.0.write_error()
    }

    pub(crate) async fn close(&self) {
        if let Some(peers) = &self.peers {
            peers.tasks.stop().await;
        }
        self.storage.0.close().await;
    }

    /// What `event` makes of the operation, kept and shown.
    pub(crate) async fn commit(
        self: &Arc<Self>,
        name: &OperationName,
        event: Event,
    ) -> Result<Arc<Operation>> {
        self.commit_with(name, event, |_, operation| operation)
            .await
    }

    /// Deletes: hides the operation from clients, or forgets it if it is done.
    pub(crate) async fn delete(self: &Arc<Self>, name: &OperationName) -> Result<()> {
        let evaluate = |store: &Self, name: &OperationName| {
            let current = store
                .view
                .get_visible(name.as_str())
                .ok_or_else(|| Error::not_found(name.as_str()))?;
            let change = current.delete(store.clock.now());
            Ok((current, change))
        };
        self.commit_with_retry("delete", name, evaluate, |_, _| ())
            .await
    }

    /// The same as `commit`; what came of it is made by `then` as soon as it is
    /// shown, and dropped if the caller has left.
    pub(super) async fn commit_with<T: Send + 'static>(
        self: &Arc<Self>,
        name: &OperationName,
        event: Event,
        on_commit: impl Fn(&Arc<Self>, Arc<Operation>) -> T + Copy + Send + 'static,
    ) -> Result<T> {
        let event = Arc::new(event);
        let evaluate = move |store: &Self, name: &OperationName| store.evaluate(name, &event);
        self.commit_with_retry("commit", name, evaluate, on_commit)
            .await
    }

    /// Makes the change that `decide` wants when the operation's turn has come,
    /// again and again until no other server was faster.
    async fn commit_with_retry<T: Send + 'static>(
        self: &Arc<Self>,
        task_name: &'static str,
        name: &OperationName,
        evaluate: impl Fn(&Self, &OperationName) -> Result<(Arc<Operation>, OperationUpdate)>
        + Clone
        + Send
        + 'static,
        on_commit: impl Fn(&Arc<Self>, Arc<Operation>) -> T + Copy + Send + 'static,
    ) -> Result<T> {
        let mut retries_left = MAX_CONFLICT_RETRIES;
        loop {
            let (store, owned_name, evaluate) = (self.clone(), name.clone(), evaluate.clone());
            let is_view_current = self.peers.is_none() || retries_left < MAX_CONFLICT_RETRIES;
            let start_commit = async move {
                let name = owned_name;
                let guard = store.key_locks.lock(name.as_str()).await;
                let evaluation = match evaluate(&store, &name) {
                    // Others may have made true what is not in what is shown, or undone
                    // what there is nothing to add to.
                    Err(_) | Ok((_, OperationUpdate::Unchanged)) if !is_view_current => {
                        store.reload_locked(&name).await?;
                        evaluate(&store, &name)
                    }
                    evaluation => evaluation,
                };
                let (current, change) = evaluation?;
                Ok(store.persist(guard, current, change, on_commit))
            };
            match self.run_detached(task_name, start_commit).await {
                Ok(output) => return Ok(output),
                Err(CommitError::Rejected(error)) => return Err(error),
                Err(CommitError::Conflict(current)) => {
                    self.reload_after_conflict(current, name, &mut retries_left)
                        .await?;
                }
            }
        }
    }

    /// Begins a change when its turn has come, also if the caller leaves before
    /// that, and waits for what comes of it.
    pub(super) async fn run_detached<T: Send + 'static>(
        &self,
        task_name: &'static str,
        start_commit: impl Future<Output = Result<Commit<T>>> + Send + 'static,
    ) -> Result<T, CommitError> {
        self.tasks
            .run_to_completion(task_name, start_commit)
            .await?
            .wait()
            .await
    }

    /// What `event` would make of the operation.
    pub(super) fn evaluate(
        &self,
        name: &OperationName,
        event: &Event,
    ) -> Result<(Arc<Operation>, OperationUpdate)> {
        let current = self
            .view
            .get_any(name.as_str())
            .ok_or_else(|| Error::not_found(name.as_str()))?;
        let current = self.with_outage_grace(current);
        // Only clients ask to cancel, and they see nothing that was deleted.
        if current.is_deleted() && matches!(event, Event::RequestCancel) {
            return Err(Error::not_found(name.as_str()));
        }
        let rejected = |error: TransitionError| Error::FailedPrecondition {
            name: name.to_string(),
            error,
        };
        let change = current.apply(event, self.clock.now()).map_err(rejected)?;
        match &change {
            OperationUpdate::Put(next)
            | OperationUpdate::RenewLease(next)
            | OperationUpdate::Remove(Some(next)) => {
                self.check_capacity(event, &current, next)?;
            }
            // The look that was asked for found nothing due: look again later.
            OperationUpdate::Unchanged if *event == Event::TimerFired => {
                self.view.reschedule(&current);
            }
            OperationUpdate::Unchanged | OperationUpdate::Remove(None) => {}
        }
        Ok((current, change))
    }

    pub(super) fn persist<T: Send + 'static>(
        self: &Arc<Self>,
        guard: KeyLockGuard,
        current: Arc<Operation>,
        change: OperationUpdate,
        on_commit: impl FnOnce(&Arc<Self>, Arc<Operation>) -> T + Send + 'static,
    ) -> Commit<T> {
        let (write, next): (fn(_) -> _, _) = match change {
            OperationUpdate::Unchanged => return Commit::Done(on_commit(self, current)),
            OperationUpdate::Put(next) => (Write::Put, next),
            OperationUpdate::RenewLease(next) => (Write::RenewLease, next),
            OperationUpdate::Remove(last) => {
                return self.submit_write(Write::Delete(current.clone()), move |store, result| {
                    let _guard = guard;
                    result?;
                    store.remove(&current);
                    Ok(on_commit(store, last.map_or(current, Arc::new)))
                });
            }
        };
        let next = Arc::new(next);
        self.submit_write(write(next.clone()), move |store, result| {
            let _guard = guard;
            result?;
            store.view.publish(&next);
            Ok(on_commit(store, next))
        })
    }

    /// Keeps a change and then does `then`, on whatever thread the journal calls
    /// from, before anybody is told. Until that is done, it counts as a task.
    pub(super) fn submit_write<T: Send + 'static>(
        self: &Arc<Self>,
        write: Write,
        on_complete: impl FnOnce(&Arc<Self>, Result<(), WriteError>) -> Result<T, WriteError>
        + Send
        + 'static,
    ) -> Commit<T> {
        let (tx, rx) = oneshot::channel();
        let (store, task_token) = (self.clone(), self.tasks.token());
        let completion = Completion::new(move |result| {
            let _task_token = task_token;
            // Who does not wait any more finds the change in the view.
            let _ = tx.send(on_complete(&store, result).map_err(CommitError::from));
        });
        self.storage.0.write(write, completion);
        Commit::Pending(rx)
    }
}

impl std::fmt::Debug for StorageHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Journal")
    }
}
