//! The services of each listener, and which of them a path belongs to. What
//! they answer is their own affair.

use std::{
    convert::Infallible,
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Method, Request, Response, StatusCode, Uri, Version, header};
use hyper::body::Incoming;
use tonic::{Status, body::Body, server::NamedService};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::{Service, util::BoxCloneSyncService};

use super::config::Config;
use crate::{
    demo::service::{ChecksumService, ChecksumsServer, checksums_server},
    gateway::service::{Gateway, HttpOptions, gateway},
    grpc::{
        operations::{OperationsServer, OperationsService, operations_server_with},
        watch::{OperationWatchServer, WatchService, watch_server},
        worker::{OperationWorkerServer, WorkerService, worker_server_with},
    },
    reflection::service::reflection_server,
    service::operations::Operations,
    types::TypeRegistry,
};

type BoxResponseFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;
/// A service that is called too rarely for the cost of a box to matter.
type BoxedService = BoxCloneSyncService<Request<Incoming>, Response<Body>, Infallible>;

/// All services of one listener. A match on the path is all the routing that
/// so few services need.
#[derive(Clone)]
pub(super) struct ServiceRouter(Arc<ListenerServices>);

/// Each of them, cloned only when it is called.
struct ListenerServices {
    kind: ListenerKind,
    health: BoxedService,
    reflection: BoxedService,
}

/// The services that one listener has and the other has not.
enum ListenerKind {
    Clients {
        operations: OperationsServer<OperationsService>,
        watch: OperationWatchServer<WatchService>,
        checksums: Option<ChecksumsServer<ChecksumService>>,
        gateway: Gateway,
    },
    Workers(OperationWorkerServer<WorkerService>),
}

/// Tells the health services whether the server serves.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerHealth(Vec<ListenerHealth>);

/// The health service of one listener, and the services that it tells of.
#[derive(Clone, Debug)]
pub(super) struct ListenerHealth(HealthReporter, Vec<&'static str>);

const CHECKSUMS: &str = <ChecksumsServer<ChecksumService> as NamedService>::NAME;
const HEALTH: &str = tonic_health::pb::health_server::SERVICE_NAME;
const OPERATIONS: &str = <OperationsServer<OperationsService> as NamedService>::NAME;
const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";
const REFLECTION_ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";
const REFLECTION_METHOD: &str = "/ServerReflectionInfo";
const REFLECTION_PATH: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const WATCH: &str = <OperationWatchServer<WatchService> as NamedService>::NAME;
const WORKER: &str = <OperationWorkerServer<WorkerService> as NamedService>::NAME;

// === impl Services ===

impl ServiceRouter {
    /// What clients reach.
    pub(super) fn for_clients(operations: &Operations, config: &Config) -> (Self, ListenerHealth) {
        let limit = config.max_message_bytes;
        let checksums = config.demo_directory.as_ref().map(|root| {
            checksums_server(operations, root.clone()).max_decoding_message_size(limit)
        });
        let mut names = vec![OPERATIONS, WATCH];
        names.extend(checksums.as_ref().map(|_| CHECKSUMS));
        let operations_service = operations_server_with(operations, config.wait_limits);
        let http = HttpOptions {
            wait_limits: config.wait_limits,
            max_body_bytes: limit,
            ..config.http.clone()
        };
        let kind = ListenerKind::Clients {
            operations: operations_service.max_decoding_message_size(limit),
            watch: watch_server(operations).max_decoding_message_size(limit),
            checksums,
            gateway: gateway(operations, http),
        };
        Self::new(kind, names, operations.types())
    }

    /// What workers and creators reach, and clients must not.
    pub(super) fn for_workers(operations: &Operations, config: &Config) -> (Self, ListenerHealth) {
        let worker = worker_server_with(operations, config.wait_limits)
            .max_decoding_message_size(config.max_message_bytes);
        Self::new(
            ListenerKind::Workers(worker),
            vec![WORKER],
            operations.types(),
        )
    }

    fn new(
        kind: ListenerKind,
        names: Vec<&'static str>,
        types: &TypeRegistry,
    ) -> (Self, ListenerHealth) {
        let (reporter, health) = tonic_health::server::health_reporter();
        let services = [HEALTH, REFLECTION, REFLECTION_ALPHA];
        let services = services.into_iter().chain(names.iter().copied()).collect();
        let services = ListenerServices {
            kind,
            health: BoxedService::new(health),
            reflection: BoxedService::new(reflection_server(types, services)),
        };
        (Self(Arc::new(services)), ListenerHealth(reporter, names))
    }
}

impl Service<Request<Incoming>> for ServiceRouter {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Incoming>) -> BoxResponseFuture {
        // This costs a gRPC call two comparisons.
        if !can_be_grpc(&request) {
            return self.0.fallback(request);
        }
        let path = request.uri().path();
        let service = path
            .get(1..)
            .and_then(|path| path.split('/').next())
            .unwrap_or_default();
        let services = &self.0;
        match (service, &services.kind) {
            (OPERATIONS, ListenerKind::Clients { operations, .. }) => {
                operations.clone().call(request)
            }
            (WATCH, ListenerKind::Clients { watch, .. }) => watch.clone().call(request),
            (
                CHECKSUMS,
                ListenerKind::Clients {
                    checksums: Some(checksums),
                    ..
                },
            ) => checksums.clone().call(request),
            (WORKER, ListenerKind::Workers(worker)) => worker.clone().call(request),
            (HEALTH, _) => services.health.clone().call(request),
            (REFLECTION, _) => services.reflection.clone().call(request),
            // The messages of both versions are the same.
            (REFLECTION_ALPHA, _) if path.ends_with(REFLECTION_METHOD) => {
                *request.uri_mut() = Uri::from_static(REFLECTION_PATH);
                services.reflection.clone().call(request)
            }
            _ => services.fallback(request),
        }
    }
}

// === impl Each ===

impl ListenerServices {
    /// The answer to what no gRPC service has. One in the form of gRPC is a 200
    /// to everybody else, who would take it for success.
    fn fallback(&self, request: Request<Incoming>) -> BoxResponseFuture {
        let is_http = match &self.kind {
            ListenerKind::Clients { gateway, .. } => gateway.handles_path(request.uri().path()),
            ListenerKind::Workers(_) => false,
        };
        if !is_http && is_grpc(&request) {
            return Box::pin(ready(Ok(Status::unimplemented("").into_http())));
        }
        match &self.kind {
            ListenerKind::Clients { gateway, .. } => gateway.clone().call(request),
            ListenerKind::Workers(_) => Box::pin(ready(Ok(not_found_response()))),
        }
    }
}

/// Whether a request can be gRPC, by its method and version.
fn can_be_grpc(request: &Request<Incoming>) -> bool {
    request.method() == Method::POST && request.version() == Version::HTTP_2
}

/// Whether somebody expects an answer in the form of gRPC.
fn is_grpc(request: &Request<Incoming>) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let has_grpc_content_type =
        content_type.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    has_grpc_content_type && can_be_grpc(request)
}

/// The answer to a path that workers cannot call. Somebody with a browser or
/// curl gets a sentence instead of an empty gRPC error.
fn not_found_response() -> Response<Body> {
    let text = "This port speaks gRPC over HTTP/2; try `grpcurl -plaintext HOST:PORT list`.\n";
    let mut response = Response::new(Body::new(http_body_util::Full::from(text)));
    *response.status_mut() = StatusCode::NOT_FOUND;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

// === impl Health ===

impl ServerHealth {
    /// Adds what one listener serves.
    pub(super) fn add(&mut self, switch: ListenerHealth) {
        self.0.push(switch);
    }

    /// Tells every service's health, and that of each listener as a whole.
    pub(super) async fn set_serving(&self, is_serving: bool) {
        let status = if is_serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for ListenerHealth(reporter, names) in &self.0 {
            for name in [""].iter().chain(names) {
                reporter.set_service_status(*name, status).await;
            }
        }
    }
}
