//! Requests that hyper cannot read. It answers them with a bare code and ends
//! the connection; here the answer gets the JSON of every other error, and the
//! client the time to read it.
//!
//! hyper has no place for that, so it happens between hyper and the socket: over
//! HTTP/1.1, an answer without a body is one that only hyper gives with these
//! codes. Over HTTP/2 bytes are never looked at: there a message may end with
//! anything, also with what a client has captured of such an answer.

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

use crate::gateway::status::Refusal;

/// The codes of hyper's own answers.
const CODES: [StatusCode; 3] = [
    StatusCode::BAD_REQUEST,
    StatusCode::URI_TOO_LONG,
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
];

/// hyper's answer is no longer than this.
const LONGEST: usize = 200;

/// How long, and for how many bytes, the rest of the request is read and thrown
/// away. If it were not, the system would take the answer back (RFC 9112, 9.6).
const LINGER: Duration = Duration::from_secs(1);
const DISCARD: usize = 8 << 20;

static ANSWERS: LazyLock<[Vec<u8>; 3]> = LazyLock::new(|| CODES.map(answer));

/// A socket whose bare refusals get a body.
#[derive(Debug)]
pub(super) struct Unreadable<T> {
    io: T,
    /// What is spoken; not known before the first bytes are written.
    speaks: Option<Protocol>,
    /// Of the better answer, what is still to be written.
    rest: &'static [u8],
    linger: Option<Linger>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http1,
    /// HTTP/2, whose servers begin with SETTINGS, or whatever there may be.
    Other,
}

#[derive(Debug)]
struct Linger {
    end: Pin<Box<Sleep>>,
    discarded: usize,
}

// === impl Unreadable ===

impl<T> Unreadable<T> {
    pub(super) fn new(io: T) -> Self {
        Self {
            io,
            speaks: None,
            rest: &[],
            linger: None,
        }
    }

    /// Where a refusal that should be better begins in these bytes, and what
    /// is better. The first bytes of all decide for the whole connection.
    fn refusal(&mut self, bytes: &[u8]) -> Option<(usize, &'static [u8])> {
        if bytes.is_empty() {
            return None;
        }
        let speaks = *self.speaks.get_or_insert_with(|| Protocol::of(bytes));
        match speaks {
            Protocol::Http1 => bare_refusal(bytes),
            Protocol::Other => None,
        }
    }
}

impl<T: AsyncWrite + Unpin> Unreadable<T> {
    fn poll_rest(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.rest.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(context, self.rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.rest = &self.rest[written..],
            }
        }
        Poll::Ready(Ok(()))
    }
}

// === impl Protocol ===

impl Protocol {
    /// What a server speaks whose first write is this. hyper writes the head of
    /// an answer as one piece, so that its first word is never cut.
    fn of(first: &[u8]) -> Self {
        if first.starts_with(b"HTTP/1.") {
            Self::Http1
        } else {
            Self::Other
        }
    }
}

// === impl Linger ===

impl Linger {
    fn poll<T: AsyncRead + Unpin>(&mut self, io: &mut T, context: &mut Context<'_>) -> Poll<()> {
        let mut room = [0; 8 * 1024];
        loop {
            if DISCARD < self.discarded || self.end.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            let mut into = ReadBuf::new(&mut room);
            match ready!(Pin::new(&mut *io).poll_read(context, &mut into)) {
                Ok(()) if !into.filled().is_empty() => self.discarded += into.filled().len(),
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Unreadable<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, into)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Unreadable<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_rest(context))?;
        let Some((front, better)) = self.refusal(bytes) else {
            return Pin::new(&mut self.io).poll_write(context, bytes);
        };
        if 0 < front {
            // The answers before it, to requests that could be read.
            return Pin::new(&mut self.io).poll_write(context, &bytes[..front]);
        }
        self.rest = better;
        self.linger = Some(Linger {
            end: Box::pin(sleep(LINGER)),
            discarded: 0,
        });
        // What cannot be written now is written before the next flush.
        let _ = self.poll_rest(context)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_rest(context))?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_rest(context))?;
        ready!(Pin::new(&mut this.io).poll_shutdown(context))?;
        if let Some(linger) = &mut this.linger {
            ready!(linger.poll(&mut this.io, context));
        }
        Poll::Ready(Ok(()))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Where a refusal without a body begins at the end of what hyper writes, and
/// what is better.
fn bare_refusal(bytes: &[u8]) -> Option<(usize, &'static [u8])> {
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let tail = bytes.len().saturating_sub(LONGEST);
    let begin = bytes[tail..]
        .windows(9)
        .rposition(|window| window == b"HTTP/1.1 ")?;
    let head = std::str::from_utf8(&bytes[tail + begin..]).ok()?;
    let is_bare = head.contains("\r\ncontent-length: 0\r\n") && !head.contains("content-type");
    let code = head.get(9..12).filter(|_| is_bare)?;
    let known = CODES.iter().position(|known| known.as_str() == code)?;
    Some((tail + begin, &ANSWERS[known]))
}

fn answer(code: StatusCode) -> Vec<u8> {
    let body = Refusal::unreadable(code).to_json();
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

    const BARE: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";

    #[tokio::test]
    async fn the_first_write_of_a_connection_decides_whether_any_is_looked_at() {
        for (first, is_better) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"[..], true),
            (BARE, true),
            // The SETTINGS of HTTP/2.
            (b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64", false),
        ] {
            let mut socket = Unreadable::new(join(empty(), sink()));
            socket.write_all(first).await.unwrap();
            socket.write_all(BARE).await.unwrap();
            assert_eq!(socket.linger.is_some(), is_better, "{first:?}");
        }
    }

    #[test]
    fn only_a_bare_refusal_at_the_end_is_made_better() {
        let bare = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\
            date: Mon, 01 Jan 2024 00:00:00 GMT\r\n\r\n";
        let (at, better) = bare_refusal(bare.as_bytes()).unwrap();
        assert_eq!(at, 0);
        let better = std::str::from_utf8(better).unwrap();
        assert!(
            better.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{better}"
        );
        assert!(better.contains("MALFORMED_REQUEST"), "{better}");
        let behind = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{{}}{bare}");
        assert_eq!(
            bare_refusal(behind.as_bytes()).unwrap().0,
            behind.len() - bare.len()
        );
        for other in [
            "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 7\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-type: a\r\ncontent-length: 0\r\n\r\n",
            "\r\n\r\n",
            "",
        ] {
            assert_eq!(bare_refusal(other.as_bytes()), None, "{other}");
        }
    }
}
