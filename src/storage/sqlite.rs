//! Storage in a SQLite file, with group commit: writes are queued, and a writer thread commits the whole queue in one
//! transaction until the queue is empty. One fsync serves all writes that came during the fsync before, and an idle
//! server has no writer thread.

#[cfg(feature = "cli")]
pub(crate) mod backup;
mod database;
mod errors;
mod file_set;
mod load;
mod lock_file;
mod open_files;
mod paths;
#[cfg(feature = "cli")]
pub(crate) mod restore;
mod rows;
mod schema;
mod wal_file;
mod writer;

use std::{
    borrow::Cow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tokio::{runtime::Handle, task::spawn_blocking, time::Instant};
use tracing::{error, info};

use self::{
    database::Database,
    open_files::OpenFiles,
    rows::RowWrite,
    writer::{RETRY_DELAY, Writer},
};
use super::{Completion, LoadSink, Storage, Write, WriteError, error::StorageError};
use crate::clock::Timestamp;
use futures_util::future::BoxFuture;

/// The most bytes of encoded rows in the queue. Further writes are encoded by the writer, so that a slow disk does not
/// fill the memory.
const MAX_QUEUED_BYTES: usize = 32 << 20;

/// The most time that the writer waits for the next writes of callers that it has just answered.
const MAX_GROUP_COMMIT_DELAY: Duration = Duration::from_millis(2);

/// From this many on, completions run on another thread, because they would delay the next commit by more than it costs
/// to wake one.
const MIN_OFFLOADED_COMPLETIONS: usize = 128;

/// Storage in a SQLite file, which one process at a time may have open.
///
/// A write is durable once SQLite has committed it with `synchronous=FULL`: it survives a crash of the process and a
/// loss of power.
#[derive(Debug)]
pub struct SqliteStorage {
    inner: Arc<Inner>,
    /// The runtime on which the storage was first used. Its blocking threads run the writer.
    runtime: OnceLock<Handle>,
}

#[derive(Debug)]
struct Inner {
    queue: Mutex<WriteQueue>,
    /// Notified when the queue has `min_batch` writes, or the storage is closing.
    wakeup: Condvar,
    /// The bytes of encoded rows in the queue.
    queued_bytes: AtomicUsize,
    /// `None` once the file is closed.
    writer: Mutex<Option<Writer>>,
    write_error: Mutex<Option<String>>,
    files: Arc<OpenFiles>,
}

#[derive(Debug, Default)]
struct WriteQueue {
    pending: Vec<PendingWrite>,
    /// The writer waits until the queue has this many writes, or its delay ends.
    min_batch: usize,
    is_writer_running: bool,
    is_closing: bool,
}

/// A write in the queue.
#[derive(Debug)]
struct PendingWrite {
    row: PendingRow,
    completion: Completion,
}

#[derive(Debug)]
enum PendingRow {
    Encoded(RowWrite),
    /// Encoded by the writer.
    Deferred(Write),
}

// === impl SqliteStorage ===

impl SqliteStorage {
    /// Opens a file, and creates it if it does not exist.
    ///
    /// # Errors
    /// [`StorageError`] if the file belongs to another program, another schema version or a running process, is
    /// damaged or cannot be written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StorageError> {
        let writer = Writer::new(Database::open(path.as_ref())?)?;
        Ok(Self {
            inner: Arc::new(Inner {
                queue: Mutex::default(),
                wakeup: Condvar::new(),
                queued_bytes: AtomicUsize::new(0),
                files: writer.files().clone(),
                writer: Mutex::new(Some(writer)),
                write_error: Mutex::default(),
            }),
            runtime: OnceLock::new(),
        })
    }

    fn runtime(&self) -> &Handle {
        self.runtime.get_or_init(Handle::current)
    }

    fn spawn_writer(&self) {
        let guard = WriterGuard {
            inner: self.inner.clone(),
            is_finished: false,
        };
        let runtime = self.runtime().clone();
        drop(self.runtime().spawn_blocking(move || guard.run(&runtime)));
    }
}

impl Storage for SqliteStorage {
    fn load(&self, sink: LoadSink) -> BoxFuture<'_, Result<(), StorageError>> {
        self.runtime();
        let inner = self.inner.clone();
        Box::pin(async move {
            let result = spawn_blocking(move || match &*inner.writer.lock() {
                Some(writer) => load::load_all(writer.path(), load::decode_thread_count(), &*sink),
                None => Err(StorageError::closed()),
            });
            result.await.unwrap_or_else(|error| {
                let message = "loading the file panicked";
                Err(StorageError::internal(message).with_source(error))
            })
        })
    }

    fn write(&self, write: Write, completion: Completion) {
        if let Write::RenewLease(_) = write {
            return completion.complete(Ok(()));
        }
        let inner = &self.inner;
        // Encoded here, and not by the writer, for which all callers wait.
        let row = if inner.queued_bytes.load(Ordering::Relaxed) < MAX_QUEUED_BYTES {
            let encoded = RowWrite::encode(&write);
            inner
                .queued_bytes
                .fetch_add(encoded.size_bytes(), Ordering::Relaxed);
            PendingRow::Encoded(encoded)
        } else {
            PendingRow::Deferred(write)
        };
        if inner.enqueue(PendingWrite { row, completion }) {
            self.spawn_writer();
        }
    }

    fn last_timestamp(&self) -> Option<Timestamp> {
        let writer = self.inner.writer.lock();
        writer.as_ref().and_then(Writer::last_timestamp)
    }

    fn write_error(&self) -> Option<String> {
        if self.inner.check_files() {
            // It probes the file until it is back.
            self.spawn_writer();
        }
        self.inner.write_error.lock().clone()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        let inner = self.inner.clone();
        Box::pin(async move {
            inner.shut_down();
            // Closing the last connection checkpoints the WAL.
            drop(spawn_blocking(move || drop(inner.writer.lock().take())).await);
        })
    }
}

impl Drop for SqliteStorage {
    fn drop(&mut self) {
        self.inner.shut_down();
    }
}

// === impl Inner ===

impl Inner {
    fn shut_down(&self) {
        self.queue.lock().is_closing = true;
        self.wakeup.notify_all();
    }

    /// Enqueues a write. Returns `true` if the caller must start a writer.
    fn enqueue(&self, pending: PendingWrite) -> bool {
        let mut queue = self.queue.lock();
        if queue.is_closing {
            drop(queue);
            self.complete(vec![pending], &Err(StorageError::closed()));
            return false;
        }
        queue.pending.push(pending);
        if queue.pending.len() == queue.min_batch {
            self.wakeup.notify_one();
        }
        !std::mem::replace(&mut queue.is_writer_running, true)
    }

    /// Records an error if a file was removed, which an idle writer does not notice. Returns `true` if the caller must
    /// start a writer.
    fn check_files(&self) -> bool {
        let mut queue = self.queue.lock();
        if queue.is_closing {
            return false;
        }
        let Err(error) = self.files.check() else {
            return false;
        };
        self.update_write_error(Some(&error));
        !std::mem::replace(&mut queue.is_writer_running, true)
    }

    /// Completes the writes of a batch.
    fn complete(&self, batch: Vec<PendingWrite>, result: &Result<(), StorageError>) {
        for PendingWrite { row, completion } in batch {
            if let PendingRow::Encoded(encoded) = &row {
                self.queued_bytes
                    .fetch_sub(encoded.size_bytes(), Ordering::Relaxed);
            }
            // A panic of one completion must not leave the others without an answer.
            let completed = catch_unwind(AssertUnwindSafe(|| {
                completion.complete(result.clone().map_err(WriteError::from));
            }));
            if completed.is_err() {
                error!("publishing a committed change panicked");
            }
        }
    }

    /// Commits the queue until it is empty. While writes fail, keeps running and probes the file.
    fn run_writer(self: &Arc<Self>, runtime: &Handle) {
        let mut writer = self.writer.lock();
        let Some(writer) = writer.as_mut() else {
            let batch = std::mem::take(&mut self.queue.lock().pending);
            self.complete(batch, &Err(StorageError::closed()));
            return;
        };
        let (mut min_batch, mut max_wait) = (0, Duration::ZERO);
        loop {
            let mut queue = self.queue.lock();
            if self.is_failing() {
                (min_batch, max_wait) = (1, RETRY_DELAY);
            }
            queue.min_batch = min_batch;
            if queue.pending.len() < min_batch && !queue.is_closing {
                self.wakeup.wait_for(&mut queue, max_wait);
            }
            queue.min_batch = 0;
            // `check_files` may have recorded an error meanwhile.
            if queue.pending.is_empty() && (queue.is_closing || !self.is_failing()) {
                queue.is_writer_running = false;
                return;
            }
            let batch = std::mem::take(&mut queue.pending);
            drop(queue);
            let started = Instant::now();
            let result = writer.commit(batch.iter().map(|pending| pending.row.encoded()));
            self.update_write_error(writer.write_error());
            // Callers that are answered now often write again at once. To commit all of them together is worth a wait
            // of half a commit.
            (min_batch, max_wait) = (
                batch.len(),
                (started.elapsed() / 2).min(MAX_GROUP_COMMIT_DELAY),
            );
            let is_committed = result.is_ok();
            if batch.len() < MIN_OFFLOADED_COMPLETIONS {
                self.complete(batch, &result);
            } else {
                let completions = CompletionBatch {
                    inner: self.clone(),
                    writes: batch,
                    result,
                };
                drop(runtime.spawn_blocking(move || drop(completions)));
            }
            if is_committed {
                writer.checkpoint_if_needed(runtime);
            }
        }
    }

    fn is_failing(&self) -> bool {
        self.write_error.lock().is_some()
    }

    /// Records whether writes fail, and logs each change of that.
    fn update_write_error(&self, latest: Option<&StorageError>) {
        let mut current = self.write_error.lock();
        match (latest, &*current) {
            (Some(error), None) => {
                error!(%error, "writes are failing; rejecting writes, still serving reads");
            }
            (None, Some(_)) => info!("writes recovered"),
            (Some(_), Some(_)) | (None, None) => {}
        }
        *current = latest.map(ToString::to_string);
    }
}

/// A running writer. If it is dropped before it has finished, by a panic or because no thread was available, it fails
/// the queued writes, and the next write starts another writer.
struct WriterGuard {
    inner: Arc<Inner>,
    is_finished: bool,
}

/// Writes that are completed on drop, so that they are completed even if no thread is available.
struct CompletionBatch {
    inner: Arc<Inner>,
    writes: Vec<PendingWrite>,
    result: Result<(), StorageError>,
}

// === impl WriterGuard ===

impl WriterGuard {
    fn run(mut self, runtime: &Handle) {
        self.inner.run_writer(runtime);
        self.is_finished = true;
    }
}

impl Drop for WriterGuard {
    fn drop(&mut self) {
        if !self.is_finished {
            let mut queue = self.inner.queue.lock();
            queue.is_writer_running = false;
            // No writer probes the file now, and timers, which wait while writes fail, would wait for a client to
            // write. If writes still fail, the next writer records it again.
            *self.inner.write_error.lock() = None;
            let batch = std::mem::take(&mut queue.pending);
            drop(queue);
            let error = StorageError::internal("the writer thread ended unexpectedly");
            self.inner.complete(batch, &Err(error));
        }
    }
}

// === impl CompletionBatch ===

impl Drop for CompletionBatch {
    fn drop(&mut self) {
        self.inner
            .complete(std::mem::take(&mut self.writes), &self.result);
    }
}

// === impl PendingRow ===

impl PendingRow {
    fn encoded(&self) -> Cow<'_, RowWrite> {
        match self {
            Self::Encoded(row) => Cow::Borrowed(row),
            Self::Deferred(write) => Cow::Owned(RowWrite::encode(write)),
        }
    }
}

#[cfg(test)]
mod tests;
