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
mod clock;
#[cfg(feature = "server")]
mod demo;
mod error;
#[cfg(feature = "gateway")]
mod gateway;
mod grpc;
mod journal;
mod metrics;
mod operation;
mod operations;
pub mod proto;
mod query;
#[cfg(feature = "server")]
mod reflection;
#[cfg(feature = "remote")]
pub mod remote;
#[cfg(feature = "server")]
pub mod server;
mod status;
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
    border::GrpcMetrics,
    codec::EncodedMessage,
    operations::{OperationsServer, OperationsService, operations_server, operations_server_with},
    watch::{OperationWatchServer, WatchService, watch_server},
    worker::{OperationWorkerServer, WorkerService, worker_server, worker_server_with},
};
#[cfg(feature = "postgres")]
pub use journal::postgres::{PostgresStorage, options::PostgresConfig};
#[cfg(feature = "sqlite")]
pub use journal::sqlite::SqliteStorage;
pub use journal::{
    journal::{
        ChangeSink, BoxFuture, Write, Storage, StorageError, Change, StorageStatus, SharedStorage, LoadSink, Completion, WriteError,
    },
    memory::MemoryStorage,
};
pub use metrics::Metrics;
pub use operation::{
    end::{AttemptResult, InvalidAttemptResult},
    labels::{InvalidLabels, Labels},
    lease::{InvalidWorkerId, Lease, LeaseToken, WorkerId},
    name::{InvalidName, OperationId, OperationName, Parent},
    operation::{Operation, OperationVersion},
    outcome::{Failure, InvalidOutcome},
    payload::{InvalidAny, Payload},
    progress::InvalidProgress,
    retry::{InvalidRetryPolicy, RetryPolicy},
    stage::{TerminalState, LeaseLostReason, TransitionError, Report, Phase},
    terms::{InvalidExecutionOptions, QueueName, ExecutionOptions},
    trace::{InvalidTraceContext, TraceContext},
};
pub use operations::{
    builder::{Builder, StartError},
    calls::WaitLimits,
    creation::NewOperation,
    listing::Page,
    operations::Operations,
    watch::Watch,
};
pub use prost_types::Any;
pub use proto::longrunning::v1::{Progress, operation_metadata::State};
pub use store::{admit::Created, follow::ReadConsistency, limits::Limits};
pub use types::{InvalidDescriptorSet, TypeRegistry};
#[cfg(feature = "command")]
pub use worker::command::{InvalidCommand, CommandHandler};
pub use worker::{context::Context, handler::Handler};
