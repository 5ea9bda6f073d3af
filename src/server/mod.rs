//! The program around the library: what listens, accepts and answers.
//!
//! A socket is bound by `Listener::bind`, and `serve` runs the accept loop
//! over it: every connection goes to one of the `Lanes`, a current-thread
//! runtime of its own, where hyper speaks HTTP/2 or HTTP/1.1 with it on behalf
//! of an unchanged tower service (tonic's, or the admin's). Two measures below
//! that service halve the CPU per call, and nothing above knows of them: the
//! socket in `coalesce` sends once per poll of a connection, and the executor
//! in `executor` spawns only those calls that have to wait.
//!
//! What the services answer does not live here, but in `grpc` and `admin`.

mod accept;
mod admin;
mod app;
mod config;
mod connection;
mod http1_error_body;
mod inline_executor;
mod listener;
mod runtime_pool;
mod services;
mod signals;
mod telemetry;
mod type_reload;
mod write_coalescer;

pub use app::{App, AppError, ShutdownOutcome};
pub use config::{Config, InvalidStoreConfig, QueueConfig, StoreConfig};
pub use connection::ConnectionOptions;
pub use listener::{InvalidListenAddress, ListenAddress};
pub use signals::{reload_signals, shutdown_signals};
pub use telemetry::{LogFormat, init as init_telemetry};
