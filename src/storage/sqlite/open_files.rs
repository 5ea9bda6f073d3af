//! Notices that a file was removed or replaced while the server has it open: SQLite would continue to write to a file
//! that has no name, and every change would be lost.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{errors::io_error, paths::with_suffix};
use crate::storage::error::StorageError;

/// The files that must keep their names.
const SUFFIXES: [&str; 3] = ["", "-wal", "-lock"];

/// The files of an open database.
#[derive(Debug)]
pub(super) struct OpenFiles(Vec<OpenFile>);

#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    suffix: &'static str,
    inode: (u64, u64),
}

// === impl OpenFiles ===

impl OpenFiles {
    /// Returns the files of a database that has a WAL.
    pub(super) fn new(database_path: &Path) -> Result<Self, StorageError> {
        let files = SUFFIXES.map(|suffix| {
            let path = with_suffix(database_path, suffix);
            let inode = read_inode(&path).map_err(|error| io_error(&path, &error))?;
            Ok(OpenFile {
                path,
                suffix,
                inode,
            })
        });
        files.into_iter().collect::<Result<_, _>>().map(Self)
    }

    /// Returns an error if a file has lost its name, or another file has it.
    pub(super) fn check(&self) -> Result<(), StorageError> {
        self.0.iter().try_for_each(OpenFile::check)
    }
}

// === impl OpenFile ===

impl OpenFile {
    fn check(&self) -> Result<(), StorageError> {
        let what = match read_inode(&self.path) {
            Ok(inode) if inode == self.inode => return Ok(()),
            Ok(_) => "replaced",
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                "removed"
            }
            // The next system call of SQLite says what is wrong.
            Err(_) => return Ok(()),
        };
        let remedy = match self.suffix {
            "" => {
                "move it back, or stop the server and restore a backup with `longrunning restore`"
            }
            "-wal" => {
                "stop the server with SIGTERM, which saves the acknowledged changes, and start it again"
            }
            _ => "stop every server that uses the file, and start one",
        };
        Err(StorageError::unavailable(format!(
            "{} was {what} while the server has it open: {remedy}",
            self.path.display()
        )))
    }
}

fn read_inode(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
