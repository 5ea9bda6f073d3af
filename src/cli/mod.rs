//! The commands of the `longrunning` program.

mod args;
mod client;
mod commands;
mod demo;
mod program;
mod queue_config;
mod render;
mod serve;
mod sqlite_file;
mod submit;
mod types;
mod worker;

pub use program::main;
