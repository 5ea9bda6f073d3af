//! Storage in PostgreSQL, which several servers may share. Each write is a compare-and-set on the revision of its
//! operation.

mod change_feed;
mod clock_sync;
pub(crate) mod config;
mod connect;
mod connection;
mod error;
mod health;
mod hosts;
mod maintenance;
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
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio_postgres::types::{ToSql, Type};
use tracing::error;

use self::{
    change_feed::{ChangeFeedState, PostgresChangeFeed},
    clock_sync::measure_server_clock,
    config::PostgresConfig,
    connect::Connector,
    connection::Connection,
    health::DatabaseHealth,
    maintenance::Maintenance,
    notify::Notifier,
    rows::RowDecoder,
    schema::ensure_schema,
    statements::{Statements, is_valid_schema_name},
    writer::Writer,
};
use super::{
    ChangeFeed, Completion, LoadSink, SharedStorage, Storage, StorageStatus, Write,
    error::StorageError,
};
use crate::{
    clock::Clock,
    operation::{
        Operation,
        name::{OperationName, Parent},
    },
    tasks::Tasks,
};

/// The low bits of an operation number, which are random; the others are its creation time in microseconds. Servers
/// assign numbers without coordination.
const RANDOM_BITS: u32 = 10;

/// Storage in a PostgreSQL database, shared by all servers that use the same schema.
#[derive(Debug)]
pub struct PostgresStorage {
    writer: Arc<Writer>,
    /// Reads operations, and sends notifications.
    query_connection: Arc<Connection>,
    change_feed_state: Arc<ChangeFeedState>,
    health: Arc<DatabaseHealth>,
    statements: Arc<Statements>,
    cache_limit: Option<usize>,
    clock: Clock,
    last_number: AtomicU64,
    tasks: Tasks,
}

// === impl PostgresStorage ===

impl PostgresStorage {
    /// Connects to a database, and creates or upgrades the tables.
    ///
    /// # Errors
    /// [`StorageError`] if the configuration is invalid, the database cannot be used, or its tables have a version
    /// that this program does not support.
    pub async fn open(config: &PostgresConfig) -> Result<Self, StorageError> {
        let schema = &config.schema;
        if !is_valid_schema_name(schema) {
            return Err(StorageError::invalid_config(format!(
                "invalid schema name {schema:?}: use 1 to 63 letters a to z, digits and _, beginning with a letter or _"
            )));
        }
        let listen_connector = Connector::new(config.notify_url.as_deref().unwrap_or(&config.url))?;
        let connector = Connector::new(&config.url)?;
        let write_connection = Connection::new(&connector);
        let statements = Arc::new(Statements::new(schema));
        ensure_schema(&write_connection, &statements).await?;
        let clock = measure_server_clock(&write_connection).await?;

        let tasks = Tasks::default();
        let health = Arc::new(DatabaseHealth::new(clock));
        let query_connection = Arc::new(Connection::new(&connector));
        let notifier = Arc::new(Notifier::new(
            &listen_connector,
            query_connection.clone(),
            statements.clone(),
        ));
        let change_feed_state = Arc::new(ChangeFeedState::new(
            &connector,
            statements.clone(),
            notifier.clone(),
            health.clone(),
            config.cache_limit.map(to_i64),
        ));
        let maintenance = Maintenance {
            connection: Arc::new(Connection::new(&connector)),
            statements: statements.clone(),
            notifier: notifier.clone(),
        };
        let other_connections = vec![
            query_connection.clone(),
            maintenance.connection.clone(),
            change_feed_state.connection.clone(),
            notifier.listener.clone(),
        ];
        let writer = Arc::new(Writer::new(
            write_connection,
            other_connections,
            statements.clone(),
            notifier.clone(),
            health.clone(),
            tasks.stop_token().clone(),
        ));
        let storage = Self {
            writer: writer.clone(),
            query_connection,
            change_feed_state,
            health,
            statements,
            cache_limit: config.cache_limit,
            clock,
            last_number: AtomicU64::new(0),
            tasks,
        };
        storage.spawn("postgres writer", async move { writer.run().await });
        storage.spawn_until_stopped("postgres notify", async move { notifier.run().await });
        storage.spawn_until_stopped("postgres maintenance", async move {
            maintenance.run().await;
        });
        Ok(storage)
    }

    /// Spawns a task that the storage depends on: if it panics, all writes are rejected from then on.
    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let writer = self.writer.clone();
        self.tasks.spawn(name, async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                error!(task = name, "storage task panicked");
                writer.set_fatal_error(&StorageError::internal(format!(
                    "the task {name:?} panicked; restart this server, and report the panic in its log"
                )));
            }
        });
    }

    fn spawn_until_stopped(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let stop_token = self.tasks.stop_token().clone();
        self.spawn(name, async move {
            let _ = stop_token.run_until_cancelled(task).await;
        });
    }
}

impl Storage for PostgresStorage {
    fn load(&self, sink: LoadSink) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(async move {
            let mut snapshot = self.change_feed_state.load_snapshot().await?;
            loop {
                let operations = snapshot.next_batch().await?;
                if operations.is_empty() {
                    return Ok(());
                }
                operations.into_iter().for_each(|operation| sink(operation));
            }
        })
    }

    fn write(&self, write: Write, completion: Completion) {
        self.writer.enqueue(write, completion);
    }

    /// Returns why writes fail, or else why the change log cannot be read.
    fn write_error(&self) -> Option<String> {
        let write_error = self.writer.write_error().map(|error| error.to_string());
        write_error.or_else(|| self.health.read_error())
    }

    fn shared(&self) -> Option<&dyn SharedStorage> {
        Some(self)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.writer.close();
            self.tasks.stop().await;
        })
    }
}

impl SharedStorage for PostgresStorage {
    fn fetch<'a>(
        &'a self,
        name: &'a OperationName,
    ) -> BoxFuture<'a, Result<Option<Arc<Operation>>, StorageError>> {
        Box::pin(async move {
            let parameters = [(&name.as_str() as _, Type::TEXT)];
            let statement = &self.statements.by_name;
            let row = self
                .query_connection
                .query_opt(statement, &parameters)
                .await?;
            let decode = |row| RowDecoder::default().decode_operation(&row).map(Arc::new);
            row.map(decode).transpose()
        })
    }

    fn next_number(&self) -> u64 {
        let micros = self.clock.now().nanos() / 1000;
        let time = u64::try_from(micros).unwrap_or(0) << RANDOM_BITS;
        let random = uuid::Uuid::new_v4().as_u64_pair().1 & ((1 << RANDOM_BITS) - 1);
        let next = |last: u64| Some((last + 1).max(time | random));
        let last = self
            .last_number
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        next(last.unwrap_or_else(|last| last)).unwrap_or(time)
    }

    fn clock(&self) -> Option<Clock> {
        Some(self.clock)
    }

    /// Returns the availability of the database, which is unavailable while writes fail.
    fn status(&self) -> Option<StorageStatus> {
        let mut status = self.health.status();
        if self.writer.write_error().is_some() {
            status.available_since = self.clock.now();
        }
        Some(status)
    }

    fn cache_limit(&self) -> Option<usize> {
        self.cache_limit
    }

    fn list_before<'a>(
        &'a self,
        parent: Option<&'a Parent>,
        before: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Arc<Operation>>, StorageError>> {
        Box::pin(async move {
            let (before, limit) = (i64::try_from(before).unwrap_or(i64::MAX), to_i64(limit));
            let (statement, parent) = match parent {
                Some(parent) => (&self.statements.list_before, Some(parent.as_str())),
                None => (&self.statements.list_before_all_parents, None),
            };
            let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![(&before, Type::INT8)];
            if let Some(parent) = &parent {
                parameters.push((parent, Type::TEXT));
            }
            parameters.push((&limit, Type::INT8));
            let rows = self.query_connection.query(statement, &parameters).await?;
            let mut decoder = RowDecoder::default();
            let decode = |row| Ok(Arc::new(decoder.decode_operation(row)?));
            rows.iter().map(decode).collect()
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(self.change_feed_state.sync())
    }

    fn changes(&self) -> Box<dyn ChangeFeed> {
        Box::new(PostgresChangeFeed::new(self.change_feed_state.clone()))
    }
}

impl Drop for PostgresStorage {
    fn drop(&mut self) {
        self.writer.close();
        self.tasks.stop_token().cancel();
    }
}

fn to_i64(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
