//! The writer: commits the rows of many writes in one transaction. It probes whether a failing disk accepts writes
//! again, and checkpoints the WAL without delaying commits.

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
    database::{Database, WriteTotals, open_additional},
    errors::sqlite_error,
    open_files::OpenFiles,
    paths::sync_parent_directory,
    rows::{InputWrite, RowWrite},
};
use crate::{clock::Timestamp, storage::error::StorageError};

/// The WAL is checkpointed when it has this many pages of 4 KiB.
const CHECKPOINT_PAGES: u32 = 2048;

const INSERT_OPERATION: &str = "INSERT INTO operations (number, record) VALUES (?1, ?2)";
const UPDATE_OPERATION: &str = "UPDATE operations SET record = ?2 WHERE number = ?1";
const UPSERT_INPUT: &str = "INSERT OR REPLACE INTO inputs (number, input) VALUES (?1, ?2)";
const DELETE_OPERATION: &str = "DELETE FROM operations WHERE number = ?1";
const DELETE_INPUT: &str = "DELETE FROM inputs WHERE number = ?1";
const UPDATE_FILE_INFO: &str =
    "UPDATE file_info SET write_count = ?1, operation_count = ?2, last_timestamp_ns = ?3";
const INSERT_PROBE: &str = "INSERT INTO inputs (number, input) VALUES (?1, zeroblob(?2))";

/// A number that no operation has: they begin with 1.
const PROBE_NUMBER: i64 = 0;

/// How long the writer waits between two probes of a file that cannot be written.
pub(super) const RETRY_DELAY: Duration = Duration::from_millis(500);

/// The page size of SQLite.
const PAGE_BYTES: usize = 4096;

/// The most bytes of a probe.
const MAX_PROBE_BYTES: usize = 64 << 20;

/// The only writer of the file, which keeps it open.
#[derive(Debug)]
pub(super) struct Writer {
    connection: Connection,
    totals: WriteTotals,
    failure: Option<WriteFailure>,
    wal: Arc<WalState>,
    /// `true` while a thread checkpoints the WAL.
    is_checkpoint_running: bool,
    /// The length of the WAL at which the next checkpoint starts.
    next_checkpoint_pages: u32,
    files: Arc<OpenFiles>,
    // Dropped last: the lock is released after the connection is closed.
    database: Database,
}

/// A write has failed, and no write of that size has succeeded since.
#[derive(Debug)]
struct WriteFailure {
    error: StorageError,
    /// The size of the largest write that failed.
    failed_bytes: usize,
    /// When to probe again.
    next_probe_at: Instant,
}

/// The state of the WAL, shared with the checkpoint thread.
#[derive(Debug, Default)]
struct WalState {
    /// Its length after the last commit.
    pages: AtomicU32,
    /// `true` once the checkpoint thread has ended.
    is_checkpoint_done: AtomicBool,
}

// === impl Writer ===

impl Writer {
    /// Returns the writer of an open file, after a first probe.
    pub(super) fn new(database: Database) -> Result<Self, StorageError> {
        let mut connection = open_additional(&database.path)?;
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
            .map_err(|error| sqlite_error(&database.path, &error))?;
        // A full or read-only disk fails the start, and not the first caller.
        write_probe(&mut connection, 1).map_err(|error| sqlite_error(&database.path, &error))?;
        let writer = Self {
            files: Arc::new(OpenFiles::new(&database.path)?),
            totals: database.info.totals,
            failure: None,
            connection,
            wal,
            is_checkpoint_running: false,
            next_checkpoint_pages: CHECKPOINT_PAGES,
            database,
        };
        // The directory entries of the file and of its WAL must survive a loss of power. SQLite syncs the directory,
        // but ignores failures. At each start, because the previous process may have created the WAL.
        sync_parent_directory(writer.path())?;
        Ok(writer)
    }

    pub(super) fn path(&self) -> &Path {
        &self.database.path
    }

    pub(super) fn files(&self) -> &Arc<OpenFiles> {
        &self.files
    }

    /// Returns the latest update time of a committed write.
    pub(super) fn last_timestamp(&self) -> Option<Timestamp> {
        self.totals.last_timestamp
    }

    /// Returns why writes fail at present.
    pub(super) fn write_error(&self) -> Option<&StorageError> {
        self.failure.as_ref().map(|failure| &failure.error)
    }

    /// Commits all of the rows, or none. While writes fail, also probes whether they succeed again, with or without
    /// rows.
    pub(super) fn commit<'a>(
        &mut self,
        rows: impl ExactSizeIterator<Item = Cow<'a, RowWrite>> + Clone,
    ) -> Result<(), StorageError> {
        let result = self.files.check().and_then(|()| match rows.len() {
            0 => Ok(()),
            _ => self.commit_rows(rows.clone()),
        });
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
        self.totals = write_rows(&mut self.connection, rows, self.totals)
            .map_err(|error| sqlite_error(&self.database.path, &error))?;
        let Database { lock, info, .. } = &self.database;
        lock.write_ack(&info.file_id, self.totals.write_count);
        Ok(())
    }

    fn record_failure(&mut self, error: StorageError, bytes: usize) {
        let previous = self.failure.as_ref();
        let previous_bytes = previous.map_or(0, |failure| failure.failed_bytes);
        self.failure = Some(WriteFailure {
            error,
            // At least 1: without rows, a probe must succeed.
            failed_bytes: bytes.max(previous_bytes).clamp(1, MAX_PROBE_BYTES),
            next_probe_at: Instant::now() + RETRY_DELAY,
        });
    }

    /// Marks the writer healthy again once a write of at least the failed size succeeds.
    ///
    /// A smaller one proves nothing: on a full disk, a write succeeds that fits into a WAL file that is longer than its
    /// contents. So small writes succeed while large ones fail, and the failure persists.
    fn try_recover(&mut self, written_bytes: usize) {
        let Some(failure) = &self.failure else { return };
        let failed_bytes = failure.failed_bytes;
        if written_bytes < failed_bytes {
            if Instant::now() < failure.next_probe_at {
                return;
            }
            if let Err(error) = write_probe(&mut self.connection, failed_bytes) {
                let error = sqlite_error(self.path(), &error);
                return self.record_failure(error, failed_bytes);
            }
        }
        self.failure = None;
    }

    /// Limits the size of the file, as a full disk would, and returns the previous limit.
    #[cfg(test)]
    pub(super) fn set_max_pages(&self, max_pages: u32) -> u32 {
        let pragma = |sql: &str| self.connection.query_row(sql, [], |row| row.get(0));
        let previous = pragma("PRAGMA max_page_count").expect("the pragma can be read");
        let _: u32 =
            pragma(&format!("PRAGMA max_page_count = {max_pages}")).expect("the pragma can be set");
        previous
    }

    /// Checkpoints a long WAL. This needs an fsync, so that a thread of `runtime` does most of it while commits
    /// continue; the few pages written meanwhile are checkpointed here, and the WAL starts again.
    pub(super) fn checkpoint_if_needed(&mut self, runtime: &Handle) {
        let pages = self.wal.pages.load(Ordering::Relaxed);
        if pages < CHECKPOINT_PAGES {
            self.next_checkpoint_pages = CHECKPOINT_PAGES;
        }
        if self.wal.is_checkpoint_done.swap(false, Ordering::AcqRel) {
            self.is_checkpoint_running = false;
            checkpoint(self.path(), &self.connection);
            // A reader of an older snapshot, such as a backup, keeps the WAL from starting again.
            self.next_checkpoint_pages = pages + CHECKPOINT_PAGES;
        } else if !self.is_checkpoint_running && pages >= self.next_checkpoint_pages {
            self.is_checkpoint_running = true;
            let (wal, files, path) = (self.wal.clone(), self.files.clone(), self.path().to_owned());
            drop(runtime.spawn_blocking(move || {
                // A file that has replaced the database must not get its WAL.
                match files.check().and_then(|()| open_additional(&path)) {
                    Ok(connection) => checkpoint(&path, &connection),
                    Err(error) => warn!(%error, "WAL checkpoint failed"),
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
        warn!(%error, "WAL checkpoint failed");
    }
}

/// Writes rows in one transaction, and returns the totals after it.
fn write_rows<'a>(
    connection: &mut Connection,
    rows: impl ExactSizeIterator<Item = Cow<'a, RowWrite>>,
    mut totals: WriteTotals,
) -> rusqlite::Result<WriteTotals> {
    totals.write_count += rows.len() as u64;
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
                totals.last_timestamp = totals.last_timestamp.max(Some(*update_time));
                if execute(UPDATE_OPERATION, &[number, record])? == 0 {
                    execute(INSERT_OPERATION, &[number, record])?;
                    totals.operation_count += 1;
                }
                match input {
                    InputWrite::Unchanged => 0,
                    InputWrite::Insert(input) => execute(UPSERT_INPUT, &[number, input])?,
                    InputWrite::Delete => execute(DELETE_INPUT, &[number])?,
                };
            }
            RowWrite::Delete { number } => {
                let deleted_count = execute(DELETE_OPERATION, &[number])? as u64;
                // A damaged count is found by the next load.
                totals.operation_count = totals.operation_count.saturating_sub(deleted_count);
                execute(DELETE_INPUT, &[number])?;
            }
        }
    }
    execute(
        UPDATE_FILE_INFO,
        &[
            &totals.write_count,
            &totals.operation_count,
            &totals.last_timestamp.map(Timestamp::nanos),
        ],
    )?;
    transaction.commit()?;
    Ok(totals)
}

/// Writes and deletes a row of this size. In two transactions, because SQLite does not write pages that come and go in
/// one. The file grows by no more than the rejected writes would have needed, and reuses that space.
fn write_probe(connection: &mut Connection, bytes: usize) -> rusqlite::Result<()> {
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    write_probe_row(connection, bytes, true)?;
    write_probe_row(connection, bytes, false)
}

/// Inserts or deletes the probe row.
fn write_probe_row(
    connection: &mut Connection,
    bytes: i64,
    is_insert: bool,
) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // A previous probe may have left its row, and SQLite does not write an equal row again.
    transaction.execute(DELETE_INPUT, [PROBE_NUMBER])?;
    if is_insert {
        transaction.execute(INSERT_PROBE, [PROBE_NUMBER, bytes])?;
    }
    transaction.commit()
}

/// Returns about how many bytes the rows take on disk: their size, and one page of each table for each.
fn estimated_write_bytes<'a>(rows: impl Iterator<Item = Cow<'a, RowWrite>>) -> usize {
    rows.map(|row| row.size_bytes() + 2 * PAGE_BYTES).sum()
}
