//! Replication: applies what other servers of the same storage changed to the view. The storage decides which change
//! wins; replication makes sure that the view never goes back to an older version, except to follow a database that
//! lost acknowledged writes (asynchronous failover).

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
};

use futures_util::{FutureExt, TryStreamExt, stream};
use tracing::{debug, error};

use super::state::Store;
use crate::{
    clock::Timestamp,
    error::Result,
    operation::{Operation, OperationVersion},
    storage::{Change, ChangeBatch, ChangeFeed, SharedStorage},
};

/// How many changes are applied concurrently. Each waits for the key lock of its operation.
const MAX_CONCURRENT_APPLIES: usize = 256;

impl Store {
    /// Starts the replication loop, which runs until `stop_replication` or `close`: also during a drain.
    pub(super) fn start_replication(self: &Arc<Self>) {
        let (Some(replication), Some(shared)) = (&self.replication, self.storage.shared()) else {
            return;
        };
        let feed = SharedStorage::changes(shared);
        let (store, stop_token) = (self.clone(), replication.tasks.stop_token().clone());
        replication.tasks.spawn("replication", async move {
            stop_token
                .run_until_cancelled(store.run_replication(feed))
                .await
        });
    }

    /// Stops the replication loop.
    pub(crate) fn stop_replication(&self) {
        if let Some(replication) = &self.replication {
            replication.tasks.stop_token().cancel();
        }
    }

    /// Applies one batch of changes after another. The feed delivers a batch again that was not acknowledged, and
    /// paces itself: after an error, `next` waits before it reads again.
    async fn run_replication(&self, mut feed: Box<dyn ChangeFeed>) {
        loop {
            // The feed logs and counts its own failures.
            let Ok(batch) = feed.next().await else {
                continue;
            };
            match self.apply_batch(batch).await {
                Ok(()) => feed.ack(),
                Err(error) => debug!(%error, "failed to apply changes, reading them again"),
            }
        }
    }

    async fn apply_batch(&self, batch: ChangeBatch) -> Result<()> {
        let mut changes = batch.changes.iter();
        let is_end_of_snapshot = changes.any(|change| matches!(change, Change::SnapshotEnd(_)));
        stream::iter(batch.changes.into_iter().map(Ok))
            .try_for_each_concurrent(MAX_CONCURRENT_APPLIES, async |change| {
                // A panic for one operation must not hide the changes of all others.
                let applied = AssertUnwindSafe(self.apply_change(change)).catch_unwind();
                applied.await.unwrap_or_else(|_| {
                    error!("applying a replicated change panicked");
                    Ok(())
                })
            })
            .await?;
        // Until the last batch of a read, one of them may still deliver an operation that was removed since.
        if let Some(replication) = &self.replication
            && !batch.is_partial
        {
            replication.tombstones.rotate();
        }
        self.evict_over_capacity().await;
        if is_end_of_snapshot {
            self.view.eviction.mark_unloaded_as_evicted();
        }
        if let Some(first_changed_at) = batch.first_changed_at {
            let delay = self.clock.now().since(first_changed_at);
            let histogram = &self.view.metrics.replication_delay;
            histogram.observe(delay.as_secs_f64());
        }
        Ok(())
    }

    /// Evicts the oldest done operations over the limit.
    async fn evict_over_capacity(&self) {
        let eviction = &self.view.eviction;
        while let Some(number) = eviction.pop_over_capacity() {
            let Some(cached) = self.view.index.get(number) else {
                continue;
            };
            let _lock = self.key_locks.lock(cached.name()).await;
            if let Some(cached) = self.view.index.get(number) {
                eviction.mark_evicted(number);
                self.view.remove(&cached);
                self.operation_count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    async fn apply_change(&self, change: Change) -> Result<()> {
        match change {
            Change::Upserted(operation) => self.apply_upsert(&operation).await?,
            Change::LeaseRenewed {
                number,
                revision,
                expires_at,
            } => self.apply_lease_renewal(number, revision, expires_at).await,
            Change::Removed(number) => self.apply_removal(number).await,
            Change::SnapshotEnd(versions) => self.reconcile_with_snapshot(&versions).await?,
        }
        Ok(())
    }

    /// Publishes an operation as it is stored, unless the view has a newer version, or the operation is old enough to
    /// be evicted again.
    async fn apply_upsert(&self, operation: &Arc<Operation>) -> Result<()> {
        let _lock = self.key_locks.lock(operation.name()).await;
        let is_cached = self.view.index.get(operation.number()).is_some();
        if self.is_tombstoned(operation.number())
            || (!is_cached && self.view.eviction.may_be_evicted(operation))
        {
            return Ok(());
        }
        match self.view.get_any(operation.name()) {
            None => self.insert_existing(operation),
            Some(cached) if cached.number() == operation.number() => {
                if cached.revision() < operation.revision() {
                    self.view.publish(operation);
                }
            }
            // The name was reused. Numbers do not tell which of the two is the later one.
            Some(_) => self.reload_locked(&operation.name_owned()).await?,
        }
        Ok(())
    }

    /// Extends a lease, which is all that has changed up to this revision.
    async fn apply_lease_renewal(&self, number: u64, revision: u32, expires_at: Timestamp) {
        let Some(cached) = self.view.index.get(number) else {
            return;
        };
        let _lock = self.key_locks.lock(cached.name()).await;
        if let Some(cached) = self.view.index.get(number)
            && cached.revision() < revision
        {
            let mut renewed = Operation::clone(&cached);
            renewed.apply_lease_renewal(revision, expires_at);
            self.view.publish(&Arc::new(renewed));
        }
    }

    /// Removes an operation that another server has removed.
    async fn apply_removal(&self, number: u64) {
        // Before the operation is looked up, so that a task that publishes it later sees the tombstone.
        if let Some(replication) = &self.replication {
            replication.tombstones.insert(number);
        }
        let Some(cached) = self.view.index.get(number) else {
            return;
        };
        let _lock = self.key_locks.lock(cached.name()).await;
        if let Some(cached) = self.view.index.get(number) {
            self.remove(&cached);
        }
    }

    /// Compares the view with a full snapshot. An operation that is missing there, or has another version, may have
    /// changed after the snapshot was taken, so that it is read again.
    async fn reconcile_with_snapshot(
        &self,
        snapshot: &BTreeMap<u64, OperationVersion>,
    ) -> Result<()> {
        let numbers = self.view.index.numbers().into_iter().map(Ok);
        let reconcile = async |number| match self.view.index.get(number) {
            Some(cached) if snapshot.get(&number) != Some(&cached.version()) => {
                self.reload(&cached.name_owned()).await
            }
            _ => Ok(()),
        };
        stream::iter(numbers)
            .try_for_each_concurrent(MAX_CONCURRENT_APPLIES, reconcile)
            .await
    }
}
