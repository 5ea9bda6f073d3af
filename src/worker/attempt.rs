//! One attempt at one operation, from the claim to the outcome: it keeps the
//! lease, commits what the handler reports, passes on the wish that it stop,
//! and records how it ended. All of it goes through the store like anybody's.

use std::{sync::Arc, time::Duration};

use tokio::{
    select,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    context::{Assignment, Context, Desk},
    execution::{Ended, bad_result, execute},
    handler::AnyHandler,
};
use crate::{
    error::{Error, Result},
    metrics::AttemptEnd,
    operation::{
        end::End,
        lease::LeaseToken,
        name::OperationName,
        operation::Operation,
        outcome::{Failure, Outcome},
        stage::{Ending, Event, Report, Stage},
    },
    proto::google::rpc::Code,
    store::store::Store,
    tasks::Tasks,
};

/// The shortest pause between two reports of one attempt.
const REPORT_PAUSE: Duration = Duration::from_millis(100);
/// The pause before an outcome that the store could not keep is tried again.
const FINISH_PAUSE: Duration = Duration::from_millis(200);

/// A claimed operation and who works on it.
pub(crate) struct Attempt {
    store: Arc<Store>,
    name: OperationName,
    number: u64,
    token: LeaseToken,
    renewal: Duration,
    desk: Arc<Desk>,
}

impl Attempt {
    /// An attempt at an operation whose lease was taken just now.
    pub(crate) fn new(store: Arc<Store>, operation: &Operation, token: LeaseToken) -> Self {
        Self {
            store,
            name: operation.owned_name(),
            number: operation.number(),
            token,
            renewal: operation.terms().lease_duration / 3,
            desk: Arc::new(Desk::with_bell(Arc::default())),
        }
    }

    /// Runs the handler and tells how the attempt ended. `release` ends it
    /// early: the operation goes back to its queue.
    pub(crate) async fn run(
        self,
        assignment: Assignment,
        handler: Arc<dyn AnyHandler>,
        tasks: &Tasks,
        release: CancellationToken,
    ) -> AttemptEnd {
        let context = Context::new(assignment, self.desk.clone(), self.store.clock);
        let desk = self.desk.clone();
        match execute(handler, context, desk, tasks, &release, None, self.keep()).await {
            Ended::With(end) => self.record(end, false, &release).await,
            Ended::Panicked(end) => self.record(end, true, &release).await,
            Ended::Lost => AttemptEnd::lost,
        }
    }

    /// Renews the lease, commits reports and passes on a cancellation. Ends
    /// only when the lease is lost.
    async fn keep(&self) {
        let mut waiter = self.store.view.waiters.enter_worker(self.number);
        let mut renew_at = Instant::now() + self.renewal;
        let mut report_at = Instant::now();
        let mut warned = false;
        loop {
            if !self.is_mine() {
                return;
            }
            let reported = async {
                sleep_until(report_at).await;
                self.desk.reported().await;
            };
            let kept = select! {
                () = waiter.called() => continue,
                () = sleep_until(renew_at) => {
                    renew_at = Instant::now() + self.renewal;
                    self.commit(Event::Renew(self.token, Report::default())).await
                }
                () = reported => {
                    report_at = Instant::now() + REPORT_PAUSE;
                    match self.desk.take() {
                        Some(report) => {
                            let kept = self.commit(Event::Report(self.token, report.clone())).await;
                            if let Err(Error::StoreUnavailable) = kept {
                                self.desk.put_back(report);
                            }
                            kept
                        }
                        None => continue,
                    }
                }
            };
            match kept {
                Ok(_) => {}
                Err(Error::Refused { .. } | Error::NotFound { .. }) => return,
                Err(error @ (Error::TooLarge { .. } | Error::StoreFull { .. })) => {
                    if !std::mem::replace(&mut warned, true) {
                        warn!(operation.name = %self.name, %error, "reports are dropped");
                    }
                }
                // The next turn tries again, while the lease lasts.
                Err(error) => {
                    debug!(operation.name = %self.name, %error, "the lease could not be renewed");
                }
            }
        }
    }

    /// Looks at the operation: whether the lease is still held, and whether
    /// somebody wants it to stop.
    fn is_mine(&self) -> bool {
        let Some(operation) = self.store.view.find(self.name.as_str()) else {
            return false;
        };
        if let Stage::Cancelling(_) = operation.stage() {
            self.desk.cancelled.cancel();
        }
        operation
            .lease()
            .is_some_and(|lease| lease.token == self.token)
    }

    /// Records how the attempt ended, with what the handler reported last,
    /// however long the store takes, while the lease lasts and the grace of a
    /// shutdown is not over.
    async fn record(&self, end: End, panicked: bool, release: &CancellationToken) -> AttemptEnd {
        let report = self.desk.take().unwrap_or_default();
        let is_release = end == End::Release;
        let event = end.into_event(self.token, report.clone());
        let mut event = event.unwrap_or_else(|error| self.failed(bad_result(&error), report));
        loop {
            match self.commit(event.clone()).await {
                Ok(_) if panicked => return AttemptEnd::panicked,
                Ok(operation) => return ended(&operation, is_release),
                Err(Error::Refused { .. } | Error::NotFound { .. }) => return AttemptEnd::lost,
                Err(error @ Error::TooLarge { .. }) => event = self.smaller(event, &error),
                Err(error) => {
                    debug!(operation.name = %self.name, %error, "the outcome could not be recorded yet");
                    if release.is_cancelled() {
                        return AttemptEnd::lost;
                    }
                    select! {
                        () = sleep(FINISH_PAUSE) => {}
                        () = release.cancelled() => {}
                    }
                }
            }
        }
    }

    fn failed(&self, failure: Failure, report: Report) -> Event {
        Event::Finish(self.token, Outcome::Error(Box::new(failure.error)), report)
    }

    /// What is recorded instead of an end that is too large: first the same
    /// without the last report, then an error that says so, for which there is
    /// always room.
    fn smaller(&self, event: Event, error: &Error) -> Event {
        if event.report().is_some_and(|report| !report.is_empty()) {
            warn!(operation.name = %self.name, %error, "the last report of an attempt was dropped");
            return event.without_report();
        }
        let message = error.to_string();
        let outcome = Outcome::failed(Code::ResourceExhausted, error.reason(), message);
        Event::Finish(self.token, outcome, Report::default())
    }

    async fn commit(&self, event: Event) -> Result<Arc<Operation>> {
        self.store.commit(&self.name, event).await
    }
}

/// How an attempt ended, by what became of the operation: a failure that was
/// meant to be retried may have been the last one.
fn ended(operation: &Operation, is_release: bool) -> AttemptEnd {
    match operation.stage() {
        Stage::Done(Ending::Succeeded) => AttemptEnd::succeeded,
        Stage::Done(Ending::Failed) => AttemptEnd::failed,
        Stage::Done(Ending::Cancelled) => AttemptEnd::cancelled,
        _ if is_release => AttemptEnd::released,
        _ => AttemptEnd::retried,
    }
}
