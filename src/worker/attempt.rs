//! One in-process attempt: runs the handler, renews the lease, commits reports,
//! forwards cancellation and records the result.

use std::{sync::Arc, time::Duration};

use tokio::{
    select,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    context::{AttemptState, Context, LeasedOperation},
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
        outcome::Outcome,
        transition::{Event, Phase, Report, TerminalState},
    },
    store::state::Store,
    tasks::Tasks,
};

/// The minimum interval between two reports of one attempt.
const MIN_REPORT_INTERVAL: Duration = Duration::from_millis(100);
/// The delay before the result is recorded again after a store failure.
const FINISH_RETRY_DELAY: Duration = Duration::from_millis(200);

/// An attempt at a leased operation.
pub(crate) struct Attempt {
    store: Arc<Store>,
    name: OperationName,
    number: u64,
    token: LeaseToken,
    renew_interval: Duration,
    state: Arc<AttemptState>,
}

impl Attempt {
    /// Creates an attempt for an operation that was just leased with `token`.
    pub(crate) fn new(store: Arc<Store>, operation: &Operation, token: LeaseToken) -> Self {
        Self {
            store,
            name: operation.name_owned(),
            number: operation.number(),
            token,
            renew_interval: operation.options().lease_duration / 3,
            state: Arc::default(),
        }
    }

    /// Runs the handler, records its result and returns the outcome. Cancelling
    /// `stop` ends the attempt early and returns the operation to its queue.
    pub(crate) async fn run(
        self,
        leased_operation: LeasedOperation,
        handler: Arc<dyn DynHandler>,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> AttemptOutcome {
        let context = Context::new(leased_operation, self.state.clone(), self.store.clock);
        let lost = self.maintain_lease();
        match run_handler(handler, context, tasks, stop, None, lost).await {
            RunOutcome::Finished(result) => self.record_result(result, false, stop).await,
            RunOutcome::Panicked(result) => self.record_result(result, true, stop).await,
            RunOutcome::LeaseLost => AttemptOutcome::lost,
        }
    }

    /// Renews the lease, commits reports and forwards cancellation. Returns only
    /// when the lease is lost.
    async fn maintain_lease(&self) {
        let mut waiter = self.store.view.waiters.register_worker(self.number);
        let mut renew_at = Instant::now() + self.renew_interval;
        let mut report_at = Instant::now();
        let mut warned = false;
        loop {
            let Some(operation) = self.leased_operation() else {
                return;
            };
            if let Phase::Cancelling(_) = operation.phase() {
                self.state.cancellation_token.cancel();
            }
            let report_ready = async {
                sleep_until(report_at).await;
                self.state.wait_for_report().await;
            };
            let result = select! {
                () = waiter.notified() => continue,
                () = sleep_until(renew_at) => {
                    renew_at = Instant::now() + self.renew_interval;
                    self.commit(Event::Heartbeat(self.token, Report::default())).await
                }
                () = report_ready => {
                    report_at = Instant::now() + MIN_REPORT_INTERVAL;
                    match self.state.take_report() {
                        Some(report) => {
                            let committed = self.commit(Event::Report(self.token, report.clone())).await;
                            if let Err(Error::StoreUnavailable) = committed {
                                self.state.restore_report(report);
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
                        warn!(operation.name = %self.name, %error, "dropping progress reports");
                    }
                }
                // The next iteration retries while the lease lasts.
                Err(error) => {
                    debug!(operation.name = %self.name, %error, "failed to renew the lease, retrying");
                }
            }
        }
    }

    /// Returns the operation, or `None` if this attempt no longer holds its lease.
    fn leased_operation(&self) -> Option<Arc<Operation>> {
        let operation = self.store.view.get_any(self.name.as_str())?;
        let holds_lease = operation.lease()?.token == self.token;
        holds_lease.then_some(operation)
    }

    /// Records the result together with the last report. Retries store failures
    /// until the lease is lost or `stop` is cancelled.
    async fn record_result(
        &self,
        result: AttemptResult,
        has_panicked: bool,
        stop: &CancellationToken,
    ) -> AttemptOutcome {
        let report = self.state.take_report().unwrap_or_default();
        let is_release = result == AttemptResult::Released;
        let event = result.into_event(self.token, report.clone());
        let event = event.unwrap_or_else(|error| {
            let error = invalid_result_failure(&error).error;
            Event::Finish(self.token, Outcome::Error(Box::new(error)), report)
        });
        loop {
            match self.commit(event.clone()).await {
                Ok(_) if has_panicked => return AttemptOutcome::panicked,
                Ok(operation) => return attempt_outcome(&operation, is_release),
                Err(Error::FailedPrecondition { .. } | Error::NotFound { .. }) => {
                    return AttemptOutcome::lost;
                }
                Err(error) => {
                    debug!(operation.name = %self.name, %error, "failed to record outcome, retrying");
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

    async fn commit(&self, event: Event) -> Result<Arc<Operation>> {
        self.store.commit(&self.name, event).await
    }
}

/// Derives the outcome from the recorded phase, because a retryable failure may
/// have used up the last attempt.
fn attempt_outcome(operation: &Operation, is_release: bool) -> AttemptOutcome {
    match operation.phase() {
        Phase::Done(TerminalState::Succeeded) => AttemptOutcome::succeeded,
        Phase::Done(TerminalState::Failed) => AttemptOutcome::failed,
        Phase::Done(TerminalState::Cancelled) => AttemptOutcome::cancelled,
        _ if is_release => AttemptOutcome::released,
        _ => AttemptOutcome::retried,
    }
}
