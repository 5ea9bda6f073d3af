//! A channel to the worker service on which a test drops or delays single requests
//! and responses. It is in memory, so that paused time stays exact.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use hyper_util::rt::TokioIo;
use longrunning::{Builder, Operations, WaitLimits, worker_server_with};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status,
    body::Body,
    transport::{Channel, Endpoint, Server},
};
use tower::Service;

/// Operations and a channel to their worker service.
pub(crate) struct LossyChannel {
    pub(crate) operations: Operations,
    pub(crate) channel: Channel,
    pub(crate) faults: Arc<CallFaults>,
}

/// Scheduled faults and numbers of calls, by method.
#[derive(Default)]
pub(crate) struct CallFaults {
    scheduled: Mutex<HashMap<String, VecDeque<CallFault>>>,
    counts: watch::Sender<HashMap<String, usize>>,
}

/// A fault of one call.
pub(crate) enum CallFault {
    /// The request never reaches the server.
    DropRequest,
    /// The server processes the request, but its response is lost.
    DropResponse,
    /// The request reaches the server once the semaphore has a permit.
    Delay(Arc<Semaphore>),
    /// The request is lost once the semaphore has a permit.
    DelayThenDrop(Arc<Semaphore>),
}

#[derive(Clone)]
struct FaultInjector<S> {
    service: S,
    faults: Arc<CallFaults>,
}

// === impl LossyChannel ===

impl LossyChannel {
    pub(crate) async fn start_with(builder: Builder, wait_limits: WaitLimits) -> Self {
        let operations = builder.start().await.unwrap();
        let faults: Arc<CallFaults> = Arc::default();
        let (connection_sender, connections) = mpsc::channel(8);
        let injector_faults = faults.clone();
        let server = Server::builder()
            .layer(tower::layer::layer_fn(move |service| FaultInjector {
                service,
                faults: injector_faults.clone(),
            }))
            .add_service(worker_server_with(&operations, wait_limits))
            .serve_with_incoming(ReceiverStream::new(connections));
        tokio::spawn(server);
        let connector = tower::service_fn(move |_| {
            let connection_sender = connection_sender.clone();
            async move {
                let (client_io, server_io) = tokio::io::duplex(1 << 20);
                connection_sender
                    .send(Ok::<_, io::Error>(server_io))
                    .await
                    .unwrap();
                Ok::<_, io::Error>(TokioIo::new(client_io))
            }
        });
        let endpoint = Endpoint::from_static("http://in-memory");
        Self {
            operations,
            channel: endpoint.connect_with_connector(connector).await.unwrap(),
            faults,
        }
    }

    pub(crate) async fn start() -> Self {
        Self::start_with(crate::support::operations_builder(), WaitLimits::default()).await
    }
}

// === impl CallFaults ===

impl CallFaults {
    /// Schedules faults for the next calls of a method, one each.
    pub(crate) fn inject(&self, method: &str, faults: impl IntoIterator<Item = CallFault>) {
        let mut scheduled = self.scheduled.lock();
        scheduled
            .entry(method.to_owned())
            .or_default()
            .extend(faults);
    }

    /// Returns the number of calls of a method so far.
    pub(crate) fn call_count(&self, method: &str) -> usize {
        self.counts.borrow().get(method).copied().unwrap_or(0)
    }

    /// Waits until a method was called at least `count` times in total.
    pub(crate) async fn wait_for_calls(&self, method: &str, count: usize) {
        let mut counts = self.counts.subscribe();
        let has_enough = |counts: &HashMap<String, usize>| {
            counts.get(method).is_some_and(|calls| *calls >= count)
        };
        counts.wait_for(has_enough).await.unwrap();
    }
}

// === impl FaultInjector ===

impl<S> Service<Request<Body>> for FaultInjector<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let fault = (self.faults.scheduled.lock().get_mut(&method)).and_then(VecDeque::pop_front);
        self.faults
            .counts
            .send_modify(|counts| *counts.entry(method).or_default() += 1);
        let successor = self.service.clone();
        let mut service = std::mem::replace(&mut self.service, successor);
        Box::pin(async move {
            let semaphore = match &fault {
                Some(CallFault::Delay(gate) | CallFault::DelayThenDrop(gate)) => Some(gate),
                _ => None,
            };
            if let Some(semaphore) = semaphore {
                semaphore.acquire().await.unwrap().forget();
            }
            if !matches!(
                fault,
                Some(CallFault::DropRequest | CallFault::DelayThenDrop(_))
            ) {
                let response = service.call(request).await?;
                if !matches!(fault, Some(CallFault::DropResponse)) {
                    return Ok(response);
                }
            }
            Ok(Status::unavailable("dropped by the test").into_http())
        })
    }
}
