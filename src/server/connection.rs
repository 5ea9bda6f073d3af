//! Serves one connection with hyper and enforces its timeouts.

use std::{
    convert::Infallible,
    error::Error as StdError,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::Either};
use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Sleep, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;

use super::{
    http1_error_body::ErrorBodyRewriter,
    inline_executor::InlineFirstExecutor,
    write_coalescer::{WriteProgress, coalesce_writes},
};

#[cfg(test)]
mod tests;

pub(super) type BoxError = Box<dyn StdError + Send + Sync>;

/// Limits and timeouts of the connections of one listener.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionOptions {
    /// Maximum number of open connections; further ones are closed when accepted.
    pub max_connections: usize,
    /// Maximum number of open streams of one HTTP/2 connection.
    pub max_streams_per_connection: u32,
    /// Interval between HTTP/2 keepalive PINGs on an idle connection.
    pub http2_keepalive_interval: Duration,
    /// Time limit for the response to a keepalive PING.
    pub http2_keepalive_timeout: Duration,
    /// Time limit for the first request, or for the HTTP/2 preface.
    pub handshake_timeout: Duration,
    /// Time limit for the next request on an HTTP/1.1 connection, with its headers.
    pub http1_idle_timeout: Duration,
}

/// Error of a connection that the server closes because of its peer's silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum TimeoutError {
    #[error("handshake timeout: no request received")]
    Handshake,
    #[error("write timeout: the peer stopped reading")]
    WriteStalled,
}

/// Enforces two timeouts that hyper has no setting for: no request after connect, and
/// a peer that stops reading.
struct ConnectionTimeouts {
    is_in_handshake: bool,
    last_sent_bytes: u64,
    timer: Option<Pin<Box<Sleep>>>,
    write_stall_timeout: Duration,
}

// === impl ConnectionOptions ===

impl Default for ConnectionOptions {
    /// Returns 10 000 connections with 100 000 streams each, a handshake timeout of
    /// 10 s, an HTTP/1.1 idle timeout of 75 s, and HTTP/2 keepalive that detects a
    /// silent peer within 40 s.
    ///
    /// A proxy multiplexes the calls of all its clients over one or two connections,
    /// and each call may be a WaitOperation: with a low stream limit, the next Get
    /// would queue behind them. At 4.5 KB per stream, 100 000 streams take 450 MB.
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_streams_per_connection: 100_000,
            http2_keepalive_interval: Duration::from_secs(20),
            http2_keepalive_timeout: Duration::from_secs(20),
            handshake_timeout: Duration::from_secs(10),
            // Longer than the 60 s of common load balancers: if the balancer closes
            // first, it cannot send a request into a closing connection.
            http1_idle_timeout: Duration::from_secs(75),
        }
    }
}

impl ConnectionOptions {
    fn builder(&self, executor: InlineFirstExecutor) -> auto::Builder<InlineFirstExecutor> {
        let mut builder = auto::Builder::new(executor);
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.http1_idle_timeout);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(self.http2_keepalive_interval)
            .keep_alive_timeout(self.http2_keepalive_timeout)
            .max_concurrent_streams(self.max_streams_per_connection)
            // hyper's limit for an HTTP/1.1 URL, so that a filter of maximum length
            // fits, percent-encoded or not.
            .max_header_list_size(64 * 1024)
            // A request body that is not being read must not exhaust the window of the
            // connection.
            .initial_stream_window_size(512 * 1024)
            .initial_connection_window_size(1024 * 1024)
            // A proxy may cancel many calls at once; above the default of 20, hyper
            // would close the connection for all its clients.
            .max_pending_accept_reset_streams(1024)
            .max_local_error_reset_streams(1024)
            // gRPC clients do not use the date header.
            .auto_date_header(false);
        builder
    }
}

/// Serves one connection until it ends or times out. When `stop_token` is cancelled,
/// returns after the calls in flight have completed. `calls` tracks calls that run as
/// tasks of their own.
///
/// # Errors
/// The protocol, IO or timeout error that ended the connection.
pub(super) async fn serve<T, S, B>(
    stream: T,
    service: S,
    options: &ConnectionOptions,
    calls: TaskTracker,
    stop_token: CancellationToken,
) -> Result<(), BoxError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let request_received = Arc::new(AtomicBool::new(false));
    let service = {
        let request_received = Arc::clone(&request_received);
        service_fn(move |request| {
            request_received.store(true, Ordering::Relaxed);
            call_when_ready(service.clone(), request)
        })
    };
    let builder = options.builder(InlineFirstExecutor(calls));
    let mut connection = coalesce_writes(stream, |socket| {
        let socket = TokioIo::new(ErrorBodyRewriter::new(socket));
        Box::pin(builder.serve_connection(socket, service))
    });
    let mut stop = pin!(stop_token.cancelled());
    let mut is_stopping = false;
    let mut timeouts = ConnectionTimeouts::new(options);

    poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(result);
            }
            let progress = connection.write_progress();
            // hyper sends nothing before it has read the whole HTTP/2 preface.
            let handshake_done =
                progress.sent_bytes != 0 || request_received.load(Ordering::Relaxed);
            if let Poll::Ready(error) = timeouts.poll(cx, handshake_done, progress) {
                return Poll::Ready(Err(error.into()));
            }
            if is_stopping || stop.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if !handshake_done {
                return Poll::Ready(Ok(()));
            }
            is_stopping = true;
            connection.connection().as_mut().graceful_shutdown();
        }
    })
    .await
}

/// Calls `service` when it is ready. A service that is ready at once, as tonic's are,
/// costs no future of its own around the response future.
fn call_when_ready<S>(
    mut service: S,
    request: Request<Incoming>,
) -> impl Future<Output = Result<S::Response, Infallible>> + Send
where
    S: Service<Request<Incoming>, Error = Infallible> + Send + 'static,
    S::Future: Send,
    S::Response: Send,
{
    let cx = &mut Context::from_waker(Waker::noop());
    if service.poll_ready(cx).is_ready() {
        return Either::Left(service.call(request));
    }
    let wait_then_call = async move {
        poll_fn(|cx| service.poll_ready(cx)).await?;
        service.call(request).await
    };
    Either::Right(wait_then_call.boxed())
}

// === impl ConnectionTimeouts ===

impl ConnectionTimeouts {
    fn new(options: &ConnectionOptions) -> Self {
        Self {
            is_in_handshake: true,
            last_sent_bytes: 0,
            timer: Some(Box::pin(sleep(options.handshake_timeout))),
            write_stall_timeout: options.http2_keepalive_interval + options.http2_keepalive_timeout,
        }
    }

    /// Returns `Ready` when a timeout has fired.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        handshake_done: bool,
        progress: WriteProgress,
    ) -> Poll<TimeoutError> {
        if self.is_in_handshake && handshake_done {
            self.is_in_handshake = false;
            self.timer = None;
        }
        if !self.is_in_handshake {
            if !progress.has_pending_bytes {
                self.timer = None;
            } else if self.timer.is_none() || self.last_sent_bytes != progress.sent_bytes {
                self.timer = Some(Box::pin(sleep(self.write_stall_timeout)));
            }
        }
        self.last_sent_bytes = progress.sent_bytes;
        let Some(timer) = &mut self.timer else {
            return Poll::Pending;
        };
        let error = if self.is_in_handshake {
            TimeoutError::Handshake
        } else {
            TimeoutError::WriteStalled
        };
        timer.as_mut().poll(cx).map(|()| error)
    }
}
