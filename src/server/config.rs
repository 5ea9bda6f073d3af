//! The configuration of the program: plain data. Where the values come from
//! (flags, environment, a file) is the affair of `cli`.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use super::{connection::ConnectionOptions, listener::ListenAddress};
use crate::{
    gateway::service::HttpOptions,
    operation::{options::ExecutionOptions, retry::RetryPolicy},
    service::request_params::WaitLimits,
    storage::postgres::config::PostgresConfig,
    store::{consistency::ReadConsistency, limits::Limits},
};

/// Everything that can be set.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients come in: gRPC, HTTP/JSON, health, reflection.
    pub listen: ListenAddress,
    /// Where workers and creators come in: OperationWorker, health, reflection.
    /// None: nowhere.
    pub worker_listen: Option<ListenAddress>,
    /// Where operators come in: `/livez`, `/readyz`, `/metrics`. None: nowhere.
    pub admin_listen: Option<ListenAddress>,
    /// The permissions of the files of Unix sockets, such as `0o660`. None: what
    /// the umask leaves.
    pub socket_mode: Option<u32>,
    /// Threads that serve connections; each has a runtime of its own. 0: as many
    /// as the process may use processors.
    pub connection_threads: usize,
    /// How long a shutdown may take.
    pub shutdown_timeout: Duration,
    /// The largest request, in bytes.
    pub max_message_bytes: usize,
    /// How connections are treated.
    pub connections: ConnectionOptions,
    /// Where operations are kept.
    pub store: StoreConfig,
    /// How new what clients read is, if several servers share the store.
    pub read_consistency: ReadConsistency,
    /// How much the store takes in.
    pub limits: Limits,
    /// How long waits last.
    pub wait_limits: WaitLimits,
    /// How HTTP/JSON is served; its limits on waits and bodies are those above.
    pub http: HttpOptions,
    /// The terms of operations whose creator leaves them out.
    pub default_options: ExecutionOptions,
    /// The directory that the demo API offers to hash. None: no demo.
    pub demo_directory: Option<PathBuf>,
    /// The files with the descriptor sets of message types; read again when the
    /// program is told to reload.
    pub descriptor_sets: Vec<PathBuf>,
    /// The server whose message types are known by its reflection:
    /// `http://HOST:PORT` or `unix:PATH`. None: none.
    pub reflection_upstream: Option<String>,
    /// The queues whose operations the server executes itself.
    pub queues: Vec<QueueConfig>,
}

impl Default for Config {
    /// A server on free ports of the loopback, for programs that say where it
    /// listens, with the limits and times that `longrunning serve` has without
    /// a flag.
    fn default() -> Self {
        let free_port = || ListenAddress::Tcp("127.0.0.1:0".into());
        Self {
            listen: free_port(),
            worker_listen: Some(free_port()),
            admin_listen: Some(free_port()),
            socket_mode: None,
            connection_threads: 0,
            shutdown_timeout: Duration::from_secs(20),
            max_message_bytes: 4 << 20,
            connections: ConnectionOptions::default(),
            store: StoreConfig::Memory,
            read_consistency: ReadConsistency::default(),
            limits: Limits::default(),
            wait_limits: WaitLimits::default(),
            http: HttpOptions::default(),
            default_options: ExecutionOptions::default(),
            demo_directory: None,
            descriptor_sets: Vec::new(),
            reflection_upstream: None,
            queues: Vec::new(),
        }
    }
}

/// Where operations are kept. It reads as `memory`, `sqlite:PATH` or
/// `postgres://USER@HOST/DATABASE`, and prints so, without a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreConfig {
    /// In memory: they live as long as the process.
    Memory,
    /// In memory for readers, and in this SQLite file for the next start.
    Sqlite(PathBuf),
    /// In PostgreSQL, where all servers of the same schema serve all operations.
    Postgres(PostgresConfig),
}

/// The text names no store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "use memory, sqlite:PATH such as sqlite:/var/lib/longrunning/operations.db, or \
     postgres://USER:PASSWORD@HOST/DATABASE"
)]
pub struct InvalidStoreConfig;

impl FromStr for StoreConfig {
    type Err = InvalidStoreConfig;

    fn from_str(text: &str) -> Result<Self, InvalidStoreConfig> {
        match text.split_once(':') {
            None if text == "memory" => Ok(Self::Memory),
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self::Sqlite(path.into())),
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres(PostgresConfig::new(text))),
            _ => Err(InvalidStoreConfig),
        }
    }
}

impl fmt::Display for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(options) => options.fmt(f),
        }
    }
}

/// A queue whose operations are executed by a program on this machine.
#[derive(Clone, Debug)]
pub struct QueueConfig {
    /// Its name.
    pub name: String,
    /// The program and its arguments; see [`CommandHandler`](crate::CommandHandler).
    pub command: Vec<String>,
    /// The most operations at once.
    pub concurrency: usize,
    /// The retry policy of operations whose creator leaves it out. None: that of
    /// the defaults.
    pub retry_policy: Option<RetryPolicy>,
}
