//! The lock file: keeps a second process from opening the database, because SQLite's own locks end with each
//! transaction. Its holder records the ID of the database and the number of acknowledged writes, so that the next start
//! notices files that are missing, truncated, or those of another database.

use std::{
    fs::{self, TryLockError},
    io::{self, ErrorKind},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::{errors::io_error, paths::with_suffix};
use crate::storage::error::StorageError;

/// The offset of the acknowledged count, behind the id of the process.
const ACK_OFFSET: usize = 11;

/// A held lock, released on drop.
#[derive(Debug)]
pub(super) struct LockFile {
    file: fs::File,
    path: PathBuf,
    /// The contents before this process wrote to it, or `None` if this process created it.
    previous: Option<Vec<u8>>,
}

/// What a lock file knows of its database.
#[derive(Debug)]
pub(super) struct Ack {
    pub(super) file_id: String,
    /// The number of acknowledged writes.
    pub(super) write_count: u64,
}

// === impl LockFile ===

impl LockFile {
    /// Locks a database file.
    ///
    /// # Errors
    /// [`StorageError`] if another process holds the lock, or the lock file cannot be created.
    pub(super) fn acquire(database_path: &Path) -> Result<Self, StorageError> {
        let path = with_suffix(database_path, "-lock");
        let to_error = |error: io::Error| io_error(&path, &error);
        loop {
            let (file, is_new) = open_or_create(&path).map_err(to_error)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(in_use_error(database_path, &file)),
                Err(TryLockError::Error(error)) => return Err(to_error(error)),
            }
            // Another process may have removed it since it was opened (`undo`), and a third one may have locked a new
            // one.
            if is_same_file(&file, &path) {
                let mut previous = Vec::new();
                io::copy(&mut &file, &mut previous).map_err(to_error)?;
                // At once, so that the error of a second process names this one. A failure makes that text wrong, and
                // nothing else.
                let pid = format!("{:<10} ", std::process::id());
                let _ = file.write_all_at(pid.as_bytes(), 0);
                let previous = (!is_new).then_some(previous);
                return Ok(Self {
                    file,
                    path,
                    previous,
                });
            }
        }
    }

    /// Releases the lock, and leaves the lock file as it was before: removes it if this process created it.
    pub(super) fn undo(self) {
        let _ = match &self.previous {
            None => fs::remove_file(&self.path),
            Some(previous) => {
                let pid_bytes = previous.len().min(ACK_OFFSET);
                self.file
                    .write_all_at(&previous[..pid_bytes], 0)
                    .and_then(|()| self.file.set_len(previous.len() as u64))
            }
        };
    }

    /// Releases the lock, and removes what is recorded: the database is another one now.
    #[cfg(feature = "cli")]
    pub(super) fn clear(self) -> Result<(), StorageError> {
        let cleared = self.file.set_len(ACK_OFFSET as u64);
        cleared.map_err(|error| io_error(&self.path, &error))?;
        self.sync()
    }

    /// Returns what the previous process recorded, or `None` if there is nothing, or it is torn.
    pub(super) fn ack(&self) -> Option<Ack> {
        parse_ack(self.previous.as_deref()?)
    }

    /// Records the count that is about to be acknowledged. It is not synced: after a loss of power it may be older than
    /// the database, which is harmless, but never newer.
    pub(super) fn write_ack(&self, file_id: &str, write_count: u64) {
        let payload = format!("{file_id} {write_count:020}");
        let line = format!("{payload} {:08x}\n", crc32fast::hash(payload.as_bytes()));
        // After a failure, a lost WAL goes unnoticed; nothing else breaks.
        let _ = self.file.write_all_at(line.as_bytes(), ACK_OFFSET as u64);
    }

    /// Makes the last record durable.
    pub(super) fn sync(&self) -> Result<(), StorageError> {
        self.file
            .sync_data()
            .map_err(|error| io_error(&self.path, &error))
    }
}

/// Returns `true` if a process has the database open.
#[cfg(feature = "cli")]
pub(super) fn is_locked(database_path: &Path) -> Result<bool, StorageError> {
    let path = with_suffix(database_path, "-lock");
    let to_error = |error: io::Error| io_error(&path, &error);
    let file = match fs::File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        opened => opened.map_err(to_error)?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(to_error(error)),
    }
}

/// The checksum detects a mix of the digits of two counts: it may exceed the acknowledged one, and a complete database
/// would be rejected.
fn parse_ack(contents: &[u8]) -> Option<Ack> {
    let text = std::str::from_utf8(contents.get(ACK_OFFSET..)?).ok()?;
    let (payload, checksum) = text.rsplit_once(' ')?;
    if u32::from_str_radix(checksum.trim_end(), 16).ok()? != crc32fast::hash(payload.as_bytes()) {
        return None;
    }
    let (file_id, write_count) = payload.split_once(' ')?;
    Some(Ack {
        file_id: file_id.to_owned(),
        write_count: write_count.parse().ok()?,
    })
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
