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
    operation::{operation::Operation, terms::QueueName},
};

/// All queues, made when first named.
#[derive(Debug)]
pub(crate) struct Ready {
    queues: DashMap<QueueName, Arc<Queue>, RandomState>,
    metrics: Metrics,
}

/// One queue.
#[derive(Debug)]
pub(crate) struct Queue {
    lines: Mutex<Lines>,
    /// One call for each operation that is ready. Those who wait get them in the
    /// order in which they came.
    calls: Semaphore,
    depth: Gauge,
}

/// The right to take the next operation of a queue. Whoever drops it passes it
/// on to the next in line.
pub(super) type Call<'a> = SemaphorePermit<'a>;

/// A place in a queue: the highest priority first, then the oldest.
pub(super) type Place = (Reverse<i32>, u64);

#[derive(Debug, Default)]
struct Lines {
    /// Those whose time has come.
    ready: BTreeSet<Place>,
    /// How many are pending, ready or not: what the limit is about.
    pending: usize,
}

/// A stay at a queue. Whoever leaves last drops the queue if it is empty, so
/// that names which callers make up do not stay for ever.
#[derive(Debug)]
pub(crate) struct Visit<'a> {
    ready: &'a Ready,
    name: &'a QueueName,
    queue: Option<Arc<Queue>>,
}

// === impl Visit ===

impl Visit<'_> {
    pub(crate) fn queue(&self) -> &Queue {
        self.queue.as_ref().expect("it is there until the drop")
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.queue = None;
        self.ready.tidy(self.name);
    }
}

// === impl Ready ===

impl Ready {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self {
            queues: DashMap::default(),
            metrics,
        }
    }

    /// The queue with this name.
    pub(crate) fn queue(&self, name: &QueueName) -> Arc<Queue> {
        if let Some(queue) = self.queues.get(name) {
            return queue.clone();
        }
        let new = || Arc::new(Queue::new(self.metrics.queue_depth(name.as_str())));
        self.queues.entry(name.clone()).or_insert_with(new).clone()
    }

    /// The queue with this name, for as long as the visit lasts.
    pub(crate) fn visit<'a>(&'a self, name: &'a QueueName) -> Visit<'a> {
        Visit {
            ready: self,
            name,
            queue: Some(self.queue(name)),
        }
    }

    /// Drops a queue that is empty and that nobody waits at.
    pub(crate) fn tidy(&self, name: &QueueName) {
        let is_unused =
            |queue: &Arc<Queue>| Arc::strong_count(queue) == 1 && queue.lines.lock().pending == 0;
        if self
            .queues
            .remove_if(name, |_, queue| is_unused(queue))
            .is_some()
        {
            self.metrics.forget_queue(name.as_str());
        }
    }
}

// === impl Queue ===

impl Queue {
    fn new(depth: Gauge) -> Self {
        Self {
            lines: Mutex::default(),
            calls: Semaphore::new(0),
            depth,
        }
    }

    /// Reserves a place for a new operation, unless `limit` are taken.
    pub(crate) fn reserve(&self, limit: usize) -> bool {
        let mut lines = self.lines.lock();
        if limit <= lines.pending {
            return false;
        }
        lines.pending += 1;
        self.depth.inc();
        true
    }

    /// Takes a place that needs no leave: of an operation that comes back.
    pub(crate) fn enter(&self) {
        self.lines.lock().pending += 1;
        self.depth.inc();
    }

    /// Gives back the place of an operation that is not pending any more.
    pub(crate) fn leave(&self, operation: &Operation) {
        let mut lines = self.lines.lock();
        let was_ready = lines.ready.remove(&place(operation));
        lines.pending = lines.pending.saturating_sub(1);
        drop(lines);
        self.depth.dec();
        // A call that is under way already finds nothing.
        if was_ready && let Ok(call) = self.calls.try_acquire() {
            call.forget();
        }
    }

    /// Gives back a place that was reserved for nothing.
    pub(crate) fn give_up(&self) {
        self.lines.lock().pending -= 1;
        self.depth.dec();
    }

    /// Offers an operation whose time has come to the workers.
    pub(crate) fn offer(&self, operation: &Operation) {
        if self.lines.lock().ready.insert(place(operation)) {
            self.calls.add_permits(1);
        }
    }

    /// The place of the one that is next.
    pub(super) fn first(&self) -> Option<Place> {
        self.lines.lock().ready.first().copied()
    }

    /// Answers a call: takes the next number, if it is still there.
    pub(super) fn take(&self, call: Call<'_>) -> Option<u64> {
        call.forget();
        let (_, number) = self.lines.lock().ready.pop_first()?;
        Some(number)
    }

    /// A call that none of those who wait has got.
    pub(super) fn spare_call(&self) -> Option<Call<'_>> {
        self.calls.try_acquire().ok()
    }

    /// Waits in line for a call.
    pub(super) async fn call(&self) -> Call<'_> {
        let call = self.calls.acquire().await;
        call.expect("nobody closes the line")
    }
}

fn place(operation: &Operation) -> Place {
    (Reverse(operation.terms().priority), operation.number())
}
