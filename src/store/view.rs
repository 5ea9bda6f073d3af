//! The view: what readers see. `publish` is the one door in, for requests and
//! for replay alike; it feeds the index, the queues, the waiters, the deadlines
//! and the directives. No guard of the map ever leaves this file.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use dashmap::{DashMap, mapref::entry::Entry};
use foldhash::fast::RandomState;

use super::{
    deadlines::Deadlines, directives::Directives, index::Index, older::Older, ready::Ready,
    waiters::Waiters,
};
use crate::{
    clock::{Clock, Timestamp},
    metrics::Metrics,
    operation::{
        birth::Request,
        name::{OperationName, parent_of},
        operation::Operation,
        stage::Stage,
    },
};

/// The operations as they are now.
#[derive(Debug)]
pub(crate) struct View {
    records: DashMap<Record, (), RandomState>,
    requests: DashMap<RequestKey, Requested, RandomState>,
    pub(crate) index: Index,
    pub(crate) ready: Ready,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) deadlines: Deadlines,
    /// When what is done expires.
    pub(crate) retentions: Deadlines,
    pub(crate) directives: Arc<Directives>,
    pub(crate) older: Older,
    clock: Clock,
    pub(super) metrics: Metrics,
    bytes: AtomicUsize,
}

/// A record, found by the name that stands in its own bytes.
#[derive(Clone, Debug)]
struct Record(Arc<Operation>);

/// A request id within a parent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RequestKey {
    parent: Box<str>,
    id: Box<str>,
}

/// What came of a request.
#[derive(Clone, Debug)]
pub(crate) struct Requested {
    pub(crate) name: OperationName,
    pub(crate) request: Request,
}

// === impl View ===

impl View {
    pub(crate) fn new(
        clock: Clock,
        metrics: &Metrics,
        max_waiters: usize,
        limit: Option<usize>,
    ) -> Self {
        Self {
            records: DashMap::default(),
            requests: DashMap::default(),
            index: Index::default(),
            ready: Ready::new(metrics.clone()),
            waiters: Arc::new(Waiters::new(max_waiters, metrics.waiters.clone())),
            deadlines: Deadlines::default(),
            retentions: Deadlines::default(),
            directives: Arc::new(Directives::new(max_waiters)),
            older: Older::new(limit),
            clock,
            metrics: metrics.clone(),
            bytes: AtomicUsize::new(0),
        }
    }

    /// The operation as clients see it: none if it is deleted.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Operation>> {
        self.find(name).filter(|operation| !operation.is_hidden())
    }

    /// The operation as workers see it: also if it is deleted and goes on.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Operation>> {
        self.records.get(name).map(|record| record.key().0.clone())
    }

    /// What came of a request that was made before.
    pub(crate) fn requested(&self, key: &RequestKey) -> Option<Requested> {
        self.requests.get(key).map(|requested| requested.clone())
    }

    /// How many bytes the records hold.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Shows a record to everybody, in place of the older one.
    pub(crate) fn publish(&self, operation: &Arc<Operation>) {
        let previous = match self.records.entry(Record(operation.clone())) {
            Entry::Occupied(entry) => Some(entry.replace_entry(()).0.0),
            Entry::Vacant(entry) => {
                entry.insert(());
                None
            }
        };
        self.index.put(previous.as_deref(), operation);
        self.count(previous.as_deref(), Some(operation));
        if let Some(previous) = &previous {
            self.older.forget(previous);
        }
        self.older.note(operation);
        if operation.is_hidden() {
            self.forget_request(operation);
        } else if previous.is_none() {
            self.remember_request(operation);
        }
        // First the deadline, then the queue: a pause that ends in between is
        // seen by the second, one that ends later by the first.
        self.arm(previous.as_deref(), operation);
        self.line_up(previous.as_deref(), Some(operation));
        self.waiters.call(
            operation.number(),
            operation.is_done() || operation.is_hidden(),
        );
        self.directives
            .tell(previous.as_deref(), operation, false, self.clock);
    }

    /// Takes a record away.
    pub(crate) fn forget(&self, operation: &Operation) {
        let Some((Record(previous), ())) = self.records.remove(operation.name()) else {
            return;
        };
        self.index.remove(&previous);
        self.count(Some(&previous), None);
        self.older.forget(&previous);
        self.forget_request(&previous);
        self.line_up(Some(&previous), None);
        self.waiters.call(previous.number(), true);
        self.directives
            .tell(Some(&previous), &previous, true, self.clock);
    }

    /// Looks again, later, at an operation that time may change.
    pub(crate) fn arm_again(&self, operation: &Operation) {
        self.look_at(operation, operation.deadline(self.clock.now()));
        self.offer(operation);
    }

    /// Puts an operation into the book of deadlines.
    pub(crate) fn look_at(&self, operation: &Operation, deadline: Timestamp) {
        let (now, is_retention) = (self.clock.now(), operation.is_done());
        let book = if is_retention {
            &self.retentions
        } else {
            &self.deadlines
        };
        book.arm(operation.number(), deadline, now, is_retention);
        book.sweep(|number| self.index.get(number).is_some());
    }

    /// Offers an operation to the workers of its queue, if it is ready.
    pub(crate) fn offer(&self, operation: &Operation) {
        if let Some(queue) = operation.queue()
            && operation.is_ready(self.clock.now())
        {
            self.ready.queue(queue).offer(operation);
        }
    }

    fn arm(&self, previous: Option<&Operation>, operation: &Operation) {
        let now = self.clock.now();
        let deadline = operation.deadline(now);
        // What was due at the same time before is in the book already.
        if previous.is_none_or(|previous| previous.deadline(now) != deadline) {
            self.look_at(operation, deadline);
        }
    }

    /// Keeps the queue in step with who is pending. The place of a new
    /// operation was taken by whoever creates it.
    fn line_up(&self, previous: Option<&Operation>, operation: Option<&Arc<Operation>>) {
        let is_pending =
            |operation: &&Operation| matches!(operation.stage(), Stage::Pending { .. });
        let before = previous.filter(is_pending);
        let after = operation.map(|operation| &**operation).filter(is_pending);
        let Some(queue) = before.or(after).and_then(Operation::queue) else {
            return;
        };
        match (before, after) {
            (Some(before), None) => {
                self.ready.queue(queue).leave(before);
                self.ready.tidy(queue);
            }
            (None, Some(after)) => {
                if previous.is_some() {
                    self.ready.queue(queue).enter();
                }
                self.offer(after);
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    fn count(&self, previous: Option<&Operation>, operation: Option<&Arc<Operation>>) {
        let (before, now) = (
            previous.map_or(0, Operation::size),
            operation.map_or(0, |operation| operation.size()),
        );
        if before != now {
            self.bytes.fetch_add(now, Ordering::Relaxed);
            self.bytes.fetch_sub(before, Ordering::Relaxed);
            let signed = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
            self.metrics.bytes.inc_by(signed(now) - signed(before));
        }
        let (before, now) = (
            previous.map(Operation::state),
            operation.map(|operation| operation.state()),
        );
        if before != now {
            now.map(|state| self.metrics.operations(state).inc());
            before.map(|state| self.metrics.operations(state).dec());
        }
    }

    /// A new operation takes its request over from one that is going away.
    fn remember_request(&self, operation: &Operation) {
        if let Some(request) = operation.request() {
            let key = RequestKey::new(parent_of(operation.name()), request);
            let (name, request) = (operation.owned_name(), request.clone());
            self.requests.insert(key, Requested { name, request });
        }
    }

    fn forget_request(&self, operation: &Operation) {
        let Some(request) = operation.request() else {
            return;
        };
        let key = RequestKey::new(parent_of(operation.name()), request);
        self.requests.remove_if(&key, |_, requested| {
            requested.name.as_str() == operation.name()
        });
    }
}

// === impl RequestKey ===

impl RequestKey {
    pub(crate) fn new(parent: &str, request: &Request) -> Self {
        Self {
            parent: parent.into(),
            id: request.id.clone(),
        }
    }
}

// === impl Record ===

impl Borrow<str> for Record {
    fn borrow(&self) -> &str {
        self.0.name()
    }
}

impl Hash for Record {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name().hash(state);
    }
}

impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name()
    }
}

impl Eq for Record {}
