//! The commands of the binary: they parse, call and render. The server they
//! start lives in `server`; what clients see of it goes over gRPC even here.

mod args;
mod client;
mod commands;
mod demo;
mod files;
mod program;
mod queues;
mod render;
mod serve;
mod submit;
mod types;
mod work;

pub use program::main;
