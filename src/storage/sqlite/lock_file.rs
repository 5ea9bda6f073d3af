//! The lock file: keeps a second process from opening the database, because SQLite's own locks end with each
//! transaction. Its holder records the number of acknowledged writes, so that the next start notices a WAL that was
//! lost or truncated.

use std::{
    fs::{self, TryLockError},
    io::{self, ErrorKind},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::errors::io_error;
use crate::storage::error::StorageError;

/// The offset of the acknowledged count, behind the id of the process.
const ACK_OFFSET: u64 = 11;

/// A held lock, released on drop.
#[derive(Debug)]
pub(super) struct LockFile {
    file: fs::File,
    path: PathBuf,
    /// `true` if this process created the lock file.
    is_new: bool,
}

// === impl LockFile ===

impl LockFile {
    /// Locks a database file.
    ///
    /// # Errors
    /// [`StorageError`] if another process holds the lock, or the lock file cannot be created.
    pub(super) fn acquire(database_path: &Path) -> Result<Self, StorageError> {
        let mut path = database_path.as_os_str().to_owned();
        path.push("-lock");
        let path = PathBuf::from(path);
        let to_error = |error: io::Error| io_error(&path, &error);
        loop {
            let (file, is_new) = open_or_create(&path).map_err(to_error)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(in_use_error(database_path, &file)),
                Err(TryLockError::Error(error)) => return Err(to_error(error)),
            }
            // Another process may have removed it since it was opened (`remove_if_created`), and a third one may have
            // locked a new one.
            if is_same_file(&file, &path) {
                // At once, so that the error of a second process names this one. A failure makes that text wrong, and
                // nothing else.
                let pid = format!("{:<10} ", std::process::id());
                let _ = file.write_all_at(pid.as_bytes(), 0);
                return Ok(Self { file, path, is_new });
            }
        }
    }

    /// Releases the lock, and removes the lock file if this process created it.
    pub(super) fn remove_if_created(self) {
        if self.is_new {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Returns the recorded count, or `None` if there is none, it is torn, or it belongs to another database: the file
    /// may have been replaced since. The checksum detects a mix of the digits of two counts: it may exceed the
    /// acknowledged one, and a complete database would be rejected.
    pub(super) fn read_ack(&self, file_id: &str) -> Option<u64> {
        let text = io::read_to_string(&self.file).ok()?;
        let (payload, checksum) = text
            .get(usize::try_from(ACK_OFFSET).ok()?..)?
            .rsplit_once(' ')?;
        if u32::from_str_radix(checksum.trim_end(), 16).ok()? != crc32fast::hash(payload.as_bytes())
        {
            return None;
        }
        let write_count = payload.strip_prefix(file_id)?.strip_prefix(' ')?;
        write_count.parse().ok()
    }

    /// Records the count that is about to be acknowledged. It is not synced: after a loss of power it may be older than
    /// the database, which is harmless, but never newer.
    pub(super) fn write_ack(&self, file_id: &str, write_count: u64) {
        let payload = format!("{file_id} {write_count:020}");
        let line = format!("{payload} {:08x}\n", crc32fast::hash(payload.as_bytes()));
        // After a failure, a lost WAL goes unnoticed; nothing else breaks.
        let _ = self.file.write_all_at(line.as_bytes(), ACK_OFFSET);
    }
}

/// Opens the lock file. The second value is `true` if it was created.
fn open_or_create(path: &Path) -> io::Result<(fs::File, bool)> {
    let mut options = fs::File::options();
    options.read(true).write(true);
    match options.clone().create_new(true).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let file = options.create(true).truncate(false).open(path)?;
            Ok((file, false))
        }
        created => Ok((created?, true)),
    }
}

fn is_same_file(file: &fs::File, path: &Path) -> bool {
    let inode = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let (handle_inode, path_inode) = (file.metadata().map(inode), fs::metadata(path).map(inode));
    matches!((handle_inode, path_inode), (Ok(handle_inode), Ok(path_inode)) if handle_inode == path_inode)
}

fn in_use_error(database_path: &Path, lock_file: &fs::File) -> StorageError {
    let text = io::read_to_string(lock_file).unwrap_or_default();
    let pid = text.split_whitespace().next().unwrap_or("unknown");
    StorageError::in_use(format!(
        "{} is in use by another process (pid {pid}): stop it first, or choose another path",
        database_path.display()
    ))
}
