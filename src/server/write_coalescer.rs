//! Coalesces the small writes of a connection into one send per poll.
//!
//! hyper flushes after nearly every HTTP/2 DATA frame, which costs a syscall per
//! response. Here a flush does nothing: bytes are buffered, and
//! [`CoalescedConnection`] sends them at the end of each poll of the connection.

use std::{
    cell::Cell,
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[cfg(test)]
mod tests;

/// Maximum number of unsent bytes per connection; a write beyond it is pending.
const MAX_BUFFERED_BYTES: usize = 128 * 1024;

/// With more unsent bytes than this, a connection keeps its whole buffer between
/// polls; with fewer, it keeps a copy of them and returns the buffer.
const RETAIN_THRESHOLD_BYTES: usize = MAX_BUFFERED_BYTES / 4;

thread_local! {
    /// The write buffer of the connection that this thread polls. Idle connections
    /// hold no buffer, and active ones do not allocate.
    static SPARE_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The socket that the connection reads from and writes to.
///
/// Must be used by the task that polls its [`CoalescedConnection`], because IO events
/// wake that task.
pub(super) struct BufferedSocket<T> {
    coalescer: Arc<Mutex<WriteCoalescer<T>>>,
}

/// A connection and its unsent bytes.
///
/// Resolves when the connection has ended and all bytes are sent, or with the first
/// error of the connection or the socket.
pub(super) struct CoalescedConnection<C: Future, T> {
    connection: C,
    result: Option<C::Output>,
    coalescer: Arc<Mutex<WriteCoalescer<T>>>,
}

/// State shared by the socket and the connection. One task uses both, so the lock is
/// never contended.
struct WriteCoalescer<T> {
    io: T,
    /// Bytes written by the connection; those before `sent_offset` are sent.
    buffer: Vec<u8>,
    sent_offset: usize,
    /// Bytes sent since the socket was opened.
    total_sent_bytes: u64,
    /// The error that ended the socket, returned by every later write.
    write_error: Option<(io::ErrorKind, String)>,
}

/// Write progress of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WriteProgress {
    /// Bytes sent since the socket was opened.
    pub(super) sent_bytes: u64,
    pub(super) has_pending_bytes: bool,
}

/// Wraps `io` in a socket and passes it to `connect`, which builds the connection.
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
    let connection = connect(BufferedSocket {
        coalescer: Arc::clone(&coalescer),
    });
    CoalescedConnection {
        connection,
        result: None,
        coalescer,
    }
}

// === impl CoalescedConnection ===

impl<C: Future, T> CoalescedConnection<C, T> {
    pub(super) fn connection(&mut self) -> &mut C {
        &mut self.connection
    }

    pub(super) fn write_progress(&self) -> WriteProgress {
        let coalescer = self.coalescer.lock();
        WriteProgress {
            sent_bytes: coalescer.total_sent_bytes,
            has_pending_bytes: !coalescer.pending().is_empty(),
        }
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
            // The error of the connection is more specific than that of the socket.
            Err(error) => match this.result.take() {
                Some(Err(connection_error)) => Poll::Ready(Err(connection_error)),
                _ => Poll::Ready(Err(error.into())),
            },
        }
    }
}

// === impl BufferedSocket ===

impl<T: AsyncRead + Unpin> AsyncRead for BufferedSocket<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.coalescer.lock().io).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for BufferedSocket<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.coalescer.lock().poll_write(cx, bytes)
    }

    /// Completes at once; `CoalescedConnection` sends the bytes at the end of its poll.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.coalescer.lock().check_writable())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut coalescer = self.coalescer.lock();
        ready!(coalescer.poll_drain(cx))?;
        Pin::new(&mut coalescer.io).poll_shutdown(cx)
    }

    /// Returns `false`, so that h2 copies small payloads next to their frame headers
    /// instead of passing many slices.
    fn is_write_vectored(&self) -> bool {
        false
    }
}

// === impl WriteCoalescer ===

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

    /// Buffers what fits into [`MAX_BUFFERED_BYTES`] and returns its length.
    fn append(&mut self, bytes: &[u8]) -> usize {
        if self.buffer.capacity() == 0 {
            self.buffer = SPARE_BUFFER.take();
            self.buffer.reserve_exact(MAX_BUFFERED_BYTES);
        }
        if self.sent_offset > 0 {
            self.buffer.drain(..self.sent_offset);
            self.sent_offset = 0;
        }
        let accepted = bytes.len().min(MAX_BUFFERED_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..accepted]);
        accepted
    }

    /// Returns the buffer to the thread, unless it holds many unsent bytes.
    fn return_buffer(&mut self) {
        let (pending_len, capacity) = (self.pending().len(), self.buffer.capacity());
        if capacity == 0
            || pending_len > RETAIN_THRESHOLD_BYTES
            || (pending_len > 0 && capacity < MAX_BUFFERED_BYTES)
        {
            return;
        }
        let pending = self.pending().to_vec();
        let mut buffer = mem::replace(&mut self.buffer, pending);
        self.sent_offset = 0;
        if capacity >= MAX_BUFFERED_BYTES {
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
        // A pending drain has registered the waker, and may have freed some space.
        let drained = self.poll_drain(cx)?;
        if drained.is_ready() && bytes.len() >= MAX_BUFFERED_BYTES {
            return self.poll_send(cx, bytes);
        }
        match self.append(bytes) {
            0 if !bytes.is_empty() => Poll::Pending,
            accepted => Poll::Ready(Ok(accepted)),
        }
    }

    /// Sends all buffered bytes. Stores an error for later writes.
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

    /// Sends `bytes` without copying them. The buffer must be empty.
    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.io).poll_write(cx, bytes));
        Poll::Ready(self.record_sent(sent))
    }

    fn record_sent(&mut self, sent: io::Result<usize>) -> io::Result<usize> {
        let error = match sent {
            Ok(0) => io::ErrorKind::WriteZero.into(),
            Ok(sent) => {
                self.total_sent_bytes += sent as u64;
                return Ok(sent);
            }
            Err(error) => error,
        };
        self.write_error = Some((error.kind(), error.to_string()));
        self.sent_offset = self.buffer.len();
        self.return_buffer();
        Err(error)
    }
}
