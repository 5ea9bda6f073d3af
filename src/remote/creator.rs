//! Creates operations on a server elsewhere, and executes those of its own: for
//! a service whose slow methods return operations.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
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

/// Creates operations. Clones share one heartbeat.
#[derive(Clone, Debug)]
pub struct Creator {
    keeper: Arc<Keeper>,
    _upkeep: Arc<Upkeep>,
}

/// An operation that runs in this process. Dropping it gives the operation up:
/// it fails with WORKER_LOST.
#[derive(Debug)]
#[must_use = "await finished(), or the work is given up"]
pub struct Started {
    /// The operation as it began; what a method returns.
    pub operation: Operation,
    /// Whether the same request had made it before, and it runs elsewhere or is
    /// done.
    pub reused: bool,
    work: Option<JoinHandle<Result<Operation, Status>>>,
    stop: CancellationToken,
    _release: DropGuard,
}

// === impl Creator ===

impl Creator {
    /// A creator with an id of 1 to 255 bytes that no other has. Must be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// [`InvalidWorkerId`] if the id has no or too many bytes.
    pub fn new(channel: Channel, id: &str) -> Result<Self, InvalidWorkerId> {
        let worker = WorkerId::parse(id)?;
        let keeper = Keeper::new(OperationWorkerClient::new(channel), worker);
        let upkeep = Arc::new(keeper.start());
        Ok(Self {
            keeper,
            _upkeep: upkeep,
        })
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
        let mut request = CreateOperationRequest::from(new);
        let worker_id = self.keeper.worker_id();
        request.execution = Some(Execution::SelfExecuted(SelfExecuted { worker_id }));
        request.retry_policy = None;
        let created = self.ask(request).await?;
        let operation = created.operation.unwrap_or_default();
        let (tasks, release) = (Tasks::default(), CancellationToken::new());
        // A lease that is another call's is not ours to work on.
        let lease = created.lease.filter(|_| !created.reused);
        let attempt = lease.and_then(|lease| Attempt::new(&self.keeper, lease));
        let stop = attempt.as_ref().map(Attempt::stop_signal);
        let _release = release.clone().drop_guard();
        let creator = self.clone();
        let work = attempt.map(|attempt| {
            let handler = Arc::new(handler);
            let of_handler = tasks.clone();
            tasks.spawn("attempt", async move {
                let ended = attempt.run(handler, &of_handler, &release).await;
                // The heartbeat goes on until here.
                drop(creator);
                ended
            })
        });
        Ok(Started {
            operation,
            reused: created.reused,
            work,
            stop: stop.unwrap_or_default(),
            _release,
        })
    }

    async fn ask(
        &self,
        request: CreateOperationRequest,
    ) -> Result<CreateOperationResponse, Status> {
        let mut request = Request::new(request);
        request.set_timeout(CALL);
        let created = self.keeper.client().create_operation(request).await?;
        Ok(created.into_inner())
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
