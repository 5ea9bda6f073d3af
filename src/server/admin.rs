//! Serves `/livez`, `/readyz` and `/metrics` on the admin listener.

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

use super::log_queue::dropped_lines;
use crate::{metrics::Metrics, service::operations::Operations};

const OPENMETRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN_TEXT_CONTENT_TYPE: &str = "text/plain; charset=utf-8";

/// The service of the admin listener.
#[derive(Clone, Debug)]
pub(super) struct AdminService {
    registry: Arc<Registry>,
    readiness: Readiness,
}

/// Readiness of the server. Clones share one state.
#[derive(Clone, Debug, Default)]
pub(super) struct Readiness {
    state: Arc<RwLock<ServerState>>,
}

#[derive(Debug, Default)]
enum ServerState {
    /// The store is loading.
    #[default]
    Starting,
    Serving(Operations),
    Stopping,
}

// === impl Readiness ===

impl Readiness {
    pub(super) fn set_serving(&self, operations: &Operations) {
        *self.state.write() = ServerState::Serving(operations.clone());
    }

    pub(super) fn set_stopping(&self) {
        *self.state.write() = ServerState::Stopping;
    }

    /// Returns why the server is not ready, or `None` if it is.
    fn not_ready_reason(&self) -> Option<String> {
        match &*self.state.read() {
            ServerState::Starting => Some("starting: loading operations".to_owned()),
            ServerState::Serving(operations) => operations
                .write_error()
                .map(|error| format!("writes are failing, reads are served: {error}")),
            ServerState::Stopping => Some("shutting down".to_owned()),
        }
    }
}

// === impl AdminService ===

impl AdminService {
    pub(super) fn new(metrics: &Metrics, readiness: Readiness) -> Self {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        // The log is that of the process, not of this server.
        registry
            .sub_registry_with_prefix("longrunning")
            .register(
                "log_dropped_lines",
                "Lines of the log of this process that were lost, because standard error was not read or failed",
                dropped_lines(),
            );
        Self {
            registry: Arc::new(registry),
            readiness,
        }
    }

    fn handle(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let text = "method not allowed; use GET or HEAD\n";
            let mut response = text_response(StatusCode::METHOD_NOT_ALLOWED, text);
            let allow = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(header::ALLOW, allow);
            return response;
        }
        let not_ready = match request.uri().path() {
            "/livez" => None,
            "/readyz" => self.readiness.not_ready_reason(),
            "/metrics" => return self.metrics_response(),
            _ => {
                let text = "not found; available paths: /livez, /readyz, /metrics\n";
                return text_response(StatusCode::NOT_FOUND, text);
            }
        };
        match not_ready.map(|reason| format!("not ready: {reason}\n")) {
            None => text_response(StatusCode::OK, "ok\n"),
            Some(text) => text_response(StatusCode::SERVICE_UNAVAILABLE, text),
        }
    }

    fn metrics_response(&self) -> Response<Full<Bytes>> {
        if let ServerState::Serving(operations) = &*self.readiness.state.read() {
            let (metrics, is_writable) = (operations.metrics(), operations.write_error().is_none());
            metrics.store_writable.set(is_writable.into());
            let lag = operations.replication_lag().unwrap_or_default();
            metrics.replication_lag.set(lag.as_secs_f64());
        }
        let mut body = String::new();
        match encode(&mut body, &self.registry) {
            Ok(()) => build_response(StatusCode::OK, OPENMETRICS_CONTENT_TYPE, body),
            Err(error) => {
                let text = format!("failed to encode metrics: {error}\n");
                text_response(StatusCode::INTERNAL_SERVER_ERROR, text)
            }
        }
    }
}

impl Service<Request<Incoming>> for AdminService {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        ready(Ok(self.handle(&request)))
    }
}

fn text_response(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    build_response(status, PLAIN_TEXT_CONTENT_TYPE, body)
}

fn build_response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
