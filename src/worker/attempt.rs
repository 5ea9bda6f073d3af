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
    context::{Context, LeasedOperation, ReportBuffer},
    handler::DynHandler,
    runner::{RunOutcome, invalid_result_failure, run_handler},
};
use crate::{
    error::{Error, Result},
    metrics::AttemptOutcome,
    operation::{
        Operation,
        attempt_result::AttemptResult,
        lease::LeaseToken,
        name::OperationName,
        outcome::{Failure, Outcome},
        transition::{Event, Phase, Report, TerminalState},
    },
    proto::google::rpc::Code,
    store::state::Store,
    tasks::Tasks,
};

/// The shortest pause between two reports of one attempt.
const MIN_REPORT_INTERVAL: Duration = Duration::from_millis(100);
/// The pause before an outcome that the store could not keep is tried again.
const FINISH_RETRY_DELAY: Duration = Duration::from_millis(200);

/// A claimed operation and who works on it.
pub(crate) struct Attempt {
    store: Arc<Store>,
    name: OperationName,
    number: u64,
    token: LeaseToken,
    renew_interval: Duration,
    report_buffer: Arc<ReportBuffer>,
}

impl Attempt {
    /// An attempt at an operation whose lease was taken just now.
    pub(crate) fn new(store: Arc<Store>, operation: &Operation, token: LeaseToken) -> Self {
        Self {
            store,
            name: operation.name_owned(),
            number: operation.number(),
            token,
            renew_interval: operation.options().lease_duration / 3,
            report_buffer: Arc::new(ReportBuffer::with_wakeup(Arc::default())),
        }
    }

    /// Runs the handler and tells how the attempt ended. `release` ends it
    /// early: the operation goes back to its queue.
    pub(crate) async fn run(
        self,
        leased_operation: LeasedOperation,
        handler: Arc<dyn DynHandler>,
        tasks: &Tasks,
        stop: CancellationToken,
    ) -> AttemptOutcome {
        let context = Context::new(
            leased_operation,
            self.report_buffer.clone(),
            self.store.clock,
        );
        let report_buffer = self.report_buffer.clone();
        match run_handler(
            handler,
            context,
            report_buffer,
            tasks,
            &stop,
            None,
            self.maintain_lease(),
        )
        .await
        {
            RunOutcome::Finished(end) => self.record_result(end, false, &stop).await,
            RunOutcome::Panicked(end) => self.record_result(end, true, &stop).await,
            RunOutcome::LeaseLost => AttemptOutcome::lost,
        }
    }

    /// Renews the lease, commits reports and passes on a cancellation. Ends
    /// only when the lease is lost.
    async fn maintain_lease(&self) {
        let mut waiter = self.store.view.waiters.register_worker(self.number);
        let mut renew_at = Instant::now() + self.renew_interval;
        let mut report_at = Instant::now();
        let mut warned = false;
        loop {
            if !self.check_lease() {
                return;
            }
            let report_ready = async {
                sleep_until(report_at).await;
                self.report_buffer.wait_for_report().await;
            };
            let result = select! {
                () = waiter.notified() => continue,
                () = sleep_until(renew_at) => {
                    renew_at = Instant::now() + self.renew_interval;
                    self.commit(Event::RenewLease(self.token, Report::default())).await
                }
                () = report_ready => {
                    report_at = Instant::now() + MIN_REPORT_INTERVAL;
                    match self.report_buffer.take() {
                        Some(report) => {
                            let committed = self.commit(Event::Report(self.token, report.clone())).await;
                            if let Err(Error::StoreUnavailable) = committed {
                                self.report_buffer.restore(report);
                            }
                            committed
                        }
                        None => continue,
                    }
                }
            };
            match result {
                Ok(_) => {}
                Err(Error::FailedPrecondition { .. } | Error::NotFound { .. }) => return,
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
    fn check_lease(&self) -> bool {
        let Some(operation) = self.store.view.get_any(self.name.as_str()) else {
            return false;
        };
        if let Phase::Cancelling(_) = operation.phase() {
            self.report_buffer.cancellation_token.cancel();
        }
        operation
            .lease()
            .is_some_and(|lease| lease.token == self.token)
    }

    /// Records how the attempt ended, with what the handler reported last,
    /// however long the store takes, while the lease lasts and the grace of a
    /// shutdown is not over.
    async fn record_result(
        &self,
        result: AttemptResult,
        has_panicked: bool,
        stop: &CancellationToken,
    ) -> AttemptOutcome {
        let report = self.report_buffer.take().unwrap_or_default();
        let is_release = result == AttemptResult::Released;
        let event = result.into_event(self.token, report.clone());
        let mut event = event
            .unwrap_or_else(|error| self.failure_event(invalid_result_failure(&error), report));
        loop {
            match self.commit(event.clone()).await {
                Ok(_) if has_panicked => return AttemptOutcome::panicked,
                Ok(operation) => return attempt_outcome(&operation, is_release),
                Err(Error::FailedPrecondition { .. } | Error::NotFound { .. }) => {
                    return AttemptOutcome::lost;
                }
                Err(error @ Error::TooLarge { .. }) => event = self.shrink_event(event, &error),
                Err(error) => {
                    debug!(operation.name = %self.name, %error, "the outcome could not be recorded yet");
                    if stop.is_cancelled() {
                        return AttemptOutcome::lost;
                    }
                    select! {
                        () = sleep(FINISH_RETRY_DELAY) => {}
                        () = stop.cancelled() => {}
                    }
                }
            }
        }
    }

    fn failure_event(&self, failure: Failure, report: Report) -> Event {
        Event::Finish(self.token, Outcome::Error(Box::new(failure.error)), report)
    }

    /// What is recorded instead of an end that is too large: first the same
    /// without the last report, then an error that says so, for which there is
    /// always room.
    fn shrink_event(&self, event: Event, error: &Error) -> Event {
        if event.report().is_some_and(|report| !report.is_empty()) {
            warn!(operation.name = %self.name, %error, "the last report of an attempt was dropped");
            return event.without_report();
        }
        let message = error.to_string();
        let outcome = Outcome::server_error(Code::ResourceExhausted, error.reason(), message);
        Event::Finish(self.token, outcome, Report::default())
    }

    async fn commit(&self, event: Event) -> Result<Arc<Operation>> {
        self.store.commit(&self.name, event).await
    }
}

/// How an attempt ended, by what became of the operation: a failure that was
/// meant to be retried may have been the last one.
fn attempt_outcome(operation: &Operation, is_release: bool) -> AttemptOutcome {
    match operation.phase() {
        Phase::Done(TerminalState::Succeeded) => AttemptOutcome::succeeded,
        Phase::Done(TerminalState::Failed) => AttemptOutcome::failed,
        Phase::Done(TerminalState::Cancelled) => AttemptOutcome::cancelled,
        _ if is_release => AttemptOutcome::released,
        _ => AttemptOutcome::retried,
    }
}
