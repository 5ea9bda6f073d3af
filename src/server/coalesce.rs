//! The coalescing socket: many small writes of a connection become one send.
//!
//! An HTTP/2 connection flushes after every DATA frame that is not tiny, which
//! costs a syscall for each answer. Here a flush costs nothing: bytes gather in
//! a buffer, and [`Coalesced`] sends them once the connection's task has done
//! all it can do in one poll. What the bytes mean, and how long a peer may take
//! to read them, is decided in `connection`.

use std::{
    cell::Cell,
    fmt, io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[cfg(test)]
mod tests;

/// Bytes that may wait for the peer, at most; more makes the writer wait.
const LIMIT: usize = 128 * 1024;

/// A connection whose peer is slow keeps the buffer of [`LIMIT`] bytes while more
/// than this waits in it, and a copy of what waits otherwise.
const KEPT: usize = LIMIT / 4;

thread_local! {
    /// The buffer of whichever connection this thread polls: an idle one holds
    /// none, and a busy one need not allocate. A lane polls one at a time.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The half that the connection reads from and writes to.
///
/// It must be used in one task, the one that polls its [`Coalesced`]: that is
/// the task which the socket wakes.
pub(super) struct Socket<T>(Arc<Mutex<Shared<T>>>);

/// A connection together with the bytes it has written.
///
/// Resolves when the connection has ended and its last byte is sent, or with
/// the first error of either.
pub(super) struct Coalesced<C: Future, T> {
    connection: C,
    ended: Option<C::Output>,
    shared: Arc<Mutex<Shared<T>>>,
}

/// What both halves see. One task uses both, so the lock is never contended.
struct Shared<T> {
    io: T,
    /// Written by the connection; sent up to `start`.
    buffer: Vec<u8>,
    start: usize,
    /// Bytes that the socket has taken since it was opened.
    sent: u64,
    /// The error that ended the socket, told again to whoever writes next.
    broken: Option<(io::ErrorKind, String)>,
}

/// Wraps `io` for a connection that `connect` builds around the socket.
pub(super) fn coalesce<C, T>(io: T, connect: impl FnOnce(Socket<T>) -> C) -> Coalesced<C, T>
where
    C: Future,
{
    let shared = Shared {
        io,
        buffer: Vec::new(),
        start: 0,
        sent: 0,
        broken: None,
    };
    let shared = Arc::new(Mutex::new(shared));
    let connection = connect(Socket(Arc::clone(&shared)));
    Coalesced {
        connection,
        ended: None,
        shared,
    }
}

// === impl Coalesced ===

impl<C: Future, T> Coalesced<C, T> {
    /// The connection, to tell it something between two polls.
    pub(super) fn connection(&mut self) -> &mut C {
        &mut self.connection
    }

    /// How many bytes the socket has taken, and whether some are still waiting.
    pub(super) fn progress(&self) -> (u64, bool) {
        let shared = self.shared.lock();
        (shared.sent, !shared.waiting().is_empty())
    }
}

impl<C, T, E> Future for Coalesced<C, T>
where
    C: Future<Output = Result<(), E>> + Unpin,
    T: AsyncWrite + Unpin,
    E: From<io::Error> + Unpin,
{
    type Output = Result<(), E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if this.ended.is_none()
            && let Poll::Ready(ended) = Pin::new(&mut this.connection).poll(cx)
        {
            this.ended = Some(ended);
        }
        let drained = this.shared.lock().poll_drain(cx);
        if drained.is_pending() {
            this.shared.lock().release();
        }
        match ready!(drained) {
            Ok(()) => this.ended.take().map_or(Poll::Pending, Poll::Ready),
            // The connection's own error says more than the socket's.
            Err(error) => match this.ended.take() {
                Some(Err(own)) => Poll::Ready(Err(own)),
                _ => Poll::Ready(Err(error.into())),
            },
        }
    }
}

impl<C: Future, T> fmt::Debug for Coalesced<C, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coalesced").finish_non_exhaustive()
    }
}

// === impl Socket ===

impl<T: AsyncRead + Unpin> AsyncRead for Socket<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().io).poll_read(cx, into)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Socket<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_write(cx, bytes)
    }

    /// Ready at once: the bytes leave when the task has finished its poll.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.lock().usable())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.0.lock();
        ready!(shared.poll_drain(cx))?;
        Pin::new(&mut shared.io).poll_shutdown(cx)
    }

    /// No, so that HTTP/2 copies small payloads next to their frame headers
    /// instead of handing over each of them.
    fn is_write_vectored(&self) -> bool {
        false
    }
}

impl<T> fmt::Debug for Socket<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").finish_non_exhaustive()
    }
}

// === impl Shared ===

impl<T> Shared<T> {
    fn waiting(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn usable(&self) -> io::Result<()> {
        match &self.broken {
            None => Ok(()),
            Some((kind, message)) => Err(io::Error::new(*kind, message.clone())),
        }
    }

    /// Takes what fits below [`LIMIT`], and says how much that was.
    fn append(&mut self, bytes: &[u8]) -> usize {
        if self.buffer.capacity() == 0 {
            self.buffer = SPARE.take();
            self.buffer.reserve_exact(LIMIT);
        }
        if 0 < self.start {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let taken = bytes.len().min(LIMIT - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// Hands the buffer back to the thread, unless much still waits in it.
    fn release(&mut self) {
        let (waiting, capacity) = (self.waiting().len(), self.buffer.capacity());
        if capacity == 0 || KEPT < waiting || (0 < waiting && capacity < LIMIT) {
            return;
        }
        let kept = self.waiting().to_vec();
        let mut buffer = mem::replace(&mut self.buffer, kept);
        self.start = 0;
        if LIMIT <= capacity {
            buffer.clear();
            SPARE.set(buffer);
        }
    }
}

impl<T: AsyncWrite + Unpin> Shared<T> {
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.usable()?;
        if self.waiting().len() + bytes.len() <= LIMIT {
            return Poll::Ready(Ok(self.append(bytes)));
        }
        // A drain that pends has told the socket whom to wake; what it could
        // send has made room all the same.
        let drained = self.poll_drain(cx)?;
        if drained.is_ready() && LIMIT <= bytes.len() {
            return self.poll_send(cx, bytes);
        }
        match self.append(bytes) {
            0 if !bytes.is_empty() => Poll::Pending,
            taken => Poll::Ready(Ok(taken)),
        }
    }

    /// Sends until nothing waits. An error is remembered.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.usable()?;
        while self.start < self.buffer.len() {
            let sent = ready!(Pin::new(&mut self.io).poll_write(cx, &self.buffer[self.start..]));
            self.start += self.account(sent)?;
        }
        self.release();
        Poll::Ready(Ok(()))
    }

    /// Sends past the buffer, which must be empty: a copy would only cost.
    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.io).poll_write(cx, bytes));
        Poll::Ready(self.account(sent))
    }

    fn account(&mut self, sent: io::Result<usize>) -> io::Result<usize> {
        let sent = match sent {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            other => other,
        };
        match sent {
            Ok(sent) => {
                self.sent += sent as u64;
                Ok(sent)
            }
            Err(error) => {
                self.broken = Some((error.kind(), error.to_string()));
                self.start = self.buffer.len();
                self.release();
                Err(error)
            }
        }
    }
}
