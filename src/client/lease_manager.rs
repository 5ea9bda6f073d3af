//! Keeps the leases of one worker: heartbeats for all that are due, with what
//! their handlers reported, and one stream of directives. Running handlers and
//! finishing is done by `attempt`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    select,
    sync::{self, MutexGuard, Notify},
    time::{Instant, sleep, sleep_until},
};
use tonic::{Request, Status, transport::Channel};
use tracing::debug;

use super::{
    backoff::{Backoff, FailureLog, is_too_large},
    heartbeat_batch::HeartbeatBatch,
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

/// The shortest pause between two heartbeats that bring reports.
const MIN_REPORT_INTERVAL: Duration = Duration::from_millis(200);
/// How long a call may take that is answered at once.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A stream of directives that lived for so long was a good one; another is
/// opened soon.
const MIN_STABLE_STREAM_DURATION: Duration = Duration::from_secs(10);

/// The leases of one worker.
#[derive(Debug)]
pub(super) struct LeaseManager {
    client: OperationWorkerClient<Channel>,
    worker_id: WorkerId,
    leases: Mutex<HashMap<LeaseToken, Arc<HeldLease>>>,
    /// Rings when there is something to tell the server.
    wakeup: Arc<Notify>,
    /// Whose turn it is to take reports and send them: of two at once, the
    /// older could arrive last.
    send_lock: sync::Mutex<()>,
}

/// The heartbeats and the stream of a worker; they end when this is dropped.
#[derive(Debug)]
pub(super) struct LeaseManagerGuard(Tasks);

// === impl Keeper ===

impl LeaseManager {
    pub(super) fn new(client: OperationWorkerClient<Channel>, worker_id: WorkerId) -> Arc<Self> {
        Arc::new(Self {
            client,
            worker_id,
            leases: Mutex::default(),
            wakeup: Arc::default(),
            send_lock: sync::Mutex::default(),
        })
    }

    pub(super) fn client(&self) -> OperationWorkerClient<Channel> {
        self.client.clone()
    }

    pub(super) fn worker_id(&self) -> String {
        self.worker_id.as_str().to_owned()
    }

    /// Sends heartbeats and listens to directives, until the upkeep is dropped.
    pub(super) fn start(self: &Arc<Self>) -> LeaseManagerGuard {
        let tasks = Tasks::default();
        let stopping = tasks.stop_token().clone();
        let (heartbeats, directives) = (
            self.clone().run_heartbeats(),
            self.clone().run_directive_stream(),
        );
        tasks.spawn("upkeep", async move {
            select! {
                () = stopping.cancelled() => {}
                () = heartbeats => {}
                () = directives => {}
            }
        });
        LeaseManagerGuard(tasks)
    }

    /// Takes care of a lease that came just now. None if it is held already.
    pub(super) fn track(
        &self,
        name: &str,
        token: LeaseToken,
        remaining: Duration,
    ) -> Option<Arc<HeldLease>> {
        let mut leases = self.leases.lock();
        if leases.contains_key(&token) {
            return None;
        }
        let held = Arc::new(HeldLease::new(name, token, remaining, self.wakeup.clone()));
        leases.insert(token, held.clone());
        self.wakeup.notify_one();
        Some(held)
    }

    /// Takes care of it no longer.
    pub(super) fn untrack(&self, held: &HeldLease) {
        self.leases.lock().remove(&held.token);
    }

    /// Waits until no heartbeat is under way: what is on the desks then was
    /// never sent, or is to be sent again.
    pub(super) async fn acquire_send_lock(&self) -> MutexGuard<'_, ()> {
        self.send_lock.lock().await
    }

    /// Tells the last report of a lease, beside the heartbeats.
    pub(super) async fn send_report(
        &self,
        held: &HeldLease,
        report: &Report,
    ) -> Result<(), Status> {
        let sent = Instant::now();
        for directive in self
            .send_heartbeat(vec![held.lease_heartbeat(report)])
            .await?
        {
            held.apply_directive(&directive, sent);
        }
        Ok(())
    }

    /// Sends heartbeats, for ever.
    async fn run_heartbeats(self: Arc<Self>) {
        let mut report_at = Instant::now();
        let mut failure_log = FailureLog::new("heartbeats");
        loop {
            let due = self
                .leases
                .lock()
                .values()
                .map(|held| held.renew_at())
                .min();
            let renew = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            select! {
                () = renew => {}
                () = async { sleep_until(report_at).await; self.wakeup.notified().await } => {}
            }
            match self.send_due_heartbeats().await {
                Some(Ok(())) => {
                    failure_log.record_success();
                    report_at = Instant::now() + MIN_REPORT_INTERVAL;
                }
                Some(Err(status)) => {
                    failure_log.record_failure(&status);
                    report_at = Instant::now() + HEARTBEAT_RETRY_DELAY;
                }
                None => {}
            }
        }
    }

    /// Sends what there is to tell, each heartbeat whatever became of those
    /// before it. Returns the last failure; none if there was nothing to tell.
    async fn send_due_heartbeats(&self) -> Option<Result<(), Status>> {
        let _send_lock = self.acquire_send_lock().await;
        let now = Instant::now();
        let reports: Vec<_> = (self.leases.lock().values())
            .filter_map(|held| Some((held.clone(), held.take_pending_report(now)?)))
            .collect();
        let mut batches = HeartbeatBatch::split(reports);
        let mut result = (!batches.is_empty()).then_some(Ok(()));
        while let Some(batch) = batches.pop_front() {
            let sent = Instant::now();
            for held in batch.leases() {
                held.set_renew_at(sent + HEARTBEAT_RETRY_DELAY); // unless the answer says when
            }
            match self.send_heartbeat(batch.reports()).await {
                Ok(directives) => {
                    for (held, directive) in batch.leases().zip(&directives) {
                        self.apply_directive(held, directive, sent);
                    }
                }
                Err(status) if is_too_large(&status) => {
                    let smaller_batches = batch.shrink(&status).into_iter();
                    batches.extend(smaller_batches.filter(|batch| !batch.is_empty()));
                }
                Err(status) => {
                    batch.restore_reports();
                    result = Some(Err(status));
                }
            }
        }
        result
    }

    async fn send_heartbeat(&self, reports: Vec<LeaseHeartbeat>) -> Result<Vec<Directive>, Status> {
        let mut request = Request::new(HeartbeatRequest {
            worker_id: self.worker_id(),
            reports,
            draining: false,
        });
        request.set_timeout(CALL_TIMEOUT);
        Ok(self
            .client()
            .heartbeat(request)
            .await?
            .into_inner()
            .directives)
    }

    /// Listens to directives, for ever.
    async fn run_directive_stream(self: Arc<Self>) {
        let mut backoff = Backoff::default();
        loop {
            let opened = Instant::now();
            let outcome = self.read_directive_stream().await;
            if MIN_STABLE_STREAM_DURATION <= opened.elapsed() {
                backoff.reset();
            }
            let delay = match &outcome {
                // It goes away. Whoever comes after it tells what happened.
                Ok(Kind::Drain) => backoff.escalate_to_max_delay(),
                _ => backoff.next_delay(),
            };
            debug!(
                ?outcome,
                "no directives come at present; heartbeats tell the same"
            );
            sleep(delay).await;
        }
    }

    /// Follows one stream to its end; returns its last directive.
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
            // What happened before the stream was open is told by a heartbeat.
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
        if let Some(held) = held {
            self.apply_directive(&held, directive, Instant::now());
        }
    }

    fn apply_directive(&self, held: &HeldLease, directive: &Directive, sent: Instant) {
        if !held.apply_directive(directive, sent) {
            self.untrack(held);
        }
    }
}

// === impl Upkeep ===

impl Drop for LeaseManagerGuard {
    fn drop(&mut self) {
        self.0.stop_token().cancel();
    }
}
