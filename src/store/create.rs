//! Admission: how an operation comes into the store, once for each request id
//! and only if there is room for it.

use std::sync::{Arc, atomic::Ordering};

use super::{
    key_locks::KeyLockGuard,
    store::{Commit, CommitError, MAX_CONFLICT_RETRIES, Store},
    view::ScopedRequestId,
};
use crate::{
    error::{Error, Result},
    operation::{
        Operation,
        name::{OperationName, parent_of},
        options::QueueName,
        spec::{IdempotencyKey, OperationSpec},
    },
    storage::Write,
};

/// What came of a request to create an operation.
#[derive(Clone, Debug)]
pub struct Created {
    /// The operation: new, or the one that this request made before.
    pub operation: Arc<Operation>,
    /// Whether the same request had made it before.
    pub already_existed: bool,
}

/// The room that a new operation takes. Given back when dropped, but for what
/// the operation has for as long as it lives once it is shown.
struct Reservation {
    store: Arc<Store>,
    bytes: usize,
    /// Whether it counts among the operations.
    counts_operation: bool,
    /// Where it has a place.
    queue: Option<QueueName>,
}

// === impl Store ===

impl Store {
    /// Makes an operation. It can be read, from anywhere, when this returns.
    pub(crate) async fn create(self: &Arc<Self>, mut spec: OperationSpec) -> Result<Created> {
        if self.tasks.stop_token().is_cancelled() {
            return Err(Error::ShuttingDown);
        }
        let mut retries_left = MAX_CONFLICT_RETRIES;
        loop {
            let retry_spec = self.peers.as_ref().map(|_| spec.clone());
            match (self.try_create(spec).await, retry_spec) {
                (Ok(created), _) => return Ok(created),
                (Err(CommitError::Rejected(error)), _) => return Err(error),
                (Err(CommitError::Conflict(current)), Some(retry_spec)) => {
                    self.reload_after_conflict(current, &retry_spec.name, &mut retries_left)
                        .await?;
                    spec = retry_spec;
                }
                // Nobody can have been faster.
                (Err(CommitError::Conflict(_)), None) => return Err(Error::StoreUnavailable),
            }
        }
    }

    async fn try_create(self: &Arc<Self>, spec: OperationSpec) -> Result<Created, CommitError> {
        let store = self.clone();
        let start_create = async move {
            let idempotency_key = spec
                .attributes
                .as_ref()
                .and_then(|attributes| attributes.idempotency_key.clone());
            let request_id_guard = match &idempotency_key {
                None => None,
                Some(idempotency_key) => Some(
                    store
                        .request_id_locks
                        .lock(&idempotency_key.request_id)
                        .await,
                ),
            };
            if let Some(name) = store.find_conflicting_name(&spec, idempotency_key.as_ref()) {
                store.reload(&name).await?;
            }
            if let Some(operation) = store.find_by_request_id(&spec, idempotency_key.as_ref())? {
                return Ok(Commit::Done(Created {
                    operation,
                    already_existed: true,
                }));
            }
            let guard = store.key_locks.lock(spec.name.as_str()).await;
            store.persist_new((request_id_guard, guard), spec)
        };
        self.run_detached("create", start_create).await
    }

    /// The operation because of which this one may not be made, if another server
    /// may have let go of it by now.
    fn find_conflicting_name(
        &self,
        spec: &OperationSpec,
        idempotency_key: Option<&IdempotencyKey>,
    ) -> Option<OperationName> {
        self.peers.as_ref()?;
        let key =
            |idempotency_key| ScopedRequestId::new(parent_of(spec.name.as_str()), idempotency_key);
        let existing = idempotency_key
            .and_then(|idempotency_key| self.view.request_id_entry(&key(idempotency_key)));
        match existing {
            Some(before) => Some(before.name.clone()),
            None => self
                .view
                .get_any(spec.name.as_str())
                .map(|_| spec.name.clone()),
        }
    }

    /// The operation that the same request made before, if it is still there.
    fn find_by_request_id(
        &self,
        spec: &OperationSpec,
        idempotency_key: Option<&IdempotencyKey>,
    ) -> Result<Option<Arc<Operation>>> {
        let Some(idempotency_key) = idempotency_key else {
            return Ok(None);
        };
        let key = ScopedRequestId::new(parent_of(spec.name.as_str()), idempotency_key);
        let Some(existing) = self.view.request_id_entry(&key) else {
            return Ok(None);
        };
        if existing.idempotency_key.fingerprint != idempotency_key.fingerprint {
            return Err(Error::RequestIdReused {
                request_id: idempotency_key.request_id.clone().into(),
            });
        }
        Ok(self.view.get_visible(existing.name.as_str()))
    }

    fn persist_new(
        self: &Arc<Self>,
        guards: (Option<KeyLockGuard>, KeyLockGuard),
        mut spec: OperationSpec,
    ) -> Result<Commit<Created>> {
        if self.view.get_any(spec.name.as_str()).is_some() {
            return Err(Error::OperationExists {
                name: spec.name.to_string(),
            });
        }
        spec.number = match self.storage.0.shared() {
            Some(shared) => shared.next_number(),
            None => self.next_number.fetch_add(1, Ordering::Relaxed),
        };
        let operation = Arc::new(Operation::new(spec, self.clock.now()));
        self.check_size("operation", &operation)?;
        let reservation = self.reserve_capacity(&operation)?;
        Ok(
            self.submit_write(Write::Put(operation.clone()), move |store, result| {
                let _guards = guards;
                let reservation = reservation;
                result?;
                store.view.publish(&operation);
                reservation.commit();
                store.remove_if_tombstoned(&operation);
                Ok(Created {
                    operation,
                    already_existed: false,
                })
            }),
        )
    }

    fn reserve_capacity(self: &Arc<Self>, operation: &Operation) -> Result<Reservation> {
        let (bytes, limits) = (operation.size(), &self.limits);
        let store_full = |unit, limit| Err(Error::StoreFull { unit, limit });
        let add_bytes = |reserved: usize| {
            (self.view.total_bytes() + reserved + bytes <= limits.max_total_bytes)
                .then(|| reserved + bytes)
        };
        if self
            .reserved_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add_bytes)
            .is_err()
        {
            return store_full("bytes", limits.max_total_bytes);
        }
        let mut reservation = Reservation {
            store: self.clone(),
            bytes,
            counts_operation: false,
            queue: None,
        };
        if let Some(name) = operation.queue() {
            let queue_ref = self.view.ready_queues.acquire(name);
            if !queue_ref.queue().try_reserve(limits.max_queue_length) {
                return Err(Error::QueueFull {
                    queue: name.to_string(),
                    limit: limits.max_queue_length,
                });
            }
            reservation.queue = Some(name.clone());
        }
        let add_operation = |count| (count < limits.max_operations).then_some(count + 1);
        reservation.counts_operation = self
            .operation_count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add_operation)
            .is_ok();
        if reservation.counts_operation {
            Ok(reservation)
        } else {
            store_full("operations", limits.max_operations)
        }
    }
}

// === impl Room ===

impl Reservation {
    /// The operation is shown, and keeps its place.
    fn commit(mut self) {
        self.counts_operation = false;
        self.queue = None;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let store = &self.store;
        store
            .reserved_bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
        if self.counts_operation {
            store.operation_count.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(queue) = &self.queue {
            store
                .view
                .ready_queues
                .acquire(queue)
                .queue()
                .cancel_reservation();
        }
    }
}
