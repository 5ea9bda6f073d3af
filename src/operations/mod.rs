//! The handle that users of the library hold, what it is put together from, and
//! what can be asked of it. Deciding and keeping are the affairs of `operation`
//! and `store`.

pub(crate) mod builder;
pub(crate) mod calls;
pub(crate) mod creation;
pub(crate) mod listing;
pub(crate) mod operations;
pub(crate) mod request;
pub(crate) mod watch;
pub(crate) mod work;
