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
    backoff::{Backoff, Streak, is_too_large},
    beat::Beat,
    held::{Held, RETRY_PAUSE},
};
use crate::{
    operation::{
        lease::{LeaseToken, WorkerId},
        stage::Report,
    },
    proto::longrunning::v1::{
        Directive, HeartbeatRequest, LeaseReport, WatchDirectivesRequest, directive::Kind,
        operation_worker_client::OperationWorkerClient,
    },
    tasks::Tasks,
};

/// The shortest pause between two heartbeats that bring reports.
const REPORT_PAUSE: Duration = Duration::from_millis(200);
/// How long a call may take that is answered at once.
pub(super) const CALL: Duration = Duration::from_secs(10);
/// A stream of directives that lived for so long was a good one; another is
/// opened soon.
const STEADY: Duration = Duration::from_secs(10);

/// The leases of one worker.
#[derive(Debug)]
pub(super) struct Keeper {
    client: OperationWorkerClient<Channel>,
    worker: WorkerId,
    held: Mutex<HashMap<LeaseToken, Arc<Held>>>,
    /// Rings when there is something to tell the server.
    bell: Arc<Notify>,
    /// Whose turn it is to take reports and send them: of two at once, the
    /// older could arrive last.
    turn: sync::Mutex<()>,
}

/// The heartbeats and the stream of a worker; they end when this is dropped.
#[derive(Debug)]
pub(super) struct Upkeep(Tasks);

// === impl Keeper ===

impl Keeper {
    pub(super) fn new(client: OperationWorkerClient<Channel>, worker: WorkerId) -> Arc<Self> {
        Arc::new(Self {
            client,
            worker,
            held: Mutex::default(),
            bell: Arc::default(),
            turn: sync::Mutex::default(),
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

    /// Takes care of a lease that came just now. None if it is held already.
    pub(super) fn hold(
        &self,
        name: &str,
        token: LeaseToken,
        remaining: Duration,
    ) -> Option<Arc<Held>> {
        let mut all = self.held.lock();
        if all.contains_key(&token) {
            return None;
        }
        let held = Arc::new(Held::new(name, token, remaining, self.bell.clone()));
        all.insert(token, held.clone());
        self.bell.notify_one();
        Some(held)
    }

    /// Takes care of it no longer.
    pub(super) fn forget(&self, held: &Held) {
        self.held.lock().remove(&held.token);
    }

    /// Waits until no heartbeat is under way: what is on the desks then was
    /// never sent, or is to be sent again.
    pub(super) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Tells the last report of a lease, beside the heartbeats.
    pub(super) async fn tell(&self, held: &Held, report: &Report) -> Result<(), Status> {
        let sent = Instant::now();
        for directive in self.heartbeat(vec![held.report(report)]).await? {
            held.obey(&directive, sent);
        }
        Ok(())
    }

    /// Sends heartbeats, for ever.
    async fn keep(self: Arc<Self>) {
        let mut report_at = Instant::now();
        let mut streak = Streak::new("heartbeats");
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
            match self.beat().await {
                Some(Ok(())) => {
                    streak.passed();
                    report_at = Instant::now() + REPORT_PAUSE;
                }
                Some(Err(status)) => {
                    streak.failed(&status);
                    report_at = Instant::now() + RETRY_PAUSE;
                }
                None => {}
            }
        }
    }

    /// Sends what there is to tell, each heartbeat whatever became of those
    /// before it. Returns the last failure; none if there was nothing to tell.
    async fn beat(&self) -> Option<Result<(), Status>> {
        let _turn = self.turn().await;
        let now = Instant::now();
        let news: Vec<_> = (self.held.lock().values())
            .filter_map(|held| Some((held.clone(), held.news(now)?)))
            .collect();
        let mut beats = Beat::split(news);
        let mut ended = (!beats.is_empty()).then_some(Ok(()));
        while let Some(beat) = beats.pop_front() {
            let sent = Instant::now();
            for held in beat.leases() {
                held.set_renew_at(sent + RETRY_PAUSE); // unless the answer says when
            }
            match self.heartbeat(beat.reports()).await {
                Ok(directives) => {
                    for (held, directive) in beat.leases().zip(&directives) {
                        self.obey(held, directive, sent);
                    }
                }
                Err(status) if is_too_large(&status) => {
                    let smaller = beat.smaller(&status).into_iter();
                    beats.extend(smaller.filter(|beat| !beat.is_empty()));
                }
                Err(status) => {
                    beat.put_back();
                    ended = Some(Err(status));
                }
            }
        }
        ended
    }

    async fn heartbeat(&self, reports: Vec<LeaseReport>) -> Result<Vec<Directive>, Status> {
        let mut request = Request::new(HeartbeatRequest {
            worker_id: self.worker_id(),
            reports,
            draining: false,
        });
        request.set_timeout(CALL);
        Ok(self
            .client()
            .heartbeat(request)
            .await?
            .into_inner()
            .directives)
    }

    /// Listens to directives, for ever.
    async fn listen(self: Arc<Self>) {
        let mut backoff = Backoff::default();
        loop {
            let opened = Instant::now();
            let ended = self.follow().await;
            if STEADY <= opened.elapsed() {
                backoff.reset();
            }
            let pause = match &ended {
                // It goes away. Whoever comes after it tells what happened.
                Ok(Kind::Drain) => backoff.longest(),
                _ => backoff.pause(),
            };
            debug!(
                ?ended,
                "no directives come at present; heartbeats tell the same"
            );
            sleep(pause).await;
        }
    }

    /// Follows one stream to its end; returns its last directive.
    async fn follow(&self) -> Result<Kind, Status> {
        let request = WatchDirectivesRequest {
            worker_id: self.worker_id(),
        };
        let stream = self.client().watch_directives(request).await?;
        let (mut stream, mut last) = (stream.into_inner(), Kind::Unspecified);
        while let Some(directive) = stream.message().await? {
            last = directive.kind();
            self.hear(&directive);
        }
        Ok(last)
    }

    fn hear(&self, directive: &Directive) {
        if directive.name.is_empty() {
            // What happened before the stream was open is told by a heartbeat.
            if directive.kind() == Kind::Continue {
                for held in self.held.lock().values() {
                    held.set_renew_at(Instant::now());
                }
                self.bell.notify_one();
            }
            return;
        }
        let token = LeaseToken::from_bytes(&directive.lease_token);
        let held = token.and_then(|token| self.held.lock().get(&token).cloned());
        if let Some(held) = held {
            self.obey(&held, directive, Instant::now());
        }
    }

    fn obey(&self, held: &Held, directive: &Directive, sent: Instant) {
        if !held.obey(directive, sent) {
            self.forget(held);
        }
    }
}

// === impl Upkeep ===

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.0.stopping().cancel();
    }
}
