//! Time: operations are looked at when they are due, and those to which time
//! has done something change.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, stream};
use tokio::select;
use tracing::{debug, error, info};

use super::{deadlines::Deadlines, store::Store};
use crate::{clock::Timestamp, error::Error, operation::stage::Event};

/// How many due operations are looked at side by side, so that a journal can
/// keep their changes in one go.
const LAPSES_AT_ONCE: usize = 1024;

/// The pause before a look that could not be kept is tried again.
const LAPSE_PAUSE: Duration = Duration::from_secs(1);

impl Store {
    /// Looks at operations when they are due, until the store stops.
    pub(super) fn keep_time(self: &Arc<Self>) {
        // Leases do not wait behind a million operations that expire.
        let books: [fn(&Self) -> &Deadlines; 2] = [
            |store| &store.view.deadlines,
            |store| &store.view.retentions,
        ];
        for book in books {
            self.tasks.spawn("deadlines", look(self.clone(), book));
        }
    }

    /// Tells the state machine that time passed for one operation.
    async fn lapse(self: &Arc<Self>, number: u64) {
        let Some(operation) = self.view.index.get(number) else {
            return;
        };
        if self.clock.now() < operation.deadline(Timestamp::default()) {
            return;
        }
        match self.commit(&operation.owned_name(), Event::Lapse).await {
            Ok(after) if after.state() != operation.state() => {
                info!(
                    operation.name = after.name(),
                    operation.state = after.state().as_str_name(),
                    "a timeout or a lost lease changed an operation"
                );
            }
            Ok(_) => {}
            Err(Error::NotFound { .. } | Error::Refused { .. }) => {}
            Err(error) => {
                // The journal says once what ails it.
                debug!(operation.name = operation.name(), %error, "an operation is due, but that could not be kept; trying again");
                self.view
                    .look_at(&operation, self.clock.now() + LAPSE_PAUSE);
            }
        }
    }
}

/// Looks at operations when they are due, until the store stops.
async fn look(store: Arc<Store>, book: fn(&Store) -> &Deadlines) {
    let stopping = store.tasks.stopping().clone();
    loop {
        let due = select! {
            due = book(&store).next(store.clock) => due,
            () = stopping.cancelled() => return,
        };
        stream::iter(due)
            .for_each_concurrent(LAPSES_AT_ONCE, |number| {
                // One operation that cannot be looked at must not stop the clock for all.
                let looked = AssertUnwindSafe(store.lapse(number)).catch_unwind();
                looked.map(move |looked| {
                    if looked.is_err() {
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
