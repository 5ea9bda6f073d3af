//! The paths of a database file and of the files beside it.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::errors::io_error;
use crate::storage::error::StorageError;

/// The longest chain of symbolic links, as in Linux.
const MAX_SYMBOLIC_LINKS: usize = 40;

/// Returns the path of a file beside the database file.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Creates an empty file if there is none.
pub(super) fn create_if_missing(path: &Path) -> Result<(), StorageError> {
    // POSIX locks: closing any descriptor of a file releases all locks of the process on it, those of SQLite included.
    // So an existing file is never opened here.
    match fs::File::options().append(true).create_new(true).open(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(io_error(path, &error)),
        _ => Ok(()),
    }
}

/// Returns the canonical path of a file that may not exist yet: the WAL and the lock file are beside it, and two
/// processes must not have two of them.
pub(super) fn locate(path: &Path) -> Result<PathBuf, StorageError> {
    let mut path = path.to_owned();
    // A symbolic link to a file that does not exist says where to create it.
    for _ in 0..MAX_SYMBOLIC_LINKS {
        match path.read_link() {
            Ok(target) if !path.exists() => path = parent_directory(&path).join(target),
            _ => break,
        }
    }
    let to_error = |error: std::io::Error| io_error(&path, &error);
    if !path.exists() {
        // A clearer error than "file not found".
        let parent = parent_directory(&path);
        let canonical = parent.canonicalize().map_err(|error| {
            StorageError::invalid_config(format!(
                "the directory {} cannot be used: {error}",
                parent.display()
            ))
        })?;
        let name = path.file_name().ok_or(ErrorKind::InvalidFilename.into());
        return Ok(canonical.join(name.map_err(to_error)?));
    }
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
