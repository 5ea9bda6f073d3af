//! What became of operations, read from the database by transaction: see
//! `news.sql`. A notification is only a hint to read at once; without any, it is
//! read every so often.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream::Fuse};
use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};
use tokio_postgres::{
    Client, Row, RowStream,
    types::{ToSql, Type},
};
use tracing::{info, warn};

use super::{
    connect::Connector,
    connection::{Connection, QUERY_TIMEOUT, database_error, timeout_error},
    health::DatabaseHealth,
    notify::Notifier,
    rows::{RowDecoder, TEXT},
    statements::Statements,
};
use crate::{
    clock::Timestamp,
    operation::Operation,
    storage::{Change as Changes, ChangeSink, StorageError},
};

/// How often it is read without a hint: if hints arrive, and if they do not.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
const POLL_INTERVAL_WITHOUT_NOTIFY: Duration = Duration::from_millis(100);
/// How many operations are read and taken in at once.
const BATCH_ROWS: usize = 1000;
/// The pause before it is tried again after an error.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Reads what became of operations.
#[derive(Debug)]
pub(super) struct ChangeFeed {
    pub(super) connection: Connection,
    /// Up to where it was read, as PostgreSQL writes a snapshot, and when the
    /// server began from which it was read.
    position: Mutex<FeedPosition>,
    /// How many asked for what is new.
    sync_requests: AtomicU64,
    sync_progress: watch::Sender<SyncProgress>,
}

/// Everything that a view shows, as it comes.
pub(super) struct SnapshotStream {
    rows: Pin<Box<Fuse<RowStream>>>,
    decoder: RowDecoder,
    /// Answers as long as somebody has it.
    _client: Arc<Client>,
}

/// Nobody reads any more when it is dropped.
struct CloseGuard<'a>(&'a watch::Sender<SyncProgress>);

/// To how many of those who asked for what is new it was given, or why the last could
/// not have it.
type SyncProgress = (u64, Result<(), StorageError>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct FeedPosition {
    snapshot: String,
    server_started: String,
}

// === impl News ===

impl ChangeFeed {
    pub(super) fn new(connector: &Connector) -> Self {
        Self {
            connection: Connection::new(connector),
            position: Mutex::default(),
            sync_requests: AtomicU64::new(0),
            sync_progress: watch::Sender::new((0, Ok(()))),
        }
    }

    /// Begins before everything that is read from now on.
    async fn record_position(&self) -> Result<(), StorageError> {
        let statement = "SELECT pg_current_snapshot()::text, pg_postmaster_start_time()::text";
        let row = self
            .connection
            .with_client(async |client| client.query_typed_one(statement, &[]).await)
            .await?;
        *self.position.lock() = FeedPosition::from_row(&row);
        Ok(())
    }

    /// Returns when everything is taken in that was there before this call. Those
    /// who ask while it is read share the next look.
    pub(super) async fn sync(&self, notifier: &Notifier) -> Result<(), StorageError> {
        let mut progress = self.sync_progress.subscribe();
        let request = self.sync_requests.fetch_add(1, Ordering::AcqRel) + 1;
        notifier.wakeup.notify_one();
        match progress.wait_for(|(served, _)| request <= *served).await {
            Ok(progress) => progress.1.clone(),
            Err(_) => Err(StorageError("the journal is closed".to_owned())),
        }
    }

    /// Begins to read everything that a view shows.
    pub(super) async fn open_snapshot(
        &self,
        statements: &Statements,
        cache_limit: Option<i64>,
    ) -> Result<SnapshotStream, StorageError> {
        self.record_position().await?;
        let client = self.connection.acquire_client().await?;
        let parameters = [(&cache_limit as &(dyn ToSql + Sync), Type::INT8)];
        let rows = with_timeout(client.query_typed_raw(&statements.load, parameters)).await?;
        Ok(SnapshotStream {
            rows: Box::pin(rows.map_err(database_error)?.fuse()),
            decoder: RowDecoder::default(),
            _client: client,
        })
    }

    /// Reads on and on.
    pub(super) async fn run(
        &self,
        notifier: &Notifier,
        statements: &Statements,
        cache_limit: Option<i64>,
        health: &DatabaseHealth,
        sink: ChangeSink,
    ) {
        let _guard = CloseGuard(&self.sync_progress);
        loop {
            let (requests, requested_at) =
                (self.sync_requests.load(Ordering::Acquire), health.now());
            let delay = match self.poll(statements, cache_limit, health, &sink).await {
                Ok(()) => {
                    if health.record_success(requested_at) {
                        info!("reads again what other servers do");
                    }
                    drop(self.sync_progress.send_replace((requests, Ok(()))));
                    if notifier.is_delivering() {
                        POLL_INTERVAL
                    } else {
                        POLL_INTERVAL_WITHOUT_NOTIFY
                    }
                }
                Err(error) => {
                    let is_first = health.record_failure(error.to_string());
                    if is_first {
                        warn!(%error, "cannot read what other servers do; trying again");
                    }
                    drop(self.sync_progress.send_replace((requests, Err(error))));
                    // Often there is nothing but a connection to be made anew.
                    if is_first {
                        Duration::ZERO
                    } else {
                        RETRY_DELAY
                    }
                }
            };
            let _ = timeout(delay, notifier.wakeup.notified()).await;
        }
    }

    /// Reads what is new. What was not taken in is read again.
    async fn poll(
        &self,
        statements: &Statements,
        cache_limit: Option<i64>,
        health: &DatabaseHealth,
        sink: &ChangeSink,
    ) -> Result<(), StorageError> {
        let requested_at = health.now();
        let previous = self.position.lock().clone();
        let parameters = [(&previous.snapshot as &(dyn ToSql + Sync), TEXT)];
        let rows = self
            .connection
            .with_client(async |client| {
                client
                    .query_typed(&statements.changes_since, &parameters)
                    .await
            })
            .await?;
        let first = rows.first().ok_or_else(missing_meta_error)?;
        let position = FeedPosition::from_row(first);
        health.observe_server_time(requested_at, Timestamp::from_micros(first.get(9)));
        // Another server has taken over, or the same one has begun anew. The numbers
        // of transactions that were lost with the last one may be given again.
        if !first.get::<_, bool>(7) || position.server_started != previous.server_started {
            info!("reads all operations anew");
            return self.resync(statements, cache_limit, sink).await;
        }
        let is_inline = |row: &&Row| row.get::<_, Option<bool>>(6) == Some(true);
        let (inline, deferred): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(is_inline);
        let change_times = rows.iter().filter_map(|row| row.get::<_, Option<i64>>(8));
        let oldest_change = change_times.min().map(Timestamp::from_micros);
        if !inline.is_empty() {
            sink(decode_changes(inline, 2), oldest_change).await?;
        }
        let deferred_numbers: Vec<i64> = deferred.iter().filter_map(|row| row.get(2)).collect();
        for numbers in deferred_numbers.chunks(BATCH_ROWS) {
            let parameters = [(&numbers as &(dyn ToSql + Sync), Type::INT8_ARRAY)];
            let rows = self
                .connection
                .with_client(async |client| {
                    client
                        .query_typed(&statements.by_numbers, &parameters)
                        .await
                })
                .await?;
            sink(decode_changes(&rows, 0), oldest_change).await?;
        }
        *self.position.lock() = position;
        Ok(())
    }

    /// Reads everything that is there, and lets go of everything else.
    async fn resync(
        &self,
        statements: &Statements,
        cache_limit: Option<i64>,
        sink: &ChangeSink,
    ) -> Result<(), StorageError> {
        let previous = self.position.lock().clone();
        let mut snapshot_versions = BTreeMap::new();
        let apply_all = async {
            let mut snapshot = self.open_snapshot(statements, cache_limit).await?;
            loop {
                let operations = snapshot.next_batch().await?;
                if operations.is_empty() {
                    return sink(vec![Changes::SnapshotEnd(snapshot_versions)], None).await;
                }
                let entries = operations.iter();
                snapshot_versions
                    .extend(entries.map(|operation| (operation.number(), operation.version())));
                let changes = operations.into_iter().map(Arc::new).map(Changes::Upserted);
                sink(changes.collect(), None).await?;
            }
        };
        let result = apply_all.await;
        if result.is_err() {
            *self.position.lock() = previous;
        }
        result
    }
}

// === impl Everything ===

impl SnapshotStream {
    /// The next thousand, or what is left; none at the end.
    pub(super) async fn next_batch(&mut self) -> Result<Vec<Operation>, StorageError> {
        let mut operations = Vec::new();
        while operations.len() < BATCH_ROWS
            && let Some(row) = with_timeout(self.rows.next()).await?
        {
            operations.push(
                self.decoder
                    .decode_operation(&row.map_err(database_error)?, 0)?,
            );
        }
        Ok(operations)
    }
}

// === impl Place ===

impl FeedPosition {
    /// As the first columns of a row have it.
    fn from_row(row: &Row) -> Self {
        Self {
            snapshot: row.get(0),
            server_started: row.get(1),
        }
    }
}

// === impl End ===

impl Drop for CloseGuard<'_> {
    /// Those who ask from now on are told so.
    fn drop(&mut self) {
        let error = StorageError("the journal is closed".to_owned());
        drop(self.0.send_replace((u64::MAX, Err(error))));
    }
}

/// What became of operations, by the rows whose columns for it begin at `at`.
fn decode_changes<'a>(
    rows: impl IntoIterator<Item = &'a Row>,
    first_column: usize,
) -> Vec<Changes> {
    let mut decoder = RowDecoder::default();
    let changes = rows
        .into_iter()
        .filter_map(|row| decoder.decode_change(row, first_column));
    changes.collect()
}

/// What comes of an answer, unless it takes too long.
async fn with_timeout<T>(future: impl Future<Output = T>) -> Result<T, StorageError> {
    timeout(QUERY_TIMEOUT, future)
        .await
        .map_err(|_| timeout_error(QUERY_TIMEOUT))
}

fn missing_meta_error() -> StorageError {
    StorageError("the table meta is empty; restore it from a backup".to_owned())
}
