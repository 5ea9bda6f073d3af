//! The file: made, opened, locked, brought to the present schema, and what to
//! say when that does not go well.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags, TransactionBehavior};
use tracing::warn;
use uuid::Uuid;

use crate::journal::journal::JournalError;

/// `LONG`, so that other programs can tell whose file it is.
const APPLICATION: i32 = 0x4c4f_4e47;

/// What each version of the schema adds to the one before. Released ones never
/// change.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE operations (number INTEGER PRIMARY KEY, record BLOB NOT NULL) STRICT;
    CREATE TABLE inputs (number INTEGER PRIMARY KEY, input BLOB NOT NULL) STRICT;
    CREATE TABLE journal (id TEXT NOT NULL, changes INTEGER NOT NULL) STRICT;
"];

/// What the log may take of the disk when it is empty again.
const LOG_BYTES: u32 = 16 << 20;

/// How long a short reader of the file, such as `inspect`, is waited for.
const BUSY: Duration = Duration::from_secs(5);

/// An open file that no other process holds open.
///
/// The lock is a file of its own, because SQLite's locks end with each
/// transaction. What was acknowledged is noted in it, so that a log that was
/// lost or cut is noticed at the next start and not taken for an old file.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    lock: fs::File,
    id: String,
    changes: u64,
}

// === impl File ===

impl File {
    /// # Errors
    /// [`JournalError`] that says what is wrong and what to do.
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        let path = absolute(path)?;
        let lock = lock(&path)?;
        let mut connection = open(&path, OpenFlags::SQLITE_OPEN_CREATE)?;
        let prepared = prepare(&mut connection, &path)?;
        // Each time, because the process that made the file may have died before.
        sync_directory(&path)?;
        let (id, changes) = prepared;
        let file = Self {
            path,
            lock,
            id,
            changes,
        };
        file.check_complete()?;
        empty_log(&connection, &file.path)?;
        Ok(file)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How many changes the file held when it was opened.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Notes that so many changes are about to be acknowledged. The note is not
    /// made durable: after a loss of power it may be older than the file, which
    /// is no harm, but it is never newer.
    pub(super) fn acknowledge(&self, changes: u64) {
        let note = format!("{:<10} {} {changes:020}\n", std::process::id(), self.id);
        let mut lock = &self.lock;
        // Without it a lost log would go unnoticed, and nothing else.
        let _ = lock
            .seek(SeekFrom::Start(0))
            .and_then(|_| lock.write_all(note.as_bytes()));
    }

    fn check_complete(&self) -> Result<(), JournalError> {
        let mut note = String::new();
        let _ = (&self.lock).read_to_string(&mut note);
        let mut words = note.split_whitespace().skip(1);
        let (Some(id), Some(Ok(acknowledged))) =
            (words.next(), words.next().map(str::parse::<u64>))
        else {
            return Ok(());
        };
        if id != self.id || acknowledged <= self.changes {
            return Ok(());
        }
        let (path, changes) = (self.path.display(), self.changes);
        Err(JournalError(format!(
            "{path} holds {changes} changes, but {acknowledged} were acknowledged: its write-ahead log {path}-wal was lost or cut, or an older copy took its place; restore a backup, or remove {path}-lock to go on without the missing changes"
        )))
    }
}

/// Moves what the process before left in the log into the file.
///
/// That process may have ended because an fsync of the log failed. The log can
/// be read now all the same, from memory, and never reaches the disk unless it
/// is written again: what is committed behind it would be lost with the power.
fn empty_log(connection: &Connection, path: &Path) -> Result<(), JournalError> {
    let emptied = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
    let is_busy: bool = emptied.map_err(|error| describe(path, &error))?;
    if is_busy {
        warn!(path = %path.display(), "another program reads the file, so that its log goes on");
    }
    Ok(())
}

/// Lets the name of a new file survive the loss of power too.
pub(super) fn sync_directory(path: &Path) -> Result<(), JournalError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::File::open(parent)
        .and_then(|parent| parent.sync_all())
        .map_err(|error| failed(path, &error))
}

/// A new file for this process alone, which is about to get another name.
#[cfg(feature = "cli")]
pub(super) fn create(path: &Path) -> Result<Connection, JournalError> {
    let mut connection = open(path, OpenFlags::SQLITE_OPEN_CREATE)?;
    prepare(&mut connection, path)?;
    Ok(connection)
}

/// A connection that changes nothing, to a file that a server may have open.
#[cfg(feature = "cli")]
pub(super) fn view(path: &Path) -> Result<Connection, JournalError> {
    if !path.is_file() {
        return Err(JournalError(format!("there is no file {}", path.display())));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let at = |error: rusqlite::Error| describe(path, &error);
    let connection = Connection::open_with_flags(path, flags).map_err(at)?;
    tune(&connection).map_err(at)?;
    check_owner(&connection, path)?;
    if connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| {
            row.get::<_, i64>(0)
        })
        .map_err(at)?
        == 0
    {
        return Err(JournalError(format!("{} is empty", path.display())));
    }
    Ok(connection)
}

/// A further connection to a file that is open.
pub(super) fn connect(path: &Path) -> Result<Connection, JournalError> {
    let connection = open(path, OpenFlags::empty())?;
    tune(&connection).map_err(|error| describe(path, &error))?;
    Ok(connection)
}

fn open(path: &Path, more: OpenFlags) -> Result<Connection, JournalError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | more;
    Connection::open_with_flags(path, flags).map_err(|error| describe(path, &error))
}

fn tune(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.execute_batch(&format!(
        "PRAGMA synchronous = FULL;
         PRAGMA wal_autocheckpoint = 0;
         PRAGMA journal_size_limit = {LOG_BYTES};
         PRAGMA cell_size_check = ON;
         PRAGMA trusted_schema = OFF;"
    ))
}

/// Checks whose file it is, and brings it to the present schema.
fn prepare(connection: &mut Connection, path: &Path) -> Result<(String, u64), JournalError> {
    let at = |error: rusqlite::Error| describe(path, &error);
    check_owner(connection, path)?;
    if connection.is_readonly(MAIN_DB).map_err(at)? {
        return Err(read_only(path));
    }
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))
        .map_err(at)?;
    if mode != "wal" {
        return Err(JournalError(format!(
            "{} cannot have a write-ahead log: use a local file system",
            path.display()
        )));
    }
    tune(connection).map_err(at)?;
    migrate(connection, &MIGRATIONS).map_err(at)?;
    connection
        .query_row("SELECT id, changes FROM journal", [], |row| {
            let changes: i64 = row.get(1)?;
            Ok((row.get(0)?, u64::try_from(changes).unwrap_or(0)))
        })
        .map_err(at)
}

/// Whether the file is ours, or new, and not newer than this program.
fn check_owner(connection: &Connection, path: &Path) -> Result<(), JournalError> {
    let at = |error: rusqlite::Error| describe(path, &error);
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let tables = "SELECT count(*) FROM sqlite_schema";
    let application = pragma("application_id").map_err(at)?;
    let tables: i64 = connection
        .query_row(tables, [], |row| row.get(0))
        .map_err(at)?;
    if application != APPLICATION && (application, tables) != (0, 0) {
        return Err(JournalError(format!(
            "{} is the database of another program: choose another path",
            path.display()
        )));
    }
    let (version, known) = (pragma("user_version").map_err(at)?, MIGRATIONS.len());
    if usize::try_from(version).is_ok_and(|version| version <= known) {
        return Ok(());
    }
    Err(JournalError(format!(
        "{} has schema version {version}, and this program knows versions up to {known}: use a newer longrunning",
        path.display()
    )))
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
        transaction.pragma_update(None, "application_id", APPLICATION)?;
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

/// Two paths to one file must lead to one lock.
fn absolute(path: &Path) -> Result<PathBuf, JournalError> {
    if let Ok(whole) = path.canonicalize() {
        return Ok(whole);
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path
        .file_name()
        .ok_or_else(|| JournalError(format!("{} is not the path of a file", path.display())))?;
    match parent.canonicalize() {
        Ok(parent) => Ok(parent.join(name)),
        Err(error) => Err(JournalError(format!(
            "the directory {} cannot be used: {error}",
            parent.display()
        ))),
    }
}

fn lock(path: &Path) -> Result<fs::File, JournalError> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push("-lock");
    let lock = fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(|error| failed(Path::new(&lock_path), &error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => {
            let mut note = String::new();
            let _ = (&lock).read_to_string(&mut note);
            let holder = note.split_whitespace().next().unwrap_or("unknown");
            Err(JournalError(format!(
                "{} is in use by another process (pid {holder}): stop it first, or choose another path",
                path.display()
            )))
        }
        Err(fs::TryLockError::Error(error)) => Err(failed(Path::new(&lock_path), &error)),
    }
}

pub(super) fn failed(path: &Path, error: &io::Error) -> JournalError {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => read_only(path),
        _ => JournalError(format!("{} cannot be used: {error}", path.display())),
    }
}

fn read_only(path: &Path) -> JournalError {
    JournalError(format!(
        "{} cannot be written: give this user the right to write the file and its directory",
        path.display()
    ))
}

/// What an error of SQLite means for whoever has to mend it.
pub(super) fn describe(path: &Path, error: &rusqlite::Error) -> JournalError {
    let shown = path.display();
    JournalError(match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => format!(
            "{shown} is not a SQLite file, or its beginning is damaged: choose another path, or restore a backup"
        ),
        Some(ErrorCode::DatabaseCorrupt) => format!(
            "{shown} is damaged ({error}): restore a backup, or save what can be read with `longrunning backup --salvage`"
        ),
        Some(ErrorCode::DiskFull) => format!("the disk of {shown} is full: make room"),
        Some(ErrorCode::ReadOnly) => return read_only(path),
        Some(ErrorCode::CannotOpen) => format!(
            "{shown} cannot be opened: check that it is a file, and that this user may read and write it and its directory"
        ),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            format!("{shown} is locked by another program: end that first")
        }
        Some(ErrorCode::SystemIoFailure) => format!("the disk of {shown} fails: {error}"),
        _ => format!("{shown} cannot be used: {error}"),
    })
}
