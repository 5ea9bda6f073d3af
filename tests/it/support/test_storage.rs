//! A journal whose every step the test decides: it can hold appends back, let
//! them fail, and begin again with what it kept.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use longrunning::{
    Completion, LoadSink, Operation, Storage, StorageError, StorageErrorKind, Timestamp, Write,
};
use parking_lot::Mutex;
use tokio::sync::watch;

/// Clones are the same journal.
#[derive(Clone, Debug)]
pub(crate) struct TestStorage(Arc<TestStorageInner>);

#[derive(Debug)]
struct TestStorageInner {
    write_mode: Mutex<WriteMode>,
    /// What came while the gate was shut.
    pending_writes: Mutex<Vec<(Write, Completion)>>,
    /// How many appends have begun.
    started_writes: watch::Sender<usize>,
    stored: Mutex<BTreeMap<String, Arc<Operation>>>,
    log: Mutex<Vec<String>>,
    initial_operations: Mutex<Vec<Operation>>,
    load_duration: Mutex<Duration>,
    last_timestamp: Mutex<Option<Timestamp>>,
}

/// What happens to appends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum WriteMode {
    Succeed,
    /// They pend.
    Hold,
    /// They fail.
    Fail,
}

// === impl TestJournal ===

impl TestStorage {
    pub(crate) fn new() -> Self {
        Self::with_operations(Vec::new())
    }

    /// A journal that kept these operations before.
    pub(crate) fn with_operations(operations: Vec<Operation>) -> Self {
        Self(Arc::new(TestStorageInner {
            write_mode: Mutex::new(WriteMode::Succeed),
            pending_writes: Mutex::default(),
            started_writes: watch::Sender::new(0),
            stored: Mutex::default(),
            log: Mutex::default(),
            initial_operations: Mutex::new(operations),
            load_duration: Mutex::default(),
            last_timestamp: Mutex::default(),
        }))
    }

    /// The same journal, which reads for so long.
    pub(crate) fn with_load_duration(self, duration: Duration) -> Self {
        *self.0.load_duration.lock() = duration;
        self
    }

    /// The same journal, with changes up to this time.
    pub(crate) fn with_last_timestamp(self, time: Timestamp) -> Self {
        *self.0.last_timestamp.lock() = Some(time);
        self
    }

    /// Sets what happens to appends from now on, those that pend included.
    pub(crate) fn set_write_mode(&self, write_mode: WriteMode) {
        let mut pending_writes = self.0.pending_writes.lock();
        *self.0.write_mode.lock() = write_mode;
        if write_mode == WriteMode::Hold {
            return;
        }
        let pending_writes = std::mem::take(&mut *pending_writes);
        for (write, completion) in pending_writes {
            self.0.complete_write(write_mode, write, completion);
        }
    }

    /// Waits until so many appends have begun in all.
    pub(crate) async fn wait_for_started_writes(&self, count: usize) {
        let mut started_writes = self.0.started_writes.subscribe();
        started_writes
            .wait_for(|started| count <= *started)
            .await
            .unwrap();
    }

    /// How many appends have begun in all.
    pub(crate) fn started_writes(&self) -> usize {
        *self.0.started_writes.borrow()
    }

    /// What was kept, as `put NAME rREVISION` and `forget NAME`.
    pub(crate) fn write_log(&self) -> Vec<String> {
        self.0.log.lock().clone()
    }

    /// Whether no server uses it any more.
    pub(crate) fn is_released(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// What a new server would read. Everybody else must have let go of it.
    pub(crate) fn into_stored(self) -> Vec<Operation> {
        let stored = std::mem::take(&mut *self.0.stored.lock());
        let unwrap_unique = |operation| Arc::try_unwrap(operation).expect("the old server is gone");
        stored.into_values().map(unwrap_unique).collect()
    }
}

impl Storage for TestStorage {
    fn load(&self, sink: LoadSink) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(async move {
            let operations = std::mem::take(&mut *self.0.initial_operations.lock());
            operations.into_iter().for_each(|operation| sink(operation));
            let duration = *self.0.load_duration.lock();
            tokio::time::sleep(duration).await;
            Ok(())
        })
    }

    fn last_timestamp(&self) -> Option<Timestamp> {
        *self.0.last_timestamp.lock()
    }

    fn write(&self, write: Write, completion: Completion) {
        // Broken or open is decided under the lock, so that `set` misses nobody.
        let mut pending_writes = self.0.pending_writes.lock();
        self.0.started_writes.send_modify(|started| *started += 1);
        let write_mode = *self.0.write_mode.lock();
        if write_mode == WriteMode::Hold {
            pending_writes.push((write, completion));
            return;
        }
        drop(pending_writes);
        self.0.complete_write(write_mode, write, completion);
    }
}

// === impl Inner ===

impl TestStorageInner {
    fn complete_write(&self, write_mode: WriteMode, write: Write, completion: Completion) {
        if write_mode == WriteMode::Fail {
            return completion.complete(Err(StorageError::new(
                StorageErrorKind::Unavailable,
                "the test broke it",
            )
            .into()));
        }
        match write {
            Write::Put(operation) | Write::RenewLease(operation) => {
                let line = format!("put {} r{}", operation.name(), operation.revision());
                self.log.lock().push(line);
                self.stored
                    .lock()
                    .insert(operation.name().to_owned(), operation);
            }
            Write::Delete(operation) => {
                self.log.lock().push(format!("forget {}", operation.name()));
                self.stored.lock().remove(operation.name());
            }
        }
        completion.complete(Ok(()));
    }
}
