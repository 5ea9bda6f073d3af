//! A server for `google.longrunning.Operations` ([AIP-151]): create operations in your own tonic
//! server, execute them with handlers or with workers in other processes, and serve them to any
//! gRPC or HTTP/JSON client.
//!
//! Begin with [`Operations::builder`]. It starts the store and the worker pools and returns
//! [`Operations`], a cheap handle that creates, reads and changes operations:
//!
//! ```no_run
//! use longrunning::{Any, Context, Failure, NewOperation, Operations, operations_server};
//!
//! async fn resize(context: Context) -> Result<Any, Failure> {
//!     Ok(Any::default()) // the real work, with context.report_progress(…) on the way
//! }
//!
//! # async fn start() -> Result<(), Box<dyn std::error::Error>> {
//! let operations = Operations::builder().handler("resize", 4, resize).start().await?;
//! let created = operations.create(NewOperation::queued("resize").label("user", "ann")).await?;
//! println!("created {}", created.operation.name());
//! let service = operations_server(&operations); // add it to your tonic server
//! # Ok(())
//! # }
//! ```
//!
//! # How do I …
//!
//! - **create an operation?** [`Operations::create`] with a [`NewOperation`]. Return
//!   [`Operation::to_proto`] from your method; an [`Error`] converts into a `tonic::Status`.
//! - **execute operations?** Write a [`Handler`], or an async function from [`Context`] to
//!   `Result<Any, Failure>`, and register it with [`Builder::handler`]. [`Context`] reports
//!   progress, saves checkpoints and signals cancellation.
//! - **serve operations to clients?** Add [`operations_server`] and [`watch_server`] to a tonic
//!   server, [`worker_server`] for workers in other processes, and [`gateway()`] for HTTP/JSON.
//! - **keep operations across restarts?** Pass [`SqliteStorage`], or [`PostgresStorage`] for
//!   several servers, to [`Builder::storage`]. Without it [`MemoryStorage`] discards all writes.
//! - **execute operations in another process?** [`client::Worker`] leases operations of queues and
//!   runs the same handlers; [`client::Client`] creates operations on a remote server.
//! - **test my handlers?** Start a builder without storage inside `#[tokio::test]`, create an
//!   operation and await [`Operations::wait`]. All timers follow tokio's clock, so that
//!   `tokio::time::pause` makes leases, retries and timeouts instantaneous.
//!
//! # Features
//!
//! | feature | adds |
//! | --- | --- |
//! | `sqlite` | [`SqliteStorage`]: operations in a SQLite file |
//! | `postgres` | [`PostgresStorage`]: operations in a PostgreSQL database shared by several servers |
//! | `client` | [`client`]: workers and creators in other processes than the server |
//! | `gateway` | [`gateway()`]: HTTP/JSON as a tower service |
//! | `command` | [`CommandHandler`]: a handler that runs a program for each operation |
//! | `server` | [`server`]: listeners, configuration, telemetry and graceful shutdown; enables all of the above |
//! | `cli` | the program `longrunning`; enables `server` |
//!
//! The default features are those of the program. A library user sets `default-features = false`
//! and enables what it needs.
//!
//! # Guarantees
//!
//! - A queued operation is executed at least once, as long as its retry policy has attempts left.
//!   [`Context::attempt`] is a fencing token for other systems.
//! - Exactly one outcome is recorded. A done operation has exactly one of `error` and `response`,
//!   and its bytes never change.
//! - At most one lease of an operation is valid at a time. A stale [`LeaseToken`] changes nothing.
//! - A change is visible only after the storage has made it durable, and an acknowledged change is
//!   visible to every reader of this server.
//!
//! [AIP-151]: https://google.aip.dev/151

#![cfg_attr(docsrs, feature(doc_cfg))]

// Test support that is shared with the integration tests names the crate.
#[cfg(all(test, feature = "postgres"))]
extern crate self as longrunning;

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
mod clock;
#[cfg(feature = "server")]
mod demo;
mod error;
mod error_status;
#[cfg(feature = "gateway")]
mod gateway;
mod grpc;
mod metrics;
mod operation;
pub mod proto;
mod query;
#[cfg(feature = "server")]
mod reflection;
#[cfg(feature = "server")]
pub mod server;
mod service;
mod storage;
mod store;
mod tasks;
#[cfg_attr(
    not(feature = "cli"),
    expect(dead_code, reason = "the commands use the rest of it")
)]
mod types;
mod worker;

pub use clock::{Clock, Timestamp};
pub use error::{Error, Result};
#[cfg(feature = "gateway")]
pub use gateway::{
    cors::{CorsOrigins, InvalidCorsOrigins},
    prefix::{HttpPrefix, InvalidHttpPrefix},
    service::{Gateway, HttpOptions, gateway},
};
pub use grpc::{
    admin::{AdminService, OperationAdminServer, admin_server},
    codec::EncodedMessage,
    metrics_layer::{GrpcMetrics, GrpcMetricsLayer},
    operations::{OperationsServer, OperationsService, operations_server, operations_server_with},
    watch::{OperationWatchServer, WatchService, watch_server},
    worker::{OperationWorkerServer, WorkerService, worker_server, worker_server_with},
};
pub use metrics::Metrics;
pub use operation::{
    Operation, OperationVersion,
    attempt_result::{AttemptResult, InvalidAttemptResult},
    labels::{InvalidLabels, Labels},
    lease::{InvalidWorkerId, Lease, LeaseToken, WorkerId},
    name::{InvalidName, OperationId, OperationName, Parent},
    options::{ExecutionOptions, InvalidExecutionOptions, InvalidQueueName, QueueName},
    outcome::{Failure, InvalidOutcome},
    payload::{InvalidAny, Payload},
    progress::InvalidProgress,
    retry::{InvalidRetryPolicy, RetryPolicy},
    trace::{InvalidTraceContext, TraceContext},
    transition::{LeaseLostReason, Report, TransitionError},
};
pub use prost_types::Any;
pub use proto::longrunning::v1::{Progress, operation_metadata::State};
pub use service::{
    builder::{Builder, StartError},
    list::Page,
    new_operation::NewOperation,
    operations::Operations,
    request_params::WaitLimits,
    watch::Watch,
};
#[cfg(feature = "postgres")]
pub use storage::postgres::{PostgresStorage, config::PostgresConfig};
#[cfg(feature = "sqlite")]
pub use storage::sqlite::SqliteStorage;
pub use storage::{
    Change, ChangeBatch, ChangeFeed, Completion, LoadSink, SharedStorage, Storage, StorageStatus,
    Write, WriteError,
    error::{StorageError, StorageErrorKind},
    memory::MemoryStorage,
};
pub use store::{consistency::ReadConsistency, create::Created, limits::Limits};
pub use types::{InvalidDescriptorSet, TypeRegistry};
#[cfg(feature = "command")]
pub use worker::command::{CommandHandler, InvalidCommand};
pub use worker::{context::Context, handler::Handler};
