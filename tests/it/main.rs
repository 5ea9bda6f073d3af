//! The behaviour of the server, as its clients and its embedders see it: each
//! test states a rule of `BEHAVIOUR.md` or of the conformance checklist, whose
//! id stands above it.
#![expect(
    clippy::disallowed_methods,
    reason = "a test owns its tasks and may read the wall clock"
)]

mod support;

mod bugs;
mod cancel;
mod creation;
mod delete;
mod durability;
mod errors;
mod get;
mod handlers;
mod limits;
mod list;
mod names;
mod pages;
mod races;
mod recovery;
mod shutdown;
mod times;
mod wait;
mod watch;
mod worker;
