//! The flags that several commands share, and the exit codes.

use clap::{Args, ValueEnum};

use super::{client::Endpoint, types::TypesArgs};
use crate::server::ListenAddress;

/// The command succeeded.
pub(super) const EXIT_SUCCESS: u8 = 0;
/// The operation failed or was cancelled, or a check failed.
pub(super) const EXIT_FAILED: u8 = 1;
/// The arguments are invalid, the server returned an error or is unreachable.
pub(super) const EXIT_ERROR: u8 = 2;
/// The operation was not done before `--timeout`.
pub(super) const EXIT_TIMEOUT: u8 = 3;
/// The command was interrupted: 128 + SIGINT, as shells report it.
pub(super) const EXIT_INTERRUPTED: u8 = 130;

/// The server's endpoint for clients.
#[derive(Args, Debug)]
pub(super) struct EndpointArgs {
    /// Server endpoint for clients, http://HOST:PORT or unix:PATH
    #[arg(
        long,
        env = "LONGRUNNING_ENDPOINT",
        value_name = "URL",
        default_value = "http://127.0.0.1:8470"
    )]
    pub(super) endpoint: Endpoint,
}

/// The server's endpoint for workers and services.
#[derive(Args, Debug)]
pub(super) struct WorkerEndpointArgs {
    /// Server endpoint for workers, http://HOST:PORT or unix:PATH
    #[arg(
        long,
        env = "LONGRUNNING_WORKER_ENDPOINT",
        value_name = "URL",
        default_value = "http://127.0.0.1:8471"
    )]
    pub(super) worker_endpoint: Endpoint,
}

#[derive(Args, Debug)]
pub(super) struct HealthArgs {
    /// Server endpoint for clients, http://HOST:PORT or unix:PATH [default: derived from --listen]
    #[arg(long, env = "LONGRUNNING_ENDPOINT", value_name = "URL")]
    pub(super) endpoint: Option<Endpoint>,
    /// Listen address of a server in the same container
    #[arg(
        long,
        env = "LONGRUNNING_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8470"
    )]
    pub(super) listen: ListenAddress,
}

/// The output format and the types it needs.
#[derive(Args, Debug)]
pub(super) struct PrintArgs {
    /// Output format: table, or json for ProtoJSON
    #[arg(long, short, value_enum, default_value_t = OutputFormat::Table)]
    pub(super) output: OutputFormat,
    #[command(flatten)]
    pub(super) types: TypesArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    Table,
    Json,
}

#[derive(Args, Debug)]
pub(super) struct NameArgs {
    /// Name of the operation; a bare ID means operations/ID
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    #[command(flatten)]
    pub(super) server: EndpointArgs,
}

#[derive(Args, Debug)]
pub(super) struct CancelArgs {
    #[command(flatten)]
    pub(super) name: NameArgs,
    /// Cancel an operation that was deleted and is still queued or running; asks the listener for
    /// workers
    #[arg(long)]
    pub(super) deleted: bool,
    #[command(flatten)]
    pub(super) worker: WorkerEndpointArgs,
}

#[derive(Args, Debug)]
pub(super) struct OperationArgs {
    #[command(flatten)]
    pub(super) name: NameArgs,
    #[command(flatten)]
    pub(super) print: PrintArgs,
}

#[derive(Args, Debug)]
pub(super) struct WaitArgs {
    #[command(flatten)]
    pub(super) operation: OperationArgs,
    /// Maximum time to wait, such as 30s or 5m [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(super) timeout: Option<std::time::Duration>,
}

#[derive(Args, Debug)]
pub(super) struct ListArgs {
    /// Parent of the operations, such as projects/p1; `operations` for the root, - for all parents
    #[arg(value_name = "PARENT", default_value = "-")]
    pub(super) parent: String,
    /// AIP-160 filter, such as 'done = false AND labels.env = prod'; see docs/filters.md
    #[arg(
        long,
        short,
        default_value = "",
        hide_default_value = true,
        value_name = "EXPR"
    )]
    pub(super) filter: String,
    /// Maximum number of operations to print
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) limit: u32,
    /// Also list operations that were deleted and are still queued or running; asks the listener
    /// for workers
    #[arg(long)]
    pub(super) show_deleted: bool,
    #[command(flatten)]
    pub(super) worker: WorkerEndpointArgs,
    #[command(flatten)]
    pub(super) server: EndpointArgs,
    #[command(flatten)]
    pub(super) print: PrintArgs,
}

// === impl OutputFormat ===

impl OutputFormat {
    pub(super) fn is_json(self) -> bool {
        self == Self::Json
    }
}
