//! The client for services: creates operations on a remote server and executes
//! self-executed ones in this process.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Request, Status, transport::Channel};
use tracing::debug;
use uuid::Uuid;

use super::{
    attempt::{Attempt, ShutdownSignals},
    backoff::{Backoff, is_transient},
    lease_manager::{CALL_TIMEOUT, LeaseManager},
};
use crate::{
    operation::lease::{InvalidWorkerId, WorkerId},
    proto::{
        google::longrunning::Operation,
        longrunning::v1::{
            CreateOperationRequest, CreateOperationResponse,
            create_operation_request::{Execution, SelfExecuted},
            operation_worker_client::OperationWorkerClient,
        },
    },
    service::new_operation::NewOperation,
    tasks::Tasks,
    worker::handler::Handler,
};

/// The time to retry a create while the server is unreachable.
const CREATE_RETRY_TIMEOUT: Duration = Duration::from_secs(30);

/// Creates operations, and executes them if this process is their worker.
///
/// Clones share one heartbeat. Dropping the last clone aborts the operations that
/// still run; they fail with `WORKER_LOST`.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lease_manager: Arc<LeaseManager>,
    _lease_manager_guard: DropGuard,
    tasks: Tasks,
    shutdown_signals: ShutdownSignals,
    /// The maximum `Handler::shutdown_grace` of the handlers started so far.
    max_shutdown_grace: Mutex<Duration>,
}

/// An operation that was started in this process. Dropping it does not stop the
/// handler.
#[derive(Debug)]
#[non_exhaustive]
pub struct RunningOperation {
    /// The operation as it was created; return it from the service method.
    pub operation: Operation,
    /// An earlier request with the same id created the operation, and this call did
    /// not start a handler. The operation is already running or done.
    pub already_existed: bool,
    join_handle: Option<JoinHandle<Result<Option<Operation>, Status>>>,
    cancellation_token: CancellationToken,
}

// === impl Client ===

impl Client {
    /// Creates a client. `id` identifies this process as a worker and must be
    /// unique: 1 to 255 bytes without control characters.
    ///
    /// # Errors
    /// [`InvalidWorkerId`] if the id is empty, too long or has control characters.
    ///
    /// # Panics
    /// If called outside of a tokio runtime.
    pub fn new(channel: Channel, id: &str) -> Result<Self, InvalidWorkerId> {
        let worker = WorkerId::parse(id)?;
        let lease_manager = LeaseManager::new(OperationWorkerClient::new(channel), worker, false);
        Ok(Self(Arc::new(Inner {
            _lease_manager_guard: lease_manager.start(),
            lease_manager,
            tasks: Tasks::default(),
            shutdown_signals: ShutdownSignals::default(),
            max_shutdown_grace: Mutex::default(),
        })))
    }

    /// Creates an operation. Retries for up to 30 s while the server is unreachable.
    /// Retries are idempotent: the call sets a random `request_id` unless
    /// `new_operation` has one.
    ///
    /// # Errors
    /// The status of OperationWorker.CreateOperation.
    pub async fn create(
        &self,
        new_operation: NewOperation,
    ) -> Result<CreateOperationResponse, Status> {
        self.create_with_retry(new_operation.into()).await
    }

    /// Creates an operation like [`create`](Self::create) and executes it in this
    /// process with `handler`. The operation is always self-executed by this client
    /// and has no retries; the queue, worker id and retry policy of `new_operation`
    /// are ignored.
    ///
    /// # Errors
    /// The status of OperationWorker.CreateOperation.
    pub async fn start(
        &self,
        new_operation: NewOperation,
        handler: impl Handler,
    ) -> Result<RunningOperation, Status> {
        let (lease_manager, tasks) = (&self.0.lease_manager, &self.0.tasks);
        let worker_id = lease_manager.worker_id();
        let mut request = CreateOperationRequest::from(new_operation);
        request.execution = Some(Execution::SelfExecuted(SelfExecuted { worker_id }));
        request.retry_policy = None;
        let response = self.create_with_retry(request).await?;
        let mut running = RunningOperation {
            operation: response.operation.unwrap_or_default(),
            already_existed: response.already_existed,
            join_handle: None,
            cancellation_token: CancellationToken::new(),
        };
        // A lease may come from an earlier try whose response was lost; it is
        // executed now. A lease that is already held has its attempt.
        if let Some(lease) = response.lease
            && let Some(attempt) = Attempt::new(lease_manager, lease, None)
        {
            running.cancellation_token = attempt.cancellation_token();
            running.already_existed = false;
            let mut max_grace = self.0.max_shutdown_grace.lock();
            *max_grace = max_grace.max(handler.shutdown_grace());
            drop(max_grace);
            let (handler, handler_tasks) = (Arc::new(handler), tasks.clone());
            let signals = self.0.shutdown_signals.clone();
            let work = async move { attempt.run(handler, &handler_tasks, &signals).await };
            running.join_handle = Some(tasks.spawn("attempt", work));
        }
        Ok(running)
    }

    /// Waits at most `timeout` until all operations started here have ended, and
    /// aborts the rest, which fail with `WORKER_LOST`. Handlers with a
    /// [`shutdown_grace`](Handler::shutdown_grace) are cancelled that long before,
    /// at most a quarter of `timeout`.
    pub async fn shutdown(&self, timeout: Duration) {
        let tasks = &self.0.tasks;
        let handler_grace = *self.0.max_shutdown_grace.lock();
        let drain = (self.0.shutdown_signals).drain(timeout, handler_grace, tasks.stop());
        drain.await;
        tasks.stop().await;
    }

    async fn create_with_retry(
        &self,
        mut request: CreateOperationRequest,
    ) -> Result<CreateOperationResponse, Status> {
        if request.request_id.is_empty() {
            request.request_id = Uuid::new_v4().to_string();
        }
        let (deadline, mut backoff) = (Instant::now() + CREATE_RETRY_TIMEOUT, Backoff::default());
        let mut client = self.0.lease_manager.client();
        loop {
            let mut tonic_request = Request::new(request.clone());
            tonic_request.set_timeout(CALL_TIMEOUT);
            match client.create_operation(tonic_request).await {
                Ok(response) => return Ok(response.into_inner()),
                // A full store or queue is reported to the caller, who fills it.
                Err(status)
                    if is_transient(&status)
                        && status.code() != Code::ResourceExhausted
                        && Instant::now() < deadline =>
                {
                    let delay = backoff.next_delay();
                    debug!(error = %status, retry_in = ?delay, "retrying CreateOperation");
                    sleep(delay).await;
                }
                Err(status) => return Err(status),
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown_signals.trigger_all();
    }
}

// === impl RunningOperation ===

impl RunningOperation {
    /// Waits until the handler has ended and its result is recorded, and returns the
    /// operation. Returns immediately with [`operation`](Self::operation) if it
    /// already existed.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if the lease was lost, or another status of
    /// OperationWorker.FinishOperation.
    pub async fn join(self) -> Result<Operation, Status> {
        match self.join_handle {
            Some(join_handle) => match join_handle.await {
                Ok(result) => Ok(result?.unwrap_or(self.operation)),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            None => Ok(self.operation),
        }
    }

    /// Returns a token that cancels the handler's [`Context`](crate::Context), as a
    /// client's cancellation does.
    pub fn cancellation_token(&self) -> CancellationToken {
        self.cancellation_token.clone()
    }
}
