//! The program: its commands and what they print.

mod client_commands;
mod message_types;
mod serve;
mod transports;
mod worker_commands;
