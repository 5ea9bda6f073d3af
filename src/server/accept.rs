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
    connection::{self, BoxError, ConnectionOptions},
    listener::{AcceptedStream, Listener},
    runtime_pool::RuntimePool,
};

#[cfg(test)]
mod tests;

/// Waits after an error of `accept` that will not go away by itself.
const ACCEPT_RETRY_DELAYS: [Duration; 5] = [
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// How often refused connections are mentioned in the log.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Counts refused connections, so that a flood of them is not one of log lines.
struct RejectedConnections {
    count: u64,
    next_log_at: Instant,
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
    runtime_pool: &RuntimePool,
    options: ConnectionOptions,
    stop_token: CancellationToken,
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
    let mut rejected = RejectedConnections::new();
    let mut failures = 0;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop_token.cancelled() => break,
            Some(ended) = connections.join_next() => {
                log_join_error(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(retry_in) = accept_retry_delay(&error, failures) {
                    tracing::error!(%error, ?retry_in, "cannot accept connections");
                    failures += 1;
                    sleep(retry_in).await;
                }
                continue;
            }
        };
        failures = 0;
        if options.max_connections <= connections.len() {
            rejected.record(options.max_connections);
            continue;
        }
        let slot = runtime_pool.assign();
        let runtime = slot.handle().clone();
        let (service, options) = (service.clone(), Arc::clone(&options));
        let (calls, stop_token) = (calls.clone(), stop_token.child_token());
        let connection = async move {
            let peer = accepted.peer();
            let result = match accepted.into_stream() {
                Ok(stream) => connection::serve(stream, service, &options, calls, stop_token).await,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = result {
                tracing::debug!(?peer, error, "connection ended");
            }
            drop(slot);
        };
        connections.spawn_on(connection, &runtime);
    }

    drop(listener);
    while let Some(ended) = connections.join_next().await {
        log_join_error(ended);
    }
    calls.close();
    calls.wait().await;
}

fn log_join_error(result: Result<(), JoinError>) {
    if let Err(error) = result {
        tracing::error!(%error, "a connection came to a bad end");
    }
}

/// How long to wait before the next `accept`, or `None` when the error concerns
/// only the connection that would have been accepted.
fn accept_retry_delay(error: &io::Error, failures: usize) -> Option<Duration> {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};

    match error.kind() {
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted => None,
        _ => Some(ACCEPT_RETRY_DELAYS[failures.min(ACCEPT_RETRY_DELAYS.len() - 1)]),
    }
}

// === impl Accepted ===

impl AcceptedStream {
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

impl RejectedConnections {
    fn new() -> Self {
        Self {
            count: 0,
            next_log_at: Instant::now(),
        }
    }

    fn record(&mut self, limit: usize) {
        self.count += 1;
        if self.next_log_at <= Instant::now() {
            let count = self.count;
            tracing::warn!(count, limit, "connections closed: too many are open");
            self.count = 0;
            self.next_log_at = Instant::now() + LOG_INTERVAL;
        }
    }
}
