//! The behaviour of the server, as its clients and its embedders see it: each
//! test states a rule of `BEHAVIOUR.md` or of the conformance checklist, whose
//! id stands above it.
#![expect(
    clippy::disallowed_methods,
    reason = "a test owns its tasks and may read the wall clock"
)]

mod support;

mod cancel;
mod delete;
mod errors;
mod get;
mod list;
mod names;
mod pages;
mod wait;
mod watch;
