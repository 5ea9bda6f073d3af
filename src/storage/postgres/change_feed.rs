//! The change feed: reads from the change log what all servers changed, by transaction. Notifications only make it
//! read sooner; without them it polls.

use std::{
    collections::BTreeMap,
    mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::Fuse};
use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};
use tokio_postgres::{
    Client, Row, RowStream,
    types::{ToSql, Type},
};
use tracing::{info, warn};

use super::{
    connect::Connector,
    connection::{Connection, QUERY_TIMEOUT},
    error::{missing_meta_error, query_error, timeout_error},
    health::DatabaseHealth,
    notify::Notifier,
    rows::RowDecoder,
    statements::Statements,
};
use crate::{
    clock::Timestamp,
    operation::{Operation, OperationVersion},
    storage::{Change, ChangeBatch, ChangeFeed, error::StorageError},
};

/// The time between two polls while notifications arrive.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The time between two polls while notifications do not arrive.
const POLL_INTERVAL_WITHOUT_NOTIFY: Duration = Duration::from_millis(100);
/// The most operations in one batch.
const BATCH_ROWS: usize = 1000;
/// The delay between two attempts that fail. The first failure is retried at once: often only the connection is lost.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The state of the change feed: its connection, how far the change log was read, and the `sync` calls that wait.
#[derive(Debug)]
pub(super) struct ChangeFeedState {
    pub(super) connection: Arc<Connection>,
    statements: Arc<Statements>,
    notifier: Arc<Notifier>,
    health: Arc<DatabaseHealth>,
    cache_limit: Option<i64>,
    position: Mutex<FeedPosition>,
    /// The number of `sync` calls so far.
    sync_requests: AtomicU64,
    sync_progress: watch::Sender<SyncProgress>,
}

/// The one reader of the change log, which delivers it in batches.
///
/// A round is one query of the change log with all the batches that follow from it. `sync` calls that were made before
/// a round began are served when its last batch was acknowledged.
pub(super) struct PostgresChangeFeed {
    state: Arc<ChangeFeedState>,
    round: Option<Round>,
    /// `true` unless the last batch that was delivered is not applied.
    is_acknowledged: bool,
    /// How long the next round waits for a notification at most.
    delay: Duration,
}

/// The rows of a snapshot of all operations, up to the cache limit.
pub(super) struct SnapshotStream {
    rows: Pin<Box<Fuse<RowStream>>>,
    decoder: RowDecoder,
    /// The connection serves the stream only while the client lives.
    _client: Arc<Client>,
}

struct Round {
    /// The number of `sync` calls when the round began.
    sync_requests: u64,
    requested_at: Timestamp,
    /// Where the next round begins, once this one is applied.
    next_position: FeedPosition,
    remaining: Remaining,
}

/// The changes that a round has not delivered yet.
enum Remaining {
    Changes {
        inline: Vec<Change>,
        /// The numbers of operations that later batches read.
        deferred: Vec<i64>,
        first_changed_at: Option<Timestamp>,
    },
    Snapshot {
        stream: SnapshotStream,
        versions: BTreeMap<u64, OperationVersion>,
    },
    Nothing,
}

/// How many `sync` calls are served, and the result for the last of them.
#[derive(Debug)]
struct SyncProgress {
    served: u64,
    result: Result<(), StorageError>,
}

/// A position in the change log: a snapshot as PostgreSQL writes it, and the start time of the server that took it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct FeedPosition {
    snapshot: String,
    server_started: String,
}

// === impl ChangeFeedState ===

impl ChangeFeedState {
    pub(super) fn new(
        connector: &Connector,
        statements: Arc<Statements>,
        notifier: Arc<Notifier>,
        health: Arc<DatabaseHealth>,
        cache_limit: Option<i64>,
    ) -> Self {
        Self {
            connection: Arc::new(Connection::new(connector)),
            statements,
            notifier,
            health,
            cache_limit,
            position: Mutex::default(),
            sync_requests: AtomicU64::new(0),
            sync_progress: watch::Sender::new(SyncProgress {
                served: 0,
                result: Ok(()),
            }),
        }
    }

    /// Waits until every change that was durable before this call is applied. Calls during one round share the next.
    pub(super) async fn sync(&self) -> Result<(), StorageError> {
        let mut progress = self.sync_progress.subscribe();
        let request = self.sync_requests.fetch_add(1, Ordering::AcqRel) + 1;
        self.notifier.wakeup.notify_one();
        match progress
            .wait_for(|progress| progress.served >= request)
            .await
        {
            Ok(progress) => progress.result.clone(),
            Err(_) => Err(StorageError::closed()),
        }
    }

    /// Begins to load all operations, and sets the position of the feed to the time before.
    pub(super) async fn load_snapshot(&self) -> Result<SnapshotStream, StorageError> {
        let (position, stream) = self.open_snapshot().await?;
        *self.position.lock() = position;
        Ok(stream)
    }

    async fn open_snapshot(&self) -> Result<(FeedPosition, SnapshotStream), StorageError> {
        let position = "SELECT pg_current_snapshot()::text AS snapshot,
             pg_postmaster_start_time()::text AS server_started";
        let row = self.connection.query_one(position, &[]).await?;
        let client = self.connection.acquire().await?.client;
        let parameters = [(&self.cache_limit as &(dyn ToSql + Sync), Type::INT8)];
        let load = client.query_typed_raw(&self.statements.load, parameters);
        let rows = with_timeout(load).await?.map_err(query_error)?;
        let stream = SnapshotStream {
            rows: Box::pin(rows.fuse()),
            decoder: RowDecoder::default(),
            _client: client,
        };
        Ok((FeedPosition::from_row(&row), stream))
    }

    async fn read_by_numbers(&self, numbers: &[i64]) -> Result<Vec<Change>, StorageError> {
        let parameters = [(&numbers as _, Type::INT8_ARRAY)];
        let statement = &self.statements.by_numbers;
        let rows = self.connection.query(statement, &parameters).await?;
        Ok(decode_changes(&rows))
    }

    fn report_progress(&self, served: u64, result: Result<(), StorageError>) {
        let progress = SyncProgress { served, result };
        drop(self.sync_progress.send_replace(progress));
    }
}

// === impl PostgresChangeFeed ===

impl PostgresChangeFeed {
    pub(super) fn new(state: Arc<ChangeFeedState>) -> Self {
        Self {
            state,
            round: None,
            is_acknowledged: true,
            delay: Duration::ZERO,
        }
    }

    async fn next_batch(&mut self) -> Result<ChangeBatch, StorageError> {
        if !mem::replace(&mut self.is_acknowledged, true) {
            let error = StorageError::unavailable("changes of other servers could not be applied");
            self.abandon_round(error);
        }
        loop {
            let Some(round) = &mut self.round else {
                drop(timeout(self.delay, self.state.notifier.wakeup.notified()).await);
                self.begin_round().await?;
                continue;
            };
            match round.remaining.next_batch(&self.state).await {
                Ok(Some(batch)) => {
                    self.is_acknowledged = false;
                    return Ok(batch);
                }
                Ok(None) => self.finish_round(),
                Err(error) => {
                    self.abandon_round(error.clone());
                    return Err(error);
                }
            }
        }
    }

    async fn begin_round(&mut self) -> Result<(), StorageError> {
        let sync_requests = self.state.sync_requests.load(Ordering::Acquire);
        let requested_at = self.state.health.now();
        let read = self.read_change_log(requested_at).await;
        let (next_position, remaining) =
            read.inspect_err(|error| self.record_failure(sync_requests, error.clone()))?;
        self.round = Some(Round {
            sync_requests,
            requested_at,
            next_position,
            remaining,
        });
        Ok(())
    }

    async fn read_change_log(
        &self,
        requested_at: Timestamp,
    ) -> Result<(FeedPosition, Remaining), StorageError> {
        let state = &self.state;
        let previous = state.position.lock().clone();
        let parameters = [(&previous.snapshot as _, Type::TEXT)];
        let statement = &state.statements.changes_since;
        let rows = state.connection.query(statement, &parameters).await?;
        let first = rows.first().ok_or_else(missing_meta_error)?;
        let next_position = FeedPosition::from_row(first);
        let server_time = Timestamp::from_micros(first.get("server_time_us"));
        self.state
            .health
            .observe_server_time(requested_at, server_time);
        // After a failover or a restart of PostgreSQL, transaction ids that were lost may be assigned again.
        let is_complete: bool = first.get("is_complete");
        if !is_complete || next_position.server_started != previous.server_started {
            info!("resyncing all operations from the database");
            let (position, stream) = state.open_snapshot().await?;
            let versions = BTreeMap::new();
            return Ok((position, Remaining::Snapshot { stream, versions }));
        }
        let is_inline = |row: &&Row| row.get::<_, Option<bool>>("is_inline") == Some(true);
        let (inline, deferred): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(is_inline);
        let changed_at = rows
            .iter()
            .filter_map(|row| row.get::<_, Option<i64>>("changed_at_us"));
        let remaining = Remaining::Changes {
            inline: decode_changes(inline),
            deferred: deferred
                .iter()
                .filter_map(|row| row.get("number"))
                .collect(),
            first_changed_at: changed_at.min().map(Timestamp::from_micros),
        };
        Ok((next_position, remaining))
    }

    /// Moves the position behind a round that is applied, and serves the `sync` calls from before it.
    fn finish_round(&mut self) {
        if let Some(round) = self.round.take() {
            *self.state.position.lock() = round.next_position;
            if self.state.health.record_success(round.requested_at) {
                info!("change feed recovered");
            }
            self.state.report_progress(round.sync_requests, Ok(()));
            self.delay = if self.state.notifier.is_delivering() {
                POLL_INTERVAL
            } else {
                POLL_INTERVAL_WITHOUT_NOTIFY
            };
        }
    }

    /// Gives up a round, so that the next one reads the same changes again.
    fn abandon_round(&mut self, error: StorageError) {
        if let Some(round) = self.round.take() {
            self.record_failure(round.sync_requests, error);
        }
    }

    fn record_failure(&mut self, sync_requests: u64, error: StorageError) {
        let is_first = self.state.health.record_failure(error.to_string());
        if is_first {
            warn!(%error, "change feed unavailable, retrying");
        }
        self.state.report_progress(sync_requests, Err(error));
        self.delay = if is_first {
            Duration::ZERO
        } else {
            RETRY_DELAY
        };
    }
}

impl ChangeFeed for PostgresChangeFeed {
    fn next(&mut self) -> BoxFuture<'_, Result<ChangeBatch, StorageError>> {
        self.next_batch().boxed()
    }

    fn ack(&mut self) {
        self.is_acknowledged = true;
    }
}

impl Drop for PostgresChangeFeed {
    /// Fails the `sync` calls that no round will serve.
    fn drop(&mut self) {
        self.state
            .report_progress(u64::MAX, Err(StorageError::closed()));
    }
}

// === impl Remaining ===

impl Remaining {
    /// Returns the next batch, or `None` at the end of the round.
    async fn next_batch(
        &mut self,
        state: &ChangeFeedState,
    ) -> Result<Option<ChangeBatch>, StorageError> {
        match self {
            Self::Nothing => Ok(None),
            Self::Changes {
                inline,
                deferred,
                first_changed_at,
            } => {
                let first_changed_at = *first_changed_at;
                let changes = if !inline.is_empty() {
                    mem::take(inline)
                } else if deferred.is_empty() {
                    return Ok(None);
                } else {
                    let count = deferred.len().min(BATCH_ROWS);
                    let numbers: Vec<i64> = deferred.drain(..count).collect();
                    state.read_by_numbers(&numbers).await?
                };
                Ok(Some(ChangeBatch {
                    changes,
                    first_changed_at,
                    is_partial: !deferred.is_empty(),
                }))
            }
            Self::Snapshot { stream, versions } => {
                let operations = stream.next_batch().await?;
                let is_partial = !operations.is_empty();
                let changes = if operations.is_empty() {
                    let versions = mem::take(versions);
                    *self = Self::Nothing;
                    vec![Change::SnapshotEnd(versions)]
                } else {
                    let entries = operations.iter();
                    versions
                        .extend(entries.map(|operation| (operation.number(), operation.version())));
                    let operations = operations.into_iter().map(Arc::new);
                    operations.map(Change::Upserted).collect()
                };
                Ok(Some(ChangeBatch {
                    changes,
                    first_changed_at: None,
                    is_partial,
                }))
            }
        }
    }
}

// === impl SnapshotStream ===

impl SnapshotStream {
    /// Returns the next operations, at most `BATCH_ROWS`, or an empty list at the end.
    pub(super) async fn next_batch(&mut self) -> Result<Vec<Operation>, StorageError> {
        let mut operations = Vec::new();
        while operations.len() < BATCH_ROWS
            && let Some(row) = with_timeout(self.rows.next()).await?
        {
            let row = row.map_err(query_error)?;
            operations.push(self.decoder.decode_operation(&row)?);
        }
        Ok(operations)
    }
}

// === impl FeedPosition ===

impl FeedPosition {
    fn from_row(row: &Row) -> Self {
        Self {
            snapshot: row.get("snapshot"),
            server_started: row.get("server_started"),
        }
    }
}

fn decode_changes<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Vec<Change> {
    let mut decoder = RowDecoder::default();
    let changes = rows
        .into_iter()
        .filter_map(|row| decoder.decode_change(row));
    changes.collect()
}

async fn with_timeout<T>(future: impl Future<Output = T>) -> Result<T, StorageError> {
    timeout(QUERY_TIMEOUT, future)
        .await
        .map_err(|_| timeout_error(QUERY_TIMEOUT))
}
