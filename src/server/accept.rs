//! The accept loop: assigns every accepted connection to a connection thread and
//! waits for all of them on shutdown.

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

/// Delays after consecutive errors of `accept`, such as "too many open files".
const ACCEPT_RETRY_DELAYS: [Duration; 5] = [
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// Minimum interval between two log lines about rejected connections.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Counts rejected connections and rate-limits their log lines.
struct RejectedConnections {
    count: u64,
    next_log_at: Instant,
}

/// Serves `service` on every connection that `listener` accepts.
///
/// When `stop_token` is cancelled, closes the listener, shuts every connection down
/// gracefully (GOAWAY), and returns when the last one has ended. Dropping the future
/// closes all connections at once and drops their calls.
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
    let mut rejected = RejectedConnections {
        count: 0,
        next_log_at: Instant::now(),
    };
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
                    tracing::error!(%error, ?retry_in, "failed to accept a connection");
                    failures += 1;
                    sleep(retry_in).await;
                }
                continue;
            }
        };
        failures = 0;
        if connections.len() >= options.max_connections {
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
        tracing::error!(%error, "connection task panicked");
    }
}

/// Returns the delay before the next `accept`, or `None` if the error concerns only
/// the connection that failed.
fn accept_retry_delay(error: &io::Error, failures: usize) -> Option<Duration> {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};

    match error.kind() {
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted => None,
        _ => Some(ACCEPT_RETRY_DELAYS[failures.min(ACCEPT_RETRY_DELAYS.len() - 1)]),
    }
}

// === impl AcceptedStream ===

impl AcceptedStream {
    fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(_, peer) => Some(*peer),
            Self::Unix(_) => None,
        }
    }

    /// Registers the stream with the current runtime and disables Nagle's algorithm.
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

// === impl RejectedConnections ===

impl RejectedConnections {
    fn record(&mut self, limit: usize) {
        self.count += 1;
        if Instant::now() >= self.next_log_at {
            let count = std::mem::take(&mut self.count);
            tracing::warn!(
                count,
                limit,
                "connection limit reached, rejecting connections"
            );
            self.next_log_at = Instant::now() + LOG_INTERVAL;
        }
    }
}
