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
    attempt::{Attempt, ShutdownSignals},
    backoff::{Backoff, FailureLog, is_transient},
    lease_manager::{CALL_TIMEOUT, LeaseManager},
};
use crate::{
    clock::to_proto_duration,
    operation::{
        lease::{InvalidWorkerId, WorkerId},
        options::{InvalidQueueName, QueueName},
    },
    proto::longrunning::v1::{
        HeartbeatRequest, Lease, LeaseOperationsRequest,
        operation_worker_client::OperationWorkerClient,
    },
    tasks::Tasks,
    worker::handler::{DynHandler, Handler},
};

/// How long one call waits for a lease; below what proxies cut off.
const POLL_TIMEOUT: Duration = Duration::from_secs(30);
/// An answer without leases that comes sooner than this is followed by a pause.
const MIN_POLL_DURATION: Duration = Duration::from_secs(1);
/// How long giving back may take where there is no grace.
const ABORT_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause between two words that the worker takes nothing more.
const DRAIN_ANNOUNCE_INTERVAL: Duration = Duration::from_millis(200);
/// The largest answer with leases, in bytes: the server sends 3 MiB, or one.
const MAX_RESPONSE_BYTES: usize = 64 << 20;

/// Leases operations from a server and runs handlers on them.
#[must_use = "call run()"]
pub struct Worker {
    channel: Channel,
    id: WorkerId,
    queues: Vec<(String, usize, Arc<dyn DynHandler>)>,
    shutdown_timeout: Duration,
}

/// Why a worker does not work.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It has no queue.
    #[error("the worker has no queue; give it a handler")]
    NoQueues,
    /// A queue's name has another form.
    #[error(transparent)]
    InvalidQueue(#[from] InvalidQueueName),
    /// A queue may not be worked on.
    #[error("queue {0:?} has a concurrency of 0; use at least 1")]
    ZeroConcurrency(String),
    /// The server does not take its calls, and will not later.
    #[error("the server refuses the worker: {0}")]
    Rejected(Status),
}

/// One queue of a worker at work.
struct QueuePoller {
    lease_manager: Arc<LeaseManager>,
    queue: QueueName,
    handler: Arc<dyn DynHandler>,
    permits: Arc<Semaphore>,
    /// Polls and attempts; stopping it ends the polls.
    tasks: Tasks,
    /// Ends attempts early: the grace is over.
    shutdown_signals: ShutdownSignals,
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
            shutdown_timeout: Duration::from_secs(20),
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
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
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
        let (mut queues, mut max_shutdown_grace) = (Vec::new(), Duration::ZERO);
        for (queue, concurrency, handler) in self.queues {
            max_shutdown_grace = max_shutdown_grace.max(handler.shutdown_grace());
            if concurrency == 0 {
                return Err(WorkerError::ZeroConcurrency(queue));
            }
            queues.push((QueueName::parse(&queue)?, concurrency, handler));
        }
        if queues.is_empty() {
            return Err(WorkerError::NoQueues);
        }
        let lease_manager = LeaseManager::new(OperationWorkerClient::new(self.channel), self.id);
        let _lease_manager_guard = lease_manager.start();
        let (tasks, shutdown_signals) = (Tasks::default(), ShutdownSignals::default());
        let _cancel_on_drop = (
            tasks.stop_token().clone().drop_guard(),
            shutdown_signals.stop.clone().drop_guard(),
            shutdown_signals.abort.clone().drop_guard(),
        );
        let rejection = Arc::new(SetOnce::new());
        for (queue, concurrency, handler) in queues {
            let poller = QueuePoller {
                lease_manager: lease_manager.clone(),
                queue,
                handler,
                permits: Arc::new(Semaphore::new(concurrency.min(Semaphore::MAX_PERMITS))),
                tasks: tasks.clone(),
                shutdown_signals: shutdown_signals.clone(),
            };
            let rejection = rejection.clone();
            tasks.spawn("poll", async move {
                if let Err(status) = poller.run().await {
                    let _ = rejection.set(status);
                }
            });
        }
        let result = select! {
            () = stop => Ok(true),
            status = rejection.wait() => Err(WorkerError::Rejected(status.clone())),
        };
        info!("draining");
        tasks.stop_token().cancel();
        let drain = async {
            select! {
                () = tasks.stop() => {}
                () = lease_manager.announce_drain() => {}
            }
        };
        select! {
            () = shutdown_signals.drain(self.shutdown_timeout, max_shutdown_grace, drain) => {
                tasks.stop().await;
                result
            }
            () = abort => {
                shutdown_signals.trigger_all();
                if timeout(ABORT_TIMEOUT, tasks.stop()).await.is_err() {
                    warn!("what was under way could not be given back; its leases run out");
                }
                result.map(|_| false)
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

impl QueuePoller {
    /// Takes operations as long as there are permits, until the worker stops.
    async fn run(self) -> Result<(), Status> {
        let stopping = self.tasks.stop_token().clone();
        let (mut backoff, mut failure_log) =
            (Backoff::default(), FailureLog::new("LeaseOperations"));
        loop {
            let permit = select! {
                biased;
                () = stopping.cancelled() => return Ok(()),
                permit = self.permits.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
            };
            // The server answers this call when it hears that the worker drains;
            // one that is given up could cost a lease that is on its way.
            let called_at = Instant::now();
            let leased = select! {
                leased = self.lease(1 + self.permits.available_permits()) => leased,
                () = self.shutdown_signals.abort.cancelled() => return Ok(()),
            };
            let is_healthy = match leased {
                Ok(leases) => {
                    failure_log.record_success();
                    let is_healthy = !leases.is_empty() || MIN_POLL_DURATION <= called_at.elapsed();
                    let mut first_permit = Some(permit);
                    for lease in leases {
                        let try_permit = || self.permits.clone().try_acquire_owned().ok();
                        // The permit travels with the work.
                        let permit = first_permit.take().or_else(try_permit);
                        self.start_attempt(lease, permit);
                    }
                    is_healthy
                }
                Err(status) if is_transient(&status) => {
                    failure_log.record_failure(&status);
                    false
                }
                Err(status) => return Err(status),
            };
            if is_healthy {
                backoff.reset();
                continue;
            }
            // A server that cannot let the worker wait must not be asked again
            // and again without a pause, whether it says so or not.
            select! {
                () = sleep(backoff.next_delay()) => {}
                () = stopping.cancelled() => {}
            }
        }
    }

    async fn lease(&self, max_leases: usize) -> Result<Vec<Lease>, Status> {
        let mut request = Request::new(LeaseOperationsRequest {
            queues: vec![self.queue.as_str().to_owned()],
            worker_id: self.lease_manager.worker_id(),
            max_leases: i32::try_from(max_leases).unwrap_or(i32::MAX),
            wait_timeout: Some(to_proto_duration(POLL_TIMEOUT)),
        });
        request.set_timeout(POLL_TIMEOUT + CALL_TIMEOUT);
        let client = self.lease_manager.client();
        let mut client = client.max_decoding_message_size(MAX_RESPONSE_BYTES);
        Ok(client.lease_operations(request).await?.into_inner().leases)
    }

    fn start_attempt(&self, lease: Lease, permit: Option<OwnedSemaphorePermit>) {
        let name = lease.name.clone();
        let Some(attempt) = Attempt::new(&self.lease_manager, lease) else {
            warn!(
                operation.name = name,
                "the server sent a lease that makes no sense"
            );
            return;
        };
        let (tasks, shutdown_signals) = (self.tasks.clone(), self.shutdown_signals.clone());
        let handler = self.handler.clone();
        self.tasks.spawn("attempt", async move {
            if tasks.stop_token().is_cancelled() {
                attempt.release(&shutdown_signals).await;
            } else {
                // How it ended is in the log.
                let _ = attempt.run(handler, &tasks, &shutdown_signals).await;
            }
            drop(permit);
        });
    }
}

// === impl Keeper ===

impl LeaseManager {
    /// Says, again and again, that the worker takes nothing more: a call that
    /// asks for leases may reach the server after the first word.
    async fn announce_drain(&self) {
        loop {
            let mut request = Request::new(HeartbeatRequest {
                worker_id: self.worker_id(),
                reports: Vec::new(),
                draining: true,
            });
            request.set_timeout(CALL_TIMEOUT);
            if let Err(status) = self.client().heartbeat(request).await {
                debug!(%status, "the server does not hear that the worker drains");
            }
            sleep(DRAIN_ANNOUNCE_INTERVAL).await;
        }
    }
}
