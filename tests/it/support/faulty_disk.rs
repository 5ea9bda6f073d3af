//! A disk of the test's own below the program, by way of `disk.c`: it counts
//! calls, fails at a chosen one, and knows what a loss of power would leave.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use super::rng::TestRng;

/// The exit code of a program whose machine lost its power.
pub(crate) const POWER_LOSS_EXIT_CODE: i32 = 86;

/// Before the power was lost, the machine had written any of these alone.
const SECTOR_BYTES: usize = 512;

const SYSCALL_CLASS_COUNT: u64 = 8;

/// What kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SyscallClass {
    Open,
    Read,
    Write,
    Sync,
    Truncate,
    Unlink,
    /// A directory is made durable, and with it the names in it.
    SyncDirectory,
    Rename,
}

/// What happens at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DiskFault {
    /// It fails with EIO.
    IoError = 1,
    /// There is no room, or just for a part.
    NoSpace,
    /// A part is written; the rest is, when it is asked for again.
    ShortWrite,
    /// The machine loses its power before it.
    PowerLoss,
    /// It is said to be made durable, and is not.
    LostSync,
}

/// A fault at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FaultPoint {
    pub(crate) class: SyscallClass,
    /// The number of the call in its class, from 1.
    pub(crate) call_number: u64,
    pub(crate) fault: DiskFault,
    pub(crate) recovery: FaultRecovery,
}

/// What becomes of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FaultRecovery {
    /// Just one call meets it.
    Once,
    /// It stays until a change is refused.
    OnRejectedWrite,
    /// It stays until then, and the program is killed.
    OnKill,
    /// It stays until then, and the program is asked to end.
    OnShutdown,
}

/// A file on a disk.
struct DiskFile {
    /// What programs see.
    cached: Vec<u8>,
    /// What would survive a loss of power.
    durable: Vec<u8>,
    /// Whether its name would.
    is_named: bool,
}

/// A disk; its files go when it is dropped.
pub(crate) struct FaultyDisk {
    root: tempfile::TempDir,
    control: fs::File,
    library: &'static Path,
}

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

// === impl Disk ===

impl FaultyDisk {
    /// An empty disk; none, and a word why, where there cannot be one.
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

    /// The file that a program may keep here.
    pub(crate) fn database_path(&self) -> PathBuf {
        self.root.path().join("store").join("operations.db")
    }

    /// What a program needs to see this disk.
    pub(crate) fn env_vars(&self) -> [(&'static str, OsString); 4] {
        // The program asks for the real path.
        let root = self.root.path().canonicalize().unwrap();
        [
            ("LD_PRELOAD", self.library.into()),
            ("DISK_DIRECTORY", root.join("store").into()),
            ("DISK_CONTROL", root.join("control").into()),
            ("DISK_DURABLE", root.join("durable").into()),
        ]
    }

    /// How many calls of a class there were.
    pub(crate) fn call_count(&self, class: SyscallClass) -> u64 {
        self.read_counter(class as u64)
    }

    /// How many calls have failed.
    pub(crate) fn failed_call_count(&self) -> u64 {
        self.read_counter(SYSCALL_CLASS_COUNT + 4)
    }

    /// From now on there is a fault at a call.
    pub(crate) fn inject(&self, point: FaultPoint) {
        self.write_counter(SYSCALL_CLASS_COUNT, point.class as u64);
        self.write_counter(SYSCALL_CLASS_COUNT + 1, point.fault as u64);
        self.write_counter(
            SYSCALL_CLASS_COUNT + 2,
            u64::from(point.recovery != FaultRecovery::Once),
        );
        self.write_counter(SYSCALL_CLASS_COUNT + 3, point.call_number);
    }

    /// From now on all calls have success.
    pub(crate) fn clear_fault(&self) {
        self.write_counter(SYSCALL_CLASS_COUNT + 3, 0);
        self.write_counter(SYSCALL_CLASS_COUNT + 5, 0);
    }

    fn read_counter(&self, index: u64) -> u64 {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, index * 8).unwrap();
        u64::from_ne_bytes(bytes)
    }

    fn write_counter(&self, index: u64, value: u64) {
        let bytes = value.to_ne_bytes();
        self.control.write_all_at(&bytes, index * 8).unwrap();
    }

    /// A copy of what programs see after the death of this one.
    pub(crate) fn copy_cached(&self) -> tempfile::TempDir {
        self.copy_with(|file| Some(file.cached))
    }

    /// A copy of what is left when the power is lost now, and nothing was
    /// written that nobody waited for.
    pub(crate) fn copy_durable(&self) -> tempfile::TempDir {
        self.copy_with(|file| file.is_named.then_some(file.durable))
    }

    /// A copy of what is left when the power is lost now, and chance had written
    /// some of the rest.
    pub(crate) fn copy_torn(&self, rng: &mut TestRng) -> tempfile::TempDir {
        self.copy_with(|file| {
            if !file.is_named && rng.one_in(2) {
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

    /// Copies what is left of each file, if it is there at all.
    fn copy_with(
        &self,
        mut surviving_content: impl FnMut(DiskFile) -> Option<Vec<u8>>,
    ) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(self.root.path().join("store")).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            // It is memory that processes share.
            if name.to_string_lossy().ends_with("-shm") {
                continue;
            }
            let durable = self.root.path().join("durable");
            let mut name_marker = name.clone();
            name_marker.push(".named");
            let file = DiskFile {
                cached: fs::read(entry.path()).unwrap(),
                durable: fs::read(durable.join(&name)).unwrap(),
                is_named: durable.join(name_marker).exists(),
            };
            if let Some(content) = surviving_content(file) {
                fs::write(copy.path().join(name), content).unwrap();
            }
        }
        copy
    }
}

/// Compiles `disk.c` once.
fn preload_library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| compile_preload_library().ok())
        .as_deref()
}

fn compile_preload_library() -> io::Result<PathBuf> {
    let skip = |reason: &str| {
        eprintln!("SKIPPED: no faults of the disk were tried: {reason}");
        Err(io::ErrorKind::Unsupported.into())
    };
    if !cfg!(all(
        target_os = "linux",
        target_env = "gnu",
        target_pointer_width = "64"
    )) {
        return skip("calls are only watched on 64-bit Linux with glibc");
    }
    let directory = tempfile::Builder::new()
        .prefix("disk")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let (source, output) = (
        directory.path().join("disk.c"),
        directory.path().join("disk.so"),
    );
    fs::write(&source, include_str!("faulty_disk.c"))?;
    let result = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&output, &source])
        .args(["-ldl", "-lpthread"])
        .output();
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return skip("there is no C compiler, `cc`");
        }
        compiled => {
            let compiled = compiled?;
            let complaint = String::from_utf8_lossy(&compiled.stderr);
            assert!(compiled.status.success(), "{complaint}");
        }
    }
    // Another process may do the same just now.
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("disk.so");
    fs::rename(output, &library)?;
    Ok(library)
}
