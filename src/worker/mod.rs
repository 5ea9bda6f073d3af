//! In-process workers: handlers, what they are given, and the pools that run
//! them. They use the same claims and finishes as workers anywhere else. One
//! handler is there already: the one that runs a program.

pub(crate) mod attempt;
#[cfg(feature = "command")]
pub(crate) mod command;
pub(crate) mod context;
pub(crate) mod execution;
pub(crate) mod handler;
#[cfg(feature = "command")]
mod output;
pub(crate) mod pool;
