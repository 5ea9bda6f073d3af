//! A lease held by this process: its expiry, its pending report and the directives
//! of the server.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    select,
    sync::{Notify, SetOnce},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{debug, warn};

use crate::{
    clock::parse_duration,
    operation::{lease::LeaseToken, payload::Payload, transition::Report},
    proto::longrunning::v1::{Directive, LeaseHeartbeat, directive::Kind},
    worker::context::AttemptState,
};

/// The delay before a failed heartbeat is sent again.
pub(super) const HEARTBEAT_RETRY_DELAY: Duration = Duration::from_millis(500);
/// The number of renewals per lease duration.
const HEARTBEATS_PER_LEASE: u32 = 3;

/// A held lease.
#[derive(Debug)]
pub(super) struct HeldLease {
    pub(super) name: String,
    pub(super) token: LeaseToken,
    pub(super) attempt_state: Arc<AttemptState>,
    lost: CancellationToken,
    /// The attempt stops when the lease expires without contact.
    is_fenced: bool,
    confirmed: SetOnce<()>,
    times: Mutex<LeaseTimes>,
    /// The handler has ended and its result is being reported.
    is_finishing: AtomicBool,
    /// A dropped report was logged; later ones are not.
    has_dropped_report: AtomicBool,
}

#[derive(Debug)]
struct LeaseTimes {
    expires_at: Instant,
    renew_at: Instant,
}

// === impl HeldLease ===

impl HeldLease {
    /// Creates a lease that was just received. With `confirm_within`, its first
    /// heartbeat is due at once, and it is lost without a response by then. If it
    /// `is_fenced`, it is lost when it expires. Notifies `wakeup` when a report
    /// becomes pending.
    pub(super) fn new(
        name: &str,
        token: LeaseToken,
        remaining: Duration,
        confirm_within: Option<Duration>,
        is_fenced: bool,
        wakeup: Arc<Notify>,
    ) -> Self {
        let received = Instant::now();
        let (confirmed, times) = match confirm_within {
            Some(within) => {
                let expires_at = received + remaining.min(within);
                let renew_at = received;
                (
                    SetOnce::new(),
                    LeaseTimes {
                        expires_at,
                        renew_at,
                    },
                )
            }
            None => {
                let times = LeaseTimes::from_remaining(received, remaining);
                (SetOnce::new_with(Some(())), times)
            }
        };
        Self {
            name: name.to_owned(),
            token,
            attempt_state: Arc::new(AttemptState::with_wakeup(wakeup)),
            lost: CancellationToken::new(),
            is_fenced,
            confirmed,
            times: Mutex::new(times),
            is_finishing: AtomicBool::new(false),
            has_dropped_report: AtomicBool::new(false),
        }
    }

    /// Waits until the lease is lost: the server reported it, or it expired without
    /// contact before its confirmation or if it is fenced.
    pub(super) async fn lost(&self) {
        select! {
            () = self.lost.cancelled() => {}
            () = self.expired() => {}
        }
    }

    /// Waits until the server has reported that the lease is lost. Only that ends the
    /// report of a result: a lease that expired here may be extended there.
    pub(super) async fn lost_by_report(&self) {
        self.lost.cancelled().await;
    }

    /// Waits until the server has answered the first heartbeat. Returns immediately
    /// for a lease that needs no confirmation.
    pub(super) async fn confirmed(&self) {
        self.confirmed.wait().await;
    }

    /// Waits until the lease expires, ignoring what the server reported. Never returns
    /// if the attempt goes on then: the server may be away, and extend its leases.
    async fn expired(&self) {
        loop {
            let expires_at = self.times.lock().expires_at;
            if expires_at > Instant::now() {
                sleep_until(expires_at).await;
            } else if self.is_fenced || !self.confirmed.initialized() {
                warn!(operation.name = %self.name, "lease expired: no heartbeat reached the server in time");
                return;
            } else {
                debug!(operation.name = %self.name, "lease expired without contact to the server; the attempt goes on");
                return pending().await;
            }
        }
    }

    /// Returns `true` if no heartbeat has reached the server in time.
    pub(super) fn is_expired(&self) -> bool {
        self.times.lock().expires_at <= Instant::now()
    }

    /// Marks the lease as finishing: its loss is then expected and not logged as a
    /// warning.
    pub(super) fn begin_finish(&self) {
        self.is_finishing.store(true, Relaxed);
    }

    pub(super) fn renew_at(&self) -> Instant {
        self.times.lock().renew_at
    }

    /// Schedules the next heartbeat.
    pub(super) fn set_renew_at(&self, at: Instant) {
        self.times.lock().renew_at = at;
    }

    /// Takes the report of the next heartbeat. Returns `None` if no renewal is due
    /// and no report is pending or reports are not due.
    pub(super) fn take_pending_report(&self, now: Instant, reports_due: bool) -> Option<Report> {
        let renewal_due = now >= self.renew_at();
        let report = (renewal_due || reports_due).then(|| self.attempt_state.take_report());
        report
            .flatten()
            .or_else(|| renewal_due.then(Report::default))
    }

    /// Puts back a report that was not delivered and schedules the next heartbeat.
    pub(super) fn restore_report(&self, report: Report) {
        if !report.is_empty() {
            self.attempt_state.restore_report(report);
        }
        self.set_renew_at(Instant::now() + HEARTBEAT_RETRY_DELAY);
    }

    /// Logs a report that the server rejected as too large. Logs only the first one
    /// of a lease, because a handler may report many times a second.
    pub(super) fn log_dropped_report(&self, status: &Status) {
        let (code, error) = (status.code(), status.message());
        if !self.has_dropped_report.swap(true, Relaxed) {
            warn!(operation.name = %self.name, ?code, error, "dropping oversized reports; the lease is still renewed");
        }
    }

    /// Applies the directive that answers a heartbeat sent at `sent`. Returns `false`
    /// if the lease is lost.
    pub(super) fn apply_response(&self, directive: &Directive, sent: Instant) -> bool {
        if directive.kind() != Kind::LeaseLost {
            // Fails for every heartbeat but the first.
            let _ = self.confirmed.set(());
        }
        self.apply_directive(directive, sent)
    }

    /// Applies a directive for a request sent at `sent`. Returns `false` if the
    /// lease is lost.
    pub(super) fn apply_directive(&self, directive: &Directive, sent: Instant) -> bool {
        let error_message = directive.error.as_ref().map(|error| error.message.as_str());
        match directive.kind() {
            Kind::LeaseLost => {
                let error = error_message.unwrap_or("reported by the server");
                if self.is_finishing.load(Relaxed) {
                    debug!(operation.name = %self.name, error, "lease ended");
                } else {
                    warn!(operation.name = %self.name, error, "lease lost");
                }
                self.lost.cancel();
                return false;
            }
            Kind::CancelRequested => self.attempt_state.cancellation_token.cancel(),
            Kind::OperationDeleted => {
                debug!(operation.name = %self.name, "operation deleted; its result will be discarded");
            }
            Kind::Continue | Kind::Drain | Kind::Unspecified => {}
        }
        if let Some(error) = error_message {
            warn!(operation.name = %self.name, error, "report rejected");
        }
        // An unconfirmed lease ends earlier than it expires.
        if let Some(Ok(remaining)) = directive.lease_remaining.map(parse_duration)
            && self.confirmed.initialized()
        {
            *self.times.lock() = LeaseTimes::from_remaining(sent, remaining);
        }
        true
    }

    /// Builds a heartbeat with this report.
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

// === impl LeaseTimes ===

impl LeaseTimes {
    fn from_remaining(sent: Instant, remaining: Duration) -> Self {
        Self {
            expires_at: sent + remaining,
            renew_at: sent + remaining / HEARTBEATS_PER_LEASE,
        }
    }
}
