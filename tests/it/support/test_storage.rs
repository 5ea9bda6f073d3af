//! A storage controlled by the test: it can hold writes, fail them, and be reopened
//! with the stored operations.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use longrunning::{
    Completion, LoadSink, Operation, Storage, StorageError, StorageErrorKind, Timestamp, Write,
};
use parking_lot::Mutex;
use tokio::sync::watch;

/// An in-memory storage controlled by the test. Clones refer to the same one.
#[derive(Clone, Debug)]
pub(crate) struct TestStorage(Arc<TestStorageInner>);

#[derive(Debug)]
struct TestStorageInner {
    write_mode: Mutex<WriteMode>,
    /// Writes received in [`WriteMode::Hold`].
    pending_writes: Mutex<Vec<(Write, Completion)>>,
    /// Number of writes received.
    started_writes: watch::Sender<usize>,
    stored: Mutex<BTreeMap<String, Arc<Operation>>>,
    log: Mutex<Vec<String>>,
    initial_operations: Mutex<Vec<Operation>>,
    load_duration: Mutex<Duration>,
    last_timestamp: Mutex<Option<Timestamp>>,
}

/// What happens to writes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum WriteMode {
    Succeed,
    /// Writes stay pending until the mode changes.
    Hold,
    Fail,
}

// === impl TestStorage ===

impl TestStorage {
    pub(crate) fn new() -> Self {
        Self::with_operations(Vec::new())
    }

    /// Creates a storage that contains operations from before.
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

    /// Makes loading take `duration`.
    pub(crate) fn with_load_duration(self, duration: Duration) -> Self {
        *self.0.load_duration.lock() = duration;
        self
    }

    /// Sets the time of the last stored change.
    pub(crate) fn with_last_timestamp(self, time: Timestamp) -> Self {
        *self.0.last_timestamp.lock() = Some(time);
        self
    }

    /// Sets what happens to writes from now on, held ones included.
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

    /// Waits until at least `count` writes were received in total.
    pub(crate) async fn wait_for_started_writes(&self, count: usize) {
        let mut started_writes = self.0.started_writes.subscribe();
        started_writes
            .wait_for(|started| *started >= count)
            .await
            .unwrap();
    }

    /// Returns the number of writes received in total.
    pub(crate) fn started_writes(&self) -> usize {
        *self.0.started_writes.borrow()
    }

    /// Returns the stored writes in order, as `put NAME rREVISION` and `delete NAME`.
    pub(crate) fn write_log(&self) -> Vec<String> {
        self.0.log.lock().clone()
    }

    /// Returns `true` if no server uses the storage any more.
    pub(crate) fn is_released(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Returns the stored operations. Panics if a server still uses one.
    pub(crate) fn into_stored(self) -> Vec<Operation> {
        let stored = std::mem::take(&mut *self.0.stored.lock());
        let unwrap_unique =
            |operation| Arc::try_unwrap(operation).expect("expected the old server to be gone");
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

    fn write_error(&self) -> Option<String> {
        let is_failing = *self.0.write_mode.lock() == WriteMode::Fail;
        is_failing.then(|| "failed by the test".to_owned())
    }

    fn write(&self, write: Write, completion: Completion) {
        // The mode is read under the lock, so that `set_write_mode` misses no held write.
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

// === impl TestStorageInner ===

impl TestStorageInner {
    fn complete_write(&self, write_mode: WriteMode, write: Write, completion: Completion) {
        if write_mode == WriteMode::Fail {
            return completion.complete(Err(StorageError::new(
                StorageErrorKind::Unavailable,
                "failed by the test",
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
            Write::Remove(operation) => {
                self.log.lock().push(format!("delete {}", operation.name()));
                self.stored.lock().remove(operation.name());
            }
        }
        completion.complete(Ok(()));
    }
}
