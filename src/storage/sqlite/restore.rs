//! Replaces a database file by a backup.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    backup::{copy_database, inspect, remove_existing, remove_with_sidecars},
    database::open_read_only,
    errors::io_error,
    lock_file::LockFile,
    paths::{locate, sync_parent_directory, with_suffix},
};
use crate::storage::error::StorageError;

/// What the previous file and its WAL are renamed to.
const PREVIOUS_SUFFIX: &str = ".before-restore";

/// Replaces a file that no process has open by a copy of a backup. Returns the new name of the previous file, or `None`
/// if there was none.
///
/// After a crash in between, the next start either finds one of the two databases, or is rejected.
///
/// # Errors
/// [`StorageError`] if the backup is damaged, a process has the file open, or the copy cannot be written. All files are
/// as before, unless a rename failed.
pub(crate) fn restore(backup: &Path, file: &Path) -> Result<Option<PathBuf>, StorageError> {
    check_intact(backup)?;
    let path = locate(file)?;
    let backup_path = backup.canonicalize();
    if backup_path.map_err(|error| io_error(backup, &error))? == path {
        return Err(StorageError::invalid_config(format!(
            "{} is the backup itself: name the file that the server uses",
            path.display()
        )));
    }
    let lock = LockFile::acquire(&path)?;
    match replace_file(backup, &path) {
        Ok(previous) => {
            lock.clear()?;
            Ok(previous)
        }
        Err(error) => {
            lock.undo();
            Err(error)
        }
    }
}

fn check_intact(backup: &Path) -> Result<(), StorageError> {
    let mut first_damage = None;
    inspect(backup, |row| {
        first_damage = first_damage.take().or(row.err());
    })?;
    let Some(damage) = first_damage else {
        return Ok(());
    };
    let display = backup.display();
    Err(StorageError::corrupt(format!(
        "{display} is not restored: {damage}: use another backup, or recover readable operations with `longrunning backup --store sqlite:{display} --recover`"
    )))
}

fn replace_file(backup: &Path, path: &Path) -> Result<Option<PathBuf>, StorageError> {
    let previous = with_suffix(path, PREVIOUS_SUFFIX);
    for suffix in ["", "-wal", "-journal"] {
        let previous = with_suffix(&previous, suffix);
        if previous.exists() {
            return Err(StorageError::invalid_config(format!(
                "{} already exists, and has what an earlier restore replaced: move it away, or remove it",
                previous.display()
            )));
        }
    }
    let partial = with_suffix(path, ".partial");
    remove_with_sidecars(&partial)?;
    let replaced = copy_database(&open_read_only(backup)?, backup, &partial)
        .and_then(|()| remove_existing(&partial, &["-wal", "-shm", "-journal"]))
        .and_then(|()| rename_files(&partial, path, &previous));
    if replaced.is_err() {
        // The first error says more.
        let _ = remove_with_sidecars(&partial);
    }
    replaced
}

fn rename_files(
    partial: &Path,
    path: &Path,
    previous: &Path,
) -> Result<Option<PathBuf>, StorageError> {
    let has_previous = path.exists();
    if has_previous {
        let to_error = |error: std::io::Error| io_error(previous, &error);
        let permissions = fs::metadata(path).map_err(to_error)?.permissions();
        fs::set_permissions(partial, permissions).map_err(to_error)?;
        // A link, so that the file is never missing: with its WAL missing too, a server would create an empty one.
        fs::hard_link(path, previous).map_err(to_error)?;
    }
    if let Err(error) = fs::rename(partial, path) {
        let _ = remove_existing(previous, &[""]);
        return Err(io_error(path, &error));
    }
    // Up to here, a server rejects the new file beside the old WAL.
    for suffix in ["-wal", "-journal"] {
        let sidecar = with_suffix(path, suffix);
        if sidecar.exists() {
            fs::rename(&sidecar, with_suffix(previous, suffix))
                .map_err(|error| io_error(&sidecar, &error))?;
        }
    }
    remove_existing(path, &["-shm"])?;
    sync_parent_directory(path)?;
    Ok(has_previous.then(|| previous.to_owned()))
}
