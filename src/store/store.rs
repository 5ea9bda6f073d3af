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
    follow::{Others, Reads},
    limits::Limits,
    turns::{Turn, Turns},
    view::View,
};
use crate::{
    clock::Clock,
    error::{Error, Result},
    journal::journal::{Entry, Journal, JournalError, Shared, Then, Unkept},
    metrics::Metrics,
    operation::{
        name::OperationName,
        operation::{Change, Operation},
        stage::{Event, Refusal},
    },
    tasks::Tasks,
};

/// How often a change is tried anew because other servers were faster. Each time
/// one of them got on with its own.
pub(super) const TRIES: usize = 64;

/// The operations, and how they change.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) view: View,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    pub(crate) limits: Limits,
    pub(super) reads: Reads,
    /// Where the store was opened.
    pub(super) runtime: Handle,
    pub(super) journal: JournalHandle,
    /// What other servers of the journal do; none if there are none.
    pub(super) others: Option<Others>,
    pub(super) turns: Turns,
    pub(super) request_turns: Turns,
    pub(super) numbers: AtomicU64,
    /// How many operations there are.
    pub(super) held: AtomicUsize,
    /// Bytes of new operations that the journal is keeping just now.
    pub(super) promised: AtomicUsize,
}

/// A journal has no name to print.
pub(super) struct JournalHandle(pub(super) Arc<dyn Journal>);

/// What came of a change, as soon as the journal knows. It comes about whether
/// anybody waits for it or not.
#[derive(Debug)]
pub(super) enum Told<T> {
    Now(T),
    Later(oneshot::Receiver<Result<T, Lost>>),
}

/// Why nothing came of a change.
#[derive(Debug)]
pub(super) enum Lost {
    Error(Error),
    /// Another server was first, and this is what it made; none if the operation
    /// is gone.
    Outrun(Option<Arc<Operation>>),
}

// === impl Told ===

impl<T> Told<T> {
    pub(super) async fn told(self) -> Result<T, Lost> {
        match self {
            Self::Now(told) => Ok(told),
            // Nobody tells only if showing the change panicked.
            Self::Later(told) => told.await.unwrap_or(Err(Error::StoreUnavailable.into())),
        }
    }
}

// === impl Lost ===

impl From<Error> for Lost {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Unkept> for Lost {
    fn from(unkept: Unkept) -> Self {
        match unkept {
            Unkept::Failed(error) => {
                // The journal says once what ails it; here it would be said per call.
                debug!(%error, "a change was refused, because it could not be kept");
                Self::Error(Error::StoreUnavailable)
            }
            Unkept::Stale(winner) => Self::Outrun(winner),
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
        reads: Reads,
    ) -> Result<Arc<Self>, JournalError> {
        let clock = journal.shared().and_then(Shared::clock).unwrap_or(clock);
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
            view: View::new(
                clock,
                metrics,
                limits.max_waiters,
                journal.shared().and_then(Shared::view_limit),
            ),
            clock,
            tasks: Tasks::default(),
            limits,
            reads,
            runtime: Handle::current(),
            others: journal.shared().map(|_| Others::default()),
            journal: JournalHandle(journal),
            turns: Turns::default(),
            request_turns: Turns::default(),
            numbers: AtomicU64::new(1),
            held: AtomicUsize::new(0),
            promised: AtomicUsize::new(0),
        });
        store.replay().await?;
        store.keep_time();
        store.follow();
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
        // Their holders reach the server from now on, however long it has read; if
        // there are other servers, they were never out of reach.
        let is_alone = self.others.is_none();
        let (leased, now) = (std::mem::take(&mut *leased.lock()), self.clock.now());
        for mut operation in leased {
            if is_alone && let Some(operation) = Arc::get_mut(&mut operation) {
                operation.resume(now);
            }
            self.show_again(&operation);
        }
        self.view.older.begin();
        Ok(())
    }

    /// Takes an operation out of what is shown.
    pub(super) fn forget(&self, operation: &Operation) {
        self.view.forget(operation);
        self.held.fetch_sub(1, Ordering::Relaxed);
        if let Some(others) = &self.others {
            others.bury(operation.number());
        }
    }

    /// Shows an operation that another process, or an earlier one, has made.
    pub(super) fn show_again(&self, operation: &Arc<Operation>) {
        self.numbers
            .fetch_max(operation.number() + 1, Ordering::Relaxed);
        self.held.fetch_add(1, Ordering::Relaxed);
        if let (Some(queue), None) = (operation.queue(), operation.lease())
            && !operation.is_done()
        {
            self.view.ready.queue(queue).enter();
        }
        self.view.publish(operation);
        self.forget_if_gone(operation);
    }

    /// Why changes cannot be kept at present; none while they can.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.journal.0.trouble()
    }

    pub(crate) async fn close(&self) {
        if let Some(others) = &self.others {
            others.tasks.stop().await;
        }
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
        let hide = |store: &Self, name: &OperationName| {
            let current = store
                .view
                .get(name.as_str())
                .ok_or_else(|| Error::not_found(name.as_str()))?;
            let change = current.delete(store.clock.now());
            Ok((current, change))
        };
        self.make("delete", name, hide, |_, _| ()).await
    }

    /// The same as `commit`; what came of it is made by `then` as soon as it is
    /// shown, and dropped if the caller has left.
    pub(super) async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        name: &OperationName,
        event: Event,
        then: impl Fn(&Arc<Self>, Arc<Operation>) -> T + Copy + Send + 'static,
    ) -> Result<T> {
        let event = Arc::new(event);
        let consider = move |store: &Self, name: &OperationName| store.consider(name, &event);
        self.make("commit", name, consider, then).await
    }

    /// Makes the change that `decide` wants when the operation's turn has come,
    /// again and again until no other server was faster.
    async fn make<T: Send + 'static>(
        self: &Arc<Self>,
        title: &'static str,
        name: &OperationName,
        decide: impl Fn(&Self, &OperationName) -> Result<(Arc<Operation>, Change)>
        + Clone
        + Send
        + 'static,
        then: impl Fn(&Arc<Self>, Arc<Operation>) -> T + Copy + Send + 'static,
    ) -> Result<T> {
        let mut tries = TRIES;
        loop {
            let (store, own_name, decide) = (self.clone(), name.clone(), decide.clone());
            let is_fresh = self.others.is_none() || tries < TRIES;
            let begin = async move {
                let name = own_name;
                let turn = store.turns.of(name.as_str()).await;
                let decided = match decide(&store, &name) {
                    // Others may have made true what is not in what is shown, or undone
                    // what there is nothing to add to.
                    Err(_) | Ok((_, Change::Unchanged)) if !is_fresh => {
                        store.refresh(&name).await?;
                        decide(&store, &name)
                    }
                    decided => decided,
                };
                let (current, change) = decided?;
                Ok(store.keep(turn, current, change, then))
            };
            match self.to_the_end(title, begin).await {
                Ok(made) => return Ok(made),
                Err(Lost::Error(error)) => return Err(error),
                Err(Lost::Outrun(winner)) => self.meet(winner, name, &mut tries).await?,
            }
        }
    }

    /// Begins a change when its turn has come, also if the caller leaves before
    /// that, and waits for what comes of it.
    pub(super) async fn to_the_end<T: Send + 'static>(
        &self,
        name: &'static str,
        begin: impl Future<Output = Result<Told<T>>> + Send + 'static,
    ) -> Result<T, Lost> {
        self.tasks.to_the_end(name, begin).await?.told().await
    }

    /// What `event` would make of the operation.
    pub(super) fn consider(
        &self,
        name: &OperationName,
        event: &Event,
    ) -> Result<(Arc<Operation>, Change)> {
        let current = self
            .view
            .find(name.as_str())
            .ok_or_else(|| Error::not_found(name.as_str()))?;
        let current = self.judged(current);
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

    pub(super) fn keep<T: Send + 'static>(
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
                    store.forget(&current);
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
        then: impl FnOnce(&Arc<Self>, Result<(), Unkept>) -> Result<T, Unkept> + Send + 'static,
    ) -> Told<T> {
        let (tell, told) = oneshot::channel();
        let (store, task) = (self.clone(), self.tasks.token());
        let then = Then::new(move |kept| {
            let _task = task;
            // Who does not wait any more finds the change in the view.
            let _ = tell.send(then(&store, kept).map_err(Lost::from));
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
