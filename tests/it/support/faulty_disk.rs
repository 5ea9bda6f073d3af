//! A disk with injected faults: a preloaded C library counts the system calls of
//! the program, fails a chosen one, and tracks what would survive a power loss.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use super::rng::TestRng;

/// The exit code of a program on a machine that lost its power.
pub(crate) const POWER_LOSS_EXIT_CODE: i32 = 86;

/// Unit of a torn write: any subset of sectors may have been written at a power loss.
const SECTOR_BYTES: usize = 512;

const SYSCALL_CLASS_COUNT: u64 = 8;

// Word offsets in the control file, in the order of `struct control`.
const CLASS_WORD: u64 = SYSCALL_CLASS_COUNT;
const FAULT_WORD: u64 = SYSCALL_CLASS_COUNT + 1;
const IS_PERSISTENT_WORD: u64 = SYSCALL_CLASS_COUNT + 2;
const FAULT_CALL_NUMBER_WORD: u64 = SYSCALL_CLASS_COUNT + 3;
const FAILED_CALLS_WORD: u64 = SYSCALL_CLASS_COUNT + 4;
const IS_FULL_WORD: u64 = SYSCALL_CLASS_COUNT + 5;

/// A class of system calls. The order is part of the control file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SyscallClass {
    Open,
    Read,
    Write,
    Sync,
    Truncate,
    Unlink,
    /// An fsync of the directory, which makes file names durable.
    SyncDirectory,
    Rename,
}

/// What happens at a call. The order is part of the control file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DiskFault {
    /// The call fails with EIO.
    IoError = 1,
    /// The call fails with ENOSPC, possibly after a partial write.
    NoSpace,
    /// Only a part is written; a retry writes the rest.
    ShortWrite,
    /// The machine loses its power before the call.
    PowerLoss,
    /// fsync succeeds without making anything durable.
    LostSync,
}

/// A fault and the call at which it occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FaultPoint {
    pub(crate) class: SyscallClass,
    /// The 1-based number of the call in its class.
    pub(crate) call_number: u64,
    pub(crate) fault: DiskFault,
    pub(crate) recovery: FaultRecovery,
}

/// When a fault ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FaultRecovery {
    /// After one call.
    Once,
    /// After a change was rejected.
    OnRejectedWrite,
    /// After a change was rejected and the program was killed.
    OnKill,
    /// After a change was rejected and the program was shut down.
    OnShutdown,
}

/// The content of one file.
struct DiskFile {
    /// The content that programs read.
    cached: Vec<u8>,
    /// The content that would survive a power loss.
    durable: Vec<u8>,
    /// Whether its name would survive a power loss.
    is_name_durable: bool,
}

/// A disk with injected faults. Its files are removed when it is dropped.
pub(crate) struct FaultyDisk {
    root: tempfile::TempDir,
    control: fs::File,
    library: &'static Path,
}

// === impl SyscallClass ===

impl SyscallClass {
    pub(crate) const ALL: [Self; 8] = [
        Self::Open,
        Self::Read,
        Self::Write,
        Self::Sync,
        Self::Truncate,
        Self::Unlink,
        Self::SyncDirectory,
        Self::Rename,
    ];
}

// === impl FaultyDisk ===

impl FaultyDisk {
    /// Creates an empty disk, or prints why it is unsupported here and returns `None`.
    pub(crate) fn new() -> Option<Self> {
        let library = preload_library()?;
        let root = tempfile::tempdir().unwrap();
        for directory in ["store", "durable"] {
            fs::create_dir(root.path().join(directory)).unwrap();
        }
        let control = fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(root.path().join("control"))
            .unwrap();
        control.set_len(4096).unwrap();
        Some(Self {
            root,
            control,
            library,
        })
    }

    /// Returns the database path for the program.
    pub(crate) fn database_path(&self) -> PathBuf {
        self.root.path().join("store").join("operations.db")
    }

    /// Returns the environment with which a program uses this disk.
    pub(crate) fn env_vars(&self) -> [(&'static str, OsString); 4] {
        // SQLite resolves symbolic links before it opens a file.
        let root = self.root.path().canonicalize().unwrap();
        [
            ("LD_PRELOAD", self.library.into()),
            ("FAULTY_DISK_DIRECTORY", root.join("store").into()),
            ("FAULTY_DISK_CONTROL_FILE", root.join("control").into()),
            ("FAULTY_DISK_DURABLE_DIRECTORY", root.join("durable").into()),
        ]
    }

    /// Returns the number of calls of a class so far.
    pub(crate) fn call_count(&self, class: SyscallClass) -> u64 {
        self.read_word(class as u64)
    }

    /// Returns the number of failed calls so far.
    pub(crate) fn failed_call_count(&self) -> u64 {
        self.read_word(FAILED_CALLS_WORD)
    }

    /// Injects a fault, which replaces the one before.
    pub(crate) fn inject(&self, point: FaultPoint) {
        let is_persistent = point.recovery != FaultRecovery::Once;
        self.write_word(CLASS_WORD, point.class as u64);
        self.write_word(FAULT_WORD, point.fault as u64);
        self.write_word(IS_PERSISTENT_WORD, u64::from(is_persistent));
        // Last, because it enables the fault.
        self.write_word(FAULT_CALL_NUMBER_WORD, point.call_number);
    }

    /// Ends the fault.
    pub(crate) fn clear_fault(&self) {
        self.write_word(FAULT_CALL_NUMBER_WORD, 0);
        self.write_word(IS_FULL_WORD, 0);
    }

    fn read_word(&self, index: u64) -> u64 {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, index * 8).unwrap();
        u64::from_ne_bytes(bytes)
    }

    fn write_word(&self, index: u64, value: u64) {
        let bytes = value.to_ne_bytes();
        self.control.write_all_at(&bytes, index * 8).unwrap();
    }

    /// Copies the files as the next process reads them.
    pub(crate) fn copy_cached(&self) -> tempfile::TempDir {
        self.copy_with(|file| Some(file.cached))
    }

    /// Copies what survives a power loss now if only synced data was written.
    pub(crate) fn copy_durable(&self) -> tempfile::TempDir {
        self.copy_with(|file| file.is_name_durable.then_some(file.durable))
    }

    /// Copies what survives a power loss now if random sectors of the unsynced data
    /// were written too.
    pub(crate) fn copy_torn(&self, rng: &mut TestRng) -> tempfile::TempDir {
        self.copy_with(|file| {
            if !file.is_name_durable && rng.one_in(2) {
                return None;
            }
            let (mut torn, cached) = (file.durable, file.cached);
            if rng.one_in(2) {
                torn.resize(cached.len(), 0);
            }
            for (index, sector) in torn.chunks_mut(SECTOR_BYTES).enumerate() {
                let offset = index * SECTOR_BYTES;
                let new = cached.get(offset..offset + sector.len());
                if let Some(new) = new.filter(|new| *new != &*sector)
                    && rng.one_in(2)
                {
                    sector.copy_from_slice(new);
                }
            }
            Some(torn)
        })
    }

    /// Copies the content that `surviving_content` returns for each file, or omits the file.
    fn copy_with(
        &self,
        mut surviving_content: impl FnMut(DiskFile) -> Option<Vec<u8>>,
    ) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(self.root.path().join("store")).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            // Shared memory does not survive a power loss.
            if name.to_string_lossy().ends_with("-shm") {
                continue;
            }
            let durable = self.root.path().join("durable");
            let mut name_marker = name.clone();
            name_marker.push(".named");
            let file = DiskFile {
                cached: fs::read(entry.path()).unwrap(),
                durable: fs::read(durable.join(&name)).unwrap(),
                is_name_durable: durable.join(name_marker).exists(),
            };
            if let Some(content) = surviving_content(file) {
                fs::write(copy.path().join(name), content).unwrap();
            }
        }
        copy
    }
}

/// Returns the path of the compiled C library, or `None` if it cannot be compiled here.
fn preload_library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| compile_preload_library().ok())
        .as_deref()
}

fn compile_preload_library() -> io::Result<PathBuf> {
    let skip = |reason: &str| {
        eprintln!("SKIPPED: disk faults: {reason}");
        Err(io::ErrorKind::Unsupported.into())
    };
    if !cfg!(all(
        target_os = "linux",
        target_env = "gnu",
        target_pointer_width = "64"
    )) {
        return skip("system calls are only intercepted on 64-bit Linux with glibc");
    }
    let directory = tempfile::Builder::new()
        .prefix("faulty_disk")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let (source, output) = (
        directory.path().join("faulty_disk.c"),
        directory.path().join("faulty_disk.so"),
    );
    fs::write(&source, include_str!("faulty_disk.c"))?;
    let result = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&output, &source])
        .args(["-ldl", "-lpthread"])
        .output();
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return skip("no C compiler (cc) was found");
        }
        compiled => {
            let compiled = compiled?;
            let error_text = String::from_utf8_lossy(&compiled.stderr);
            assert!(compiled.status.success(), "{error_text}");
        }
    }
    // Atomic, because another test process may compile it at the same time.
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faulty_disk.so");
    fs::rename(output, &library)?;
    Ok(library)
}
