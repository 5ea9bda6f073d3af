//! The client of `longrunning.v1.OperationWorker`, for processes other than the
//! server's. It renews leases, sends progress reports, forwards cancellation,
//! retries calls and drains on shutdown.
//!
//! - [`Worker`] leases operations from queues and executes them. It is what a
//!   worker process runs.
//! - [`Client`] creates operations. A service whose slow methods return operations
//!   uses it, either for operations that workers execute
//!   ([`Client::create`]) or for operations that it executes itself
//!   ([`Client::start`]).
//!
//! Both execute the same [`Handler`](crate::Handler)s as the server and connect to
//! the server's listener for workers (`--worker-listen`, port 8471 by default).
//!
//! # A worker
//!
//! ```no_run
//! use longrunning::{Any, Context, Failure, client::Worker};
//! use tonic::transport::Channel;
//!
//! async fn resize(context: Context) -> Result<Any, Failure> {
//!     Ok(Any::default()) // the slow work; it calls context.report_progress(…)
//! }
//!
//! # async fn start() -> Result<(), Box<dyn std::error::Error>> {
//! let channel = Channel::from_static("http://127.0.0.1:8471").connect_lazy();
//! let worker = Worker::new(channel, "host-7/4711")?.handler("resize", 4, resize);
//! worker.run(async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # A service that executes its own operations
//!
//! ```no_run
//! # use longrunning::{Any, Context, Failure, NewOperation, client::Client};
//! # use tonic::transport::Channel;
//! # async fn export(context: Context) -> Result<Any, Failure> { Ok(Any::default()) }
//! # async fn start() -> Result<(), Box<dyn std::error::Error>> {
//! let channel = Channel::from_static("http://127.0.0.1:8471").connect_lazy();
//! let client = Client::new(channel, "bookstore/4711")?;
//! let running = client.start(NewOperation::self_executed(""), export).await?;
//! println!("return this to the caller: {}", running.operation.name);
//! let done = running.join().await?; // or drop it; the handler keeps running
//! # Ok(())
//! # }
//! ```

mod attempt;
pub(crate) mod backoff;
mod create;
mod heartbeat_batch;
mod held_lease;
mod lease_manager;
mod worker;

pub use create::{Client, RunningOperation};
pub use worker::{Worker, WorkerError};
