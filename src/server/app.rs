//! The program put together: `Config` binds, `App` serves, a signal drains it.
//! The order of the drain is decided here: readiness off, waits answered,
//! workers finished or released, connections closed.

use std::{
    future::{Future, pending},
    io,
    panic::resume_unwind,
    time::Duration,
};

use tokio::{
    select,
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
    time::{Instant, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use super::{
    accept::serve,
    admin::{AdminService, Readiness},
    config::{Config, StoreConfig},
    listener::{ListenAddress, Listener},
    runtime_pool::RuntimePool,
    services::{ServerHealth, ServiceRouter},
    type_reload::TypeReloader,
};
use crate::{
    demo::checksum,
    grpc::metrics_layer::GrpcMetrics,
    service::{builder::StartError, operations::Operations},
    storage::{postgres::PostgresStorage, sqlite::SqliteStorage},
    tasks::Tasks,
    types::InvalidDescriptorSet,
    worker::command::{CommandHandler, InvalidCommand},
};

/// Longer than anybody drains.
const MAX_DRAIN_TIMEOUT: Duration = Duration::from_secs(366 * 86_400);

/// The part of the grace that is kept for closing connections.
const CONNECTION_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A server with bound sockets; it serves once run.
#[derive(Debug)]
pub struct App {
    operations: Operations,
    config: Config,
    type_reloader: TypeReloader,
    reload_signals: Option<mpsc::Receiver<()>>,
    client_listener: Listener,
    worker_listener: Option<Listener>,
    admin_addr: Option<ListenAddress>,
    readiness: Readiness,
    runtime_pool: RuntimePool,
    /// Operators are answered until it is dropped.
    admin_stop_guard: DropGuard,
}

/// Why a server cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A listener cannot be bound.
    #[error("the listener for {purpose}: {error}")]
    Listen {
        /// `clients`, `workers` or `admin`.
        purpose: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// The operations cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The threads for connections cannot start.
    #[error("cannot start the threads that serve connections: {0}")]
    Threads(io::Error),
    /// The command of a queue cannot be run.
    #[error("queue {0:?}: {1}")]
    InvalidCommand(String, InvalidCommand),
    /// A descriptor set cannot be used.
    #[error(transparent)]
    InvalidDescriptorSet(#[from] InvalidDescriptorSet),
    /// The server whose types are wanted has no such address.
    #[error("cannot ask {0:?} for its types: {1}")]
    ReflectionUpstream(String, tonic::transport::Error),
    /// The directory of the demo cannot be used.
    #[error("cannot offer {0:?} to the demo: {1}")]
    DemoDirectory(std::path::PathBuf, io::Error),
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownOutcome {
    /// Everything was drained, or released when the grace was over.
    Drained,
    /// A second signal cut the drain short.
    Aborted,
}

// === impl Config ===

impl Config {
    /// Binds the listeners and starts the operations, on the current runtime.
    ///
    /// # Errors
    /// [`AppError`] that says what cannot be had.
    pub async fn bind_and_start(mut self) -> Result<App, AppError> {
        let type_reloader = TypeReloader::load(&self)?;
        let bind = |purpose, address: &ListenAddress| {
            Listener::bind(address, self.socket_mode)
                .map_err(|error| AppError::Listen { purpose, error })
        };
        let client_listener = bind("clients", &self.listen)?;
        let bind_optional = |purpose, address: &Option<ListenAddress>| {
            let address = address.as_ref();
            address.map(|address| bind(purpose, address)).transpose()
        };
        let worker_listener = bind_optional("workers", &self.worker_listen)?;
        let admin_listener = bind_optional("admin", &self.admin_listen)?;
        info!(clients = %client_listener.local_addr(), "listening");
        if let Some(listener) = &worker_listener {
            info!(workers = %listener.local_addr(), "listening");
        }
        if let Some(listener) = &admin_listener {
            info!(admin = %listener.local_addr(), "listening");
        }
        let runtime_pool =
            RuntimePool::start(self.connection_threads).map_err(AppError::Threads)?;
        let mut builder = Operations::builder()
            .limits(self.limits.clone())
            .read_consistency(self.read_consistency)
            .default_options(self.default_options.clone())
            .types(type_reloader.types().clone());
        if let Some(root) = &mut self.demo_directory {
            *root = root
                .canonicalize()
                .map_err(|error| AppError::DemoDirectory(root.clone(), error))?;
            builder = builder.handler(
                checksum::QUEUE,
                checksum::CONCURRENCY,
                checksum::compute_checksum,
            );
        }
        for queue in &self.queues {
            let command = CommandHandler::new(&queue.command)
                .map_err(|error| AppError::InvalidCommand(queue.name.clone(), error))?;
            let command = command.with_types(type_reloader.types());
            builder = builder.handler(&queue.name, queue.concurrency, command);
            if let Some(policy) = &queue.retry_policy {
                builder = builder.queue_retry_policy(&queue.name, policy.clone());
            }
        }
        // Operators are answered while the journal is read, which may take long.
        let (readiness, admin_stop_token) = (Readiness::default(), CancellationToken::new());
        let admin_stop_guard = admin_stop_token.clone().drop_guard();
        let admin_addr = admin_listener.as_ref().map(Listener::local_addr);
        if let Some(listener) = admin_listener {
            let service = AdminService::new(builder.metrics(), readiness.clone());
            let (runtime_pool, options) = (runtime_pool.clone(), self.connections.clone());
            Tasks::default().spawn("admin", async move {
                serve(listener, service, &runtime_pool, options, admin_stop_token).await;
            });
        }
        builder = match self.store.clone() {
            StoreConfig::Memory => builder,
            StoreConfig::Sqlite(path) => {
                let storage = match spawn_blocking(move || SqliteStorage::open(path)).await {
                    Ok(storage) => storage,
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => resume_unwind(panic),
                        // The runtime ends, and this future with it.
                        Err(_) => pending().await,
                    },
                };
                builder.storage(storage.map_err(StartError::from)?)
            }
            StoreConfig::Postgres(options) => {
                let storage = PostgresStorage::open(&options).await;
                builder.storage(storage.map_err(StartError::from)?)
            }
        };
        Ok(App {
            operations: builder.start().await?,
            config: self,
            type_reloader,
            reload_signals: None,
            client_listener,
            worker_listener,
            admin_addr,
            readiness,
            runtime_pool,
            admin_stop_guard,
        })
    }
}

// === impl App ===

impl App {
    /// The operations that it serves.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Reads the descriptor sets again, and asks the upstream for its types
    /// again, at each word of [`hangups`](super::hangups).
    #[must_use]
    pub fn with_reload(mut self, reload_signals: mpsc::Receiver<()>) -> Self {
        self.reload_signals = Some(reload_signals);
        self
    }

    /// Where clients come in; with the real port.
    pub fn client_addr(&self) -> ListenAddress {
        self.client_listener.local_addr()
    }

    /// Where workers come in, if anywhere; with the real port.
    pub fn worker_addr(&self) -> Option<ListenAddress> {
        self.worker_listener.as_ref().map(Listener::local_addr)
    }

    /// Where operators come in, if anywhere; with the real port.
    pub fn admin_addr(&self) -> Option<ListenAddress> {
        self.admin_addr.clone()
    }

    /// Serves until `stop` resolves, then drains; `abort` cuts the drain short.
    pub async fn run(
        self,
        stop: impl Future<Output = ()>,
        abort: impl Future<Output = ()>,
    ) -> ShutdownOutcome {
        let Self {
            operations,
            config,
            type_reloader,
            reload_signals,
            client_listener,
            worker_listener,
            admin_addr: _,
            readiness,
            runtime_pool,
            admin_stop_guard,
        } = self;
        if let Some(root) = &config.demo_directory {
            info!(directory = %root.display(), "demo: longrunning.demo.v1.Checksums/CreateChecksum starts an operation");
        }
        for queue in &config.queues {
            info!(
                queue = queue.name,
                program = queue.command.first(),
                concurrency = queue.concurrency,
                "executing"
            );
        }
        let tasks = Tasks::default();
        let type_reload_stop = CancellationToken::new();
        // Without somebody who tells, the channel is closed and nothing comes.
        let reload_signals = reload_signals.unwrap_or_else(|| mpsc::channel(1).1);
        tasks.spawn(
            "types",
            type_reloader.run(reload_signals, type_reload_stop.clone()),
        );
        let listeners_stop = CancellationToken::new();
        let mut health = ServerHealth::default();
        let mut accept_loops = JoinSet::new();
        let listeners = [
            (
                Some(client_listener),
                ServiceRouter::for_clients(&operations, &config),
            ),
            (
                worker_listener,
                ServiceRouter::for_workers(&operations, &config),
            ),
        ];
        for (listener, (services, listener_health)) in listeners {
            let Some(listener) = listener else { continue };
            health.add(listener_health);
            let services = GrpcMetrics::new(services, operations.metrics());
            let (runtime_pool, stop, options) = (
                runtime_pool.clone(),
                listeners_stop.clone(),
                config.connections.clone(),
            );
            accept_loops.spawn(async move {
                serve(listener, services, &runtime_pool, options, stop).await;
            });
        }

        health.set_serving(true).await;
        readiness.set_serving(&operations);
        info!("serving");
        stop.await;
        type_reload_stop.cancel();
        readiness.set_stopping();
        info!(
            grace_seconds = config.shutdown_timeout.as_secs_f64(),
            "shutting down; a second signal aborts"
        );
        let drain = drain(
            &operations,
            &health,
            config.shutdown_timeout,
            &listeners_stop,
            accept_loops,
        );
        let outcome = select! {
            () = drain => ShutdownOutcome::Drained,
            () = abort => ShutdownOutcome::Aborted,
        };
        drop(admin_stop_guard);
        info!(?outcome, "stopped");
        outcome
    }
}

async fn drain(
    operations: &Operations,
    health: &ServerHealth,
    shutdown_timeout: Duration,
    listeners_stop: &CancellationToken,
    mut accept_loops: JoinSet<()>,
) {
    let started_at = Instant::now();
    let deadline = started_at
        .checked_add(shutdown_timeout)
        .unwrap_or(started_at + MAX_DRAIN_TIMEOUT);
    health.set_serving(false).await;
    // Polls are still answered while the workers finish.
    let operations_shutdown = operations.shutdown(
        shutdown_timeout.saturating_sub(CONNECTION_CLOSE_TIMEOUT.min(shutdown_timeout / 4)),
    );
    if timeout_at(deadline, operations_shutdown).await.is_err() {
        warn!("the store did not close within the grace");
    }
    listeners_stop.cancel();
    // Streams without an end, such as a watched health, must not use up the grace.
    let close_deadline = deadline.min(Instant::now() + CONNECTION_CLOSE_TIMEOUT);
    let all_closed = async { while accept_loops.join_next().await.is_some() {} };
    if timeout_at(close_deadline, all_closed).await.is_err() {
        info!("streams that were still open were cut");
        accept_loops.abort_all();
    }
    operations.close().await;
}
