//! The journal in PostgreSQL, which several servers may share. Each change is
//! kept by compare-and-set on the operation's revision; changes that come at the
//! same time are one statement and one commit.
//!
//! Changes are written in `writer`, and what is written for one in `row`. What other
//! servers change is read in `news`, and hints to do so at once live in `listen`.
//! Since when all of that has worked is in `contact`, the statements are in `sql`, a
//! connection in `link`, the way to the database in `url`, `tls` and `database`, and
//! what comes first in `opening` and `options`.

mod change_feed;
pub(crate) mod config;
mod connect;
mod connection;
mod health;
mod hosts;
mod notify;
mod rows;
mod schema;
mod statements;
mod tls;
mod tls_params;
mod writer;

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{join, time::interval};
use tokio_postgres::{
    Client,
    types::{ToSql, Type},
};
use tracing::{debug, error};

use self::{
    change_feed::{ChangeReader, PostgresChangeFeed},
    config::PostgresConfig,
    connect::Connector,
    connection::Connection,
    health::DatabaseHealth,
    notify::Notifier,
    schema::{ensure_schema, measure_server_clock},
    statements::{Statements, is_valid_schema_name},
    writer::Writer,
};
use super::{
    ChangeFeed, Completion, LoadSink, SharedStorage, Storage, StorageStatus, Write,
    error::{StorageError, StorageErrorKind},
};
use crate::{
    clock::Clock,
    operation::{
        Operation,
        name::{OperationName, Parent},
    },
    tasks::Tasks,
};
use futures_util::future::BoxFuture;

/// How often what has expired goes, and old changes are forgotten.
const PRUNE_INTERVAL: Duration = Duration::from_secs(20);

/// A number is a time in microseconds and so many bits of chance, so that servers
/// need not agree on each.
const RANDOM_BITS: u32 = 10;

/// Keeps operations in PostgreSQL, for all servers that are given the same
/// database.
#[derive(Debug)]
pub struct PostgresStorage(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    writer: Writer,
    /// Answers questions, beside the writer.
    reader: Connection,
    /// Lets go of what is old, beside both.
    maintenance: Connection,
    change_reader: Arc<ChangeReader>,
    notifier: Arc<Notifier>,
    health: Arc<DatabaseHealth>,
    statements: Arc<Statements>,
    cache_limit: Option<usize>,
    clock: Clock,
    last_number: AtomicU64,
    tasks: Tasks,
}

// === impl PostgresJournal ===

impl PostgresStorage {
    /// Connects to a database, and makes the tables if there are none.
    ///
    /// # Errors
    /// A sentence that says why the database cannot be used.
    pub async fn open(config: &PostgresConfig) -> Result<Self, StorageError> {
        let PostgresConfig {
            url,
            notify_url,
            cache_limit,
            schema,
        } = config;
        if !is_valid_schema_name(schema) {
            return Err(StorageError::new(
                StorageErrorKind::InvalidConfig,
                format!(
                    "{schema:?} is no name for a schema: use 1 to 63 letters a to z, digits and _, beginning \
                 with a letter"
                ),
            ));
        }
        let notify_connector = Connector::new(notify_url.as_deref().unwrap_or(url))?;
        let (notifier, connector) = (Notifier::new(&notify_connector), Connector::new(url)?);
        let connection = Connection::new(&connector);
        let statements = Arc::new(Statements::new(schema));
        ensure_schema(&connection, &statements).await?;
        let clock = measure_server_clock(&connection).await?;
        let inner = Arc::new(Inner {
            writer: Writer::new(connection),
            health: Arc::new(DatabaseHealth::new(clock)),
            change_reader: Arc::new(ChangeReader::new(
                &connector,
                statements.clone(),
                cache_limit.map(to_i64),
            )),
            notifier: Arc::new(notifier),
            statements,
            reader: Connection::new(&connector),
            maintenance: Connection::new(&connector),
            cache_limit: *cache_limit,
            clock,
            last_number: AtomicU64::new(0),
            tasks: Tasks::default(),
        });
        inner.spawn("postgres", async |inner| {
            inner.writer.run(&inner).await;
        });
        inner.spawn("postgres hints", async |inner| {
            let Inner {
                notifier,
                reader,
                statements,
                ..
            } = &*inner;
            let stopping = inner.tasks.stop_token();
            let background = async {
                join!(
                    notifier.run_sender(reader, statements),
                    notifier.run_listener(reader, statements),
                    inner.run_maintenance()
                )
            };
            let _ = stopping.run_until_cancelled(background).await;
        });
        Ok(Self(inner))
    }
}

impl Storage for PostgresStorage {
    fn load(&self, sink: LoadSink) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(self.0.load(sink))
    }

    fn write(&self, write: Write, completion: Completion) {
        self.0.writer.enqueue(write, completion);
    }

    fn write_error(&self) -> Option<String> {
        let Inner { writer, health, .. } = &*self.0;
        writer.write_error().or_else(|| health.read_error())
    }

    fn shared(&self) -> Option<&dyn SharedStorage> {
        Some(self)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.0.writer.close();
            self.0.tasks.stop().await;
        })
    }
}

impl SharedStorage for PostgresStorage {
    fn fetch<'a>(
        &'a self,
        name: &'a OperationName,
    ) -> BoxFuture<'a, Result<Option<Arc<Operation>>, StorageError>> {
        Box::pin(self.0.fetch(name))
    }

    fn next_number(&self) -> u64 {
        let micros = self.0.clock.now().nanos() / 1000;
        let time = u64::try_from(micros).unwrap_or(0) << RANDOM_BITS;
        let random = uuid::Uuid::new_v4().as_u64_pair().1 & ((1 << RANDOM_BITS) - 1);
        let next = |last: u64| Some((last + 1).max(time | random));
        let last_number = &self.0.last_number;
        let last = last_number.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        next(last.unwrap_or_else(|last| last)).unwrap_or(time)
    }

    fn clock(&self) -> Option<Clock> {
        Some(self.0.clock)
    }

    fn status(&self) -> Option<StorageStatus> {
        Some(self.0.status())
    }

    fn cache_limit(&self) -> Option<usize> {
        self.0.cache_limit
    }

    fn list_before<'a>(
        &'a self,
        parent: Option<&'a Parent>,
        before: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Arc<Operation>>, StorageError>> {
        Box::pin(self.0.list_before(parent, before, limit))
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(self.0.change_reader.sync(&self.0.notifier))
    }

    fn changes(&self) -> Box<dyn ChangeFeed> {
        let Inner {
            change_reader,
            notifier,
            health,
            ..
        } = &*self.0;
        Box::new(PostgresChangeFeed::new(
            change_reader.clone(),
            notifier.clone(),
            health.clone(),
        ))
    }
}

impl Drop for PostgresStorage {
    fn drop(&mut self) {
        self.0.writer.close();
        self.0.tasks.stop_token().cancel();
    }
}

// === impl Inner ===

impl Inner {
    /// Begins a task. Without it the journal is of no use, so that its panic is trouble.
    fn spawn<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        title: &'static str,
        task: impl FnOnce(Arc<Self>) -> F,
    ) {
        let (inner, task) = (self.clone(), task(self.clone()));
        self.tasks.spawn(title, async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                error!(task = title, "a task of the journal panicked");
                inner
                    .writer
                    .set_fatal_error("the journal has met a bug of ours; restart this server");
            }
        });
    }

    /// Makes all connections anew: the server at their other end may have given its
    /// place to another one, and go on to answer.
    async fn reconnect_all(&self) {
        join!(
            self.reader.reset(),
            self.maintenance.reset(),
            self.change_reader.connection.reset(),
            self.notifier.listener.reset(),
        );
    }

    /// Lets go of what has expired, and of changes that everybody has read long ago.
    async fn run_maintenance(&self) {
        let mut ticks = interval(PRUNE_INTERVAL);
        loop {
            ticks.tick().await;
            for statement in [
                &self.statements.delete_expired,
                &self.statements.prune_changes,
            ] {
                let query = async |client: &Client| client.execute_typed(statement, &[]).await;
                // As long as there are many, by small batches.
                loop {
                    match self.maintenance.with_client(query).await {
                        Ok(0) => break,
                        Ok(_) => self.notifier.mark_changed(),
                        Err(error) => {
                            debug!(%error, "cannot let go of what is old");
                            break;
                        }
                    }
                }
            }
        }
    }

    async fn load(&self, sink: LoadSink) -> Result<(), StorageError> {
        let mut snapshot = self.change_reader.load_snapshot().await?;
        loop {
            let operations = snapshot.next_batch().await?;
            if operations.is_empty() {
                return Ok(());
            }
            operations.into_iter().for_each(|operation| sink(operation));
        }
    }

    async fn fetch(&self, name: &OperationName) -> Result<Option<Arc<Operation>>, StorageError> {
        let name = name.as_str();
        let parameters = [(&name as &(dyn ToSql + Sync), rows::TEXT)];
        let row = self
            .reader
            .with_client(async |client| {
                client
                    .query_typed_opt(&self.statements.by_name, &parameters)
                    .await
            })
            .await?;
        let mut decoder = rows::RowDecoder::default();
        let row = row.map(|row| decoder.decode_operation(&row));
        row.transpose().map(|operation| operation.map(Arc::new))
    }

    /// As long as the database takes no changes, it is not within reach.
    fn status(&self) -> StorageStatus {
        let mut status = self.health.status();
        if self.writer.write_error().is_some() {
            status.available_since = self.clock.now();
        }
        status
    }

    async fn list_before(
        &self,
        parent: Option<&Parent>,
        before: u64,
        limit: usize,
    ) -> Result<Vec<Arc<Operation>>, StorageError> {
        let (before, limit) = (i64::try_from(before).unwrap_or(i64::MAX), to_i64(limit));
        let (statement, parent) = match parent {
            Some(parent) => (&self.statements.list_before, Some(parent.as_str())),
            None => (&self.statements.list_before_all_parents, None),
        };
        let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![(&before, Type::INT8)];
        if let Some(parent) = &parent {
            parameters.push((parent, rows::TEXT));
        }
        parameters.push((&limit, Type::INT8));
        let rows = self
            .reader
            .with_client(async |client| client.query_typed(statement, &parameters).await)
            .await?;
        let mut decoder = rows::RowDecoder::default();
        let decode = |row| Ok(Arc::new(decoder.decode_operation(row)?));
        rows.iter().map(decode).collect()
    }
}

fn to_i64(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
