//! The store: the one door for writes. A change takes the operation's turn,
//! asks the state machine, is kept by the journal and only then shown by the
//! view. What a change means is decided in `operation`; what a new operation
//! needs in `admit`, and what time does in `time`.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::oneshot};
use tracing::{debug, warn};

use super::{
    limits::Limits,
    turns::{Turn, Turns},
    view::View,
};
use crate::{
    clock::Clock,
    error::{Error, Result},
    journal::journal::{Entry, Journal, JournalError, Then},
    metrics::Metrics,
    operation::{
        name::OperationName,
        operation::{Change, Operation},
        stage::{Event, Refusal},
    },
    tasks::Tasks,
};

/// The operations, and how they change.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) view: View,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    pub(crate) limits: Limits,
    /// Where the store was opened.
    pub(super) runtime: Handle,
    journal: JournalHandle,
    pub(super) turns: Turns,
    pub(super) request_turns: Turns,
    pub(super) numbers: AtomicU64,
    /// How many operations there are.
    pub(super) held: AtomicUsize,
    /// Bytes of new operations that the journal is keeping just now.
    pub(super) promised: AtomicUsize,
}

/// A journal has no name to print.
struct JournalHandle(Arc<dyn Journal>);

/// What came of a change, as soon as the journal knows. It comes about whether
/// anybody waits for it or not.
#[derive(Debug)]
pub(super) enum Told<T> {
    Now(T),
    Later(oneshot::Receiver<Result<T>>),
}

// === impl Told ===

impl<T> Told<T> {
    pub(super) async fn told(self) -> Result<T> {
        match self {
            Self::Now(told) => Ok(told),
            // Nobody tells only if showing the change panicked.
            Self::Later(told) => told.await.unwrap_or(Err(Error::StoreUnavailable)),
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
        let clock = match journal.newest() {
            Some(newest) if clock.now() < newest => {
                let behind = newest.since(clock.now());
                warn!(
                    seconds = behind.as_secs_f64(),
                    "the clock is behind the newest change that was kept; time goes on from that"
                );
                clock.at_least(newest)
            }
            Some(_) | None => clock,
        };
        let store = Arc::new(Self {
            view: View::new(clock, metrics, limits.max_waiters),
            clock,
            tasks: Tasks::default(),
            limits,
            runtime: Handle::current(),
            journal: JournalHandle(journal),
            turns: Turns::default(),
            request_turns: Turns::default(),
            numbers: AtomicU64::new(1),
            held: AtomicUsize::new(0),
            promised: AtomicUsize::new(0),
        });
        store.replay().await?;
        store.keep_time();
        Ok(store)
    }

    async fn replay(self: &Arc<Self>) -> Result<(), JournalError> {
        let leased = Arc::new(Mutex::new(Vec::new()));
        let show = {
            let (store, leased) = (self.clone(), leased.clone());
            move |operation: Operation| {
                let is_leased = operation.lease().is_some();
                let operation = Arc::new(operation);
                if is_leased {
                    leased.lock().push(operation);
                } else {
                    store.show_again(&operation);
                }
            }
        };
        self.journal.0.replay(Arc::new(show)).await?;
        // Their holders reach the server from now on, however long it has read.
        let (leased, now) = (std::mem::take(&mut *leased.lock()), self.clock.now());
        for mut operation in leased {
            if let Some(operation) = Arc::get_mut(&mut operation) {
                operation.resume(now);
            }
            self.show_again(&operation);
        }
        Ok(())
    }

    fn show_again(&self, operation: &Arc<Operation>) {
        self.numbers
            .fetch_max(operation.number() + 1, Ordering::Relaxed);
        self.held.fetch_add(1, Ordering::Relaxed);
        if let (Some(queue), None) = (operation.queue(), operation.lease())
            && !operation.is_done()
        {
            self.view.ready.queue(queue).enter();
        }
        self.view.publish(operation);
    }

    /// Why changes cannot be kept at present; none while they can.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.journal.0.trouble()
    }

    pub(crate) async fn close(&self) {
        self.journal.0.close().await;
    }

    /// What `event` makes of the operation, kept and shown.
    pub(crate) async fn commit(
        self: &Arc<Self>,
        name: &OperationName,
        event: Event,
    ) -> Result<Arc<Operation>> {
        self.change(name, event, |_, operation| operation).await
    }

    /// Deletes: hides the operation from clients, or forgets it if it is done.
    pub(crate) async fn delete(self: &Arc<Self>, name: &OperationName) -> Result<()> {
        let (store, name) = (self.clone(), name.clone());
        let begin = async move {
            let turn = store.turns.of(name.as_str()).await;
            let current = store
                .view
                .get(name.as_str())
                .ok_or_else(|| Error::not_found(name.as_str()))?;
            let change = current.delete(store.clock.now());
            Ok(store.keep(turn, current, change, |_, _| ()))
        };
        self.to_the_end("delete", begin).await
    }

    /// The same as `commit`; what came of it is made by `then` as soon as it is
    /// shown, and dropped if the caller has left.
    pub(super) async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        name: &OperationName,
        event: Event,
        then: impl FnOnce(&Arc<Self>, Arc<Operation>) -> T + Send + 'static,
    ) -> Result<T> {
        let (store, name) = (self.clone(), name.clone());
        let begin = async move {
            let turn = store.turns.of(name.as_str()).await;
            let (current, change) = store.consider(&name, &event)?;
            Ok(store.keep(turn, current, change, then))
        };
        self.to_the_end("commit", begin).await
    }

    /// Begins a change when its turn has come, also if the caller leaves before
    /// that, and waits for what comes of it.
    pub(super) async fn to_the_end<T: Send + 'static>(
        &self,
        name: &'static str,
        begin: impl Future<Output = Result<Told<T>>> + Send + 'static,
    ) -> Result<T> {
        self.tasks.to_the_end(name, begin).await?.told().await
    }

    /// What `event` would make of the operation.
    fn consider(&self, name: &OperationName, event: &Event) -> Result<(Arc<Operation>, Change)> {
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
        Ok((current, change))
    }

    fn keep<T: Send + 'static>(
        self: &Arc<Self>,
        turn: Turn,
        current: Arc<Operation>,
        change: Change,
        then: impl FnOnce(&Arc<Self>, Arc<Operation>) -> T + Send + 'static,
    ) -> Told<T> {
        let (entry, next): (fn(_) -> _, _) = match change {
            Change::Unchanged => return Told::Now(then(self, current)),
            Change::Put(next) => (Entry::Put, next),
            Change::Renew(next) => (Entry::Renew, next),
            Change::Forget(last) => {
                return self.append(Entry::Forget(current.clone()), move |store, kept| {
                    let _turn = turn;
                    kept?;
                    store.view.forget(&current);
                    store.held.fetch_sub(1, Ordering::Relaxed);
                    Ok(then(store, last.map_or(current, Arc::new)))
                });
            }
        };
        let next = Arc::new(next);
        self.append(entry(next.clone()), move |store, kept| {
            let _turn = turn;
            kept?;
            store.view.publish(&next);
            Ok(then(store, next))
        })
    }

    /// Keeps a change and then does `then`, on whatever thread the journal calls
    /// from, before anybody is told. Until that is done, it counts as a task.
    pub(super) fn append<T: Send + 'static>(
        self: &Arc<Self>,
        entry: Entry,
        then: impl FnOnce(&Arc<Self>, Result<()>) -> Result<T> + Send + 'static,
    ) -> Told<T> {
        let (tell, told) = oneshot::channel();
        let (store, task) = (self.clone(), self.tasks.token());
        let then = Then::new(move |kept| {
            let _task = task;
            // The journal says once what ails it; here it would be said per call.
            let kept = kept.map_err(|error| {
                debug!(%error, "a change was refused, because it could not be kept");
                Error::StoreUnavailable
            });
            // Who does not wait any more finds the change in the view.
            let _ = tell.send(then(&store, kept));
        });
        self.journal.0.append(entry, then);
        Told::Later(told)
    }
}

impl std::fmt::Debug for JournalHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Journal")
    }
}
