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

use super::{coalesce::coalesce, executor::InPlace, unreadable::Unreadable};

#[cfg(test)]
mod tests;

pub(super) type BoxError = Box<dyn StdError + Send + Sync>;

/// How the connections of a listener are treated.
#[derive(Clone, Debug)]
pub struct Connections {
    /// Open connections, at most; one more is closed as soon as it is accepted.
    pub max_connections: usize,
    /// Open streams of one HTTP/2 connection, at most.
    pub max_streams_per_connection: u32,
    /// Silence after which an HTTP/2 peer is asked for a sign of life.
    pub keepalive: Duration,
    /// How long the peer may take to give that sign.
    pub keepalive_timeout: Duration,
    /// How long a new connection may take to say what it wants.
    pub opening: Duration,
    /// How long an HTTP/1.1 connection is kept between two requests.
    pub idle: Duration,
}

/// Why a connection is given up although neither side has ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum GivenUp {
    #[error("no request came in time")]
    Opening,
    #[error("the peer has stopped reading")]
    Stalled,
}

/// Watches for the two silences that hyper cannot see: before the first
/// request, and while the peer takes no bytes.
struct Patience {
    opening: bool,
    sent: u64,
    timer: Option<Pin<Box<Sleep>>>,
    stall: Duration,
}

// === impl Connections ===

impl Default for Connections {
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
            keepalive: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(20),
            opening: Duration::from_secs(10),
            // Longer than the 60 s of common load balancers, so that it is they
            // who close, and no request meets a closing connection.
            idle: Duration::from_secs(75),
        }
    }
}

impl Connections {
    fn builder(&self, executor: InPlace) -> auto::Builder<InPlace> {
        let mut builder = auto::Builder::new(executor);
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.idle);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(self.keepalive)
            .keep_alive_timeout(self.keepalive_timeout)
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
    options: &Connections,
    calls: TaskTracker,
    stopping: CancellationToken,
) -> Result<(), BoxError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let requested = Arc::new(AtomicBool::new(false));
    let service = {
        let requested = Arc::clone(&requested);
        service_fn(move |request| {
            requested.store(true, Ordering::Relaxed);
            call(service.clone(), request)
        })
    };
    let builder = options.builder(InPlace::new(calls));
    let mut connection = coalesce(stream, |socket| {
        let socket = TokioIo::new(Unreadable::new(socket));
        Box::pin(builder.serve_connection(socket, service))
    });
    let mut stop = pin!(stopping.cancelled());
    let mut stopped = false;
    let mut patience = Patience::new(options);

    poll_fn(|cx| {
        loop {
            if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(ended);
            }
            let (sent, waiting) = connection.progress();
            // hyper sends nothing before it has seen a whole HTTP/2 preface.
            let opened = sent != 0 || requested.load(Ordering::Relaxed);
            if let Poll::Ready(given_up) = patience.poll(cx, opened, sent, waiting) {
                return Poll::Ready(Err(given_up.into()));
            }
            if stopped || stop.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if !opened {
                return Poll::Ready(Ok(()));
            }
            stopped = true;
            connection.connection().as_mut().graceful_shutdown();
        }
    })
    .await
}

/// Calls `service`, which tonic's services are always ready for: then its own
/// future is all there is, and nothing around it has to carry the request.
fn call<S>(
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
    let later = async move {
        poll_fn(|cx| service.poll_ready(cx)).await?;
        service.call(request).await
    };
    Either::Right(later.boxed())
}

// === impl Patience ===

impl Patience {
    fn new(options: &Connections) -> Self {
        let stall = options.keepalive + options.keepalive_timeout;
        let timer = Some(Box::pin(sleep(options.opening)));
        Self {
            opening: true,
            sent: 0,
            timer,
            stall,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        opened: bool,
        sent: u64,
        waiting: bool,
    ) -> Poll<GivenUp> {
        if self.opening && opened {
            self.opening = false;
            self.timer = None;
        }
        if !self.opening {
            if !waiting {
                self.timer = None;
            } else if self.timer.is_none() || self.sent != sent {
                self.timer = Some(Box::pin(sleep(self.stall)));
            }
        }
        self.sent = sent;
        let Some(timer) = &mut self.timer else {
            return Poll::Pending;
        };
        let given_up = if self.opening {
            GivenUp::Opening
        } else {
            GivenUp::Stalled
        };
        timer.as_mut().poll(cx).map(|()| given_up)
    }
}
