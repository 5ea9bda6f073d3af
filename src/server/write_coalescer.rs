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
const MAX_BUFFERED_BYTES: usize = 128 * 1024;

/// A connection whose peer is slow keeps the buffer of [`LIMIT`] bytes while more
/// than this waits in it, and a copy of what waits otherwise.
const RETAIN_THRESHOLD_BYTES: usize = MAX_BUFFERED_BYTES / 4;

thread_local! {
    /// The buffer of whichever connection this thread polls: an idle one holds
    /// none, and a busy one need not allocate. A lane polls one at a time.
    static SPARE_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The half that the connection reads from and writes to.
///
/// It must be used in one task, the one that polls its [`Coalesced`]: that is
/// the task which the socket wakes.
pub(super) struct BufferedSocket<T>(Arc<Mutex<WriteCoalescer<T>>>);

/// A connection together with the bytes it has written.
///
/// Resolves when the connection has ended and its last byte is sent, or with
/// the first error of either.
pub(super) struct CoalescedConnection<C: Future, T> {
    connection: C,
    result: Option<C::Output>,
    coalescer: Arc<Mutex<WriteCoalescer<T>>>,
}

/// What both halves see. One task uses both, so the lock is never contended.
struct WriteCoalescer<T> {
    io: T,
    /// Written by the connection; sent up to `start`.
    buffer: Vec<u8>,
    sent_offset: usize,
    /// Bytes that the socket has taken since it was opened.
    total_sent_bytes: u64,
    /// The error that ended the socket, told again to whoever writes next.
    write_error: Option<(io::ErrorKind, String)>,
}

/// Wraps `io` for a connection that `connect` builds around the socket.
pub(super) fn coalesce_writes<C, T>(
    io: T,
    connect: impl FnOnce(BufferedSocket<T>) -> C,
) -> CoalescedConnection<C, T>
where
    C: Future,
{
    let coalescer = WriteCoalescer {
        io,
        buffer: Vec::new(),
        sent_offset: 0,
        total_sent_bytes: 0,
        write_error: None,
    };
    let coalescer = Arc::new(Mutex::new(coalescer));
    let connection = connect(BufferedSocket(Arc::clone(&coalescer)));
    CoalescedConnection {
        connection,
        result: None,
        coalescer,
    }
}

// === impl Coalesced ===

impl<C: Future, T> CoalescedConnection<C, T> {
    /// The connection, to tell it something between two polls.
    pub(super) fn connection(&mut self) -> &mut C {
        &mut self.connection
    }

    /// How many bytes the socket has taken, and whether some are still waiting.
    pub(super) fn progress(&self) -> (u64, bool) {
        let coalescer = self.coalescer.lock();
        (coalescer.total_sent_bytes, !coalescer.pending().is_empty())
    }
}

impl<C, T, E> Future for CoalescedConnection<C, T>
where
    C: Future<Output = Result<(), E>> + Unpin,
    T: AsyncWrite + Unpin,
    E: From<io::Error> + Unpin,
{
    type Output = Result<(), E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if this.result.is_none()
            && let Poll::Ready(result) = Pin::new(&mut this.connection).poll(cx)
        {
            this.result = Some(result);
        }
        let drained = this.coalescer.lock().poll_drain(cx);
        if drained.is_pending() {
            this.coalescer.lock().return_buffer();
        }
        match ready!(drained) {
            Ok(()) => this.result.take().map_or(Poll::Pending, Poll::Ready),
            // The connection's own error says more than the socket's.
            Err(error) => match this.result.take() {
                Some(Err(connection_error)) => Poll::Ready(Err(connection_error)),
                _ => Poll::Ready(Err(error.into())),
            },
        }
    }
}

impl<C: Future, T> fmt::Debug for CoalescedConnection<C, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coalesced").finish_non_exhaustive()
    }
}

// === impl Socket ===

impl<T: AsyncRead + Unpin> AsyncRead for BufferedSocket<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().io).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for BufferedSocket<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_write(cx, bytes)
    }

    /// Ready at once: the bytes leave when the task has finished its poll.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.lock().check_writable())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut coalescer = self.0.lock();
        ready!(coalescer.poll_drain(cx))?;
        Pin::new(&mut coalescer.io).poll_shutdown(cx)
    }

    /// No, so that HTTP/2 copies small payloads next to their frame headers
    /// instead of handing over each of them.
    fn is_write_vectored(&self) -> bool {
        false
    }
}

impl<T> fmt::Debug for BufferedSocket<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").finish_non_exhaustive()
    }
}

// === impl Shared ===

impl<T> WriteCoalescer<T> {
    fn pending(&self) -> &[u8] {
        &self.buffer[self.sent_offset..]
    }

    fn check_writable(&self) -> io::Result<()> {
        match &self.write_error {
            None => Ok(()),
            Some((kind, message)) => Err(io::Error::new(*kind, message.clone())),
        }
    }

    /// Takes what fits below [`LIMIT`], and says how much that was.
    fn append(&mut self, bytes: &[u8]) -> usize {
        if self.buffer.capacity() == 0 {
            self.buffer = SPARE_BUFFER.take();
            self.buffer.reserve_exact(MAX_BUFFERED_BYTES);
        }
        if 0 < self.sent_offset {
            self.buffer.drain(..self.sent_offset);
            self.sent_offset = 0;
        }
        let accepted = bytes.len().min(MAX_BUFFERED_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..accepted]);
        accepted
    }

    /// Hands the buffer back to the thread, unless much still waits in it.
    fn return_buffer(&mut self) {
        let (pending_len, capacity) = (self.pending().len(), self.buffer.capacity());
        if capacity == 0
            || RETAIN_THRESHOLD_BYTES < pending_len
            || (0 < pending_len && capacity < MAX_BUFFERED_BYTES)
        {
            return;
        }
        let pending = self.pending().to_vec();
        let mut buffer = mem::replace(&mut self.buffer, pending);
        self.sent_offset = 0;
        if MAX_BUFFERED_BYTES <= capacity {
            buffer.clear();
            SPARE_BUFFER.set(buffer);
        }
    }
}

impl<T: AsyncWrite + Unpin> WriteCoalescer<T> {
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check_writable()?;
        if self.pending().len() + bytes.len() <= MAX_BUFFERED_BYTES {
            return Poll::Ready(Ok(self.append(bytes)));
        }
        // A drain that pends has told the socket whom to wake; what it could
        // send has made room all the same.
        let drained = self.poll_drain(cx)?;
        if drained.is_ready() && MAX_BUFFERED_BYTES <= bytes.len() {
            return self.poll_send(cx, bytes);
        }
        match self.append(bytes) {
            0 if !bytes.is_empty() => Poll::Pending,
            accepted => Poll::Ready(Ok(accepted)),
        }
    }

    /// Sends until nothing waits. An error is remembered.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_writable()?;
        while self.sent_offset < self.buffer.len() {
            let sent =
                ready!(Pin::new(&mut self.io).poll_write(cx, &self.buffer[self.sent_offset..]));
            self.sent_offset += self.record_sent(sent)?;
        }
        self.return_buffer();
        Poll::Ready(Ok(()))
    }

    /// Sends past the buffer, which must be empty: a copy would only cost.
    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.io).poll_write(cx, bytes));
        Poll::Ready(self.record_sent(sent))
    }

    fn record_sent(&mut self, sent: io::Result<usize>) -> io::Result<usize> {
        let sent = match sent {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            other => other,
        };
        match sent {
            Ok(sent) => {
                self.total_sent_bytes += sent as u64;
                Ok(sent)
            }
            Err(error) => {
                self.write_error = Some((error.kind(), error.to_string()));
                self.sent_offset = self.buffer.len();
                self.return_buffer();
                Err(error)
            }
        }
    }
}
