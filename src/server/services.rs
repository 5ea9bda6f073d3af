//! The services of the clients' listener, and which of them a path belongs to.
//! What they answer is their own affair.

use std::{
    convert::Infallible,
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use tonic::{Status, body::Body, server::NamedService};
use tonic_health::{ServingStatus, server::HealthReporter};
use tonic_reflection::server::Builder;
use tower::{Service, util::BoxCloneSyncService};

use super::config::Config;
use crate::{
    demo::service::{ChecksumService, ChecksumsServer, checksums_server},
    grpc::{
        operations::{OperationsServer, OperationsService, operations_server_with},
        watch::{OperationWatchServer, WatchService, watch_server},
    },
    operations::operations::Operations,
    proto::FILE_DESCRIPTOR_SET,
};

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;
/// A service that is called too rarely for the cost of a box to matter.
type Rare = BoxCloneSyncService<Request<Incoming>, Response<Body>, Infallible>;

/// All services of one listener. A match on the path is all the routing that
/// six services need.
#[derive(Clone)]
pub(super) struct Services(Arc<Each>);

/// Each of them, cloned only when it is called.
struct Each {
    operations: OperationsServer<OperationsService>,
    watch: OperationWatchServer<WatchService>,
    checksums: Option<ChecksumsServer<ChecksumService>>,
    health: Rare,
    reflection: Rare,
    reflection_alpha: Rare,
}

/// Tells the health service whether the server serves.
#[derive(Clone, Debug)]
pub(super) struct Health(HealthReporter, bool);

const CHECKSUMS: &str = <ChecksumsServer<ChecksumService> as NamedService>::NAME;
const HEALTH: &str = tonic_health::pb::health_server::SERVICE_NAME;
const OPERATIONS: &str = <OperationsServer<OperationsService> as NamedService>::NAME;
const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";
const REFLECTION_ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";
const WATCH: &str = <OperationWatchServer<WatchService> as NamedService>::NAME;

// === impl Services ===

impl Services {
    /// The services around `operations`, and the switch of their health.
    pub(super) fn new(operations: &Operations, config: &Config) -> (Self, Health) {
        let (reporter, health) = tonic_health::server::health_reporter();
        let limit = config.max_message_bytes;
        let checksums = config
            .demo
            .as_ref()
            .map(|root| checksums_server(operations, root.clone()));
        let has_demo = checksums.is_some();
        let services = Each {
            operations: operations_server_with(operations, config.waits)
                .max_decoding_message_size(limit),
            watch: watch_server(operations).max_decoding_message_size(limit),
            checksums: checksums.map(|checksums| checksums.max_decoding_message_size(limit)),
            health: Rare::new(health),
            reflection: Rare::new(
                reflection(has_demo)
                    .build_v1()
                    .expect("the descriptors are our own"),
            ),
            reflection_alpha: Rare::new(
                reflection(has_demo)
                    .build_v1alpha()
                    .expect("the descriptors are our own"),
            ),
        };
        (Self(Arc::new(services)), Health(reporter, has_demo))
    }
}

fn reflection<'a>(has_demo: bool) -> Builder<'a> {
    let builder = Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
        .with_service_name(OPERATIONS)
        .with_service_name(WATCH)
        .with_service_name(HEALTH)
        .with_service_name(REFLECTION)
        .with_service_name(REFLECTION_ALPHA);
    if has_demo {
        builder.with_service_name(CHECKSUMS)
    } else {
        builder
    }
}

impl Service<Request<Incoming>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        let service = path
            .get(1..)
            .and_then(|path| path.split('/').next())
            .unwrap_or_default();
        let each = &self.0;
        match service {
            OPERATIONS => each.operations.clone().call(request),
            WATCH => each.watch.clone().call(request),
            HEALTH => each.health.clone().call(request),
            REFLECTION => each.reflection.clone().call(request),
            REFLECTION_ALPHA => each.reflection_alpha.clone().call(request),
            CHECKSUMS if let Some(checksums) = &each.checksums => checksums.clone().call(request),
            _ => Box::pin(ready(Ok(unknown(&request)))),
        }
    }
}

/// The answer to a path that no service has. Somebody with a browser or curl
/// gets a sentence instead of an empty gRPC error.
fn unknown(request: &Request<Incoming>) -> Response<Body> {
    let is_grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if is_grpc
        || (request.version() == Version::HTTP_2 && request.headers().contains_key(header::TE))
    {
        return Status::unimplemented("").into_http();
    }
    let text = "This port speaks gRPC over HTTP/2; try `grpcurl -plaintext HOST:PORT list`.\n";
    let mut response = Response::new(Body::new(http_body_util::Full::from(text)));
    *response.status_mut() = StatusCode::NOT_FOUND;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

// === impl Health ===

impl Health {
    /// Tells every service's health, and that of the server as a whole.
    pub(super) async fn set(&self, serves: bool) {
        let status = if serves {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        let demo = self.1.then_some(CHECKSUMS);
        for service in ["", OPERATIONS, WATCH].into_iter().chain(demo) {
            self.0.set_service_status(service, status).await;
        }
    }
}
