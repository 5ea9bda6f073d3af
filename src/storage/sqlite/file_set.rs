//! Checks that the file, its write-ahead log and its lock file belong together, and that none is missing, before SQLite
//! opens the file: SQLite would apply the log of another database to it.

use std::{fmt::Write as _, fs, path::Path};

use rusqlite::{Connection, ErrorCode, OpenFlags};
use tracing::warn;

#[cfg(feature = "cli")]
use super::lock_file::is_locked;
use super::{
    errors::{io_error, missing_writes_error, mixed_files_error, sqlite_error},
    lock_file::Ack,
    paths::with_suffix,
    schema::{check_compatible, count_tables},
    wal_file::{StoredFileInfo, WalContents, read_wal},
};
use crate::storage::error::StorageError;

/// What the main file contains without its log.
#[derive(Debug)]
enum MainFile {
    Missing,
    /// No bytes at all.
    Empty,
    /// A header without tables: its creation is still in the log.
    WithoutTables,
    Initialized(StoredFileInfo),
    /// Only the log shows whose file it is, because a checkpoint was interrupted, or the file is damaged.
    Unreadable,
}

/// Checks the files of a database that is not open. Modifies none.
///
/// # Errors
/// [`StorageError`] if the log belongs to another file, or acknowledged writes are missing.
pub(super) fn check_files(path: &Path, ack: Option<&Ack>) -> Result<(), StorageError> {
    let main = read_main_file(path)?;
    let wal = read_wal_of(path)?;
    check_log_owner(path, &main, &wal)?;
    let acknowledged = ack.map_or(0, |ack| ack.write_count);
    let reason = match &main {
        MainFile::Missing => "is missing",
        MainFile::Empty => "is empty",
        MainFile::WithoutTables if acknowledged != 0 => "is empty",
        MainFile::WithoutTables => return Ok(()),
        MainFile::Unreadable => return check_writes(path, wal.info.as_ref(), ack),
        MainFile::Initialized(info) => {
            let foreign_ack = ack.filter(|ack| ack.file_id != info.file_id);
            if foreign_ack.is_some() && wal.has_commits && wal.info.is_none() {
                // The log of a server that was killed right after its start. Its lock file names the database.
                return Err(mixed_files_error(path));
            }
            if foreign_ack.is_some() {
                let file = path.display();
                warn!(%file, "the file was replaced since a server had it open");
            }
            return check_writes(path, wal.info.as_ref().or(Some(info)), ack);
        }
    };
    if acknowledged == 0 && !wal.has_commits {
        return Ok(());
    }
    let display = path.display();
    let (mut what, mut to_remove) = (String::new(), Vec::new());
    if acknowledged != 0 {
        let _ = write!(what, "{acknowledged} writes were acknowledged");
        to_remove.push(format!("{display}-lock"));
    }
    if wal.has_commits {
        let separator = if what.is_empty() { "" } else { ", and " };
        let _ = write!(
            what,
            "{separator}its write-ahead log {display}-wal has some"
        );
        to_remove.push(format!("{display}-wal"));
    }
    Err(StorageError::corrupt(format!(
        "{display} {reason}, but {what}: put the file back, or restore a backup with `longrunning restore`; to start empty, remove {}",
        to_remove.join(" and ")
    )))
}

/// Checks that the log of a database that may be open in a server belongs to the file. While a server has it open, it
/// does.
#[cfg(feature = "cli")]
pub(super) fn check_log_of_unlocked(path: &Path) -> Result<(), StorageError> {
    let path = path
        .canonicalize()
        .map_err(|error| io_error(path, &error))?;
    if is_locked(&path)? {
        return Ok(());
    }
    check_log_owner(&path, &read_main_file(&path)?, &read_wal_of(&path)?)
}

/// Returns an error if the log is that of another file, or is older than the last checkpoint.
fn check_log_owner(path: &Path, main: &MainFile, wal: &WalContents) -> Result<(), StorageError> {
    match (main, &wal.info) {
        (MainFile::Initialized(main), Some(wal))
            if wal.file_id != main.file_id || wal.write_count < main.write_count =>
        {
            Err(mixed_files_error(path))
        }
        _ => Ok(()),
    }
}

/// Returns an error if the last row has fewer writes than were acknowledged for its database.
fn check_writes(
    path: &Path,
    info: Option<&StoredFileInfo>,
    ack: Option<&Ack>,
) -> Result<(), StorageError> {
    match (info, ack) {
        (Some(info), Some(ack))
            if info.file_id == ack.file_id && info.write_count < ack.write_count =>
        {
            Err(missing_writes_error(
                path,
                info.write_count,
                ack.write_count,
            ))
        }
        _ => Ok(()),
    }
}

fn read_wal_of(path: &Path) -> Result<WalContents, StorageError> {
    let wal = with_suffix(path, "-wal");
    read_wal(&wal).map_err(|error| io_error(&wal, &error))
}

/// Reads a file as it is without its log, and without a lock.
///
/// # Errors
/// [`StorageError`] if it cannot be read, or belongs to another program or a newer version.
fn read_main_file(path: &Path) -> Result<MainFile, StorageError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() == 0 => return Ok(MainFile::Empty),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(MainFile::Missing),
        Err(error) => return Err(io_error(path, &error)),
    }
    let to_error = |error: rusqlite::Error| sqlite_error(path, &error);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    // By SQLite, because closing a descriptor of a file releases the POSIX locks that other connections have on it.
    let connection = Connection::open_with_flags(immutable_uri(path), flags).map_err(to_error)?;
    // An interrupted checkpoint may have written the new number of pages, but not the pages.
    connection
        .execute_batch("PRAGMA writable_schema = ON")
        .map_err(to_error)?;
    match read_file_info(&connection) {
        Ok(main) => {
            check_compatible(&connection, path)?;
            Ok(main)
        }
        Err(error) => match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt) => Ok(MainFile::Unreadable),
            // A table of another program, for example.
            Some(ErrorCode::Unknown) => {
                check_compatible(&connection, path).and(Ok(MainFile::Unreadable))
            }
            _ => Err(to_error(error)),
        },
    }
}

fn read_file_info(connection: &Connection) -> rusqlite::Result<MainFile> {
    if count_tables(connection)? == 0 {
        return Ok(MainFile::WithoutTables);
    }
    connection.query_row("SELECT file_id, write_count FROM file_info", [], |row| {
        Ok(MainFile::Initialized(StoredFileInfo {
            file_id: row.get(0)?,
            write_count: u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0),
        }))
    })
}

/// Returns the URI that opens a file without its log, any lock, or a change.
fn immutable_uri(path: &Path) -> String {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(*byte));
            }
            _ => {
                let _ = write!(uri, "%{byte:02X}");
            }
        }
    }
    uri + "?immutable=1"
}
