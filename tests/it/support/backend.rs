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

use futures_util::future::BoxFuture;
#[cfg(feature = "postgres")]
use longrunning::{
    ChangeBatch, ChangeFeed, Clock, Operation, OperationName, Parent, PostgresConfig,
    PostgresStorage, SharedStorage,
};
use longrunning::{Completion, LoadSink, Storage, StorageError, Write};
#[cfg(feature = "postgres")]
use tokio::{runtime::Handle, sync::mpsc};
#[cfg(feature = "postgres")]
use tokio_util::task::AbortOnDropHandle;

/// A directory in which each server gets a SQLite file of its own.
#[cfg(feature = "sqlite")]
pub(crate) const SQLITE_DIRECTORY_ENV: &str = "LONGRUNNING_TEST_SQLITE";

/// If it is there, each server gets a schema of its own in PostgreSQL.
#[cfg(feature = "postgres")]
pub(crate) const POSTGRES_URL_ENV: &str = "LONGRUNNING_TEST_POSTGRES";

#[cfg(feature = "postgres")]
thread_local! {
    /// The journal that was opened last by this test, and where.
    static LAST_OPENED: RefCell<Option<(Weak<PostgresStorage>, PostgresConfig, Clock)>> = RefCell::default();
}

thread_local! {
    /// Of a test whose runtime has one thread, which is its own.
    static WRITES_IN_PROGRESS: Arc<AtomicUsize> = Arc::default();
}

/// How many changes the journals of this test, whose runtime has one thread,
/// are keeping just now.
pub(crate) fn writes_in_progress() -> usize {
    WRITES_IN_PROGRESS.with(|count| count.load(Ordering::Acquire))
}

/// The file of the next server; none if it keeps operations in memory.
#[cfg(feature = "sqlite")]
pub(crate) fn next_sqlite_path() -> Option<PathBuf> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let directory = PathBuf::from(std::env::var_os(SQLITE_DIRECTORY_ENV)?);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Some(directory.join(format!("{number}.db")))
}

/// If it is there, each server is three, and each call goes to one of them.
#[cfg(feature = "postgres")]
pub(crate) const REPLICAS_ENV: &str = "LONGRUNNING_TEST_REPLICAS";

/// Whether each server is three.
#[cfg(feature = "postgres")]
pub(crate) fn has_replicas() -> bool {
    std::env::var_os(REPLICAS_ENV).is_some()
}

/// Whether the behaviour is tried over PostgreSQL.
#[cfg(feature = "postgres")]
pub(crate) fn is_postgres() -> bool {
    std::env::var_os(POSTGRES_URL_ENV).is_some()
}

/// A journal that lives on a runtime of its own, whose time goes on when a test
/// pauses its own.
#[cfg(feature = "postgres")]
#[derive(Debug)]
pub(crate) struct IsolatedPostgres(Arc<PostgresStorage>, Clock);

#[cfg(feature = "postgres")]
impl IsolatedPostgres {
    fn runtime() -> &'static tokio::runtime::Runtime {
        static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
        RUNTIME.get_or_init(|| tokio::runtime::Runtime::new().unwrap())
    }

    /// In a schema of its own.
    pub(crate) fn open() -> Self {
        let config = super::postgres::test_config().expect("PostgreSQL is there");
        let clock = Clock::system();
        let storage = Self::open_in(config.clone(), clock);
        LAST_OPENED.set(Some((Arc::downgrade(&storage.0), config, clock)));
        storage
    }

    /// Two more in the schema of the one that was opened last, if that is in use.
    pub(crate) fn open_peers() -> Vec<Self> {
        match LAST_OPENED.take() {
            Some((last, config, clock)) if last.strong_count() != 0 => {
                let open_peer = || Self::open_in(config.clone(), clock);
                vec![open_peer(), open_peer()]
            }
            _ => Vec::new(),
        }
    }

    fn open_in(config: PostgresConfig, clock: Clock) -> Self {
        // So that servers of three have to read what they do not show.
        let config = PostgresConfig {
            cache_limit: has_replicas().then_some(3),
            ..config
        };
        let (sender, receiver) = std::sync::mpsc::channel();
        Self::runtime().spawn(async move {
            sender
                .send(super::postgres::open_storage(&config).await)
                .unwrap();
        });
        Self(Arc::new(receiver.recv().unwrap()), clock)
    }

    /// What comes of a future there. Until then the caller's time stands still.
    async fn run_isolated<T: Send + 'static>(
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let _time_hold = hold_paused_time();
        Self::runtime().spawn(future).await.unwrap()
    }
}

/// Keeps the paused time of the current runtime from going on by itself.
#[cfg(feature = "postgres")]
fn hold_paused_time() -> std::sync::mpsc::Sender<()> {
    let (release, released) = std::sync::mpsc::channel();
    // Time goes on only when nobody is at work, and this counts as work.
    tokio::task::spawn_blocking(move || released.recv());
    release
}

#[cfg(feature = "postgres")]
impl Storage for IsolatedPostgres {
    fn load(&self, sink: LoadSink) -> BoxFuture<'_, Result<(), StorageError>> {
        let storage = self.0.clone();
        Box::pin(Self::run_isolated(async move { storage.load(sink).await }))
    }

    fn write(&self, write: Write, completion: Completion) {
        let (runtime, time_hold) = (Handle::current(), hold_paused_time());
        let relayed = Completion::new(move |result| {
            let _runtime_guard = runtime.enter();
            completion.complete(result);
            drop(time_hold);
        });
        self.0.write(write, relayed);
    }

    fn write_error(&self) -> Option<String> {
        self.0.write_error()
    }

    fn shared(&self) -> Option<&dyn SharedStorage> {
        Some(self)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        let storage = self.0.clone();
        Box::pin(Self::run_isolated(async move { storage.close().await }))
    }
}

#[cfg(feature = "postgres")]
impl SharedStorage for IsolatedPostgres {
    fn fetch<'a>(
        &'a self,
        name: &'a OperationName,
    ) -> BoxFuture<'a, Result<Option<Arc<Operation>>, StorageError>> {
        let (storage, name) = (self.0.clone(), name.clone());
        Box::pin(Self::run_isolated(
            async move { storage.fetch(&name).await },
        ))
    }

    /// In the order of the calls, which time that stands still does not tell.
    fn next_number(&self) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// In time that can be paused.
    fn clock(&self) -> Option<Clock> {
        Some(self.1)
    }

    fn cache_limit(&self) -> Option<usize> {
        self.0.cache_limit()
    }

    fn list_before<'a>(
        &'a self,
        parent: Option<&'a Parent>,
        before: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Arc<Operation>>, StorageError>> {
        let (storage, parent) = (self.0.clone(), parent.cloned());
        Box::pin(Self::run_isolated(async move {
            storage.list_before(parent.as_ref(), before, limit).await
        }))
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        let storage = self.0.clone();
        Box::pin(Self::run_isolated(async move { storage.sync().await }))
    }

    fn changes(&self) -> Box<dyn ChangeFeed> {
        let mut feed = self.0.changes();
        let (batch_sender, batches) = mpsc::channel(1);
        let (acks, mut ack_receiver) = mpsc::channel(1);
        let relay = async move {
            loop {
                let result = feed.next().await;
                let needs_ack = result.is_ok();
                if batch_sender.send(result).await.is_err() {
                    return;
                }
                if needs_ack && ack_receiver.recv().await == Some(true) {
                    feed.ack();
                }
            }
        };
        Box::new(IsolatedFeed {
            batches,
            acks,
            is_acknowledged: true,
            _relay: AbortOnDropHandle::new(Self::runtime().spawn(relay)),
        })
    }
}

/// The change feed of an isolated storage, relayed to the runtime of the test.
#[cfg(feature = "postgres")]
struct IsolatedFeed {
    batches: mpsc::Receiver<Result<ChangeBatch, StorageError>>,
    acks: mpsc::Sender<bool>,
    is_acknowledged: bool,
    _relay: AbortOnDropHandle<()>,
}

#[cfg(feature = "postgres")]
impl ChangeFeed for IsolatedFeed {
    fn next(&mut self) -> BoxFuture<'_, Result<ChangeBatch, StorageError>> {
        if !std::mem::replace(&mut self.is_acknowledged, true) {
            self.acks.try_send(false).expect("the relay waits");
        }
        Box::pin(async move {
            let batch = self.batches.recv().await.expect("the relay is running");
            self.is_acknowledged = batch.is_err();
            batch
        })
    }

    fn ack(&mut self) {
        self.is_acknowledged = true;
        self.acks.try_send(true).expect("the relay waits");
    }
}

/// A journal whose appends are counted while they are under way.
#[derive(Debug)]
pub(crate) struct CountingStorage<J>(pub(crate) J);

impl<J: Storage> Storage for CountingStorage<J> {
    fn load(&self, sink: LoadSink) -> BoxFuture<'_, Result<(), StorageError>> {
        self.0.load(sink)
    }

    fn write(&self, write: Write, completion: Completion) {
        let in_progress = WRITES_IN_PROGRESS.with(Clone::clone);
        in_progress.fetch_add(1, Ordering::AcqRel);
        let counting_completion = Completion::new(move |result| {
            completion.complete(result);
            in_progress.fetch_sub(1, Ordering::AcqRel);
        });
        self.0.write(write, counting_completion);
    }

    fn last_timestamp(&self) -> Option<longrunning::Timestamp> {
        self.0.last_timestamp()
    }

    fn write_error(&self) -> Option<String> {
        self.0.write_error()
    }

    fn shared(&self) -> Option<&dyn longrunning::SharedStorage> {
        self.0.shared()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.0.close()
    }
}
