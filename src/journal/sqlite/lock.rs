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

use super::refusal::failed;
use crate::journal::journal::JournalError;

/// Where the note begins, behind the process that holds the lock.
const NOTE: u64 = 11;

/// Held until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    file: fs::File,
    path: PathBuf,
    /// Nobody had opened the file before.
    is_new: bool,
}

/// What was acknowledged before.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Note {
    /// Which file it is about: another one may have taken its place.
    pub(super) id: String,
    /// How many changes.
    pub(super) changes: u64,
}

// === impl Lock ===

impl Lock {
    /// Takes the lock of a file.
    ///
    /// # Errors
    /// [`JournalError`] if another process has it, or it cannot be made.
    pub(super) fn take(of: &Path) -> Result<Self, JournalError> {
        let mut path = of.as_os_str().to_owned();
        path.push("-lock");
        let path = PathBuf::from(path);
        let at = |error: io::Error| failed(&path, &error);
        loop {
            let (file, is_new) = open(&path).map_err(at)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(in_use(of, &file)),
                Err(TryLockError::Error(error)) => return Err(at(error)),
            }
            // Somebody may have removed it since it was opened, see `undo`, and
            // others would then have another one.
            if is_at(&file, &path) {
                // At once, so that a second process is not told to stop the one
                // before. Without it the name would be wrong, and nothing else.
                let _ = file.write_all_at(holder(std::process::id()).as_bytes(), 0);
                return Ok(Self { file, path, is_new });
            }
        }
    }

    /// Leaves the directory as it was.
    pub(super) fn undo(self) {
        if self.is_new {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// What was noted; none if nothing was, or it is torn. The checksum is for
    /// digits of two numbers that stand side by side: they may be more than was
    /// acknowledged, and a whole file would be refused.
    pub(super) fn note(&self) -> Option<Note> {
        let text = io::read_to_string(&self.file).ok()?;
        let (note, sum) = text.get(usize::try_from(NOTE).ok()?..)?.rsplit_once(' ')?;
        if u32::from_str_radix(sum.trim_end(), 16).ok()? != crc32fast::hash(note.as_bytes()) {
            return None;
        }
        let (id, changes) = note.split_once(' ')?;
        Some(Note {
            id: id.to_owned(),
            changes: changes.parse().ok()?,
        })
    }

    /// Notes what is about to be acknowledged. The note is not made durable:
    /// after a loss of power it may be older than the file, which is no harm, but
    /// it is never newer.
    pub(super) fn set_note(&self, id: &str, changes: u64) {
        let note = format!("{id} {changes:020}");
        let line = format!("{note} {:08x}\n", crc32fast::hash(note.as_bytes()));
        // Without it a lost log would go unnoticed, and nothing else.
        let _ = self.file.write_all_at(line.as_bytes(), NOTE);
    }
}

/// Opens it, and says whether it was made.
fn open(path: &Path) -> io::Result<(fs::File, bool)> {
    let mut options = fs::File::options();
    options.read(true).write(true);
    match options.clone().create_new(true).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let file = options.create(true).truncate(false).open(path)?;
            Ok((file, false))
        }
        made => Ok((made?, true)),
    }
}

fn is_at(file: &fs::File, path: &Path) -> bool {
    let inode = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let (held, named) = (file.metadata().map(inode), fs::metadata(path).map(inode));
    matches!((held, named), (Ok(held), Ok(named)) if held == named)
}

fn holder(pid: u32) -> String {
    format!("{pid:<10} ")
}

fn in_use(of: &Path, lock: &fs::File) -> JournalError {
    let text = io::read_to_string(lock).unwrap_or_default();
    let holder = text.split_whitespace().next().unwrap_or("unknown");
    JournalError(format!(
        "{} is in use by another process (pid {holder}): stop it first, or choose another path",
        of.display()
    ))
}
