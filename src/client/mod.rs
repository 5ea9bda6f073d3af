//! Workers and creators in another process than the server: the client side of
//! `longrunning.v1.OperationWorker`, with heartbeats, cancellation and drain
//! done for the user. The same [`Handler`](crate::Handler)s run here as in the
//! server.
//!
//! ```no_run
//! use longrunning::{Any, Context, Failure, client::Worker};
//! use tonic::transport::Channel;
//!
//! async fn resize(context: Context) -> Result<Any, Failure> {
//!     Ok(Any::default()) // the real work, with context.progress(…) on the way
//! }
//!
//! # async fn start() -> Result<(), Box<dyn std::error::Error>> {
//! let channel = Channel::from_static("http://127.0.0.1:8471").connect().await?;
//! let worker = Worker::new(channel, "host-7/4711")?.handler("resize", 4, resize);
//! worker.run(async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await?;
//! # Ok(())
//! # }
//! ```
//!
//! What the server makes of it lives in `grpc::worker`.

mod attempt;
pub(crate) mod backoff;
#[cfg(feature = "server")]
pub(crate) mod cause;
mod create;
mod heartbeat_batch;
mod held_lease;
mod lease_manager;
mod worker;

pub use create::{Client, RunningOperation};
pub use worker::{Worker, WorkerError};
