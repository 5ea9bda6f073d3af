//! The journal in a SQLite file. Changes stand in line; whoever finds nobody
//! writing sends a writer, which commits all that stands there in one
//! transaction, again and again until the line is empty. So one fsync serves
//! everybody who came while the one before was under way, and an idle server
//! has no thread for it.
//!
//! How the file is opened lives in `file`, that nobody else opens it in `lock`,
//! what is written for a change in `row`, what a transaction does in `writer`,
//! reading back in `replay`, looks at a file and copies of it in `copy`, and what
//! to say when it does not go well in `refusal`.

#[cfg(feature = "cli")]
pub(crate) mod backup;
mod database;
mod errors;
mod load;
mod lock_file;
mod rows;
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
    rows::RowWrite,
    writer::{RETRY_DELAY, Writer},
};
use super::{
    Completion, LoadSink, Storage, Write, WriteError,
    error::{StorageError, StorageErrorKind},
};
use crate::clock::Timestamp;
use futures_util::future::BoxFuture;

/// How many bytes of rows may stand in line. A change that comes then becomes a
/// row only when it is written, so that a slow disk does not fill the memory.
const MAX_QUEUED_BYTES: usize = 32 << 20;

/// The longest that the writer waits for those whose changes it has just
/// committed.
const MAX_GROUP_COMMIT_DELAY: Duration = Duration::from_millis(2);

/// To tell so many holds the next commit up for longer than to send somebody.
const MIN_OFFLOADED_COMPLETIONS: usize = 128;

/// A journal in a SQLite file, which one process at a time may hold open.
///
/// A change is kept when SQLite has committed it with `synchronous=FULL`: it
/// then survives the death of the process and the loss of power.
#[derive(Debug)]
pub struct SqliteStorage {
    inner: Arc<Inner>,
    /// The runtime that the journal was first used on; it lends the threads.
    runtime: OnceLock<Handle>,
}

#[derive(Debug)]
struct Inner {
    queue: Mutex<WriteQueue>,
    /// As many stand in line as were wanted, or the journal is being closed.
    wakeup: Condvar,
    /// How many bytes of rows stand in line.
    queued_bytes: AtomicUsize,
    /// The open file; none once it is closed.
    writer: Mutex<Option<Writer>>,
    write_error: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct WriteQueue {
    pending: Vec<PendingWrite>,
    /// The writer sleeps until so many wait, or its patience ends.
    min_batch: usize,
    is_writer_running: bool,
    is_closing: bool,
}

/// A change that stands in line.
#[derive(Debug)]
struct PendingWrite {
    row: PendingRow,
    completion: Completion,
}

#[derive(Debug)]
enum PendingRow {
    Encoded(RowWrite),
    /// It becomes a row when it is written.
    Deferred(Write),
}

// === impl SqliteJournal ===

impl SqliteStorage {
    /// Opens a file, and makes it if there is none.
    ///
    /// # Errors
    /// [`JournalError`] if the file belongs to another program, to a newer
    /// version or to a running process, is damaged or cannot be written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StorageError> {
        let database = Database::open(path.as_ref())?;
        Ok(Self {
            inner: Arc::new(Inner {
                queue: Mutex::default(),
                wakeup: Condvar::new(),
                queued_bytes: AtomicUsize::new(0),
                writer: Mutex::new(Some(Writer::new(database)?)),
                write_error: Mutex::default(),
            }),
            runtime: OnceLock::new(),
        })
    }

    fn runtime(&self) -> &Handle {
        self.runtime.get_or_init(Handle::current)
    }
}

impl Storage for SqliteStorage {
    fn load(&self, sink: LoadSink) -> BoxFuture<'_, Result<(), StorageError>> {
        self.runtime();
        let inner = self.inner.clone();
        Box::pin(async move {
            let result = spawn_blocking(move || match &*inner.writer.lock() {
                Some(writer) => load::load_all(writer.path(), load::decode_thread_count(), &*sink),
                None => Err(closed_error()),
            });
            result.await.unwrap_or_else(|_| Err(closed_error()))
        })
    }

    fn write(&self, write: Write, completion: Completion) {
        if let Write::RenewLease(_) = write {
            return completion.complete(Ok(()));
        }
        let inner = &self.inner;
        // Made here and not by the writer, which everybody waits for.
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
            let guard = WriterGuard {
                inner: inner.clone(),
                is_finished: false,
            };
            let runtime = self.runtime().clone();
            drop(self.runtime().spawn_blocking(move || guard.run(&runtime)));
        }
    }

    fn last_timestamp(&self) -> Option<Timestamp> {
        let writer = self.inner.writer.lock();
        writer.as_ref().and_then(Writer::last_timestamp)
    }

    fn write_error(&self) -> Option<String> {
        self.inner.write_error.lock().clone()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        let inner = self.inner.clone();
        Box::pin(async move {
            inner.shut_down();
            // The last connection moves what is in the log into the file.
            drop(spawn_blocking(move || drop(inner.writer.lock().take())).await);
        })
    }
}

impl Drop for SqliteStorage {
    fn drop(&mut self) {
        self.inner.shut_down();
    }
}

// === impl Shared ===

impl Inner {
    fn shut_down(&self) {
        self.queue.lock().is_closing = true;
        self.wakeup.notify_all();
    }

    /// Puts a change in line. Tells whether somebody must be sent to write.
    fn enqueue(&self, pending: PendingWrite) -> bool {
        let mut queue = self.queue.lock();
        if queue.is_closing {
            drop(queue);
            self.complete(vec![pending], &Err(closed_error()));
            return false;
        }
        queue.pending.push(pending);
        if queue.pending.len() == queue.min_batch {
            self.wakeup.notify_one();
        }
        !std::mem::replace(&mut queue.is_writer_running, true)
    }

    /// Tells those who stood in line what became of their changes.
    fn complete(&self, batch: Vec<PendingWrite>, result: &Result<(), StorageError>) {
        for PendingWrite { row, completion } in batch {
            if let PendingRow::Encoded(encoded) = &row {
                self.queued_bytes
                    .fetch_sub(encoded.size_bytes(), Ordering::Relaxed);
            }
            // A bug that one of them meets must not keep the others waiting.
            let completed = catch_unwind(AssertUnwindSafe(|| {
                completion.complete(result.clone().map_err(WriteError::from));
            }));
            if completed.is_err() {
                error!("showing a change panicked");
            }
        }
    }

    /// Commits what stands in line until nothing does. While the file cannot be
    /// written, it stays and tries again.
    fn run_writer(self: &Arc<Self>, runtime: &Handle) {
        let mut writer = self.writer.lock();
        let Some(writer) = writer.as_mut() else {
            let batch = std::mem::take(&mut self.queue.lock().pending);
            self.complete(batch, &Err(closed_error()));
            return;
        };
        let (mut min_batch, mut max_wait) = (0, Duration::ZERO);
        loop {
            let mut queue = self.queue.lock();
            let is_failing = self.is_failing();
            if is_failing {
                (min_batch, max_wait) = (1, RETRY_DELAY);
            }
            queue.min_batch = min_batch;
            if queue.pending.len() < min_batch && !queue.is_closing {
                self.wakeup.wait_for(&mut queue, max_wait);
            }
            queue.min_batch = 0;
            if queue.pending.is_empty() && (queue.is_closing || !is_failing) {
                queue.is_writer_running = false;
                return;
            }
            let batch = std::mem::take(&mut queue.pending);
            drop(queue);
            let started = Instant::now();
            let result = writer.commit(batch.iter().map(|pending| pending.row.encoded()));
            self.update_write_error(writer.write_error());
            // Those who are told now often come back at once; a commit of all of
            // them is worth a part of what it takes.
            (min_batch, max_wait) = (
                batch.len(),
                (started.elapsed() / 2).min(MAX_GROUP_COMMIT_DELAY),
            );
            let is_committed = result.is_ok();
            if batch.len() < MIN_OFFLOADED_COMPLETIONS {
                self.complete(batch, &result);
            } else {
                let inner = self.clone();
                let completions = CompletionBatch {
                    inner,
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

    /// Logs when a trouble begins and when it ends.
    fn update_write_error(&self, latest: Option<&StorageError>) {
        let mut current = self.write_error.lock();
        match (latest, &*current) {
            (Some(error), None) => {
                error!(%error, "changes are refused, because they cannot be kept; reads go on");
            }
            (None, Some(_)) => info!("changes can be kept again"),
            (Some(_), Some(_)) | (None, None) => {}
        }
        *current = latest.map(ToString::to_string);
    }
}

/// The time for which somebody writes. If it ends before its time, by a bug or
/// because there is no thread for it, those in line are told, and the next one
/// sends another writer.
struct WriterGuard {
    inner: Arc<Inner>,
    is_finished: bool,
}

/// Those who are told when it is dropped, also if there is no thread for that.
struct CompletionBatch {
    inner: Arc<Inner>,
    writes: Vec<PendingWrite>,
    result: Result<(), StorageError>,
}

// === impl Shift ===

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
            let batch = std::mem::take(&mut queue.pending);
            drop(queue);
            let error =
                StorageError::new(StorageErrorKind::Internal, "there is no writer".to_owned());
            self.inner.complete(batch, &Err(error));
        }
    }
}

// === impl Crowd ===

impl Drop for CompletionBatch {
    fn drop(&mut self) {
        self.inner
            .complete(std::mem::take(&mut self.writes), &self.result);
    }
}

// === impl Change ===

impl PendingRow {
    fn encoded(&self) -> Cow<'_, RowWrite> {
        match self {
            Self::Encoded(row) => Cow::Borrowed(row),
            Self::Deferred(write) => Cow::Owned(RowWrite::encode(write)),
        }
    }
}

fn closed_error() -> StorageError {
    StorageError::closed()
}

#[cfg(test)]
mod tests;
