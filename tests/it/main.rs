//! Integration tests: the behaviour that clients, workers, operators and embedding
//! programs observe. The comment above a test cites the rules that it checks.
#![expect(
    clippy::disallowed_methods,
    reason = "tests spawn their own tasks and may read the wall clock"
)]
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

mod support;

#[cfg(feature = "cli")]
mod cli;
mod client;
mod cluster;
#[cfg(feature = "cli")]
mod crash;
mod grpc;
#[cfg(feature = "server")]
mod http;
mod library;
#[cfg(all(feature = "cli", feature = "postgres"))]
mod linearizability;
mod model;
mod regressions;
mod storage;
mod worker;
