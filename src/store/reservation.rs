//! Reservations: capacity that a new operation needs before it is durable.

use std::sync::{Arc, atomic::Ordering};

use super::state::Store;
use crate::{
    error::{Error, Result},
    operation::{Operation, options::QueueName},
};

/// Capacity reserved for a new operation. Released on drop; after `commit` the operation itself takes it.
#[derive(Debug)]
pub(super) struct Reservation {
    store: Arc<Store>,
    bytes: usize,
    /// `true` while `Store::operation_count` includes the operation only because of this reservation.
    counts_operation: bool,
    /// The queue in which a place is reserved.
    queue: Option<QueueName>,
}

impl Store {
    /// Reserves the bytes, the place in the queue and the one unit of `max_operations` that a new operation needs.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if a limit is reached.
    pub(super) fn reserve_capacity(self: &Arc<Self>, operation: &Operation) -> Result<Reservation> {
        let (bytes, limits) = (operation.size(), &self.limits);
        let store_full = |unit, limit| Err(Error::StoreFull { unit, limit });
        let add_bytes = |reserved: usize| {
            (self.view.total_bytes() + reserved + bytes <= limits.max_total_bytes)
                .then(|| reserved + bytes)
        };
        let reserved =
            self.reserved_bytes
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add_bytes);
        if reserved.is_err() {
            return store_full("bytes", limits.max_total_bytes);
        }
        let mut reservation = Reservation {
            store: self.clone(),
            bytes,
            counts_operation: false,
            queue: None,
        };
        if let Some(name) = operation.queue() {
            let queue_ref = self.view.ready_queues.acquire(name);
            if !queue_ref.queue().try_reserve(limits.max_queue_length) {
                return Err(Error::QueueFull {
                    queue: name.to_string(),
                    limit: limits.max_queue_length,
                });
            }
            reservation.queue = Some(name.clone());
        }
        let add_operation = |count| (count < limits.max_operations).then_some(count + 1);
        let counted =
            self.operation_count
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add_operation);
        if counted.is_err() {
            return store_full("operations", limits.max_operations);
        }
        reservation.counts_operation = true;
        Ok(reservation)
    }
}

// === impl Reservation ===

impl Reservation {
    /// Leaves the reserved places to the operation, which is visible now.
    pub(super) fn commit(mut self) {
        self.counts_operation = false;
        self.queue = None;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let store = &self.store;
        store
            .reserved_bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
        if self.counts_operation {
            store.operation_count.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(name) = &self.queue {
            let queue_ref = store.view.ready_queues.acquire(name);
            queue_ref.queue().cancel_reservation();
        }
    }
}
