//! Time: operations are looked at when they are due, and those to which time
//! has done something change.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, stream};
use tokio::select;
use tracing::{debug, error, info};

use super::{deadlines::Deadlines, store::Store};
use crate::{clock::Timestamp, error::Error, operation::transition::Event};

/// How many due operations are looked at side by side, so that a journal can
/// keep their changes in one go.
const MAX_CONCURRENT_DEADLINES: usize = 1024;

/// The pause before a look that could not be kept is tried again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

impl Store {
    /// Looks at operations when they are due, until the store stops.
    pub(super) fn start_timers(self: &Arc<Self>) {
        // Leases do not wait behind a million operations that expire.
        let deadline_sets: [fn(&Self) -> &Deadlines; 2] = [
            |store| &store.view.deadlines,
            |store| &store.view.retention_deadlines,
        ];
        for deadlines in deadline_sets {
            self.tasks
                .spawn("deadlines", run_timer_loop(self.clone(), deadlines));
        }
    }

    /// Tells the state machine that time passed for one operation.
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
                    "a timeout or a lost lease changed an operation"
                );
            }
            Ok(_) => {}
            Err(Error::NotFound { .. } | Error::FailedPrecondition { .. }) => {}
            Err(error) => {
                // The journal says once what ails it.
                debug!(operation.name = operation.name(), %error, "an operation is due, but that could not be kept; trying again");
                self.view
                    .schedule_at(&operation, self.clock.now() + RETRY_DELAY);
            }
        }
    }
}

/// Looks at operations when they are due, until the store stops.
async fn run_timer_loop(store: Arc<Store>, deadlines: fn(&Store) -> &Deadlines) {
    let stopping = store.tasks.stop_token().clone();
    loop {
        let due = select! {
            due = deadlines(&store).wait_for_due(store.clock) => due,
            () = stopping.cancelled() => return,
        };
        stream::iter(due)
            .for_each_concurrent(MAX_CONCURRENT_DEADLINES, |number| {
                // One operation that cannot be looked at must not stop the clock for all.
                let firing = AssertUnwindSafe(store.fire_deadline(number)).catch_unwind();
                firing.map(move |result| {
                    if result.is_err() {
                        error!(
                            operation.number = number,
                            "the look at an operation panicked"
                        );
                    }
                })
            })
            .await;
    }
}
