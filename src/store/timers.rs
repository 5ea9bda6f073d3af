//! Timers: fires the deadlines of operations, such as an expired lease or the end of a backoff.

use std::{collections::BTreeSet, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, stream};
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

use super::{
    commit::{CommitError, CommitHandle, Intent, OnAbandon},
    deadlines::Deadlines,
    state::Store,
};
use crate::{
    clock::Timestamp,
    error::{Error, Result},
    operation::{Operation, options::QueueName, transition::Event},
};

/// How many due operations are committed concurrently, so that storage can batch their writes.
const MAX_CONCURRENT_DEADLINES: usize = 1024;

/// The time between two attempts while the storage is unavailable.
const RETRY_DELAY: Duration = Duration::from_secs(1);

impl Store {
    /// Starts the timer loops, which run until the store shuts down.
    pub(super) fn start_timers(self: &Arc<Self>) {
        // Two loops, so that leases do not wait behind a million operations that expire.
        let deadline_sets: [fn(&Self) -> &Deadlines; 2] = [
            |store| &store.view.deadlines,
            |store| &store.view.retention_deadlines,
        ];
        for deadlines in deadline_sets {
            let (store, stop_token) = (self.clone(), self.tasks.stop_token().clone());
            self.tasks.spawn("deadlines", async move {
                stop_token
                    .run_until_cancelled(store.run_timer_loop(deadlines))
                    .await
            });
        }
    }

    /// Fires due deadlines. Never returns; may be dropped at any time.
    async fn run_timer_loop(self: &Arc<Self>, deadlines: fn(&Self) -> &Deadlines) {
        loop {
            let numbers = deadlines(self).wait_for_due(self.clock).await;
            let is_due = |number: &u64| self.find_due(*number).is_some();
            let due: BTreeSet<u64> = numbers.into_iter().filter(is_due).collect();
            if !due.is_empty() {
                self.wait_for_storage().await;
            }
            stream::iter(due)
                .for_each_concurrent(MAX_CONCURRENT_DEADLINES, |number| {
                    // A panic for one operation must not stop the timers of all others.
                    let firing = AssertUnwindSafe(self.fire_deadline(number)).catch_unwind();
                    firing.map(move |result| {
                        if result.is_err() {
                            error!(operation.number = number, "deadline handler panicked");
                        }
                    })
                })
                .await;
        }
    }

    /// Returns an operation that is due. Returns `None` if it is gone, or a version with a later deadline was published
    /// since, which has set a timer for it.
    fn find_due(&self, number: u64) -> Option<Arc<Operation>> {
        let operation = self.view.index.get(number)?;
        let deadline = operation.next_deadline(Timestamp::default());
        (deadline <= self.clock.now()).then_some(operation)
    }

    /// Waits until the storage accepts writes. Meanwhile all that is due waits here: the storage is retried, not each
    /// operation.
    async fn wait_for_storage(&self) {
        // The storage logs an outage once.
        while let Some(error) = self.storage.write_error() {
            debug!(error, retry_in = ?RETRY_DELAY, "storage unavailable, timers wait");
            sleep(RETRY_DELAY).await;
        }
    }

    /// Commits `TimerFired` for an operation that is due. Its timer is gone: unless the operation changes, which sets a
    /// new one, one is set here.
    async fn fire_deadline(self: &Arc<Self>, number: u64) {
        // A worker may have renewed the lease while the storage was unavailable.
        let Some(operation) = self.find_due(number) else {
            return;
        };
        match self.commit_timer(&operation).await {
            Ok(None) | Err(Error::NotFound { .. }) => {}
            // The lease lasts longer after an outage, or another server has changed the operation.
            Ok(Some(current)) => self.view.reschedule(&current),
            Err(error) => {
                debug!(operation.name = operation.name(), %error, retry_in = ?RETRY_DELAY, "failed to persist a timeout");
                self.view
                    .schedule_at(&operation, self.clock.now() + RETRY_DELAY);
            }
        }
    }

    /// Commits `TimerFired`. Returns the current version if it has not changed the operation.
    async fn commit_timer(
        self: &Arc<Self>,
        operation: &Operation,
    ) -> Result<Option<Arc<Operation>>> {
        let (name, intent) = (
            operation.name_owned(),
            Arc::new(Intent::Apply(Event::TimerFired)),
        );
        let begun = self
            .begin_commit(&name, &intent, false, OnAbandon::Ignore)
            .await?;
        if let CommitHandle::Unchanged(current) = begun {
            return Ok(Some(current));
        }
        match begun.wait().await {
            Ok(committed) => {
                let after = committed.into_operation();
                if operation.loses_worker_if_unconfirmed() && after.lease().is_none() {
                    warn!(
                        operation.name = after.name(),
                        queue = after.queue().map(QueueName::as_str),
                        "five workers in a row did not confirm their lease; counting one as lost"
                    );
                }
                if after.state() != operation.state() {
                    info!(
                        operation.name = after.name(),
                        operation.state = after.state().as_str_name(),
                        "operation timed out or lost its lease"
                    );
                }
                Ok(None)
            }
            Err(CommitError::Rejected(error)) => Err(error),
            Err(CommitError::Conflict { current }) => {
                self.publish_conflicting_version(current, &name).await?;
                Ok(self.view.index.get(operation.number()))
            }
        }
    }
}
