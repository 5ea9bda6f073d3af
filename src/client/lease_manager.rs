//! Maintains the leases of one worker: sends batched heartbeats with progress
//! reports and reads the stream of directives.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    select,
    sync::{self, Notify},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::DropGuard;
use tonic::{Request, Status, transport::Channel};
use tracing::debug;

use super::{
    backoff::{Backoff, FailureLog, is_too_large},
    heartbeat_batch::{Renewal, shrink_batch, split_into_batches},
    held_lease::{HEARTBEAT_RETRY_DELAY, HeldLease},
};
use crate::{
    operation::{
        lease::{LeaseToken, WorkerId},
        transition::Report,
    },
    proto::longrunning::v1::{
        Directive, HeartbeatRequest, LeaseHeartbeat, WatchDirectivesRequest, directive::Kind,
        operation_worker_client::OperationWorkerClient,
    },
    tasks::Tasks,
};

/// The minimum interval between two heartbeats that carry reports.
const MIN_REPORT_INTERVAL: Duration = Duration::from_millis(200);
/// The timeout of a call that does not wait.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum size of a response with operations or leases. The server sends at
/// most 3 MiB of leases, or one larger lease.
pub(super) const MAX_RESPONSE_BYTES: usize = 64 << 20;
/// The interval between two announcements that the worker drains.
const DRAIN_ANNOUNCE_INTERVAL: Duration = Duration::from_millis(200);
/// The lifetime after which a directive stream counts as stable and resets the
/// backoff.
const MIN_STABLE_STREAM_DURATION: Duration = Duration::from_secs(10);

/// The leases of one worker.
#[derive(Debug)]
pub(super) struct LeaseManager {
    client: OperationWorkerClient<Channel>,
    worker_id: WorkerId,
    /// Attempts stop when their lease expires without contact.
    is_fenced: bool,
    leases: Mutex<HashMap<LeaseToken, Arc<HeldLease>>>,
    /// Notified when a report is pending or a renewal was rescheduled.
    wakeup: Arc<Notify>,
    /// Notified when a lease was added, whose first renewal may be due.
    lease_added: Notify,
    /// Held while pending reports are taken and sent: of two concurrent sends, the older could
    /// arrive last. A task that holds it and sends nothing knows that no heartbeat with a
    /// pending report is in flight.
    pub(super) send_lock: sync::Mutex<()>,
}

// === impl LeaseManager ===

impl LeaseManager {
    pub(super) fn new(
        client: OperationWorkerClient<Channel>,
        worker_id: WorkerId,
        is_fenced: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            client,
            worker_id,
            is_fenced,
            leases: Mutex::default(),
            wakeup: Arc::default(),
            lease_added: Notify::new(),
            send_lock: sync::Mutex::default(),
        })
    }

    pub(super) fn client(&self) -> OperationWorkerClient<Channel> {
        self.client.clone()
    }

    pub(super) fn worker_id(&self) -> String {
        self.worker_id.as_str().to_owned()
    }

    /// Starts heartbeats and the directive stream. They run until the guard is
    /// dropped.
    pub(super) fn start(self: &Arc<Self>) -> DropGuard {
        let (this, tasks) = (self.clone(), Tasks::default());
        let stopping = tasks.stop_token().clone();
        let guard = stopping.clone().drop_guard();
        tasks.spawn("lease-manager", async move {
            select! {
                () = stopping.cancelled() => {}
                () = this.run_heartbeats() => {}
                () = this.run_directive_stream() => {}
            }
        });
        guard
    }

    /// Starts maintaining a lease that was just received, and that is lost unless a
    /// heartbeat confirms it in time. Returns `None` if it is already held.
    pub(super) fn track(
        &self,
        name: &str,
        token: LeaseToken,
        remaining: Duration,
        confirm_within: Option<Duration>,
    ) -> Option<Arc<HeldLease>> {
        let mut leases = self.leases.lock();
        if leases.contains_key(&token) {
            return None;
        }
        let wakeup = self.wakeup.clone();
        let held = Arc::new(HeldLease::new(
            name,
            token,
            remaining,
            confirm_within,
            self.is_fenced,
            wakeup,
        ));
        leases.insert(token, held.clone());
        self.lease_added.notify_one();
        Some(held)
    }

    /// Stops maintaining a lease.
    pub(super) fn untrack(&self, held: &HeldLease) {
        self.leases.lock().remove(&held.token);
    }

    /// Sends one report immediately and applies the directives of the response.
    pub(super) async fn send_report(
        &self,
        held: &HeldLease,
        report: &Report,
    ) -> Result<(), Status> {
        let sent = Instant::now();
        let reports = vec![held.lease_heartbeat(report)];
        for directive in self.send_heartbeat(reports, false).await? {
            held.apply_response(&directive, sent);
        }
        Ok(())
    }

    /// Sends heartbeats when leases are due or reports are pending. Never returns.
    async fn run_heartbeats(&self) {
        let mut report_at = Instant::now();
        let mut failure_log = FailureLog::new("Heartbeat");
        loop {
            let renew = async {
                match self.next_renewal() {
                    Some(renew_at) => sleep_until(renew_at).await,
                    None => std::future::pending().await,
                }
            };
            let reports_due = select! {
                () = renew => false,
                () = self.lease_added.notified() => false,
                () = async { sleep_until(report_at).await; self.wakeup.notified().await } => true,
            };
            match self.send_due_heartbeats(reports_due).await {
                Some(Ok(())) => {
                    failure_log.record_success();
                    // Leases that arrive all the time must not put off the reports of others.
                    if reports_due {
                        report_at = Instant::now() + MIN_REPORT_INTERVAL;
                    }
                }
                Some(Err(status)) => {
                    failure_log.record_failure(&status);
                    report_at = Instant::now() + HEARTBEAT_RETRY_DELAY;
                }
                None => {}
            }
        }
    }

    fn next_renewal(&self) -> Option<Instant> {
        let leases = self.leases.lock();
        leases.values().map(|held| held.renew_at()).min()
    }

    /// Sends all due heartbeats, and pending reports if they are due. A failed batch does
    /// not stop the others. Returns the last failure, or `None` if no heartbeat was due.
    async fn send_due_heartbeats(&self, reports_due: bool) -> Option<Result<(), Status>> {
        let _send_lock = self.send_lock.lock().await;
        let now = Instant::now();
        let to_renewal = |held: &Arc<HeldLease>| {
            let report = held.take_pending_report(now, reports_due)?;
            let held = held.clone();
            Some(Renewal { held, report })
        };
        let renewals = self.leases.lock().values().filter_map(to_renewal).collect();
        let mut batches = split_into_batches(renewals);
        let mut result = (!batches.is_empty()).then_some(Ok(()));
        while let Some(batch) = batches.pop_front() {
            let sent = Instant::now();
            for renewal in &batch {
                // A directive of the response replaces this time.
                renewal.held.set_renew_at(sent + HEARTBEAT_RETRY_DELAY);
            }
            let reports = batch.iter().map(Renewal::to_proto).collect();
            match self.send_heartbeat(reports, false).await {
                Ok(directives) => {
                    for (Renewal { held, .. }, directive) in batch.iter().zip(&directives) {
                        if !held.apply_response(directive, sent) {
                            self.untrack(held);
                        }
                    }
                }
                Err(status) if is_too_large(&status) => {
                    let smaller_batches = shrink_batch(batch, &status).into_iter();
                    batches.extend(smaller_batches.filter(|batch| !batch.is_empty()));
                }
                Err(status) => {
                    for Renewal { held, report } in batch {
                        held.restore_report(report);
                    }
                    result = Some(Err(status));
                }
            }
        }
        result
    }

    async fn send_heartbeat(
        &self,
        reports: Vec<LeaseHeartbeat>,
        draining: bool,
    ) -> Result<Vec<Directive>, Status> {
        let mut request = Request::new(HeartbeatRequest {
            worker_id: self.worker_id(),
            reports,
            draining,
        });
        request.set_timeout(CALL_TIMEOUT);
        let response = self.client().heartbeat(request).await?;
        Ok(response.into_inner().directives)
    }

    /// Announces the drain periodically, because a LeaseOperations call may reach the
    /// server after the first announcement. Never returns.
    pub(super) async fn announce_drain(&self) {
        loop {
            if let Err(error) = self.send_heartbeat(Vec::new(), true).await {
                debug!(%error, "failed to announce drain");
            }
            sleep(DRAIN_ANNOUNCE_INTERVAL).await;
        }
    }

    /// Reads directives and reopens the stream with a backoff. Never returns.
    async fn run_directive_stream(&self) {
        let mut backoff = Backoff::default();
        loop {
            let opened = Instant::now();
            let outcome = self.read_directive_stream().await;
            if opened.elapsed() >= MIN_STABLE_STREAM_DURATION {
                backoff.reset();
            }
            let delay = match &outcome {
                // The server shuts down.
                Ok(Kind::Drain) => backoff.escalate_to_max_delay(),
                _ => backoff.next_delay(),
            };
            debug!(?outcome, retry_in = ?delay, "directive stream closed; relying on heartbeats until it reconnects");
            sleep(delay).await;
        }
    }

    /// Applies the directives of one stream and returns the kind of the last one.
    async fn read_directive_stream(&self) -> Result<Kind, Status> {
        let request = WatchDirectivesRequest {
            worker_id: self.worker_id(),
        };
        let stream = self.client().watch_directives(request).await?;
        let (mut stream, mut last_kind) = (stream.into_inner(), Kind::Unspecified);
        while let Some(directive) = stream.message().await? {
            last_kind = directive.kind();
            self.on_directive(&directive);
        }
        Ok(last_kind)
    }

    fn on_directive(&self, directive: &Directive) {
        if directive.name.is_empty() {
            // The stream is open. Heartbeats fetch directives from before.
            if directive.kind() == Kind::Continue {
                for held in self.leases.lock().values() {
                    held.set_renew_at(Instant::now());
                }
                self.wakeup.notify_one();
            }
            return;
        }
        let token = LeaseToken::from_bytes(&directive.lease_token);
        let held = token.and_then(|token| self.leases.lock().get(&token).cloned());
        if let Some(held) = held
            && !held.apply_directive(directive, Instant::now())
        {
            self.untrack(&held);
        }
    }
}
