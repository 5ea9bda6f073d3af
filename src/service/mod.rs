//! The API of the library: the handle [`Operations`](operations::Operations), its
//! builder, and the conversion of requests into validated values.

pub(crate) mod builder;
pub(crate) mod create_request;
pub(crate) mod list;
pub(crate) mod new_operation;
pub(crate) mod operations;
pub(crate) mod request_params;
pub(crate) mod watch;
pub(crate) mod worker_api;
