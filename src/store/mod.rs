//! The store: one door for writes (`Store::commit`), one for visibility
//! (`View::publish`), and what hangs on the latter: the index, the ready
//! queues, the waiters, the deadlines and the directives. It knows no concrete journal, no
//! gRPC and no worker.

pub(crate) mod admit;
pub(crate) mod claim;
pub(crate) mod deadlines;
mod descent;
pub(crate) mod directives;
pub(crate) mod follow;
mod groups;
pub(crate) mod index;
pub(crate) mod limits;
mod members;
mod names;
pub(crate) mod older;
pub(crate) mod ready;
mod runs;
pub(crate) mod store;
mod time;
pub(crate) mod turns;
pub(crate) mod view;
pub(crate) mod waiters;
