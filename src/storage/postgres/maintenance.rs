//! Deletes expired operations, and prunes the change log.

use std::{sync::Arc, time::Duration};

use tokio::time::interval;
use tracing::debug;

use super::{connection::Connection, notify::Notifier, statements::Statements};

/// The time between two rounds of maintenance.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(20);

/// The maintenance of the tables. Several servers may run it at once.
#[derive(Debug)]
pub(super) struct Maintenance {
    pub(super) connection: Arc<Connection>,
    pub(super) statements: Arc<Statements>,
    pub(super) notifier: Arc<Notifier>,
}

// === impl Maintenance ===

impl Maintenance {
    /// Deletes and prunes at regular intervals. Never returns; may be dropped at any time.
    pub(super) async fn run(&self) {
        let mut ticks = interval(MAINTENANCE_INTERVAL);
        loop {
            ticks.tick().await;
            self.run_batches(&self.statements.delete_expired).await;
            self.run_batches(&self.statements.prune_changes).await;
        }
    }

    /// Executes a statement, whose batches are small, until it finds no more rows.
    async fn run_batches(&self, statement: &str) {
        loop {
            match self.connection.execute(statement, &[]).await {
                Ok(0) => return,
                Ok(_) => self.notifier.mark_changed(),
                Err(error) => return debug!(%error, "maintenance failed"),
            }
        }
    }
}
