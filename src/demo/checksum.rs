//! The slow work of the demo: hashes every file below a directory. Who asks for
//! it lives in `service` and in `cli`.

use std::{
    fmt::Write,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use prost_types::Any;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use walkdir::WalkDir;

use crate::{
    operation::{outcome::Failure, payload::Payload},
    proto::{
        google::rpc::Code,
        longrunning::{
            demo::v1::{Checksum, CreateChecksumRequest},
            v1::Progress,
        },
    },
    worker::context::Context,
};

/// The queue of the demo.
pub(crate) const QUEUE: &str = "checksum";
/// How many directories are hashed at once.
pub(crate) const CONCURRENCY: usize = 2;
/// How much is read between two looks at the wish to stop.
const CHUNK: usize = 256 * 1024;

/// A file to hash: its place, its name in the list, its size when found.
struct Found {
    path: PathBuf,
    relative: Vec<u8>,
    size: u64,
}

/// The work under way.
struct Walk {
    context: Context,
    started: Instant,
    total_bytes: u64,
    bytes: u64,
    files: usize,
}

/// Hashes the directory that the input names. The files are read on a thread
/// of their own, so that the runtime stays free.
pub(crate) async fn checksum(context: Context) -> Result<Any, Failure> {
    let request: CreateChecksumRequest = context.input_as()?;
    let started = Instant::now();
    let walk = Walk {
        context,
        started,
        total_bytes: 0,
        bytes: 0,
        files: 0,
    };
    let hashed = tokio::task::spawn_blocking(move || walk.run(Path::new(&request.directory))).await;
    let checksum = hashed
        .map_err(|error| Failure::new(Code::Internal, format!("the walk broke off: {error}")))??;
    Ok(Payload::pack(&checksum).any().clone())
}

// === impl Walk ===

impl Walk {
    fn run(mut self, directory: &Path) -> Result<Checksum, Failure> {
        if !directory.is_dir() {
            let message = format!("{} is not a directory", directory.display());
            return Err(Failure::new(Code::NotFound, message).with_reason("DIRECTORY_NOT_FOUND"));
        }
        let (mut files, mut unreadable) = self.find(directory)?;
        files.sort_by(|one, other| one.relative.cmp(&other.relative));
        self.total_bytes = files.iter().map(|file| file.size).sum();
        let mut list = Sha256::new();
        for file in &files {
            match self.hash(file, files.len()) {
                Ok(digest) => {
                    list.update(hex(&digest));
                    list.update(b"  ");
                    list.update(&file.relative);
                    list.update(b"\n");
                    self.files += 1;
                }
                Err(HashError::Stopped) => return Err(Failure::cancelled()),
                Err(HashError::Unreadable(_)) => unreadable += 1,
            }
        }
        self.report("hashing", files.len());
        Ok(Checksum {
            directory: directory.display().to_string(),
            files: count(self.files),
            bytes: i64::try_from(self.bytes).unwrap_or(i64::MAX),
            sha256: hex(&list.finalize()),
            unreadable,
        })
    }

    /// Finds the files first, so that the progress has a total.
    fn find(&mut self, directory: &Path) -> Result<(Vec<Found>, i64), Failure> {
        let (mut files, mut unreadable) = (Vec::new(), 0);
        for entry in WalkDir::new(directory) {
            if self.context.is_cancelled() {
                return Err(Failure::cancelled());
            }
            match entry.and_then(|entry| Ok((entry.metadata()?, entry))) {
                Ok((metadata, entry)) if metadata.is_file() => {
                    self.total_bytes += metadata.len();
                    let relative = entry.path().strip_prefix(directory).unwrap_or(entry.path());
                    let relative = relative.as_os_str().as_encoded_bytes().to_vec();
                    files.push(Found {
                        path: entry.into_path(),
                        relative,
                        size: metadata.len(),
                    });
                    if files.len() % 1000 == 0 {
                        self.report("scanning", files.len());
                    }
                }
                Ok(_) => {}
                Err(_) => unreadable += 1,
            }
        }
        Ok((files, unreadable))
    }

    fn hash(&mut self, file: &Found, files: usize) -> Result<[u8; 32], HashError> {
        let mut reader = File::open(&file.path)?;
        let mut digest = Sha256::new();
        let mut chunk = vec![
            0;
            CHUNK
                .min(usize::try_from(file.size).unwrap_or(CHUNK))
                .max(4096)
        ];
        loop {
            if self.context.is_cancelled() {
                return Err(HashError::Stopped);
            }
            let read = match reader.read(&mut chunk) {
                Ok(0) => return Ok(digest.finalize().into()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            digest.update(&chunk[..read]);
            self.bytes += read as u64;
            self.report("hashing", files);
        }
    }

    fn report(&self, stage: &str, files: usize) {
        let elapsed = self.started.elapsed().as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let (done, total, rate) = (
            self.bytes as f64,
            self.total_bytes as f64,
            self.bytes as f64 / elapsed,
        );
        let left = if 0.0 < rate {
            ((total - done) / rate).max(0.0)
        } else {
            0.0
        };
        let is_hashing = stage == "hashing";
        self.context.progress(Progress {
            fraction: (is_hashing && 0.0 < total).then(|| (done / total).min(1.0)),
            done_units: i64::try_from(self.bytes).unwrap_or(i64::MAX),
            total_units: if is_hashing {
                i64::try_from(self.total_bytes).unwrap_or(i64::MAX)
            } else {
                0
            },
            unit: "bytes".to_owned(),
            stage: stage.to_owned(),
            message: if is_hashing {
                format!(
                    "{} of {files} files, {:.0} MiB/s",
                    self.files,
                    rate / 1_048_576.0
                )
            } else {
                format!("{files} files found")
            },
            eta: (is_hashing && 0.0 < rate)
                .then(|| (self.context.now() + Duration::from_secs_f64(left)).into()),
        });
    }
}

/// Why a file has no hash.
enum HashError {
    Stopped,
    Unreadable(#[expect(dead_code, reason = "unreadable files are only counted")] io::Error),
}

impl From<io::Error> for HashError {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn count(files: usize) -> i64 {
    i64::try_from(files).unwrap_or(i64::MAX)
}
