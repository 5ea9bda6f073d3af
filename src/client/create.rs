//! Creates operations on a server elsewhere, and executes those of its own: for
//! a service whose slow methods return operations.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, transport::Channel};
use tracing::debug;
use uuid::Uuid;

use super::{
    attempt::{Attempt, ShutdownSignals},
    backoff::{Backoff, is_transient},
    lease_manager::{CALL_TIMEOUT, LeaseManager, LeaseManagerGuard},
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

/// How long a server that is away is waited for.
const CREATE_RETRY_TIMEOUT: Duration = Duration::from_secs(30);

/// Creates operations. Clones share one heartbeat; when the last one is dropped,
/// what still runs is given up.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lease_manager: Arc<LeaseManager>,
    _lease_manager_guard: LeaseManagerGuard,
    tasks: Tasks,
    shutdown_signals: ShutdownSignals,
    /// The longest patience of a handler.
    max_shutdown_grace: Mutex<Duration>,
}

/// An operation that runs in this process. Dropping it lets the work go on.
#[derive(Debug)]
pub struct RunningOperation {
    /// The operation as it began; what a method returns.
    pub operation: Operation,
    /// The same request had made it before, and nothing was started by this one:
    /// it runs already, here or elsewhere, or is done.
    pub already_existed: bool,
    join_handle: Option<JoinHandle<Result<Option<Operation>, Status>>>,
    cancellation_token: CancellationToken,
}

// === impl Creator ===

impl Client {
    /// A creator with an id of 1 to 255 bytes that no other has. Must be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// [`InvalidWorkerId`] if the id has no or too many bytes, or control characters.
    pub fn new(channel: Channel, id: &str) -> Result<Self, InvalidWorkerId> {
        let worker = WorkerId::parse(id)?;
        let lease_manager = LeaseManager::new(OperationWorkerClient::new(channel), worker);
        Ok(Self(Arc::new(Inner {
            _lease_manager_guard: lease_manager.start(),
            lease_manager,
            tasks: Tasks::default(),
            shutdown_signals: ShutdownSignals::default(),
            max_shutdown_grace: Mutex::default(),
        })))
    }

    /// Creates an operation. A server that is away is waited for, for up to 30 s;
    /// a `request_id`, random if `new` has none, lets no try make a second one.
    ///
    /// # Errors
    /// As OperationWorker.CreateOperation.
    pub async fn create(
        &self,
        new_operation: NewOperation,
    ) -> Result<CreateOperationResponse, Status> {
        self.create_with_retry(new_operation.into()).await
    }

    /// Creates an operation, as [`create`](Self::create) does, and executes it
    /// here with `handler`. It is created as self-executed by this creator,
    /// whatever `new` says of that.
    ///
    /// # Errors
    /// As OperationWorker.CreateOperation.
    pub async fn start(
        &self,
        new_operation: NewOperation,
        handler: impl Handler,
    ) -> Result<RunningOperation, Status> {
        let Inner {
            lease_manager,
            tasks,
            ..
        } = &*self.0;
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
        // The lease may be that of a try whose answer was lost, and is ours to
        // work on then. One that is held already makes no second attempt.
        let attempt = response
            .lease
            .and_then(|lease| Attempt::new(lease_manager, lease));
        if let Some(attempt) = attempt {
            running.cancellation_token = attempt.cancellation_token();
            running.already_existed = false;
            let mut max_grace = self.0.max_shutdown_grace.lock();
            *max_grace = max_grace.max(handler.shutdown_grace());
            drop(max_grace);
            let (handler_tasks, shutdown_signals) =
                (tasks.clone(), self.0.shutdown_signals.clone());
            let work = async move {
                let handler = Arc::new(handler);
                attempt
                    .run(handler, &handler_tasks, &shutdown_signals)
                    .await
            };
            running.join_handle = Some(tasks.spawn("attempt", work));
        }
        Ok(running)
    }

    /// Waits at most for `grace` until all that was started here has ended, and
    /// gives up the rest: it fails with WORKER_LOST. Handlers with
    /// [`patience`](Handler::patience) are told to stop before that.
    pub async fn shutdown(&self, timeout: Duration) {
        let Inner {
            tasks,
            shutdown_signals,
            ..
        } = &*self.0;
        let handler_grace = *self.0.max_shutdown_grace.lock();
        shutdown_signals
            .drain(timeout, handler_grace, tasks.stop())
            .await;
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
        loop {
            let mut tonic_request = Request::new(request.clone());
            tonic_request.set_timeout(CALL_TIMEOUT);
            match self
                .0
                .lease_manager
                .client()
                .create_operation(tonic_request)
                .await
            {
                Ok(response) => return Ok(response.into_inner()),
                // What is full is the caller's to know, who makes it full.
                Err(status)
                    if is_transient(&status)
                        && status.code() != Code::ResourceExhausted
                        && Instant::now() < deadline =>
                {
                    debug!(%status, "an operation could not be created; trying again");
                    sleep(backoff.next_delay()).await;
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

// === impl Started ===

impl RunningOperation {
    /// Waits until the handler has ended and the server knows; returns the
    /// operation as it is then. Of an operation that was `reused`, the one that
    /// began.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if the lease was lost, or another error of
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

    /// A signal that tells the handler to stop, as a cancellation by a client
    /// does.
    pub fn cancellation_token(&self) -> CancellationToken {
        self.cancellation_token.clone()
    }
}
