//! The `client` module: workers and creators in other processes than the server.

#[cfg(feature = "cli")]
mod confirmation;
#[cfg(all(feature = "client", feature = "server"))]
mod create;
#[cfg(feature = "cli")]
mod lease_manager;
#[cfg(all(feature = "client", feature = "server"))]
mod queue_drain;
#[cfg(all(feature = "client", feature = "server"))]
mod worker;
