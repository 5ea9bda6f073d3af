//! What every test needs: a server with clients, and operations in each stage.
//! Looking into errors is in `problem`, journals of the tests' own in `journal`,
//! work as workers elsewhere do it in `shop`, certificates for TLS in `certificates`,
//! bytes over HTTP in `http`, a bad line to workers in `faults`, a database in
//! `postgres`, a pooler before it in `pooler`, a table that servers share in `table`,
//! a line that can be cut in `line`, the program over a file in `stored`, what must be
//! true of that in `ledger`.

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
use tonic::transport::{Channel, Endpoint, Server as Stock};

pub(crate) type GrpcClient = OperationsClient<Channel>;

/// A server on a port of its own. Stops, without grace, when dropped.
pub(crate) struct GrpcTestServer {
    pub(crate) operations: Operations,
    addresses: Vec<SocketAddr>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

// === impl Server ===

impl GrpcTestServer {
    /// A server with an empty store and no workers.
    pub(crate) async fn start() -> Self {
        Self::start_with(operations_builder()).await
    }

    /// A server of these operations.
    pub(crate) async fn start_with(builder: Builder) -> Self {
        Self::start_with_wait_limits(builder, WaitLimits::default()).await
    }

    /// A server of these operations, with other limits on waits.
    pub(crate) async fn start_with_wait_limits(builder: Builder, wait_limits: WaitLimits) -> Self {
        let replicas = start_replicas(builder).await;
        let (stop, mut addresses, mut tasks) =
            (CancellationToken::new(), Vec::new(), JoinSet::new());
        for operations in &replicas {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            let server = Stock::builder()
                .layer(GrpcMetricsLayer::new(operations.metrics()))
                .add_service(operations_server_with(operations, wait_limits))
                .add_service(watch_server(operations))
                .add_service(worker_server_with(operations, wait_limits))
                .serve_with_incoming_shutdown(
                    TcpListenerStream::new(listener),
                    stop.clone().cancelled_owned(),
                );
            tasks.spawn(async { server.await.unwrap() });
        }
        Self {
            operations: replicas[0].clone(),
            addresses,
            shutdown: stop,
            tasks,
        }
    }

    /// A new connection; to each server, if there are several, of which each call
    /// goes to another one.
    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = |address| Endpoint::from_shared(format!("http://{address}")).unwrap();
        match self.addresses.as_slice() {
            [address] => endpoint(address).connect().await.unwrap(),
            addresses => Channel::balance_list(addresses.iter().map(endpoint)),
        }
    }

    /// A client with a connection of its own.
    pub(crate) async fn client(&self) -> GrpcClient {
        OperationsClient::new(self.channel().await).max_decoding_message_size(64 << 20)
    }

    /// A client of the watch stream with a connection of its own.
    pub(crate) async fn watch_client(&self) -> OperationWatchClient<Channel> {
        OperationWatchClient::new(self.channel().await)
    }

    /// A client for workers with a connection of its own.
    pub(crate) async fn worker_client(&self) -> OperationWorkerClient<Channel> {
        OperationWorkerClient::new(self.channel().await)
    }

    /// Closes the listener, lets open calls end and waits for that.
    pub(crate) async fn shutdown(mut self) {
        self.shutdown.cancel();
        while let Some(result) = self.tasks.join_next().await {
            result.unwrap();
        }
    }
}

/// Operations in the store that the behaviour is tried over: in memory, or as
/// `over_stores` says in the environment.
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

/// These operations; and two more servers of them, if `over_stores` says so in the
/// environment and what [`operations`] gave last has their journal.
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

/// An operation that its creator executes, and the lease.
pub(crate) async fn create_running(operations: &Operations) -> (OperationName, LeaseToken) {
    create_leased(operations, NewOperation::self_executed("test")).await
}

/// As [`running`], with other wishes.
pub(crate) async fn create_leased(
    operations: &Operations,
    new: NewOperation,
) -> (OperationName, LeaseToken) {
    let operation = operations.create(new).await.unwrap().operation;
    (
        operation.name_owned(),
        operation.lease().expect("its creator holds it").token,
    )
}

/// An operation that waits for a worker.
pub(crate) async fn create_pending(operations: &Operations) -> OperationName {
    let operation = operations
        .submit("nobody", string_value("input"))
        .await
        .unwrap();
    operation.name_owned()
}

/// An operation that has succeeded.
pub(crate) async fn create_succeeded(operations: &Operations) -> OperationName {
    let (name, token) = create_running(operations).await;
    operations
        .succeed(&name, token, string_value("result"))
        .await
        .unwrap();
    name
}

/// An `Any` that holds a text.
pub(crate) fn string_value(text: &str) -> Any {
    let value = text.to_owned();
    Any {
        type_url: "type.googleapis.com/google.protobuf.StringValue".into(),
        value: value.encode_to_vec(),
    }
}

/// Metadata in a type that the server does not know, and that is no message.
pub(crate) fn custom_metadata(n: u8) -> Any {
    Any {
        type_url: "type.googleapis.com/acme.v1.RenderMetadata".into(),
        value: vec![0xff, n, 0x00, n],
    }
}

/// The metadata of an operation, if it is ours.
pub(crate) fn decode_metadata(operation: &Operation) -> OperationMetadata {
    let any = operation
        .metadata
        .as_ref()
        .expect("metadata is always there");
    assert_eq!(any.type_url, OperationMetadata::type_url());
    OperationMetadata::decode(any.value.as_slice()).unwrap()
}

/// The error of an operation that has failed.
pub(crate) fn expect_error(operation: &Operation) -> rpc::Status {
    assert!(operation.done);
    match &operation.result {
        Some(operation::Result::Error(error)) => error.clone(),
        other => panic!("{other:?} is no error"),
    }
}

/// The response of an operation that has succeeded.
pub(crate) fn expect_response(operation: &Operation) -> Any {
    assert!(operation.done);
    match &operation.result {
        Some(operation::Result::Response(response)) => response.clone(),
        other => panic!("{other:?} is no response"),
    }
}

/// The reason in the one ErrorInfo of an error that the server recorded.
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

pub(crate) fn get_request(name: &str) -> GetOperationRequest {
    GetOperationRequest { name: name.into() }
}

/// A request to wait for so many milliseconds.
pub(crate) fn wait_request(name: &OperationName, millis: u64) -> WaitOperationRequest {
    let timeout = Duration::from_millis(millis).try_into().ok();
    WaitOperationRequest {
        name: name.to_string(),
        timeout,
    }
}

/// Progress that says so many units are done.
pub(crate) fn progress(done_units: i64) -> Progress {
    Progress {
        done_units,
        total_units: 100,
        unit: "rows".into(),
        ..Progress::default()
    }
}
