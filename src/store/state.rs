//! The state that every part of the store shares.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use tokio::runtime::Handle;

use super::{
    consistency::ReadConsistency, key_locks::KeyLocks, limits::Limits, pause,
    tombstones::Tombstones, view::View,
};
use crate::{
    clock::{Clock, Timestamp},
    operation::Operation,
    storage::{SharedStorage, Storage},
    tasks::Tasks,
};

/// The in-memory view and the write path of one server.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) view: View,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    pub(crate) limits: Limits,
    pub(super) read_consistency: ReadConsistency,
    /// The runtime on which the store was opened; storage threads spawn onto it.
    pub(super) runtime: Handle,
    pub(super) storage: Arc<dyn Storage>,
    /// Present if the storage can be shared.
    pub(super) replication: Option<ReplicationState>,
    pub(super) key_locks: KeyLocks,
    pub(super) request_id_locks: KeyLocks,
    pub(super) next_number: AtomicU64,
    pub(super) operation_count: AtomicUsize,
    /// Bytes of new operations whose creation is not durable yet.
    pub(super) reserved_bytes: AtomicUsize,
}

/// What a server must remember because others change the same storage.
#[derive(Debug, Default)]
pub(super) struct ReplicationState {
    pub(super) tombstones: Tombstones,
    /// The replication loop, which outlives `Store::tasks` during a drain.
    pub(super) tasks: Tasks,
}

impl Store {
    /// Returns `true` if other servers may share the storage.
    pub(crate) fn is_shared(&self) -> bool {
        self.replication.is_some()
    }

    /// Returns why the storage counts as unavailable, or `None` while it is available.
    pub(crate) fn write_error(&self) -> Option<String> {
        self.storage.write_error()
    }

    /// Returns the time up to which all changes of other servers are visible here, or `None` for storage that is
    /// not shared.
    pub(crate) fn applied_through(&self) -> Option<Timestamp> {
        Some(self.storage.shared()?.status()?.applied_through)
    }

    /// Returns `true` if the operation was removed, here or by another server.
    pub(crate) fn is_tombstoned(&self, number: u64) -> bool {
        let replication = self.replication.as_ref();
        replication.is_some_and(|replication| replication.tombstones.contains(number))
    }

    /// Returns the operation with an expired lease extended to at least a full duration from the end of the last pause
    /// of the process, and from the moment that shared storage became available: before that no worker could renew it.
    pub(super) fn with_outage_grace(&self, operation: Arc<Operation>) -> Arc<Operation> {
        let now = self.clock.now();
        if !operation.lease().is_some_and(|lease| lease.is_expired(now)) {
            return operation;
        }
        let resumed_at = pause::last_pause_end().map(|at| self.clock.timestamp_at(at.into()));
        let status = self.storage.shared().and_then(SharedStorage::status);
        let available_since = status.map(|status| status.available_since);
        let Some(renewable_since) = resumed_at.max(available_since) else {
            return operation;
        };
        let mut extended = Operation::clone(&operation);
        extended.restart_lease(renewable_since);
        Arc::new(extended)
    }

    /// Makes an operation visible that is already durable: loaded at the start, or created by another server. If
    /// another task may publish the same operation, the caller holds its key lock.
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

    /// Removes an operation from the view and leaves a tombstone. The caller holds its key lock.
    pub(super) fn remove(&self, operation: &Operation) {
        self.view.remove(operation);
        self.operation_count.fetch_sub(1, Ordering::Relaxed);
        if let Some(replication) = &self.replication {
            replication.tombstones.insert(operation.number());
        }
    }

    /// Removes an operation that another server removed just before it was published here, when there was nothing
    /// to remove yet. The caller holds its key lock.
    pub(super) fn remove_if_tombstoned(&self, operation: &Operation) {
        if self.is_tombstoned(operation.number()) {
            self.remove(operation);
        }
    }
}
