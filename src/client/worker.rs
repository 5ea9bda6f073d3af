//! The remote worker: polls queues for leases, runs handlers with bounded
//! concurrency and drains on shutdown.

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
use tracing::{info, warn};

use super::{
    attempt::{Attempt, ShutdownSignals},
    backoff::{Backoff, FailureLog, is_transient},
    lease_manager::{CALL_TIMEOUT, LeaseManager, MAX_RESPONSE_BYTES},
};
use crate::{
    clock::to_proto_duration,
    operation::{
        lease::{InvalidWorkerId, WorkerId},
        options::{InvalidQueueName, QueueName},
    },
    proto::longrunning::v1::{
        Lease, LeaseOperationsRequest, operation_worker_client::OperationWorkerClient,
    },
    tasks::Tasks,
    worker::handler::{DynHandler, Handler},
};

/// The time that one LeaseOperations call waits, below the idle timeout of common
/// proxies.
const POLL_TIMEOUT: Duration = Duration::from_secs(30);
/// The time in which the first heartbeat of a lease must be answered. Otherwise its
/// operation returns to the queue, and its handler does not start.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);
/// The minimum duration of an empty poll; a shorter one is followed by a backoff.
const MIN_POLL_DURATION: Duration = Duration::from_secs(1);
/// The time to release operations after an abort.
const ABORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Leases operations from a server and runs handlers on them.
#[must_use = "call run()"]
pub struct Worker {
    channel: Channel,
    id: WorkerId,
    queues: Vec<WorkerQueue>,
    shutdown_timeout: Duration,
    is_fenced: bool,
}

/// A queue and the handler of its operations. The name is not validated yet.
struct WorkerQueue {
    name: String,
    concurrency: usize,
    handler: Arc<dyn DynHandler>,
}

/// Why a worker cannot start, or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// No queue was added.
    #[error("worker has no queues; add one with Worker::handler")]
    NoQueues,
    /// A queue name is invalid.
    #[error(transparent)]
    InvalidQueue(#[from] InvalidQueueName),
    /// The concurrency of a queue is 0.
    #[error("concurrency of queue {0:?} is 0; use at least 1")]
    ZeroConcurrency(String),
    /// The server rejected a call with an error that a retry cannot fix.
    #[error("server rejected the worker: {0}")]
    Rejected(#[source] Status),
}

/// Leases and executes the operations of one queue.
struct QueuePoller {
    lease_manager: Arc<LeaseManager>,
    queue: QueueName,
    handler: Arc<dyn DynHandler>,
    permits: Arc<Semaphore>,
    /// Runs pollers and attempts; stopping it ends polling.
    tasks: Tasks,
    /// Ends attempts early during a shutdown.
    shutdown_signals: ShutdownSignals,
}

// === impl Worker ===

impl Worker {
    /// Creates a worker. `id` must be unique among workers: 1 to 255 bytes without
    /// control characters.
    ///
    /// Enable keep-alives on the channel (`http2_keep_alive_interval` and
    /// `keep_alive_while_idle`), so that the loss of the server is detected.
    ///
    /// # Errors
    /// [`InvalidWorkerId`] if the id is empty, too long or has control characters.
    pub fn new(channel: Channel, id: &str) -> Result<Self, InvalidWorkerId> {
        Ok(Self {
            channel,
            id: WorkerId::parse(id)?,
            queues: Vec::new(),
            shutdown_timeout: Duration::from_secs(20),
            is_fenced: false,
        })
    }

    /// Adds a queue whose operations `handler` executes, at most `concurrency` at
    /// once.
    pub fn handler(mut self, queue: &str, concurrency: usize, handler: impl Handler) -> Self {
        self.queues.push(WorkerQueue {
            name: queue.to_owned(),
            concurrency,
            handler: Arc::new(handler),
        });
        self
    }

    /// Sets the maximum duration of a graceful shutdown. Operations that still run
    /// at its end return to their queue. Handlers with a
    /// [`shutdown_grace`](Handler::shutdown_grace) are cancelled that long before,
    /// at most a quarter of `timeout`. The default is 20 s.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// Sets whether a handler is stopped when its lease expires because the server
    /// cannot be reached. By default it goes on, and its result is sent until a server
    /// answers: a server that was away extends its leases. If only this worker is cut
    /// off, the operation is leased to another one, which then runs beside it; fence
    /// handlers that must never do that, or whose effects do not check
    /// [`Context::attempt`](crate::Context::attempt).
    pub fn fence(mut self, is_fenced: bool) -> Self {
        self.is_fenced = is_fenced;
        self
    }

    /// Executes operations until `stop` resolves, then drains. Retries while the
    /// server is unreachable. If the future is dropped, background tasks release
    /// the running operations as long as the runtime lives.
    ///
    /// # Errors
    /// [`WorkerError`] if a queue is invalid or the server rejects the worker.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), WorkerError> {
        self.run_or_abort(stop, pending()).await.map(|_| ())
    }

    /// Like [`run`](Self::run), but `abort` ends the drain and releases running
    /// operations immediately. Returns `false` if the drain was aborted.
    pub(crate) async fn run_or_abort(
        self,
        stop: impl Future<Output = ()>,
        abort: impl Future<Output = ()>,
    ) -> Result<bool, WorkerError> {
        if self.queues.is_empty() {
            return Err(WorkerError::NoQueues);
        }
        let (mut queue_names, mut max_shutdown_grace) = (Vec::new(), Duration::ZERO);
        for queue in &self.queues {
            if queue.concurrency == 0 {
                return Err(WorkerError::ZeroConcurrency(queue.name.clone()));
            }
            queue_names.push(QueueName::parse(&queue.name)?);
            max_shutdown_grace = max_shutdown_grace.max(queue.handler.shutdown_grace());
        }
        let lease_manager = LeaseManager::new(
            OperationWorkerClient::new(self.channel),
            self.id,
            self.is_fenced,
        );
        let _lease_manager_guard = lease_manager.start();
        let (tasks, shutdown_signals) = (Tasks::default(), ShutdownSignals::default());
        let _cancel_on_drop = (
            tasks.stop_token().clone().drop_guard(),
            shutdown_signals.stop.clone().drop_guard(),
            shutdown_signals.abort.clone().drop_guard(),
        );
        let rejection = Arc::new(SetOnce::new());
        for (name, queue) in queue_names.into_iter().zip(self.queues) {
            let concurrency = queue.concurrency.min(Semaphore::MAX_PERMITS);
            let poller = QueuePoller {
                lease_manager: lease_manager.clone(),
                queue: name,
                handler: queue.handler,
                permits: Arc::new(Semaphore::new(concurrency)),
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
                    warn!("failed to release leases on abort; they will expire");
                }
                result.map(|_| false)
            }
        }
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let queues: Vec<&str> = self.queues.iter().map(|queue| &*queue.name).collect();
        f.debug_struct("Worker")
            .field("id", &self.id)
            .field("queues", &queues)
            .finish_non_exhaustive()
    }
}

// === impl QueuePoller ===

impl QueuePoller {
    /// Leases and starts operations while permits are available, until the worker
    /// stops. Returns the error of a call that a retry cannot fix.
    async fn run(self) -> Result<(), Status> {
        let stopping = self.tasks.stop_token().clone();
        let (mut backoff, mut failure_log) =
            (Backoff::default(), FailureLog::new("LeaseOperations"));
        loop {
            let permit = select! {
                biased;
                () = stopping.cancelled() => return Ok(()),
                permit = self.permits.clone().acquire_owned() => permit.expect("semaphore is never closed"),
            };
            // Not cancelled on stop: the response may carry leases. The server ends
            // the call when the drain is announced.
            let called_at = Instant::now();
            let leased = select! {
                leased = self.lease(1 + self.permits.available_permits()) => leased,
                () = self.shutdown_signals.abort.cancelled() => return Ok(()),
            };
            let is_healthy = match leased {
                Ok(leases) => {
                    failure_log.record_success();
                    let is_healthy = !leases.is_empty() || called_at.elapsed() >= MIN_POLL_DURATION;
                    let mut first_permit = Some(permit);
                    for lease in leases {
                        let try_permit = || self.permits.clone().try_acquire_owned().ok();
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
            // A server that cannot hold the call, for example because it has too many
            // waiters, must not be polled in a busy loop.
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
            confirm_within: Some(to_proto_duration(CONFIRM_TIMEOUT)),
        });
        request.set_timeout(POLL_TIMEOUT + CALL_TIMEOUT);
        let client = self.lease_manager.client();
        let mut client = client.max_decoding_message_size(MAX_RESPONSE_BYTES);
        Ok(client.lease_operations(request).await?.into_inner().leases)
    }

    fn start_attempt(&self, lease: Lease, permit: Option<OwnedSemaphorePermit>) {
        let name = lease.name.clone();
        let Some(attempt) = Attempt::new(&self.lease_manager, lease, Some(CONFIRM_TIMEOUT)) else {
            warn!(operation.name = name, "ignoring malformed lease");
            return;
        };
        let (tasks, shutdown_signals) = (self.tasks.clone(), self.shutdown_signals.clone());
        let handler = self.handler.clone();
        self.tasks.spawn("attempt", async move {
            if tasks.stop_token().is_cancelled() {
                attempt.release(&shutdown_signals).await;
            } else {
                // The attempt logs its own errors.
                let _ = attempt.run(handler, &tasks, &shutdown_signals).await;
            }
            drop(permit);
        });
    }
}
