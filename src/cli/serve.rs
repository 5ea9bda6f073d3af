//! `longrunning serve`: the flags and the run of the server. Each flag has an environment
//! variable: that of `--max-waiters` is `LONGRUNNING_MAX_WAITERS`.

use std::{ffi::OsString, path::PathBuf, pin::pin, time::Duration};

use bytesize::ByteSize;
use clap::Args;
use humantime::parse_duration;
use tokio::select;

use super::{
    args::{EXIT_ERROR, EXIT_FAILED, EXIT_SUCCESS},
    client::{CliError, Endpoint},
    types::non_empty_paths,
};
use crate::{
    gateway::{cors::CorsOrigins, prefix::HttpPrefix, service::HttpOptions},
    operation::options::ExecutionOptions,
    server::{
        Config, ConnectionOptions, ListenAddress, LogFormat, QueueConfig, ShutdownOutcome,
        StoreConfig, init_telemetry, log_panics, reload_signals, shutdown_signals,
    },
    service::request_params::WaitLimits,
    storage::postgres::config::PostgresConfig,
    store::{consistency::ReadConsistency, limits::Limits},
};

#[derive(Args, Debug)]
pub(super) struct ServeArgs {
    /// Read settings from a TOML file: keys are the names of these flags, and [[queue]] tables
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Address for clients: gRPC, HTTP/JSON, health, reflection; HOST:PORT or unix:PATH
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8470")]
    listen: ListenAddress,
    /// Address for workers: OperationWorker, health, reflection; `none` to disable
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8471",
        value_parser = parse_optional_address)]
    worker_listen: OptionalAddress,
    /// Address for operators: /livez, /readyz, /metrics; `none` to disable
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8472",
        value_parser = parse_optional_address)]
    admin_listen: OptionalAddress,
    /// File mode of Unix sockets, such as 660 [default: by umask]
    #[arg(long, value_name = "OCTAL", value_parser = parse_socket_mode)]
    socket_mode: Option<u32>,
    /// Where operations are stored: memory (lost at exit), sqlite:PATH (one server), or
    /// postgres://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full (shared by several servers)
    #[arg(
        long,
        value_name = "STORE",
        default_value = "memory",
        hide_env_values = true
    )]
    store: StoreConfig,
    /// PostgreSQL schema; servers with the same schema share their operations
    #[arg(long, value_name = "NAME", default_value = "longrunning")]
    store_schema: String,
    /// Direct PostgreSQL URL for LISTEN/NOTIFY, required if --store points at a transaction
    /// pooler such as PgBouncer
    #[arg(long, value_name = "URL", hide_env_values = true)]
    store_notify_url: Option<String>,
    /// Done operations cached in memory with PostgreSQL; older ones are read from the database
    /// on demand
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    cache_done_operations: usize,
    /// Read consistency with PostgreSQL: `auto` (includes every acknowledged write; this server's
    /// copy if the database does not answer within a second), `linearizable` (UNAVAILABLE then) or
    /// `local` (always this server's copy, which may lag)
    #[arg(
        long,
        value_name = "LEVEL",
        default_value = "auto",
        value_parser = parse_read_consistency
    )]
    read_consistency: ReadConsistency,
    /// Threads that serve connections; 0 means one per processor
    #[arg(long, value_name = "N", default_value_t = 0)]
    connection_threads: usize,
    /// Maximum duration of a graceful shutdown
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = parse_duration)]
    shutdown_timeout: Duration,
    /// Timeout of WaitOperation for a call without timeout and deadline
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    default_wait_timeout: Duration,
    /// Maximum timeout of WaitOperation
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    max_wait_timeout: Duration,
    /// Default retention: how long a done operation stays readable
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_duration)]
    retention: Duration,
    /// Default lease duration: a worker that sends no heartbeat for this long loses its lease; at least 1s
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    lease_duration: Duration,
    /// Maximum number of operations in memory; more are rejected with STORE_FULL
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    max_operations: usize,
    /// Maximum total size of operations in memory; more is rejected with STORE_FULL
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    max_total_bytes: ByteSize,
    /// Maximum size of one operation; more is rejected with TOO_LARGE
    #[arg(long, value_name = "SIZE", default_value = "3MiB")]
    max_operation_bytes: ByteSize,
    /// Maximum size of one request; more is rejected with TOO_LARGE
    #[arg(long, value_name = "SIZE", default_value = "4MiB")]
    max_message_bytes: ByteSize,
    /// Maximum number of pending operations in one queue; more are rejected with QUEUE_FULL
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    max_queue_length: usize,
    /// Maximum number of open waits and watches, and separately of waiting LeaseOperations calls and
    /// WatchDirectives streams; further waits return at once, the others are rejected
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    max_waiters: usize,
    /// Maximum number of open connections; further ones are closed
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    max_connections: usize,
    /// Prefix of every HTTP path, such as /v1 or /api/v2; / for none [default: any API version, such as /v1]
    #[arg(long, value_name = "PATH")]
    http_prefix: Option<HttpPrefix>,
    /// Comma-separated origins allowed by CORS; * for any [default: none]
    #[arg(long, value_name = "ORIGINS")]
    cors_origin: Option<CorsOrigins>,
    /// Log filter: a level, or directives such as info,longrunning=debug
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log_filter: String,
    /// Log format; auto is text on a terminal and JSON otherwise
    #[arg(long, default_value = "auto", value_parser = ["auto", "text", "json"])]
    log_format: String,
    /// Also serve the demo API, longrunning.demo.v1.Checksums, for the files below DIR
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = ".")]
    demo: Option<PathBuf>,
    /// Descriptor set with the message types of metadata and results; repeatable, reloaded on SIGHUP
    #[arg(
        long = "descriptor-set",
        alias = "descriptor_sets",
        value_name = "FILE",
        value_delimiter = ':'
    )]
    descriptor_sets: Vec<OsString>,
    /// Server whose message types are loaded through gRPC reflection, for JSON and filters
    #[arg(long, value_name = "URL", value_parser = parse_optional_endpoint)]
    reflection_upstream: Option<OptionalEndpoint>,
    /// The `[[queue]]` tables of the config file.
    #[arg(skip)]
    pub(super) queues: Vec<QueueConfig>,
}

/// An address, or `None` if the value of the flag is `none`. Do not inline: clap's derive recognizes
/// `Option` by its name, and takes the value type of an `Option` field to be that inside of it.
type OptionalAddress = Option<ListenAddress>;

/// An endpoint, or `None` if the value of the flag is empty. Do not inline: clap's derive recognizes
/// `Option` by its name, and makes an `Option<Option<_>>` field a flag whose value may be missing.
type OptionalEndpoint = Option<Endpoint>;

/// Parses an address, or `none`.
fn parse_optional_address(text: &str) -> Result<OptionalAddress, String> {
    if text == "none" {
        return Ok(None);
    }
    let address = text.parse::<ListenAddress>();
    address
        .map(Some)
        .map_err(|error| format!("{error}, or none to disable"))
}

/// Parses an endpoint, or none if empty: a compose file passes an unset variable as an
/// empty one.
fn parse_optional_endpoint(text: &str) -> Result<OptionalEndpoint, String> {
    (!text.is_empty()).then(|| text.parse()).transpose()
}

fn parse_read_consistency(text: &str) -> Result<ReadConsistency, String> {
    match text {
        "auto" => Ok(ReadConsistency::Auto),
        "local" => Ok(ReadConsistency::Local),
        "linearizable" => Ok(ReadConsistency::Linearizable),
        _ => Err("use auto, linearizable or local".to_owned()),
    }
}

fn parse_socket_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("use three octal digits, such as 660".to_owned()),
    }
}

/// Runs the server until a signal. Returns the exit code.
pub(super) async fn serve(args: ServeArgs) -> Result<u8, CliError> {
    let log_format = match args.log_format.as_str() {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        _ => LogFormat::Auto,
    };
    let log = init_telemetry(log_format, &args.log_filter)
        .map_err(|error| CliError::local(format!("--log-filter: {error}")))?;
    log_panics();
    Ok(match run_server(args).await {
        Ok(ShutdownOutcome::Drained) => EXIT_SUCCESS,
        Ok(ShutdownOutcome::Aborted) => EXIT_FAILED,
        Err(error) => {
            // Through the log: standard error may block, and signals end nothing any more.
            log.write_line(format_args!("error: {error}"));
            EXIT_ERROR
        }
    })
}

async fn run_server(args: ServeArgs) -> Result<ShutdownOutcome, Box<dyn std::error::Error>> {
    // Registered before the listeners are bound, so that no signal is missed.
    let (stop, abort) = shutdown_signals()?;
    let reload_signal = reload_signals()?;
    let mut stop = pin!(stop);
    let app = select! {
        app = args.into_config().bind_and_start() => app?,
        // Nothing to drain: no listener accepts connections yet.
        () = &mut stop => return Ok(ShutdownOutcome::Drained),
    };
    Ok(app.with_reload(reload_signal).run(stop, abort).await)
}

// === impl ServeArgs ===

impl ServeArgs {
    pub(super) fn into_config(self) -> Config {
        let to_bytes = |size: ByteSize| usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
        Config {
            listen: self.listen,
            worker_listen: self.worker_listen,
            admin_listen: self.admin_listen,
            socket_mode: self.socket_mode,
            read_consistency: self.read_consistency,
            connection_threads: self.connection_threads,
            shutdown_timeout: self.shutdown_timeout,
            max_message_bytes: to_bytes(self.max_message_bytes),
            connections: ConnectionOptions {
                max_connections: self.max_connections,
                ..ConnectionOptions::default()
            },
            store: match self.store {
                StoreConfig::Postgres(config) => StoreConfig::Postgres(PostgresConfig {
                    notify_url: self.store_notify_url.filter(|url| !url.is_empty()),
                    schema: self.store_schema,
                    cache_limit: Some(self.cache_done_operations),
                    ..config
                }),
                store => store,
            },
            limits: Limits {
                max_operations: self.max_operations,
                max_total_bytes: to_bytes(self.max_total_bytes),
                max_operation_bytes: to_bytes(self.max_operation_bytes),
                max_queue_length: self.max_queue_length,
                max_waiters: self.max_waiters,
            },
            wait_limits: WaitLimits {
                default_timeout: self.default_wait_timeout,
                max_timeout: self.max_wait_timeout,
            },
            http: HttpOptions {
                prefix: self.http_prefix.unwrap_or_default(),
                cors_origins: self.cors_origin.unwrap_or_default(),
                ..HttpOptions::default()
            },
            default_options: ExecutionOptions {
                retention: self.retention,
                lease_duration: self.lease_duration,
                ..ExecutionOptions::default()
            },
            // A compose file passes an unset variable as an empty one.
            demo_directory: self.demo.filter(|root| !root.as_os_str().is_empty()),
            descriptor_sets: non_empty_paths(self.descriptor_sets),
            reflection_upstream: self
                .reflection_upstream
                .flatten()
                .map(|url| url.to_string()),
            queues: self.queues,
        }
    }
}
