//! The journal in a SQLite file. Changes stand in line; whoever finds nobody
//! writing sends a writer, which commits all that stands there in one
//! transaction, again and again until the line is empty. So one fsync serves
//! everybody who came while the one before was under way, and an idle server
//! has no thread for it.
//!
//! How the file is opened lives in `file`, what a transaction does in `writer`,
//! reading back in `replay`, and looks at a file and copies of it in `copy`.

#[cfg(feature = "cli")]
pub(crate) mod copy;
mod file;
mod replay;
mod writer;

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::spawn_blocking,
    time::Instant,
};
use tracing::{error, info};

use self::{
    file::File,
    writer::{Row, Writer},
};
use super::journal::{BoxFuture, Entry, Journal, JournalError, Show};

/// How many bytes of changes may stand in line; who comes then waits.
const ROOM: usize = 32 << 20;

/// What a change takes of the room besides its record.
const OVERHEAD: usize = 256;

/// How long the writer waits before it tries again what could not be kept.
const PAUSE: Duration = Duration::from_millis(500);

/// The longest that the writer waits for those whose changes it has just
/// committed.
const PATIENCE: Duration = Duration::from_millis(2);

/// A journal in a SQLite file, which one process at a time may hold open.
///
/// A change is kept when SQLite has committed it with `synchronous=FULL`: it
/// then survives the death of the process and the loss of power.
#[derive(Debug)]
pub struct SqliteJournal {
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
    /// The runtime that the journal was first used on; it lends the threads.
    runtime: OnceLock<Handle>,
}

#[derive(Debug)]
struct Shared {
    line: Mutex<Line>,
    /// As many stand in line as were wanted, or the journal is being closed.
    news: Condvar,
    /// The open file; none once it is closed.
    writer: Mutex<Option<Writer>>,
    trouble: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Line {
    waiting: Vec<Waiting>,
    /// The writer sleeps until so many wait, or its patience ends.
    wanted: usize,
    is_written: bool,
    is_closing: bool,
}

/// A change that stands in line.
#[derive(Debug)]
struct Waiting {
    row: Row,
    kept: oneshot::Sender<Result<(), JournalError>>,
    /// Its part of the room.
    _room: OwnedSemaphorePermit,
}

// === impl SqliteJournal ===

impl SqliteJournal {
    /// Opens a file, and makes it if there is none.
    ///
    /// # Errors
    /// [`JournalError`] if the file belongs to another program, to a newer
    /// version or to a running process, is damaged or cannot be written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, JournalError> {
        let file = File::open(path.as_ref())?;
        Ok(Self {
            shared: Arc::new(Shared {
                line: Mutex::default(),
                news: Condvar::new(),
                writer: Mutex::new(Some(Writer::new(file)?)),
                trouble: Mutex::default(),
            }),
            room: Arc::new(Semaphore::new(ROOM)),
            runtime: OnceLock::new(),
        })
    }

    fn runtime(&self) -> &Handle {
        self.runtime.get_or_init(Handle::current)
    }

    async fn keep(&self, row: Row) -> Result<(), JournalError> {
        let room = u32::try_from((row.size() + OVERHEAD).min(ROOM)).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(room).await;
        let (kept, told) = oneshot::channel();
        let is_first = {
            let mut line = self.shared.line.lock();
            if line.is_closing {
                return Err(closed());
            }
            line.waiting.push(Waiting {
                row,
                kept,
                _room: room.map_err(|_| closed())?,
            });
            if line.waiting.len() == line.wanted {
                self.shared.news.notify_one();
            }
            !std::mem::replace(&mut line.is_written, true)
        };
        if is_first {
            let (shared, runtime) = (self.shared.clone(), self.runtime().clone());
            drop(
                self.runtime()
                    .spawn_blocking(move || shared.write(&runtime)),
            );
        }
        told.await.unwrap_or_else(|_| Err(closed()))
    }
}

impl Journal for SqliteJournal {
    fn replay(&self, show: Show) -> BoxFuture<'_, Result<(), JournalError>> {
        self.runtime();
        let shared = self.shared.clone();
        Box::pin(async move {
            let replayed = spawn_blocking(move || match &*shared.writer.lock() {
                Some(writer) => replay::all(writer.path(), replay::threads(), &*show),
                None => Err(closed()),
            });
            replayed.await.unwrap_or_else(|_| Err(closed()))
        })
    }

    fn append(&self, entry: Entry) -> BoxFuture<'_, Result<(), JournalError>> {
        let row = match entry {
            Entry::Put(operation) => Row::put(&operation),
            Entry::Forget(operation) => Row::forget(&operation),
            Entry::Renew(_) => return Box::pin(async { Ok(()) }),
        };
        Box::pin(self.keep(row))
    }

    fn trouble(&self) -> Option<String> {
        self.shared.trouble.lock().clone()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        let shared = self.shared.clone();
        Box::pin(async move {
            shared.stop();
            // The last connection moves what is in the log into the file.
            drop(spawn_blocking(move || drop(shared.writer.lock().take())).await);
        })
    }
}

impl Drop for SqliteJournal {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

// === impl Shared ===

impl Shared {
    fn stop(&self) {
        self.line.lock().is_closing = true;
        self.news.notify_all();
    }

    /// Commits what stands in line until nothing does. While the file cannot be
    /// written, it stays and tries again.
    fn write(&self, runtime: &Handle) {
        let mut writer = self.writer.lock();
        let Some(writer) = writer.as_mut() else {
            self.line.lock().waiting.clear();
            return;
        };
        let _shift = Shift(&self.line);
        let (mut wanted, mut patience) = (0, Duration::ZERO);
        loop {
            let mut line = self.line.lock();
            let is_in_trouble = self.is_in_trouble();
            if is_in_trouble {
                (wanted, patience) = (1, PAUSE);
            }
            line.wanted = wanted;
            if line.waiting.len() < wanted && !line.is_closing {
                self.news.wait_for(&mut line, patience);
            }
            line.wanted = 0;
            if line.waiting.is_empty() && (line.is_closing || !is_in_trouble) {
                line.is_written = false;
                return;
            }
            let batch = std::mem::take(&mut line.waiting);
            drop(line);
            let begun = Instant::now();
            let kept = writer.commit(batch.iter().map(|waiting| &waiting.row));
            self.note(kept.as_ref().err());
            // Those who are told now often come back at once; a commit of all of
            // them is worth a part of what it takes.
            (wanted, patience) = (batch.len(), (begun.elapsed() / 2).min(PATIENCE));
            for waiting in batch {
                // Who does not wait any more finds the change in the view.
                let _ = waiting.kept.send(kept.clone());
            }
            if kept.is_ok() {
                writer.tidy(runtime);
            }
        }
    }

    fn is_in_trouble(&self) -> bool {
        self.trouble.lock().is_some()
    }

    /// Logs when a trouble begins and when it ends.
    fn note(&self, error: Option<&JournalError>) {
        let mut trouble = self.trouble.lock();
        match (error, &*trouble) {
            (Some(error), None) => {
                error!(%error, "changes are refused, because they cannot be kept; reads go on");
            }
            (None, Some(_)) => info!("changes can be kept again"),
            (Some(_), Some(_)) | (None, None) => {}
        }
        *trouble = error.map(ToString::to_string);
    }
}

/// The time for which somebody writes. If a bug ends it before its time, those
/// in line are told, and the next one sends another writer.
struct Shift<'a>(&'a Mutex<Line>);

impl Drop for Shift<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut line = self.0.lock();
            line.is_written = false;
            line.waiting.clear();
        }
    }
}

fn closed() -> JournalError {
    JournalError("the journal is closed".to_owned())
}

#[cfg(test)]
mod tests;
