//! Ready queues: operations that want a worker, by priority, then age. Taking
//! one is only a suggestion; the claim that follows decides.

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

/// All queues, made when first named.
#[derive(Debug)]
pub(crate) struct ReadyQueues {
    queues: DashMap<QueueName, Arc<ReadyQueue>, RandomState>,
    metrics: Metrics,
}

/// One queue.
#[derive(Debug)]
pub(crate) struct ReadyQueue {
    state: Mutex<QueueState>,
    /// One call for each operation that is ready. Those who wait get them in the
    /// order in which they came.
    permits: Semaphore,
    depth: Gauge,
}

/// The right to take the next operation of a queue. Whoever drops it passes it
/// on to the next in line.
pub(super) type Permit<'a> = SemaphorePermit<'a>;

/// A place in a queue: the highest priority first, then the oldest.
pub(super) type QueueKey = (Reverse<i32>, u64);

#[derive(Debug, Default)]
struct QueueState {
    /// Those whose time has come.
    ready: BTreeSet<QueueKey>,
    /// How many are pending, ready or not: what the limit is about.
    pending: usize,
}

/// A stay at a queue. Whoever leaves last drops the queue if it is empty, so
/// that names which callers make up do not stay for ever.
#[derive(Debug)]
pub(crate) struct QueueRef<'a> {
    queues: &'a ReadyQueues,
    name: &'a QueueName,
    queue: Option<Arc<ReadyQueue>>,
}

// === impl Visit ===

impl QueueRef<'_> {
    pub(crate) fn queue(&self) -> &ReadyQueue {
        self.queue.as_ref().expect("it is there until the drop")
    }
}

impl Drop for QueueRef<'_> {
    fn drop(&mut self) {
        self.queue = None;
        self.queues.remove_if_unused(self.name);
    }
}

// === impl Ready ===

impl ReadyQueues {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self {
            queues: DashMap::default(),
            metrics,
        }
    }

    /// The queue with this name.
    pub(crate) fn get_or_create(&self, name: &QueueName) -> Arc<ReadyQueue> {
        if let Some(queue) = self.queues.get(name) {
            return queue.clone();
        }
        let new = || Arc::new(ReadyQueue::new(self.metrics.queue_depth(name.as_str())));
        self.queues.entry(name.clone()).or_insert_with(new).clone()
    }

    /// The queue with this name, for as long as the visit lasts.
    pub(crate) fn acquire<'a>(&'a self, name: &'a QueueName) -> QueueRef<'a> {
        QueueRef {
            queues: self,
            name,
            queue: Some(self.get_or_create(name)),
        }
    }

    /// Drops a queue that is empty and that nobody waits at.
    pub(crate) fn remove_if_unused(&self, name: &QueueName) {
        let is_unused = |queue: &Arc<ReadyQueue>| {
            Arc::strong_count(queue) == 1 && queue.state.lock().pending == 0
        };
        if self
            .queues
            .remove_if(name, |_, queue| is_unused(queue))
            .is_some()
        {
            self.metrics.remove_queue(name.as_str());
        }
    }
}

// === impl Queue ===

impl ReadyQueue {
    fn new(depth: Gauge) -> Self {
        Self {
            state: Mutex::default(),
            permits: Semaphore::new(0),
            depth,
        }
    }

    /// Reserves a place for a new operation, unless `limit` are taken.
    pub(crate) fn try_reserve(&self, limit: usize) -> bool {
        let mut state = self.state.lock();
        if limit <= state.pending {
            return false;
        }
        state.pending += 1;
        self.depth.inc();
        true
    }

    /// Takes a place that needs no leave: of an operation that comes back.
    pub(crate) fn add_pending(&self) {
        self.state.lock().pending += 1;
        self.depth.inc();
    }

    /// Gives back the place of an operation that is not pending any more.
    pub(crate) fn remove(&self, operation: &Operation) {
        let mut state = self.state.lock();
        let was_ready = state.ready.remove(&queue_key(operation));
        state.pending = state.pending.saturating_sub(1);
        drop(state);
        self.depth.dec();
        // A call that is under way already finds nothing.
        if was_ready && let Ok(permit) = self.permits.try_acquire() {
            permit.forget();
        }
    }

    /// Gives back a place that was reserved for nothing.
    pub(crate) fn cancel_reservation(&self) {
        self.state.lock().pending -= 1;
        self.depth.dec();
    }

    /// Offers an operation whose time has come to the workers.
    pub(crate) fn push(&self, operation: &Operation) {
        if self.state.lock().ready.insert(queue_key(operation)) {
            self.permits.add_permits(1);
        }
    }

    /// The place of the one that is next.
    pub(super) fn peek(&self) -> Option<QueueKey> {
        self.state.lock().ready.first().copied()
    }

    /// Answers a call: takes the next number, if it is still there.
    pub(super) fn pop(&self, permit: Permit<'_>) -> Option<u64> {
        permit.forget();
        let (_, number) = self.state.lock().ready.pop_first()?;
        Some(number)
    }

    /// A call that none of those who wait has got.
    pub(super) fn try_acquire_permit(&self) -> Option<Permit<'_>> {
        self.permits.try_acquire().ok()
    }

    /// Waits in line for a call.
    pub(super) async fn acquire_permit(&self) -> Permit<'_> {
        let permit = self.permits.acquire().await;
        permit.expect("nobody closes the line")
    }
}

fn queue_key(operation: &Operation) -> QueueKey {
    (Reverse(operation.options().priority), operation.number())
}
