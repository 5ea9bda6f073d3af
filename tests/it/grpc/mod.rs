//! The client services over gRPC: `google.longrunning.Operations` and
//! `longrunning.v1.OperationWatch`.

mod cancel;
mod delete;
mod errors;
mod get;
mod list;
mod list_filter;
mod list_pages;
mod message_sizes;
mod names;
mod outcomes;
mod wait;
mod wait_limits;
mod watch;
