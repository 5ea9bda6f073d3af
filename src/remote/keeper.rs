//! Keeps the leases of one worker: one heartbeat for all that are due, with
//! what their handlers reported, and one stream of directives. Running handlers
//! and finishing is done by `attempt`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    select,
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, transport::Channel};
use tracing::{debug, warn};

use super::backoff::Backoff;
use crate::{
    clock::parse_duration,
    operation::{
        lease::{LeaseToken, WorkerId},
        payload::Payload,
        stage::Report,
    },
    proto::longrunning::v1::{
        Directive, HeartbeatRequest, LeaseReport, WatchDirectivesRequest, directive::Kind,
        operation_worker_client::OperationWorkerClient,
    },
    tasks::Tasks,
    worker::context::Desk,
};

/// The shortest pause between two heartbeats that bring reports.
const REPORT_PAUSE: Duration = Duration::from_millis(200);
/// The pause before a heartbeat that did not get through is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long a call may take that is answered at once.
pub(super) const CALL: Duration = Duration::from_secs(10);
/// How often a lease is renewed before it is over.
const BEATS: u32 = 3;

/// The leases of one worker.
#[derive(Debug)]
pub(super) struct Keeper {
    client: OperationWorkerClient<Channel>,
    worker: WorkerId,
    held: Mutex<HashMap<LeaseToken, Arc<Held>>>,
    /// Rings when there is something to tell the server.
    bell: Arc<Notify>,
}

/// The heartbeats and the stream of a worker; they end when this is dropped.
#[derive(Debug)]
pub(super) struct Upkeep(Tasks);

/// A lease that is held.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) name: String,
    pub(super) token: LeaseToken,
    pub(super) desk: Arc<Desk>,
    lost: CancellationToken,
    times: Mutex<Times>,
}

#[derive(Debug)]
struct Times {
    over_at: Instant,
    renew_at: Instant,
}

// === impl Keeper ===

impl Keeper {
    pub(super) fn new(client: OperationWorkerClient<Channel>, worker: WorkerId) -> Arc<Self> {
        Arc::new(Self {
            client,
            worker,
            held: Mutex::default(),
            bell: Arc::default(),
        })
    }

    pub(super) fn client(&self) -> OperationWorkerClient<Channel> {
        self.client.clone()
    }

    pub(super) fn worker_id(&self) -> String {
        self.worker.as_str().to_owned()
    }

    /// Sends heartbeats and listens to directives, until the upkeep is dropped.
    pub(super) fn start(self: &Arc<Self>) -> Upkeep {
        let tasks = Tasks::default();
        let stopping = tasks.stopping().clone();
        let (keep, listen) = (self.clone().keep(), self.clone().listen());
        tasks.spawn("upkeep", async move {
            select! {
                () = stopping.cancelled() => {}
                () = keep => {}
                () = listen => {}
            }
        });
        Upkeep(tasks)
    }

    /// Takes care of a lease that came just now.
    pub(super) fn hold(&self, name: &str, token: LeaseToken, remaining: Duration) -> Arc<Held> {
        let held = Arc::new(Held {
            name: name.to_owned(),
            token,
            desk: Arc::new(Desk::with_bell(self.bell.clone())),
            lost: CancellationToken::new(),
            times: Mutex::new(Times::after(Instant::now(), remaining)),
        });
        self.held.lock().insert(token, held.clone());
        self.bell.notify_one();
        held
    }

    /// Takes care of it no longer.
    pub(super) fn forget(&self, held: &Held) {
        self.held.lock().remove(&held.token);
    }

    /// Sends heartbeats, for ever.
    async fn keep(self: Arc<Self>) {
        let mut report_at = Instant::now();
        loop {
            let due = self.held.lock().values().map(|held| held.renew_at()).min();
            let renew = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            select! {
                () = renew => {}
                () = async { sleep_until(report_at).await; self.bell.notified().await } => {}
            }
            let now = Instant::now();
            let beat: Vec<_> = (self.held.lock().values())
                .filter_map(|held| held.beat(now))
                .collect();
            if !beat.is_empty() {
                report_at = now + REPORT_PAUSE;
                self.beat(beat).await;
            }
        }
    }

    /// Sends one heartbeat.
    async fn beat(&self, beat: Vec<(Arc<Held>, Report)>) {
        let sent = Instant::now();
        let reports = beat.iter().map(|(held, report)| held.report(report));
        let mut request = Request::new(HeartbeatRequest {
            worker_id: self.worker_id(),
            reports: reports.collect(),
            draining: false,
        });
        request.set_timeout(CALL);
        match self.client().heartbeat(request).await {
            Ok(answer) => {
                let directives = answer.into_inner().directives;
                for ((held, _), directive) in beat.iter().zip(&directives) {
                    self.obey(held, directive, sent);
                }
            }
            Err(status) => {
                debug!(%status, "a heartbeat did not get through; trying again");
                for (held, report) in beat {
                    held.desk.put_back(report);
                    held.times.lock().renew_at = Instant::now() + RETRY_PAUSE;
                }
            }
        }
    }

    /// Listens to directives, for ever.
    async fn listen(self: Arc<Self>) {
        let mut backoff = Backoff::default();
        loop {
            let request = WatchDirectivesRequest {
                worker_id: self.worker_id(),
            };
            let status = match self.client().watch_directives(request).await {
                Ok(stream) => {
                    let mut stream = stream.into_inner();
                    loop {
                        match stream.message().await {
                            Ok(Some(directive)) => {
                                backoff.reset();
                                self.hear(&directive);
                            }
                            Ok(None) => break Status::unavailable("the server shuts down"),
                            Err(status) => break status,
                        }
                    }
                }
                Err(status) => status,
            };
            debug!(%status, "no directives come at present; heartbeats tell the same");
            sleep(backoff.pause()).await;
        }
    }

    fn hear(&self, directive: &Directive) {
        if directive.name.is_empty() {
            // What happened before the stream was open is told by a heartbeat.
            for held in self.held.lock().values() {
                held.times.lock().renew_at = Instant::now();
            }
            self.bell.notify_one();
            return;
        }
        let token = LeaseToken::from_bytes(&directive.lease_token);
        let held = token.and_then(|token| self.held.lock().get(&token).cloned());
        if let Some(held) = held {
            self.obey(&held, directive, Instant::now());
        }
    }

    fn obey(&self, held: &Held, directive: &Directive, sent: Instant) {
        let said = directive.error.as_ref().map(|error| error.message.as_str());
        match directive.kind() {
            Kind::LeaseLost => {
                let why = said.unwrap_or("the server says so");
                warn!(operation.name = %held.name, why, "a lease is lost");
                self.forget(held);
                held.lost.cancel();
                return;
            }
            Kind::CancelRequested => held.desk.cancelled.cancel(),
            Kind::OperationDeleted => {
                debug!(operation.name = %held.name, "the operation was deleted; nobody will see its result");
            }
            Kind::Continue | Kind::Drain | Kind::Unspecified => {}
        }
        if let Some(why) = said {
            warn!(operation.name = %held.name, why, "a report was not taken");
        }
        let remaining = directive.lease_remaining.map(parse_duration);
        if let Some(Ok(remaining)) = remaining {
            *held.times.lock() = Times::after(sent, remaining);
        }
    }
}

// === impl Upkeep ===

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.0.stopping().cancel();
    }
}

// === impl Held ===

impl Held {
    /// Resolves when the lease is lost: the server said so, or it was not
    /// renewed in time.
    pub(super) async fn lost(&self) {
        let over = async {
            loop {
                let over_at = self.times.lock().over_at;
                if over_at <= Instant::now() {
                    warn!(operation.name = %self.name, "a lease is lost, because no heartbeat got through in time");
                    return;
                }
                sleep_until(over_at).await;
            }
        };
        select! {
            () = self.lost.cancelled() => {}
            () = over => {}
        }
    }

    fn renew_at(&self) -> Instant {
        self.times.lock().renew_at
    }

    /// What there is to tell of it now; none if nothing, and it is not due.
    fn beat(self: &Arc<Self>, now: Instant) -> Option<(Arc<Self>, Report)> {
        let report = self.desk.take();
        if report.is_none() && now < self.renew_at() {
            return None;
        }
        Some((self.clone(), report.unwrap_or_default()))
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
