//! A line to workers elsewhere that the test disturbs: requests and answers get
//! lost or wait. It is in memory, so that paused time stays exact.

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

/// Operations, and the line to the service for workers.
pub(crate) struct Line {
    pub(crate) operations: Operations,
    pub(crate) channel: Channel,
    pub(crate) calls: Arc<Calls>,
}

/// What happens to calls, by method, and how many there were.
#[derive(Default)]
pub(crate) struct Calls {
    fates: Mutex<HashMap<String, VecDeque<Fate>>>,
    counts: watch::Sender<HashMap<String, usize>>,
}

/// What happens to one call.
pub(crate) enum Fate {
    /// The server never hears of it.
    LoseRequest,
    /// The server does what is asked, and nobody hears of that.
    LoseAnswer,
    /// It waits until the gate is opened, and reaches the server then.
    Wait(Arc<Semaphore>),
    /// It waits until the gate is opened, and is lost then.
    WaitAndLose(Arc<Semaphore>),
}

#[derive(Clone)]
struct Disturbed<S> {
    service: S,
    calls: Arc<Calls>,
}

// === impl Line ===

impl Line {
    pub(crate) async fn with(builder: Builder, waits: WaitLimits) -> Self {
        let operations = builder.start().await.unwrap();
        let calls: Arc<Calls> = Arc::default();
        let (connect, connections) = mpsc::channel(8);
        let disturbed = calls.clone();
        let serving = Server::builder()
            .layer(tower::layer::layer_fn(move |service| Disturbed {
                service,
                calls: disturbed.clone(),
            }))
            .add_service(worker_server_with(&operations, waits))
            .serve_with_incoming(ReceiverStream::new(connections));
        tokio::spawn(serving);
        let connector = tower::service_fn(move |_| {
            let connect = connect.clone();
            async move {
                let (here, there) = tokio::io::duplex(1 << 20);
                connect.send(Ok::<_, io::Error>(there)).await.unwrap();
                Ok::<_, io::Error>(TokioIo::new(here))
            }
        });
        let endpoint = Endpoint::from_static("http://in-memory");
        Self {
            operations,
            channel: endpoint.connect_with_connector(connector).await.unwrap(),
            calls,
        }
    }

    pub(crate) async fn open() -> Self {
        Self::with(crate::support::operations(), WaitLimits::default()).await
    }
}

// === impl Calls ===

impl Calls {
    /// What happens to the next calls of a method, one after the other.
    pub(crate) fn disturb(&self, method: &str, fates: impl IntoIterator<Item = Fate>) {
        let mut all = self.fates.lock();
        all.entry(method.to_owned()).or_default().extend(fates);
    }

    /// How many calls of a method there were.
    pub(crate) fn count(&self, method: &str) -> usize {
        self.counts.borrow().get(method).copied().unwrap_or(0)
    }

    /// Waits until there were so many.
    pub(crate) async fn reach(&self, method: &str, count: usize) {
        let mut counts = self.counts.subscribe();
        let enough = |all: &HashMap<String, usize>| count <= all.get(method).copied().unwrap_or(0);
        counts.wait_for(enough).await.unwrap();
    }
}

// === impl Disturbed ===

impl<S> Service<Request<Body>> for Disturbed<S>
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
        let fate = (self.calls.fates.lock().get_mut(&method)).and_then(VecDeque::pop_front);
        self.calls
            .counts
            .send_modify(|counts| *counts.entry(method).or_default() += 1);
        let successor = self.service.clone();
        let mut service = std::mem::replace(&mut self.service, successor);
        Box::pin(async move {
            let gate = match &fate {
                Some(Fate::Wait(gate) | Fate::WaitAndLose(gate)) => Some(gate),
                _ => None,
            };
            if let Some(gate) = gate {
                gate.acquire().await.unwrap().forget();
            }
            if !matches!(fate, Some(Fate::LoseRequest | Fate::WaitAndLose(_))) {
                let answer = service.call(request).await?;
                if !matches!(fate, Some(Fate::LoseAnswer)) {
                    return Ok(answer);
                }
            }
            Ok(Status::unavailable("the test lost it").into_http())
        })
    }
}
