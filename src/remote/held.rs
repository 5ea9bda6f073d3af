//! A lease that is held from elsewhere: until when, what is to be told of it,
//! and whether it is lost. Who tells the server is `keeper`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    select,
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{debug, warn};

use crate::{
    clock::parse_duration,
    operation::{lease::LeaseToken, payload::Payload, stage::Report},
    proto::longrunning::v1::{Directive, LeaseReport, directive::Kind},
    worker::context::Desk,
};

/// The pause before a heartbeat that did not get through is tried again.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How often a lease is renewed before it is over.
const BEATS: u32 = 3;

/// A lease that is held.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) name: String,
    pub(super) token: LeaseToken,
    pub(super) desk: Arc<Desk>,
    lost: CancellationToken,
    times: Mutex<Times>,
    /// The handler has ended, and the server is being told.
    is_ending: AtomicBool,
    /// A report was dropped, and the log says so.
    has_dropped: AtomicBool,
}

#[derive(Debug)]
struct Times {
    over_at: Instant,
    renew_at: Instant,
}

// === impl Held ===

impl Held {
    /// A lease that came just now. The bell rings when there is news of it.
    pub(super) fn new(
        name: &str,
        token: LeaseToken,
        remaining: Duration,
        bell: Arc<Notify>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            token,
            desk: Arc::new(Desk::with_bell(bell)),
            lost: CancellationToken::new(),
            times: Mutex::new(Times::after(Instant::now(), remaining)),
            is_ending: AtomicBool::new(false),
            has_dropped: AtomicBool::new(false),
        }
    }

    /// Resolves when the lease is lost: the server said so, or it was not
    /// renewed in time.
    pub(super) async fn lost(&self) {
        select! {
            () = self.lost.cancelled() => {}
            () = self.over() => {}
        }
    }

    /// Resolves when the lease was not renewed in time, whatever the server said.
    pub(super) async fn over(&self) {
        loop {
            let over_at = self.times.lock().over_at;
            if over_at <= Instant::now() {
                warn!(operation.name = %self.name, "a lease is lost, because no heartbeat got through in time");
                return;
            }
            sleep_until(over_at).await;
        }
    }

    /// From now on it is no news if the lease is gone: its end is being told.
    pub(super) fn begin_end(&self) {
        self.is_ending.store(true, Relaxed);
    }

    pub(super) fn renew_at(&self) -> Instant {
        self.times.lock().renew_at
    }

    /// The next heartbeat has to come at this time.
    pub(super) fn set_renew_at(&self, at: Instant) {
        self.times.lock().renew_at = at;
    }

    /// What there is to tell of it now; none if nothing, and it is not due.
    pub(super) fn news(&self, now: Instant) -> Option<Report> {
        let report = self.desk.take();
        if report.is_none() && now < self.renew_at() {
            return None;
        }
        Some(report.unwrap_or_default())
    }

    /// Takes back what did not get through, for the next heartbeat.
    pub(super) fn put_back(&self, report: Report) {
        if !report.is_empty() {
            self.desk.put_back(report);
        }
        self.set_renew_at(Instant::now() + RETRY_PAUSE);
    }

    /// A report is too large and will never be taken. Says so once, because a
    /// handler may report many times a second.
    pub(super) fn drop_report(&self, status: &Status) {
        let (code, message) = (status.code(), status.message());
        if !self.has_dropped.swap(true, Relaxed) {
            warn!(operation.name = %self.name, ?code, message, "reports that are too large are dropped; the lease is kept");
        }
    }

    /// Does what the server says. False if the lease is lost.
    pub(super) fn obey(&self, directive: &Directive, sent: Instant) -> bool {
        let said = directive.error.as_ref().map(|error| error.message.as_str());
        match directive.kind() {
            Kind::LeaseLost => {
                let why = said.unwrap_or("the server says so");
                if self.is_ending.load(Relaxed) {
                    debug!(operation.name = %self.name, why, "the lease has ended");
                } else {
                    warn!(operation.name = %self.name, why, "a lease is lost");
                }
                self.lost.cancel();
                return false;
            }
            Kind::CancelRequested => self.desk.cancelled.cancel(),
            Kind::OperationDeleted => {
                debug!(operation.name = %self.name, "the operation was deleted; nobody will see its result");
            }
            Kind::Continue | Kind::Drain | Kind::Unspecified => {}
        }
        if let Some(why) = said {
            warn!(operation.name = %self.name, why, "a report was not taken");
        }
        let remaining = directive.lease_remaining.map(parse_duration);
        if let Some(Ok(remaining)) = remaining {
            *self.times.lock() = Times::after(sent, remaining);
        }
        true
    }

    /// A sign of life with this report.
    pub(super) fn report(&self, report: &Report) -> LeaseReport {
        let any = |payload: &Option<Payload>| payload.as_ref().map(|it| it.any().clone());
        LeaseReport {
            name: self.name.clone(),
            lease_token: self.token.as_bytes().to_vec(),
            progress: report.progress.clone(),
            metadata: any(&report.metadata),
            detail: any(&report.detail),
            checkpoint: any(&report.checkpoint),
        }
    }
}

// === impl Times ===

impl Times {
    fn after(sent: Instant, remaining: Duration) -> Self {
        Self {
            over_at: sent + remaining,
            renew_at: sent + remaining / BEATS,
        }
    }
}
