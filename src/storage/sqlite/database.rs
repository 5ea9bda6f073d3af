//! The database file: created, locked, opened, and brought to the current schema.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, MAIN_DB, OpenFlags};

#[cfg(feature = "cli")]
use super::file_set::check_log_of_unlocked;
use super::{
    errors::{checkpoint_blocked_error, read_only_error, sqlite_error},
    file_set::check_files,
    lock_file::LockFile,
    paths::{create_if_missing, locate},
    schema::{SCHEMA_STEPS, apply_schema_steps, assign_file_id, check_compatible, count_tables},
};
use crate::{clock::Timestamp, storage::error::StorageError};

/// The size to which SQLite truncates the WAL when it starts again.
const WAL_SIZE_LIMIT_BYTES: u32 = 16 << 20;

/// How long to wait for a short reader of the file, such as `inspect`.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// An open file that no other process has open.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) path: PathBuf,
    pub(super) lock: LockFile,
    /// The row when the file was opened.
    pub(super) info: FileInfo,
}

/// The row of table `file_info`.
#[derive(Debug)]
pub(super) struct FileInfo {
    /// Unique to this file. A backup gets another one, and so does a copy of it when a server first opens it.
    pub(super) file_id: String,
    pub(super) totals: WriteTotals,
}

/// What all committed writes have done.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteTotals {
    /// The number of writes.
    pub(super) write_count: u64,
    /// The number of operations that there are.
    pub(super) operation_count: u64,
    /// The latest update time of a write.
    pub(super) last_timestamp: Option<Timestamp>,
}

// === impl Database ===

impl Database {
    /// Locks and opens a file, and creates it if it does not exist.
    pub(super) fn open(path: &Path) -> Result<Self, StorageError> {
        Self::open_with_busy_timeout(path, BUSY_TIMEOUT)
    }

    /// The same as `open`, with another limit on the wait for readers.
    pub(super) fn open_with_busy_timeout(
        path: &Path,
        busy_timeout: Duration,
    ) -> Result<Self, StorageError> {
        let path = locate(path)?;
        let lock = LockFile::acquire(&path)?;
        let mut connection = match open_checked(&path, &lock) {
            Ok(connection) => connection,
            Err(error) => {
                lock.undo();
                return Err(error);
            }
        };
        let info = initialize(&mut connection, &path)?;
        truncate_wal(&connection, &path, busy_timeout)?;
        if lock.ack().is_none_or(|ack| ack.file_id != info.file_id) {
            // Before anything is in the WAL: a lock file of another database would make it look like a foreign one.
            lock.write_ack(&info.file_id, info.totals.write_count);
            lock.sync()?;
        }
        Ok(Self { path, lock, info })
    }
}

/// Opens a file whose lock is held, and creates it if it does not exist. A file that is rejected is not modified.
fn open_checked(path: &Path, lock: &LockFile) -> Result<Connection, StorageError> {
    check_files(path, lock.ack().as_ref())?;
    create_if_missing(path)?;
    let connection = open_connection(path, OpenFlags::empty())?;
    check_compatible(&connection, path)?;
    Ok(connection)
}

/// Checkpoints the WAL that the previous process left.
///
/// That process may have ended because an fsync of the WAL failed. The WAL is still readable from the page cache, but
/// never reaches the disk unless it is written again: writes committed behind it would be lost with the power
/// (sqlite.org/rescode.html#ioerr_fsync).
///
/// # Errors
/// [`StorageError`] if another process reads the WAL, so that it cannot be truncated.
fn truncate_wal(
    connection: &Connection,
    path: &Path,
    busy_timeout: Duration,
) -> Result<(), StorageError> {
    let to_error = |error: rusqlite::Error| sqlite_error(path, &error);
    connection.busy_timeout(busy_timeout).map_err(to_error)?;
    let checkpointed =
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
    let is_busy: bool = checkpointed.map_err(to_error)?;
    if is_busy {
        return Err(checkpoint_blocked_error(path));
    }
    Ok(())
}

/// Creates a file for this process alone, which will be renamed.
#[cfg(feature = "cli")]
pub(super) fn create(path: &Path) -> Result<Connection, StorageError> {
    let mut connection = open_connection(path, OpenFlags::SQLITE_OPEN_CREATE)?;
    initialize(&mut connection, path)?;
    Ok(connection)
}

/// Opens a read-only connection to a file that a server may have open.
#[cfg(feature = "cli")]
pub(super) fn open_read_only(path: &Path) -> Result<Connection, StorageError> {
    if !path.is_file() {
        return Err(StorageError::invalid_config(format!(
            "there is no file {}",
            path.display()
        )));
    }
    check_log_of_unlocked(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let to_error = |error: rusqlite::Error| sqlite_error(path, &error);
    let connection = Connection::open_with_flags(path, flags).map_err(to_error)?;
    set_pragmas(&connection).map_err(to_error)?;
    check_compatible(&connection, path)?;
    if count_tables(&connection).map_err(to_error)? == 0 {
        return Err(StorageError::corrupt(format!(
            "{} is empty",
            path.display()
        )));
    }
    Ok(connection)
}

/// Opens another connection to an open file.
pub(super) fn open_additional(path: &Path) -> Result<Connection, StorageError> {
    let connection = open_connection(path, OpenFlags::empty())?;
    set_pragmas(&connection).map_err(|error| sqlite_error(path, &error))?;
    Ok(connection)
}

fn open_connection(path: &Path, extra_flags: OpenFlags) -> Result<Connection, StorageError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | extra_flags;
    Connection::open_with_flags(path, flags).map_err(|error| sqlite_error(path, &error))
}

fn set_pragmas(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.execute_batch(&format!(
        "PRAGMA synchronous = FULL;
         PRAGMA wal_autocheckpoint = 0;
         PRAGMA journal_size_limit = {WAL_SIZE_LIMIT_BYTES};
         PRAGMA cell_size_check = ON;
         PRAGMA trusted_schema = OFF;"
    ))
}

/// Brings a file to the current schema.
fn initialize(connection: &mut Connection, path: &Path) -> Result<FileInfo, StorageError> {
    let to_error = |error: rusqlite::Error| sqlite_error(path, &error);
    if connection.is_readonly(MAIN_DB).map_err(to_error)? {
        return Err(read_only_error(path));
    }
    set_pragmas(connection).map_err(to_error)?;
    assign_id_to_copy(connection).map_err(to_error)?;
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))
        .map_err(to_error)?;
    if mode != "wal" {
        return Err(StorageError::invalid_config(format!(
            "{} cannot have a write-ahead log: use a local file system",
            path.display()
        )));
    }
    apply_schema_steps(connection, &SCHEMA_STEPS).map_err(to_error)?;
    connection
        .query_row(
            "SELECT file_id, write_count, operation_count, last_timestamp_ns FROM file_info",
            [],
            |row| {
                Ok(FileInfo {
                    file_id: row.get(0)?,
                    totals: WriteTotals {
                        write_count: row.get(1)?,
                        operation_count: row.get(2)?,
                        last_timestamp: row.get::<_, Option<i64>>(3)?.map(Timestamp::from_nanos),
                    },
                })
            },
        )
        .map_err(to_error)
}

/// Gives a file that no server has had open since it was copied an ID of its own: a WAL that is left of one copy of a
/// backup is not that of another. A backup has no WAL, so that the ID is in the main file at once.
fn assign_id_to_copy(connection: &Connection) -> rusqlite::Result<()> {
    let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    if mode != "wal" && count_tables(connection)? != 0 {
        assign_file_id(connection)?;
    }
    Ok(())
}
