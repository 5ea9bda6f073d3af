//! One attempt at one operation, from the claim to the outcome: it keeps the
//! lease, commits what the handler reports, passes on the wish that it stop,
//! and records how it ended. All of it goes through the store like anybody's.

use std::{any::Any as Panic, sync::Arc, time::Duration};

use tokio::{
    select,
    task::JoinError,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::{
    context::{Assignment, Context, Desk},
    handler::AnyHandler,
};
use crate::{
    error::{Error, Result},
    metrics::AttemptEnd,
    operation::{
        lease::LeaseToken,
        name::OperationName,
        operation::Operation,
        outcome::{Failure, Outcome, status},
        payload::Payload,
        stage::{Ending, Event, Report, Stage},
    },
    proto::google::rpc::{Code, Status},
    store::store::Store,
    tasks::Tasks,
};

/// The shortest pause between two reports of one attempt.
const REPORT_PAUSE: Duration = Duration::from_millis(100);
/// How long an aborted handler may take to its next await.
const ABORT_PATIENCE: Duration = Duration::from_secs(1);
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
            desk: Arc::default(),
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
        let mut work = tasks.spawn("handler", handler.start(context));
        let end = select! {
            biased;
            result = &mut work => self.finish(result, &release).await,
            () = release.cancelled() => {
                // The operation is offered again only when nobody works on it any
                // more. A handler that blocks its thread is not waited for.
                self.desk.cancelled.cancel();
                work.abort();
                match timeout(ABORT_PATIENCE, &mut work).await {
                    Ok(Ok(Ok(response))) => self.finish(Ok(Ok(response)), &release).await,
                    // It broke off because it was told to, not because it failed.
                    _ => self.release(&release).await,
                }
            }
            () = self.keep() => AttemptEnd::lost,
        };
        // A handler that nobody waits for any more stops at its next await.
        self.desk.cancelled.cancel();
        work.abort();
        end
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

    async fn finish(
        &self,
        result: Result<HandlerResult, JoinError>,
        release: &CancellationToken,
    ) -> AttemptEnd {
        let report = self.desk.take().unwrap_or_default();
        let (event, end) = match result {
            Ok(Ok(response)) => self.succeeded(response, report),
            Ok(Err(failure)) => self.failed(failure, report),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => (
                    self.finished(panicked(&*panic), report),
                    AttemptEnd::panicked,
                ),
                // It was aborted, here or by a runtime that shuts down.
                Err(_) => return self.release(release).await,
            },
        };
        self.record(event, end, release).await
    }

    fn succeeded(&self, response: prost_types::Any, report: Report) -> (Event, AttemptEnd) {
        if response == prost_types::Any::default() {
            return (
                self.finished(Outcome::Response(Payload::empty()), report),
                AttemptEnd::succeeded,
            );
        }
        match Payload::new(response) {
            Ok(response) => (
                self.finished(Outcome::Response(response), report),
                AttemptEnd::succeeded,
            ),
            Err(error) => (
                self.finished(bad_result(&error), report),
                AttemptEnd::failed,
            ),
        }
    }

    fn failed(&self, failure: Failure, report: Report) -> (Event, AttemptEnd) {
        match Outcome::error(failure.error) {
            Ok(Outcome::Error(error)) if failure.retryable => {
                let retry_after = failure.retry_after;
                (
                    Event::Fail {
                        token: self.token,
                        error,
                        retry_after,
                        report,
                    },
                    AttemptEnd::retried,
                )
            }
            Ok(outcome) => (self.finished(outcome, report), AttemptEnd::failed),
            Err(error) => (
                self.finished(bad_result(&error), report),
                AttemptEnd::failed,
            ),
        }
    }

    fn finished(&self, outcome: Outcome, report: Report) -> Event {
        Event::Finish(self.token, outcome, report)
    }

    /// Records the outcome, however long the store takes, while the lease lasts
    /// and the grace of a shutdown is not over.
    async fn record(
        &self,
        mut event: Event,
        end: AttemptEnd,
        release: &CancellationToken,
    ) -> AttemptEnd {
        loop {
            match self.commit(event.clone()).await {
                Ok(operation) => return ended(&operation, end),
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

    /// What is recorded instead of an end that is too large: first the same
    /// without the last report, then an error that says so, for which there is
    /// always room.
    fn smaller(&self, event: Event, error: &Error) -> Event {
        if event.report().is_some_and(|report| !report.is_empty()) {
            warn!(operation.name = %self.name, %error, "the last report of an attempt was dropped");
            return event.without_report();
        }
        let code = Code::ResourceExhausted;
        let outcome = Outcome::failed(code, error.reason(), error.to_string());
        self.finished(outcome, Report::default())
    }

    /// Gives the operation back. What the handler reported last goes with it, so
    /// that the next attempt finds its checkpoint.
    async fn release(&self, release: &CancellationToken) -> AttemptEnd {
        let report = self.desk.take().unwrap_or_default();
        let event = Event::Release(self.token, report);
        self.record(event, AttemptEnd::released, release).await
    }

    async fn commit(&self, event: Event) -> Result<Arc<Operation>> {
        self.store.commit(&self.name, event).await
    }
}

/// How an attempt ended, by what became of the operation: a failure that was
/// meant to be retried may have been the last one.
fn ended(operation: &Operation, end: AttemptEnd) -> AttemptEnd {
    match (operation.stage(), end) {
        (_, AttemptEnd::panicked) => AttemptEnd::panicked,
        (Stage::Done(Ending::Succeeded), _) => AttemptEnd::succeeded,
        (Stage::Done(Ending::Failed), _) => AttemptEnd::failed,
        (Stage::Done(Ending::Cancelled), _) => AttemptEnd::cancelled,
        _ => end,
    }
}

type HandlerResult = std::result::Result<prost_types::Any, Failure>;

fn panicked(panic: &(dyn Panic + Send)) -> Outcome {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    let text = text.unwrap_or_else(|| "no message".to_owned());
    error!(panic = text, "a handler panicked");
    Outcome::failed(
        Code::Internal,
        "HANDLER_PANICKED",
        format!("the handler of the operation panicked: {text}"),
    )
}

fn bad_result(error: &dyn std::fmt::Display) -> Outcome {
    let error: Status = status(
        Code::Internal,
        "BAD_RESULT",
        format!("the handler returned a bad result: {error}"),
    );
    Outcome::Error(Box::new(error))
}
