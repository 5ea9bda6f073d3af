//! The commands of the binary: they parse, call and render. The server they
//! start lives in `server`; what clients see of it goes over gRPC even here.

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
