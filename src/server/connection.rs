//! One connection: how hyper is set up for it, and how long a peer may be silent.
//!
//! Bytes are sent in `coalesce` and calls are run in `executor`; which
//! connections there are, and when they have to end, is known in `accept`.

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
    http1_error_body::ErrorBodyRewriter, inline_executor::InlineFirstExecutor,
    write_coalescer::coalesce_writes,
};

#[cfg(test)]
mod tests;

pub(super) type BoxError = Box<dyn StdError + Send + Sync>;

/// How the connections of a listener are treated.
#[derive(Clone, Debug)]
pub struct ConnectionOptions {
    /// Open connections, at most; one more is closed as soon as it is accepted.
    pub max_connections: usize,
    /// Open streams of one HTTP/2 connection, at most.
    pub max_streams_per_connection: u32,
    /// Silence after which an HTTP/2 peer is asked for a sign of life.
    pub http2_keepalive_interval: Duration,
    /// How long the peer may take to give that sign.
    pub http2_keepalive_timeout: Duration,
    /// How long a new connection may take to say what it wants.
    pub handshake_timeout: Duration,
    /// How long an HTTP/1.1 connection is kept between two requests.
    pub http1_idle_timeout: Duration,
}

/// Why a connection is given up although neither side has ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum TimeoutError {
    #[error("no request came in time")]
    Handshake,
    #[error("the peer has stopped reading")]
    WriteStalled,
}

/// Watches for the two silences that hyper cannot see: before the first
/// request, and while the peer takes no bytes.
struct ConnectionTimeouts {
    is_in_handshake: bool,
    last_sent_bytes: u64,
    timer: Option<Pin<Box<Sleep>>>,
    write_stall_timeout: Duration,
}

// === impl Connections ===

impl Default for ConnectionOptions {
    /// 10 000 connections of 100 000 streams; a silent peer is noticed in 40 s.
    ///
    /// A proxy in front sends the calls of all its clients over a connection or
    /// two, and each of them may sit in WaitOperation: a low limit on streams
    /// would make the next Get wait behind them. At 4.5 KB a stream, the limit
    /// still bounds what one connection can take to 450 MB.
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_streams_per_connection: 100_000,
            http2_keepalive_interval: Duration::from_secs(20),
            http2_keepalive_timeout: Duration::from_secs(20),
            handshake_timeout: Duration::from_secs(10),
            // Longer than the 60 s of common load balancers, so that it is they
            // who close, and no request meets a closing connection.
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
            // As much as a URL may have over HTTP/1.1, so that a filter of any
            // length fits into one, escaped or not.
            .max_header_list_size(64 * 1024)
            // One request that nobody reads must not use up what the others
            // of its connection may send.
            .initial_stream_window_size(512 * 1024)
            .initial_connection_window_size(1024 * 1024)
            // A proxy may cancel the calls of many clients at once; the default
            // of 20 would end the connection for all of them.
            .max_pending_accept_reset_streams(1024)
            .max_local_error_reset_streams(1024)
            // gRPC has no use for the date.
            .auto_date_header(false);
        builder
    }
}

/// Serves one connection until it ends, the peer falls silent, or, once
/// `stopping` is cancelled, the calls in flight are answered.
///
/// # Errors
///
/// Whatever ended the connection before its time.
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
    let builder = options.builder(InlineFirstExecutor::new(calls));
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
            let (sent_bytes, has_pending_writes) = connection.progress();
            // hyper sends nothing before it has seen a whole HTTP/2 preface.
            let handshake_done = sent_bytes != 0 || request_received.load(Ordering::Relaxed);
            if let Poll::Ready(error) =
                timeouts.poll(cx, handshake_done, sent_bytes, has_pending_writes)
            {
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

/// Calls `service`, which tonic's services are always ready for: then its own
/// future is all there is, and nothing around it has to carry the request.
fn call_when_ready<S>(
    mut service: S,
    request: Request<Incoming>,
) -> impl Future<Output = Result<S::Response, Infallible>> + Send
where
    S: Service<Request<Incoming>, Error = Infallible> + Send + 'static,
    S::Future: Send,
    S::Response: Send,
{
    if service
        .poll_ready(&mut Context::from_waker(Waker::noop()))
        .is_ready()
    {
        return Either::Left(service.call(request));
    }
    let wait_then_call = async move {
        poll_fn(|cx| service.poll_ready(cx)).await?;
        service.call(request).await
    };
    Either::Right(wait_then_call.boxed())
}

// === impl Patience ===

impl ConnectionTimeouts {
    fn new(options: &ConnectionOptions) -> Self {
        let write_stall_timeout =
            options.http2_keepalive_interval + options.http2_keepalive_timeout;
        let timer = Some(Box::pin(sleep(options.handshake_timeout)));
        Self {
            is_in_handshake: true,
            last_sent_bytes: 0,
            timer,
            write_stall_timeout,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        handshake_done: bool,
        sent_bytes: u64,
        has_pending_writes: bool,
    ) -> Poll<TimeoutError> {
        if self.is_in_handshake && handshake_done {
            self.is_in_handshake = false;
            self.timer = None;
        }
        if !self.is_in_handshake {
            if !has_pending_writes {
                self.timer = None;
            } else if self.timer.is_none() || self.last_sent_bytes != sent_bytes {
                self.timer = Some(Box::pin(sleep(self.write_stall_timeout)));
            }
        }
        self.last_sent_bytes = sent_bytes;
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
