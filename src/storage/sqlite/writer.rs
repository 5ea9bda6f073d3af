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
    database::{Database, open_additional, sync_parent_directory},
    errors::sqlite_error,
    rows::{InputWrite, RowWrite},
};
use crate::{clock::Timestamp, storage::error::StorageError};

/// The log is moved into the file when it has so many pages of 4 KiB.
const CHECKPOINT_PAGES: u32 = 2048;

const UPSERT_OPERATION: &str = "INSERT OR REPLACE INTO operations (number, record) VALUES (?1, ?2)";
const UPSERT_INPUT: &str = "INSERT OR REPLACE INTO inputs (number, input) VALUES (?1, ?2)";
const DELETE_OPERATION: &str = "DELETE FROM operations WHERE number = ?1";
const DELETE_INPUT: &str = "DELETE FROM inputs WHERE number = ?1";
const UPDATE_FILE_INFO: &str = "UPDATE journal SET changes = ?1, newest = ?2";
const INSERT_PROBE: &str = "INSERT INTO inputs (number, input) VALUES (?1, zeroblob(?2))";

/// Numbers of operations begin with 1.
const PROBE_NUMBER: i64 = 0;

/// How long the writer waits before it tries again what could not be kept.
pub(super) const RETRY_DELAY: Duration = Duration::from_millis(500);

/// SQLite writes pages.
const PAGE_BYTES: usize = 4096;

/// The most that is written to find out whether a trouble is over.
const MAX_PROBE_BYTES: usize = 64 << 20;

/// Writes changes, and holds the file open.
#[derive(Debug)]
pub(super) struct Writer {
    connection: Connection,
    /// How many changes were committed since the file was made.
    write_count: u64,
    /// The latest time that one of them bears.
    last_timestamp: Option<Timestamp>,
    failure: Option<WriteFailure>,
    wal: Arc<WalState>,
    /// Whether a thread moves the log into the file.
    is_checkpoint_running: bool,
    /// The length of the log at which it is moved next.
    next_checkpoint_pages: u32,
    // Dropped last: the lock goes when the connection is closed.
    database: Database,
}

/// Changes could not be kept, and it is not known that they can be again.
#[derive(Debug)]
struct WriteFailure {
    error: StorageError,
    /// How much could not be written.
    failed_bytes: usize,
    /// When it is tried again.
    next_probe_at: Instant,
}

/// The write-ahead log.
#[derive(Debug, Default)]
struct WalState {
    /// How many pages it had after the last commit.
    pages: AtomicU32,
    /// Whether the thread is through.
    is_checkpoint_done: AtomicBool,
}

// === impl Writer ===

impl Writer {
    /// # Errors
    /// [`JournalError`] if the file cannot be written.
    pub(super) fn new(database: Database) -> Result<Self, StorageError> {
        let mut connection = open_additional(database.path())?;
        let wal = Arc::new(WalState::default());
        let hook = {
            let wal = wal.clone();
            move |_: &mut Wal, pages: i32| {
                let pages = u32::try_from(pages).unwrap_or(0);
                wal.pages.store(pages, Ordering::Relaxed);
                Ok(())
            }
        };
        connection
            .wal_hook(Some(hook))
            .map_err(|error| sqlite_error(database.path(), &error))?;
        let mut writer = Self {
            write_count: database.write_count(),
            last_timestamp: database.last_timestamp(),
            failure: None,
            connection,
            wal,
            is_checkpoint_running: false,
            next_checkpoint_pages: CHECKPOINT_PAGES,
            database,
        };
        // A full or read-only disk is noticed now and not by a caller.
        writer.probe_writable(1)?;
        // The names of the file and of its log must survive the loss of power too.
        // SQLite sees to that, but goes on when it fails. Each time, because a log
        // that the process before made may be there already.
        sync_parent_directory(writer.path())?;
        Ok(writer)
    }

    pub(super) fn path(&self) -> &Path {
        self.database.path()
    }

    /// The latest time that a kept change bears.
    pub(super) fn last_timestamp(&self) -> Option<Timestamp> {
        self.last_timestamp
    }

    /// Why changes cannot be kept at present.
    pub(super) fn write_error(&self) -> Option<&StorageError> {
        self.failure.as_ref().map(|failure| &failure.error)
    }

    /// Keeps all of the rows, or none. In a trouble, it also finds out whether
    /// that is over, with or without rows.
    ///
    /// # Errors
    /// [`JournalError`] if they cannot be kept now.
    pub(super) fn commit<'a>(
        &mut self,
        rows: impl ExactSizeIterator<Item = Cow<'a, RowWrite>> + Clone,
    ) -> Result<(), StorageError> {
        let result = match rows.len() {
            0 => Ok(()),
            _ => self.commit_rows(rows.clone()),
        };
        match &result {
            Ok(()) if self.failure.is_none() => {}
            Ok(()) => self.try_recover(estimated_write_bytes(rows)),
            Err(error) => self.record_failure(error.clone(), estimated_write_bytes(rows)),
        }
        result
    }

    fn commit_rows<'a>(
        &mut self,
        rows: impl ExactSizeIterator<Item = Cow<'a, RowWrite>>,
    ) -> Result<(), StorageError> {
        let write_count = self.write_count + rows.len() as u64;
        let last_timestamp =
            write_rows(&mut self.connection, rows, write_count, self.last_timestamp)
                .map_err(|error| sqlite_error(self.database.path(), &error))?;
        (self.write_count, self.last_timestamp) = (write_count, last_timestamp);
        self.database.record_acknowledged(write_count);
        Ok(())
    }

    fn record_failure(&mut self, error: StorageError, bytes: usize) {
        let previous_bytes = self
            .failure
            .as_ref()
            .map_or(0, |failure| failure.failed_bytes);
        self.failure = Some(WriteFailure {
            error,
            failed_bytes: bytes.max(previous_bytes).min(MAX_PROBE_BYTES),
            next_probe_at: Instant::now() + RETRY_DELAY,
        });
    }

    /// Ends a trouble, if as much can be written as could not be.
    ///
    /// Less would prove nothing: on a full disk, what fits into a log that is
    /// longer than its contents can be written all the same. So small changes are
    /// kept while large ones are refused, and the trouble goes on.
    fn try_recover(&mut self, written_bytes: usize) {
        let Some(failure) = &self.failure else { return };
        let failed_bytes = failure.failed_bytes;
        if written_bytes < failed_bytes {
            if Instant::now() < failure.next_probe_at {
                return;
            }
            if let Err(error) = self.probe_writable(failed_bytes) {
                return self.record_failure(error, failed_bytes);
            }
        }
        self.failure = None;
    }

    /// Writes so much, and takes it out again. In two transactions, because pages
    /// that come and go in one are not written. The file grows by it, no more
    /// than it would have for the changes that were refused, and uses that space
    /// for others.
    fn probe_writable(&mut self, bytes: usize) -> Result<(), StorageError> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        for is_insert in [true, false] {
            write_probe_row(&mut self.connection, bytes, is_insert)
                .map_err(|error| sqlite_error(self.database.path(), &error))?;
        }
        Ok(())
    }

    /// Lets the file have so many pages, as if the disk had no room for more.
    /// Returns how many it could have before.
    #[cfg(test)]
    pub(super) fn set_max_pages(&self, max_pages: u32) -> u32 {
        let pragma = |sql: &str| self.connection.query_row(sql, [], |row| row.get(0));
        let previous = pragma("PRAGMA max_page_count").expect("it can be asked");
        let _: u32 =
            pragma(&format!("PRAGMA max_page_count = {max_pages}")).expect("it can be set");
        previous
    }

    /// Shortens the log when it is long. To move it into the file takes an
    /// fsync, so a thread of `runtime` does most of it while commits go on; the
    /// little that came meanwhile is moved here, and the log begins anew.
    pub(super) fn checkpoint_if_needed(&mut self, runtime: &Handle) {
        let pages = self.wal.pages.load(Ordering::Relaxed);
        if pages < CHECKPOINT_PAGES {
            self.next_checkpoint_pages = CHECKPOINT_PAGES;
        }
        if self.wal.is_checkpoint_done.swap(false, Ordering::AcqRel) {
            self.is_checkpoint_running = false;
            checkpoint(self.path(), &self.connection);
            // Who reads an older state, such as a backup, keeps the log as long as it is.
            self.next_checkpoint_pages = pages + CHECKPOINT_PAGES;
        } else if !self.is_checkpoint_running && self.next_checkpoint_pages <= pages {
            self.is_checkpoint_running = true;
            let (wal, path) = (self.wal.clone(), self.path().to_owned());
            drop(runtime.spawn_blocking(move || {
                match open_additional(&path) {
                    Ok(connection) => checkpoint(&path, &connection),
                    Err(error) => warn!(%error, "the write-ahead log cannot be shortened"),
                }
                wal.is_checkpoint_done.store(true, Ordering::Release);
            }));
        }
    }
}

fn checkpoint(path: &Path, connection: &Connection) {
    let result = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    if let Err(error) = result {
        let error = sqlite_error(path, &error);
        warn!(%error, "the write-ahead log cannot be shortened");
    }
}

/// Writes them, and returns the latest time that a change bears now.
fn write_rows<'a>(
    connection: &mut Connection,
    rows: impl Iterator<Item = Cow<'a, RowWrite>>,
    write_count: u64,
    mut last_timestamp: Option<Timestamp>,
) -> rusqlite::Result<Option<Timestamp>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let execute =
        |sql: &str, values: &[&dyn ToSql]| transaction.prepare_cached(sql)?.execute(values);
    for row in rows {
        match &*row {
            RowWrite::Put {
                number,
                record,
                input,
                update_time,
            } => {
                last_timestamp = last_timestamp.max(Some(*update_time));
                execute(UPSERT_OPERATION, &[number, record])?;
                match input {
                    InputWrite::Unchanged => 0,
                    InputWrite::Insert(input) => execute(UPSERT_INPUT, &[number, input])?,
                    InputWrite::Delete => execute(DELETE_INPUT, &[number])?,
                };
            }
            RowWrite::Delete { number } => {
                execute(DELETE_OPERATION, &[number])?;
                execute(DELETE_INPUT, &[number])?;
            }
        }
    }
    let write_count = i64::try_from(write_count).unwrap_or(i64::MAX);
    execute(
        UPDATE_FILE_INFO,
        &[&write_count, &last_timestamp.map(Timestamp::nanos)],
    )?;
    transaction.commit()?;
    Ok(last_timestamp)
}

/// Puts a row in that no operation has, or takes it out.
fn write_probe_row(
    connection: &mut Connection,
    bytes: i64,
    is_insert: bool,
) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // One may have been left. SQLite does not write a row that is the same again.
    transaction.execute(DELETE_INPUT, [PROBE_NUMBER])?;
    if is_insert {
        transaction.execute(INSERT_PROBE, [PROBE_NUMBER, bytes])?;
    }
    transaction.commit()
}

/// How much is written for them, about: what they hold, and for each the rest of
/// a page of each table.
fn estimated_write_bytes<'a>(rows: impl Iterator<Item = Cow<'a, RowWrite>>) -> usize {
    rows.map(|row| row.size_bytes() + 2 * PAGE_BYTES).sum()
}
