//! The missing server for `google.longrunning.Operations` (AIP-151): a
//! concurrent in-memory store of operations, moved by background tokio workers
//! and followed by any Google client.
//!
//! ```no_run
//! use longrunning::{Any, Context, Failure, NewOperation, Operations, operations_server};
//!
//! async fn resize(context: Context) -> Result<Any, Failure> {
//!     Ok(Any::default()) // the real work, with context.progress(…) on the way
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
//! # Map
//!
//! Imports run one way, each only to what stands further down:
//!
//! | module | what lives there |
//! | --- | --- |
//! | `cli` | the commands of the binary |
//! | `server` | listeners, config, telemetry, drain: the program around the library |
//! | `grpc` | the services: requests in, stored bytes out, errors as statuses |
//! | `gateway` | the same over HTTP/JSON; neither knows of the other |
//! | `demo` | an API with one slow method, as a guest of the library |
//! | `reflection` | the types of this server for others, and those of another one for us |
//! | `remote` | workers and creators that are not in the server's process |
//! | `operations` | [`Operations`], the handle; [`NewOperation`], what a creator asks for |
//! | `worker` | [`Handler`], [`Context`] and the pools of in-process workers |
//! | `store` | one door for writes, one for visibility; index, queues, waiters, deadlines |
//! | `error`, `status` | [`Error`], the sum of what can go wrong for a caller, and how it is told |
//! | `journal`, `query` | where changes are kept before they are shown; scopes, pages and filters |
//! | `operation` | the domain: names, leases, retries, the table of (stage, event), the bytes |
//! | [`proto`], `clock`, `tasks`, `metrics`, `types` | leaves |
//!
//! # Invariants
//!
//! - A done operation has exactly one of `error` and `response`, and its bytes
//!   never change again.
//! - A stale or foreign lease never changes anything.
//! - Nothing is shown before the journal has kept it; what was acknowledged is
//!   shown to everybody.
//! - The bytes of an operation are encoded once, when it changes; Get, Wait and
//!   List never encode.
//! - Who waits enters first, then looks, then sleeps; a notification is a hint,
//!   the view is the truth.
//! - The domain reads no clock, does no IO and writes no log.
//! - No guard of the map leaves the view or crosses an await.

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
    codec::EncodedMessage,
    metrics_layer::GrpcMetrics,
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
    options::{ExecutionOptions, InvalidExecutionOptions, QueueName},
    outcome::{Failure, InvalidOutcome},
    payload::{InvalidAny, Payload},
    progress::InvalidProgress,
    retry::{InvalidRetryPolicy, RetryPolicy},
    trace::{InvalidTraceContext, TraceContext},
    transition::{LeaseLostReason, Phase, Report, TerminalState, TransitionError},
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
