//! Directives: hints that are pushed to remote workers about the operations they lease. A heartbeat returns the same,
//! so that a lost directive only arrives later.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use dashmap::{DashMap, mapref::entry::Entry};
use foldhash::fast::RandomState;
use slab::Slab;
use tokio::sync::mpsc;

use crate::{
    clock::Clock,
    operation::{
        Operation,
        lease::{LeaseToken, WorkerId},
    },
};

/// How many events wait for a slow stream; further ones are dropped.
const CHANNEL_CAPACITY: usize = 256;

/// The subscriptions of all workers.
#[derive(Debug)]
pub(crate) struct Directives {
    subscriptions: DashMap<WorkerId, Slab<mpsc::Sender<WorkerEvent>>, RandomState>,
    limit: usize,
    count: AtomicUsize,
}

/// An event for a worker.
#[derive(Clone, Debug)]
enum WorkerEvent {
    Directive(LeaseDirective),
    /// The worker announced that it takes no more leases.
    Drain,
}

/// What happened to an operation that a worker leases.
#[derive(Clone, Debug)]
pub(crate) struct LeaseDirective {
    pub(crate) operation: Arc<Operation>,
    pub(crate) token: LeaseToken,
    pub(crate) kind: LeaseDirectiveKind,
}

/// The kinds of directives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseDirectiveKind {
    CancelRequested,
    Deleted,
    LeaseLost,
}

/// A handle to the events of one stream or long poll. Unsubscribes on drop.
#[derive(Debug)]
pub(crate) struct Subscription {
    directives: Arc<Directives>,
    worker: WorkerId,
    slot: usize,
    events: mpsc::Receiver<WorkerEvent>,
}

// === impl Directives ===

impl Directives {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            subscriptions: DashMap::default(),
            limit,
            count: AtomicUsize::new(0),
        }
    }

    /// Subscribes a worker, or returns `None` if the limit of subscriptions is reached.
    pub(crate) fn subscribe(self: &Arc<Self>, worker: &WorkerId) -> Option<Subscription> {
        if self.count.fetch_add(1, Ordering::AcqRel) >= self.limit {
            self.count.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let (sender, events) = mpsc::channel(CHANNEL_CAPACITY);
        let mut senders = self.subscriptions.entry(worker.clone()).or_default();
        let slot = senders.insert(sender);
        Some(Subscription {
            directives: self.clone(),
            worker: worker.clone(),
            slot,
            events,
        })
    }

    /// Notifies the holder of a lease of a change that it did not make itself.
    pub(crate) fn notify_holder(
        &self,
        before: Option<&Operation>,
        after: &Arc<Operation>,
        is_removed: bool,
        clock: Clock,
    ) {
        // The fast path: no worker has subscribed.
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let Some((before, lease)) = before.and_then(|before| Some((before, before.lease()?)))
        else {
            return;
        };
        let now = clock.now();
        let current = after.lease().filter(|_| !is_removed);
        let is_lease_current = current.is_some_and(|current| current.token == lease.token);
        let kind = if is_lease_current && after.is_deleted() && !before.is_deleted() {
            LeaseDirectiveKind::Deleted
        } else if is_lease_current && after.cancel_requested() && !before.cancel_requested() {
            LeaseDirectiveKind::CancelRequested
        } else if !is_lease_current && before.next_deadline(now) <= now {
            // A timer may have taken the lease away.
            LeaseDirectiveKind::LeaseLost
        } else {
            return;
        };
        let event = WorkerEvent::Directive(LeaseDirective {
            operation: after.clone(),
            token: lease.token,
            kind,
        });
        self.send(&lease.holder, &event);
    }

    /// Ends the open long polls of a worker that drains.
    pub(crate) fn notify_drain(&self, worker: &WorkerId) {
        self.send(worker, &WorkerEvent::Drain);
    }

    fn send(&self, worker: &WorkerId, event: &WorkerEvent) {
        if let Some(senders) = self.subscriptions.get(worker) {
            for (_, sender) in senders.iter() {
                // A worker whose channel is full learns it by a heartbeat.
                let _ = sender.try_send(event.clone());
            }
        }
    }
}

// === impl Subscription ===

impl Subscription {
    /// Waits for the next directive. Cancellation safe.
    pub(crate) async fn next_directive(&mut self) -> LeaseDirective {
        loop {
            if let WorkerEvent::Directive(directive) = self.next_event().await {
                return directive;
            }
        }
    }

    /// Waits until the worker announces that it drains.
    pub(crate) async fn wait_for_drain(&mut self) {
        while !matches!(self.next_event().await, WorkerEvent::Drain) {}
    }

    async fn next_event(&mut self) -> WorkerEvent {
        let event = self.events.recv().await;
        event.expect("the sender stays in `subscriptions` until drop")
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Entry::Occupied(mut senders) =
            self.directives.subscriptions.entry(self.worker.clone())
        {
            senders.get_mut().remove(self.slot);
            if senders.get().is_empty() {
                senders.remove();
            }
        }
        self.directives.count.fetch_sub(1, Ordering::AcqRel);
    }
}
