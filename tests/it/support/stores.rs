//! The store that this process tries the behaviour over. The environment says
//! it, because a test cannot: `over_stores` runs this program again for each.

#[cfg(feature = "sqlite")]
use std::path::PathBuf;
use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

#[cfg(feature = "postgres")]
use std::{
    cell::RefCell,
    sync::{OnceLock, Weak},
};

#[cfg(feature = "postgres")]
use longrunning::{
    Apply, Clock, Operation, OperationName, Parent, PostgresJournal, PostgresOptions, Shared,
};
use longrunning::{BoxFuture, Entry, Journal, JournalError, Show, Then};
#[cfg(feature = "postgres")]
use tokio::runtime::Handle;
#[cfg(feature = "postgres")]
use tokio_util::task::AbortOnDropHandle;

/// A directory in which each server gets a SQLite file of its own.
#[cfg(feature = "sqlite")]
pub(crate) const SQLITE: &str = "LONGRUNNING_TEST_SQLITE";

/// If it is there, each server gets a schema of its own in PostgreSQL.
#[cfg(feature = "postgres")]
pub(crate) const POSTGRES: &str = "LONGRUNNING_TEST_POSTGRES";

#[cfg(feature = "postgres")]
thread_local! {
    /// The journal that was opened last by this test, and where.
    static LAST: RefCell<Option<(Weak<PostgresJournal>, PostgresOptions, Clock)>> = RefCell::default();
}

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

/// If it is there, each server is three, and each call goes to one of them.
#[cfg(feature = "postgres")]
pub(crate) const REPLICAS: &str = "LONGRUNNING_TEST_REPLICAS";

/// Whether each server is three.
#[cfg(feature = "postgres")]
pub(crate) fn has_replicas() -> bool {
    std::env::var_os(REPLICAS).is_some()
}

/// Whether the behaviour is tried over PostgreSQL.
#[cfg(feature = "postgres")]
pub(crate) fn is_postgres() -> bool {
    std::env::var_os(POSTGRES).is_some()
}

/// A journal that lives on a runtime of its own, whose time goes on when a test
/// pauses its own.
#[cfg(feature = "postgres")]
pub(crate) struct Aside(Arc<PostgresJournal>, Clock);

#[cfg(feature = "postgres")]
impl Aside {
    fn runtime() -> &'static tokio::runtime::Runtime {
        static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
        RUNTIME.get_or_init(|| tokio::runtime::Runtime::new().unwrap())
    }

    /// In a schema of its own.
    pub(crate) fn open() -> Self {
        let options = super::postgres::schema().expect("PostgreSQL is there");
        let clock = Clock::system();
        let journal = Self::open_in(options.clone(), clock);
        LAST.set(Some((Arc::downgrade(&journal.0), options, clock)));
        journal
    }

    /// Two more in the schema of the one that was opened last, if that is in use.
    pub(crate) fn others() -> Vec<Self> {
        match LAST.take() {
            Some((last, options, clock)) if last.strong_count() != 0 => {
                let other = || Self::open_in(options.clone(), clock);
                vec![other(), other()]
            }
            _ => Vec::new(),
        }
    }

    fn open_in(options: PostgresOptions, clock: Clock) -> Self {
        // So that servers of three have to read what they do not show.
        let options = PostgresOptions {
            view_limit: has_replicas().then_some(3),
            ..options
        };
        let (tell, told) = std::sync::mpsc::channel();
        Self::runtime().spawn(async move {
            tell.send(super::postgres::journal(&options).await).unwrap();
        });
        Self(Arc::new(told.recv().unwrap()), clock)
    }

    /// What comes of a future there. Until then the caller's time stands still.
    async fn there<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
        let _still = standstill();
        Self::runtime().spawn(future).await.unwrap()
    }
}

/// Keeps the paused time of the current runtime from going on by itself.
#[cfg(feature = "postgres")]
fn standstill() -> std::sync::mpsc::Sender<()> {
    let (go, wait) = std::sync::mpsc::channel();
    // Time goes on only when nobody is at work, and this counts as work.
    tokio::task::spawn_blocking(move || wait.recv());
    go
}

#[cfg(feature = "postgres")]
impl Journal for Aside {
    fn replay(&self, show: Show) -> BoxFuture<'_, Result<(), JournalError>> {
        let journal = self.0.clone();
        Box::pin(Self::there(async move { journal.replay(show).await }))
    }

    fn append(&self, entry: Entry, then: Then) {
        let (runtime, still) = (Handle::current(), standstill());
        let back = Then::new(move |kept| {
            let _time = runtime.enter();
            then.call(kept);
            drop(still);
        });
        self.0.append(entry, back);
    }

    fn trouble(&self) -> Option<String> {
        self.0.trouble()
    }

    fn shared(&self) -> Option<&dyn Shared> {
        Some(self)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        let journal = self.0.clone();
        Box::pin(Self::there(async move { journal.close().await }))
    }
}

#[cfg(feature = "postgres")]
impl Shared for Aside {
    fn fetch<'a>(
        &'a self,
        name: &'a OperationName,
    ) -> BoxFuture<'a, Result<Option<Arc<Operation>>, JournalError>> {
        let (journal, name) = (self.0.clone(), name.clone());
        Box::pin(Self::there(async move { journal.fetch(&name).await }))
    }

    /// In the order of the calls, which time that stands still does not tell.
    fn number(&self) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// In time that can be paused.
    fn clock(&self) -> Option<Clock> {
        Some(self.1)
    }

    fn view_limit(&self) -> Option<usize> {
        self.0.view_limit()
    }

    fn older<'a>(
        &'a self,
        parent: Option<&'a Parent>,
        before: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Arc<Operation>>, JournalError>> {
        let (journal, parent) = (self.0.clone(), parent.cloned());
        Box::pin(Self::there(async move {
            journal.older(parent.as_ref(), before, limit).await
        }))
    }

    fn catch_up(&self) -> BoxFuture<'_, Result<(), JournalError>> {
        let journal = self.0.clone();
        Box::pin(Self::there(async move { journal.catch_up().await }))
    }

    fn follow(&self, apply: Apply) -> BoxFuture<'_, ()> {
        let (journal, runtime) = (self.0.clone(), Handle::current());
        let apply: Apply = Arc::new(move |news, since| {
            let taken_in = runtime.spawn(apply(news, since));
            // The runtime of a test that has ended takes in nothing.
            Box::pin(async { taken_in.await.unwrap_or(Ok(())) })
        });
        let following = async move { journal.follow(apply).await };
        // Who follows no longer lets go of the journal.
        let following = AbortOnDropHandle::new(Self::runtime().spawn(following));
        Box::pin(async { following.await.unwrap() })
    }
}

/// A journal whose appends are counted while they are under way.
pub(crate) struct Counted<J>(pub(crate) J);

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

    fn shared(&self) -> Option<&dyn longrunning::Shared> {
        self.0.shared()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.0.close()
    }
}
