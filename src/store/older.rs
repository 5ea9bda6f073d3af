//! What is done and no longer shown here, but kept by the journal: a view that
//! has a limit lets go of the oldest. Such an operation is looked up when it is
//! asked for by name, and read from the journal for a list.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tracing::warn;

use super::store::Store;
use crate::{
    error::{Error, Result},
    journal::journal::Shared,
    operation::{
        name::{OperationName, Parent},
        operation::Operation,
    },
};

/// Which done operations are shown, as far as there is a limit.
#[derive(Debug, Default)]
pub(crate) struct Older {
    limit: Option<usize>,
    done: Mutex<BTreeSet<u64>>,
    floor: AtomicU64,
}

// === impl Older ===

impl Older {
    pub(super) fn new(limit: Option<usize>) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    /// An operation is shown.
    pub(super) fn note(&self, operation: &Operation) {
        if self.limit.is_some() && operation.is_done() {
            self.done.lock().insert(operation.number());
        }
    }

    /// An operation is no longer shown.
    pub(super) fn forget(&self, operation: &Operation) {
        if self.limit.is_some() && operation.is_done() {
            self.done.lock().remove(&operation.number());
        }
    }

    /// The journal has shown the newest, as many as the limit allows: it may have more.
    pub(super) fn begin(&self) {
        let done = self.done.lock();
        if self.limit.is_some_and(|limit| limit <= done.len()) {
            let first = done.first().copied().unwrap_or(u64::MAX);
            self.floor.fetch_max(first, Ordering::AcqRel);
        }
    }

    /// The oldest of those over the limit.
    fn next(&self) -> Option<u64> {
        let (limit, mut done) = (self.limit?, self.done.lock());
        (limit < done.len()).then(|| done.pop_first()).flatten()
    }

    /// What is done and has a lower number than this may not be shown, though it is
    /// there. A list that has taken operations from the view looks at it after that.
    pub(crate) fn floor(&self) -> u64 {
        self.floor.load(Ordering::Acquire)
    }
}

// === impl Store ===

impl Store {
    /// Lets go of the oldest done operations over the limit of the view.
    pub(super) async fn shorten(&self) {
        while let Some(number) = self.view.older.next() {
            let Some(shown) = self.view.index.get(number) else {
                continue;
            };
            let _turn = self.turns.of(shown.name()).await;
            if let Some(shown) = self.view.index.get(number) {
                self.view
                    .older
                    .floor
                    .fetch_max(number + 1, Ordering::AcqRel);
                self.view.forget(&shown);
                self.held.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// The operation as the journal has it, which is shown from then on, unless it
    /// was done long ago.
    pub(crate) async fn look_up(&self, name: &OperationName) -> Result<Option<Arc<Operation>>> {
        let Some(shared) = self.journal.0.shared() else {
            return Ok(None);
        };
        if self.view.older.floor() != 0 {
            let found = shared
                .fetch(name)
                .await
                .map_err(|error| cannot_read(&error))?;
            match found {
                None => return Ok(None),
                Some(found) if self.is_old(&found) => {
                    return Ok((!found.is_hidden()).then_some(found));
                }
                Some(_) => {}
            }
        }
        self.ask(name).await?;
        Ok(self.view.get(name.as_str()))
    }

    /// Whether an operation was done long ago, so that it need not be shown.
    pub(super) fn is_old(&self, operation: &Operation) -> bool {
        operation.is_done() && operation.number() < self.view.older.floor()
    }

    /// What the journal has below a number, the newest first, at most so many; none
    /// if there is nothing.
    pub(crate) async fn older(
        &self,
        parent: Option<&Parent>,
        before: u64,
        limit: usize,
    ) -> Result<Vec<Arc<Operation>>> {
        let Some(shared) = self.journal.0.shared() else {
            return Ok(Vec::new());
        };
        let mut older = Shared::older(shared, parent, before, limit)
            .await
            .map_err(|error| cannot_read(&error))?;
        // What is shown may be newer than what was read.
        for operation in &mut older {
            if let Some(shown) = self.view.index.get(operation.number())
                && operation.revision() < shown.revision()
            {
                *operation = shown;
            }
        }
        Ok(older)
    }
}

fn cannot_read(error: &dyn std::error::Error) -> Error {
    warn!(%error, "cannot read operations that are not shown any more");
    Error::StoreUnavailable
}
