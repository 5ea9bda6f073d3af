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
    admin::{Admin, Readiness},
    config::{Config, StoreConfig},
    lanes::Lanes,
    listener::{ListenAddress, Listener},
    services::{Health, Services},
    types::TypeSources,
};
use crate::{
    demo::checksum,
    grpc::border::Border,
    journal::{postgres::PostgresJournal, sqlite::SqliteJournal},
    operations::{builder::StartError, operations::Operations},
    tasks::Tasks,
    types::InvalidTypes,
    worker::command::{CommandError, CommandHandler},
};

/// Longer than anybody drains.
const YEAR: Duration = Duration::from_secs(366 * 86_400);

/// The part of the grace that is kept for closing connections.
const CLOSING: Duration = Duration::from_secs(2);

/// A server with bound sockets; it serves once run.
#[derive(Debug)]
pub struct App {
    operations: Operations,
    config: Config,
    types: TypeSources,
    hangups: Option<mpsc::Receiver<()>>,
    clients: Listener,
    workers: Option<Listener>,
    admin: Option<ListenAddress>,
    ready: Readiness,
    lanes: Lanes,
    /// Operators are answered until it is dropped.
    admin_end: DropGuard,
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
    Lanes(io::Error),
    /// The command of a queue cannot be run.
    #[error("queue {0:?}: {1}")]
    Command(String, CommandError),
    /// A descriptor set cannot be used.
    #[error(transparent)]
    Types(#[from] InvalidTypes),
    /// The server whose types are wanted has no such address.
    #[error("cannot ask {0:?} for its types: {1}")]
    Reflect(String, tonic::transport::Error),
    /// The directory of the demo cannot be used.
    #[error("cannot offer {0:?} to the demo: {1}")]
    Demo(std::path::PathBuf, io::Error),
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
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
    pub async fn build(mut self) -> Result<App, AppError> {
        let types = TypeSources::load(&self)?;
        let bind = |purpose, address: &ListenAddress| {
            Listener::bind(address, self.socket_mode)
                .map_err(|error| AppError::Listen { purpose, error })
        };
        let clients = bind("clients", &self.listen)?;
        let bind_some = |purpose, address: &Option<ListenAddress>| {
            let address = address.as_ref();
            address.map(|address| bind(purpose, address)).transpose()
        };
        let workers = bind_some("workers", &self.worker_listen)?;
        let admin = bind_some("admin", &self.admin_listen)?;
        info!(clients = %clients.local(), "listening");
        if let Some(workers) = &workers {
            info!(workers = %workers.local(), "listening");
        }
        if let Some(admin) = &admin {
            info!(admin = %admin.local(), "listening");
        }
        let lanes = Lanes::start(self.lanes).map_err(AppError::Lanes)?;
        let mut builder = Operations::builder()
            .limits(self.limits.clone())
            .reads(self.reads)
            .defaults(self.defaults.clone())
            .types(types.types().clone());
        if let Some(root) = &mut self.demo {
            *root = root
                .canonicalize()
                .map_err(|error| AppError::Demo(root.clone(), error))?;
            builder = builder.handler(checksum::QUEUE, checksum::CONCURRENCY, checksum::checksum);
        }
        for queue in &self.queues {
            let command = CommandHandler::new(&queue.command)
                .map_err(|error| AppError::Command(queue.name.clone(), error))?;
            let command = command.types(types.types());
            builder = builder.handler(&queue.name, queue.concurrency, command);
            if let Some(policy) = &queue.retry {
                builder = builder.retry(&queue.name, policy.clone());
            }
        }
        // Operators are answered while the journal is read, which may take long.
        let (ready, admin_stop) = (Readiness::default(), CancellationToken::new());
        let admin_end = admin_stop.clone().drop_guard();
        let admin_address = admin.as_ref().map(Listener::local);
        if let Some(listener) = admin {
            let service = Admin::new(builder.metrics(), ready.clone());
            let (lanes, options) = (lanes.clone(), self.connections.clone());
            Tasks::default().spawn("admin", async move {
                serve(listener, service, &lanes, options, admin_stop).await;
            });
        }
        builder = match self.store.clone() {
            StoreConfig::Memory => builder,
            StoreConfig::Sqlite(path) => {
                let opened = match spawn_blocking(move || SqliteJournal::open(path)).await {
                    Ok(opened) => opened,
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => resume_unwind(panic),
                        // The runtime ends, and this future with it.
                        Err(_) => pending().await,
                    },
                };
                builder.journal(opened.map_err(StartError::from)?)
            }
            StoreConfig::Postgres(options) => {
                let opened = PostgresJournal::open(&options).await;
                builder.journal(opened.map_err(StartError::from)?)
            }
        };
        Ok(App {
            operations: builder.start().await?,
            config: self,
            types,
            hangups: None,
            clients,
            workers,
            admin: admin_address,
            ready,
            lanes,
            admin_end,
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
    pub fn reload_on(mut self, hangups: mpsc::Receiver<()>) -> Self {
        self.hangups = Some(hangups);
        self
    }

    /// Where clients come in; with the real port.
    pub fn clients(&self) -> ListenAddress {
        self.clients.local()
    }

    /// Where workers come in, if anywhere; with the real port.
    pub fn workers(&self) -> Option<ListenAddress> {
        self.workers.as_ref().map(Listener::local)
    }

    /// Where operators come in, if anywhere; with the real port.
    pub fn admin(&self) -> Option<ListenAddress> {
        self.admin.clone()
    }

    /// Serves until `stop` resolves, then drains; `abort` cuts the drain short.
    pub async fn run(
        self,
        stop: impl Future<Output = ()>,
        abort: impl Future<Output = ()>,
    ) -> Ended {
        let Self {
            operations,
            config,
            types,
            hangups,
            clients,
            workers,
            admin: _,
            ready,
            lanes,
            admin_end,
        } = self;
        if let Some(root) = &config.demo {
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
        let types_stop = CancellationToken::new();
        // Without somebody who tells, the channel is closed and nothing comes.
        let hangups = hangups.unwrap_or_else(|| mpsc::channel(1).1);
        tasks.spawn("types", types.keep(hangups, types_stop.clone()));
        let calls_stop = CancellationToken::new();
        let mut health = Health::default();
        let mut serving = JoinSet::new();
        let own = [
            (Some(clients), Services::for_clients(&operations, &config)),
            (workers, Services::for_workers(&operations, &config)),
        ];
        for (listener, (services, switch)) in own {
            let Some(listener) = listener else { continue };
            health.add(switch);
            let services = Border::new(services, operations.metrics());
            let (lanes, stop, options) = (
                lanes.clone(),
                calls_stop.clone(),
                config.connections.clone(),
            );
            serving.spawn(async move {
                serve(listener, services, &lanes, options, stop).await;
            });
        }

        health.set(true).await;
        ready.serve(&operations);
        info!("serving");
        stop.await;
        types_stop.cancel();
        ready.stop();
        info!(
            grace_seconds = config.grace.as_secs_f64(),
            "shutting down; a second signal aborts"
        );
        let drain = drain(&operations, &health, config.grace, &calls_stop, serving);
        let ended = select! {
            () = drain => Ended::Drained,
            () = abort => Ended::Aborted,
        };
        drop(admin_end);
        info!(?ended, "stopped");
        ended
    }
}

async fn drain(
    operations: &Operations,
    health: &Health,
    grace: Duration,
    stop: &CancellationToken,
    mut serving: JoinSet<()>,
) {
    let begun = Instant::now();
    let deadline = begun.checked_add(grace).unwrap_or(begun + YEAR);
    health.set(false).await;
    // Polls are still answered while the workers finish.
    let work = operations.shutdown(grace.saturating_sub(CLOSING.min(grace / 4)));
    if timeout_at(deadline, work).await.is_err() {
        warn!("the store did not close within the grace");
    }
    stop.cancel();
    // Streams without an end, such as a watched health, must not use up the grace.
    let closed = deadline.min(Instant::now() + CLOSING);
    let all = async { while serving.join_next().await.is_some() {} };
    if timeout_at(closed, all).await.is_err() {
        info!("streams that were still open were cut");
        serving.abort_all();
    }
    operations.close().await;
}
