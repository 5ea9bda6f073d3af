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
pub(crate) mod copy;
mod file;
mod lock;
mod refusal;
mod replay;
mod row;
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
    file::File,
    row::Row,
    writer::{PAUSE, Writer},
};
use super::journal::{BoxFuture, Entry, Journal, JournalError, Show, Then, Unkept};
use crate::clock::Timestamp;

/// How many bytes of rows may stand in line. A change that comes then becomes a
/// row only when it is written, so that a slow disk does not fill the memory.
const ROOM: usize = 32 << 20;

/// The longest that the writer waits for those whose changes it has just
/// committed.
const PATIENCE: Duration = Duration::from_millis(2);

/// To tell so many holds the next commit up for longer than to send somebody.
const CROWD: usize = 128;

/// A journal in a SQLite file, which one process at a time may hold open.
///
/// A change is kept when SQLite has committed it with `synchronous=FULL`: it
/// then survives the death of the process and the loss of power.
#[derive(Debug)]
pub struct SqliteJournal {
    shared: Arc<Shared>,
    /// The runtime that the journal was first used on; it lends the threads.
    runtime: OnceLock<Handle>,
}

#[derive(Debug)]
struct Shared {
    line: Mutex<Line>,
    /// As many stand in line as were wanted, or the journal is being closed.
    news: Condvar,
    /// How many bytes of rows stand in line.
    bytes: AtomicUsize,
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
    change: Change,
    then: Then,
}

#[derive(Debug)]
enum Change {
    Row(Row),
    /// It becomes a row when it is written.
    Entry(Entry),
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
                bytes: AtomicUsize::new(0),
                writer: Mutex::new(Some(Writer::new(file)?)),
                trouble: Mutex::default(),
            }),
            runtime: OnceLock::new(),
        })
    }

    fn runtime(&self) -> &Handle {
        self.runtime.get_or_init(Handle::current)
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

    fn append(&self, entry: Entry, then: Then) {
        if let Entry::Renew(_) = entry {
            return then.call(Ok(()));
        }
        let shared = &self.shared;
        // Made here and not by the writer, which everybody waits for.
        let change = if shared.bytes.load(Ordering::Relaxed) < ROOM {
            let row = Row::of(&entry);
            shared.bytes.fetch_add(row.size(), Ordering::Relaxed);
            Change::Row(row)
        } else {
            Change::Entry(entry)
        };
        if shared.line_up(Waiting { change, then }) {
            let shift = Shift {
                shared: shared.clone(),
                is_over: false,
            };
            let runtime = self.runtime().clone();
            drop(self.runtime().spawn_blocking(move || shift.work(&runtime)));
        }
    }

    fn newest(&self) -> Option<Timestamp> {
        let writer = self.shared.writer.lock();
        writer.as_ref().and_then(Writer::newest)
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

    /// Puts a change in line. Tells whether somebody must be sent to write.
    fn line_up(&self, waiting: Waiting) -> bool {
        let mut line = self.line.lock();
        if line.is_closing {
            drop(line);
            self.tell(vec![waiting], &Err(closed()));
            return false;
        }
        line.waiting.push(waiting);
        if line.waiting.len() == line.wanted {
            self.news.notify_one();
        }
        !std::mem::replace(&mut line.is_written, true)
    }

    /// Tells those who stood in line what became of their changes.
    fn tell(&self, batch: Vec<Waiting>, kept: &Result<(), JournalError>) {
        for Waiting { change, then } in batch {
            if let Change::Row(row) = &change {
                self.bytes.fetch_sub(row.size(), Ordering::Relaxed);
            }
            // A bug that one of them meets must not keep the others waiting.
            let told = catch_unwind(AssertUnwindSafe(|| {
                then.call(kept.clone().map_err(Unkept::from));
            }));
            if told.is_err() {
                error!("showing a change panicked");
            }
        }
    }

    /// Commits what stands in line until nothing does. While the file cannot be
    /// written, it stays and tries again.
    fn write(self: &Arc<Self>, runtime: &Handle) {
        let mut writer = self.writer.lock();
        let Some(writer) = writer.as_mut() else {
            let batch = std::mem::take(&mut self.line.lock().waiting);
            self.tell(batch, &Err(closed()));
            return;
        };
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
            let kept = writer.commit(batch.iter().map(|waiting| waiting.change.row()));
            self.note(writer.trouble());
            // Those who are told now often come back at once; a commit of all of
            // them is worth a part of what it takes.
            (wanted, patience) = (batch.len(), (begun.elapsed() / 2).min(PATIENCE));
            let is_kept = kept.is_ok();
            if batch.len() < CROWD {
                self.tell(batch, &kept);
            } else {
                let shared = self.clone();
                let crowd = Crowd {
                    shared,
                    batch,
                    kept,
                };
                drop(runtime.spawn_blocking(move || drop(crowd)));
            }
            if is_kept {
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

/// The time for which somebody writes. If it ends before its time, by a bug or
/// because there is no thread for it, those in line are told, and the next one
/// sends another writer.
struct Shift {
    shared: Arc<Shared>,
    is_over: bool,
}

/// Those who are told when it is dropped, also if there is no thread for that.
struct Crowd {
    shared: Arc<Shared>,
    batch: Vec<Waiting>,
    kept: Result<(), JournalError>,
}

// === impl Shift ===

impl Shift {
    fn work(mut self, runtime: &Handle) {
        self.shared.write(runtime);
        self.is_over = true;
    }
}

impl Drop for Shift {
    fn drop(&mut self) {
        if !self.is_over {
            let mut line = self.shared.line.lock();
            line.is_written = false;
            let batch = std::mem::take(&mut line.waiting);
            drop(line);
            let error = JournalError("there is no writer".to_owned());
            self.shared.tell(batch, &Err(error));
        }
    }
}

// === impl Crowd ===

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared
            .tell(std::mem::take(&mut self.batch), &self.kept);
    }
}

// === impl Change ===

impl Change {
    fn row(&self) -> Cow<'_, Row> {
        match self {
            Self::Row(row) => Cow::Borrowed(row),
            Self::Entry(entry) => Cow::Owned(Row::of(entry)),
        }
    }
}

fn closed() -> JournalError {
    JournalError("the journal is closed".to_owned())
}

#[cfg(test)]
mod tests;
