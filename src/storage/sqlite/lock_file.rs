//! The lock of a file, which is a file of its own, because SQLite's locks end
//! with each transaction. Who holds it notes in it what was acknowledged, so that
//! a log that was lost or cut is noticed at the next start and not taken for an
//! old file.

use std::{
    fs::{self, TryLockError},
    io::{self, ErrorKind},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::errors::io_error;
use crate::storage::error::{StorageError, StorageErrorKind};

/// Where the note begins, behind the process that holds the lock.
const ACK_OFFSET: u64 = 11;

/// Held until it is dropped.
#[derive(Debug)]
pub(super) struct LockFile {
    file: fs::File,
    path: PathBuf,
    /// Nobody had opened the file before.
    is_new: bool,
}

/// What was acknowledged before.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AckRecord {
    /// Which file it is about: another one may have taken its place.
    pub(super) file_id: String,
    /// How many changes.
    pub(super) write_count: u64,
}

// === impl Lock ===

impl LockFile {
    /// Takes the lock of a file.
    ///
    /// # Errors
    /// [`JournalError`] if another process has it, or it cannot be made.
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
            // Somebody may have removed it since it was opened, see `undo`, and
            // others would then have another one.
            if is_same_file(&file, &path) {
                // At once, so that a second process is not told to stop the one
                // before. Without it the name would be wrong, and nothing else.
                let _ = file.write_all_at(format_pid(std::process::id()).as_bytes(), 0);
                return Ok(Self { file, path, is_new });
            }
        }
    }

    /// Leaves the directory as it was.
    pub(super) fn remove_if_created(self) {
        if self.is_new {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// What was noted; none if nothing was, or it is torn. The checksum is for
    /// digits of two numbers that stand side by side: they may be more than was
    /// acknowledged, and a whole file would be refused.
    pub(super) fn read_ack(&self) -> Option<AckRecord> {
        let text = io::read_to_string(&self.file).ok()?;
        let (payload, checksum) = text
            .get(usize::try_from(ACK_OFFSET).ok()?..)?
            .rsplit_once(' ')?;
        if u32::from_str_radix(checksum.trim_end(), 16).ok()? != crc32fast::hash(payload.as_bytes())
        {
            return None;
        }
        let (file_id, write_count) = payload.split_once(' ')?;
        Some(AckRecord {
            file_id: file_id.to_owned(),
            write_count: write_count.parse().ok()?,
        })
    }

    /// Notes what is about to be acknowledged. The note is not made durable:
    /// after a loss of power it may be older than the file, which is no harm, but
    /// it is never newer.
    pub(super) fn write_ack(&self, file_id: &str, write_count: u64) {
        let payload = format!("{file_id} {write_count:020}");
        let line = format!("{payload} {:08x}\n", crc32fast::hash(payload.as_bytes()));
        // Without it a lost log would go unnoticed, and nothing else.
        let _ = self.file.write_all_at(line.as_bytes(), ACK_OFFSET);
    }
}

/// Opens it, and says whether it was made.
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

fn format_pid(pid: u32) -> String {
    format!("{pid:<10} ")
}

fn in_use_error(database_path: &Path, lock_file: &fs::File) -> StorageError {
    let text = io::read_to_string(lock_file).unwrap_or_default();
    let pid = text.split_whitespace().next().unwrap_or("unknown");
    StorageError::new(
        StorageErrorKind::InUse,
        format!(
            "{} is in use by another process (pid {pid}): stop it first, or choose another path",
            database_path.display()
        ),
    )
}
