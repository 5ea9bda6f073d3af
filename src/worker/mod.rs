//! In-process workers: handlers, what they are given, and the pools that run
//! them. They use the same claims and finishes as workers anywhere else. One
//! handler is there already: the one that runs a program.

pub(crate) mod attempt;
#[cfg(feature = "command")]
pub(crate) mod command;
#[cfg(feature = "command")]
mod command_output;
pub(crate) mod context;
pub(crate) mod handler;
pub(crate) mod pool;
pub(crate) mod runner;
