//! Errors of database files for operators: what failed, and what to do.

use std::{io, path::Path};

use rusqlite::{ErrorCode, ffi};

use crate::storage::error::StorageError;

/// Returns the error for a failed file operation.
pub(super) fn io_error(path: &Path, error: &io::Error) -> StorageError {
    let display = path.display();
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            read_only_error(path)
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StorageError::unavailable(format!("the disk of {display} is full: free disk space"))
        }
        _ => StorageError::unavailable(format!("{display} cannot be used: {error}")),
    }
}

pub(super) fn read_only_error(path: &Path) -> StorageError {
    StorageError::unavailable(format!(
        "{} cannot be written: give this user the right to write the file and its directory",
        path.display()
    ))
}

/// Returns the error for a WAL that cannot be truncated because another process reads it.
pub(super) fn checkpoint_blocked_error(path: &Path) -> StorageError {
    StorageError::in_use(format!(
        "another program reads {}: stop it first",
        path.display()
    ))
}

/// Returns the advice for operators who have just restored a backup, but left the files that belong to the old
/// database.
pub(super) fn restore_hint(path: &Path) -> String {
    let display = path.display();
    format!(
        "if you have just restored a backup, use `longrunning restore`, or remove {display}-wal, {display}-shm and {display}-lock too"
    )
}

/// Returns the error for a write-ahead log that belongs to another file.
pub(super) fn mixed_files_error(path: &Path) -> StorageError {
    let display = path.display();
    StorageError::corrupt(format!(
        "{display} and its write-ahead log {display}-wal belong to different databases, and neither was changed: {}; otherwise put the file back to which the log belongs",
        restore_hint(path)
    ))
}

/// Returns the error for a file that has fewer writes than were acknowledged.
pub(super) fn missing_writes_error(
    path: &Path,
    write_count: u64,
    acknowledged: u64,
) -> StorageError {
    let display = path.display();
    StorageError::corrupt(format!(
        "{display} has {write_count} writes, but {acknowledged} were acknowledged: its write-ahead log {display}-wal was lost or truncated, or the file was replaced by an older copy; {}; otherwise put the log back, restore a backup, or remove {display}-lock to continue without the missing writes",
        restore_hint(path)
    ))
}

/// Returns the error for a failed SQLite call.
pub(super) fn sqlite_error(path: &Path, error: &rusqlite::Error) -> StorageError {
    let display = path.display();
    let code = error.sqlite_error().map_or(0, |error| error.extended_code);
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => StorageError::corrupt(format!(
            "{display} is not a SQLite file, or its beginning is damaged: choose another path, or restore a backup"
        )),
        Some(ErrorCode::DatabaseCorrupt) => StorageError::corrupt(format!(
            "{display} is damaged ({error}): {}; otherwise restore a backup, or recover readable operations with `longrunning backup --recover`",
            restore_hint(path)
        )),
        Some(ErrorCode::DiskFull) => {
            StorageError::unavailable(format!("the disk of {display} is full: free disk space"))
        }
        // SQLite writes each page of the -shm file before it maps it, and hides the cause of a failure.
        Some(ErrorCode::SystemIoFailure) if code == ffi::SQLITE_IOERR_SHMSIZE => {
            StorageError::unavailable(format!(
                "the disk of {display} is full: free disk space, {display}-shm cannot grow"
            ))
        }
        Some(ErrorCode::SystemIoFailure) if code == ffi::SQLITE_IOERR_SHMMAP => {
            StorageError::unavailable(format!(
                "{display}-shm cannot be mapped into memory: use a local file system, or make more memory available"
            ))
        }
        // Of the causes of a failed write, SQLite distinguishes only a full disk.
        Some(ErrorCode::SystemIoFailure) if code == ffi::SQLITE_IOERR_WRITE => {
            StorageError::unavailable(format!(
                "the disk of {display} fails, or a quota is used up: {error} (code {code})"
            ))
        }
        Some(ErrorCode::SystemIoFailure) => StorageError::unavailable(format!(
            "the disk of {display} fails: {error} (code {code})"
        )),
        Some(ErrorCode::ReadOnly) => read_only_error(path),
        Some(ErrorCode::CannotOpen) => StorageError::unavailable(format!(
            "{display} cannot be opened: check that it is a file, that this user may read and write it and its directory, and that the disk is not full (code {code})"
        )),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StorageError::in_use(format!(
            "{display} is locked by another program: stop it first"
        )),
        Some(_) => {
            StorageError::unavailable(format!("{display} cannot be used: {error} (code {code})"))
        }
        None => StorageError::unavailable(format!("{display} cannot be used: {error}")),
    }
}
