//! What a transaction does: the rows of many changes, one fsync. It also keeps
//! the write-ahead log short, without holding commits up.

use std::{
    borrow::Cow,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use rusqlite::{Connection, ToSql, TransactionBehavior, hooks::Wal};
use tokio::runtime::Handle;
use tracing::warn;

use super::file::{File, connect, describe};
use crate::{
    journal::journal::{Entry, JournalError},
    operation::{
        operation::Operation,
        record::{encode, encode_input, encode_with_input},
    },
};

/// An input of more bytes is not written again with each change.
const SMALL_INPUT: usize = 1024;

/// The log is moved into the file when it has so many pages of 4 KiB.
const LOG_PAGES: u32 = 2048;

const PUT: &str = "INSERT OR REPLACE INTO operations (number, record) VALUES (?1, ?2)";
const PUT_INPUT: &str = "INSERT OR REPLACE INTO inputs (number, input) VALUES (?1, ?2)";
const FORGET: &str = "DELETE FROM operations WHERE number = ?1";
const FORGET_INPUT: &str = "DELETE FROM inputs WHERE number = ?1";
const COUNT: &str = "UPDATE journal SET changes = ?1";

/// Writes changes, and holds the file open.
#[derive(Debug)]
pub(super) struct Writer {
    connection: Connection,
    /// How many changes were committed since the file was made.
    changes: u64,
    log: Arc<Log>,
    /// Whether a thread moves the log into the file.
    is_moving: bool,
    /// The length of the log at which it is moved next.
    due: u32,
    // Dropped last: the lock goes when the connection is closed.
    file: File,
}

/// The write-ahead log.
#[derive(Debug, Default)]
struct Log {
    /// How many pages it had after the last commit.
    pages: AtomicU32,
    /// Whether the thread is through.
    is_moved: AtomicBool,
}

/// A change as it is written.
#[derive(Clone, Debug)]
pub(super) enum Row {
    Put {
        number: i64,
        record: Vec<u8>,
        input: Input,
    },
    Forget {
        number: i64,
    },
}

/// What becomes of an input that is kept beside the record.
#[derive(Clone, Debug)]
pub(super) enum Input {
    /// It stays as it is, or there is none.
    Same,
    New(Vec<u8>),
    /// Nobody needs it any more.
    Gone,
}

// === impl Row ===

impl Row {
    pub(super) fn of(entry: &Entry) -> Self {
        match entry {
            Entry::Put(operation) | Entry::Renew(operation) => Self::put(operation),
            Entry::Forget(operation) => Self::Forget {
                number: key(operation),
            },
        }
    }

    fn put(operation: &Operation) -> Self {
        let large = operation.input().filter(|input| SMALL_INPUT < input.size());
        let (record, input) = match large {
            None => (
                encode_with_input(operation),
                if operation.is_done() {
                    Input::Gone
                } else {
                    Input::Same
                },
            ),
            Some(input) if operation.revision() == 0 => (
                encode(operation),
                Input::New(encode_input(operation.number(), input)),
            ),
            Some(_) => (encode(operation), Input::Same),
        };
        Self::Put {
            number: key(operation),
            record,
            input,
        }
    }

    /// How many bytes it holds.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Put {
                record,
                input: Input::New(input),
                ..
            } => record.len() + input.len(),
            Self::Put { record, .. } => record.len(),
            Self::Forget { .. } => 0,
        }
    }
}

/// Numbers are handed out one by one, from 1: they fit.
fn key(operation: &Operation) -> i64 {
    i64::try_from(operation.number()).unwrap_or(i64::MAX)
}

// === impl Writer ===

impl Writer {
    /// # Errors
    /// [`JournalError`] if the file cannot be written.
    pub(super) fn new(file: File) -> Result<Self, JournalError> {
        let mut connection = connect(file.path())?;
        let log = Arc::new(Log::default());
        let hook = {
            let log = log.clone();
            move |_: &mut Wal, pages: i32| {
                let pages = u32::try_from(pages).unwrap_or(0);
                log.pages.store(pages, Ordering::Relaxed);
                Ok(())
            }
        };
        connection
            .wal_hook(Some(hook))
            .map_err(|error| describe(file.path(), &error))?;
        let mut writer = Self {
            changes: file.changes(),
            connection,
            log,
            is_moving: false,
            due: LOG_PAGES,
            file,
        };
        // A full or read-only disk is noticed now and not by a caller.
        writer.commit([].into_iter())?;
        Ok(writer)
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Keeps all of the rows, or none.
    ///
    /// # Errors
    /// [`JournalError`] if they cannot be kept now.
    pub(super) fn commit<'a>(
        &mut self,
        rows: impl ExactSizeIterator<Item = Cow<'a, Row>>,
    ) -> Result<(), JournalError> {
        let changes = self.changes + rows.len() as u64;
        write(&mut self.connection, rows, changes)
            .map_err(|error| describe(self.file.path(), &error))?;
        self.changes = changes;
        self.file.acknowledge(changes);
        Ok(())
    }

    /// Shortens the log when it is long. To move it into the file takes an
    /// fsync, so a thread of `runtime` does most of it while commits go on; the
    /// little that came meanwhile is moved here, and the log begins anew.
    pub(super) fn tidy(&mut self, runtime: &Handle) {
        let pages = self.log.pages.load(Ordering::Relaxed);
        if pages < LOG_PAGES {
            self.due = LOG_PAGES;
        }
        if self.log.is_moved.swap(false, Ordering::AcqRel) {
            self.is_moving = false;
            move_log(self.path(), &self.connection);
            // Who reads an older state, such as a backup, keeps the log as long as it is.
            self.due = pages + LOG_PAGES;
        } else if !self.is_moving && self.due <= pages {
            self.is_moving = true;
            let (log, path) = (self.log.clone(), self.path().to_owned());
            drop(runtime.spawn_blocking(move || {
                match connect(&path) {
                    Ok(connection) => move_log(&path, &connection),
                    Err(error) => warn!(%error, "the write-ahead log cannot be shortened"),
                }
                log.is_moved.store(true, Ordering::Release);
            }));
        }
    }
}

fn move_log(path: &Path, connection: &Connection) {
    let moved = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    if let Err(error) = moved {
        let error = describe(path, &error);
        warn!(%error, "the write-ahead log cannot be shortened");
    }
}

fn write<'a>(
    connection: &mut Connection,
    rows: impl Iterator<Item = Cow<'a, Row>>,
    changes: u64,
) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let run = |sql: &str, values: &[&dyn ToSql]| transaction.prepare_cached(sql)?.execute(values);
    for row in rows {
        match &*row {
            Row::Put {
                number,
                record,
                input,
            } => {
                run(PUT, &[number, record])?;
                match input {
                    Input::Same => 0,
                    Input::New(input) => run(PUT_INPUT, &[number, input])?,
                    Input::Gone => run(FORGET_INPUT, &[number])?,
                };
            }
            Row::Forget { number } => {
                run(FORGET, &[number])?;
                run(FORGET_INPUT, &[number])?;
            }
        }
    }
    run(COUNT, &[&i64::try_from(changes).unwrap_or(i64::MAX)])?;
    transaction.commit()
}
