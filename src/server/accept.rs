//! The accept loop: every connection gets a lane, and an end.
//!
//! What is spoken on a connection lives in `connection`.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::{
    net::{TcpStream, UnixStream},
    task::{JoinError, JoinSet},
    time::{Instant, sleep},
};
use tokio_util::{either::Either, sync::CancellationToken, task::TaskTracker};
use tower::Service;

use super::{
    connection::{self, BoxError, Connections},
    lanes::Lanes,
    listener::{Accepted, Listener},
};

#[cfg(test)]
mod tests;

/// Waits after an error of `accept` that will not go away by itself.
const BACKOFF: [Duration; 5] = [
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// How often refused connections are mentioned in the log.
const MENTION: Duration = Duration::from_secs(10);

/// Counts refused connections, so that a flood of them is not one of log lines.
struct Refused {
    count: u64,
    mention: Instant,
}

/// Serves `service` to every connection that `listener` accepts.
///
/// Once `stopping` is cancelled the listener is closed, each connection is told
/// to send no more calls (GOAWAY), and the future resolves when the last of
/// them has ended. Whoever cannot wait so long drops the future: that closes
/// every connection at once, and the calls in flight with it.
pub(crate) async fn serve<S, B>(
    listener: Listener,
    service: S,
    lanes: &Lanes,
    options: Connections,
    stopping: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let options = Arc::new(options);
    let calls = TaskTracker::new();
    let mut connections = JoinSet::new();
    let mut refused = Refused::new();
    let mut failures = 0;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            Some(ended) = connections.join_next() => {
                report(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(pause) = backoff(&error, failures) {
                    tracing::error!(%error, ?pause, "cannot accept connections");
                    failures += 1;
                    sleep(pause).await;
                }
                continue;
            }
        };
        failures = 0;
        if options.max_connections <= connections.len() {
            refused.note(options.max_connections);
            continue;
        }
        let place = lanes.place();
        let runtime = place.runtime().clone();
        let (service, options) = (service.clone(), Arc::clone(&options));
        let (calls, stopping) = (calls.clone(), stopping.child_token());
        let connection = async move {
            let peer = accepted.peer();
            let served = match accepted.into_stream() {
                Ok(stream) => connection::serve(stream, service, &options, calls, stopping).await,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = served {
                tracing::debug!(?peer, error, "connection ended");
            }
            drop(place);
        };
        connections.spawn_on(connection, &runtime);
    }

    drop(listener);
    while let Some(ended) = connections.join_next().await {
        report(ended);
    }
    calls.close();
    calls.wait().await;
}

fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection came to a bad end");
    }
}

/// How long to wait before the next `accept`, or `None` when the error concerns
/// only the connection that would have been accepted.
fn backoff(error: &io::Error, failures: usize) -> Option<Duration> {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};

    match error.kind() {
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted => None,
        _ => Some(BACKOFF[failures.min(BACKOFF.len() - 1)]),
    }
}

// === impl Accepted ===

impl Accepted {
    fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(_, peer) => Some(*peer),
            Self::Unix(_) => None,
        }
    }

    /// Registers the connection with the current runtime, and rids it of the
    /// delay that Nagle's algorithm adds.
    fn into_stream(self) -> io::Result<Either<TcpStream, UnixStream>> {
        Ok(match self {
            Self::Tcp(stream, _) => {
                stream.set_nodelay(true)?;
                Either::Left(TcpStream::from_std(stream)?)
            }
            Self::Unix(stream) => Either::Right(UnixStream::from_std(stream)?),
        })
    }
}

// === impl Refused ===

impl Refused {
    fn new() -> Self {
        Self {
            count: 0,
            mention: Instant::now(),
        }
    }

    fn note(&mut self, limit: usize) {
        self.count += 1;
        if self.mention <= Instant::now() {
            let count = self.count;
            tracing::warn!(count, limit, "connections closed: too many are open");
            self.count = 0;
            self.mention = Instant::now() + MENTION;
        }
    }
}
