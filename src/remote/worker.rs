//! A worker of queues in another process: it polls for leases, runs handlers on
//! them, so many at a time, and drains when it is told to stop.

use std::{
    future::{Future, pending},
    sync::Arc,
    time::Duration,
};

use tokio::{
    select,
    sync::{OwnedSemaphorePermit, Semaphore, SetOnce},
    time::{Instant, sleep, timeout},
};
use tonic::{Request, Status, transport::Channel};
use tracing::{debug, info, warn};

use super::{
    attempt::{Attempt, Release},
    backoff::{Backoff, Streak, is_passing},
    keeper::{CALL, Keeper},
};
use crate::{
    clock::proto_duration,
    operation::{
        lease::{InvalidWorkerId, WorkerId},
        terms::{InvalidTerms, QueueName},
    },
    proto::longrunning::v1::{
        HeartbeatRequest, Lease, LeaseOperationsRequest,
        operation_worker_client::OperationWorkerClient,
    },
    tasks::Tasks,
    worker::handler::{AnyHandler, Handler},
};

/// How long one call waits for a lease; below what proxies cut off.
const WAIT: Duration = Duration::from_secs(30);
/// An answer without leases that comes sooner than this is followed by a pause.
const SOON: Duration = Duration::from_secs(1);
/// How long giving back may take where there is no grace.
const ABORT: Duration = Duration::from_secs(3);
/// The pause between two words that the worker takes nothing more.
const DRAIN_PAUSE: Duration = Duration::from_millis(200);
/// The largest answer with leases, in bytes: the server sends 3 MiB, or one.
const ANSWER: usize = 64 << 20;

/// Leases operations from a server and runs handlers on them.
#[must_use = "call run()"]
pub struct Worker {
    channel: Channel,
    id: WorkerId,
    queues: Vec<(String, usize, Arc<dyn AnyHandler>)>,
    grace: Duration,
}

/// Why a worker does not work.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It has no queue.
    #[error("the worker has no queue; give it a handler")]
    NoQueue,
    /// A queue's name has another form.
    #[error(transparent)]
    Queue(#[from] InvalidTerms),
    /// A queue may not be worked on.
    #[error("queue {0:?} has a concurrency of 0; use at least 1")]
    Concurrency(String),
    /// The server does not take its calls, and will not later.
    #[error("the server refuses the worker: {0}")]
    Refused(Status),
}

/// One queue of a worker at work.
struct Poll {
    keeper: Arc<Keeper>,
    queue: QueueName,
    handler: Arc<dyn AnyHandler>,
    permits: Arc<Semaphore>,
    /// Polls and attempts; stopping it ends the polls.
    tasks: Tasks,
    /// Ends attempts early: the grace is over.
    release: Release,
}

// === impl Worker ===

impl Worker {
    /// A worker with an id of 1 to 255 bytes that no other worker has.
    ///
    /// The channel should have keep-alives (`http2_keep_alive_interval` and
    /// `keep_alive_while_idle`), so that a server that vanished is noticed.
    ///
    /// # Errors
    /// [`InvalidWorkerId`] if the id has no or too many bytes, or control characters.
    pub fn new(channel: Channel, id: &str) -> Result<Self, InvalidWorkerId> {
        Ok(Self {
            channel,
            id: WorkerId::parse(id)?,
            queues: Vec::new(),
            grace: Duration::from_secs(20),
        })
    }

    /// Runs `handler` on the operations of `queue`, at most `concurrency` at once.
    pub fn handler(mut self, queue: &str, concurrency: usize, handler: impl Handler) -> Self {
        self.queues
            .push((queue.to_owned(), concurrency, Arc::new(handler)));
        self
    }

    /// How long handlers may go on after the worker was told to stop; then their
    /// operations go back to the queue. Those with
    /// [`patience`](Handler::patience) are told to stop before that, all at once.
    /// Default 20 s.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Works until `stop` resolves, then drains. A server that is away is waited
    /// for. If the future is dropped, tasks of the runtime give back what is
    /// under way; it has to live on for that.
    ///
    /// # Errors
    /// [`WorkerError`] if a queue is out of range, or the server refuses the
    /// worker for good.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), WorkerError> {
        self.run_or_abort(stop, pending()).await.map(|_| ())
    }

    /// As [`run`](Self::run), with a drain that `abort` cuts short: what is under
    /// way is given back at once. Returns whether it did not come to that.
    pub(crate) async fn run_or_abort(
        self,
        stop: impl Future<Output = ()>,
        abort: impl Future<Output = ()>,
    ) -> Result<bool, WorkerError> {
        let (mut queues, mut patience) = (Vec::new(), Duration::ZERO);
        for (queue, concurrency, handler) in self.queues {
            patience = patience.max(handler.patience());
            if concurrency == 0 {
                return Err(WorkerError::Concurrency(queue));
            }
            queues.push((QueueName::parse(&queue)?, concurrency, handler));
        }
        if queues.is_empty() {
            return Err(WorkerError::NoQueue);
        }
        let keeper = Keeper::new(OperationWorkerClient::new(self.channel), self.id);
        let _upkeep = keeper.start();
        let (tasks, release) = (Tasks::default(), Release::default());
        let _on_drop = (
            tasks.stopping().clone().drop_guard(),
            release.stop.clone().drop_guard(),
            release.now.clone().drop_guard(),
        );
        let refused = Arc::new(SetOnce::new());
        for (queue, concurrency, handler) in queues {
            let poll = Poll {
                keeper: keeper.clone(),
                queue,
                handler,
                permits: Arc::new(Semaphore::new(concurrency.min(Semaphore::MAX_PERMITS))),
                tasks: tasks.clone(),
                release: release.clone(),
            };
            let refused = refused.clone();
            tasks.spawn("poll", async move {
                if let Err(status) = poll.work().await {
                    let _ = refused.set(status);
                }
            });
        }
        let ended = select! {
            () = stop => Ok(true),
            status = refused.wait() => Err(WorkerError::Refused(status.clone())),
        };
        info!("draining");
        tasks.stopping().cancel();
        let drained = async {
            select! {
                () = tasks.stop() => {}
                () = keeper.take_nothing_more() => {}
            }
        };
        select! {
            () = release.after(self.grace, patience, drained) => {
                tasks.stop().await;
                ended
            }
            () = abort => {
                release.at_once();
                if timeout(ABORT, tasks.stop()).await.is_err() {
                    warn!("what was under way could not be given back; its leases run out");
                }
                ended.map(|_| false)
            }
        }
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let queues: Vec<&str> = self.queues.iter().map(|(queue, ..)| &**queue).collect();
        f.debug_struct("Worker")
            .field("id", &self.id)
            .field("queues", &queues)
            .finish_non_exhaustive()
    }
}

// === impl Poll ===

impl Poll {
    /// Takes operations as long as there are permits, until the worker stops.
    async fn work(self) -> Result<(), Status> {
        let stopping = self.tasks.stopping().clone();
        let (mut backoff, mut streak) = (Backoff::default(), Streak::new("LeaseOperations"));
        loop {
            let first = select! {
                biased;
                () = stopping.cancelled() => return Ok(()),
                permit = self.permits.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
            };
            // The server answers this call when it hears that the worker drains;
            // one that is given up could cost a lease that is on its way.
            let asked = Instant::now();
            let leased = select! {
                leased = self.lease(1 + self.permits.available_permits()) => leased,
                () = self.release.now.cancelled() => return Ok(()),
            };
            let is_well = match leased {
                Ok(leases) => {
                    streak.passed();
                    let is_well = !leases.is_empty() || SOON <= asked.elapsed();
                    let mut first = Some(first);
                    for lease in leases {
                        let next = || self.permits.clone().try_acquire_owned().ok();
                        // The permit travels with the work.
                        let permit = first.take().or_else(next);
                        self.start(lease, permit);
                    }
                    is_well
                }
                Err(status) if is_passing(&status) => {
                    streak.failed(&status);
                    false
                }
                Err(status) => return Err(status),
            };
            if is_well {
                backoff.reset();
                continue;
            }
            // A server that cannot let the worker wait must not be asked again
            // and again without a pause, whether it says so or not.
            select! {
                () = sleep(backoff.pause()) => {}
                () = stopping.cancelled() => {}
            }
        }
    }

    async fn lease(&self, most: usize) -> Result<Vec<Lease>, Status> {
        let mut request = Request::new(LeaseOperationsRequest {
            queues: vec![self.queue.as_str().to_owned()],
            worker_id: self.keeper.worker_id(),
            max_leases: i32::try_from(most).unwrap_or(i32::MAX),
            wait: Some(proto_duration(WAIT)),
        });
        request.set_timeout(WAIT + CALL);
        let client = self.keeper.client();
        let mut client = client.max_decoding_message_size(ANSWER);
        Ok(client.lease_operations(request).await?.into_inner().leases)
    }

    fn start(&self, lease: Lease, permit: Option<OwnedSemaphorePermit>) {
        let name = lease.name.clone();
        let Some(attempt) = Attempt::new(&self.keeper, lease) else {
            warn!(
                operation.name = name,
                "the server sent a lease that makes no sense"
            );
            return;
        };
        let (tasks, release) = (self.tasks.clone(), self.release.clone());
        let handler = self.handler.clone();
        self.tasks.spawn("attempt", async move {
            if tasks.stopping().is_cancelled() {
                attempt.give_back(&release).await;
            } else {
                // How it ended is in the log.
                let _ = attempt.run(handler, &tasks, &release).await;
            }
            drop(permit);
        });
    }
}

// === impl Keeper ===

impl Keeper {
    /// Says, again and again, that the worker takes nothing more: a call that
    /// asks for leases may reach the server after the first word.
    async fn take_nothing_more(&self) {
        loop {
            let mut request = Request::new(HeartbeatRequest {
                worker_id: self.worker_id(),
                reports: Vec::new(),
                draining: true,
            });
            request.set_timeout(CALL);
            if let Err(status) = self.client().heartbeat(request).await {
                debug!(%status, "the server does not hear that the worker drains");
            }
            sleep(DRAIN_PAUSE).await;
        }
    }
}
