//! What every test needs: a server with clients, and operations in each stage.
//! Looking into errors is in `problem`, journals of the tests' own in `journal`,
//! work as workers elsewhere do it in `shop`, certificates for TLS in `certificates`,
//! bytes over HTTP in `http`, a bad line to workers in `faults`, a database in
//! `postgres`, a pooler before it in `pooler`, a table that servers share in `table`,
//! a line that can be cut in `line`, the program over a file in `stored`, what must be
//! true of that in `ledger`.

pub(crate) mod anyone;
#[cfg(feature = "postgres")]
pub(crate) mod certificates;
#[cfg(feature = "cli")]
pub(crate) mod dice;
#[cfg(feature = "cli")]
pub(crate) mod disk;
#[cfg(feature = "cli")]
pub(crate) mod faults;
#[cfg(feature = "server")]
pub(crate) mod http;
pub(crate) mod journal;
#[cfg(feature = "cli")]
pub(crate) mod ledger;
#[cfg(all(feature = "remote", feature = "server"))]
pub(crate) mod line;
#[cfg(feature = "postgres")]
pub(crate) mod pooler;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
pub(crate) mod problem;
#[cfg(feature = "cli")]
pub(crate) mod program;
#[cfg(feature = "cli")]
pub(crate) mod protos;
pub(crate) mod raw;
pub(crate) mod shop;
#[cfg(feature = "cli")]
pub(crate) mod stored;
pub(crate) mod stores;
pub(crate) mod table;

use std::{net::SocketAddr, time::Duration};

use longrunning::{
    Any, Border, Builder, LeaseToken, NewOperation, OperationName, Operations, Progress,
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

pub(crate) type Client = OperationsClient<Channel>;

/// A server on a port of its own. Stops, without grace, when dropped.
pub(crate) struct Server {
    pub(crate) operations: Operations,
    addresses: Vec<SocketAddr>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

// === impl Server ===

impl Server {
    /// A server with an empty store and no workers.
    pub(crate) async fn start() -> Self {
        Self::with(operations()).await
    }

    /// A server of these operations.
    pub(crate) async fn with(builder: Builder) -> Self {
        Self::with_waits(builder, WaitLimits::default()).await
    }

    /// A server of these operations, with other limits on waits.
    pub(crate) async fn with_waits(builder: Builder, waits: WaitLimits) -> Self {
        let replicas = replicas(builder).await;
        let (stop, mut addresses, mut tasks) =
            (CancellationToken::new(), Vec::new(), JoinSet::new());
        for operations in &replicas {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            let metrics = operations.metrics().clone();
            let serving = Stock::builder()
                .layer(tower::layer::layer_fn(move |service| {
                    Border::new(service, &metrics)
                }))
                .add_service(operations_server_with(operations, waits))
                .add_service(watch_server(operations))
                .add_service(worker_server_with(operations, waits))
                .serve_with_incoming_shutdown(
                    TcpListenerStream::new(listener),
                    stop.clone().cancelled_owned(),
                );
            tasks.spawn(async { serving.await.unwrap() });
        }
        Self {
            operations: replicas[0].clone(),
            addresses,
            stop,
            tasks,
        }
    }

    /// A new connection; to each server, if there are several, of which each call
    /// goes to another one.
    pub(crate) async fn channel(&self) -> Channel {
        let at = |address| Endpoint::from_shared(format!("http://{address}")).unwrap();
        match self.addresses.as_slice() {
            [address] => at(address).connect().await.unwrap(),
            addresses => Channel::balance_list(addresses.iter().map(at)),
        }
    }

    /// A client with a connection of its own.
    pub(crate) async fn client(&self) -> Client {
        OperationsClient::new(self.channel().await).max_decoding_message_size(64 << 20)
    }

    /// A client of the watch stream with a connection of its own.
    pub(crate) async fn watcher(&self) -> OperationWatchClient<Channel> {
        OperationWatchClient::new(self.channel().await)
    }

    /// A client for workers with a connection of its own.
    pub(crate) async fn worker(&self) -> OperationWorkerClient<Channel> {
        OperationWorkerClient::new(self.channel().await)
    }

    /// Closes the listener, lets open calls end and waits for that.
    pub(crate) async fn close(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

/// Operations in the store that the behaviour is tried over: in memory, or as
/// `over_stores` says in the environment.
pub(crate) fn operations() -> Builder {
    let builder = Operations::builder();
    #[cfg(feature = "postgres")]
    if stores::is_postgres() {
        let builder = builder.journal(stores::Counted(stores::Aside::open()));
        return if stores::has_replicas() {
            builder.reads(longrunning::Reads::Fresh)
        } else {
            builder
        };
    }
    #[cfg(feature = "sqlite")]
    if let Some(path) = stores::sqlite_file() {
        let journal = longrunning::SqliteJournal::open(path).unwrap();
        return builder.journal(stores::Counted(journal));
    }
    builder
}

/// These operations; and two more servers of them, if `over_stores` says so in the
/// environment and what [`operations`] gave last has their journal.
pub(crate) async fn replicas(builder: Builder) -> Vec<Operations> {
    let mut builders = vec![builder];
    #[cfg(feature = "postgres")]
    if stores::has_replicas() {
        for other in stores::Aside::others() {
            let builder = builders[0].clone().journal(stores::Counted(other));
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
pub(crate) async fn running(operations: &Operations) -> (OperationName, LeaseToken) {
    hold(operations, NewOperation::self_executed("test")).await
}

/// As [`running`], with other wishes.
pub(crate) async fn hold(
    operations: &Operations,
    new: NewOperation,
) -> (OperationName, LeaseToken) {
    let operation = operations.create(new).await.unwrap().operation;
    (
        operation.owned_name(),
        operation.lease().expect("its creator holds it").token,
    )
}

/// An operation that waits for a worker.
pub(crate) async fn pending(operations: &Operations) -> OperationName {
    let operation = operations.submit("nobody", text("input")).await.unwrap();
    operation.owned_name()
}

/// An operation that has succeeded.
pub(crate) async fn succeeded(operations: &Operations) -> OperationName {
    let (name, token) = running(operations).await;
    operations
        .succeed(&name, token, text("result"))
        .await
        .unwrap();
    name
}

/// An `Any` that holds a text.
pub(crate) fn text(text: &str) -> Any {
    let value = text.to_owned();
    Any {
        type_url: "type.googleapis.com/google.protobuf.StringValue".into(),
        value: value.encode_to_vec(),
    }
}

/// Metadata in a type that the server does not know, and that is no message.
pub(crate) fn own_metadata(n: u8) -> Any {
    Any {
        type_url: "type.googleapis.com/acme.v1.RenderMetadata".into(),
        value: vec![0xff, n, 0x00, n],
    }
}

/// The metadata of an operation, if it is ours.
pub(crate) fn metadata(operation: &Operation) -> OperationMetadata {
    let any = operation
        .metadata
        .as_ref()
        .expect("metadata is always there");
    assert_eq!(any.type_url, OperationMetadata::type_url());
    OperationMetadata::decode(any.value.as_slice()).unwrap()
}

/// The error of an operation that has failed.
pub(crate) fn error(operation: &Operation) -> rpc::Status {
    assert!(operation.done);
    match &operation.result {
        Some(operation::Result::Error(error)) => error.clone(),
        other => panic!("{other:?} is no error"),
    }
}

/// The response of an operation that has succeeded.
pub(crate) fn response(operation: &Operation) -> Any {
    assert!(operation.done);
    match &operation.result {
        Some(operation::Result::Response(response)) => response.clone(),
        other => panic!("{other:?} is no response"),
    }
}

/// The reason in the one ErrorInfo of an error that the server recorded.
pub(crate) fn reason(error: &rpc::Status) -> String {
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

pub(crate) fn get(name: &str) -> GetOperationRequest {
    GetOperationRequest { name: name.into() }
}

/// A request to wait for so many milliseconds.
pub(crate) fn wait(name: &OperationName, millis: u64) -> WaitOperationRequest {
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
