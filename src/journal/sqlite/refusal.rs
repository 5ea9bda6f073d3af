//! What to say when something does not go well with a file: what it means, and
//! what to do.

use std::{io, path::Path};

use rusqlite::{ErrorCode, ffi};

use crate::journal::journal::JournalError;

/// What an error of the file system means for whoever has to mend it.
pub(super) fn failed(path: &Path, error: &io::Error) -> JournalError {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => read_only(path),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            JournalError(format!("the disk of {shown} is full: make room"))
        }
        _ => JournalError(format!("{shown} cannot be used: {error}")),
    }
}

pub(super) fn read_only(path: &Path) -> JournalError {
    JournalError(format!(
        "{} cannot be written: give this user the right to write the file and its directory",
        path.display()
    ))
}

/// The log holds what the disk may not hold, and somebody keeps it in use.
pub(super) fn read_by_others(path: &Path) -> JournalError {
    JournalError(format!(
        "another program reads {}: end it first",
        path.display()
    ))
}

/// For those who have followed the advice to restore a backup, and left what
/// belongs to the old file: to tell them the same again would lead in a circle.
pub(super) fn restored(path: &Path) -> String {
    let shown = path.display();
    format!(
        "if you have just put a backup here, remove {shown}-wal, {shown}-shm and {shown}-lock too"
    )
}

/// What an error of SQLite means for whoever has to mend it.
pub(super) fn describe(path: &Path, error: &rusqlite::Error) -> JournalError {
    let shown = path.display();
    let code = error.sqlite_error().map_or(0, |error| error.extended_code);
    JournalError(match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => format!(
            "{shown} is not a SQLite file, or its beginning is damaged: choose another path, or restore a backup"
        ),
        Some(ErrorCode::DatabaseCorrupt) => format!(
            "{shown} is damaged ({error}): {}; else restore a backup, or save what can be read with `longrunning backup --salvage`",
            restored(path)
        ),
        Some(ErrorCode::DiskFull) => format!("the disk of {shown} is full: make room"),
        // SQLite writes each page of it before it maps it, and drops the reason
        // when that fails.
        Some(ErrorCode::SystemIoFailure) if code == ffi::SQLITE_IOERR_SHMSIZE => {
            format!("the disk of {shown} is full: make room, {shown}-shm cannot grow")
        }
        Some(ErrorCode::SystemIoFailure) if code == ffi::SQLITE_IOERR_SHMMAP => format!(
            "{shown}-shm cannot be mapped into memory: use a local file system, or make more memory available"
        ),
        // Of the reasons for a write to fail, SQLite knows only the full disk.
        Some(ErrorCode::SystemIoFailure) if code == ffi::SQLITE_IOERR_WRITE => {
            format!("the disk of {shown} fails, or a quota is used up: {error} (code {code})")
        }
        Some(ErrorCode::SystemIoFailure) => {
            format!("the disk of {shown} fails: {error} (code {code})")
        }
        Some(ErrorCode::ReadOnly) => return read_only(path),
        Some(ErrorCode::CannotOpen) => format!(
            "{shown} cannot be opened: check that it is a file, that this user may read and write it and its directory, and that the disk is not full (code {code})"
        ),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            format!("{shown} is locked by another program: end that first")
        }
        Some(_) => format!("{shown} cannot be used: {error} (code {code})"),
        None => format!("{shown} cannot be used: {error}"),
    })
}
