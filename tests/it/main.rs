//! The behaviour of the server, as its clients and its embedders see it: each
//! test states a rule of `BEHAVIOUR.md` or of the conformance checklist, whose
//! id stands above it.
#![expect(
    clippy::disallowed_methods,
    reason = "a test owns its tasks and may read the wall clock"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

mod bugs;
mod bugs_of_shape;
mod cancel;
#[cfg(feature = "cli")]
mod commands;
mod counts;
mod creation;
mod delete;
mod directives;
#[cfg(all(feature = "remote", feature = "server"))]
mod drain;
mod durability;
mod errors;
#[cfg(feature = "command")]
mod executor;
#[cfg(feature = "cli")]
mod faults_of_disk;
#[cfg(feature = "cli")]
mod files;
mod filter;
mod finish;
mod get;
mod handlers;
mod heartbeat;
#[cfg(all(feature = "cli", feature = "postgres"))]
mod history;
#[cfg(feature = "server")]
mod http_calls;
#[cfg(feature = "server")]
mod http_clients;
#[cfg(feature = "cli")]
mod http_docs;
#[cfg(feature = "server")]
mod http_hostile;
#[cfg(feature = "server")]
mod http_json;
#[cfg(feature = "server")]
mod http_paths;
#[cfg(feature = "server")]
mod http_port;
#[cfg(feature = "server")]
mod http_two;
#[cfg(feature = "server")]
mod http_watch;
#[cfg(feature = "cli")]
mod jobs;
#[cfg(feature = "cli")]
mod keeper;
#[cfg(feature = "cli")]
mod kills;
mod limits;
mod list;
mod model;
mod names;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod over_stores;
mod pages;
mod pools;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
mod postgres_failover;
#[cfg(feature = "postgres")]
mod postgres_faults;
#[cfg(feature = "postgres")]
mod postgres_pooler;
#[cfg(feature = "postgres")]
mod postgres_tls;
#[cfg(feature = "postgres")]
mod postgres_view;
#[cfg(feature = "cli")]
mod program;
mod races;
mod recovery;
#[cfg(all(feature = "remote", feature = "server"))]
mod remote;
#[cfg(all(feature = "remote", feature = "server"))]
mod remote_creator;
mod replicas;
mod results;
mod shutdown;
mod sizes;
mod times;
#[cfg(feature = "cli")]
mod types;
mod upkeep;
mod wait;
mod wait_limits;
mod watch;
#[cfg(feature = "cli")]
mod wires;
mod worker;
mod worker_create;
mod worker_leases;
mod worker_limits;
mod worker_polls;
mod worker_refusals;
mod worker_sizes;
