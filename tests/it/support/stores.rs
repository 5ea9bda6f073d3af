//! The store that this process tries the behaviour over. The environment says
//! it, because a test cannot: `over_stores` runs this program again for each.

#[cfg(feature = "sqlite")]
use std::path::PathBuf;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

#[cfg(feature = "sqlite")]
use longrunning::{BoxFuture, Entry, Journal, JournalError, Show, Then};

/// A directory in which each server gets a SQLite file of its own.
#[cfg(feature = "sqlite")]
pub(crate) const SQLITE: &str = "LONGRUNNING_TEST_SQLITE";

thread_local! {
    /// Of a test whose runtime has one thread, which is its own.
    static UNDER_WAY: Arc<AtomicUsize> = Arc::default();
}

/// How many changes the journals of this test, whose runtime has one thread,
/// are keeping just now.
pub(crate) fn appends_under_way() -> usize {
    UNDER_WAY.with(|under_way| under_way.load(Ordering::Acquire))
}

/// The file of the next server; none if it keeps operations in memory.
#[cfg(feature = "sqlite")]
pub(crate) fn sqlite_file() -> Option<PathBuf> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let directory = PathBuf::from(std::env::var_os(SQLITE)?);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Some(directory.join(format!("{number}.db")))
}

/// A journal whose appends are counted while they are under way.
#[cfg(feature = "sqlite")]
pub(crate) struct Counted<J>(pub(crate) J);

#[cfg(feature = "sqlite")]
impl<J: Journal> Journal for Counted<J> {
    fn replay(&self, show: Show) -> BoxFuture<'_, Result<(), JournalError>> {
        self.0.replay(show)
    }

    fn append(&self, entry: Entry, then: Then) {
        let under_way = UNDER_WAY.with(Clone::clone);
        under_way.fetch_add(1, Ordering::AcqRel);
        let counted = Then::new(move |kept| {
            then.call(kept);
            under_way.fetch_sub(1, Ordering::AcqRel);
        });
        self.0.append(entry, counted);
    }

    fn newest(&self) -> Option<longrunning::Timestamp> {
        self.0.newest()
    }

    fn trouble(&self) -> Option<String> {
        self.0.trouble()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.0.close()
    }
}
