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

use super::dice::Dice;

/// The exit code of a program whose machine lost its power.
pub(crate) const POWER_CUT: i32 = 86;

/// Before the power was lost, the machine had written any of these alone.
const SECTOR: usize = 512;

const CLASSES: u64 = 8;

/// What kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Open,
    Read,
    Write,
    Sync,
    Truncate,
    Unlink,
    /// A directory is made durable, and with it the names in it.
    Names,
    Rename,
}

/// What happens at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// It fails with EIO.
    Fail = 1,
    /// There is no room, or just for a part.
    Full,
    /// A part is written; the rest is, when it is asked for again.
    Short,
    /// The machine loses its power before it.
    Cut,
    /// It is said to be made durable, and is not.
    Lie,
}

/// A fault at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) class: Class,
    /// The number of the call in its class, from 1.
    pub(crate) at: u64,
    pub(crate) fault: Fault,
    pub(crate) course: Course,
}

/// What becomes of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Course {
    /// Just one call meets it.
    Once,
    /// It stays until a change is refused.
    Heals,
    /// It stays until then, and the program is killed.
    Killed,
    /// It stays until then, and the program is asked to end.
    Stopped,
}

/// A file on a disk.
struct Kept {
    /// What programs see.
    cached: Vec<u8>,
    /// What would survive a loss of power.
    durable: Vec<u8>,
    /// Whether its name would.
    is_named: bool,
}

/// A disk; its files go when it is dropped.
pub(crate) struct Disk {
    root: tempfile::TempDir,
    control: fs::File,
    library: &'static Path,
}

impl Class {
    pub(crate) const ALL: [Self; 8] = [
        Self::Open,
        Self::Read,
        Self::Write,
        Self::Sync,
        Self::Truncate,
        Self::Unlink,
        Self::Names,
        Self::Rename,
    ];
}

// === impl Disk ===

impl Disk {
    /// An empty disk; none, and a word why, where there cannot be one.
    pub(crate) fn new() -> Option<Self> {
        let library = library()?;
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
    pub(crate) fn file(&self) -> PathBuf {
        self.root.path().join("store").join("operations.db")
    }

    /// What a program needs to see this disk.
    pub(crate) fn environment(&self) -> [(&'static str, OsString); 4] {
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
    pub(crate) fn calls(&self, class: Class) -> u64 {
        self.number(class as u64)
    }

    /// How many calls have failed.
    pub(crate) fn failed(&self) -> u64 {
        self.number(CLASSES + 4)
    }

    /// From now on there is a fault at a call.
    pub(crate) fn set(&self, point: Point) {
        self.put(CLASSES, point.class as u64);
        self.put(CLASSES + 1, point.fault as u64);
        self.put(CLASSES + 2, u64::from(point.course != Course::Once));
        self.put(CLASSES + 3, point.at);
    }

    /// From now on all calls have success.
    pub(crate) fn mend(&self) {
        self.put(CLASSES + 3, 0);
        self.put(CLASSES + 5, 0);
    }

    fn number(&self, index: u64) -> u64 {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, index * 8).unwrap();
        u64::from_ne_bytes(bytes)
    }

    fn put(&self, index: u64, number: u64) {
        let bytes = number.to_ne_bytes();
        self.control.write_all_at(&bytes, index * 8).unwrap();
    }

    /// A copy of what programs see after the death of this one.
    pub(crate) fn copy(&self) -> tempfile::TempDir {
        self.copy_with(|kept| Some(kept.cached))
    }

    /// A copy of what is left when the power is lost now, and nothing was
    /// written that nobody waited for.
    pub(crate) fn copy_durable(&self) -> tempfile::TempDir {
        self.copy_with(|kept| kept.is_named.then_some(kept.durable))
    }

    /// A copy of what is left when the power is lost now, and chance had written
    /// some of the rest.
    pub(crate) fn copy_torn(&self, dice: &mut Dice) -> tempfile::TempDir {
        self.copy_with(|kept| {
            if !kept.is_named && dice.once_in(2) {
                return None;
            }
            let (mut torn, cached) = (kept.durable, kept.cached);
            if dice.once_in(2) {
                torn.resize(cached.len(), 0);
            }
            for (at, sector) in torn.chunks_mut(SECTOR).enumerate() {
                let at = at * SECTOR;
                let new = cached.get(at..at + sector.len());
                if let Some(new) = new.filter(|new| *new != &*sector)
                    && dice.once_in(2)
                {
                    sector.copy_from_slice(new);
                }
            }
            Some(torn)
        })
    }

    /// Copies what is left of each file, if it is there at all.
    fn copy_with(&self, mut left: impl FnMut(Kept) -> Option<Vec<u8>>) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(self.root.path().join("store")).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            // It is memory that processes share.
            if name.to_string_lossy().ends_with("-shm") {
                continue;
            }
            let durable = self.root.path().join("durable");
            let mut mark = name.clone();
            mark.push(".named");
            let kept = Kept {
                cached: fs::read(entry.path()).unwrap(),
                durable: fs::read(durable.join(&name)).unwrap(),
                is_named: durable.join(mark).exists(),
            };
            if let Some(left) = left(kept) {
                fs::write(copy.path().join(name), left).unwrap();
            }
        }
        copy
    }
}

/// Compiles `disk.c` once.
fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    LIBRARY.get_or_init(|| compile().ok()).as_deref()
}

fn compile() -> io::Result<PathBuf> {
    let skipped = |why: &str| {
        eprintln!("SKIPPED: no faults of the disk were tried: {why}");
        Err(io::ErrorKind::Unsupported.into())
    };
    if !cfg!(all(
        target_os = "linux",
        target_env = "gnu",
        target_pointer_width = "64"
    )) {
        return skipped("calls are only watched on 64-bit Linux with glibc");
    }
    let directory = tempfile::Builder::new()
        .prefix("disk")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let (source, fresh) = (
        directory.path().join("disk.c"),
        directory.path().join("disk.so"),
    );
    fs::write(&source, include_str!("disk.c"))?;
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&fresh, &source])
        .args(["-ldl", "-lpthread"])
        .output();
    match compiled {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return skipped("there is no C compiler, `cc`");
        }
        compiled => {
            let compiled = compiled?;
            let complaint = String::from_utf8_lossy(&compiled.stderr);
            assert!(compiled.status.success(), "{complaint}");
        }
    }
    // Another process may do the same just now.
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("disk.so");
    fs::rename(fresh, &library)?;
    Ok(library)
}
