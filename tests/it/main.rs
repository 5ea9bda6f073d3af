//! The behaviour of the server, as its clients and its embedders see it: each
//! test states a rule of `BEHAVIOUR.md` or of the conformance checklist, whose
//! id stands above it.
#![expect(
    clippy::disallowed_methods,
    reason = "a test owns its tasks and may read the wall clock"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

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
