//! The store: one door for writes (`Store::commit`), one for visibility
//! (`View::publish`), and what hangs on the latter: the index, the ready
//! queues, the waiters, the deadlines and the directives. It knows no concrete journal, no
//! gRPC and no worker.

pub(crate) mod create;
pub(crate) mod deadlines;
pub(crate) mod directives;
pub(crate) mod eviction;
mod id_prefix;
pub(crate) mod index;
pub(crate) mod key_locks;
pub(crate) mod lease;
pub(crate) mod limits;
mod posting_list;
pub(crate) mod ready_queue;
pub(crate) mod replication;
mod secondary_index;
mod set_cursor;
mod sorted_runs;
pub(crate) mod store;
mod timers;
pub(crate) mod view;
pub(crate) mod waiters;
