//! The `longrunning` program: its commands, flags, output and exit codes.

mod client_commands;
mod log;
mod message_types;
mod pause;
mod restart;
mod serve;
mod transports;
mod worker_commands;
