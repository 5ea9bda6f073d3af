//! Reads from shared storage what the view does not have, or may have in an older version.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tracing::{debug, warn};

use super::{consistency::ReadConsistency, state::Store, tombstones::FetchGuard};
use crate::{
    error::{Error, Result},
    operation::{
        Operation,
        name::{OperationName, Parent},
    },
    storage::{
        SharedStorage,
        error::{StorageError, StorageErrorKind},
    },
};

/// How long a read of consistency `Auto` waits for the storage.
const AUTO_SYNC_TIMEOUT: Duration = Duration::from_secs(1);

/// The result of reading an operation from storage.
struct FetchedOperation<'a> {
    /// The stored version, or `None` if there is none.
    operation: Option<Arc<Operation>>,
    /// Keeps the tombstones of removals that the version may be older than.
    _guard: FetchGuard<'a>,
}

impl Store {
    /// Waits until the view is no older than this call, unless reads are local. Returns `false` if it may be older,
    /// because the storage has not answered in time.
    ///
    /// # Errors
    /// UNAVAILABLE if reads are linearizable and the storage cannot be read.
    pub(crate) async fn ensure_read_consistency(&self) -> Result<bool> {
        match (self.read_consistency, self.storage.shared()) {
            (_, None) | (ReadConsistency::Local, _) => Ok(true),
            (ReadConsistency::Linearizable, Some(_)) => {
                self.ensure_linearizable().await.map(|()| true)
            }
            (ReadConsistency::Auto, Some(shared)) => {
                // During an outage that is known, reads stay as fast as memory.
                let synced = self.storage.write_error().is_none()
                    && matches!(timeout(AUTO_SYNC_TIMEOUT, shared.sync()).await, Ok(Ok(())));
                if !synced {
                    debug!("storage does not answer, reading memory");
                }
                Ok(synced)
            }
        }
    }

    /// Waits until the view is no older than this call, if reads are linearizable.
    ///
    /// # Errors
    /// UNAVAILABLE if the storage cannot be read.
    pub(crate) async fn ensure_linearizable(&self) -> Result<()> {
        if self.read_consistency == ReadConsistency::Linearizable
            && let Some(shared) = self.storage.shared()
            && let Err(error) = shared.sync().await
        {
            debug!(%error, "linearizable read failed");
            return Err(Error::StoreUnavailable);
        }
        Ok(())
    }

    /// Returns a done operation that reads need not ask the storage about.
    pub(crate) fn get_settled(&self, name: &str) -> Option<Arc<Operation>> {
        let is_auto = self.read_consistency == ReadConsistency::Auto;
        let visible = self.view.get_visible(name).filter(|_| is_auto);
        visible.filter(|operation| operation.is_done())
    }

    /// Returns an operation that the view lacks, as clients see it, or `None` if it does not exist. It is published,
    /// unless it is old enough to be evicted again.
    ///
    /// # Errors
    /// UNAVAILABLE if the storage cannot be read.
    pub(crate) async fn read_through(
        &self,
        name: &OperationName,
    ) -> Result<Option<Arc<Operation>>> {
        let _lock = self.key_locks.lock(name.as_str()).await;
        // Another reader may have published it while this one waited for the lock.
        if let Some(published) = self.view.get_visible(name.as_str()) {
            return Ok(Some(published));
        }
        let Some(fetched) = self.fetch(name).await? else {
            return Ok(None);
        };
        match &fetched.operation {
            Some(stored)
                if self.view.eviction.may_be_evicted(stored)
                    && self.view.get_any(name.as_str()).is_none() =>
            {
                Ok((!stored.is_deleted()).then(|| stored.clone()))
            }
            _ => {
                self.publish_fetched(name, fetched);
                Ok(self.view.get_visible(name.as_str()))
            }
        }
    }

    /// Brings an operation of the view up to date with the stored version.
    pub(super) async fn reload(&self, name: &OperationName) -> Result<()> {
        let _lock = self.key_locks.lock(name.as_str()).await;
        self.reload_locked(name).await
    }

    /// The same as `reload`, for a caller that holds the key lock. The stored version counts even if it is older:
    /// after a failover the database may have lost writes that it had acknowledged.
    pub(super) async fn reload_locked(&self, name: &OperationName) -> Result<()> {
        if let Some(fetched) = self.fetch(name).await? {
            self.publish_fetched(name, fetched);
        }
        Ok(())
    }

    /// Brings the view up to date after another server committed `current` first; `None` if the operation is gone.
    pub(super) async fn reload_after_conflict(
        &self,
        current: Option<Arc<Operation>>,
        name: &OperationName,
    ) -> Result<()> {
        // The conflicting operation may have another name: the one that has the request id. It may have changed again
        // since the conflict.
        let conflicting = current.map(|current| current.name_owned());
        self.reload(conflicting.as_ref().unwrap_or(name)).await
    }

    /// Publishes the version that another server committed first; reads the row if the view cannot tell which is newer.
    pub(super) async fn publish_conflicting_version(
        &self,
        conflicting: Option<Arc<Operation>>,
        name: &OperationName,
    ) -> Result<()> {
        let _lock = self.key_locks.lock(name.as_str()).await;
        match (self.view.get_any(name.as_str()), conflicting) {
            (Some(cached), Some(conflicting))
                if cached.number() == conflicting.number()
                    && cached.revision() < conflicting.revision() =>
            {
                self.view.publish(&conflicting);
                Ok(())
            }
            _ => self.reload_locked(name).await,
        }
    }

    /// Returns stored operations with numbers below `before`, newest first, at most `limit`. An empty list means that
    /// there are none.
    pub(crate) async fn list_from_storage(
        &self,
        parent: Option<&Parent>,
        before: u64,
        limit: usize,
    ) -> Result<Vec<Arc<Operation>>> {
        let Some(shared) = self.storage.shared() else {
            return Ok(Vec::new());
        };
        let listed = SharedStorage::list_before(shared, parent, before, limit).await;
        let mut operations = listed.map_err(|error| log_read_failure(&error))?;
        // The view may have a newer version than the one that was read.
        for operation in &mut operations {
            if let Some(cached) = self.view.index.get(operation.number())
                && cached.revision() > operation.revision()
            {
                *operation = cached;
            }
        }
        Ok(operations)
    }

    /// Reads the stored version of an operation; `None` if the storage is not shared. The caller holds the key lock.
    async fn fetch(&self, name: &OperationName) -> Result<Option<FetchedOperation<'_>>> {
        let (Some(replication), Some(shared)) = (&self.replication, self.storage.shared()) else {
            return Ok(None);
        };
        let _guard = replication.tombstones.begin_fetch();
        let fetched = shared.fetch(name).await;
        let operation = fetched.map_err(|error| log_read_failure(&error))?;
        Ok(Some(FetchedOperation { operation, _guard }))
    }

    /// Replaces the version in the view by the stored one. The caller has held the key lock since before the fetch,
    /// so that no newer version was published meanwhile.
    fn publish_fetched(&self, name: &OperationName, fetched: FetchedOperation<'_>) {
        match (self.view.get_any(name.as_str()), &fetched.operation) {
            // It was removed while the response was on its way.
            (_, Some(stored)) if self.is_tombstoned(stored.number()) => {}
            (Some(cached), Some(stored)) if cached.number() == stored.number() => {
                if cached.version() != stored.version() {
                    self.view.publish(stored);
                }
            }
            (cached, stored) => {
                if let Some(cached) = cached {
                    self.remove(&cached);
                }
                if let Some(stored) = stored {
                    self.insert_existing(stored);
                }
            }
        }
    }
}

/// The storage logs an outage once; only what concerns a single operation is logged for each call.
fn log_read_failure(error: &StorageError) -> Error {
    if error.kind() == StorageErrorKind::Unavailable {
        debug!(%error, "failed to read operations from storage");
    } else {
        warn!(%error, "failed to read operations from storage");
    }
    Error::StoreUnavailable
}
