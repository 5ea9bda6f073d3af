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
pub struct Border<S> {
    service: S,
    counters: Arc<Counters>,
}

/// The counters of each method, and of all that is not counted by name.
#[derive(Debug)]
struct Counters {
    methods: [(&'static str, Arc<RpcMetrics>); METHODS.len()],
    other: Arc<RpcMetrics>,
}

/// The answer under way.
#[derive(Debug)]
pub struct Crossing<F> {
    answer: F,
    /// Taken when the answer is counted.
    method: Option<Arc<RpcMetrics>>,
    begun: Instant,
}

/// The methods that are counted by name.
const METHODS: [&str; 11] = [
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

impl<S> Border<S> {
    /// Puts a border around `service`.
    pub fn new(service: S, metrics: &Metrics) -> Self {
        let counters = Counters {
            methods: METHODS.map(|path| (path, Arc::new(metrics.rpc(&path[1..])))),
            other: Arc::new(metrics.rpc("other")),
        };
        Self {
            service,
            counters: Arc::new(counters),
        }
    }

    /// The counters for a request; none for one that is not gRPC, which is
    /// counted by whoever serves it.
    fn method<B>(&self, request: &Request<B>) -> Option<Arc<RpcMetrics>> {
        let Counters { methods, other } = &*self.counters;
        let path = request.uri().path();
        let known = methods.iter().find(|(known, _)| *known == path);
        let method = match known {
            Some((_, method)) => method,
            None => {
                let kind = request.headers().get(header::CONTENT_TYPE)?;
                let is_grpc = kind.as_bytes().starts_with(b"application/grpc");
                is_grpc.then_some(other)?
            }
        };
        Some(Arc::clone(method))
    }
}

impl<S, B, R> Service<Request<B>> for Border<S>
where
    S: Service<Request<B>, Response = Response<R>, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = Response<R>;
    type Error = Infallible;
    type Future = Crossing<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let method = self.method(&request);
        Crossing {
            answer: self.service.call(request),
            method,
            begun: Instant::now(),
        }
    }
}

// === impl Crossing ===

impl<F, R> Future for Crossing<F>
where
    F: Future<Output = Result<Response<R>, Infallible>> + Unpin,
{
    type Output = Result<Response<R>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(mut response) = ready!(Pin::new(&mut self.answer).poll(context));
        let mut code = Code::Ok;
        if let Some(status) = Status::from_header_map(response.headers()) {
            code = status.code();
            if let Some(mut better) = in_our_form(&status) {
                code = better.code();
                better.metadata_mut().clone_from(status.metadata());
                // The header map of a response that is only an error takes any status.
                let _ = better.add_header(response.headers_mut());
            }
        }
        self.count(code);
        Poll::Ready(Ok(response))
    }
}

impl<F> Crossing<F> {
    fn count(&mut self, code: Code) {
        if let Some(method) = self.method.take() {
            method.answered(code as usize, self.begun.elapsed().as_secs_f64());
        }
    }
}

impl<F> Drop for Crossing<F> {
    /// The client left before there was an answer.
    fn drop(&mut self) {
        self.count(Code::Cancelled);
    }
}

/// The form of ours for an error that has no details, as the stack makes them.
fn in_our_form(status: &Status) -> Option<Status> {
    let said = status.message();
    if !status.details().is_empty() || status.code() == Code::Ok {
        return None;
    }
    Some(match status.code() {
        // tonic's word for a message that is too large.
        Code::OutOfRange => {
            let said = said.trim_start_matches("Error, ");
            let message = format!("{said}; send a smaller message");
            status::plain(Code::ResourceExhausted, "TOO_LARGE", &message)
        }
        Code::Unimplemented if said.is_empty() => {
            let message = "this listener has no such method; clients and workers have a listener each, whose services gRPC reflection lists";
            status::plain(Code::Unimplemented, "METHOD_UNKNOWN", message)
        }
        Code::Unimplemented => status::plain(Code::Unimplemented, "NOT_SUPPORTED", said),
        // What the stack cannot read, the caller wrote.
        Code::Internal => status::malformed(said),
        Code::Cancelled => status::plain(Code::Cancelled, "CALL_CANCELLED", said),
        code => status::plain(code, "BAD_CALL", said),
    })
}
