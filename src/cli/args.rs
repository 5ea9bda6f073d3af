//! What the commands share: the flags of those that ask a server, and the exit
//! codes. Which commands there are is declared in `program`.

use clap::{Args, ValueEnum};

use super::{client::Endpoint, types::TypesArgs};
use crate::server::ListenAddress;

/// The operation failed.
pub(super) const EXIT_FAILED: u8 = 1;
/// A command was not run, because the call was bad or the server refused it.
pub(super) const EXIT_ERROR: u8 = 2;

/// The operation was not done in time.
pub(super) const EXIT_TIMEOUT: u8 = 3;
/// Ctrl-C.
pub(super) const EXIT_INTERRUPTED: u8 = 130;

/// Where the server is.
#[derive(Args, Debug)]
pub(super) struct EndpointArgs {
    /// The server, http://HOST:PORT or unix:PATH
    #[arg(
        long,
        env = "LONGRUNNING_ENDPOINT",
        value_name = "URL",
        default_value = "http://127.0.0.1:8470"
    )]
    pub(super) endpoint: Endpoint,
}

/// Which server to check.
#[derive(Args, Debug)]
pub(super) struct HealthArgs {
    /// The server, http://HOST:PORT or unix:PATH [default: where LONGRUNNING_LISTEN says]
    #[arg(long, env = "LONGRUNNING_ENDPOINT", value_name = "URL")]
    pub(super) endpoint: Option<Endpoint>,
    /// Where the server of this container listens
    #[arg(
        long,
        env = "LONGRUNNING_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8470"
    )]
    pub(super) listen: ListenAddress,
}

/// How to print.
#[derive(Args, Debug)]
pub(super) struct PrintArgs {
    /// A table for people, or ProtoJSON
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
    /// The name of the operation; a bare ID stands for operations/ID
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    #[command(flatten)]
    pub(super) server: EndpointArgs,
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
    /// Give up after this time, as 30s or 5m [default: wait until it is done]
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(super) timeout: Option<std::time::Duration>,
}

#[derive(Args, Debug)]
pub(super) struct ListArgs {
    /// A parent such as projects/p1; `operations` for the root, - for everything
    #[arg(value_name = "PARENT", default_value = "-")]
    pub(super) parent: String,
    /// Only operations of which this is true, as 'done = false AND labels.env = prod';
    /// docs/filters.md has the language
    #[arg(
        long,
        short,
        default_value = "",
        hide_default_value = true,
        value_name = "EXPR"
    )]
    pub(super) filter: String,
    /// Stop after so many operations
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) limit: u32,
    #[command(flatten)]
    pub(super) server: EndpointArgs,
    #[command(flatten)]
    pub(super) print: PrintArgs,
}

// === impl Output ===

impl OutputFormat {
    pub(super) fn is_json(self) -> bool {
        self == Self::Json
    }
}
