//! The operators' listener: `/livez`, `/readyz` and `/metrics` over HTTP/1.1
//! or HTTP/2. What is counted is decided in `metrics`.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use parking_lot::RwLock;
use prometheus_client::{encoding::text::encode, registry::Registry};
use tower::Service;

use crate::{metrics::Metrics, operations::operations::Operations};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Answers operators.
#[derive(Clone, Debug)]
pub(super) struct Admin {
    registry: Arc<Registry>,
    ready: Readiness,
}

/// Whether the server wants traffic. Clones are the same switch.
#[derive(Clone, Debug, Default)]
pub(super) struct Readiness(Arc<RwLock<Phase>>);

#[derive(Debug, Default)]
enum Phase {
    /// What was kept is being read.
    #[default]
    Starting,
    Serving(Operations),
    Stopping,
}

// === impl Readiness ===

impl Readiness {
    pub(super) fn serve(&self, operations: &Operations) {
        *self.0.write() = Phase::Serving(operations.clone());
    }

    pub(super) fn stop(&self) {
        *self.0.write() = Phase::Stopping;
    }

    /// Why the server wants no traffic; none if it does.
    fn refusal(&self) -> Option<String> {
        match &*self.0.read() {
            Phase::Starting => Some("starting: reading what was kept".to_owned()),
            Phase::Serving(operations) => operations
                .trouble()
                .map(|trouble| format!("changes cannot be kept; reads go on: {trouble}")),
            Phase::Stopping => Some("shutting down".to_owned()),
        }
    }
}

// === impl Admin ===

impl Admin {
    pub(super) fn new(metrics: &Metrics, ready: Readiness) -> Self {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        Self {
            registry: Arc::new(registry),
            ready,
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut refused = text(
                StatusCode::METHOD_NOT_ALLOWED,
                "only GET and HEAD are answered here\n",
            );
            refused
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        match request.uri().path() {
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => match self.ready.refusal() {
                None => text(StatusCode::OK, "ok\n"),
                Some(why) => text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    &format!("not ready: {why}\n"),
                ),
            },
            "/metrics" => self.metrics(),
            _ => text(
                StatusCode::NOT_FOUND,
                "not found; there are /livez, /readyz and /metrics\n",
            ),
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        if let Phase::Serving(operations) = &*self.ready.0.read() {
            let trouble = operations.trouble().is_some();
            operations.metrics().trouble.set(i64::from(trouble));
            let age = operations.follow_age().unwrap_or_default();
            operations.metrics().follow_age.set(age.as_secs_f64());
        }
        let mut body = String::new();
        match encode(&mut body, &self.registry) {
            Ok(()) => respond(StatusCode::OK, OPENMETRICS, body),
            Err(error) => text(
                StatusCode::INTERNAL_SERVER_ERROR,
                &format!("the metrics cannot be written: {error}\n"),
            ),
        }
    }
}

impl Service<Request<Incoming>> for Admin {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        ready(Ok(self.answer(&request)))
    }
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    respond(status, PLAIN, body.to_owned())
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
