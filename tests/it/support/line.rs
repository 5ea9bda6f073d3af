//! A server behind lines of memory that a test can cut and mend, so that paused
//! time stays exact: it moves only while nothing is on its way.

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

/// How much a line holds, in bytes.
const ROOM: usize = 1 << 16;

/// The worker service of some operations. Stops when dropped.
pub(crate) struct Line {
    lines: Arc<Lines>,
    task: JoinHandle<()>,
}

struct Lines {
    /// The open ones; none while the line is cut.
    open: Mutex<Option<JoinSet<()>>>,
    server: mpsc::UnboundedSender<io::Result<DuplexStream>>,
    /// How often somebody found the line cut.
    refused: watch::Sender<usize>,
}

// === impl Line ===

impl Line {
    pub(crate) fn to(operations: &Operations) -> Self {
        let (server, incoming) = mpsc::unbounded_channel();
        let serving = Server::builder()
            .add_service(worker_server(operations))
            .serve_with_incoming(UnboundedReceiverStream::new(incoming));
        Self {
            lines: Arc::new(Lines {
                open: Mutex::new(Some(JoinSet::new())),
                server,
                refused: watch::Sender::new(0),
            }),
            task: tokio::spawn(async { serving.await.unwrap() }),
        }
    }

    /// A channel that connects when it is used, again and again.
    pub(crate) fn channel(&self) -> Channel {
        let lines = self.lines.clone();
        let connect = tower::service_fn(move |_: Uri| {
            let line = lines.connect();
            async { line.map(TokioIo::new) }
        });
        Endpoint::from_static("http://memory").connect_with_connector_lazy(connect)
    }

    /// Breaks every connection, and refuses new ones.
    pub(crate) fn cut(&self) {
        *self.lines.open.lock() = None;
    }

    /// Takes connections again.
    pub(crate) fn mend(&self) {
        *self.lines.open.lock() = Some(JoinSet::new());
    }

    /// Waits until so many tries to connect were refused in all.
    pub(crate) async fn refused(&self, count: usize) {
        let mut refused = self.lines.refused.subscribe();
        refused.wait_for(|refused| count <= *refused).await.unwrap();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// === impl Lines ===

impl Lines {
    fn connect(&self) -> io::Result<DuplexStream> {
        let mut open = self.open.lock();
        let Some(open) = &mut *open else {
            self.refused.send_modify(|refused| *refused += 1);
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let (client, mut far) = duplex(ROOM);
        let (mut near, server) = duplex(ROOM);
        open.spawn(async move {
            // However it ends, both sides see that it did.
            let _ = copy_bidirectional(&mut far, &mut near).await;
        });
        self.server.send(Ok(server)).expect("the server runs");
        Ok(client)
    }
}
