//! A gRPC server on in-memory connections that a test can break and restore.
//! Without sockets, paused time advances only while no message is in flight.

use std::{io, sync::Arc};

use hyper_util::rt::TokioIo;
use longrunning::{Operations, worker_server};
use parking_lot::Mutex;
use tokio::{
    io::{DuplexStream, copy_bidirectional, duplex},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint, Server, Uri};

const DUPLEX_BUFFER_BYTES: usize = 1 << 16;

/// The worker service of some operations behind breakable connections. Stops when dropped.
pub(crate) struct FlakyChannel {
    connections: Arc<FlakyConnections>,
    task: JoinHandle<()>,
}

struct FlakyConnections {
    /// Tasks of the open connections, or `None` while disconnected.
    open_connections: Mutex<Option<JoinSet<()>>>,
    incoming: mpsc::UnboundedSender<io::Result<DuplexStream>>,
    /// Number of connection attempts while disconnected.
    refused_count: watch::Sender<usize>,
}

// === impl FlakyChannel ===

impl FlakyChannel {
    pub(crate) fn new(operations: &Operations) -> Self {
        let (incoming_sender, incoming) = mpsc::unbounded_channel();
        let server = Server::builder()
            .add_service(worker_server(operations))
            .serve_with_incoming(UnboundedReceiverStream::new(incoming));
        Self {
            connections: Arc::new(FlakyConnections {
                open_connections: Mutex::new(Some(JoinSet::new())),
                incoming: incoming_sender,
                refused_count: watch::Sender::new(0),
            }),
            task: tokio::spawn(async { server.await.unwrap() }),
        }
    }

    /// Returns a channel that connects on use and reconnects after a failure.
    pub(crate) fn channel(&self) -> Channel {
        let connections = self.connections.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let connection = connections.connect();
            async { connection.map(TokioIo::new) }
        });
        Endpoint::from_static("http://memory").connect_with_connector_lazy(connector)
    }

    /// Breaks all connections and refuses new ones.
    pub(crate) fn disconnect(&self) {
        *self.connections.open_connections.lock() = None;
    }

    /// Accepts connections again.
    pub(crate) fn reconnect(&self) {
        *self.connections.open_connections.lock() = Some(JoinSet::new());
    }

    /// Waits until at least `count` connection attempts were refused in total.
    pub(crate) async fn wait_for_refused_connections(&self, count: usize) {
        let mut refused_count = self.connections.refused_count.subscribe();
        refused_count
            .wait_for(|refusals| *refusals >= count)
            .await
            .unwrap();
    }
}

impl Drop for FlakyChannel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// === impl FlakyConnections ===

impl FlakyConnections {
    fn connect(&self) -> io::Result<DuplexStream> {
        let mut open_connections = self.open_connections.lock();
        let Some(connection_tasks) = &mut *open_connections else {
            self.refused_count.send_modify(|count| *count += 1);
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let (client, mut client_peer) = duplex(DUPLEX_BUFFER_BYTES);
        let (mut server_peer, server) = duplex(DUPLEX_BUFFER_BYTES);
        connection_tasks.spawn(async move {
            // Dropping both peers makes client and server see the end.
            let _ = copy_bidirectional(&mut client_peer, &mut server_peer).await;
        });
        self.incoming
            .send(Ok(server))
            .expect("expected the server to run");
        Ok(client)
    }
}
