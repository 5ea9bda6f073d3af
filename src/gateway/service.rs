//! The HTTP service: it finds the call that a request means, asks the handle,
//! and answers in JSON, whatever happens.

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
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::Full;
use tokio::time::Instant;
use tonic::body::Body;
use tower::Service;

use super::{
    body::{self, BoxError},
    cors::CorsOrigins,
    json::{self, Form},
    prefix::HttpPrefix,
    query,
    routes::{self, Action, NoRoute, Route},
    status::Refusal,
    watch,
};
use crate::{
    metrics::Metrics,
    operations::{
        calls::{WaitLimits, lookup},
        operations::Operations,
    },
};

const JSON: &str = "application/json; charset=UTF-8";

/// How HTTP/JSON is served.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// What stands in front of every path. By default any version.
    pub prefix: HttpPrefix,
    /// The origins whose pages may call the server. By default none.
    pub cors_origins: CorsOrigins,
    /// How long waits last.
    pub waits: WaitLimits,
    /// The largest body of a request, in bytes; at most 64 KiB, which is much for
    /// a name and a duration, whatever is said here. Default 64 KiB.
    pub max_body_bytes: usize,
    /// How long the body of a request may take. Default 30 s.
    pub body_time: Duration,
    /// The silence after which a watch gives a sign of life. Default 15 s.
    pub heartbeat: Duration,
}

/// Serves [`Operations`] over HTTP/JSON. A tower service: it can be the fallback
/// of a tonic or axum router.
#[derive(Clone, Debug)]
pub struct Gateway(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    operations: Operations,
    options: HttpOptions,
}

/// Counts a call when it is answered, or when its client has left.
struct Count<'a> {
    metrics: &'a Metrics,
    method: &'static str,
    code: StatusCode,
    begun: Instant,
}

/// The HTTP/JSON service. What it does not know it answers with an error.
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
            waits: WaitLimits::default(),
            max_body_bytes: body::LARGEST,
            body_time: Duration::from_secs(30),
            heartbeat: Duration::from_secs(15),
        }
    }
}

// === impl Gateway ===

#[cfg_attr(
    not(feature = "server"),
    expect(dead_code, reason = "another server has routes of its own")
)]
impl Gateway {
    /// Whether a path is one of HTTP/JSON, and not of a gRPC service.
    pub(crate) fn has(&self, path: &str) -> bool {
        routes::is_ours(&self.0.options.prefix, path)
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
            let answer = AssertUnwindSafe(inner.answer(request)).catch_unwind().await;
            Ok(answer.unwrap_or_else(|_| {
                tracing::error!("an HTTP call panicked");
                inner.refused(Refusal::internal(), Form::default())
            }))
        })
    }
}

// === impl Inner ===

impl Inner {
    async fn answer<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let route = routes::find(&self.options.prefix, &parts.method, parts.uri.path());
        let mut count = Count::new(self.operations.metrics(), &route);
        let mut response = match route {
            Ok(route) => self.call(route, &parts, body).await,
            Err(NoRoute::Method(allowed)) if parts.method == Method::OPTIONS => options(allowed),
            Err(error) => {
                let prefix = self.options.prefix.example();
                self.refused(error.refusal(prefix), Form::default())
            }
        };
        count.code = response.status();
        drop(count);
        let cors = &self.options.cors_origins;
        cors.permit(&parts.method, &parts.headers, response.headers_mut());
        if parts.method == Method::HEAD {
            behead(&mut response);
        }
        response
    }

    async fn call<B>(&self, route: Route, parts: &Parts, body: B) -> Response<Body>
    where
        B: http_body::Body,
        B::Error: Into<BoxError>,
    {
        let mut form = Form::default();
        let done = self.perform(route, parts, body, &mut form).await;
        done.unwrap_or_else(|refusal| self.refused(refusal, form))
    }

    async fn perform<B>(
        &self,
        Route { action, name }: Route,
        parts: &Parts,
        body: B,
        form: &mut Form,
    ) -> Result<Response<Body>, Refusal>
    where
        B: http_body::Body,
        B::Error: Into<BoxError>,
    {
        let reads = matches!(action, Action::Get | Action::List | Action::Watch);
        if !reads && self.options.cors_origins.forbid(parts) {
            return Err(Refusal::origin());
        }
        let query = query::parse(action, parts.uri.query().unwrap_or_default())?;
        *form = query.form;
        let (operations, options, form) = (&self.operations, &self.options, query.form);
        let types = operations.types();
        let body = match action {
            Action::Cancel | Action::Wait => {
                let limit = options.max_body_bytes.min(body::LARGEST);
                body::read(&parts.headers, body, limit, options.body_time).await?
            }
            _ => {
                body::refuse(&parts.headers, body, options.body_time).await?;
                Bytes::new()
            }
        };
        Ok(match action {
            Action::List => {
                let mut list = query.list;
                list.name = name;
                let page = operations.list(&list).await?;
                json(StatusCode::OK, form.page(types, page).await)
            }
            Action::Get => {
                let operation = operations.look(&lookup(name)?).await?;
                json(StatusCode::OK, form.operation(types, operation).await)
            }
            Action::Delete => {
                operations.delete(&lookup(name)?).await?;
                empty()
            }
            Action::Cancel => {
                json::read_cancel(types, &name, &body)?;
                operations.cancel(&lookup(name)?).await?;
                empty()
            }
            Action::Wait => {
                let timeout = json::read_wait(types, &name, &body)?;
                let limit = options.waits.limit(timeout, None);
                let operation = operations.wait(&lookup(name)?, limit).await?;
                json(StatusCode::OK, form.operation(types, operation).await)
            }
            Action::Watch => {
                let name = lookup(name)?;
                let current = operations.look(&name).await?;
                if watch::has_seen_the_end(&parts.headers) && current.is_done() {
                    return Ok(status_only(StatusCode::NO_CONTENT));
                }
                let watch = operations.watch_from(&current)?;
                let events = watch::events(watch, types.clone(), form, options.heartbeat);
                response(StatusCode::OK, watch::KIND, events)
            }
        })
    }

    fn refused(&self, refusal: Refusal, form: Form) -> Response<Body> {
        let envelope = refusal.envelope(self.operations.types());
        let mut response = json(refusal.code, form.write(&envelope));
        if let Some(header) = refusal.header {
            let (name, value) = *header;
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// `google.protobuf.Empty`. Without the braces, Google's clients for Node and
/// Rust take the answer for an error.
fn empty() -> Response<Body> {
    json(StatusCode::OK, Bytes::from_static(b"{}"))
}

fn json(code: StatusCode, text: Bytes) -> Response<Body> {
    response(code, JSON, Body::new(Full::new(text)))
}

fn response(code: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers: HeaderMap = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        // An operation changes; a cache would show an old one.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // What workers write is never a page, whatever it looks like.
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
    ]
    .into_iter()
    .collect();
    *response.headers_mut() = headers;
    response
}

/// The answer to OPTIONS.
fn options(allowed: &'static str) -> Response<Body> {
    let mut response = status_only(StatusCode::NO_CONTENT);
    let allowed = HeaderValue::from_static(allowed);
    response.headers_mut().insert(header::ALLOW, allowed);
    response
}

fn status_only(code: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = code;
    response
}

/// Takes the body off an answer to HEAD, which still tells its length.
fn behead(response: &mut Response<Body>) {
    if let Some(length) = http_body::Body::size_hint(response.body()).exact() {
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    *response.body_mut() = Body::empty();
}

// === impl Count ===

impl<'a> Count<'a> {
    fn new(metrics: &'a Metrics, route: &Result<Route, NoRoute>) -> Self {
        Self {
            metrics,
            method: route.as_ref().map_or("other", |route| route.action.rpc()),
            code: StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            begun: Instant::now(),
        }
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        let seconds = self.begun.elapsed().as_secs_f64();
        self.metrics.http(self.method, self.code.as_u16(), seconds);
    }
}
