//! What to say when something does not go well with a file: what it means, and
//! what to do.

use std::{io, path::Path};

use rusqlite::{ErrorCode, ffi};

use crate::storage::error::{StorageError, StorageErrorKind};

/// What an error of the file system means for whoever has to mend it.
pub(super) fn io_error(path: &Path, error: &io::Error) -> StorageError {
    let display = path.display();
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            read_only_error(path)
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StorageError::new(
            StorageErrorKind::Unavailable,
            format!("the disk of {display} is full: make room"),
        ),
        _ => StorageError::new(
            StorageErrorKind::Unavailable,
            format!("{display} cannot be used: {error}"),
        ),
    }
}

pub(super) fn read_only_error(path: &Path) -> StorageError {
    StorageError::new(
        StorageErrorKind::Unavailable,
        format!(
            "{} cannot be written: give this user the right to write the file and its directory",
            path.display()
        ),
    )
}

/// The log holds what the disk may not hold, and somebody keeps it in use.
pub(super) fn checkpoint_blocked_error(path: &Path) -> StorageError {
    StorageError::new(
        StorageErrorKind::Unavailable,
        format!("another program reads {}: end it first", path.display()),
    )
}

/// For those who have followed the advice to restore a backup, and left what
/// belongs to the old file: to tell them the same again would lead in a circle.
pub(super) fn restore_hint(path: &Path) -> String {
    let display = path.display();
    format!(
        "if you have just put a backup here, remove {display}-wal, {display}-shm and {display}-lock too"
    )
}

/// What an error of SQLite means for whoever has to mend it.
pub(super) fn sqlite_error(path: &Path, error: &rusqlite::Error) -> StorageError {
    let display = path.display();
    let code = error.sqlite_error().map_or(0, |error| error.extended_code);
    StorageError::new(
        StorageErrorKind::Unavailable,
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => format!(
                "{display} is not a SQLite file, or its beginning is damaged: choose another path, or restore a backup"
            ),
            Some(ErrorCode::DatabaseCorrupt) => format!(
                "{display} is damaged ({error}): {}; else restore a backup, or save what can be read with `longrunning backup --recover`",
                restore_hint(path)
            ),
            Some(ErrorCode::DiskFull) => format!("the disk of {display} is full: make room"),
            // SQLite writes each page of it before it maps it, and drops the reason
            // when that fails.
            Some(ErrorCode::SystemIoFailure) if code == ffi::SQLITE_IOERR_SHMSIZE => {
                format!("the disk of {display} is full: make room, {display}-shm cannot grow")
            }
            Some(ErrorCode::SystemIoFailure) if code == ffi::SQLITE_IOERR_SHMMAP => format!(
                "{display}-shm cannot be mapped into memory: use a local file system, or make more memory available"
            ),
            // Of the reasons for a write to fail, SQLite knows only the full disk.
            Some(ErrorCode::SystemIoFailure) if code == ffi::SQLITE_IOERR_WRITE => {
                format!("the disk of {display} fails, or a quota is used up: {error} (code {code})")
            }
            Some(ErrorCode::SystemIoFailure) => {
                format!("the disk of {display} fails: {error} (code {code})")
            }
            Some(ErrorCode::ReadOnly) => return read_only_error(path),
            Some(ErrorCode::CannotOpen) => format!(
                "{display} cannot be opened: check that it is a file, that this user may read and write it and its directory, and that the disk is not full (code {code})"
            ),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                format!("{display} is locked by another program: end that first")
            }
            Some(_) => format!("{display} cannot be used: {error} (code {code})"),
            None => format!("{display} cannot be used: {error}"),
        },
    )
}
