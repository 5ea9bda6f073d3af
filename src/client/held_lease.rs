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
    operation::{lease::LeaseToken, payload::Payload, transition::Report},
    proto::longrunning::v1::{Directive, LeaseHeartbeat, directive::Kind},
    worker::context::ReportBuffer,
};

/// The pause before a heartbeat that did not get through is tried again.
pub(super) const HEARTBEAT_RETRY_DELAY: Duration = Duration::from_millis(500);
/// How often a lease is renewed before it is over.
const HEARTBEATS_PER_LEASE: u32 = 3;

/// A lease that is held.
#[derive(Debug)]
pub(super) struct HeldLease {
    pub(super) name: String,
    pub(super) token: LeaseToken,
    pub(super) report_buffer: Arc<ReportBuffer>,
    lost: CancellationToken,
    times: Mutex<LeaseTimes>,
    /// The handler has ended, and the server is being told.
    is_finishing: AtomicBool,
    /// A report was dropped, and the log says so.
    has_dropped_report: AtomicBool,
}

#[derive(Debug)]
struct LeaseTimes {
    expires_at: Instant,
    renew_at: Instant,
}

// === impl Held ===

impl HeldLease {
    /// A lease that came just now. The bell rings when there is news of it.
    pub(super) fn new(
        name: &str,
        token: LeaseToken,
        remaining: Duration,
        wakeup: Arc<Notify>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            token,
            report_buffer: Arc::new(ReportBuffer::with_wakeup(wakeup)),
            lost: CancellationToken::new(),
            times: Mutex::new(LeaseTimes::from_remaining(Instant::now(), remaining)),
            is_finishing: AtomicBool::new(false),
            has_dropped_report: AtomicBool::new(false),
        }
    }

    /// Resolves when the lease is lost: the server said so, or it was not
    /// renewed in time.
    pub(super) async fn lost(&self) {
        select! {
            () = self.lost.cancelled() => {}
            () = self.expired() => {}
        }
    }

    /// Resolves when the lease was not renewed in time, whatever the server said.
    pub(super) async fn expired(&self) {
        loop {
            let expires_at = self.times.lock().expires_at;
            if expires_at <= Instant::now() {
                warn!(operation.name = %self.name, "a lease is lost, because no heartbeat got through in time");
                return;
            }
            sleep_until(expires_at).await;
        }
    }

    /// From now on it is no news if the lease is gone: its end is being told.
    pub(super) fn begin_finish(&self) {
        self.is_finishing.store(true, Relaxed);
    }

    pub(super) fn renew_at(&self) -> Instant {
        self.times.lock().renew_at
    }

    /// The next heartbeat has to come at this time.
    pub(super) fn set_renew_at(&self, at: Instant) {
        self.times.lock().renew_at = at;
    }

    /// What there is to tell of it now; none if nothing, and it is not due.
    pub(super) fn take_pending_report(&self, now: Instant) -> Option<Report> {
        let report = self.report_buffer.take();
        if report.is_none() && now < self.renew_at() {
            return None;
        }
        Some(report.unwrap_or_default())
    }

    /// Takes back what did not get through, for the next heartbeat.
    pub(super) fn restore_report(&self, report: Report) {
        if !report.is_empty() {
            self.report_buffer.restore(report);
        }
        self.set_renew_at(Instant::now() + HEARTBEAT_RETRY_DELAY);
    }

    /// A report is too large and will never be taken. Says so once, because a
    /// handler may report many times a second.
    pub(super) fn log_dropped_report(&self, status: &Status) {
        let (code, error) = (status.code(), status.message());
        if !self.has_dropped_report.swap(true, Relaxed) {
            warn!(operation.name = %self.name, ?code, error, "reports that are too large are dropped; the lease is kept");
        }
    }

    /// Does what the server says. False if the lease is lost.
    pub(super) fn apply_directive(&self, directive: &Directive, sent: Instant) -> bool {
        let error_message = directive.error.as_ref().map(|error| error.message.as_str());
        match directive.kind() {
            Kind::LeaseLost => {
                let error = error_message.unwrap_or("the server says so");
                if self.is_finishing.load(Relaxed) {
                    debug!(operation.name = %self.name, error, "the lease has ended");
                } else {
                    warn!(operation.name = %self.name, error, "a lease is lost");
                }
                self.lost.cancel();
                return false;
            }
            Kind::CancelRequested => self.report_buffer.cancellation_token.cancel(),
            Kind::OperationDeleted => {
                debug!(operation.name = %self.name, "the operation was deleted; nobody will see its result");
            }
            Kind::Continue | Kind::Drain | Kind::Unspecified => {}
        }
        if let Some(error) = error_message {
            warn!(operation.name = %self.name, error, "a report was not taken");
        }
        let remaining = directive.lease_remaining.map(parse_duration);
        if let Some(Ok(remaining)) = remaining {
            *self.times.lock() = LeaseTimes::from_remaining(sent, remaining);
        }
        true
    }

    /// A sign of life with this report.
    pub(super) fn lease_heartbeat(&self, report: &Report) -> LeaseHeartbeat {
        let to_any = |payload: &Option<Payload>| payload.as_ref().map(|it| it.any().clone());
        LeaseHeartbeat {
            name: self.name.clone(),
            lease_token: self.token.as_bytes().to_vec(),
            progress: report.progress.clone(),
            metadata: to_any(&report.metadata),
            detail: to_any(&report.detail),
            checkpoint: to_any(&report.checkpoint),
        }
    }
}

// === impl Times ===

impl LeaseTimes {
    fn from_remaining(sent: Instant, remaining: Duration) -> Self {
        Self {
            expires_at: sent + remaining,
            renew_at: sent + remaining / HEARTBEATS_PER_LEASE,
        }
    }
}
