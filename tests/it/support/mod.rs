//! Test support: a gRPC server with clients, and operations in each state.

pub(crate) mod assertions;
pub(crate) mod backend;
#[cfg(feature = "postgres")]
pub(crate) mod certificates;
#[cfg(feature = "cli")]
pub(crate) mod descriptor_sets;
pub(crate) mod error_details;
#[cfg(feature = "cli")]
pub(crate) mod expected_state;
pub(crate) mod fake_shared_storage;
#[cfg(feature = "cli")]
pub(crate) mod faulty_disk;
#[cfg(all(feature = "client", feature = "server"))]
pub(crate) mod flaky_channel;
pub(crate) mod handlers;
pub(crate) mod harness;
#[cfg(feature = "server")]
pub(crate) mod http_server;
#[cfg(feature = "cli")]
pub(crate) mod lossy_channel;
pub(crate) mod operations;
#[cfg(feature = "cli")]
pub(crate) mod persistent_server;
#[cfg(feature = "postgres")]
pub(crate) mod pgbouncer;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
pub(crate) mod random_balancer;
pub(crate) mod raw_requests;
#[cfg(feature = "cli")]
pub(crate) mod rng;
#[cfg(feature = "cli")]
pub(crate) mod serve_process;
pub(crate) mod test_storage;

use std::{net::SocketAddr, time::Duration};

use longrunning::{
    Any, Builder, GrpcMetricsLayer, LeaseToken, NewOperation, OperationName, Operations, Progress,
    WaitLimits, operations_server_with,
    proto::{
        google::longrunning::{
            GetOperationRequest, Operation, WaitOperationRequest, operation,
            operations_client::OperationsClient,
        },
        google::rpc,
        longrunning::v1::{
            OperationMetadata, operation_watch_client::OperationWatchClient,
            operation_worker_client::OperationWorkerClient,
        },
    },
    watch_server, worker_server_with,
};
use prost::{Message, Name};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};

pub(crate) type GrpcClient = OperationsClient<Channel>;

/// A gRPC server, or its replicas, on free ports. Stops without draining when dropped.
pub(crate) struct GrpcTestServer {
    pub(crate) operations: Operations,
    addresses: Vec<SocketAddr>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

// === impl GrpcTestServer ===

impl GrpcTestServer {
    /// Starts a server with an empty store and no workers.
    pub(crate) async fn start() -> Self {
        Self::start_with(operations_builder()).await
    }

    /// Starts a server of the operations that `builder` starts.
    pub(crate) async fn start_with(builder: Builder) -> Self {
        Self::start_with_wait_limits(builder, WaitLimits::default()).await
    }

    /// Like [`Self::start_with`], with other limits on waits.
    pub(crate) async fn start_with_wait_limits(builder: Builder, wait_limits: WaitLimits) -> Self {
        let replicas = start_replicas(builder).await;
        let (shutdown, mut addresses, mut tasks) =
            (CancellationToken::new(), Vec::new(), JoinSet::new());
        for operations in &replicas {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            let server = Server::builder()
                .layer(GrpcMetricsLayer::new(operations.metrics()))
                .add_service(operations_server_with(operations, wait_limits))
                .add_service(watch_server(operations))
                .add_service(worker_server_with(operations, wait_limits))
                .serve_with_incoming_shutdown(
                    TcpListenerStream::new(listener),
                    shutdown.clone().cancelled_owned(),
                );
            tasks.spawn(async { server.await.unwrap() });
        }
        Self {
            operations: replicas[0].clone(),
            addresses,
            shutdown,
            tasks,
        }
    }

    /// Connects to the server, or to all replicas with calls balanced between them.
    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = |address| Endpoint::from_shared(format!("http://{address}")).unwrap();
        match self.addresses.as_slice() {
            [address] => endpoint(address).connect().await.unwrap(),
            addresses => Channel::balance_list(addresses.iter().map(endpoint)),
        }
    }

    /// Connects a client of the operations service.
    pub(crate) async fn client(&self) -> GrpcClient {
        OperationsClient::new(self.channel().await).max_decoding_message_size(64 << 20)
    }

    /// Connects a client of the watch service.
    pub(crate) async fn watch_client(&self) -> OperationWatchClient<Channel> {
        OperationWatchClient::new(self.channel().await)
    }

    /// Connects a client of the worker service.
    pub(crate) async fn worker_client(&self) -> OperationWorkerClient<Channel> {
        OperationWorkerClient::new(self.channel().await)
    }

    /// Closes the listeners and waits until open calls have ended.
    pub(crate) async fn shutdown(mut self) {
        self.shutdown.cancel();
        while let Some(result) = self.tasks.join_next().await {
            result.unwrap();
        }
    }
}

/// Returns a builder with the storage backend of this test process.
pub(crate) fn operations_builder() -> Builder {
    let builder = Operations::builder();
    #[cfg(feature = "postgres")]
    if backend::is_postgres() {
        let builder = builder.storage(backend::CountingStorage(backend::IsolatedPostgres::open()));
        return if backend::has_replicas() {
            builder.read_consistency(longrunning::ReadConsistency::Linearizable)
        } else {
            builder
        };
    }
    #[cfg(feature = "sqlite")]
    if let Some(path) = backend::next_sqlite_path() {
        let storage = longrunning::SqliteStorage::open(path).unwrap();
        return builder.storage(backend::CountingStorage(storage));
    }
    builder
}

/// Starts operations; with replicas selected, also two peers that share the storage
/// opened by the last call of [`operations_builder`].
pub(crate) async fn start_replicas(builder: Builder) -> Vec<Operations> {
    let mut builders = vec![builder];
    #[cfg(feature = "postgres")]
    if backend::has_replicas() {
        for peer in backend::IsolatedPostgres::open_peers() {
            let builder = builders[0].clone().storage(backend::CountingStorage(peer));
            builders.push(builder);
        }
    }
    let mut replicas = Vec::new();
    for builder in builders {
        replicas.push(builder.start().await.unwrap());
    }
    replicas
}

/// Creates a self-executed operation and returns its name and lease token.
pub(crate) async fn create_running(operations: &Operations) -> (OperationName, LeaseToken) {
    create_leased(operations, NewOperation::self_executed("test")).await
}

/// Creates an operation that must be self-executed, and returns its name and lease token.
pub(crate) async fn create_leased(
    operations: &Operations,
    new: NewOperation,
) -> (OperationName, LeaseToken) {
    let operation = operations.create(new).await.unwrap().operation;
    (
        operation.name_owned(),
        operation
            .lease()
            .expect("expected a lease for the creator")
            .token,
    )
}

/// Creates an operation in a queue without workers.
pub(crate) async fn create_pending(operations: &Operations) -> OperationName {
    let operation = operations
        .submit("idle", string_value("input"))
        .await
        .unwrap();
    operation.name_owned()
}

/// Creates an operation and completes it successfully.
pub(crate) async fn create_succeeded(operations: &Operations) -> OperationName {
    let (name, token) = create_running(operations).await;
    operations
        .succeed(&name, token, string_value("result"))
        .await
        .unwrap();
    name
}

/// Packs a text into an `Any`.
pub(crate) fn string_value(text: &str) -> Any {
    let value = text.to_owned();
    Any {
        type_url: "type.googleapis.com/google.protobuf.StringValue".into(),
        value: value.encode_to_vec(),
    }
}

/// Builds metadata of a type unknown to the server, whose bytes are not a valid message.
pub(crate) fn custom_metadata(n: u8) -> Any {
    Any {
        type_url: "type.googleapis.com/acme.v1.RenderMetadata".into(),
        value: vec![0xff, n, 0x00, n],
    }
}

/// Decodes the server's own metadata; panics if the operation has custom metadata.
pub(crate) fn decode_metadata(operation: &Operation) -> OperationMetadata {
    let any = operation.metadata.as_ref().expect("expected metadata");
    assert_eq!(any.type_url, OperationMetadata::type_url());
    OperationMetadata::decode(any.value.as_slice()).unwrap()
}

/// Returns the error of a failed operation; panics for any other.
pub(crate) fn expect_error(operation: &Operation) -> rpc::Status {
    assert!(operation.done);
    match &operation.result {
        Some(operation::Result::Error(error)) => error.clone(),
        other => panic!("expected an error, got {other:?}"),
    }
}

/// Returns the response of a succeeded operation; panics for any other.
pub(crate) fn expect_response(operation: &Operation) -> Any {
    assert!(operation.done);
    match &operation.result {
        Some(operation::Result::Response(response)) => response.clone(),
        other => panic!("expected a response, got {other:?}"),
    }
}

/// Returns the reason of an error; panics unless it has exactly one ErrorInfo.
pub(crate) fn error_reason(error: &rpc::Status) -> String {
    let infos = error
        .details
        .iter()
        .filter(|detail| detail.type_url == rpc::ErrorInfo::type_url());
    let infos: Vec<_> = infos.collect();
    assert_eq!(infos.len(), 1, "{error:?}");
    rpc::ErrorInfo::decode(infos[0].value.as_slice())
        .unwrap()
        .reason
}

/// Returns the number in an environment variable, or `None` if it is not set.
#[cfg(feature = "cli")]
pub(crate) fn env_number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect(name))
}

pub(crate) fn get_request(name: &str) -> GetOperationRequest {
    GetOperationRequest { name: name.into() }
}

/// Builds a wait request with a timeout in milliseconds.
pub(crate) fn wait_request(name: &OperationName, millis: u64) -> WaitOperationRequest {
    let timeout = Duration::from_millis(millis).try_into().ok();
    WaitOperationRequest {
        name: name.to_string(),
        timeout,
    }
}

/// Builds progress with `done_units` of 100 units.
pub(crate) fn progress(done_units: i64) -> Progress {
    Progress {
        done_units,
        total_units: 100,
        unit: "rows".into(),
        ..Progress::default()
    }
}
