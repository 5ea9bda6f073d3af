//! A table that several servers share, as a database would keep it, in memory:
//! compare-and-set on the revision, and a log of changes that each server reads
//! when the test lets it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use longrunning::{
    Apply, BoxFuture, Clock, Entry, Journal, JournalError, News, Operation, OperationName,
    Operations, Reach, Shared, Show, Then, Timestamp, Unkept,
};
use parking_lot::Mutex;
use tokio::sync::watch;

/// The table. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Table(Arc<Inner>);

struct Inner {
    clock: Clock,
    /// Since when it has been there; none while it is away.
    since: Mutex<Option<Timestamp>>,
    rows: Mutex<Rows>,
    /// How long the log is.
    changes: watch::Sender<usize>,
    numbers: AtomicU64,
    asked: AtomicUsize,
}

#[derive(Default)]
struct Rows {
    by_number: BTreeMap<u64, Arc<Operation>>,
    /// Which operations changed, and whether only their leases were renewed.
    log: Vec<(u64, bool)>,
}

/// What one server has of the table.
pub(crate) struct Share {
    table: Table,
    reads: watch::Receiver<bool>,
    seen: watch::Sender<usize>,
}

/// A server of the table.
pub(crate) struct Replica {
    pub(crate) operations: Operations,
    table: Table,
    reads: watch::Sender<bool>,
    seen: watch::Receiver<usize>,
}

// === impl Table ===

impl Default for Table {
    fn default() -> Self {
        let clock = Clock::system();
        Self(Arc::new(Inner {
            clock,
            since: Mutex::new(Some(clock.now())),
            rows: Mutex::default(),
            changes: watch::Sender::default(),
            numbers: AtomicU64::default(),
            asked: AtomicUsize::default(),
        }))
    }
}

impl Table {
    /// Nobody reaches the table.
    pub(crate) fn leave(&self) {
        *self.0.since.lock() = None;
    }

    /// Everybody reaches it again.
    pub(crate) fn come_back(&self) {
        *self.0.since.lock() = Some(self.0.clock.now());
    }

    /// One more server.
    pub(crate) async fn replica(&self) -> Replica {
        let (reads, may_read) = watch::channel(true);
        let (seen, has_seen) = watch::channel(0);
        let share = Share {
            table: self.clone(),
            reads: may_read,
            seen,
        };
        let operations = Operations::builder().journal(share).start().await.unwrap();
        Replica {
            operations,
            table: self.clone(),
            reads,
            seen: has_seen,
        }
    }

    /// How often an operation was asked for.
    pub(crate) fn asked(&self) -> usize {
        self.0.asked.load(Ordering::Relaxed)
    }

    /// The operations as they are kept.
    pub(crate) fn rows(&self) -> Vec<Arc<Operation>> {
        self.0.rows.lock().by_number.values().cloned().collect()
    }
}

// === impl Replica ===

impl Replica {
    /// Whether it reads what others do; at first it does.
    pub(crate) fn reads(&self, reads: bool) {
        self.reads.send_replace(reads);
    }

    /// Waits until it has read what was done so far.
    pub(crate) async fn catch_up(&mut self) {
        let changes = *self.table.0.changes.borrow();
        self.seen.wait_for(|seen| changes <= *seen).await.unwrap();
    }
}

// === impl Share ===

impl Journal for Share {
    fn replay(&self, show: Show) -> BoxFuture<'_, Result<(), JournalError>> {
        let rows = self.table.0.rows.lock();
        // A number that was read is enough: what is shown must be ours alone.
        assert!(
            rows.by_number.is_empty(),
            "it begins before there is anything"
        );
        drop(show);
        Box::pin(std::future::ready(Ok(())))
    }

    fn append(&self, entry: Entry, then: Then) {
        let inner = &*self.table.0;
        if inner.since.lock().is_none() {
            return then.call(Err(JournalError("it is away".to_owned()).into()));
        }
        let mut rows = inner.rows.lock();
        let kept = rows.append(&entry);
        let length = rows.log.len();
        drop(rows);
        inner.changes.send_replace(length);
        then.call(kept);
    }

    fn shared(&self) -> Option<&dyn Shared> {
        Some(self)
    }
}

impl Shared for Share {
    fn fetch<'a>(
        &'a self,
        name: &'a OperationName,
    ) -> BoxFuture<'a, Result<Option<Arc<Operation>>, JournalError>> {
        self.table.0.asked.fetch_add(1, Ordering::Relaxed);
        let found = self.table.0.rows.lock().named(name.as_str());
        Box::pin(async move {
            // An answer takes a while.
            tokio::task::yield_now().await;
            Ok(found)
        })
    }

    fn clock(&self) -> Option<Clock> {
        Some(self.table.0.clock)
    }

    fn reach(&self) -> Option<Reach> {
        let now = self.table.0.clock.now();
        Some(Reach {
            since: self.table.0.since.lock().unwrap_or(now),
            read: now,
        })
    }

    fn number(&self) -> u64 {
        self.table.0.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn catch_up(&self) -> BoxFuture<'_, Result<(), JournalError>> {
        Box::pin(async {
            let (changes, mut seen) = (*self.table.0.changes.borrow(), self.seen.subscribe());
            let read = seen.wait_for(|seen| changes <= *seen).await;
            drop(read.map_err(|_| JournalError("nobody reads".to_owned()))?);
            Ok(())
        })
    }

    fn follow(&self, apply: Apply) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let (mut reads, mut changes) = (self.reads.clone(), self.table.0.changes.subscribe());
            let mut position = 0;
            loop {
                if changes.wait_for(|length| position < *length).await.is_err()
                    || reads.wait_for(|reads| *reads).await.is_err()
                {
                    return;
                }
                let news = self.table.0.rows.lock().since(&mut position);
                // They are on their way for a while.
                tokio::task::yield_now().await;
                apply(news, None).await.unwrap();
                self.seen.send_replace(position);
            }
        })
    }
}

// === impl Rows ===

impl Rows {
    fn named(&self, name: &str) -> Option<Arc<Operation>> {
        let mut rows = self.by_number.values();
        rows.find(|row| row.name() == name).cloned()
    }

    fn append(&mut self, entry: &Entry) -> Result<(), Unkept> {
        match entry {
            Entry::Put(operation) if operation.revision() == 0 => {
                let is_same_request = |row: &&Arc<Operation>| {
                    let requests = (row.request_id(), operation.request_id());
                    requests.0.is_some() && requests.0 == requests.1
                };
                let named = self.named(operation.name());
                let mut rows = self.by_number.values();
                if let Some(other) = named.or_else(|| rows.find(is_same_request).cloned()) {
                    return Err(Unkept::Stale(Some(other)));
                }
                self.by_number.insert(operation.number(), operation.clone());
                self.log.push((operation.number(), false));
            }
            Entry::Put(operation) | Entry::Renew(operation) => {
                let row = self.by_number.get_mut(&operation.number());
                let row = row.ok_or(Unkept::Stale(None))?;
                if row.revision() + 1 != operation.revision() {
                    return Err(Unkept::Stale(Some(row.clone())));
                }
                *row = operation.clone();
                let is_renewal = matches!(entry, Entry::Renew(_));
                self.log.push((operation.number(), is_renewal));
            }
            Entry::Forget(operation) => {
                let row = self.by_number.get(&operation.number());
                let row = row.ok_or(Unkept::Stale(None))?;
                if row.revision() != operation.revision() {
                    return Err(Unkept::Stale(Some(row.clone())));
                }
                self.by_number.remove(&operation.number());
                self.log.push((operation.number(), false));
            }
        }
        Ok(())
    }

    /// What became of the operations that changed since a place in the log.
    fn since(&self, position: &mut usize) -> Vec<News> {
        let mut changed: BTreeMap<u64, bool> = BTreeMap::new();
        for (number, is_renewal) in &self.log[*position..] {
            *changed.entry(*number).or_insert(true) &= is_renewal;
        }
        *position = self.log.len();
        let news =
            changed
                .into_iter()
                .map(|(number, is_renewal)| match self.by_number.get(&number) {
                    Some(row) if is_renewal => News::Renewed {
                        number,
                        revision: row.revision(),
                        until: row.lease().unwrap().until,
                    },
                    Some(row) => News::Changed(row.clone()),
                    None => News::Gone(number),
                });
        news.collect()
    }
}
