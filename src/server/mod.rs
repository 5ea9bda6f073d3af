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
mod coalesce;
mod config;
mod connection;
mod executor;
mod lanes;
mod listener;
mod services;
mod shutdown;
mod telemetry;
mod types;
mod unreadable;

pub use app::{App, AppError, Ended};
pub use config::{Config, InvalidStore, QueueConfig, StoreConfig};
pub use connection::Connections;
pub use listener::{ListenAddress, ListenAddressError};
pub use shutdown::{hangups, signals};
pub use telemetry::{LogFormat, init as init_telemetry};
