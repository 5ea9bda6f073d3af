//! Ready queues: operations that wait for a worker, by priority, then age. To pop one is only a suggestion; the
//! commit of the lease decides.

use std::{cmp::Reverse, collections::BTreeSet, sync::Arc};

use dashmap::DashMap;
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    metrics::Metrics,
    operation::{Operation, options::QueueName},
};

/// All queues. A queue is created when it is first named.
#[derive(Debug)]
pub(crate) struct ReadyQueues {
    queues: DashMap<QueueName, Arc<ReadyQueue>, RandomState>,
    metrics: Metrics,
}

/// One queue.
#[derive(Debug)]
pub(crate) struct ReadyQueue {
    state: Mutex<QueueState>,
    /// One permit for each ready operation. Waiting workers acquire them in FIFO order.
    permits: Semaphore,
    depth: Gauge,
}

/// The right to pop the next operation of a queue. On drop it goes to the next waiter.
pub(super) type Permit<'a> = SemaphorePermit<'a>;

/// The position in a queue: the highest priority first, then the lowest number.
pub(super) type QueueKey = (Reverse<i32>, u64);

#[derive(Debug, Default)]
struct QueueState {
    /// Operations whose backoff and `not_before` have passed.
    ready: BTreeSet<QueueKey>,
    /// The number of pending operations, ready or not, to which the limit applies.
    pending: usize,
}

/// A reference-counted handle to a queue. The queue is removed with its last handle if it is empty, so that names
/// that callers invent do not accumulate.
#[derive(Debug)]
pub(crate) struct QueueRef<'a> {
    queues: &'a ReadyQueues,
    name: &'a QueueName,
    queue: Option<Arc<ReadyQueue>>,
}

// === impl QueueRef ===

impl QueueRef<'_> {
    pub(crate) fn queue(&self) -> &ReadyQueue {
        self.queue.as_ref().expect("`queue` is `Some` until drop")
    }
}

impl Drop for QueueRef<'_> {
    fn drop(&mut self) {
        self.queue = None;
        self.queues.remove_if_unused(self.name);
    }
}

// === impl ReadyQueues ===

impl ReadyQueues {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self {
            queues: DashMap::default(),
            metrics,
        }
    }

    /// Returns the queue of this name, and creates it if needed.
    pub(crate) fn get_or_create(&self, name: &QueueName) -> Arc<ReadyQueue> {
        if let Some(queue) = self.queues.get(name) {
            return queue.clone();
        }
        let new = || {
            Arc::new(ReadyQueue {
                state: Mutex::default(),
                permits: Semaphore::new(0),
                depth: self.metrics.queue_depth(name.as_str()),
            })
        };
        self.queues.entry(name.clone()).or_insert_with(new).clone()
    }

    /// Returns a handle to the queue of this name, and creates it if needed.
    pub(crate) fn acquire<'a>(&'a self, name: &'a QueueName) -> QueueRef<'a> {
        QueueRef {
            queues: self,
            name,
            queue: Some(self.get_or_create(name)),
        }
    }

    /// Removes a queue that has no pending operation and no handle.
    pub(crate) fn remove_if_unused(&self, name: &QueueName) {
        let is_unused = |queue: &Arc<ReadyQueue>| {
            Arc::strong_count(queue) == 1 && queue.state.lock().pending == 0
        };
        let removed = self.queues.remove_if(name, |_, queue| is_unused(queue));
        if removed.is_some() {
            self.metrics.remove_queue(name.as_str());
        }
    }
}

// === impl ReadyQueue ===

impl ReadyQueue {
    /// Reserves a place for a new operation. Returns `false` if `limit` places are taken.
    pub(crate) fn try_reserve(&self, limit: usize) -> bool {
        let mut state = self.state.lock();
        if state.pending >= limit {
            return false;
        }
        state.pending += 1;
        self.depth.inc();
        true
    }

    /// Counts an operation that became pending again. The limit does not apply.
    pub(crate) fn add_pending(&self) {
        self.state.lock().pending += 1;
        self.depth.inc();
    }

    /// Removes an operation that is not pending any more.
    pub(crate) fn remove(&self, operation: &Operation) {
        let mut state = self.state.lock();
        let was_ready = state.ready.remove(&queue_key(operation));
        state.pending = state.pending.saturating_sub(1);
        drop(state);
        self.depth.dec();
        // If the permit was acquired meanwhile, its holder pops nothing.
        if was_ready && let Ok(permit) = self.permits.try_acquire() {
            permit.forget();
        }
    }

    /// Returns a reserved place that no operation has taken.
    pub(crate) fn cancel_reservation(&self) {
        self.state.lock().pending -= 1;
        self.depth.dec();
    }

    /// Makes an operation available to workers.
    pub(crate) fn push(&self, operation: &Operation) {
        if self.state.lock().ready.insert(queue_key(operation)) {
            self.permits.add_permits(1);
        }
    }

    /// Returns the position of the next operation.
    pub(super) fn peek(&self) -> Option<QueueKey> {
        self.state.lock().ready.first().copied()
    }

    /// Pops the next operation and consumes the permit. Returns `None` if the operation has left the queue.
    pub(super) fn pop(&self, permit: Permit<'_>) -> Option<u64> {
        permit.forget();
        let (_, number) = self.state.lock().ready.pop_first()?;
        Some(number)
    }

    /// Returns a permit that no waiter holds.
    pub(super) fn try_acquire_permit(&self) -> Option<Permit<'_>> {
        self.permits.try_acquire().ok()
    }

    /// Waits in FIFO order for a permit. Cancellation safe.
    pub(super) async fn acquire_permit(&self) -> Permit<'_> {
        let permit = self.permits.acquire().await;
        permit.expect("the semaphore is never closed")
    }
}

fn queue_key(operation: &Operation) -> QueueKey {
    (Reverse(operation.options().priority), operation.number())
}
