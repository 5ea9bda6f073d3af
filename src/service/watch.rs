//! Watches: the successive states of one operation.

use std::sync::Arc;

use futures_util::{Stream, stream};
use tokio::select;

use super::operations::Operations;
use crate::{
    error::{Error, Result},
    operation::{Operation, name::OperationName},
    store::waiters::{WaitFor, Waiter},
};

/// A watch of one operation: see [`Operations::watch`].
#[derive(Debug)]
pub struct Watch {
    operations: Operations,
    name: OperationName,
    waiter: Waiter,
    number: u64,
    last_returned: Option<Arc<Operation>>,
}

// === impl Operations ===

impl Operations {
    /// Watches an operation: yields its current state, then each change, up to the
    /// done state. Changes in quick succession are merged into the latest.
    ///
    /// # Errors
    /// As [`Operations::get`]; RESOURCE_EXHAUSTED if the server has too many waiters.
    pub async fn watch(&self, name: &OperationName) -> Result<Watch> {
        self.watch_from(&*self.get(name).await?)
    }

    /// Watches the operation of which `current` was just read.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if the server has too many waiters.
    pub(crate) fn watch_from(&self, current: &Operation) -> Result<Watch> {
        let waiters = &self.store().view.waiters;
        let waiter = waiters.register(current.number(), WaitFor::AnyChange);
        Ok(Watch {
            operations: self.clone(),
            name: current.name_owned(),
            waiter: waiter.ok_or_else(|| self.too_many_waiters())?,
            number: current.number(),
            last_returned: None,
        })
    }
}

// === impl Watch ===

impl Watch {
    /// Waits for a state that differs from the last one. Returns `None` after the
    /// done state. Cancellation safe.
    ///
    /// # Errors
    /// NOT_FOUND if the operation is deleted or expires; UNAVAILABLE when the
    /// server shuts down.
    pub async fn next(&mut self) -> Option<Result<Arc<Operation>>> {
        let last = self.last_returned.as_ref();
        if last.is_some_and(|last| last.is_done()) {
            return None;
        }
        let stopping = self.operations.store().tasks.stop_token().clone();
        loop {
            match self.operations.get_instance(&self.name, self.number).await {
                Err(error) => return Some(Err(error)),
                Ok(current) if self.has_changed(&current) => {
                    self.last_returned = Some(current.clone());
                    return Some(Ok(current));
                }
                Ok(_) if stopping.is_cancelled() => return Some(Err(Error::ShuttingDown)),
                Ok(_) => {}
            }
            select! {
                () = self.waiter.notified() => {}
                () = stopping.cancelled() => {}
            }
        }
    }

    /// Converts the watch into a stream of [`next`](Self::next), which ends after
    /// the done state or the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Arc<Operation>>> + Send {
        stream::unfold(Some(self), |watch| async move {
            let mut watch = watch?;
            let item = watch.next().await?;
            let rest = item.is_ok().then_some(watch);
            Some((item, rest))
        })
    }

    fn has_changed(&self, current: &Operation) -> bool {
        let last = self.last_returned.as_ref();
        last.is_none_or(|last| last.bytes() != current.bytes())
    }
}
