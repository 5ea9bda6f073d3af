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
    attempt::{Attempt, Release},
    backoff::{Backoff, is_passing},
    keeper::{CALL, Keeper, Upkeep},
};
use crate::{
    operation::lease::{InvalidWorkerId, WorkerId},
    operations::creation::NewOperation,
    proto::{
        google::longrunning::Operation,
        longrunning::v1::{
            CreateOperationRequest, CreateOperationResponse,
            create_operation_request::{Execution, SelfExecuted},
            operation_worker_client::OperationWorkerClient,
        },
    },
    tasks::Tasks,
    worker::handler::Handler,
};

/// How long a server that is away is waited for.
const PERSIST: Duration = Duration::from_secs(30);

/// Creates operations. Clones share one heartbeat; when the last one is dropped,
/// what still runs is given up.
#[derive(Clone, Debug)]
pub struct Creator(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    keeper: Arc<Keeper>,
    _upkeep: Upkeep,
    tasks: Tasks,
    release: Release,
    /// The longest patience of a handler.
    patience: Mutex<Duration>,
}

/// An operation that runs in this process. Dropping it lets the work go on.
#[derive(Debug)]
pub struct Started {
    /// The operation as it began; what a method returns.
    pub operation: Operation,
    /// The same request had made it before, and nothing was started by this one:
    /// it runs already, here or elsewhere, or is done.
    pub reused: bool,
    work: Option<JoinHandle<Result<Option<Operation>, Status>>>,
    stop: CancellationToken,
}

// === impl Creator ===

impl Creator {
    /// A creator with an id of 1 to 255 bytes that no other has. Must be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// [`InvalidWorkerId`] if the id has no or too many bytes, or control characters.
    pub fn new(channel: Channel, id: &str) -> Result<Self, InvalidWorkerId> {
        let worker = WorkerId::parse(id)?;
        let keeper = Keeper::new(OperationWorkerClient::new(channel), worker);
        Ok(Self(Arc::new(Inner {
            _upkeep: keeper.start(),
            keeper,
            tasks: Tasks::default(),
            release: Release::default(),
            patience: Mutex::default(),
        })))
    }

    /// Creates an operation. A server that is away is waited for, for up to 30 s;
    /// a `request_id`, random if `new` has none, lets no try make a second one.
    ///
    /// # Errors
    /// As OperationWorker.CreateOperation.
    pub async fn create(&self, new: NewOperation) -> Result<CreateOperationResponse, Status> {
        self.ask(new.into()).await
    }

    /// Creates an operation, as [`create`](Self::create) does, and executes it
    /// here with `handler`. It is created as self-executed by this creator,
    /// whatever `new` says of that.
    ///
    /// # Errors
    /// As OperationWorker.CreateOperation.
    pub async fn start(&self, new: NewOperation, handler: impl Handler) -> Result<Started, Status> {
        let Inner { keeper, tasks, .. } = &*self.0;
        let worker_id = keeper.worker_id();
        let mut request = CreateOperationRequest::from(new);
        request.execution = Some(Execution::SelfExecuted(SelfExecuted { worker_id }));
        request.retry_policy = None;
        let created = self.ask(request).await?;
        let mut started = Started {
            operation: created.operation.unwrap_or_default(),
            reused: created.reused,
            work: None,
            stop: CancellationToken::new(),
        };
        // The lease may be that of a try whose answer was lost, and is ours to
        // work on then. One that is held already makes no second attempt.
        let attempt = created.lease.and_then(|lease| Attempt::new(keeper, lease));
        if let Some(attempt) = attempt {
            started.stop = attempt.stop_signal();
            started.reused = false;
            let mut longest = self.0.patience.lock();
            *longest = longest.max(handler.patience());
            drop(longest);
            let (of_handler, release) = (tasks.clone(), self.0.release.clone());
            let work = async move {
                let handler = Arc::new(handler);
                attempt.run(handler, &of_handler, &release).await
            };
            started.work = Some(tasks.spawn("attempt", work));
        }
        Ok(started)
    }

    /// Waits at most for `grace` until all that was started here has ended, and
    /// gives up the rest: it fails with WORKER_LOST. Handlers with
    /// [`patience`](Handler::patience) are told to stop before that.
    pub async fn shutdown(&self, grace: Duration) {
        let Inner { tasks, release, .. } = &*self.0;
        let patience = *self.0.patience.lock();
        release.after(grace, patience, tasks.stop()).await;
        tasks.stop().await;
    }

    async fn ask(
        &self,
        mut request: CreateOperationRequest,
    ) -> Result<CreateOperationResponse, Status> {
        if request.request_id.is_empty() {
            request.request_id = Uuid::new_v4().to_string();
        }
        let (until, mut backoff) = (Instant::now() + PERSIST, Backoff::default());
        loop {
            let mut asked = Request::new(request.clone());
            asked.set_timeout(CALL);
            match self.0.keeper.client().create_operation(asked).await {
                Ok(created) => return Ok(created.into_inner()),
                // What is full is the caller's to know, who makes it full.
                Err(status)
                    if is_passing(&status)
                        && status.code() != Code::ResourceExhausted
                        && Instant::now() < until =>
                {
                    debug!(%status, "an operation could not be created; trying again");
                    sleep(backoff.pause()).await;
                }
                Err(status) => return Err(status),
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.release.at_once();
    }
}

// === impl Started ===

impl Started {
    /// Waits until the handler has ended and the server knows; returns the
    /// operation as it is then. Of an operation that was `reused`, the one that
    /// began.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if the lease was lost, or another error of
    /// OperationWorker.FinishOperation.
    pub async fn finished(self) -> Result<Operation, Status> {
        match self.work {
            Some(work) => match work.await {
                Ok(ended) => Ok(ended?.unwrap_or(self.operation)),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            None => Ok(self.operation),
        }
    }

    /// A signal that tells the handler to stop, as a cancellation by a client
    /// does.
    pub fn stop_signal(&self) -> CancellationToken {
        self.stop.clone()
    }
}
