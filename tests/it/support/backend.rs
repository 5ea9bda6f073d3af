//! Selects the storage backend of this test process from the environment:
//! memory unless a variable names SQLite or PostgreSQL.

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

/// Names a directory in which each server gets its own SQLite file.
#[cfg(feature = "sqlite")]
pub(crate) const SQLITE_DIRECTORY_ENV: &str = "LONGRUNNING_TEST_SQLITE";

/// The URL of a PostgreSQL server in which each server gets its own schema.
#[cfg(feature = "postgres")]
pub(crate) const POSTGRES_URL_ENV: &str = "LONGRUNNING_TEST_POSTGRES";

#[cfg(feature = "postgres")]
thread_local! {
    /// The storage that this test opened last, with its configuration and clock.
    static LAST_OPENED: RefCell<Option<(Weak<PostgresStorage>, PostgresConfig, Clock)>> = RefCell::default();
}

thread_local! {
    /// Per thread, thus per test whose runtime has one thread.
    static WRITES_IN_PROGRESS: Arc<AtomicUsize> = Arc::default();
}

/// Returns the number of writes in progress in the storages of this test, whose
/// runtime must have one thread.
pub(crate) fn writes_in_progress() -> usize {
    WRITES_IN_PROGRESS.with(|count| count.load(Ordering::Acquire))
}

/// Returns the database path for the next server, or `None` unless SQLite is selected.
#[cfg(feature = "sqlite")]
pub(crate) fn next_sqlite_path() -> Option<PathBuf> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let directory = PathBuf::from(std::env::var_os(SQLITE_DIRECTORY_ENV)?);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Some(directory.join(format!("{number}.db")))
}

/// If set, each test server consists of three replicas, and each call goes to a random one.
#[cfg(feature = "postgres")]
pub(crate) const REPLICAS_ENV: &str = "LONGRUNNING_TEST_REPLICAS";

/// Returns `true` if each test server consists of three replicas.
#[cfg(feature = "postgres")]
pub(crate) fn has_replicas() -> bool {
    std::env::var_os(REPLICAS_ENV).is_some()
}

/// Returns `true` if PostgreSQL is selected.
#[cfg(feature = "postgres")]
pub(crate) fn is_postgres() -> bool {
    std::env::var_os(POSTGRES_URL_ENV).is_some()
}

/// A PostgreSQL storage on a separate runtime, whose time advances while the
/// test's own time is paused.
#[cfg(feature = "postgres")]
#[derive(Debug)]
pub(crate) struct IsolatedPostgres(Arc<PostgresStorage>, Clock);

// === impl IsolatedPostgres ===

#[cfg(feature = "postgres")]
impl IsolatedPostgres {
    fn runtime() -> &'static tokio::runtime::Runtime {
        static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
        RUNTIME.get_or_init(|| tokio::runtime::Runtime::new().unwrap())
    }

    /// Opens a storage in a new schema.
    pub(crate) fn open() -> Self {
        let config = super::postgres::test_config().expect("PostgreSQL must be installed");
        let clock = Clock::system();
        let storage = Self::open_in(config.clone(), clock);
        LAST_OPENED.set(Some((Arc::downgrade(&storage.0), config, clock)));
        storage
    }

    /// Opens two more storages in the schema opened last; none if it is no longer in use.
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
        // A low limit makes replicas read through to the database.
        let mut config = config;
        config.cache_limit = has_replicas().then_some(3);
        let (sender, receiver) = std::sync::mpsc::channel();
        Self::runtime().spawn(async move {
            sender
                .send(super::postgres::open_storage(&config).await)
                .unwrap();
        });
        Self(Arc::new(receiver.recv().unwrap()), clock)
    }

    /// Runs a future on the separate runtime. The caller's paused time does not advance meanwhile.
    async fn run_isolated<T: Send + 'static>(
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let _time_hold = hold_paused_time();
        Self::runtime().spawn(future).await.unwrap()
    }
}

/// Keeps the paused time of the current runtime from advancing until the sender is dropped.
#[cfg(feature = "postgres")]
fn hold_paused_time() -> std::sync::mpsc::Sender<()> {
    let (release, released) = std::sync::mpsc::channel();
    // Paused time advances only while the runtime is idle; a blocking task keeps it busy.
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

    // Paused time cannot order the calls, so numbers are counted.
    fn next_number(&self) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    // The test's clock, which can be paused.
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

/// A storage that counts its writes in progress.
#[derive(Debug)]
pub(crate) struct CountingStorage<S>(pub(crate) S);

// === impl CountingStorage ===

impl<S: Storage> Storage for CountingStorage<S> {
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
