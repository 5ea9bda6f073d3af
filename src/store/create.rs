//! Creates operations: once for each request id, and only within the limits.

use std::sync::{Arc, atomic::Ordering};

use super::{
    commit::{
        CommitError, CommitHandle, CommitLocks, MAX_CONFLICT_RETRIES, Mutation, OnAbandon,
        ViewChange,
    },
    key_locks::KeyLockGuard,
    state::Store,
};
use crate::{
    error::{Error, Result},
    operation::{
        Operation,
        name::OperationName,
        spec::{IdempotencyKey, OperationSpec},
    },
    storage::Write,
};

/// The result of a request to create an operation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Created {
    /// The operation: a new one, or the one that the same request created before.
    pub operation: Arc<Operation>,
    /// `true` if the same request had created the operation before.
    pub already_existed: bool,
}

impl Store {
    /// Creates an operation, and returns it once it is durable and readable by every client.
    ///
    /// # Errors
    /// ALREADY_EXISTS if the name or the request id is taken, RESOURCE_EXHAUSTED at a limit, UNAVAILABLE during a
    /// shutdown or while the storage rejects writes.
    pub(crate) async fn create(self: &Arc<Self>, spec: OperationSpec) -> Result<Created> {
        if self.tasks.stop_token().is_cancelled() {
            return Err(Error::ShuttingDown);
        }
        let mut next_spec = Some(spec);
        for _ in 0..=MAX_CONFLICT_RETRIES {
            let Some(spec) = next_spec.take() else { break };
            // Only another server can cause a conflict, which takes another attempt.
            next_spec = self.is_shared().then(|| spec.clone());
            let pending = self.begin_create(spec).await?;
            let already_existed = matches!(pending, CommitHandle::Unchanged(_));
            match pending.wait().await {
                Ok(committed) => {
                    return Ok(Created {
                        operation: committed.into_operation(),
                        already_existed,
                    });
                }
                Err(CommitError::Rejected(error)) => return Err(error),
                Err(CommitError::Conflict { current }) => {
                    if let Some(spec) = &next_spec {
                        self.reload_after_conflict(current, &spec.name).await?;
                    }
                }
            }
        }
        Err(Error::StoreUnavailable)
    }

    /// Locks the request id and the name, checks that both are free, and hands the new operation to storage, also if
    /// the caller goes away meanwhile. Returns `Unchanged` if the same request created the operation before.
    async fn begin_create(self: &Arc<Self>, spec: OperationSpec) -> Result<CommitHandle> {
        // Without an await nothing can be interrupted, so that no task is needed.
        if idempotency_key(&spec).is_none()
            && !self.is_shared()
            && let Some(name_lock) = self.key_locks.try_lock(spec.name.as_str())
        {
            return self.persist_new(spec, None, name_lock);
        }
        let store = self.clone();
        let begin = async move {
            let request_id_lock = match idempotency_key(&spec) {
                Some(key) => Some(store.request_id_locks.lock(&key.request_id).await),
                None => None,
            };
            // The view may lag: another server may have removed the operation that is in the way.
            if store.is_shared()
                && let Some(name) = store.find_conflicting_name(&spec)
            {
                store.reload(&name).await?;
            }
            if let Some(operation) = store.find_by_request_id(&spec)? {
                return Ok(CommitHandle::Unchanged(operation));
            }
            let name_lock = store.key_locks.lock(spec.name.as_str()).await;
            store.persist_new(spec, request_id_lock, name_lock)
        };
        self.tasks.run_to_completion("create", begin).await
    }

    /// Builds the new operation, reserves what it needs, and hands it to storage.
    fn persist_new(
        self: &Arc<Self>,
        mut spec: OperationSpec,
        request_id: Option<KeyLockGuard>,
        name_lock: KeyLockGuard,
    ) -> Result<CommitHandle> {
        if let Some(existing) = self.view.get_any(spec.name.as_str()) {
            let name = spec.name.to_string();
            return Err(if existing.is_deleted() {
                Error::DeletedOperationExists { name }
            } else {
                Error::OperationExists { name }
            });
        }
        spec.number = match self.storage.shared() {
            Some(shared) => shared.next_number(),
            None => self.next_number.fetch_add(1, Ordering::Relaxed),
        };
        let operation = Arc::new(Operation::new(spec, self.clock.now()));
        self.limits.check_size("operation", &operation)?;
        let mutation = Mutation {
            write: Write::Put(operation.clone()),
            view_change: ViewChange::Insert {
                reservation: self.reserve_capacity(&operation)?,
                operation,
            },
        };
        let locks = CommitLocks {
            request_id,
            operation: name_lock,
        };
        Ok(self.persist(mutation, locks, OnAbandon::Ignore))
    }

    /// Returns the name of the operation that has the request id or the name of a new one.
    fn find_conflicting_name(&self, spec: &OperationSpec) -> Option<OperationName> {
        let name = spec.name.as_str();
        idempotency_key(spec)
            .and_then(|key| self.view.request_id_entry(name, key))
            .map(|entry| entry.name)
            .or_else(|| self.view.get_any(name).map(|_| spec.name.clone()))
    }

    /// Returns the operation that the same request created before, or `None` if it does not exist any more.
    ///
    /// # Errors
    /// ALREADY_EXISTS if the request had other content.
    fn find_by_request_id(&self, spec: &OperationSpec) -> Result<Option<Arc<Operation>>> {
        let Some(key) = idempotency_key(spec) else {
            return Ok(None);
        };
        let Some(existing) = self.view.request_id_entry(spec.name.as_str(), key) else {
            return Ok(None);
        };
        if existing.idempotency_key.fingerprint != key.fingerprint {
            return Err(Error::RequestIdReused {
                request_id: key.request_id.clone().into(),
            });
        }
        Ok(self.view.get_visible(existing.name.as_str()))
    }
}

fn idempotency_key(spec: &OperationSpec) -> Option<&IdempotencyKey> {
    spec.attributes.as_ref()?.idempotency_key.as_ref()
}
