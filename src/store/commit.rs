//! The write path: lock, evaluate, persist, publish.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{debug, warn};

use super::{
    key_locks::KeyLockGuard, lease_delivery::UndeliveredLease, reservation::Reservation,
    state::Store,
};
use crate::{
    error::{Error, Result},
    operation::{
        Operation, OperationUpdate,
        name::OperationName,
        transition::{Event, TransitionError},
    },
    storage::{Completion, Write, WriteError},
};

/// How often a commit is repeated because another server committed first.
pub(super) const MAX_CONFLICT_RETRIES: usize = 64;

/// A change that a caller wants to make to an existing operation.
#[derive(Debug)]
pub(super) enum Intent {
    Apply(Event),
    Cancel {
        /// Whether a deleted operation is cancelled too, which clients do not see.
        include_deleted: bool,
    },
    Delete,
}

/// The result of evaluating an intent.
#[derive(Debug)]
enum Evaluation {
    Unchanged(Arc<Operation>),
    Mutate(Mutation),
}

/// A change that becomes visible once it is durable.
#[derive(Debug)]
pub(super) struct Mutation {
    pub(super) write: Write,
    pub(super) view_change: ViewChange,
}

/// How a durable mutation changes the view.
#[derive(Debug)]
pub(super) enum ViewChange {
    Insert {
        operation: Arc<Operation>,
        reservation: Reservation,
    },
    Update(Arc<Operation>),
    Remove {
        removed: Arc<Operation>,
        /// The last version, which the caller gets: it may differ from `removed` if it became done just now.
        last: Arc<Operation>,
    },
}

/// The locks that a commit holds until its mutation is visible. Lock order: request id, then operation; a task never
/// holds the locks of two operations.
#[derive(Debug)]
#[expect(dead_code, reason = "a lock is held until it is dropped")]
pub(super) struct CommitLocks {
    pub(super) request_id: Option<KeyLockGuard>,
    pub(super) operation: KeyLockGuard,
}

/// What happens to a committed operation if the future of the caller was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnAbandon {
    Ignore,
    /// Revokes the lease: no worker knows of it.
    RevokeLease,
}

/// A mutation whose write is in flight. It is published whether or not the caller still waits.
struct InFlightWrite {
    store: Arc<Store>,
    view_change: ViewChange,
    locks: CommitLocks,
    on_abandon: OnAbandon,
    reply: oneshot::Sender<Result<Committed, CommitError>>,
    /// Makes a shutdown wait for the publication.
    _task: TaskTrackerToken,
}

/// A commit that was begun; it ends even if this is dropped.
#[derive(Debug)]
pub(super) enum CommitHandle {
    /// The intent changes nothing; this is the current version.
    Unchanged(Arc<Operation>),
    InFlight(oneshot::Receiver<Result<Committed, CommitError>>),
}

/// A committed operation on its way to the caller.
#[derive(Debug)]
pub(super) struct Committed {
    operation: Arc<Operation>,
    undelivered: Option<UndeliveredLease>,
}

/// Why a commit failed.
#[derive(Debug)]
pub(super) enum CommitError {
    Rejected(Error),
    /// Another server committed first. `current` is its version; `None` if the operation is gone.
    Conflict {
        current: Option<Arc<Operation>>,
    },
}

// === impl Store ===

impl Store {
    /// Applies an event, and returns the operation once the change is durable and visible.
    pub(crate) async fn commit(
        self: &Arc<Self>,
        name: &OperationName,
        event: Event,
    ) -> Result<Arc<Operation>> {
        self.commit_intent(name, Intent::Apply(event)).await
    }

    /// Requests the cancellation of an operation, with `include_deleted` also of a deleted one.
    pub(crate) async fn cancel(
        self: &Arc<Self>,
        name: &OperationName,
        include_deleted: bool,
    ) -> Result<Arc<Operation>> {
        self.commit_intent(name, Intent::Cancel { include_deleted })
            .await
    }

    /// Hides an operation from clients, or removes it if it is done.
    pub(crate) async fn delete(self: &Arc<Self>, name: &OperationName) -> Result<()> {
        self.commit_intent(name, Intent::Delete).await.map(drop)
    }

    /// Commits an intent, again after each conflict with another server.
    async fn commit_intent(
        self: &Arc<Self>,
        name: &OperationName,
        intent: Intent,
    ) -> Result<Arc<Operation>> {
        let intent = Arc::new(intent);
        for attempt in 0..=MAX_CONFLICT_RETRIES {
            // The first attempt is evaluated against a view that may lag; a conflict has just reloaded it.
            let may_reload = self.is_shared() && attempt == 0;
            let begun = self
                .begin_commit(name, &intent, may_reload, OnAbandon::Ignore)
                .await?;
            match begun.wait().await {
                Ok(committed) => return Ok(committed.into_operation()),
                Err(CommitError::Rejected(error)) => return Err(error),
                Err(CommitError::Conflict { current }) => {
                    self.reload_after_conflict(current, name).await?;
                }
            }
        }
        Err(Error::StoreUnavailable)
    }

    /// Locks the operation and commits the intent, also if the caller goes away meanwhile. With `may_reload`, an intent
    /// is rejected or found to change nothing only by the stored version, not by a view that lags.
    pub(super) async fn begin_commit(
        self: &Arc<Self>,
        name: &OperationName,
        intent: &Arc<Intent>,
        may_reload: bool,
        on_abandon: OnAbandon,
    ) -> Result<CommitHandle> {
        // Without an await nothing can be interrupted, so that no task is needed.
        if !may_reload && let Some(lock) = self.key_locks.try_lock(name.as_str()) {
            let evaluation = self.evaluate(name, intent)?;
            return Ok(self.persist_evaluation(evaluation, lock, on_abandon));
        }
        let (store, name, intent) = (self.clone(), name.clone(), intent.clone());
        let begin = async move {
            let lock = store.key_locks.lock(name.as_str()).await;
            let evaluation = match store.evaluate(&name, &intent) {
                Err(_) | Ok(Evaluation::Unchanged(_)) if may_reload => {
                    store.reload_locked(&name).await?;
                    store.evaluate(&name, &intent)?
                }
                evaluation => evaluation?,
            };
            Ok(store.persist_evaluation(evaluation, lock, on_abandon))
        };
        self.tasks.run_to_completion("commit", begin).await
    }

    fn persist_evaluation(
        self: &Arc<Self>,
        evaluation: Evaluation,
        operation_lock: KeyLockGuard,
        on_abandon: OnAbandon,
    ) -> CommitHandle {
        match evaluation {
            Evaluation::Unchanged(current) => CommitHandle::Unchanged(current),
            Evaluation::Mutate(mutation) => {
                let locks = CommitLocks {
                    request_id: None,
                    operation: operation_lock,
                };
                self.persist(mutation, locks, on_abandon)
            }
        }
    }

    /// Returns what the intent does to the operation. The caller holds its key lock.
    fn evaluate(&self, name: &OperationName, intent: &Intent) -> Result<Evaluation> {
        let not_found = || Error::not_found(name.as_str());
        let event = match intent {
            Intent::Apply(event) => event,
            Intent::Cancel { .. } => &Event::RequestCancel,
            Intent::Delete => {
                let current = self.view.get_visible(name.as_str()).ok_or_else(not_found)?;
                let update = current.delete(self.clock.now());
                return Ok(Evaluation::from_update(current, update));
            }
        };
        let current = self.view.get_any(name.as_str()).ok_or_else(not_found)?;
        let current = self.with_outage_grace(current);
        if let Intent::Cancel {
            include_deleted: false,
        } = intent
            && current.is_deleted()
        {
            return Err(not_found());
        }
        self.evaluate_event(current, event)
    }

    /// Returns what an event does to an operation. The end of an attempt is never rejected for its size: it is recorded
    /// without its report, or else as an error.
    fn evaluate_event(&self, current: Arc<Operation>, event: &Event) -> Result<Evaluation> {
        let update = match current.apply(event, self.clock.now()) {
            Ok(update) => update,
            Err(TransitionError::AlreadyDone)
                if self.limits.has_replaced_outcome(&current, event) =>
            {
                return Ok(Evaluation::Unchanged(current));
            }
            Err(error) => {
                let name = current.name().to_owned();
                return Err(Error::FailedPrecondition { name, error });
            }
        };
        let next = match &update {
            OperationUpdate::Put(next)
            | OperationUpdate::RenewLease(next)
            | OperationUpdate::Remove(Some(next)) => next,
            OperationUpdate::Unchanged | OperationUpdate::Remove(None) => {
                return Ok(Evaluation::from_update(current, update));
            }
        };
        let total_bytes = self.view.total_bytes();
        let checked = self
            .limits
            .check_capacity(total_bytes, event, &current, next);
        let Err(error) = checked else {
            return Ok(Evaluation::from_update(current, update));
        };
        let Some(smaller) = self.limits.smaller_event(event) else {
            return Err(error);
        };
        let dropped = if event.has_report() {
            "last report"
        } else {
            "result"
        };
        warn!(operation.name = current.name(), dropped, %error, "attempt result is too large");
        self.evaluate_event(current, &smaller)
    }

    /// Hands a mutation to storage, which completes its publication on any thread.
    pub(super) fn persist(
        self: &Arc<Self>,
        mutation: Mutation,
        locks: CommitLocks,
        on_abandon: OnAbandon,
    ) -> CommitHandle {
        let (reply, receiver) = oneshot::channel();
        let in_flight = InFlightWrite {
            store: self.clone(),
            view_change: mutation.view_change,
            locks,
            on_abandon,
            reply,
            _task: self.tasks.token(),
        };
        let completion = Completion::new(move |result| in_flight.complete(result));
        self.storage.write(mutation.write, completion);
        CommitHandle::InFlight(receiver)
    }

    /// Makes a durable mutation visible, and returns the operation for the caller.
    fn publish(&self, change: ViewChange) -> Arc<Operation> {
        match change {
            ViewChange::Insert {
                operation,
                reservation,
            } => {
                self.view.publish(&operation);
                reservation.commit();
                self.remove_if_tombstoned(&operation);
                operation
            }
            ViewChange::Update(operation) => {
                self.view.publish(&operation);
                operation
            }
            ViewChange::Remove { removed, last } => {
                self.remove(&removed);
                last
            }
        }
    }
}

// === impl Evaluation ===

impl Evaluation {
    fn from_update(current: Arc<Operation>, update: OperationUpdate) -> Self {
        let (write, view_change) = match update {
            OperationUpdate::Unchanged => return Self::Unchanged(current),
            OperationUpdate::Put(next) => {
                let next = Arc::new(next);
                (Write::Put(next.clone()), ViewChange::Update(next))
            }
            OperationUpdate::RenewLease(next) => {
                let next = Arc::new(next);
                (Write::RenewLease(next.clone()), ViewChange::Update(next))
            }
            OperationUpdate::Remove(last) => {
                let last = last.map_or_else(|| current.clone(), Arc::new);
                let removed = current;
                (
                    Write::Remove(removed.clone()),
                    ViewChange::Remove { removed, last },
                )
            }
        };
        Self::Mutate(Mutation { write, view_change })
    }
}

// === impl InFlightWrite ===

impl InFlightWrite {
    /// Publishes the mutation if it is durable, releases the locks, and answers the caller.
    fn complete(self, result: Result<(), WriteError>) {
        let published = result.map(|()| self.store.publish(self.view_change));
        drop(self.locks);
        let committed = published.map(|operation| Committed {
            undelivered: (self.on_abandon == OnAbandon::RevokeLease)
                .then(|| UndeliveredLease::new(self.store, operation.clone())),
            operation,
        });
        // A caller that has gone finds the change in the view.
        drop(self.reply.send(committed.map_err(CommitError::from)));
    }
}

// === impl CommitHandle ===

impl CommitHandle {
    /// Waits until the mutation is visible, or storage has rejected it.
    pub(super) async fn wait(self) -> Result<Committed, CommitError> {
        match self {
            Self::Unchanged(operation) => Ok(Committed {
                operation,
                undelivered: None,
            }),
            // The sender is dropped unused only if publishing panicked.
            Self::InFlight(receiver) => {
                let unavailable = CommitError::Rejected(Error::StoreUnavailable);
                receiver.await.unwrap_or(Err(unavailable))
            }
        }
    }
}

// === impl Committed ===

impl Committed {
    pub(super) fn into_operation(self) -> Arc<Operation> {
        self.operation
    }

    /// Returns the lease that a commit granted which is [`OnAbandon::RevokeLease`], or `None` without a lease.
    pub(super) fn into_lease(self) -> Option<UndeliveredLease> {
        self.undelivered
            .filter(|lease| lease.operation().lease().is_some())
    }
}

// === impl CommitError ===

impl From<WriteError> for CommitError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Unavailable(error) => {
                // The storage logs an outage once; this would log it for each call.
                debug!(%error, "write rejected");
                Self::Rejected(Error::StoreUnavailable)
            }
            WriteError::Conflict { current } => Self::Conflict { current },
        }
    }
}
