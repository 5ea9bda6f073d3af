//! An in-memory storage shared by several servers: compare-and-set on the
//! revision, and a change log whose replication the test can pause per server.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use futures_util::future::BoxFuture;
use longrunning::{
    Change, ChangeBatch, ChangeFeed, Clock, Completion, LoadSink, Operation, OperationName,
    Operations, ReadConsistency, SharedStorage, Storage, StorageError, StorageErrorKind,
    StorageStatus, Timestamp, Write, WriteError,
};
use parking_lot::Mutex;
use tokio::sync::watch;

/// The shared storage. Clones refer to the same one.
#[derive(Clone, Debug)]
pub(crate) struct FakeSharedStorage(Arc<FakeSharedStorageInner>);

#[derive(Debug)]
struct FakeSharedStorageInner {
    clock: Clock,
    /// Start of the current availability, or `None` while offline.
    available_since: Mutex<Option<Timestamp>>,
    rows: Mutex<Rows>,
    /// Number of entries in the change log.
    log_length: watch::Sender<usize>,
    last_number: AtomicU64,
    fetch_count: AtomicUsize,
    /// Number of fetches, writes and syncs.
    request_count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Rows {
    by_number: BTreeMap<u64, Arc<Operation>>,
    /// Operation number of each change, and whether it only renewed a lease.
    log: Vec<(u64, bool)>,
}

/// The connection of one server to the shared storage.
#[derive(Debug)]
pub(crate) struct FakeStorageHandle {
    storage: FakeSharedStorage,
    replication_enabled: watch::Receiver<bool>,
    applied_position: watch::Sender<usize>,
}

/// The change feed of one server.
struct FakeChangeFeed {
    storage: FakeSharedStorage,
    replication_enabled: watch::Receiver<bool>,
    applied_position: watch::Sender<usize>,
    /// The position after the last batch.
    next_position: usize,
}

/// A server that uses the shared storage.
pub(crate) struct TestReplica {
    pub(crate) operations: Operations,
    storage: FakeSharedStorage,
    replication_enabled: watch::Sender<bool>,
    applied_position: watch::Receiver<usize>,
}

// === impl FakeSharedStorage ===

impl Default for FakeSharedStorage {
    fn default() -> Self {
        let clock = Clock::system();
        Self(Arc::new(FakeSharedStorageInner {
            clock,
            available_since: Mutex::new(Some(clock.now())),
            rows: Mutex::default(),
            log_length: watch::Sender::default(),
            last_number: AtomicU64::default(),
            fetch_count: AtomicUsize::default(),
            request_count: AtomicUsize::default(),
        }))
    }
}

impl FakeSharedStorage {
    /// Makes all requests fail, those of every server.
    pub(crate) fn go_offline(&self) {
        *self.0.available_since.lock() = None;
    }

    /// Makes the storage available again.
    pub(crate) fn go_online(&self) {
        *self.0.available_since.lock() = Some(self.0.clock.now());
    }

    /// Starts another server, with local reads.
    pub(crate) async fn start_replica(&self) -> TestReplica {
        self.start_replica_with(ReadConsistency::Local).await
    }

    /// Starts another server.
    pub(crate) async fn start_replica_with(&self, consistency: ReadConsistency) -> TestReplica {
        let (replication_enabled, replication_enabled_receiver) = watch::channel(true);
        let (applied_position, applied_position_receiver) = watch::channel(0);
        let handle = FakeStorageHandle {
            storage: self.clone(),
            replication_enabled: replication_enabled_receiver,
            applied_position,
        };
        let builder = Operations::builder()
            .read_consistency(consistency)
            .storage(handle);
        let operations = builder.start().await.unwrap();
        TestReplica {
            operations,
            storage: self.clone(),
            replication_enabled,
            applied_position: applied_position_receiver,
        }
    }

    /// Returns the number of fetches so far.
    pub(crate) fn fetch_count(&self) -> usize {
        self.0.fetch_count.load(Ordering::Relaxed)
    }

    /// Returns the number of fetches, writes and syncs so far.
    pub(crate) fn request_count(&self) -> usize {
        self.0.request_count.load(Ordering::Relaxed)
    }

    fn begin_request(&self) -> Result<(), StorageError> {
        self.0.request_count.fetch_add(1, Ordering::Relaxed);
        if self.0.available_since.lock().is_some() {
            return Ok(());
        }
        Err(StorageError::new(
            StorageErrorKind::Unavailable,
            "the test took the storage offline",
        ))
    }

    /// Returns the stored operations in order of their numbers.
    pub(crate) fn rows(&self) -> Vec<Arc<Operation>> {
        self.0.rows.lock().by_number.values().cloned().collect()
    }
}

// === impl TestReplica ===

impl TestReplica {
    /// Stops applying changes made by other servers.
    pub(crate) fn pause_replication(&self) {
        self.replication_enabled.send_replace(false);
    }

    /// Applies changes made by other servers again, as after the start.
    pub(crate) fn resume_replication(&self) {
        self.replication_enabled.send_replace(true);
    }

    /// Waits until the server has applied all changes made so far.
    pub(crate) async fn wait_until_caught_up(&mut self) {
        let log_length = *self.storage.0.log_length.borrow();
        self.applied_position
            .wait_for(|position| log_length <= *position)
            .await
            .unwrap();
    }
}

// === impl FakeStorageHandle ===

impl Storage for FakeStorageHandle {
    fn load(&self, sink: LoadSink) -> BoxFuture<'_, Result<(), StorageError>> {
        let rows = self.storage.0.rows.lock();
        assert!(
            rows.by_number.is_empty(),
            "expected no operations before the start: loading is not supported"
        );
        drop(sink);
        Box::pin(std::future::ready(Ok(())))
    }

    fn write(&self, write: Write, completion: Completion) {
        let inner = &*self.storage.0;
        if let Err(error) = self.storage.begin_request() {
            return completion.complete(Err(error.into()));
        }
        let mut rows = inner.rows.lock();
        let result = rows.apply_write(&write);
        let length = rows.log.len();
        drop(rows);
        inner.log_length.send_replace(length);
        completion.complete(result);
    }

    fn write_error(&self) -> Option<String> {
        let is_offline = self.storage.0.available_since.lock().is_none();
        is_offline.then(|| "the test took the storage offline".to_owned())
    }

    fn shared(&self) -> Option<&dyn SharedStorage> {
        Some(self)
    }
}

impl SharedStorage for FakeStorageHandle {
    fn fetch<'a>(
        &'a self,
        name: &'a OperationName,
    ) -> BoxFuture<'a, Result<Option<Arc<Operation>>, StorageError>> {
        self.storage.0.fetch_count.fetch_add(1, Ordering::Relaxed);
        let begun = self.storage.begin_request();
        let operation = self.storage.0.rows.lock().find_by_name(name.as_str());
        Box::pin(async move {
            // Lets other tasks run during the fetch.
            tokio::task::yield_now().await;
            begun.map(|()| operation)
        })
    }

    fn clock(&self) -> Option<Clock> {
        Some(self.storage.0.clock)
    }

    fn status(&self) -> Option<StorageStatus> {
        let now = self.storage.0.clock.now();
        Some(StorageStatus {
            available_since: self.storage.0.available_since.lock().unwrap_or(now),
            applied_through: now,
        })
    }

    fn next_number(&self) -> u64 {
        self.storage.0.last_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(async {
            self.storage.begin_request()?;
            let (log_length, mut applied_position) = (
                *self.storage.0.log_length.borrow(),
                self.applied_position.subscribe(),
            );
            let result = applied_position
                .wait_for(|position| log_length <= *position)
                .await;
            drop(result.map_err(|_| {
                StorageError::new(
                    StorageErrorKind::Unavailable,
                    "replication has stopped".to_owned(),
                )
            })?);
            Ok(())
        })
    }

    fn changes(&self) -> Box<dyn ChangeFeed> {
        Box::new(FakeChangeFeed {
            storage: self.storage.clone(),
            replication_enabled: self.replication_enabled.clone(),
            applied_position: self.applied_position.clone(),
            next_position: 0,
        })
    }
}

impl ChangeFeed for FakeChangeFeed {
    fn next(&mut self) -> BoxFuture<'_, Result<ChangeBatch, StorageError>> {
        Box::pin(async move {
            let position = *self.applied_position.borrow();
            let mut log_length = self.storage.0.log_length.subscribe();
            let is_alive = log_length
                .wait_for(|length| *length > position)
                .await
                .is_ok()
                && self
                    .replication_enabled
                    .wait_for(|enabled| *enabled)
                    .await
                    .is_ok();
            if !is_alive {
                // The replica was dropped, and its store is closing.
                std::future::pending::<()>().await;
            }
            self.next_position = position;
            let changes = {
                let rows = self.storage.0.rows.lock();
                rows.changes_since(&mut self.next_position)
            };
            // The response is on its way for a while.
            tokio::task::yield_now().await;
            Ok(ChangeBatch {
                changes,
                first_changed_at: None,
                is_partial: false,
            })
        })
    }

    fn ack(&mut self) {
        self.applied_position.send_replace(self.next_position);
    }
}

// === impl Rows ===

impl Rows {
    fn find_by_name(&self, name: &str) -> Option<Arc<Operation>> {
        let mut rows = self.by_number.values();
        rows.find(|row| row.name() == name).cloned()
    }

    fn apply_write(&mut self, write: &Write) -> Result<(), WriteError> {
        match write {
            Write::Put(operation) if operation.revision() == 0 => {
                let is_same_request = |row: &&Arc<Operation>| {
                    let requests = (row.request_id(), operation.request_id());
                    requests.0.is_some() && requests.0 == requests.1
                };
                let same_name = self.find_by_name(operation.name());
                let mut rows = self.by_number.values();
                if let Some(existing) = same_name.or_else(|| rows.find(is_same_request).cloned()) {
                    return Err(WriteError::Conflict {
                        current: Some(existing),
                    });
                }
                self.by_number.insert(operation.number(), operation.clone());
                self.log.push((operation.number(), false));
            }
            Write::Put(operation) | Write::RenewLease(operation) => {
                let row = self.by_number.get_mut(&operation.number());
                let row = row.ok_or(WriteError::Conflict { current: None })?;
                if row.revision() + 1 != operation.revision() {
                    return Err(WriteError::Conflict {
                        current: Some(row.clone()),
                    });
                }
                *row = operation.clone();
                let is_renewal = matches!(write, Write::RenewLease(_));
                self.log.push((operation.number(), is_renewal));
            }
            Write::Remove(operation) => {
                let row = self.by_number.get(&operation.number());
                let row = row.ok_or(WriteError::Conflict { current: None })?;
                if row.revision() != operation.revision() {
                    return Err(WriteError::Conflict {
                        current: Some(row.clone()),
                    });
                }
                self.by_number.remove(&operation.number());
                self.log.push((operation.number(), false));
            }
        }
        Ok(())
    }

    /// Returns the changes since `position`, one per operation, and advances `position`.
    fn changes_since(&self, position: &mut usize) -> Vec<Change> {
        let mut changed_numbers: BTreeMap<u64, bool> = BTreeMap::new();
        for (number, is_renewal) in &self.log[*position..] {
            *changed_numbers.entry(*number).or_insert(true) &= is_renewal;
        }
        *position = self.log.len();
        let changes = changed_numbers.into_iter().map(|(number, is_renewal)| {
            match self.by_number.get(&number) {
                Some(row) if is_renewal => Change::LeaseRenewed {
                    number,
                    revision: row.revision(),
                    expires_at: row.lease().unwrap().expires_at,
                },
                Some(row) => Change::Upserted(row.clone()),
                None => Change::Removed(number),
            }
        });
        changes.collect()
    }
}
