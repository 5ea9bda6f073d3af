//! The HTTP/JSON service: routes requests, calls [`Operations`] and responds in JSON.

use std::{
    convert::Infallible,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::Full;
use tokio::time::Instant;
use tonic::body::Body;
use tower::Service;

use super::{
    body::{self, BoxError},
    cors::CorsOrigins,
    http_error::HttpError,
    json::{self, JsonFormat},
    prefix::HttpPrefix,
    query,
    routes::{self, Action, Route, RouteError},
    watch,
};
use crate::{
    metrics::Metrics,
    service::{
        operations::Operations,
        request_params::{WaitLimits, parse_lookup_name},
    },
};

const JSON_CONTENT_TYPE: &str = "application/json; charset=UTF-8";
/// `google.protobuf.Empty`. Google's clients for Node and Rust fail on a body without the
/// braces.
const EMPTY_JSON: Bytes = Bytes::from_static(b"{}");

/// Options of the HTTP/JSON [`gateway`]. Start from the default and set fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HttpOptions {
    /// Prefix of every path. Default: any version.
    pub prefix: HttpPrefix,
    /// Origins whose pages may call the server. Default: none.
    pub cors_origins: CorsOrigins,
    /// Timeouts of waits.
    pub wait_limits: WaitLimits,
    /// Maximum size of a request body, in bytes. Values above 64 KiB count as 64 KiB.
    /// Default: 64 KiB.
    pub max_body_bytes: usize,
    /// Time limit for the body of a request. Default: 30 s.
    pub body_read_timeout: Duration,
    /// Time without an event after which a watch sends a comment. Default: 15 s.
    pub sse_keepalive_interval: Duration,
}

/// Tower service that serves [`Operations`] over HTTP/JSON. It can be the fallback of a
/// tonic or axum router.
#[derive(Clone, Debug)]
pub struct Gateway(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    operations: Operations,
    options: HttpOptions,
}

/// Records a request when dropped. The code stays 499 if the client disconnects before
/// the response.
struct RequestTimer<'a> {
    metrics: &'a Metrics,
    method: &'static str,
    code: StatusCode,
    started_at: Instant,
}

/// Returns the HTTP/JSON service. It answers unknown paths with a JSON error.
///
/// ```
/// use longrunning::{HttpOptions, Operations, gateway, operations_server};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let operations = Operations::builder().start().await?;
/// let grpc = tonic::service::Routes::new(operations_server(&operations));
/// let http = gateway(&operations, HttpOptions::default());
/// // For axum::serve, which speaks HTTP/1.1 and HTTP/2.
/// let router = grpc.into_axum_router().fallback_service(http);
/// # let _ = router;
/// # Ok(())
/// # }
/// ```
pub fn gateway(operations: &Operations, options: HttpOptions) -> Gateway {
    Gateway(Arc::new(Inner {
        operations: operations.clone(),
        options,
    }))
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            prefix: HttpPrefix::default(),
            cors_origins: CorsOrigins::default(),
            wait_limits: WaitLimits::default(),
            max_body_bytes: body::MAX_BODY_BYTES,
            body_read_timeout: Duration::from_secs(30),
            sse_keepalive_interval: Duration::from_secs(15),
        }
    }
}

// === impl Gateway ===

#[cfg_attr(
    not(feature = "server"),
    expect(
        dead_code,
        reason = "only the program routes gRPC and HTTP/JSON on one port"
    )
)]
impl Gateway {
    /// Returns `true` if a path belongs to HTTP/JSON and not to a gRPC service.
    pub(crate) fn handles_path(&self, path: &str) -> bool {
        routes::is_gateway_path(&self.0.options.prefix, path)
    }
}

impl<B> Service<Request<B>> for Gateway
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let result = AssertUnwindSafe(inner.handle(request)).catch_unwind().await;
            Ok(result.unwrap_or_else(|_| {
                tracing::error!("HTTP call panicked");
                inner.error_response(HttpError::internal(), JsonFormat::default())
            }))
        })
    }
}

// === impl Inner ===

impl Inner {
    async fn handle<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let route = routes::match_route(&self.options.prefix, &parts.method, parts.uri.path());
        let action = route.as_ref().map(|route| route.action);
        let mut timer = RequestTimer {
            metrics: self.operations.metrics(),
            method: action.map_or("other", Action::rpc_name),
            code: StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            started_at: Instant::now(),
        };
        let mut response = match route {
            Ok(route) => {
                let mut format = JsonFormat::default();
                let result = self.execute(route, &parts, body, &mut format).await;
                result.unwrap_or_else(|error| self.error_response(error, format))
            }
            Err(RouteError::MethodNotAllowed(allowed)) if parts.method == Method::OPTIONS => {
                options_response(allowed)
            }
            Err(error) => {
                let prefix = self.options.prefix.example();
                self.error_response(error.into_http_error(prefix), JsonFormat::default())
            }
        };
        timer.code = response.status();
        drop(timer);
        let cors = &self.options.cors_origins;
        cors.add_cors_headers(&parts.method, &parts.headers, response.headers_mut());
        if parts.method == Method::HEAD {
            strip_body(&mut response);
        }
        response
    }

    /// Executes a call. Sets `format` for the response to an error.
    async fn execute<B>(
        &self,
        Route { action, name }: Route,
        parts: &Parts,
        body: B,
        format: &mut JsonFormat,
    ) -> Result<Response<Body>, HttpError>
    where
        B: http_body::Body,
        B::Error: Into<BoxError>,
    {
        let is_read_only = matches!(action, Action::Get | Action::List | Action::Watch);
        if !is_read_only && self.options.cors_origins.is_forbidden(parts) {
            return Err(HttpError::origin_not_allowed());
        }
        let query = query::parse(action, parts.uri.query().unwrap_or_default())?;
        *format = query.format;
        let (operations, options, format) = (&self.operations, &self.options, query.format);
        let types = operations.types();
        let max_bytes = matches!(action, Action::Cancel | Action::Wait)
            .then_some(options.max_body_bytes.min(body::MAX_BODY_BYTES));
        let read_timeout = options.body_read_timeout;
        let body = body::read(&parts.headers, body, max_bytes, read_timeout).await?;
        let json = match action {
            Action::List => {
                let mut request = query.list_request;
                request.name = name;
                let page = operations.list(&request).await?;
                format.serialize_page(types, page).await
            }
            Action::Get => {
                let operation = operations.get(&parse_lookup_name(name)?).await?;
                format.serialize_operation(types, operation).await
            }
            Action::Delete => {
                operations.delete(&parse_lookup_name(name)?).await?;
                EMPTY_JSON
            }
            Action::Cancel => {
                json::parse_cancel_body(types, &name, &body)?;
                operations.cancel(&parse_lookup_name(name)?).await?;
                EMPTY_JSON
            }
            Action::Wait => {
                let timeout = json::parse_wait_body(types, &name, &body)?;
                let timeout = options.wait_limits.effective_timeout(timeout, None);
                let name = parse_lookup_name(name)?;
                let operation = operations.wait(&name, timeout).await?;
                format.serialize_operation(types, operation).await
            }
            Action::Watch => {
                let current = operations.get(&parse_lookup_name(name)?).await?;
                if watch::has_received_final_event(&parts.headers) && current.is_done() {
                    return Ok(no_content_response());
                }
                let (watch, types) = (operations.watch_from(&current)?, types.clone());
                let interval = options.sse_keepalive_interval;
                let events = watch::event_stream_body(watch, types, format, interval);
                let content_type = watch::EVENT_STREAM_CONTENT_TYPE;
                return Ok(build_response(StatusCode::OK, content_type, events));
            }
        };
        Ok(json_response(StatusCode::OK, json))
    }

    fn error_response(&self, error: HttpError, format: JsonFormat) -> Response<Body> {
        let body = error.envelope(self.operations.types());
        let mut response = json_response(error.code, format.serialize(&body));
        if let Some(header) = error.header {
            let (name, value) = *header;
            response.headers_mut().insert(name, value);
        }
        response
    }
}

fn json_response(code: StatusCode, text: Bytes) -> Response<Body> {
    build_response(code, JSON_CONTENT_TYPE, Body::new(Full::new(text)))
}

fn build_response(code: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    // Operations change; a cached response would be stale.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Browsers must not interpret data of workers as HTML.
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

/// Returns the response to OPTIONS.
fn options_response(allowed: &'static str) -> Response<Body> {
    let mut response = no_content_response();
    let allowed = HeaderValue::from_static(allowed);
    response.headers_mut().insert(header::ALLOW, allowed);
    response
}

fn no_content_response() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// Removes the body of a response to HEAD and sets `content-length` to its length.
fn strip_body(response: &mut Response<Body>) {
    if let Some(length) = http_body::Body::size_hint(response.body()).exact() {
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    *response.body_mut() = Body::empty();
}

// === impl RequestTimer ===

impl Drop for RequestTimer<'_> {
    fn drop(&mut self) {
        let seconds = self.started_at.elapsed().as_secs_f64();
        self.metrics
            .record_http_request(self.method, self.code.as_u16(), seconds);
    }
}
