//! The configuration of the server.

use std::{path::PathBuf, time::Duration};

use super::{connection::ConnectionOptions, listener::ListenAddress, store_config::StoreConfig};
use crate::{
    gateway::service::HttpOptions,
    operation::{options::ExecutionOptions, retry::RetryPolicy},
    service::request_params::WaitLimits,
    store::{consistency::ReadConsistency, limits::Limits},
};

/// Configuration of a server. Start from the default and set fields:
///
/// ```
/// use longrunning::server::Config;
///
/// let mut config = Config::default();
/// config.listen = "127.0.0.1:8470".parse()?;
/// config.worker_listen = None;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Address of the client listener: gRPC, HTTP/JSON, health, reflection.
    pub listen: ListenAddress,
    /// Address of the worker listener: OperationWorker, health, reflection.
    /// `None` disables it.
    pub worker_listen: Option<ListenAddress>,
    /// Address of the admin listener: `/livez`, `/readyz`, `/metrics`. `None` disables it.
    pub admin_listen: Option<ListenAddress>,
    /// File mode of Unix sockets, such as `0o660`. `None` leaves it to the umask.
    pub socket_mode: Option<u32>,
    /// Number of threads that serve connections, each with its own runtime. 0 is one
    /// per available processor.
    pub connection_threads: usize,
    /// Maximum duration of a shutdown.
    pub shutdown_timeout: Duration,
    /// Maximum size of a request, in bytes.
    pub max_message_bytes: usize,
    /// Limits and timeouts of connections.
    pub connections: ConnectionOptions,
    /// The storage backend.
    pub store: StoreConfig,
    /// Read consistency for servers that share a store.
    pub read_consistency: ReadConsistency,
    /// Capacity limits of the store.
    pub limits: Limits,
    /// Timeouts of waits.
    pub wait_limits: WaitLimits,
    /// Options of HTTP/JSON. Its `wait_limits` and `max_body_bytes` are replaced by
    /// those of this struct.
    pub http: HttpOptions,
    /// Execution options that apply where a creator sets none.
    pub default_options: ExecutionOptions,
    /// Root directory of the demo API, whose files it hashes. `None` disables the demo.
    pub demo_directory: Option<PathBuf>,
    /// Descriptor set files with message types. Re-read on a reload.
    pub descriptor_sets: Vec<PathBuf>,
    /// URL of a server whose message types are fetched by reflection:
    /// `http://HOST:PORT` or `unix:PATH`.
    pub reflection_upstream: Option<String>,
    /// Queues whose operations the server executes itself.
    pub queues: Vec<QueueConfig>,
}

impl Default for Config {
    /// Returns a configuration with three listeners on free loopback ports and the
    /// defaults of `longrunning serve` for all else.
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

/// A queue whose operations the server executes with a local command.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct QueueConfig {
    /// Name of the queue.
    pub name: String,
    /// The program and its arguments; see [`CommandHandler`](crate::CommandHandler).
    pub command: Vec<String>,
    /// Maximum number of operations executed at once.
    pub concurrency: usize,
    /// Retry policy that applies where a creator sets none. `None` is that of
    /// [`Config::default_options`].
    pub retry_policy: Option<RetryPolicy>,
}

// === impl QueueConfig ===

impl QueueConfig {
    /// Creates a queue with the default retry policy. An invalid name, an empty command
    /// or a concurrency of 0 makes [`Config::bind_and_start`] fail.
    pub fn new(name: impl Into<String>, command: Vec<String>, concurrency: usize) -> Self {
        Self {
            name: name.into(),
            command,
            concurrency,
            retry_policy: None,
        }
    }
}
