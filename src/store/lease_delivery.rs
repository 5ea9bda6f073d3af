//! Hands granted leases over to their workers.

use std::sync::Arc;

use super::state::Store;
use crate::operation::{Operation, transition::Event};

/// A granted lease that was not sent to its worker yet. Revokes the lease on drop, so that an abandoned request does
/// not block the operation until the lease ends.
#[derive(Debug)]
pub struct UndeliveredLease {
    store: Arc<Store>,
    operation: Arc<Operation>,
    is_delivered: bool,
}

impl UndeliveredLease {
    pub(super) fn new(store: Arc<Store>, operation: Arc<Operation>) -> Self {
        Self {
            store,
            operation,
            is_delivered: false,
        }
    }

    /// Returns the leased operation.
    pub(crate) fn operation(&self) -> &Arc<Operation> {
        &self.operation
    }

    /// Ends the responsibility for the lease, which is on its way to its worker, and returns the leased operation.
    pub(crate) fn deliver(mut self) -> Arc<Operation> {
        self.is_delivered = true;
        self.operation.clone()
    }
}

impl Drop for UndeliveredLease {
    fn drop(&mut self) {
        if let Some(lease) = self.operation.lease()
            && !self.is_delivered
        {
            let revoke = Event::RevokeLease(lease.token);
            let (store, name) = (self.store.clone(), self.operation.name_owned());
            // Storage may complete a write on a thread outside of the runtime.
            let _context = self.store.runtime.enter();
            self.store
                .tasks
                .spawn("revoke", async move { store.commit(&name, revoke).await });
        }
    }
}
