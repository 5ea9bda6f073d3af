//! Opens and closes the store.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize},
};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tracing::warn;

use super::{
    consistency::ReadConsistency,
    key_locks::KeyLocks,
    limits::Limits,
    pause,
    state::{ReplicationState, Store},
    view::View,
};
use crate::{
    clock::Clock,
    metrics::Metrics,
    operation::Operation,
    storage::{SharedStorage, Storage, error::StorageError},
    tasks::Tasks,
};

impl Store {
    /// Loads all stored operations, then starts the timers and, with shared storage, the replication loop.
    pub(crate) async fn open(
        storage: Arc<dyn Storage>,
        clock: Clock,
        metrics: &Metrics,
        limits: Limits,
        read_consistency: ReadConsistency,
    ) -> Result<Arc<Self>, StorageError> {
        let shared = storage.shared();
        let clock = shared.and_then(SharedStorage::clock).unwrap_or(clock);
        let clock = not_before_last_write(clock, &*storage);
        let cache_limit = shared.and_then(SharedStorage::cache_limit);
        let store = Arc::new(Self {
            view: View::new(clock, metrics, limits.max_waiters, cache_limit),
            clock,
            tasks: Tasks::default(),
            limits,
            read_consistency,
            runtime: Handle::current(),
            replication: shared.map(|_| ReplicationState::default()),
            storage,
            key_locks: KeyLocks::default(),
            request_id_locks: KeyLocks::default(),
            next_number: AtomicU64::new(1),
            operation_count: AtomicUsize::new(0),
            reserved_bytes: AtomicUsize::new(0),
        });
        store.load().await?;
        if let Err(error) = pause::start_monitor() {
            warn!(%error, "pauses of this process will not extend leases");
        }
        store.start_timers();
        store.start_replication();
        Ok(store)
    }

    /// Stops replication, then closes the storage; later writes fail.
    pub(crate) async fn close(&self) {
        if let Some(replication) = &self.replication {
            replication.tasks.stop().await;
        }
        self.storage.close().await;
    }

    async fn load(self: &Arc<Self>) -> Result<(), StorageError> {
        let leased = Arc::new(Mutex::new(Vec::new()));
        let sink = {
            let (store, leased) = (self.clone(), leased.clone());
            move |operation: Operation| {
                let operation = Arc::new(operation);
                if operation.lease().is_some() {
                    leased.lock().push(operation);
                } else {
                    store.insert_existing(&operation);
                }
            }
        };
        self.storage.load(Arc::new(sink)).await?;
        // A single server restarts its leases at the end of the load, because workers could not renew them until
        // now. Servers of shared storage keep the stored expiry; `with_outage_grace` extends what expired before this
        // server could see a renewal.
        let (leased, now) = (std::mem::take(&mut *leased.lock()), self.clock.now());
        for mut operation in leased {
            if !self.is_shared()
                && let Some(operation) = Arc::get_mut(&mut operation)
            {
                operation.restart_lease(now);
            }
            self.insert_existing(&operation);
        }
        self.view.eviction.mark_unloaded_as_evicted();
        Ok(())
    }
}

/// Returns a clock that does not go back behind the last stored change.
fn not_before_last_write(clock: Clock, storage: &dyn Storage) -> Clock {
    match storage.last_timestamp() {
        Some(last_timestamp) if last_timestamp > clock.now() => {
            warn!(
                clock_lag_secs = last_timestamp.since(clock.now()).as_secs_f64(),
                "system clock is behind the last stored change; continuing from the stored time"
            );
            clock.not_before(last_timestamp)
        }
        _ => clock,
    }
}
