//! Waiters: tasks that wait for an operation to change. A waiter registers first, then reads the state, then waits. A
//! notification is only a hint, so this order loses no wake-up.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use dashmap::{DashMap, mapref::entry::Entry};
use foldhash::fast::RandomState;
use prometheus_client::metrics::gauge::Gauge;
use slab::Slab;
use tokio::{runtime::Handle, task::yield_now};

use crate::tasks::Tasks;

/// How many waiters of one operation are woken together, which takes some 100 ms. Smaller batches cost more, because
/// responses that are ready together are sent together: with 2 048, ten thousand waiters took 1.5 times as long.
const WAKE_BATCH_SIZE: usize = 16 * 1024;

/// The changes that a waiter waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitFor {
    /// The operation is done, deleted or expired.
    Done,
    /// The operation has changed in any way.
    AnyChange,
}

/// All waiters, by operation number.
#[derive(Debug)]
pub(crate) struct Waiters {
    by_operation: DashMap<u64, OperationWaiters, RandomState>,
    limit: usize,
    /// The number of waiters that are clients.
    client_count: AtomicUsize,
    gauge: Gauge,
    /// The number of waiters, workers included.
    total_count: AtomicUsize,
}

/// The waiters of one operation. Those for `Done` are kept apart, so that a thousand of them cost a progress report
/// nothing.
#[derive(Debug, Default)]
struct OperationWaiters {
    done: Slab<WaiterSlot>,
    any_change: Slab<WaiterSlot>,
}

/// The state of one waiter.
#[derive(Debug)]
enum WaiterSlot {
    /// Not notified. The waker is that of the task, if it waits.
    Idle(Option<Waker>),
    /// Notified since the last wait.
    Notified,
}

/// Wakers of notified waiters. Those that are left are woken on drop.
struct WakeBatch(std::vec::IntoIter<Waker>);

/// A registered waiter. Unregisters on drop.
#[derive(Debug)]
pub(crate) struct Waiter {
    waiters: Arc<Waiters>,
    number: u64,
    wait_for: WaitFor,
    slot: usize,
    is_client: bool,
}

// === impl Waiters ===

impl Waiters {
    pub(crate) fn new(limit: usize, gauge: Gauge) -> Self {
        Self {
            by_operation: DashMap::default(),
            limit,
            client_count: AtomicUsize::new(0),
            gauge,
            total_count: AtomicUsize::new(0),
        }
    }

    /// Registers a client, or returns `None` if the limit of waiters is reached.
    pub(crate) fn register(self: &Arc<Self>, number: u64, wait_for: WaitFor) -> Option<Waiter> {
        if self.client_count.fetch_add(1, Ordering::Relaxed) >= self.limit {
            self.client_count.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        self.gauge.inc();
        Some(self.insert_slot(number, wait_for, true))
    }

    /// Registers the worker of an operation. There are at most as many as operations, so that no limit applies.
    pub(crate) fn register_worker(self: &Arc<Self>, number: u64) -> Waiter {
        self.insert_slot(number, WaitFor::AnyChange, false)
    }

    fn insert_slot(self: &Arc<Self>, number: u64, wait_for: WaitFor, is_client: bool) -> Waiter {
        self.total_count.fetch_add(1, Ordering::AcqRel);
        let mut operation_waiters = self.by_operation.entry(number).or_default();
        let slot = operation_waiters
            .slots(wait_for)
            .insert(WaiterSlot::Idle(None));
        Waiter {
            waiters: self.clone(),
            number,
            wait_for,
            slot,
            is_client,
        }
    }

    /// Notifies the waiters of an operation: those for any change, and with `is_final` all. The caller has published
    /// the change under a lock that a waiter takes to read the state, so that a waiter that read the old state is
    /// registered by now.
    pub(crate) fn notify(&self, number: u64, is_final: bool) {
        // The fast path: no operation has a waiter.
        if self.total_count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut wakers = Vec::new();
        if let Some(mut operation_waiters) = self.by_operation.get_mut(&number) {
            let OperationWaiters { done, any_change } = &mut *operation_waiters;
            let done = is_final.then_some(done).into_iter().flatten();
            for (_, slot) in any_change.into_iter().chain(done) {
                wakers.extend(slot.notify());
            }
        }
        // Wake outside of the lock, because woken tasks take it.
        let mut wake_batch = WakeBatch(wakers.into_iter());
        if wake_batch.0.len() <= WAKE_BATCH_SIZE || Handle::try_current().is_err() {
            return;
        }
        // Batch after batch: thousands of woken tasks at once would delay every other request.
        drop(Tasks::default().spawn("wake", async move {
            while wake_batch.0.len() != 0 {
                let next = wake_batch.0.by_ref().take(WAKE_BATCH_SIZE);
                next.for_each(Waker::wake);
                yield_now().await;
            }
        }));
    }

    /// Returns the number of clients that wait.
    pub(crate) fn client_count(&self) -> usize {
        self.client_count.load(Ordering::Relaxed)
    }
}

// === impl OperationWaiters ===

impl OperationWaiters {
    fn slots(&mut self, wait_for: WaitFor) -> &mut Slab<WaiterSlot> {
        match wait_for {
            WaitFor::Done => &mut self.done,
            WaitFor::AnyChange => &mut self.any_change,
        }
    }
}

// === impl WaiterSlot ===

impl WaiterSlot {
    fn notify(&mut self) -> Option<Waker> {
        match std::mem::replace(self, Self::Notified) {
            Self::Idle(waker) => waker,
            Self::Notified => None,
        }
    }
}

// === impl WakeBatch ===

impl Drop for WakeBatch {
    fn drop(&mut self) {
        self.0.by_ref().for_each(Waker::wake);
    }
}

// === impl Waiter ===

impl Waiter {
    /// Waits for a notification; returns at once if one came since the last wait. Cancellation safe.
    pub(crate) async fn notified(&mut self) {
        poll_fn(|context| self.poll_notified(context)).await;
    }

    fn poll_notified(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let found = self.waiters.by_operation.get_mut(&self.number);
        let mut operation_waiters = found.expect("the slot exists until the waiter is dropped");
        let slot = &mut operation_waiters.slots(self.wait_for)[self.slot];
        if let WaiterSlot::Notified = slot {
            *slot = WaiterSlot::Idle(None);
            return Poll::Ready(());
        }
        *slot = WaiterSlot::Idle(Some(context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.waiters.by_operation.entry(self.number) {
            let operation_waiters = entry.get_mut();
            operation_waiters.slots(self.wait_for).remove(self.slot);
            if operation_waiters.done.is_empty() && operation_waiters.any_change.is_empty() {
                entry.remove();
            }
        }
        self.waiters.total_count.fetch_sub(1, Ordering::AcqRel);
        if self.is_client {
            self.waiters.client_count.fetch_sub(1, Ordering::Relaxed);
            self.waiters.gauge.dec();
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    fn waiters(limit: usize) -> Arc<Waiters> {
        Arc::new(Waiters::new(limit, Gauge::default()))
    }

    // Rules: WAIT-11
    #[tokio::test]
    async fn notification_before_wait_is_not_lost() {
        let waiters = waiters(1);
        let mut waiter = waiters.register(7, WaitFor::AnyChange).unwrap();
        waiters.notify(7, false);
        waiter.notified().await;
    }

    // Rules: WAIT-2
    #[tokio::test]
    async fn waiter_for_done_is_not_woken_by_other_changes() {
        let waiters = waiters(2);
        let mut done = waiters.register(7, WaitFor::Done).unwrap();
        let mut any_change = waiters.register(7, WaitFor::AnyChange).unwrap();
        waiters.notify(7, false);
        any_change.notified().await;
        assert!(futures_util::poll!(std::pin::pin!(done.notified())).is_pending());
        waiters.notify(7, true);
        done.notified().await;
    }

    // Rules: WAIT-9
    #[tokio::test]
    async fn ten_thousand_abandoned_waits_leave_no_waiter_registered() {
        let waiters = waiters(20_000);
        for number in 0..10_000 {
            let mut waiter = waiters.register(number % 100, WaitFor::Done).unwrap();
            assert!(futures_util::poll!(std::pin::pin!(waiter.notified())).is_pending());
        }
        assert_eq!(waiters.client_count(), 0);
        assert!(waiters.by_operation.is_empty());
    }

    // Rules: WAIT-4
    #[test]
    fn register_over_limit_fails_until_waiter_is_dropped() {
        let waiters = waiters(1);
        let first = waiters.register(1, WaitFor::Done).unwrap();
        assert!(waiters.register(2, WaitFor::Done).is_none());
        drop(first);
        assert!(waiters.register(2, WaitFor::Done).is_some());
    }

    // Rules: WAIT-11
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wakeup_is_lost_in_100_000_races_of_register_and_publish() {
        let waiters = waiters(10);
        for _ in 0..100_000 {
            let value = Arc::new(Mutex::new(0));
            let publisher = tokio::task::spawn_blocking({
                let (waiters, value) = (waiters.clone(), value.clone());
                move || {
                    *value.lock() = 1;
                    waiters.notify(7, true);
                }
            });
            // Register, read, wait: this ends whichever comes first.
            let mut waiter = waiters.register(7, WaitFor::Done).unwrap();
            while *value.lock() == 0 {
                waiter.notified().await;
            }
            publisher.await.unwrap();
        }
        assert_eq!(waiters.client_count(), 0);
    }
}
