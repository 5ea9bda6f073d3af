//! The module `client`: workers and creators in other processes.

#[cfg(all(feature = "client", feature = "server"))]
mod create;
#[cfg(feature = "cli")]
mod lease_manager;
#[cfg(all(feature = "client", feature = "server"))]
mod queue_drain;
#[cfg(all(feature = "client", feature = "server"))]
mod worker;
