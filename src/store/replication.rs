//! Following: what other servers of one journal make of operations is taken over
//! into the view. Which change wins is decided by the journal; here it is only
//! kept from the view that it goes back.

use std::{
    collections::{BTreeMap, HashSet},
    mem,
    panic::AssertUnwindSafe,
    sync::Arc,
};

use futures_util::{FutureExt, TryStreamExt, stream};
use parking_lot::Mutex;
use tracing::{debug, error, warn};

use super::store::Store;
use crate::{
    clock::Timestamp,
    error::{Error, Result},
    operation::{Operation, OperationVersion, name::OperationName},
    storage::{Change, ChangeSink, SharedStorage, StorageError, StorageStatus},
    tasks::Tasks,
};

/// How many pieces of news are taken in side by side: each waits for the turn of
/// its operation.
const MAX_CONCURRENT_APPLIES: usize = 256;

/// How new what clients read is, if several servers share the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadConsistency {
    /// What this server knows: what was done through it at once, and what was done
    /// through others within the time that word of it takes.
    #[default]
    Local,
    /// All that was done before, through whatever server. Each read asks the
    /// journal what is new; those that come together ask once.
    Linearizable,
}

/// What is known of the other servers.
#[derive(Debug, Default)]
pub(super) struct Peers {
    tombstones: Mutex<Tombstones>,
    pub(super) tasks: Tasks,
}

/// Operations that are gone, for as long as somebody may still be on the way
/// with an older word of them: with news that were read before, or with an answer
/// to a question that was asked before.
#[derive(Debug, Default)]
struct Tombstones {
    current: HashSet<u64>,
    previous: HashSet<u64>,
    /// How many ask just now: since the fresh graves are dug, and since before.
    inflight_fetches: [usize; 2],
    /// Which of the two those are who ask from now on.
    epoch: usize,
}

/// Somebody asks the journal.
struct FetchGuard<'a> {
    peers: &'a Peers,
    epoch: usize,
}

// === impl Store ===

impl Store {
    /// Takes in what other servers do, until the store is closed: those who drain are
    /// still asked.
    pub(super) fn start_replication(self: &Arc<Self>) {
        let Some(peers) = &self.peers else { return };
        let (store, stopping) = (self.clone(), peers.tasks.stop_token().clone());
        let apply: ChangeSink = {
            let store = self.clone();
            Arc::new(move |changes, first_change_at| {
                let store = store.clone();
                Box::pin(async move { store.apply_changes(changes, first_change_at).await })
            })
        };
        peers.tasks.spawn("follow", async move {
            if let Some(shared) = store.storage.0.shared() {
                let _ = stopping.run_until_cancelled(shared.watch(apply)).await;
            }
        });
    }

    /// Takes in nothing more.
    pub(crate) fn stop_replication(&self) {
        if let Some(peers) = &self.peers {
            peers.tasks.stop_token().cancel();
        }
    }

    /// The operation as time may judge it: a lease gets its full time again once
    /// the journal is within reach, because until then nobody could renew it.
    pub(super) fn with_outage_grace(&self, operation: Arc<Operation>) -> Arc<Operation> {
        let now = self.clock.now();
        let is_expired = operation.lease().is_some_and(|lease| lease.is_expired(now));
        let shared = self.storage.0.shared().filter(|_| is_expired);
        let Some(StorageStatus {
            available_since, ..
        }) = shared.and_then(SharedStorage::status)
        else {
            return operation;
        };
        let mut resumed = Operation::clone(&operation);
        resumed.restart_lease(available_since);
        Arc::new(resumed)
    }

    /// Whether an operation was let go of, here or elsewhere.
    pub(crate) fn is_tombstoned(&self, number: u64) -> bool {
        let peers = self.peers.as_ref();
        peers.is_some_and(|peers| peers.is_tombstoned(number))
    }

    /// Forgets what was let go of elsewhere just before it was shown here: nobody found
    /// it then. The caller has its turn.
    pub(super) fn remove_if_tombstoned(&self, operation: &Operation) {
        if self.is_tombstoned(operation.number()) {
            self.remove(operation);
        }
    }

    /// Up to when everything is shown that other servers did.
    pub(crate) fn applied_through(&self) -> Option<Timestamp> {
        Some(self.storage.0.shared()?.status()?.applied_through)
    }

    /// Whether other servers share the journal.
    pub(crate) fn has_peers(&self) -> bool {
        self.peers.is_some()
    }

    /// Sees to it that what is shown is no older than this call, if reads are to
    /// be fresh.
    pub(crate) async fn ensure_read_consistency(&self) -> Result<()> {
        match (self.read_consistency, self.storage.0.shared()) {
            (ReadConsistency::Linearizable, Some(shared)) => shared.sync().await.map_err(|error| {
                debug!(%error, "cannot read what other servers do");
                Error::StoreUnavailable
            }),
            _ => Ok(()),
        }
    }

    /// Asks the journal how an operation is now.
    pub(crate) async fn reload(&self, name: &OperationName) -> Result<()> {
        let _guard = self.key_locks.lock(name.as_str()).await;
        self.reload_locked(name).await
    }

    async fn apply_changes(
        &self,
        changes: Vec<Change>,
        first_change_at: Option<Timestamp>,
    ) -> Result<(), StorageError> {
        let has_snapshot_end = changes
            .iter()
            .any(|change| matches!(change, Change::SnapshotEnd(_)));
        stream::iter(changes.into_iter().map(Ok))
            .try_for_each_concurrent(MAX_CONCURRENT_APPLIES, |change| {
                // One operation that cannot be shown must not hide all others.
                let applied = AssertUnwindSafe(self.apply_change(change)).catch_unwind();
                applied.map(|applied| {
                    applied.unwrap_or_else(|_| {
                        error!("to take in what another server did panicked");
                        Ok(())
                    })
                })
            })
            .await
            .map_err(|error| StorageError(format!("what is new cannot be shown: {error}")))?;
        if let Some(peers) = &self.peers {
            peers.rotate_tombstones();
        }
        self.evict_over_capacity().await;
        if has_snapshot_end {
            self.view.eviction.mark_unloaded_as_evicted();
        }
        if let Some(first_change_at) = first_change_at {
            let lag = self.clock.now().since(first_change_at);
            self.view
                .metrics
                .replication_delay
                .observe(lag.as_secs_f64());
        }
        Ok(())
    }

    async fn apply_change(&self, change: Change) -> Result<()> {
        match change {
            Change::Upserted(operation) => {
                let _guard = self.key_locks.lock(operation.name()).await;
                let is_cached = self.view.index.get(operation.number()).is_some();
                if is_cached || !self.is_in_evicted_range(&operation) {
                    self.apply_upsert(&operation).await?;
                }
            }
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

    /// Asks the journal how an operation is now. The caller has its turn: whoever shows
    /// something newer waits for it, so that what was just read is the truth even if it
    /// is older, for a database may have lost what it said it had kept.
    pub(super) async fn reload_locked(&self, name: &OperationName) -> Result<()> {
        let (Some(peers), Some(shared)) = (&self.peers, self.storage.0.shared()) else {
            return Ok(());
        };
        let _fetch_guard = peers.begin_fetch();
        let stored = shared.fetch(name).await.map_err(|error| {
            warn!(operation.name = %name, %error, "cannot ask the journal for an operation");
            Error::StoreUnavailable
        })?;
        // It went while the answer was on its way.
        if stored
            .as_ref()
            .is_some_and(|stored| peers.is_tombstoned(stored.number()))
        {
            return Ok(());
        }
        match (self.view.get_any(name.as_str()), stored) {
            (Some(cached), Some(stored)) if cached.number() == stored.number() => {
                if cached.version() != stored.version() {
                    self.view.publish(&stored);
                }
            }
            (cached, stored) => {
                if let Some(cached) = cached {
                    self.remove(&cached);
                }
                if let Some(stored) = stored {
                    self.insert_existing(&stored);
                }
            }
        }
        Ok(())
    }

    /// Looks at what another server has made of an operation, so that a change of
    /// ours can be tried again, unless that was tried too often.
    pub(super) async fn reload_after_conflict(
        self: &Arc<Self>,
        current: Option<Arc<Operation>>,
        name: &OperationName,
        retries_left: &mut usize,
    ) -> Result<()> {
        *retries_left = retries_left.checked_sub(1).ok_or(Error::StoreUnavailable)?;
        // A request id may have been taken by an operation of another name. Since
        // it was in the way, it may have changed again.
        let name = current.map_or_else(|| name.clone(), |current| current.name_owned());
        self.reload(&name).await
    }

    /// Shows what another server has made of an operation, instead of our change.
    pub(super) async fn apply_conflicting_version(
        &self,
        current: Option<Arc<Operation>>,
        name: &OperationName,
    ) -> Result<()> {
        let _guard = self.key_locks.lock(name.as_str()).await;
        let cached = self.view.get_any(name.as_str());
        match (cached, current) {
            (Some(cached), Some(current))
                if cached.number() == current.number()
                    && cached.revision() < current.revision() =>
            {
                self.view.publish(&current);
                Ok(())
            }
            _ => self.reload_locked(name).await,
        }
    }

    /// Shows an operation as the journal has it, unless something newer is shown.
    /// The caller has its turn.
    async fn apply_upsert(&self, operation: &Arc<Operation>) -> Result<()> {
        let peers = self.peers.as_ref();
        if peers.is_some_and(|peers| peers.is_tombstoned(operation.number())) {
            return Ok(());
        }
        match self.view.get_any(operation.name()) {
            None => self.insert_existing(operation),
            Some(cached) if cached.number() == operation.number() => {
                if cached.revision() < operation.revision() {
                    self.view.publish(operation);
                }
            }
            // The name was free for a while. Clocks do not tell who had it first.
            Some(_) => self.reload_locked(&operation.name_owned()).await?,
        }
        Ok(())
    }

    /// A lease was renewed elsewhere, which is all that was new until then.
    async fn apply_lease_renewal(&self, number: u64, revision: u32, expires_at: Timestamp) {
        let Some(cached) = self.view.index.get(number) else {
            return;
        };
        let _guard = self.key_locks.lock(cached.name()).await;
        if let Some(cached) = self.view.index.get(number)
            && cached.revision() < revision
        {
            let mut renewed = Operation::clone(&cached);
            renewed.apply_lease_renewal(revision, expires_at);
            self.view.publish(&Arc::new(renewed));
        }
    }

    /// Another server has let go of an operation.
    async fn apply_removal(&self, number: u64) {
        // Before it is looked for, so that whoever shows it later knows.
        if let Some(peers) = &self.peers {
            peers.insert_tombstone(number);
        }
        let Some(cached) = self.view.index.get(number) else {
            return;
        };
        let _guard = self.key_locks.lock(cached.name()).await;
        if let Some(cached) = self.view.index.get(number) {
            self.remove(&cached);
        }
    }

    /// Only these are left of what was there. What is otherwise here may be newer
    /// than that, so that it is asked for.
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

// === impl Others ===

impl Peers {
    /// Remembers that an operation is gone.
    pub(super) fn insert_tombstone(&self, number: u64) {
        self.tombstones.lock().current.insert(number);
    }

    pub(super) fn is_tombstoned(&self, number: u64) -> bool {
        let tombstones = self.tombstones.lock();
        tombstones.current.contains(&number) || tombstones.previous.contains(&number)
    }

    fn begin_fetch(&self) -> FetchGuard<'_> {
        let mut tombstones = self.tombstones.lock();
        let epoch = tombstones.epoch;
        tombstones.inflight_fetches[epoch] += 1;
        FetchGuard { peers: self, epoch }
    }

    /// All news that were read are taken in, and those that will be read know
    /// what is gone. When the questions from before the last time are answered,
    /// so do all answers to come know of the old graves.
    fn rotate_tombstones(&self) {
        let mut tombstones = self.tombstones.lock();
        let previous_epoch = 1 - tombstones.epoch;
        if tombstones.inflight_fetches[previous_epoch] == 0 {
            tombstones.previous = mem::take(&mut tombstones.current);
            tombstones.epoch = previous_epoch;
        }
    }
}

// === impl Asking ===

impl Drop for FetchGuard<'_> {
    fn drop(&mut self) {
        self.peers.tombstones.lock().inflight_fetches[self.epoch] -= 1;
    }
}
