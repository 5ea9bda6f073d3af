//! The store that this process tries the behaviour over. The environment says
//! it, because a test cannot: `over_stores` runs this program again for each.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

/// A directory in which each server gets a SQLite file of its own.
pub(crate) const SQLITE: &str = "LONGRUNNING_TEST_SQLITE";

/// The file of the next server; none if it keeps operations in memory.
pub(crate) fn sqlite_file() -> Option<PathBuf> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let directory = PathBuf::from(std::env::var_os(SQLITE)?);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Some(directory.join(format!("{number}.db")))
}
