//! How recent reads are if several servers share the storage.

use tracing::debug;

use super::state::Store;
use crate::error::{Error, Result};

/// How recent reads are if several servers share the storage. Without shared storage, every read is linearizable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadConsistency {
    /// Reads this server's copy. It includes every change made through this server; changes made through others
    /// arrive after the replication delay.
    #[default]
    Local,
    /// Includes every change that any server acknowledged before the read began. Each read waits for a query of the
    /// database; reads at the same time share one.
    Linearizable,
}

impl Store {
    /// Waits until the view is no older than this call, if reads are to be linearizable.
    ///
    /// # Errors
    /// UNAVAILABLE if the storage cannot be read.
    pub(crate) async fn ensure_read_consistency(&self) -> Result<()> {
        match (self.read_consistency, self.storage.shared()) {
            (ReadConsistency::Linearizable, Some(shared)) => shared.sync().await.map_err(|error| {
                debug!(%error, "linearizable read failed");
                Error::StoreUnavailable
            }),
            _ => Ok(()),
        }
    }
}
