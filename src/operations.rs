//! `Operations`: the handle that users of the library hold, and its builder.
//! It reads from the view, writes through the store and owns the workers.

use std::{fmt, sync::Arc, time::Duration};

use prost_types::Any;
use tokio::{
    select,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    creation::{NewOperation, SharedTerms},
    error::{Error, Result},
    journal::{
        journal::{Journal, JournalError},
        memory::MemoryJournal,
    },
    metrics::Metrics,
    operation::{
        lease::{LeaseToken, WorkerId},
        name::{OperationName, Scope},
        operation::Operation,
        outcome::{Failure, Outcome},
        payload::Payload,
        stage::{Event, Report},
        terms::{InvalidTerms, QueueName, Terms},
    },
    proto::google::longrunning::ListOperationsRequest,
    query::page::{Cursor, PageSize},
    store::{
        store::{Created, Limits, Store},
        waiters::{Interest, Waiter},
    },
    tasks::Tasks,
    worker::{
        handler::{AnyHandler, Handler},
        pool::Pool,
    },
};

/// A page ends before it holds more bytes of operations than this, because
/// clients refuse messages over 4 MiB.
const PAGE_BYTES: usize = 3 << 20;

/// How many operations of other parents a list with a wildcard looks at for
/// one page; then the page is short, which AIP-158 allows.
const SCAN: usize = 20_000;

/// The operations of one server. Clones are handles to the same operations;
/// when the last one is dropped, the workers stop.
#[derive(Clone, Debug)]
pub struct Operations(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    defaults: Terms,
    shared: SharedTerms,
    metrics: Metrics,
    /// Pools and attempts.
    work: Tasks,
    release: CancellationToken,
}

/// Puts together an [`Operations`].
#[must_use = "call start() to begin"]
pub struct Builder {
    journal: Arc<dyn Journal>,
    limits: Limits,
    defaults: Terms,
    metrics: Metrics,
    handlers: Vec<(String, usize, Arc<dyn AnyHandler>)>,
}

/// Why operations cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What was kept cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A queue or a default is out of range.
    #[error(transparent)]
    Terms(#[from] InvalidTerms),
    /// A queue has workers, but none of them may work.
    #[error("queue {0:?} has a concurrency of 0; use at least 1")]
    Concurrency(String),
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page {
    /// The operations, newest first.
    pub operations: Vec<Arc<Operation>>,
    /// Leads to the next page; empty if this is the last one.
    pub next_page_token: String,
}

/// Follows one operation: see [`Operations::watch`].
#[derive(Debug)]
pub struct Watch {
    operations: Operations,
    name: OperationName,
    waiter: Waiter,
    number: u64,
    shown: Option<Arc<Operation>>,
}

// === impl Operations ===

impl Operations {
    /// Begins to put together a server's operations.
    pub fn builder() -> Builder {
        Builder {
            journal: Arc::new(MemoryJournal),
            limits: Limits::default(),
            defaults: Terms::default(),
            metrics: Metrics::default(),
            handlers: Vec::new(),
        }
    }

    /// Creates an operation. It can be read, from anywhere, when this returns.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a value out of its range, ALREADY_EXISTS if the id
    /// or the request id is taken, RESOURCE_EXHAUSTED at a limit, UNAVAILABLE
    /// while the store cannot write or shuts down.
    pub async fn create(&self, new: NewOperation) -> Result<Created> {
        let birth = new.into_birth(&self.0.defaults, &self.0.shared)?;
        self.0.store.create(birth).await
    }

    /// Creates an operation for the workers of `queue`.
    ///
    /// # Errors
    /// As [`Operations::create`].
    pub async fn submit(&self, queue: &str, input: Any) -> Result<Arc<Operation>> {
        Ok(self
            .create(NewOperation::queued(queue).input(input))
            .await?
            .operation)
    }

    /// The operation as it is now. Never blocks.
    ///
    /// # Errors
    /// NOT_FOUND if it never was, was deleted or has expired.
    pub fn get(&self, name: &OperationName) -> Result<Arc<Operation>> {
        self.0
            .store
            .view
            .get(name.as_str())
            .ok_or_else(|| Error::not_found(name.as_str()))
    }

    /// One page of a list, newest first.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a bad name, page size or token, or for
    /// `return_partial_success` with one concrete parent; UNIMPLEMENTED for a
    /// filter.
    pub fn list(&self, request: &ListOperationsRequest) -> Result<Page> {
        let scope = Scope::parse(&request.name)
            .map_err(|error| Error::invalid("name", "INVALID_NAME", error))?;
        if request.return_partial_success && is_one_parent(&scope) {
            let rule = "needs a wildcard or a whole collection as name; one parent is never partly reachable";
            return Err(Error::invalid(
                "return_partial_success",
                "INVALID_PARTIAL_SUCCESS",
                rule,
            ));
        }
        let size = PageSize::parse(request.page_size)?.get();
        let cursor = Cursor::open(&request.page_token, &request.name, &request.filter)?;
        if !request.filter.trim().is_empty() {
            return Err(Error::FilterUnsupported);
        }
        let mut page = Page {
            operations: Vec::with_capacity(size.min(100)),
            next_page_token: String::new(),
        };
        let (mut bytes, mut seen, mut last) = (0, 0, None);
        let before = cursor.map_or(u64::MAX, |Cursor(number)| number);
        let index = &self.0.store.view.index;
        let complete = index.scan(&scope, before, |operation| {
            seen += 1;
            let shown = !operation.is_hidden() && scope.holds(operation.name());
            let is_full = page.operations.len() == size
                || (!page.operations.is_empty() && PAGE_BYTES < bytes + operation.bytes().len());
            if (shown && is_full) || SCAN < seen {
                return false;
            }
            last = Some(operation.number());
            if shown {
                bytes += operation.bytes().len();
                page.operations.push(operation.clone());
            }
            true
        });
        if !complete && let Some(last) = last {
            page.next_page_token = Cursor(last).seal(&request.name, &request.filter);
        }
        Ok(page)
    }

    /// Asks for an operation to stop. A pending one is done at once; a running
    /// one may still succeed; a done one stays as it is.
    ///
    /// # Errors
    /// NOT_FOUND, or UNAVAILABLE while the store cannot write.
    pub async fn cancel(&self, name: &OperationName) -> Result<Arc<Operation>> {
        self.0.store.commit(name, Event::RequestCancel).await
    }

    /// Hides an operation from clients at once. Does not cancel it: what runs
    /// goes on, and is forgotten when it is done.
    ///
    /// # Errors
    /// NOT_FOUND, also the second time; UNAVAILABLE while the store cannot write.
    pub async fn delete(&self, name: &OperationName) -> Result<()> {
        self.0.store.delete(name).await
    }

    /// Waits until the operation is done, but at most for `limit`, and returns
    /// its latest state either way. Also returns early when the server shuts
    /// down or has too many waiters.
    ///
    /// # Errors
    /// NOT_FOUND, also if it is deleted or expires in the meantime.
    pub async fn wait(&self, name: &OperationName, limit: Duration) -> Result<Arc<Operation>> {
        let current = self.get(name)?;
        if current.is_done() || limit.is_zero() {
            return Ok(current);
        }
        let stopping = self.0.store.tasks.stopping();
        let waiters = &self.0.store.view.waiters;
        let Some(mut waiter) = waiters.enter(current.number(), Interest::End) else {
            return Ok(current);
        };
        let number = current.number();
        drop(current);
        let deadline = Instant::now().checked_add(limit);
        loop {
            let current = self.get_numbered(name, number)?;
            if current.is_done() || stopping.is_cancelled() {
                return Ok(current);
            }
            drop(current);
            select! {
                () = waiter.called() => {}
                () = stopping.cancelled() => {}
                () = sleep_until(deadline.unwrap_or_else(far_future)) => return self.get_numbered(name, number),
            }
        }
    }

    /// Follows an operation: its current state first, then each change, the
    /// newest if they come fast, until the done state.
    ///
    /// # Errors
    /// NOT_FOUND; RESOURCE_EXHAUSTED if the server has too many waiters.
    pub fn watch(&self, name: &OperationName) -> Result<Watch> {
        let current = self.get(name)?;
        let waiters = &self.0.store.view.waiters;
        let Some(waiter) = waiters.enter(current.number(), Interest::Change) else {
            return Err(Error::TooManyWaiters {
                limit: self.0.store.limits.max_waiters,
            });
        };
        Ok(Watch {
            operations: self.clone(),
            name: name.clone(),
            waiter,
            number: current.number(),
            shown: None,
        })
    }

    /// Takes the lease of the next operation of a queue; waits for one.
    ///
    /// # Errors
    /// UNAVAILABLE while the store cannot write or shuts down.
    pub async fn lease(&self, queue: &QueueName, worker: &WorkerId) -> Result<Arc<Operation>> {
        self.0.store.claim(queue, worker).await
    }

    /// Renews a lease.
    ///
    /// # Errors
    /// FAILED_PRECONDITION with LEASE_LOST if it is not held any more: stop working.
    pub async fn renew(&self, name: &OperationName, token: LeaseToken) -> Result<Arc<Operation>> {
        self.0.store.commit(name, Event::Renew(token)).await
    }

    /// Tells how far the work is.
    ///
    /// # Errors
    /// As [`Operations::renew`]; RESOURCE_EXHAUSTED if it is too large.
    pub async fn report(
        &self,
        name: &OperationName,
        token: LeaseToken,
        report: Report,
    ) -> Result<Arc<Operation>> {
        self.0
            .store
            .commit(name, Event::Report(token, report))
            .await
    }

    /// Finishes an operation with a response; an empty `Any` means
    /// `google.protobuf.Empty`. Finishing it again the same way is fine.
    ///
    /// # Errors
    /// FAILED_PRECONDITION with LEASE_LOST or OPERATION_DONE, INVALID_ARGUMENT
    /// for a malformed `Any`, RESOURCE_EXHAUSTED if it is too large.
    pub async fn succeed(
        &self,
        name: &OperationName,
        token: LeaseToken,
        response: Any,
    ) -> Result<Arc<Operation>> {
        let response = if response == Any::default() {
            Payload::empty()
        } else {
            Payload::new(response)?
        };
        let finish = Event::Finish(token, Outcome::Response(response), Report::default());
        self.0.store.commit(name, finish).await
    }

    /// Finishes an attempt with a failure: another attempt follows if the
    /// failure is retryable and attempts are left.
    ///
    /// # Errors
    /// As [`Operations::succeed`]; INVALID_ARGUMENT for a code that is no error.
    pub async fn fail(
        &self,
        name: &OperationName,
        token: LeaseToken,
        failure: Failure,
    ) -> Result<Arc<Operation>> {
        let event = match Outcome::error(failure.error)? {
            Outcome::Error(error) if failure.retryable => Event::Fail {
                token,
                error,
                retry_after: failure.retry_after,
            },
            outcome => Event::Finish(token, outcome, Report::default()),
        };
        self.0.store.commit(name, event).await
    }

    /// Gives an operation back to its queue; the attempt does not count.
    ///
    /// # Errors
    /// As [`Operations::renew`].
    pub async fn release(&self, name: &OperationName, token: LeaseToken) -> Result<Arc<Operation>> {
        self.0.store.commit(name, Event::Release(token)).await
    }

    /// Ends: open waits are answered with the current state, nothing more is
    /// claimed, handlers get `grace` to finish and are then released, so that
    /// their operations go back to the queue.
    pub async fn shutdown(&self, grace: Duration) {
        self.0.store.tasks.stopping().cancel();
        let work = &self.0.work;
        if timeout(grace, work.stop()).await.is_err() {
            self.0.release.cancel();
            work.stop().await;
        }
        self.0.store.tasks.stop().await;
    }

    /// The metrics, to be registered where they are served.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// The time as the operations see it.
    pub fn clock(&self) -> Clock {
        self.0.store.clock
    }

    /// How many waits and watches are open.
    pub fn waiters(&self) -> usize {
        self.0.store.view.waiters.count()
    }

    fn get_numbered(&self, name: &OperationName, number: u64) -> Result<Arc<Operation>> {
        let current = self.get(name)?;
        // Another one with the same name is not the one that was waited for.
        if current.number() == number {
            Ok(current)
        } else {
            Err(Error::not_found(name.as_str()))
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.work.stopping().cancel();
        self.release.cancel();
        self.store.tasks.stopping().cancel();
    }
}

fn is_one_parent(scope: &Scope) -> bool {
    matches!(scope, Scope::Under(parent) if !parent.as_str().is_empty())
}

/// Beyond what an `Instant` can express.
fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(86_400 * 365 * 30)
}

// === impl Builder ===

impl Builder {
    /// Runs `handler` on the operations of `queue`, at most `concurrency` at once.
    pub fn handler(mut self, queue: &str, concurrency: usize, handler: impl Handler) -> Self {
        self.handlers
            .push((queue.to_owned(), concurrency, Arc::new(handler)));
        self
    }

    /// How much is taken in.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The terms of operations whose creator leaves them out.
    pub fn defaults(mut self, terms: Terms) -> Self {
        self.defaults = terms;
        self
    }

    /// Where changes are kept. Without it they live as long as the process.
    pub fn journal(mut self, journal: impl Journal) -> Self {
        self.journal = Arc::new(journal);
        self
    }

    /// Reads back what the journal kept and starts the workers, on the current
    /// tokio runtime.
    ///
    /// # Errors
    /// [`StartError`] if the journal cannot be read or a value is out of range.
    pub async fn start(self) -> Result<Operations, StartError> {
        self.defaults.check()?;
        let store = Store::open(self.journal, Clock::system(), &self.metrics, self.limits).await?;
        let (work, release) = (Tasks::default(), CancellationToken::new());
        for (queue, concurrency, handler) in self.handlers {
            if concurrency == 0 {
                return Err(StartError::Concurrency(queue));
            }
            let pool = Pool {
                store: store.clone(),
                queue: QueueName::parse(&queue)?,
                handler,
                worker: WorkerId::new("in-process"),
                metrics: self.metrics.clone(),
                tasks: work.clone(),
                release: release.clone(),
            };
            pool.start(concurrency);
        }
        let (defaults, metrics, shared) = (self.defaults, self.metrics, SharedTerms::default());
        Ok(Operations(Arc::new(Inner {
            store,
            defaults,
            shared,
            metrics,
            work,
            release,
        })))
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queues: Vec<&str> = self
            .handlers
            .iter()
            .map(|(queue, ..)| queue.as_str())
            .collect();
        f.debug_struct("Builder")
            .field("limits", &self.limits)
            .field("queues", &queues)
            .finish_non_exhaustive()
    }
}

// === impl Watch ===

impl Watch {
    /// The next state that differs from the last one; none after the done state.
    ///
    /// # Errors
    /// NOT_FOUND if the operation is deleted or expires; UNAVAILABLE when the
    /// server shuts down.
    pub async fn next(&mut self) -> Option<Result<Arc<Operation>>> {
        if self.shown.as_ref().is_some_and(|shown| shown.is_done()) {
            return None;
        }
        let stopping = self.operations.0.store.tasks.stopping().clone();
        loop {
            match self.operations.get_numbered(&self.name, self.number) {
                Err(error) => return Some(Err(error)),
                Ok(current) if self.is_news(&current) => {
                    self.shown = Some(current.clone());
                    return Some(Ok(current));
                }
                Ok(_) if stopping.is_cancelled() => return Some(Err(Error::ShuttingDown)),
                Ok(_) => {}
            }
            select! {
                () = self.waiter.called() => {}
                () = stopping.cancelled() => {}
            }
        }
    }

    fn is_news(&self, current: &Operation) -> bool {
        self.shown
            .as_ref()
            .is_none_or(|shown| shown.bytes() != current.bytes())
    }
}
