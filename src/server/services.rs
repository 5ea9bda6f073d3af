//! Builds the services of each listener and routes requests to them by path.

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
        admin::{AdminService, OperationAdminServer, admin_server},
        operations::{OperationsServer, OperationsService, operations_server_with},
        watch::{OperationWatchServer, WatchService, watch_server},
        worker::{OperationWorkerServer, WorkerService, worker_server_with},
    },
    reflection::service::reflection_server,
    service::operations::Operations,
    types::TypeRegistry,
};

type BoxResponseFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;
/// For services that are called too rarely for the cost of a box to matter.
type BoxedService = BoxCloneSyncService<Request<Incoming>, Response<Body>, Infallible>;

/// Routes requests to the services of one listener.
#[derive(Clone)]
pub(super) struct ServiceRouter {
    services: Arc<ListenerServices>,
}

/// The services of one listener. Cloned one by one, when called.
struct ListenerServices {
    kind: ListenerKind,
    health: BoxedService,
    reflection: BoxedService,
}

/// The services that depend on the kind of listener.
enum ListenerKind {
    Clients {
        operations: OperationsServer<OperationsService>,
        watch: OperationWatchServer<WatchService>,
        checksums: Option<ChecksumsServer<ChecksumService>>,
        gateway: Gateway,
    },
    Workers {
        worker: OperationWorkerServer<WorkerService>,
        admin: OperationAdminServer<AdminService>,
    },
}

/// The health service of one listener and the services whose status it reports.
#[derive(Clone, Debug)]
pub(super) struct ListenerHealth {
    reporter: HealthReporter,
    service_names: Vec<&'static str>,
}

const ADMIN: &str = <OperationAdminServer<AdminService> as NamedService>::NAME;
const CHECKSUMS: &str = <ChecksumsServer<ChecksumService> as NamedService>::NAME;
const HEALTH: &str = tonic_health::pb::health_server::SERVICE_NAME;
const OPERATIONS: &str = <OperationsServer<OperationsService> as NamedService>::NAME;
const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";
const REFLECTION_ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";
const REFLECTION_METHOD: &str = "/ServerReflectionInfo";
const REFLECTION_PATH: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const WATCH: &str = <OperationWatchServer<WatchService> as NamedService>::NAME;
const WORKER: &str = <OperationWorkerServer<WorkerService> as NamedService>::NAME;

// === impl ServiceRouter ===

impl ServiceRouter {
    /// Builds the services of the client listener.
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

    /// Builds the services of the worker listener, which clients must not reach.
    pub(super) fn for_workers(operations: &Operations, config: &Config) -> (Self, ListenerHealth) {
        let worker = worker_server_with(operations, config.wait_limits)
            .max_decoding_message_size(config.max_message_bytes);
        let admin = admin_server(operations).max_decoding_message_size(config.max_message_bytes);
        let kind = ListenerKind::Workers { worker, admin };
        Self::new(kind, vec![WORKER, ADMIN], operations.types())
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
        let health = ListenerHealth {
            reporter,
            service_names: names,
        };
        let services = Arc::new(services);
        (Self { services }, health)
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
        use ListenerKind::{Clients, Workers};

        if !can_be_grpc(&request) {
            return self.services.fallback(request);
        }
        let path = request.uri().path();
        let service = path.split('/').nth(1).unwrap_or_default();
        let services = &self.services;
        match (service, &services.kind) {
            (OPERATIONS, Clients { operations, .. }) => operations.clone().call(request),
            (WATCH, Clients { watch, .. }) => watch.clone().call(request),
            (
                CHECKSUMS,
                Clients {
                    checksums: Some(checksums),
                    ..
                },
            ) => checksums.clone().call(request),
            (WORKER, Workers { worker, .. }) => worker.clone().call(request),
            (ADMIN, Workers { admin, .. }) => admin.clone().call(request),
            (HEALTH, _) => services.health.clone().call(request),
            (REFLECTION, _) => services.reflection.clone().call(request),
            // Both versions have the same messages.
            (REFLECTION_ALPHA, _) if path.ends_with(REFLECTION_METHOD) => {
                *request.uri_mut() = Uri::from_static(REFLECTION_PATH);
                services.reflection.clone().call(request)
            }
            _ => services.fallback(request),
        }
    }
}

// === impl ListenerServices ===

impl ListenerServices {
    /// Answers a request whose path belongs to no gRPC service. Only gRPC clients get a
    /// gRPC error: it has the HTTP code 200, which other clients take for success.
    fn fallback(&self, request: Request<Incoming>) -> BoxResponseFuture {
        let path = request.uri().path();
        let response = match &self.kind {
            ListenerKind::Clients { gateway, .. }
                if gateway.handles_path(path) || !is_grpc(&request) =>
            {
                return gateway.clone().call(request);
            }
            ListenerKind::Workers { .. } if !is_grpc(&request) => not_found_response(),
            _ => Status::unimplemented("").into_http(),
        };
        Box::pin(ready(Ok(response)))
    }
}

/// Returns `true` if the method and HTTP version allow gRPC.
fn can_be_grpc(request: &Request<Incoming>) -> bool {
    request.method() == Method::POST && request.version() == Version::HTTP_2
}

/// Returns `true` if the client expects a gRPC response.
fn is_grpc(request: &Request<Incoming>) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
        && can_be_grpc(request)
}

/// Returns the response of the worker listener to a client that does not speak gRPC,
/// such as a browser or curl.
fn not_found_response() -> Response<Body> {
    let text = "This port speaks gRPC over HTTP/2; try `grpcurl -plaintext HOST:PORT list`.\n";
    let mut response = Response::new(Body::new(http_body_util::Full::from(text)));
    *response.status_mut() = StatusCode::NOT_FOUND;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// Sets the status of every service, and of every listener as a whole (name "").
pub(super) async fn set_serving(listeners: &[ListenerHealth], is_serving: bool) {
    let status = if is_serving {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    };
    for listener in listeners {
        for name in [""].iter().chain(&listener.service_names) {
            listener.reporter.set_service_status(*name, status).await;
        }
    }
}
