//! Follows one operation through its states, newest wins.

use std::sync::Arc;

use tokio::select;

use super::operations::Operations;
use crate::{
    error::{Error, Result},
    operation::{Operation, name::OperationName},
    store::waiters::{WaitFor, Waiter},
};

/// Follows one operation: see [`Operations::watch`].
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
    /// Follows an operation: its current state first, then each change, the
    /// newest if they come fast, until the done state.
    ///
    /// # Errors
    /// NOT_FOUND; RESOURCE_EXHAUSTED if the server has too many waiters.
    pub async fn watch(&self, name: &OperationName) -> Result<Watch> {
        self.watch_from(&*self.get(name).await?)
    }

    /// Follows an operation that was just looked at.
    pub(crate) fn watch_from(&self, current: &Operation) -> Result<Watch> {
        let waiters = &self.store().view.waiters;
        let Some(waiter) = waiters.register(current.number(), WaitFor::AnyChange) else {
            return Err(Error::TooManyWaiters {
                limit: self.store().limits.max_waiters,
            });
        };
        Ok(Watch {
            operations: self.clone(),
            name: current.name_owned(),
            waiter,
            number: current.number(),
            last_returned: None,
        })
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
        if self
            .last_returned
            .as_ref()
            .is_some_and(|last| last.is_done())
        {
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

    fn has_changed(&self, current: &Operation) -> bool {
        self.last_returned
            .as_ref()
            .is_none_or(|last| last.bytes() != current.bytes())
    }
}
