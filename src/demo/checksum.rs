//! The handler of the demo: hashes every file below a directory.

use std::{
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
/// The number of directories hashed at once.
pub(crate) const CONCURRENCY: usize = 2;
/// The number of bytes read between two checks for cancellation.
const CHUNK_BYTES: usize = 256 * 1024;

/// A file to hash. `size_bytes` is its size when it was found.
struct FileEntry {
    path: PathBuf,
    relative_path: Vec<u8>,
    size_bytes: u64,
}

/// The state of a running checksum operation.
struct ChecksumJob {
    context: Context,
    started: Instant,
    total_bytes: u64,
    hashed_bytes: u64,
    hashed_files: usize,
}

/// Hashes the directory of the input. Files are read on a blocking thread.
///
/// The checksum is the SHA-256 of the output of `sha256sum` for all files, sorted
/// by path.
pub(crate) async fn compute_checksum(context: Context) -> Result<Any, Failure> {
    let request: CreateChecksumRequest = context.input_as()?;
    let job = ChecksumJob {
        context,
        started: Instant::now(),
        total_bytes: 0,
        hashed_bytes: 0,
        hashed_files: 0,
    };
    let result = tokio::task::spawn_blocking(move || job.run(Path::new(&request.directory))).await;
    let checksum = result.map_err(|error| {
        Failure::new(Code::Internal, format!("checksum task failed: {error}"))
    })??;
    Ok(Payload::pack(&checksum).any().clone())
}

// === impl ChecksumJob ===

impl ChecksumJob {
    fn run(mut self, directory: &Path) -> Result<Checksum, Failure> {
        if !directory.is_dir() {
            let message = format!("{} is not a directory", directory.display());
            return Err(Failure::new(Code::NotFound, message).with_reason("DIRECTORY_NOT_FOUND"));
        }
        let (mut files, mut unreadable) = self.collect_files(directory)?;
        files.sort_by(|left, right| left.relative_path.cmp(&right.relative_path));
        self.total_bytes = files.iter().map(|file| file.size_bytes).sum();
        let mut list_hasher = Sha256::new();
        for file in &files {
            match self.hash_file(file, files.len()) {
                Ok(Some(digest)) => {
                    list_hasher.update(hex(&digest));
                    list_hasher.update(b"  ");
                    list_hasher.update(&file.relative_path);
                    list_hasher.update(b"\n");
                    self.hashed_files += 1;
                }
                Ok(None) => return Err(Failure::cancelled()),
                Err(_) => unreadable += 1,
            }
        }
        self.report_progress("hashing", files.len());
        Ok(Checksum {
            directory: directory.display().to_string(),
            files: i64::try_from(self.hashed_files).unwrap_or(i64::MAX),
            bytes: i64::try_from(self.hashed_bytes).unwrap_or(i64::MAX),
            sha256: hex(&list_hasher.finalize()),
            unreadable,
        })
    }

    /// Lists all files, so that progress has a total. Returns them and the number
    /// of unreadable entries.
    fn collect_files(&mut self, directory: &Path) -> Result<(Vec<FileEntry>, i64), Failure> {
        let (mut files, mut unreadable) = (Vec::new(), 0);
        for entry in WalkDir::new(directory) {
            if self.context.is_cancelled() {
                return Err(Failure::cancelled());
            }
            match entry.and_then(|entry| Ok((entry.metadata()?, entry))) {
                Ok((metadata, entry)) if metadata.is_file() => {
                    self.total_bytes += metadata.len();
                    let relative_path =
                        entry.path().strip_prefix(directory).unwrap_or(entry.path());
                    let relative_path = relative_path.as_os_str().as_encoded_bytes().to_vec();
                    files.push(FileEntry {
                        path: entry.into_path(),
                        relative_path,
                        size_bytes: metadata.len(),
                    });
                    if files.len() % 1000 == 0 {
                        self.report_progress("scanning", files.len());
                    }
                }
                Ok(_) => {}
                Err(_) => unreadable += 1,
            }
        }
        Ok((files, unreadable))
    }

    /// Returns the SHA-256 of a file, or `None` if the operation is cancelled.
    fn hash_file(&mut self, file: &FileEntry, file_count: usize) -> io::Result<Option<[u8; 32]>> {
        let mut reader = File::open(&file.path)?;
        let mut hasher = Sha256::new();
        let file_bytes = usize::try_from(file.size_bytes).unwrap_or(CHUNK_BYTES);
        let mut chunk = vec![0; file_bytes.clamp(4096, CHUNK_BYTES)];
        loop {
            if self.context.is_cancelled() {
                return Ok(None);
            }
            let read = match reader.read(&mut chunk) {
                Ok(0) => return Ok(Some(hasher.finalize().into())),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            hasher.update(&chunk[..read]);
            self.hashed_bytes += read as u64;
            self.report_progress("hashing", file_count);
        }
    }

    fn report_progress(&self, stage: &str, file_count: usize) {
        let elapsed = self.started.elapsed().as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "displayed only")]
        let (done, total, bytes_per_sec) = (
            self.hashed_bytes as f64,
            self.total_bytes as f64,
            self.hashed_bytes as f64 / elapsed,
        );
        let mut progress = Progress {
            done_units: i64::try_from(self.hashed_bytes).unwrap_or(i64::MAX),
            unit: "bytes".to_owned(),
            stage: stage.to_owned(),
            message: format!("{file_count} files found"),
            ..Progress::default()
        };
        if stage == "hashing" {
            progress.fraction = (total > 0.0).then(|| (done / total).min(1.0));
            progress.total_units = i64::try_from(self.total_bytes).unwrap_or(i64::MAX);
            let (files, mib_per_sec) = (self.hashed_files, bytes_per_sec / 1_048_576.0);
            progress.message = format!("{files} of {file_count} files, {mib_per_sec:.0} MiB/s");
            progress.eta = (bytes_per_sec > 0.0).then(|| {
                let remaining_secs = ((total - done) / bytes_per_sec).max(0.0);
                (self.context.now() + Duration::from_secs_f64(remaining_secs)).into()
            });
        }
        self.context.report_progress(progress);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
