//! In-process workers: handlers, what they are given, and the pools that run
//! them. They use the same claims and finishes as workers anywhere else.

pub(crate) mod attempt;
pub(crate) mod context;
pub(crate) mod execution;
pub(crate) mod handler;
pub(crate) mod pool;
