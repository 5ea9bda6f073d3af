//! What a transaction does: the rows of many changes, one fsync. It also finds
//! out when a trouble with the disk is over, and keeps the write-ahead log short,
//! without holding commits up.

use std::{
    borrow::Cow,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use rusqlite::{Connection, ToSql, TransactionBehavior, hooks::Wal};
use tokio::{runtime::Handle, time::Instant};
use tracing::warn;

use super::{
    file::{File, connect, sync_directory},
    refusal::describe,
    row::{Input, Row},
};
use crate::{clock::Timestamp, journal::journal::JournalError};

/// The log is moved into the file when it has so many pages of 4 KiB.
const LOG_PAGES: u32 = 2048;

const PUT: &str = "INSERT OR REPLACE INTO operations (number, record) VALUES (?1, ?2)";
const PUT_INPUT: &str = "INSERT OR REPLACE INTO inputs (number, input) VALUES (?1, ?2)";
const FORGET: &str = "DELETE FROM operations WHERE number = ?1";
const FORGET_INPUT: &str = "DELETE FROM inputs WHERE number = ?1";
const COUNT: &str = "UPDATE journal SET changes = ?1, newest = ?2";
const FILL: &str = "INSERT INTO inputs (number, input) VALUES (?1, zeroblob(?2))";

/// Numbers of operations begin with 1.
const FILLER: i64 = 0;

/// How long the writer waits before it tries again what could not be kept.
pub(super) const PAUSE: Duration = Duration::from_millis(500);

/// SQLite writes pages.
const PAGE: usize = 4096;

/// The most that is written to find out whether a trouble is over.
const MOST: usize = 64 << 20;

/// Writes changes, and holds the file open.
#[derive(Debug)]
pub(super) struct Writer {
    connection: Connection,
    /// How many changes were committed since the file was made.
    changes: u64,
    /// The latest time that one of them bears.
    newest: Option<Timestamp>,
    trouble: Option<Trouble>,
    log: Arc<Log>,
    /// Whether a thread moves the log into the file.
    is_moving: bool,
    /// The length of the log at which it is moved next.
    due: u32,
    // Dropped last: the lock goes when the connection is closed.
    file: File,
}

/// Changes could not be kept, and it is not known that they can be again.
#[derive(Debug)]
struct Trouble {
    error: JournalError,
    /// How much could not be written.
    bytes: usize,
    /// When it is tried again.
    next: Instant,
}

/// The write-ahead log.
#[derive(Debug, Default)]
struct Log {
    /// How many pages it had after the last commit.
    pages: AtomicU32,
    /// Whether the thread is through.
    is_moved: AtomicBool,
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
            newest: file.newest(),
            trouble: None,
            connection,
            log,
            is_moving: false,
            due: LOG_PAGES,
            file,
        };
        // A full or read-only disk is noticed now and not by a caller.
        writer.probe(1)?;
        // The names of the file and of its log must survive the loss of power too.
        // SQLite sees to that, but goes on when it fails. Each time, because a log
        // that the process before made may be there already.
        sync_directory(writer.path())?;
        Ok(writer)
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// The latest time that a kept change bears.
    pub(super) fn newest(&self) -> Option<Timestamp> {
        self.newest
    }

    /// Why changes cannot be kept at present.
    pub(super) fn trouble(&self) -> Option<&JournalError> {
        self.trouble.as_ref().map(|trouble| &trouble.error)
    }

    /// Keeps all of the rows, or none. In a trouble, it also finds out whether
    /// that is over, with or without rows.
    ///
    /// # Errors
    /// [`JournalError`] if they cannot be kept now.
    pub(super) fn commit<'a>(
        &mut self,
        rows: impl ExactSizeIterator<Item = Cow<'a, Row>> + Clone,
    ) -> Result<(), JournalError> {
        let kept = match rows.len() {
            0 => Ok(()),
            _ => self.keep(rows.clone()),
        };
        match &kept {
            Ok(()) if self.trouble.is_none() => {}
            Ok(()) => self.heal(footprint(rows)),
            Err(error) => self.suffer(error.clone(), footprint(rows)),
        }
        kept
    }

    fn keep<'a>(
        &mut self,
        rows: impl ExactSizeIterator<Item = Cow<'a, Row>>,
    ) -> Result<(), JournalError> {
        let changes = self.changes + rows.len() as u64;
        let newest = write(&mut self.connection, rows, changes, self.newest)
            .map_err(|error| describe(self.file.path(), &error))?;
        (self.changes, self.newest) = (changes, newest);
        self.file.acknowledge(changes);
        Ok(())
    }

    fn suffer(&mut self, error: JournalError, bytes: usize) {
        let before = self.trouble.as_ref().map_or(0, |trouble| trouble.bytes);
        self.trouble = Some(Trouble {
            error,
            bytes: bytes.max(before).min(MOST),
            next: Instant::now() + PAUSE,
        });
    }

    /// Ends a trouble, if as much can be written as could not be.
    ///
    /// Less would prove nothing: on a full disk, what fits into a log that is
    /// longer than its contents can be written all the same. So small changes are
    /// kept while large ones are refused, and the trouble goes on.
    fn heal(&mut self, written: usize) {
        let Some(trouble) = &self.trouble else { return };
        let bytes = trouble.bytes;
        if written < bytes {
            if Instant::now() < trouble.next {
                return;
            }
            if let Err(error) = self.probe(bytes) {
                return self.suffer(error, bytes);
            }
        }
        self.trouble = None;
    }

    /// Writes so much, and takes it out again. In two transactions, because pages
    /// that come and go in one are not written. The file grows by it, no more
    /// than it would have for the changes that were refused, and uses that space
    /// for others.
    fn probe(&mut self, bytes: usize) -> Result<(), JournalError> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        for is_in in [true, false] {
            fill(&mut self.connection, bytes, is_in)
                .map_err(|error| describe(self.file.path(), &error))?;
        }
        Ok(())
    }

    /// Lets the file have so many pages, as if the disk had no room for more.
    /// Returns how many it could have before.
    #[cfg(test)]
    pub(super) fn limit(&self, pages: u32) -> u32 {
        let pragma = |sql: &str| self.connection.query_row(sql, [], |row| row.get(0));
        let before = pragma("PRAGMA max_page_count").expect("it can be asked");
        let _: u32 = pragma(&format!("PRAGMA max_page_count = {pages}")).expect("it can be set");
        before
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

/// Writes them, and returns the latest time that a change bears now.
fn write<'a>(
    connection: &mut Connection,
    rows: impl Iterator<Item = Cow<'a, Row>>,
    changes: u64,
    mut newest: Option<Timestamp>,
) -> rusqlite::Result<Option<Timestamp>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let run = |sql: &str, values: &[&dyn ToSql]| transaction.prepare_cached(sql)?.execute(values);
    for row in rows {
        match &*row {
            Row::Put {
                number,
                record,
                input,
                time,
            } => {
                newest = newest.max(Some(*time));
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
    let changes = i64::try_from(changes).unwrap_or(i64::MAX);
    run(COUNT, &[&changes, &newest.map(Timestamp::nanos)])?;
    transaction.commit()?;
    Ok(newest)
}

/// Puts a row in that no operation has, or takes it out.
fn fill(connection: &mut Connection, bytes: i64, is_in: bool) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // One may have been left. SQLite does not write a row that is the same again.
    transaction.execute(FORGET_INPUT, [FILLER])?;
    if is_in {
        transaction.execute(FILL, [FILLER, bytes])?;
    }
    transaction.commit()
}

/// How much is written for them, about: what they hold, and for each the rest of
/// a page of each table.
fn footprint<'a>(rows: impl Iterator<Item = Cow<'a, Row>>) -> usize {
    rows.map(|row| row.size() + 2 * PAGE).sum()
}
