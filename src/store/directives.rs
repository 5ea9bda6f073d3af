//! Directives: what workers elsewhere are told at once about the operations
//! they hold. Only a hint: a heartbeat finds the same in the view. What they
//! look like on the wire is decided in `grpc`.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use dashmap::{DashMap, mapref::entry::Entry};
use foldhash::fast::RandomState;
use slab::Slab;
use tokio::sync::mpsc;

use crate::{
    clock::{Clock, Timestamp},
    operation::{
        lease::{LeaseToken, WorkerId},
        operation::Operation,
    },
};

/// How many hints wait for a stream that is slow; more are dropped.
const ROOM: usize = 256;

/// The open streams and polls of workers.
#[derive(Debug)]
pub(crate) struct Directives {
    desks: DashMap<WorkerId, Slab<mpsc::Sender<Hint>>, RandomState>,
    limit: usize,
    count: AtomicUsize,
}

/// What a worker should know.
#[derive(Clone, Debug)]
enum Hint {
    Notice(Notice),
    /// The worker itself said that it takes nothing more.
    Draining,
}

/// Something became of an operation that a worker holds.
#[derive(Clone, Debug)]
pub(crate) struct Notice {
    pub(crate) operation: Arc<Operation>,
    pub(crate) token: LeaseToken,
    pub(crate) news: News,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    CancelRequested,
    Deleted,
    Lost,
}

/// The place of a stream or poll; free when dropped.
#[derive(Debug)]
pub(crate) struct Desk {
    directives: Arc<Directives>,
    worker: WorkerId,
    seat: usize,
    hints: mpsc::Receiver<Hint>,
}

// === impl Directives ===

impl Directives {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            desks: DashMap::default(),
            limit,
            count: AtomicUsize::new(0),
        }
    }

    /// A desk for a worker; none if there are too many already.
    pub(crate) fn enter(self: &Arc<Self>, worker: &WorkerId) -> Option<Desk> {
        if self.limit <= self.count.fetch_add(1, Ordering::AcqRel) {
            self.count.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let (sender, hints) = mpsc::channel(ROOM);
        let seat = self.desks.entry(worker.clone()).or_default().insert(sender);
        Some(Desk {
            directives: self.clone(),
            worker: worker.clone(),
            seat,
            hints,
        })
    }

    /// Tells the holder of a lease what became of it. What the holder did
    /// itself is no news to it.
    pub(crate) fn tell(
        &self,
        before: Option<&Operation>,
        after: &Arc<Operation>,
        is_gone: bool,
        clock: Clock,
    ) {
        // The usual case is that no worker listens.
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let Some((before, lease)) = before.and_then(|before| Some((before, before.lease()?)))
        else {
            return;
        };
        let is_held = !is_gone
            && after
                .lease()
                .is_some_and(|current| current.token == lease.token);
        let news = if is_held && after.is_hidden() && !before.is_hidden() {
            News::Deleted
        } else if is_held && after.cancel_requested() && !before.cancel_requested() {
            News::CancelRequested
        } else if !is_held && is_over(before, clock.now()) {
            News::Lost
        } else {
            return;
        };
        let hint = Hint::Notice(Notice {
            operation: after.clone(),
            token: lease.token,
            news,
        });
        self.send(&lease.holder, &hint);
    }

    /// Lets the open polls of a worker be answered.
    pub(crate) fn drain(&self, worker: &WorkerId) {
        self.send(worker, &Hint::Draining);
    }

    fn send(&self, worker: &WorkerId, hint: &Hint) {
        if let Some(desk) = self.desks.get(worker) {
            for (_, stream) in desk.iter() {
                // Who cannot keep up learns it by a heartbeat.
                let _ = stream.try_send(hint.clone());
            }
        }
    }
}

/// Whether time alone could take the lease away.
fn is_over(operation: &Operation, now: Timestamp) -> bool {
    operation.deadline(now) <= now
}

// === impl Desk ===

impl Desk {
    /// The next notice.
    pub(crate) async fn notice(&mut self) -> Notice {
        loop {
            if let Hint::Notice(notice) = self.next().await {
                return notice;
            }
        }
    }

    /// Waits until the worker says that it takes nothing more.
    pub(crate) async fn draining(&mut self) {
        while !matches!(self.next().await, Hint::Draining) {}
    }

    async fn next(&mut self) -> Hint {
        let hint = self.hints.recv().await;
        hint.expect("the other end stands in the map until the desk is dropped")
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if let Entry::Occupied(mut desk) = self.directives.desks.entry(self.worker.clone()) {
            desk.get_mut().remove(self.seat);
            if desk.get().is_empty() {
                desk.remove();
            }
        }
        self.directives.count.fetch_sub(1, Ordering::AcqRel);
    }
}
