//! The view: the operations that readers see. All changes become visible through `publish` and `remove`, which also
//! update the index, the ready queues, the deadlines, the waiters and the directives. No guard of the map leaves this
//! file.

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
    deadlines::Deadlines, directives::Directives, eviction::ViewEviction, index::Index,
    ready_queue::ReadyQueues, waiters::Waiters,
};
use crate::{
    clock::{Clock, Timestamp},
    metrics::Metrics,
    operation::{
        Operation,
        name::{OperationName, parent_of},
        spec::IdempotencyKey,
        transition::Phase,
    },
};

/// The operations in the memory of this server. With shared storage a version may lag, and done operations may be
/// evicted.
#[derive(Debug)]
pub(crate) struct View {
    by_name: DashMap<NamedOperation, (), RandomState>,
    by_request_id: DashMap<ScopedRequestId, RequestIdEntry, RandomState>,
    pub(crate) index: Index,
    pub(crate) ready_queues: ReadyQueues,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) deadlines: Deadlines,
    /// When done operations expire.
    pub(crate) retention_deadlines: Deadlines,
    pub(crate) directives: Arc<Directives>,
    pub(crate) eviction: ViewEviction,
    clock: Clock,
    pub(super) metrics: Metrics,
    total_bytes: AtomicUsize,
}

/// An operation, keyed by the name within its encoded bytes: a map entry needs no second copy of the name.
#[derive(Clone, Debug)]
struct NamedOperation(Arc<Operation>);

/// A parent, and a request id within it.
type ScopedRequestId = (Box<str>, Box<str>);

/// The operation that a request created.
#[derive(Clone, Debug)]
pub(super) struct RequestIdEntry {
    pub(super) name: OperationName,
    pub(super) idempotency_key: IdempotencyKey,
}

// === impl View ===

impl View {
    pub(crate) fn new(
        clock: Clock,
        metrics: &Metrics,
        max_waiters: usize,
        cache_limit: Option<usize>,
    ) -> Self {
        Self {
            by_name: DashMap::default(),
            by_request_id: DashMap::default(),
            index: Index::default(),
            ready_queues: ReadyQueues::new(metrics.clone()),
            waiters: Arc::new(Waiters::new(max_waiters, metrics.waiters.clone())),
            deadlines: Deadlines::default(),
            retention_deadlines: Deadlines::default(),
            directives: Arc::new(Directives::new(max_waiters)),
            eviction: ViewEviction::new(cache_limit),
            clock,
            metrics: metrics.clone(),
            total_bytes: AtomicUsize::new(0),
        }
    }

    /// Returns an operation as clients see it, or `None` if it does not exist or is deleted.
    pub(crate) fn get_visible(&self, name: &str) -> Option<Arc<Operation>> {
        self.get_any(name)
            .filter(|operation| !operation.is_deleted())
    }

    /// Returns an operation as workers see it, or `None` if it does not exist. It may be deleted and still running.
    pub(crate) fn get_any(&self, name: &str) -> Option<Arc<Operation>> {
        self.by_name.get(name).map(|entry| entry.key().0.clone())
    }

    /// Returns the operation that an earlier request created in the parent of `name`.
    pub(super) fn request_id_entry(
        &self,
        name: &str,
        idempotency_key: &IdempotencyKey,
    ) -> Option<RequestIdEntry> {
        let entry = self
            .by_request_id
            .get(&scoped_request_id(name, idempotency_key));
        entry.map(|entry| entry.clone())
    }

    /// Returns the total size of all operations, in bytes.
    pub(crate) fn total_bytes(&self) -> usize {
        self.total_bytes.load(Ordering::Relaxed)
    }

    /// Makes a version of an operation visible, in place of the one before. The caller holds its key lock, or is the
    /// only one that knows the operation.
    pub(crate) fn publish(&self, operation: &Arc<Operation>) {
        let previous = match self.by_name.entry(NamedOperation(operation.clone())) {
            Entry::Occupied(entry) => Some(entry.replace_entry(()).0.0),
            Entry::Vacant(entry) => {
                entry.insert(());
                None
            }
        };
        self.index.put(previous.as_deref(), operation);
        self.update_gauges(previous.as_deref(), Some(operation));
        if let Some(previous) = &previous {
            self.eviction.remove(previous);
        }
        self.eviction.insert(operation);
        if operation.is_deleted() {
            self.remove_request_id(operation);
        } else if previous.is_none() {
            self.insert_request_id(operation);
        }
        // The deadline first, then the queue: a backoff that ends in between is seen by `push_if_ready`, and one that
        // ends later by the timer.
        let now = self.clock.now();
        let deadline = operation.next_deadline(now);
        // A deadline that has not changed is scheduled already. The timer of a backoff that is over may not have fired
        // yet: the later deadlines of that version have none.
        let is_scheduled = previous.as_ref().is_some_and(|previous| {
            previous.next_deadline(Timestamp::default()) == deadline
                && previous.is_done() == operation.is_done()
        });
        if !is_scheduled {
            self.schedule_at(operation, deadline);
        }
        self.update_queue_membership(previous.as_deref(), Some(operation));
        self.waiters.notify(
            operation.number(),
            operation.is_done() || operation.is_deleted(),
        );
        self.directives
            .notify_holder(previous.as_deref(), operation, false, self.clock);
    }

    /// Removes an operation. The caller holds its key lock.
    pub(crate) fn remove(&self, operation: &Operation) {
        let Some((NamedOperation(previous), ())) = self.by_name.remove(operation.name()) else {
            return;
        };
        self.index.remove(&previous);
        self.update_gauges(Some(&previous), None);
        self.eviction.remove(&previous);
        self.remove_request_id(&previous);
        self.update_queue_membership(Some(&previous), None);
        self.waiters.notify(previous.number(), true);
        self.directives
            .notify_holder(Some(&previous), &previous, true, self.clock);
    }

    /// Pushes an operation to its ready queue if its backoff or `not_before` is over, and schedules its next deadline,
    /// after a timer that changed nothing.
    pub(crate) fn reschedule(&self, operation: &Operation) {
        self.schedule_at(operation, operation.next_deadline(self.clock.now()));
        self.push_if_ready(operation);
    }

    /// Schedules a timer for an operation.
    pub(crate) fn schedule_at(&self, operation: &Operation, deadline: Timestamp) {
        let (now, is_retention) = (self.clock.now(), operation.is_done());
        let deadlines = if is_retention {
            &self.retention_deadlines
        } else {
            &self.deadlines
        };
        deadlines.schedule(operation.number(), deadline, now, is_retention);
        deadlines.compact(|number| self.index.get(number).is_some());
    }

    /// Pushes an operation to its ready queue, if it is pending and its backoff and `not_before` have passed.
    pub(crate) fn push_if_ready(&self, operation: &Operation) {
        if let Some(queue) = operation.queue()
            && operation.is_ready(self.clock.now())
        {
            self.ready_queues.get_or_create(queue).push(operation);
        }
    }

    /// Updates the ready queue for the change from `previous` to `operation`. The creation has reserved the place of
    /// a new operation.
    fn update_queue_membership(&self, previous: Option<&Operation>, operation: Option<&Operation>) {
        let is_pending =
            |operation: &&Operation| matches!(operation.phase(), Phase::Pending { .. });
        let (before, after) = (previous.filter(is_pending), operation.filter(is_pending));
        let Some(queue) = before.or(after).and_then(Operation::queue) else {
            return;
        };
        match (before, after) {
            (Some(before), None) => {
                self.ready_queues.acquire(queue).queue().remove(before);
            }
            (None, Some(after)) => {
                if previous.is_some() {
                    self.ready_queues.get_or_create(queue).add_pending();
                }
                self.push_if_ready(after);
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    fn update_gauges(&self, previous: Option<&Operation>, operation: Option<&Operation>) {
        let size = |operation: Option<&Operation>| operation.map_or(0, Operation::size);
        let (before, now) = (size(previous), size(operation));
        if before != now {
            self.total_bytes.fetch_add(now, Ordering::Relaxed);
            self.total_bytes.fetch_sub(before, Ordering::Relaxed);
            let signed = |size: usize| i64::try_from(size).unwrap_or(i64::MAX);
            let growth = signed(now) - signed(before);
            self.metrics.stored_bytes.inc_by(growth);
        }
        let (before, now) = (
            previous.map(Operation::state),
            operation.map(Operation::state),
        );
        if before != now {
            now.map(|state| self.metrics.operations(state).inc());
            before.map(|state| self.metrics.operations(state).dec());
        }
        let deleted_state = |operation: Option<&Operation>| {
            let deleted = operation.filter(|operation| operation.is_deleted());
            deleted.map(Operation::state)
        };
        let (before, now) = (deleted_state(previous), deleted_state(operation));
        if before != now {
            now.map(|state| self.metrics.deleted_operations(state).inc());
            before.map(|state| self.metrics.deleted_operations(state).dec());
        }
    }

    /// A new operation takes over the request id of one that was removed.
    fn insert_request_id(&self, operation: &Operation) {
        if let Some(idempotency_key) = operation.idempotency_key() {
            let entry = RequestIdEntry {
                name: operation.name_owned(),
                idempotency_key: idempotency_key.clone(),
            };
            self.by_request_id
                .insert(scoped_request_id(operation.name(), idempotency_key), entry);
        }
    }

    fn remove_request_id(&self, operation: &Operation) {
        if let Some(idempotency_key) = operation.idempotency_key() {
            self.by_request_id.remove_if(
                &scoped_request_id(operation.name(), idempotency_key),
                |_, entry| entry.name.as_str() == operation.name(),
            );
        }
    }
}

fn scoped_request_id(name: &str, idempotency_key: &IdempotencyKey) -> ScopedRequestId {
    (parent_of(name).into(), idempotency_key.request_id.clone())
}

// === impl NamedOperation ===

impl Borrow<str> for NamedOperation {
    fn borrow(&self) -> &str {
        self.0.name()
    }
}

impl Hash for NamedOperation {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name().hash(state);
    }
}

impl PartialEq for NamedOperation {
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name()
    }
}

impl Eq for NamedOperation {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::operation::{
        OperationUpdate,
        lease::{LeaseToken, WorkerId},
        options::{ExecutionOptions, QueueName},
        spec::OperationSpec,
        transition::Event,
    };

    const SECOND: Duration = Duration::from_secs(1);

    // Another server leases the operation before the timer of this one has fired.
    // Rules: STATE-8
    #[tokio::test(start_paused = true)]
    async fn lease_published_before_timer_of_backoff_keeps_total_timeout() {
        let clock = Clock::system();
        let view = View::new(clock, &Metrics::default(), 1, None);
        let created_at = clock.now();
        let spec = OperationSpec {
            name: OperationName::parse("operations/x").unwrap(),
            number: 1,
            options: Arc::new(ExecutionOptions {
                queue: Some(QueueName::parse("q").unwrap()),
                total_timeout: Some(20 * SECOND),
                ..ExecutionOptions::default()
            }),
            attributes: None,
            input: None,
            metadata: None,
            not_before: Some(created_at + 5 * SECOND),
            initial_lease: None,
        };
        let pending = Arc::new(Operation::new(spec, created_at));
        view.publish(&pending);
        assert_eq!(view.deadlines.wait_for_due(clock).await, [1]);
        let acquire = Event::AcquireLease {
            token: LeaseToken::random(),
            worker: WorkerId::new("w"),
            confirm_within: None,
        };
        let Ok(OperationUpdate::Put(leased)) = pending.apply(&acquire, clock.now()) else {
            panic!("expected a lease");
        };
        view.publish(&Arc::new(leased));
        let due = tokio::time::timeout(60 * SECOND, view.deadlines.wait_for_due(clock));
        assert_eq!(due.await.expect("a timer of the total timeout"), [1]);
        let elapsed = clock.now().since(created_at);
        assert!(
            elapsed >= 20 * SECOND && elapsed < 21 * SECOND,
            "{elapsed:?}"
        );
    }
}
