//! The library API, as embedding programs use it.

#[cfg(feature = "command")]
mod attempts;
mod command_handler;
mod create;
mod handlers;
mod leases;
mod metrics;
mod races;
mod shutdown;
mod timeouts;
mod worker_pools;
