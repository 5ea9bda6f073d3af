//! The store: the one door for writes. A change takes the operation's turn,
//! asks the state machine, is kept by the journal and only then shown by the
//! view. What a change means is decided in `operation`.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream};
use tokio::select;
use tracing::{debug, error, info, warn};

use super::{
    turns::Turns,
    view::{RequestKey, View},
};
use crate::{
    clock::{Clock, Timestamp},
    error::{Error, Result},
    journal::journal::{Entry, Journal, JournalError},
    metrics::Metrics,
    operation::{
        birth::Birth,
        name::OperationName,
        operation::{Change, Operation},
        outcome::Outcome,
        stage::{Event, Refusal},
    },
    tasks::Tasks,
};

/// How many due operations are looked at side by side, so that a journal can
/// keep their changes in one go.
const LAPSES_AT_ONCE: usize = 256;

/// The pause before a look that could not be kept is tried again.
const LAPSE_PAUSE: Duration = Duration::from_secs(1);

/// An error of at most so many bytes always has room.
const SHORT_ERROR: usize = 4096;

/// How much a store takes in.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Operations in all. Default 1 000 000. Over → STORE_FULL.
    pub max_operations: usize,
    /// Bytes of encoded operations, inputs and labels in all. Default 1 GiB.
    /// Over, creations and reports are refused with STORE_FULL; outcomes never.
    pub max_bytes: usize,
    /// Bytes of one operation, its input included. Default 3 MiB, because
    /// clients refuse messages over 4 MiB. Over → TOO_LARGE.
    pub max_operation_bytes: usize,
    /// Operations that wait in one queue. Default 100 000. Over → QUEUE_FULL.
    pub max_queue: usize,
    /// Open waits and watches. Default 100 000. Over, a wait answers at once
    /// with the current state, which AIP-151 allows.
    pub max_waiters: usize,
}

/// The operations, and how they change.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) view: View,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    pub(crate) limits: Limits,
    journal: JournalHandle,
    turns: Turns,
    request_turns: Turns,
    numbers: AtomicU64,
    held: AtomicUsize,
    /// Bytes of new operations that the journal is keeping just now.
    promised: AtomicUsize,
}

/// A journal has no name to print.
struct JournalHandle(Arc<dyn Journal>);

/// What came of a request to create an operation.
#[derive(Clone, Debug)]
pub struct Created {
    /// The operation: new, or the one that this request made before.
    pub operation: Arc<Operation>,
    /// Whether the same request had made it before.
    pub reused: bool,
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_operations: 1_000_000,
            max_bytes: 1 << 30,
            max_operation_bytes: 3 << 20,
            max_queue: 100_000,
            max_waiters: 100_000,
        }
    }
}

// === impl Store ===

impl Store {
    /// Opens a store: replays what the journal kept, then begins to keep time.
    pub(crate) async fn open(
        journal: Arc<dyn Journal>,
        clock: Clock,
        metrics: &Metrics,
        limits: Limits,
    ) -> Result<Arc<Self>, JournalError> {
        let store = Arc::new(Self {
            view: View::new(clock, metrics, limits.max_waiters),
            clock,
            tasks: Tasks::default(),
            limits,
            journal: JournalHandle(journal),
            turns: Turns::default(),
            request_turns: Turns::default(),
            numbers: AtomicU64::new(1),
            held: AtomicUsize::new(0),
            promised: AtomicUsize::new(0),
        });
        store.replay().await?;
        store.tasks.spawn("deadlines", keep_time(store.clone()));
        Ok(store)
    }

    async fn replay(self: &Arc<Self>) -> Result<(), JournalError> {
        let (store, now) = (self.clone(), self.clock.now());
        let show = move |operation: Operation| store.show_again(operation.resumed(now));
        self.journal.0.replay(Arc::new(show)).await
    }

    fn show_again(&self, operation: Operation) {
        let operation = Arc::new(operation);
        self.numbers
            .fetch_max(operation.number() + 1, Ordering::Relaxed);
        self.held.fetch_add(1, Ordering::Relaxed);
        if let (Some(queue), None) = (operation.queue(), operation.lease())
            && !operation.is_done()
        {
            self.view.ready.queue(queue).enter();
        }
        self.view.publish(&operation);
    }

    /// Why changes cannot be kept at present; none while they can.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.journal.0.trouble()
    }

    pub(crate) async fn close(&self) {
        self.journal.0.close().await;
    }

    /// Makes an operation. It can be read, from anywhere, when this returns.
    pub(crate) async fn create(self: &Arc<Self>, birth: Birth) -> Result<Created> {
        if self.tasks.stopping().is_cancelled() {
            return Err(Error::ShuttingDown);
        }
        let store = self.clone();
        self.tasks
            .to_the_end("create", async move { store.create_once(birth).await })
            .await
    }

    async fn create_once(&self, birth: Birth) -> Result<Created> {
        let request = birth.tags.as_ref().and_then(|tags| tags.request.as_ref());
        let Some(request) = request else {
            return self.admit(birth).await;
        };
        let key = RequestKey::new(
            crate::operation::name::parent_of(birth.name.as_str()),
            request,
        );
        let _turn = self.request_turns.of(&request.id).await;
        let Some(before) = self.view.requested(&key) else {
            return self.admit(birth).await;
        };
        if before.request.digest != request.digest {
            return Err(Error::RequestIdReused {
                request_id: request.id.clone().into(),
            });
        }
        match self.view.get(before.name.as_str()) {
            Some(operation) => Ok(Created {
                operation,
                reused: true,
            }),
            // It was deleted or has expired just now.
            None => self.admit(birth).await,
        }
    }

    async fn admit(&self, mut birth: Birth) -> Result<Created> {
        let _turn = self.turns.of(birth.name.as_str()).await;
        if self.view.find(birth.name.as_str()).is_some() {
            return Err(Error::OperationExists {
                name: birth.name.to_string(),
            });
        }
        birth.number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let operation = Arc::new(Operation::new(birth, self.clock.now()));
        self.check_size("operation", &operation)?;
        let _promise = self.promise(operation.size())?;
        let visit = operation.queue().map(|name| self.view.ready.visit(name));
        if let Some(visit) = &visit
            && !visit.queue().reserve(self.limits.max_queue)
        {
            let queue = operation
                .queue()
                .map_or_else(String::new, ToString::to_string);
            return Err(Error::QueueFull {
                queue,
                limit: self.limits.max_queue,
            });
        }
        let kept = match self.reserve() {
            Ok(()) => self
                .append(Entry::Put(operation.clone()))
                .await
                .inspect_err(|_| {
                    self.held.fetch_sub(1, Ordering::Relaxed);
                }),
            full => full,
        };
        if let Err(error) = kept {
            if let Some(visit) = visit {
                visit.queue().give_up();
            }
            return Err(error);
        }
        self.view.publish(&operation);
        drop(visit);
        Ok(Created {
            operation,
            reused: false,
        })
    }

    /// What `event` makes of the operation, kept and shown.
    pub(crate) async fn commit(
        self: &Arc<Self>,
        name: &OperationName,
        event: Event,
    ) -> Result<Arc<Operation>> {
        let (store, name) = (self.clone(), name.clone());
        let change = async move { store.change(&name, &event).await };
        self.tasks.to_the_end("commit", change).await
    }

    pub(super) async fn change(
        &self,
        name: &OperationName,
        event: &Event,
    ) -> Result<Arc<Operation>> {
        let _turn = self.turns.of(name.as_str()).await;
        let current = self
            .view
            .find(name.as_str())
            .ok_or_else(|| Error::not_found(name.as_str()))?;
        // Only clients ask to cancel, and they see nothing that was deleted.
        if current.is_hidden() && matches!(event, Event::RequestCancel) {
            return Err(Error::not_found(name.as_str()));
        }
        let refused = |refusal: Refusal| Error::Refused {
            name: name.to_string(),
            refusal,
        };
        let change = current.apply(event, self.clock.now()).map_err(refused)?;
        match &change {
            Change::Put(next) | Change::Renew(next) | Change::Forget(Some(next)) => {
                self.check_room(event, &current, next)?;
            }
            // The look that was asked for found nothing due: look again later.
            Change::Unchanged if *event == Event::Lapse => self.view.arm_again(&current),
            Change::Unchanged | Change::Forget(None) => {}
        }
        self.keep(current, change).await
    }

    /// Hides the operation from clients, or forgets it if it is done.
    pub(crate) async fn delete(self: &Arc<Self>, name: &OperationName) -> Result<()> {
        let (store, name) = (self.clone(), name.clone());
        let delete = async move {
            let _turn = store.turns.of(name.as_str()).await;
            let current = store
                .view
                .get(name.as_str())
                .ok_or_else(|| Error::not_found(name.as_str()))?;
            let change = current.delete(store.clock.now());
            store.keep(current, change).await.map(drop)
        };
        self.tasks.to_the_end("delete", delete).await
    }

    async fn keep(&self, current: Arc<Operation>, change: Change) -> Result<Arc<Operation>> {
        match change {
            Change::Unchanged => Ok(current),
            Change::Put(operation) => self.put(operation, Entry::Put).await,
            Change::Renew(operation) => self.put(operation, Entry::Renew).await,
            Change::Forget(last) => {
                self.append(Entry::Forget(current.clone())).await?;
                self.view.forget(&current);
                self.held.fetch_sub(1, Ordering::Relaxed);
                Ok(last.map_or(current, Arc::new))
            }
        }
    }

    async fn put(
        &self,
        operation: Operation,
        entry: fn(Arc<Operation>) -> Entry,
    ) -> Result<Arc<Operation>> {
        let operation = Arc::new(operation);
        self.append(entry(operation.clone())).await?;
        self.view.publish(&operation);
        Ok(operation)
    }

    async fn append(&self, entry: Entry) -> Result<()> {
        // The journal says once what ails it; here it would be said per call.
        self.journal.0.append(entry).await.map_err(|error| {
            debug!(%error, "a change was refused, because it could not be kept");
            Error::StoreUnavailable
        })
    }

    fn reserve(&self) -> Result<()> {
        let limit = self.limits.max_operations;
        let more = |held| (held < limit).then_some(held + 1);
        match self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
        {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::StoreFull {
                unit: "operations",
                limit,
            }),
        }
    }

    /// Promises so many bytes to a new operation, until that is shown.
    fn promise(&self, size: usize) -> Result<Promise<'_>> {
        let limit = self.limits.max_bytes;
        let more =
            |promised| (self.view.bytes() + promised + size <= limit).then(|| promised + size);
        match self
            .promised
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
        {
            Ok(_) => Ok(Promise { store: self, size }),
            Err(_) => Err(Error::StoreFull {
                unit: "bytes",
                limit,
            }),
        }
    }

    /// Whether there is room for what a worker says. For a short error there
    /// always is: an operation must be able to end.
    fn check_room(&self, event: &Event, current: &Operation, next: &Operation) -> Result<()> {
        match event {
            Event::Report(_, report) | Event::Renew(_, report) if !report.is_empty() => {
                self.check_size("report", next)?;
                let growth = next.size().saturating_sub(current.size());
                if growth != 0 && self.limits.max_bytes < self.view.bytes() + growth {
                    return Err(Error::StoreFull {
                        unit: "bytes",
                        limit: self.limits.max_bytes,
                    });
                }
                Ok(())
            }
            Event::Finish(_, outcome @ Outcome::Error(_), report)
                if report.is_empty() && outcome.size() <= SHORT_ERROR =>
            {
                Ok(())
            }
            Event::Finish(..) => self.check_size("response", next),
            Event::Fail { .. } => self.check_size("error", next),
            Event::Release(_, report) if !report.is_empty() => self.check_size("metadata", next),
            _ => Ok(()),
        }
    }

    fn check_size(&self, field: &'static str, operation: &Operation) -> Result<()> {
        let (size, limit) = (operation.size(), self.limits.max_operation_bytes);
        if size <= limit {
            Ok(())
        } else {
            Err(Error::TooLarge { field, size, limit })
        }
    }

    /// Tells the state machine that time passed for one operation.
    async fn lapse(self: &Arc<Self>, number: u64) {
        let Some(operation) = self.view.index.get(number) else {
            return;
        };
        if self.clock.now() < operation.deadline(Timestamp::default()) {
            return;
        }
        match self.commit(&operation.owned_name(), Event::Lapse).await {
            Ok(after) if after.state() != operation.state() => {
                info!(
                    operation.name = after.name(),
                    operation.state = after.state().as_str_name(),
                    "a timeout or a lost lease changed an operation"
                );
            }
            Ok(_) => {}
            Err(Error::NotFound { .. } | Error::Refused { .. }) => {}
            Err(error) => {
                warn!(operation.name = operation.name(), %error, "an operation is due, but that could not be kept; trying again");
                self.view
                    .look_at(&operation, self.clock.now() + LAPSE_PAUSE);
            }
        }
    }
}

impl std::fmt::Debug for JournalHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Journal")
    }
}

/// Looks at operations when they are due, until the store stops.
async fn keep_time(store: Arc<Store>) {
    let stopping = store.tasks.stopping().clone();
    loop {
        let due = select! {
            due = store.view.deadlines.next(store.clock) => due,
            () = stopping.cancelled() => return,
        };
        stream::iter(due)
            .for_each_concurrent(LAPSES_AT_ONCE, |number| {
                // One operation that cannot be looked at must not stop the clock for all.
                let looked = AssertUnwindSafe(store.lapse(number)).catch_unwind();
                looked.map(move |looked| {
                    if looked.is_err() {
                        error!(
                            operation.number = number,
                            "the look at an operation panicked"
                        );
                    }
                })
            })
            .await;
    }
}

/// Bytes that are promised until dropped.
struct Promise<'a> {
    store: &'a Store,
    size: usize,
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        self.store.promised.fetch_sub(self.size, Ordering::Relaxed);
    }
}
