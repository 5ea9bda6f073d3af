//! The database file: created, locked, opened, and brought to the current schema.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use parking_lot::Mutex;
use rusqlite::{Connection, MAIN_DB, OpenFlags, TransactionBehavior};
use uuid::Uuid;

use super::{
    errors::{checkpoint_blocked_error, io_error, read_only_error, restore_hint, sqlite_error},
    lock_file::LockFile,
};
use crate::{clock::Timestamp, storage::error::StorageError};

/// `LONG`: tells other programs whose file it is.
const APPLICATION_ID: i32 = 0x4c4f_4e47;

/// The steps from an empty file to the current schema. From the first release on, a step never changes.
const SCHEMA_STEPS: [&str; 1] = ["
    CREATE TABLE operations (number INTEGER PRIMARY KEY, record BLOB NOT NULL) STRICT;
    CREATE TABLE inputs (number INTEGER PRIMARY KEY, input BLOB NOT NULL) STRICT;
    CREATE TABLE file_info (file_id TEXT NOT NULL, write_count INTEGER NOT NULL, last_timestamp_ns INTEGER) STRICT;
"];

/// The schema version after the first step. Lower versions are those of builds before the first release.
const FIRST_SCHEMA_VERSION: usize = 3;

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
    /// Unique to this file and its copies.
    pub(super) file_id: String,
    /// The number of committed writes.
    pub(super) write_count: u64,
    /// The latest update time of a committed write.
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
        let path = create_if_missing(path)?;
        let lock = LockFile::acquire(&path)?;
        let mut connection = open_connection(&path, OpenFlags::empty())?;
        if let Err(error) = check_compatible(&connection, &path) {
            lock.remove_if_created();
            return Err(error);
        }
        let info = initialize(&mut connection, &path)?;
        let database = Self { path, lock, info };
        database.check_not_truncated()?;
        truncate_wal(&connection, &database.path, busy_timeout)?;
        Ok(database)
    }

    fn check_not_truncated(&self) -> Result<(), StorageError> {
        let acknowledged = self.lock.read_ack(&self.info.file_id).unwrap_or(0);
        if acknowledged <= self.info.write_count {
            return Ok(());
        }
        let (path, write_count) = (self.path.display(), self.info.write_count);
        Err(StorageError::corrupt(format!(
            "{path} has {write_count} writes, but {acknowledged} were acknowledged: its write-ahead log {path}-wal was lost or truncated, or the file was replaced by an older copy; {}; otherwise restore a backup, or remove {path}-lock to continue without the missing writes",
            restore_hint(&self.path)
        )))
    }
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

fn parent_directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the directory entry of a new file durable.
pub(super) fn sync_parent_directory(path: &Path) -> Result<(), StorageError> {
    fs::File::open(parent_directory(path))
        .and_then(|parent| parent.sync_all())
        .map_err(|error| io_error(path, &error))
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
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))
        .map_err(to_error)?;
    if mode != "wal" {
        return Err(StorageError::invalid_config(format!(
            "{} cannot have a write-ahead log: use a local file system",
            path.display()
        )));
    }
    set_pragmas(connection).map_err(to_error)?;
    apply_schema_steps(connection, &SCHEMA_STEPS).map_err(to_error)?;
    connection
        .query_row(
            "SELECT file_id, write_count, last_timestamp_ns FROM file_info",
            [],
            |row| {
                let write_count: i64 = row.get(1)?;
                Ok(FileInfo {
                    file_id: row.get(0)?,
                    write_count: u64::try_from(write_count).unwrap_or(0),
                    last_timestamp: row.get::<_, Option<i64>>(2)?.map(Timestamp::from_nanos),
                })
            },
        )
        .map_err(to_error)
}

fn count_tables(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
}

/// Checks that the file is empty, or has a schema version that this program supports.
fn check_compatible(connection: &Connection, path: &Path) -> Result<(), StorageError> {
    let to_error = |error: rusqlite::Error| sqlite_error(path, &error);
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let application_id = pragma("application_id").map_err(to_error)?;
    let table_count = count_tables(connection).map_err(to_error)?;
    if application_id != APPLICATION_ID && (application_id, table_count) != (0, 0) {
        return Err(StorageError::invalid_config(format!(
            "{} is the database of another program: choose another path",
            path.display()
        )));
    }
    let version = pragma("user_version").map_err(to_error)?;
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    let (current, display) = (schema_version(&SCHEMA_STEPS), path.display());
    let message = if version > current {
        format!(
            "{display} has schema version {version}, and this program supports versions up to {current}: use a newer longrunning"
        )
    } else if version != 0 && version < FIRST_SCHEMA_VERSION {
        format!(
            "{display} has schema version {version} of a build before the first release, which this program cannot read: choose another path, or remove the file"
        )
    } else {
        return Ok(());
    };
    Err(StorageError::unsupported_version(message))
}

/// Returns the schema version after all of the steps.
fn schema_version(steps: &[&str]) -> usize {
    FIRST_SCHEMA_VERSION + steps.len() - 1
}

/// Applies the schema steps that the file lacks, in one transaction.
pub(super) fn apply_schema_steps(
    connection: &mut Connection,
    steps: &[&str],
) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: usize = transaction.pragma_query_value(None, "user_version", |row| {
        row.get::<_, i64>(0)
            .map(|version| usize::try_from(version).unwrap_or(0))
    })?;
    let applied_steps = (version + 1).saturating_sub(FIRST_SCHEMA_VERSION);
    for step in steps.iter().skip(applied_steps) {
        transaction.execute_batch(step)?;
    }
    if version == 0 {
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.execute(
            "INSERT INTO file_info (file_id, write_count) VALUES (?1, 0)",
            [Uuid::new_v4().to_string()],
        )?;
    }
    let current = schema_version(steps);
    if version < current {
        transaction.execute_batch(&format!("PRAGMA user_version = {current}"))?;
    }
    transaction.commit()
}

/// Creates the file if it does not exist, and returns its canonical path: the WAL and the lock file are beside it, and
/// two processes must not have two of them.
fn create_if_missing(path: &Path) -> Result<PathBuf, StorageError> {
    // POSIX locks: closing any descriptor of a file releases all locks of the process on it, those of SQLite included.
    // So an existing file is never opened here, and a new one is created by one thread at a time.
    static CREATE_LOCK: Mutex<()> = Mutex::new(());
    let guard = CREATE_LOCK.lock();
    if !path.exists() {
        // A clearer error than "file not found".
        let parent = parent_directory(path);
        parent.canonicalize().map_err(|error| {
            StorageError::invalid_config(format!(
                "the directory {} cannot be used: {error}",
                parent.display()
            ))
        })?;
        // Follows a symbolic link to a target that does not exist.
        let created = fs::File::options().append(true).create(true).open(path);
        created.map_err(|error| io_error(path, &error))?;
    }
    drop(guard);
    let to_error = |error: std::io::Error| io_error(path, &error);
    let canonical = path.canonicalize().map_err(to_error)?;
    let metadata = canonical.metadata().map_err(to_error)?;
    let display = canonical.display();
    if !metadata.is_file() {
        return Err(StorageError::invalid_config(format!(
            "{display} cannot be used: it is not a file"
        )));
    }
    match metadata.nlink() {
        0 | 1 => Ok(canonical),
        link_count => Err(StorageError::invalid_config(format!(
            "{display} has {link_count} names (hard links), and each would have a write-ahead log and a lock of its own: remove the others, or copy it with `longrunning backup` and use the copy"
        ))),
    }
}
