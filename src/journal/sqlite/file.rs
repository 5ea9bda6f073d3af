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
    lock::Lock,
    refusal::{describe, failed, read_by_others, read_only, restored},
};
use crate::{clock::Timestamp, journal::journal::JournalError};

/// `LONG`, so that other programs can tell whose file it is.
const APPLICATION: i32 = 0x4c4f_4e47;

/// What each version of the schema adds to the one before. Released ones never
/// change.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE operations (number INTEGER PRIMARY KEY, record BLOB NOT NULL) STRICT;
    CREATE TABLE inputs (number INTEGER PRIMARY KEY, input BLOB NOT NULL) STRICT;
    CREATE TABLE journal (id TEXT NOT NULL, changes INTEGER NOT NULL, newest INTEGER) STRICT;
"];

/// What the log may take of the disk when it is empty again.
const LOG_BYTES: u32 = 16 << 20;

/// How long a short reader of the file, such as `inspect`, is waited for.
const BUSY: Duration = Duration::from_secs(5);

/// An open file that no other process holds open.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    lock: Lock,
    head: Head,
}

/// The one row of the table `journal`.
#[derive(Debug)]
struct Head {
    /// Unlike that of any other file, but for copies of it.
    id: String,
    /// How many changes were committed.
    changes: u64,
    /// The latest time that one of them bears.
    newest: Option<Timestamp>,
}

// === impl File ===

impl File {
    /// # Errors
    /// [`JournalError`] that says what is wrong and what to do.
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        Self::open_within(path, BUSY)
    }

    /// Opens it, and waits so long for those who read it.
    pub(super) fn open_within(path: &Path, patience: Duration) -> Result<Self, JournalError> {
        let path = settle(path)?;
        let lock = Lock::take(&path)?;
        let mut connection = open(&path, OpenFlags::empty())?;
        if let Err(refusal) = check_owner(&connection, &path) {
            lock.undo();
            return Err(refusal);
        }
        let head = prepare(&mut connection, &path)?;
        let file = Self { path, lock, head };
        file.check_complete()?;
        empty_log(&connection, &file.path, patience)?;
        Ok(file)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How many changes the file held when it was opened.
    pub(super) fn changes(&self) -> u64 {
        self.head.changes
    }

    /// The latest time that a change bore then.
    pub(super) fn newest(&self) -> Option<Timestamp> {
        self.head.newest
    }

    /// Notes that so many changes are about to be acknowledged.
    pub(super) fn acknowledge(&self, changes: u64) {
        self.lock.set_note(&self.head.id, changes);
    }

    fn check_complete(&self) -> Result<(), JournalError> {
        let note = self.lock.note().filter(|note| note.id == self.head.id);
        let acknowledged = note.map_or(0, |note| note.changes);
        if acknowledged <= self.head.changes {
            return Ok(());
        }
        let (path, changes) = (self.path.display(), self.head.changes);
        Err(JournalError(format!(
            "{path} holds {changes} changes, but {acknowledged} were acknowledged: its write-ahead log {path}-wal was lost or cut, or an older copy took its place; {}; else restore a backup, or remove {path}-lock to go on without the missing changes",
            restored(&self.path)
        )))
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
fn empty_log(connection: &Connection, path: &Path, patience: Duration) -> Result<(), JournalError> {
    let at = |error: rusqlite::Error| describe(path, &error);
    connection.busy_timeout(patience).map_err(at)?;
    let emptied = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
    let is_busy: bool = emptied.map_err(at)?;
    if is_busy {
        return Err(read_by_others(path));
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

/// Brings a file of ours to the present schema.
fn prepare(connection: &mut Connection, path: &Path) -> Result<Head, JournalError> {
    let at = |error: rusqlite::Error| describe(path, &error);
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
        .query_row("SELECT id, changes, newest FROM journal", [], |row| {
            let changes: i64 = row.get(1)?;
            Ok(Head {
                id: row.get(0)?,
                changes: u64::try_from(changes).unwrap_or(0),
                newest: row.get::<_, Option<i64>>(2)?.map(Timestamp::from_nanos),
            })
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

/// Makes the file if there is none, and tells its one path: the log and the lock
/// stand beside that, and two processes must not have two of them.
fn settle(path: &Path) -> Result<PathBuf, JournalError> {
    // Whoever closes a file loses all locks of the process on it, those of SQLite
    // too. So one that is there is never opened here, and one that is not is made
    // by one thread at a time.
    static MAKING: Mutex<()> = Mutex::new(());
    let making = MAKING.lock();
    if !path.exists() {
        check_directory(path)?;
        // If it is a link, what that leads to is made.
        let made = fs::File::options().append(true).create(true).open(path);
        made.map_err(|error| failed(path, &error))?;
    }
    drop(making);
    let at = |error: std::io::Error| failed(path, &error);
    let whole = path.canonicalize().map_err(at)?;
    let metadata = whole.metadata().map_err(at)?;
    let shown = whole.display();
    if !metadata.is_file() {
        return Err(JournalError(format!(
            "{shown} cannot be used: it is not a file"
        )));
    }
    match metadata.nlink() {
        0 | 1 => Ok(whole),
        names => Err(JournalError(format!(
            "{shown} has {names} names (hard links), and each of them would have a log and a lock of its own: remove the others, or copy it with `longrunning backup` and use the copy"
        ))),
    }
}

/// A clearer word than that the file is not found.
fn check_directory(of: &Path) -> Result<(), JournalError> {
    let parent = match of.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match parent.canonicalize() {
        Ok(_) => Ok(()),
        Err(error) => Err(JournalError(format!(
            "the directory {} cannot be used: {error}",
            parent.display()
        ))),
    }
}
