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
    operation::{
        Operation,
        name::{OperationName, Parent},
    },
    storage::SharedStorage,
};

/// Which done operations are shown, as far as there is a limit.
#[derive(Debug, Default)]
pub(crate) struct ViewEviction {
    limit: Option<usize>,
    done_numbers: Mutex<BTreeSet<u64>>,
    evicted_below: AtomicU64,
}

// === impl Older ===

impl ViewEviction {
    pub(super) fn new(limit: Option<usize>) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    /// An operation is shown.
    pub(super) fn insert(&self, operation: &Operation) {
        if self.limit.is_some() && operation.is_done() {
            self.done_numbers.lock().insert(operation.number());
        }
    }

    /// An operation is no longer shown.
    pub(super) fn remove(&self, operation: &Operation) {
        if self.limit.is_some() && operation.is_done() {
            self.done_numbers.lock().remove(&operation.number());
        }
    }

    /// The journal has shown the newest, as many as the limit allows: it may have more.
    pub(super) fn mark_unloaded_as_evicted(&self) {
        let done_numbers = self.done_numbers.lock();
        if self.limit.is_some_and(|limit| limit <= done_numbers.len()) {
            let oldest = done_numbers.first().copied().unwrap_or(u64::MAX);
            self.evicted_below.fetch_max(oldest, Ordering::AcqRel);
        }
    }

    /// The oldest of those over the limit.
    fn pop_over_capacity(&self) -> Option<u64> {
        let (limit, mut done_numbers) = (self.limit?, self.done_numbers.lock());
        (limit < done_numbers.len())
            .then(|| done_numbers.pop_first())
            .flatten()
    }

    /// What is done and has a lower number than this may not be shown, though it is
    /// there. A list that has taken operations from the view looks at it after that.
    pub(crate) fn evicted_below(&self) -> u64 {
        self.evicted_below.load(Ordering::Acquire)
    }
}

// === impl Store ===

impl Store {
    /// Lets go of the oldest done operations over the limit of the view.
    pub(super) async fn evict_over_capacity(&self) {
        while let Some(number) = self.view.eviction.pop_over_capacity() {
            let Some(cached) = self.view.index.get(number) else {
                continue;
            };
            let _guard = self.key_locks.lock(cached.name()).await;
            if let Some(cached) = self.view.index.get(number) {
                self.view
                    .eviction
                    .evicted_below
                    .fetch_max(number + 1, Ordering::AcqRel);
                self.view.remove(&cached);
                self.operation_count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// The operation as the journal has it, which is shown from then on, unless it
    /// was done long ago.
    pub(crate) async fn read_through(
        &self,
        name: &OperationName,
    ) -> Result<Option<Arc<Operation>>> {
        let Some(shared) = self.storage.0.shared() else {
            return Ok(None);
        };
        if self.view.eviction.evicted_below() != 0 {
            let stored = shared
                .fetch(name)
                .await
                .map_err(|error| log_read_failure(&error))?;
            match stored {
                None => return Ok(None),
                Some(stored) if self.is_in_evicted_range(&stored) => {
                    return Ok((!stored.is_deleted()).then_some(stored));
                }
                Some(_) => {}
            }
        }
        self.reload(name).await?;
        Ok(self.view.get_visible(name.as_str()))
    }

    /// Whether an operation was done long ago, so that it need not be shown.
    pub(super) fn is_in_evicted_range(&self, operation: &Operation) -> bool {
        operation.is_done() && operation.number() < self.view.eviction.evicted_below()
    }

    /// What the journal has below a number, the newest first, at most so many; none
    /// if there is nothing.
    pub(crate) async fn list_from_storage(
        &self,
        parent: Option<&Parent>,
        before: u64,
        limit: usize,
    ) -> Result<Vec<Arc<Operation>>> {
        let Some(shared) = self.storage.0.shared() else {
            return Ok(Vec::new());
        };
        let mut operations = SharedStorage::list_before(shared, parent, before, limit)
            .await
            .map_err(|error| log_read_failure(&error))?;
        // What is shown may be newer than what was read.
        for operation in &mut operations {
            if let Some(cached) = self.view.index.get(operation.number())
                && operation.revision() < cached.revision()
            {
                *operation = cached;
            }
        }
        Ok(operations)
    }
}

fn log_read_failure(error: &dyn std::error::Error) -> Error {
    warn!(%error, "cannot read operations that are not shown any more");
    Error::StoreUnavailable
}
