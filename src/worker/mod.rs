//! In-process workers: the handler trait, the context of an attempt, worker
//! pools, and a handler that runs a program.

pub(crate) mod attempt;
#[cfg(feature = "command")]
pub(crate) mod command;
#[cfg(feature = "command")]
mod command_output;
pub(crate) mod context;
pub(crate) mod handler;
pub(crate) mod pool;
pub(crate) mod runner;
