//! Starts, runs and drains a server. The drain turns readiness off, answers waits,
//! finishes or releases the work of in-process workers, and closes the connections.

use std::{future::Future, io, path::PathBuf, time::Duration};

use tokio::{
    select,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::Layer;
use tracing::{info, warn};

use super::{
    accept::serve,
    admin::{AdminService, Readiness},
    config::Config,
    listener::{ListenAddress, Listener},
    runtime_pool::RuntimePool,
    services::{self, ListenerHealth, ServiceRouter},
    store_config::StoreConfig,
    type_reload::{TypeReloadError, TypeReloader},
};
use crate::{
    demo::checksum,
    grpc::metrics_layer::GrpcMetricsLayer,
    service::{builder::StartError, operations::Operations},
    storage::{postgres::PostgresStorage, sqlite::SqliteStorage},
    tasks::{Tasks, run_blocking},
    worker::command::{CommandHandler, InvalidCommand},
};

/// Drain timeout in place of one that overflows the clock.
const MAX_DRAIN_TIMEOUT: Duration = Duration::from_secs(366 * 86_400);

/// The part of the shutdown timeout that is reserved for closing connections.
const CONNECTION_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A started server with bound sockets. It accepts connections once [`run`](Self::run)
/// is called; only the admin listener is served before.
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
    /// Stops the admin listener when dropped.
    admin_stop_guard: DropGuard,
}

/// Error that prevents a server from starting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppError {
    /// A listener cannot be bound.
    #[error("{listener} listener: {source}")]
    Listen {
        /// `client`, `worker` or `admin`.
        listener: &'static str,
        /// The error of the socket.
        source: io::Error,
    },
    /// The operations cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The connection threads cannot start.
    #[error("failed to start the connection threads: {0}")]
    Threads(#[source] io::Error),
    /// The command of a queue is invalid.
    #[error("queue {queue:?}: {source}")]
    InvalidCommand {
        /// Name of the queue.
        queue: String,
        /// The error of the command.
        source: InvalidCommand,
    },
    /// A source of message types is invalid.
    #[error(transparent)]
    Types(#[from] TypeReloadError),
    /// The directory of the demo cannot be used.
    #[error("invalid demo directory {path:?}: {source}")]
    DemoDirectory {
        /// The configured directory.
        path: PathBuf,
        /// The error of the file system.
        source: io::Error,
    },
}

/// Outcome of [`App::run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShutdownOutcome {
    /// The drain completed or reached the shutdown timeout.
    Drained,
    /// The `abort` future ended the drain.
    Aborted,
}

// === impl Config ===

impl Config {
    /// Binds the listeners, opens the store and starts the operations, on the current
    /// runtime. The admin listener is served while the store loads.
    ///
    /// # Errors
    /// [`AppError`] if a listener, the store, a command or a source of types is unusable.
    pub async fn bind_and_start(mut self) -> Result<App, AppError> {
        let type_reloader = TypeReloader::load(&self).await?;
        let bind = |listener, address: &ListenAddress| {
            Listener::bind(address, self.socket_mode)
                .map_err(|source| AppError::Listen { listener, source })
        };
        let client_listener = bind("client", &self.listen)?;
        let bind_optional = |listener, address: &Option<ListenAddress>| {
            let address = address.as_ref();
            address.map(|address| bind(listener, address)).transpose()
        };
        let worker_listener = bind_optional("worker", &self.worker_listen)?;
        let admin_listener = bind_optional("admin", &self.admin_listen)?;
        let admin_addr = admin_listener.as_ref().map(Listener::local_addr);
        info!(clients = %client_listener.local_addr(), "listening");
        if let Some(listener) = &worker_listener {
            info!(workers = %listener.local_addr(), "listening");
        }
        if let Some(address) = &admin_addr {
            info!(admin = %address, "listening");
        }
        let runtime_pool =
            RuntimePool::start(self.connection_threads).map_err(AppError::Threads)?;
        let mut builder = Operations::builder()
            .limits(self.limits.clone())
            .read_consistency(self.read_consistency)
            .default_options(self.default_options.clone())
            .types(type_reloader.types().clone());
        if let Some(root) = &mut self.demo_directory {
            *root = root.canonicalize().map_err(|source| {
                let path = root.clone();
                AppError::DemoDirectory { path, source }
            })?;
            let concurrency = checksum::CONCURRENCY;
            builder = builder.handler(checksum::QUEUE, concurrency, checksum::compute_checksum);
        }
        for queue in &self.queues {
            let command = CommandHandler::new(&queue.command).map_err(|source| {
                let queue = queue.name.clone();
                AppError::InvalidCommand { queue, source }
            })?;
            let command = command.with_types(type_reloader.types());
            builder = builder.handler(&queue.name, queue.concurrency, command);
            if let Some(policy) = &queue.retry_policy {
                builder = builder.queue_retry_policy(&queue.name, policy.clone());
            }
        }
        // Probes need responses while the store loads, which may take minutes.
        let (readiness, admin_stop_token) = (Readiness::default(), CancellationToken::new());
        let admin_stop_guard = admin_stop_token.clone().drop_guard();
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
                let storage = run_blocking(move || SqliteStorage::open(path)).await;
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
    /// Returns the handle to the operations of this server.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Reloads the message types on each value of `reload_signals`, such as those of
    /// [`reload_signals`](super::reload_signals()).
    #[must_use]
    pub fn with_reload(mut self, reload_signals: mpsc::Receiver<()>) -> Self {
        self.reload_signals = Some(reload_signals);
        self
    }

    /// Returns the bound address of the client listener; port 0 is resolved.
    pub fn client_addr(&self) -> ListenAddress {
        self.client_listener.local_addr()
    }

    /// Returns the bound address of the worker listener, or `None` if there is none.
    pub fn worker_addr(&self) -> Option<ListenAddress> {
        self.worker_listener.as_ref().map(Listener::local_addr)
    }

    /// Returns the bound address of the admin listener, or `None` if there is none.
    pub fn admin_addr(&self) -> Option<ListenAddress> {
        self.admin_addr.clone()
    }

    /// Serves until `stop` resolves, then drains for at most the shutdown timeout.
    /// `abort` ends the drain early; it is ignored before `stop`.
    pub async fn run(
        self,
        stop: impl Future<Output = ()>,
        abort: impl Future<Output = ()>,
    ) -> ShutdownOutcome {
        let (operations, config) = (self.operations, self.config);
        if let Some(root) = &config.demo_directory {
            info!(directory = %root.display(), "serving the demo: longrunning.demo.v1.Checksums/CreateChecksum");
        }
        for queue in &config.queues {
            info!(
                queue = queue.name,
                program = queue.command.first(),
                concurrency = queue.concurrency,
                "executing queue"
            );
        }
        let type_reload_stop = CancellationToken::new();
        // Without a source of signals, `recv` on the closed channel returns `None`.
        let reload_signals = self.reload_signals.unwrap_or_else(|| mpsc::channel(1).1);
        let type_reload = self.type_reloader;
        let type_reload = type_reload.run(reload_signals, type_reload_stop.clone());
        Tasks::default().spawn("type reload", type_reload);
        let listeners_stop = CancellationToken::new();
        let mut health = Vec::new();
        let metrics_layer = GrpcMetricsLayer::new(operations.metrics());
        let mut accept_loops = JoinSet::new();
        let client_services = ServiceRouter::for_clients(&operations, &config);
        let worker_services = ServiceRouter::for_workers(&operations, &config);
        for (listener, (services, listener_health)) in [
            (Some(self.client_listener), client_services),
            (self.worker_listener, worker_services),
        ] {
            let Some(listener) = listener else { continue };
            health.push(listener_health);
            let services = metrics_layer.layer(services);
            let (runtime_pool, stop) = (self.runtime_pool.clone(), listeners_stop.clone());
            let options = config.connections.clone();
            accept_loops.spawn(async move {
                serve(listener, services, &runtime_pool, options, stop).await;
            });
        }

        services::set_serving(&health, true).await;
        self.readiness.set_serving(&operations);
        info!("serving");
        stop.await;
        type_reload_stop.cancel();
        self.readiness.set_stopping();
        let timeout = config.shutdown_timeout;
        info!(
            shutdown_timeout_secs = timeout.as_secs_f64(),
            "shutting down; a second signal aborts"
        );
        let outcome = select! {
            () = drain(&operations, &health, timeout, &listeners_stop, accept_loops) => {
                ShutdownOutcome::Drained
            }
            () = abort => ShutdownOutcome::Aborted,
        };
        drop(self.admin_stop_guard);
        info!(?outcome, "stopped");
        outcome
    }
}

async fn drain(
    operations: &Operations,
    health: &[ListenerHealth],
    shutdown_timeout: Duration,
    listeners_stop: &CancellationToken,
    mut accept_loops: JoinSet<()>,
) {
    let started_at = Instant::now();
    let deadline = started_at
        .checked_add(shutdown_timeout)
        .unwrap_or(started_at + MAX_DRAIN_TIMEOUT);
    services::set_serving(health, false).await;
    // Clients can still poll while the workers finish.
    let close_timeout = CONNECTION_CLOSE_TIMEOUT.min(shutdown_timeout / 4);
    let operations_shutdown = operations.shutdown(shutdown_timeout.saturating_sub(close_timeout));
    if timeout_at(deadline, operations_shutdown).await.is_err() {
        warn!("background tasks did not stop within the shutdown timeout");
    }
    listeners_stop.cancel();
    // Endless streams, such as a health watch, must not take the whole timeout.
    let close_deadline = deadline.min(Instant::now() + CONNECTION_CLOSE_TIMEOUT);
    let all_closed = async { while accept_loops.join_next().await.is_some() {} };
    if timeout_at(close_deadline, all_closed).await.is_err() {
        info!("closing connections that are still open after the drain");
        accept_loops.abort_all();
    }
    operations.close().await;
}
