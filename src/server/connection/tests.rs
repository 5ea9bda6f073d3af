//! Single connections in paused time: silence before, during and after requests.

use std::future::{Ready, ready};

use http_body_util::Full;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    runtime::Handle,
    task::JoinHandle,
    time::Instant,
};

use super::*;

/// What a client sends before its first HTTP/2 request: preface and SETTINGS.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Answers every request with a body of its size, in bytes.
#[derive(Clone)]
struct Page(usize);

impl Service<Request<Incoming>> for Page {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Incoming>) -> Self::Future {
        ready(Ok(Response::new(Full::new(vec![b'x'; self.0].into()))))
    }
}

/// A connection that serves `page`, its peer, and the token that stops it.
fn connect(
    page: Page,
) -> (
    DuplexStream,
    JoinHandle<Result<(), BoxError>>,
    CancellationToken,
) {
    let (ours, peers) = duplex(256);
    let stopping = CancellationToken::new();
    let token = stopping.clone();
    let serving = async move {
        serve(
            ours,
            page,
            &Connections::default(),
            TaskTracker::new(),
            token,
        )
        .await
    };
    (peers, Handle::current().spawn(serving), stopping)
}

async fn end(serving: JoinHandle<Result<(), BoxError>>) -> String {
    serving
        .await
        .unwrap()
        .map_or_else(|error| error.to_string(), |()| "in peace".to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_is_dropped_after_ten_seconds() {
    let start = Instant::now();
    let (_peer, serving, _) = connect(Page(1));
    assert_eq!(end(serving).await, "no request came in time");
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_finishes_its_first_words_is_dropped_as_soon() {
    for words in [&HELLO[..20], b"GET / HTTP/1.1\r\nhost: a\r\nx-slow: "] {
        let start = Instant::now();
        let (mut peer, serving, _) = connect(Page(1));
        peer.write_all(words).await.unwrap();
        assert_eq!(end(serving).await, "no request came in time");
        assert_eq!(start.elapsed().as_secs(), 10);
    }
}

#[tokio::test(start_paused = true)]
async fn an_http2_peer_that_answers_no_ping_is_dropped_after_forty_seconds() {
    let start = Instant::now();
    let (mut peer, serving, _) = connect(Page(1));
    peer.write_all(HELLO).await.unwrap();
    let mut received = Vec::new();
    peer.read_to_end(&mut received).await.unwrap();
    end(serving).await;
    assert_eq!(start.elapsed().as_secs(), 40);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stops_reading_is_dropped_after_forty_seconds() {
    let start = Instant::now();
    let (mut peer, serving, _) = connect(Page(10_000));
    peer.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(end(serving).await, "the peer has stopped reading");
    assert_eq!(start.elapsed().as_secs(), 40);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_slowly_gets_everything() {
    let (mut peer, serving, _) = connect(Page(10_000));
    peer.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut received = Vec::new();
    while peer.read_buf(&mut received).await.unwrap() != 0 {
        // Paused time makes this pause exact and free.
        tokio::time::advance(Duration::from_secs(30)).await;
    }
    assert!(received.ends_with(&[b'x'; 10_000]));
    assert_eq!(end(serving).await, "in peace");
}

#[tokio::test(start_paused = true)]
async fn an_idle_http1_connection_is_kept_for_a_while() {
    let start = Instant::now();
    let (mut peer, serving, _) = connect(Page(1));
    peer.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut received = Vec::new();
    peer.read_to_end(&mut received).await.unwrap();
    end(serving).await;
    assert_eq!(start.elapsed().as_secs(), 75);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_has_not_opened_ends_at_once_when_stopped() {
    let start = Instant::now();
    let (_peer, serving, stopping) = connect(Page(1));
    tokio::task::yield_now().await;
    stopping.cancel();
    assert_eq!(end(serving).await, "in peace");
    assert_eq!(start.elapsed().as_secs(), 0);
}

#[tokio::test(start_paused = true)]
async fn garbage_ends_the_connection_at_once() {
    for garbage in [
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage garbage garbage",
        "\0\x01\x02\x03\x04",
    ] {
        let start = Instant::now();
        let (mut peer, serving, _) = connect(Page(1));
        peer.write_all(garbage.as_bytes()).await.unwrap();
        let mut received = Vec::new();
        peer.read_to_end(&mut received).await.unwrap();
        drop(peer);
        assert_ne!(end(serving).await, "in peace");
        assert_eq!(start.elapsed().as_secs(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn who_goes_on_after_garbage_gets_an_answer_and_a_second_to_read_it() {
    let start = Instant::now();
    let (mut peer, serving, _) = connect(Page(1));
    peer.write_all(b"garbage\r\n\r\n").await.unwrap();
    let mut received = String::new();
    peer.read_to_string(&mut received).await.unwrap();
    assert!(received.starts_with("HTTP/1.1 400 "), "{received}");
    assert!(received.contains("MALFORMED_REQUEST"), "{received}");
    // What still comes is thrown away.
    peer.write_all(&[0; 1000]).await.unwrap();
    assert_ne!(end(serving).await, "in peace");
    assert_eq!(start.elapsed().as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_ready_is_waited_for() {
    #[derive(Clone)]
    struct Busy(Page, bool);

    impl Service<Request<Incoming>> for Busy {
        type Response = Response<Full<Bytes>>;
        type Error = Infallible;
        type Future = Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            if self.1 {
                return self.0.poll_ready(cx);
            }
            self.1 = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        }

        fn call(&mut self, request: Request<Incoming>) -> Self::Future {
            assert!(self.1, "called before it was ready");
            self.0.call(request)
        }
    }

    let (ours, mut peer) = duplex(256);
    let serving = Handle::current().spawn(async move {
        let (calls, stopping) = (TaskTracker::new(), CancellationToken::new());
        serve(
            ours,
            Busy(Page(3), false),
            &Connections::default(),
            calls,
            stopping,
        )
        .await
    });
    peer.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut received = String::new();
    peer.read_to_string(&mut received).await.unwrap();
    assert!(received.ends_with("\r\n\r\nxxx"), "{received}");
    assert_eq!(end(serving).await, "in peace");
}
