//! The store: an in-memory view of all operations, and the one write path.
//!
//! Every change takes the same four steps, in `commit`: lock the operation, evaluate the event, persist the
//! resulting write, publish it to the view. Readers see a change only after it is durable.

mod commit;
pub(crate) mod consistency;
pub(crate) mod create;
pub(crate) mod deadlines;
pub(crate) mod directives;
pub(crate) mod eviction;
pub(crate) mod index;
pub(crate) mod key_locks;
pub(crate) mod lease;
pub(crate) mod lease_delivery;
pub(crate) mod limits;
mod open;
mod pause;
mod read_through;
pub(crate) mod ready_queue;
mod replication;
mod reservation;
pub(crate) mod state;
mod timers;
mod tombstones;
pub(crate) mod view;
pub(crate) mod waiters;
