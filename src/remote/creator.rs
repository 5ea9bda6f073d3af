//! Creates operations on a server elsewhere, and executes those of its own: for
//! a service whose slow methods return operations.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, transport::Channel};

use super::{
    attempt::Attempt,
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

/// Creates operations. Clones share one heartbeat; when the last one is dropped,
/// what still runs is given up.
#[derive(Clone, Debug)]
pub struct Creator(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    keeper: Arc<Keeper>,
    _upkeep: Upkeep,
    tasks: Tasks,
    release: CancellationToken,
}

/// An operation that runs in this process. Dropping it lets the work go on.
#[derive(Debug)]
pub struct Started {
    /// The operation as it began; what a method returns.
    pub operation: Operation,
    /// The same request had made it before: nothing runs here, it runs elsewhere
    /// or is done.
    pub reused: bool,
    work: Option<JoinHandle<Result<Operation, Status>>>,
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
            release: CancellationToken::new(),
        })))
    }

    /// Creates an operation.
    ///
    /// # Errors
    /// As OperationWorker.CreateOperation.
    pub async fn create(&self, new: NewOperation) -> Result<CreateOperationResponse, Status> {
        self.ask(new.into()).await
    }

    /// Creates an operation and executes it here with `handler`. It is created
    /// as self-executed by this creator, whatever `new` says of that.
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
        // The lease of a request that came before is its caller's to work on.
        let lease = created.lease.filter(|_| !created.reused);
        if let Some(attempt) = lease.and_then(|lease| Attempt::new(keeper, lease)) {
            started.stop = attempt.stop_signal();
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
    /// gives up the rest: it fails with WORKER_LOST.
    pub async fn shutdown(&self, grace: Duration) {
        let Inner { tasks, release, .. } = &*self.0;
        if timeout(grace, tasks.stop()).await.is_err() {
            release.cancel();
            tasks.stop().await;
        }
    }

    async fn ask(
        &self,
        request: CreateOperationRequest,
    ) -> Result<CreateOperationResponse, Status> {
        let mut request = Request::new(request);
        request.set_timeout(CALL);
        let created = self.0.keeper.client().create_operation(request).await?;
        Ok(created.into_inner())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.release.cancel();
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
                Ok(ended) => ended,
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
