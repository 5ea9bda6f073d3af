//! Timers: fires the deadlines of operations, such as an expired lease or the end of a backoff.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, stream};
use tokio::select;
use tracing::{debug, error, info};

use super::{deadlines::Deadlines, state::Store};
use crate::{clock::Timestamp, error::Error, operation::transition::Event};

/// How many due operations are committed concurrently, so that storage can batch their writes.
const MAX_CONCURRENT_DEADLINES: usize = 1024;

/// How long after a failed write the deadline of an operation fires again.
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
            self.tasks
                .spawn("deadlines", run_timer_loop(self.clone(), deadlines));
        }
    }

    /// Commits `TimerFired` for an operation that is due.
    async fn fire_deadline(self: &Arc<Self>, number: u64) {
        let Some(operation) = self.view.index.get(number) else {
            return;
        };
        if self.clock.now() < operation.next_deadline(Timestamp::default()) {
            return;
        }
        match self
            .commit(&operation.name_owned(), Event::TimerFired)
            .await
        {
            Ok(after) if after.state() != operation.state() => {
                info!(
                    operation.name = after.name(),
                    operation.state = after.state().as_str_name(),
                    "operation timed out or lost its lease"
                );
            }
            Ok(_) => {}
            Err(Error::NotFound { .. } | Error::FailedPrecondition { .. }) => {}
            Err(error) => {
                // The storage logs an outage once; this would log it for each operation.
                debug!(
                    operation.name = operation.name(),
                    %error,
                    retry_in = ?RETRY_DELAY,
                    "failed to persist a timeout, retrying"
                );
                self.view
                    .schedule_at(&operation, self.clock.now() + RETRY_DELAY);
            }
        }
    }
}

/// Fires due deadlines until the store shuts down.
async fn run_timer_loop(store: Arc<Store>, deadlines: fn(&Store) -> &Deadlines) {
    let stopping = store.tasks.stop_token().clone();
    loop {
        let due = select! {
            due = deadlines(&store).wait_for_due(store.clock) => due,
            () = stopping.cancelled() => return,
        };
        stream::iter(due)
            .for_each_concurrent(MAX_CONCURRENT_DEADLINES, |number| {
                // A panic for one operation must not stop the timers of all others.
                let firing = AssertUnwindSafe(store.fire_deadline(number)).catch_unwind();
                firing.map(move |result| {
                    if result.is_err() {
                        error!(operation.number = number, "deadline handler panicked");
                    }
                })
            })
            .await;
    }
}
