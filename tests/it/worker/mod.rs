//! `longrunning.v1.OperationWorker`: create, lease, heartbeat and finish.

mod admin;
mod confirmation;
mod create;
mod directives;
mod finish;
mod heartbeat;
mod invalid_requests;
mod lease;
mod limits;
mod long_polls;
mod message_sizes;
