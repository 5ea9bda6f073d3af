//! The file: made, opened, locked, and brought to the present schema. What to say
//! when that does not go well is in `refusal`.

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
use crate::{
    clock::Timestamp,
    storage::error::{StorageError, StorageErrorKind},
};

/// `LONG`, so that other programs can tell whose file it is.
const APPLICATION_ID: i32 = 0x4c4f_4e47;

/// What each version of the schema adds to the one before. Released ones never
/// change.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE operations (number INTEGER PRIMARY KEY, record BLOB NOT NULL) STRICT;
    CREATE TABLE inputs (number INTEGER PRIMARY KEY, input BLOB NOT NULL) STRICT;
    CREATE TABLE journal (id TEXT NOT NULL, changes INTEGER NOT NULL, newest INTEGER) STRICT;
"];

/// What the log may take of the disk when it is empty again.
const WAL_SIZE_LIMIT_BYTES: u32 = 16 << 20;

/// How long a short reader of the file, such as `inspect`, is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// An open file that no other process holds open.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    lock: LockFile,
    info: FileInfo,
}

/// The one row of the table `journal`.
#[derive(Debug)]
struct FileInfo {
    /// Unlike that of any other file, but for copies of it.
    file_id: String,
    /// How many changes were committed.
    write_count: u64,
    /// The latest time that one of them bears.
    last_timestamp: Option<Timestamp>,
}

// === impl File ===

impl Database {
    /// # Errors
    /// [`JournalError`] that says what is wrong and what to do.
    pub(super) fn open(path: &Path) -> Result<Self, StorageError> {
        Self::open_with_busy_timeout(path, BUSY_TIMEOUT)
    }

    /// Opens it, and waits so long for those who read it.
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

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How many changes the file held when it was opened.
    pub(super) fn write_count(&self) -> u64 {
        self.info.write_count
    }

    /// The latest time that a change bore then.
    pub(super) fn last_timestamp(&self) -> Option<Timestamp> {
        self.info.last_timestamp
    }

    /// Notes that so many changes are about to be acknowledged.
    pub(super) fn record_acknowledged(&self, write_count: u64) {
        self.lock.write_ack(&self.info.file_id, write_count);
    }

    fn check_not_truncated(&self) -> Result<(), StorageError> {
        let ack = self
            .lock
            .read_ack()
            .filter(|ack| ack.file_id == self.info.file_id);
        let acknowledged = ack.map_or(0, |ack| ack.write_count);
        if acknowledged <= self.info.write_count {
            return Ok(());
        }
        let (path, write_count) = (self.path.display(), self.info.write_count);
        Err(StorageError::new(
            StorageErrorKind::Corrupt,
            format!(
                "{path} holds {write_count} changes, but {acknowledged} were acknowledged: its write-ahead log {path}-wal was lost or cut, or an older copy took its place; {}; else restore a backup, or remove {path}-lock to go on without the missing changes",
                restore_hint(&self.path)
            ),
        ))
    }
}

/// Moves what the process before left in the log into the file.
///
/// That process may have ended because an fsync of the log failed. The log can
/// be read now all the same, from memory, and never reaches the disk unless it
/// is written again: what is committed behind it would be lost with the power.
///
/// # Errors
/// [`JournalError`] if somebody reads the log, so that it cannot begin anew.
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

/// Lets the name of a new file survive the loss of power too.
pub(super) fn sync_parent_directory(path: &Path) -> Result<(), StorageError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::File::open(parent)
        .and_then(|parent| parent.sync_all())
        .map_err(|error| io_error(path, &error))
}

/// A new file for this process alone, which is about to get another name.
#[cfg(feature = "cli")]
pub(super) fn create(path: &Path) -> Result<Connection, StorageError> {
    let mut connection = open_connection(path, OpenFlags::SQLITE_OPEN_CREATE)?;
    initialize(&mut connection, path)?;
    Ok(connection)
}

/// A connection that changes nothing, to a file that a server may have open.
#[cfg(feature = "cli")]
pub(super) fn open_read_only(path: &Path) -> Result<Connection, StorageError> {
    if !path.is_file() {
        return Err(StorageError::new(
            StorageErrorKind::Corrupt,
            format!("there is no file {}", path.display()),
        ));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let to_error = |error: rusqlite::Error| sqlite_error(path, &error);
    let connection = Connection::open_with_flags(path, flags).map_err(to_error)?;
    set_pragmas(&connection).map_err(to_error)?;
    check_compatible(&connection, path)?;
    if connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| {
            row.get::<_, i64>(0)
        })
        .map_err(to_error)?
        == 0
    {
        return Err(StorageError::new(
            StorageErrorKind::Corrupt,
            format!("{} is empty", path.display()),
        ));
    }
    Ok(connection)
}

/// A further connection to a file that is open.
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

/// Brings a file of ours to the present schema.
fn initialize(connection: &mut Connection, path: &Path) -> Result<FileInfo, StorageError> {
    let to_error = |error: rusqlite::Error| sqlite_error(path, &error);
    if connection.is_readonly(MAIN_DB).map_err(to_error)? {
        return Err(read_only_error(path));
    }
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))
        .map_err(to_error)?;
    if mode != "wal" {
        return Err(StorageError::new(
            StorageErrorKind::Corrupt,
            format!(
                "{} cannot have a write-ahead log: use a local file system",
                path.display()
            ),
        ));
    }
    set_pragmas(connection).map_err(to_error)?;
    migrate(connection, &MIGRATIONS).map_err(to_error)?;
    connection
        .query_row("SELECT id, changes, newest FROM journal", [], |row| {
            let write_count: i64 = row.get(1)?;
            Ok(FileInfo {
                file_id: row.get(0)?,
                write_count: u64::try_from(write_count).unwrap_or(0),
                last_timestamp: row.get::<_, Option<i64>>(2)?.map(Timestamp::from_nanos),
            })
        })
        .map_err(to_error)
}

/// Whether the file is ours, or new, and not newer than this program.
fn check_compatible(connection: &Connection, path: &Path) -> Result<(), StorageError> {
    let to_error = |error: rusqlite::Error| sqlite_error(path, &error);
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let count_tables = "SELECT count(*) FROM sqlite_schema";
    let application_id = pragma("application_id").map_err(to_error)?;
    let table_count: i64 = connection
        .query_row(count_tables, [], |row| row.get(0))
        .map_err(to_error)?;
    if application_id != APPLICATION_ID && (application_id, table_count) != (0, 0) {
        return Err(StorageError::new(
            StorageErrorKind::Corrupt,
            format!(
                "{} is the database of another program: choose another path",
                path.display()
            ),
        ));
    }
    let (version, current) = (pragma("user_version").map_err(to_error)?, MIGRATIONS.len());
    if usize::try_from(version).is_ok_and(|version| version <= current) {
        return Ok(());
    }
    Err(StorageError::new(
        StorageErrorKind::Corrupt,
        format!(
            "{} has schema version {version}, and this program knows versions up to {current}: use a newer longrunning",
            path.display()
        ),
    ))
}

/// Runs the migrations that the file has not seen, all or none.
pub(super) fn migrate(connection: &mut Connection, migrations: &[&str]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: usize = transaction.pragma_query_value(None, "user_version", |row| {
        row.get::<_, i64>(0)
            .map(|version| usize::try_from(version).unwrap_or(0))
    })?;
    for migration in migrations.iter().skip(version) {
        transaction.execute_batch(migration)?;
    }
    if version == 0 {
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.execute(
            "INSERT INTO journal (id, changes) VALUES (?1, 0)",
            [Uuid::new_v4().to_string()],
        )?;
    }
    if version < migrations.len() {
        transaction.execute_batch(&format!("PRAGMA user_version = {}", migrations.len()))?;
    }
    transaction.commit()
}

/// Makes the file if there is none, and tells its one path: the log and the lock
/// stand beside that, and two processes must not have two of them.
fn create_if_missing(path: &Path) -> Result<PathBuf, StorageError> {
    // Whoever closes a file loses all locks of the process on it, those of SQLite
    // too. So one that is there is never opened here, and one that is not is made
    // by one thread at a time.
    static CREATE_LOCK: Mutex<()> = Mutex::new(());
    let guard = CREATE_LOCK.lock();
    if !path.exists() {
        check_directory(path)?;
        // If it is a link, what that leads to is made.
        let created = fs::File::options().append(true).create(true).open(path);
        created.map_err(|error| io_error(path, &error))?;
    }
    drop(guard);
    let to_error = |error: std::io::Error| io_error(path, &error);
    let canonical = path.canonicalize().map_err(to_error)?;
    let metadata = canonical.metadata().map_err(to_error)?;
    let display = canonical.display();
    if !metadata.is_file() {
        return Err(StorageError::new(
            StorageErrorKind::Corrupt,
            format!("{display} cannot be used: it is not a file"),
        ));
    }
    match metadata.nlink() {
        0 | 1 => Ok(canonical),
        link_count => Err(StorageError::new(
            StorageErrorKind::Corrupt,
            format!(
                "{display} has {link_count} names (hard links), and each of them would have a log and a lock of its own: remove the others, or copy it with `longrunning backup` and use the copy"
            ),
        )),
    }
}

/// A clearer word than that the file is not found.
fn check_directory(path: &Path) -> Result<(), StorageError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match parent.canonicalize() {
        Ok(_) => Ok(()),
        Err(error) => Err(StorageError::new(
            StorageErrorKind::Corrupt,
            format!("the directory {} cannot be used: {error}", parent.display()),
        )),
    }
}
