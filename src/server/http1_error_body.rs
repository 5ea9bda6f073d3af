//! Adds the JSON error body to hyper's own HTTP/1.1 error responses, and delays the
//! close of the connection until the client can read it.
//!
//! hyper has no hook for the responses to requests it cannot parse, so the socket
//! rewrites them: of the responses with these codes, only hyper's own have no body.
//! HTTP/2 bytes are never inspected, because a message there may end with the same
//! bytes.

use std::{
    io,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use crate::gateway::http_error::HttpError;

/// Codes of hyper's own error responses.
const HYPER_ERROR_CODES: [StatusCode; 3] = [
    StatusCode::BAD_REQUEST,
    StatusCode::URI_TOO_LONG,
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
];

/// Maximum length of hyper's own error response.
const MAX_ERROR_HEAD_BYTES: usize = 200;

/// Limits for discarding the rest of the request before the close. Closing with unread
/// bytes resets the connection, and the client loses the response (RFC 9112, 9.6).
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_DRAIN_BYTES: usize = 8 << 20;

static ERROR_RESPONSES: LazyLock<[Vec<u8>; 3]> =
    LazyLock::new(|| HYPER_ERROR_CODES.map(error_response));

/// A socket that adds a body to hyper's own error responses.
#[derive(Debug)]
pub(super) struct ErrorBodyRewriter<T> {
    io: T,
    /// Detected from the first write. In HTTP/2, the server sends SETTINGS first.
    is_http1: Option<bool>,
    /// Unwritten rest of a replacement response.
    pending: &'static [u8],
    drain: Option<DrainBeforeClose>,
}

/// Discards received bytes before the close (nginx: lingering close).
#[derive(Debug)]
struct DrainBeforeClose {
    timeout: Pin<Box<Sleep>>,
    drained_bytes: usize,
}

// === impl ErrorBodyRewriter ===

impl<T> ErrorBodyRewriter<T> {
    pub(super) fn new(io: T) -> Self {
        Self {
            io,
            is_http1: None,
            pending: &[],
            drain: None,
        }
    }

    /// Returns the offset of a bare error response at the end of `bytes`, and its
    /// replacement.
    fn find_replacement(&mut self, bytes: &[u8]) -> Option<(usize, &'static [u8])> {
        if bytes.is_empty() {
            return None;
        }
        // hyper writes the head of a response in one piece, so the version is complete.
        let detect = || bytes.starts_with(b"HTTP/1.");
        let is_http1 = *self.is_http1.get_or_insert_with(detect);
        is_http1.then(|| find_bare_error(bytes)).flatten()
    }
}

impl<T: AsyncWrite + Unpin> ErrorBodyRewriter<T> {
    fn poll_write_pending(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(context, self.pending))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.pending = &self.pending[written..],
            }
        }
        Poll::Ready(Ok(()))
    }
}

// === impl DrainBeforeClose ===

impl DrainBeforeClose {
    /// Returns `Ready` at the end of the stream, on an error, or at a limit.
    fn poll<T: AsyncRead + Unpin>(&mut self, io: &mut T, context: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; 8 * 1024];
        loop {
            if self.drained_bytes > MAX_DRAIN_BYTES
                || self.timeout.as_mut().poll(context).is_ready()
            {
                return Poll::Ready(());
            }
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut *io).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    self.drained_bytes += buffer.filled().len();
                }
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ErrorBodyRewriter<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, into)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ErrorBodyRewriter<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_pending(context))?;
        let Some((offset, replacement)) = self.find_replacement(bytes) else {
            return Pin::new(&mut self.io).poll_write(context, bytes);
        };
        if offset > 0 {
            // First the responses to earlier, pipelined requests.
            return Pin::new(&mut self.io).poll_write(context, &bytes[..offset]);
        }
        self.pending = replacement;
        self.drain = Some(DrainBeforeClose {
            timeout: Box::pin(sleep(DRAIN_TIMEOUT)),
            drained_bytes: 0,
        });
        // A pending rest is written before the next flush.
        let _ = self.poll_write_pending(context)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_pending(context))?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_write_pending(context))?;
        ready!(Pin::new(&mut this.io).poll_shutdown(context))?;
        if let Some(drain) = &mut this.drain {
            ready!(drain.poll(&mut this.io, context));
        }
        Poll::Ready(Ok(()))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Returns the offset of a bare error response at the end of `bytes`, and its
/// replacement.
fn find_bare_error(bytes: &[u8]) -> Option<(usize, &'static [u8])> {
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let tail = bytes.len().saturating_sub(MAX_ERROR_HEAD_BYTES);
    let start = bytes[tail..]
        .windows(9)
        .rposition(|window| window == b"HTTP/1.1 ")?;
    let head = std::str::from_utf8(&bytes[tail + start..]).ok()?;
    let is_bare = head.contains("\r\ncontent-length: 0\r\n") && !head.contains("content-type");
    let code = head.get(9..12).filter(|_| is_bare)?;
    let mut codes = HYPER_ERROR_CODES.iter();
    let index = codes.position(|known| known.as_str() == code)?;
    Some((tail + start, &ERROR_RESPONSES[index]))
}

fn error_response(code: StatusCode) -> Vec<u8> {
    let body = HttpError::unparsable_request(code).to_json();
    let head = format!(
        "HTTP/1.1 {code}\r\ncontent-type: application/json; charset=UTF-8\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, empty, join, sink};

    use super::*;

    const BARE_ERROR: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";

    // Rules: HTTP-19
    #[tokio::test]
    async fn first_write_decides_whether_error_bodies_are_rewritten() {
        for (first, is_rewritten) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"[..], true),
            (BARE_ERROR, true),
            // HTTP/2 SETTINGS.
            (b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64", false),
        ] {
            let mut socket = ErrorBodyRewriter::new(join(empty(), sink()));
            socket.write_all(first).await.unwrap();
            socket.write_all(BARE_ERROR).await.unwrap();
            assert_eq!(socket.drain.is_some(), is_rewritten, "{first:?}");
        }
    }

    // Rules: HTTP-19
    #[test]
    fn only_a_bare_error_at_the_end_is_rewritten() {
        let bare_error = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\
            date: Mon, 01 Jan 2024 00:00:00 GMT\r\n\r\n";
        let (at, replacement) = find_bare_error(bare_error.as_bytes()).unwrap();
        assert_eq!(at, 0);
        let replacement = std::str::from_utf8(replacement).unwrap();
        assert!(
            replacement.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{replacement}"
        );
        assert!(replacement.contains("MALFORMED_REQUEST"), "{replacement}");
        let pipelined = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{{}}{bare_error}");
        assert_eq!(
            find_bare_error(pipelined.as_bytes()).unwrap().0,
            pipelined.len() - bare_error.len()
        );
        for other in [
            "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 7\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-type: a\r\ncontent-length: 0\r\n\r\n",
            "\r\n\r\n",
            "",
        ] {
            assert_eq!(find_bare_error(other.as_bytes()), None, "{other}");
        }
    }
}
