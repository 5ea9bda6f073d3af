//! The border of the gRPC services: it counts what is answered, and gives the
//! errors that the stack itself makes the form of ours. The services behind it
//! know nothing of it.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response, header};
use tokio::time::Instant;
use tonic::{Code, Status};
use tower::Service;

use super::status;
use crate::metrics::{Metrics, RpcMetrics};

/// A gRPC service whose answers are counted by method and code.
#[derive(Clone, Debug)]
pub struct GrpcMetrics<S> {
    inner: S,
    metrics: Arc<MetricsByMethod>,
}

/// The counters of each method, and of all that is not counted by name.
#[derive(Debug)]
struct MetricsByMethod {
    methods: [(&'static str, Arc<RpcMetrics>); METHOD_PATHS.len()],
    other: Arc<RpcMetrics>,
}

/// The answer under way.
#[derive(Debug)]
pub struct ResponseFuture<F> {
    inner: F,
    /// Taken when the answer is counted.
    metrics: Option<Arc<RpcMetrics>>,
    started_at: Instant,
}

/// The methods that are counted by name.
const METHOD_PATHS: [&str; 11] = [
    "/google.longrunning.Operations/GetOperation",
    "/google.longrunning.Operations/ListOperations",
    "/google.longrunning.Operations/WaitOperation",
    "/google.longrunning.Operations/CancelOperation",
    "/google.longrunning.Operations/DeleteOperation",
    "/longrunning.v1.OperationWatch/WatchOperation",
    "/longrunning.v1.OperationWorker/CreateOperation",
    "/longrunning.v1.OperationWorker/LeaseOperations",
    "/longrunning.v1.OperationWorker/Heartbeat",
    "/longrunning.v1.OperationWorker/FinishOperation",
    "/longrunning.v1.OperationWorker/WatchDirectives",
];

// === impl Border ===

impl<S> GrpcMetrics<S> {
    /// Puts a border around `service`.
    pub fn new(inner: S, metrics: &Metrics) -> Self {
        let by_method = MetricsByMethod {
            methods: METHOD_PATHS.map(|path| (path, Arc::new(metrics.rpc_metrics(&path[1..])))),
            other: Arc::new(metrics.rpc_metrics("other")),
        };
        Self {
            inner,
            metrics: Arc::new(by_method),
        }
    }

    /// The counters for a request; none for one that is not gRPC, which is
    /// counted by whoever serves it.
    fn metrics_for<B>(&self, request: &Request<B>) -> Option<Arc<RpcMetrics>> {
        let MetricsByMethod { methods, other } = &*self.metrics;
        let path = request.uri().path();
        let entry = methods.iter().find(|(known, _)| *known == path);
        let metrics = match entry {
            Some((_, method)) => method,
            None => {
                let content_type = request.headers().get(header::CONTENT_TYPE)?;
                let is_grpc = content_type.as_bytes().starts_with(b"application/grpc");
                is_grpc.then_some(other)?
            }
        };
        Some(Arc::clone(metrics))
    }
}

impl<S, B, R> Service<Request<B>> for GrpcMetrics<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = Response<R>;
    type Error = Infallible;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let metrics = self.metrics_for(&request);
        ResponseFuture {
            inner: self.inner.call(request),
            metrics,
            started_at: Instant::now(),
        }
    }
}

// === impl Crossing ===

impl<F, R> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<R>, Infallible>> + Unpin,
{
    type Output = Result<Response<R>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(mut response) = ready!(Pin::new(&mut self.inner).poll(context));
        let mut code = Code::Ok;
        if let Some(status) = Status::from_header_map(response.headers()) {
            code = status.code();
            if let Some(mut normalized) = normalize_status(&status) {
                code = normalized.code();
                normalized.metadata_mut().clone_from(status.metadata());
                // The header map of a response that is only an error takes any status.
                let _ = normalized.add_header(response.headers_mut());
            }
        }
        self.record(code);
        Poll::Ready(Ok(response))
    }
}

impl<F> ResponseFuture<F> {
    fn record(&mut self, code: Code) {
        if let Some(metrics) = self.metrics.take() {
            metrics.observe(code as usize, self.started_at.elapsed().as_secs_f64());
        }
    }
}

impl<F> Drop for ResponseFuture<F> {
    /// The client left before there was an answer.
    fn drop(&mut self) {
        self.record(Code::Cancelled);
    }
}

/// The form of ours for an error that has no details, as the stack makes them.
fn normalize_status(status: &Status) -> Option<Status> {
    let tonic_message = status.message();
    if !status.details().is_empty() || status.code() == Code::Ok {
        return None;
    }
    Some(match status.code() {
        // tonic's word for a message that is too large.
        Code::OutOfRange => {
            let detail = tonic_message.trim_start_matches("Error, ");
            let message = format!("{detail}; send a smaller message");
            status::with_reason(Code::ResourceExhausted, "TOO_LARGE", &message)
        }
        Code::Unimplemented if tonic_message.is_empty() => {
            let message = "this listener has no such method; clients and workers have a listener each, whose services gRPC reflection lists";
            status::with_reason(Code::Unimplemented, "UNKNOWN_METHOD", message)
        }
        Code::Unimplemented => {
            status::with_reason(Code::Unimplemented, "NOT_SUPPORTED", tonic_message)
        }
        // What the stack cannot read, the caller wrote.
        Code::Internal => status::malformed_request(tonic_message),
        Code::Cancelled => {
            status::with_reason(Code::Cancelled, "CANCELLED_BY_CLIENT", tonic_message)
        }
        code => status::with_reason(code, "TRANSPORT_ERROR", tonic_message),
    })
}
