//! The handle that users of the library hold, what it is put together from, and
//! what can be asked of it. Deciding and keeping are the affairs of `operation`
//! and `store`.

pub(crate) mod builder;
pub(crate) mod create_request;
pub(crate) mod list;
pub(crate) mod new_operation;
pub(crate) mod operations;
pub(crate) mod request_params;
pub(crate) mod watch;
pub(crate) mod worker_api;
