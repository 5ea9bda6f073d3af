//! Tests of one connection with paused time: timeouts before, during and after requests.

use std::future::{Ready, ready};

use http_body_util::Full;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    runtime::Handle,
    task::JoinHandle,
    time::Instant,
};

use super::*;

/// The HTTP/2 preface and SETTINGS of a client.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Answers every request with a body of this many bytes.
#[derive(Clone)]
struct FixedSizeBody(usize);

impl Service<Request<Incoming>> for FixedSizeBody {
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

/// Starts a connection; returns its peer, its task and its stop token.
fn connect(
    service: FixedSizeBody,
) -> (
    DuplexStream,
    JoinHandle<Result<(), BoxError>>,
    CancellationToken,
) {
    let (local, peer) = duplex(256);
    let stop_token = CancellationToken::new();
    let token = stop_token.clone();
    let serving = async move {
        serve(
            local,
            service,
            &ConnectionOptions::default(),
            TaskTracker::new(),
            token,
        )
        .await
    };
    (peer, Handle::current().spawn(serving), stop_token)
}

async fn connection_result(serving: JoinHandle<Result<(), BoxError>>) -> String {
    serving
        .await
        .unwrap()
        .map_or_else(|error| error.to_string(), |()| "ok".to_owned())
}

// Rules: CONN-1
#[tokio::test(start_paused = true)]
async fn silent_connection_is_closed_after_10_seconds() {
    let start = Instant::now();
    let (_peer, serving, _) = connect(FixedSizeBody(1));
    assert_eq!(
        connection_result(serving).await,
        "handshake timeout: no request received"
    );
    assert_eq!(start.elapsed().as_secs(), 10);
}

// Rules: CONN-1
#[tokio::test(start_paused = true)]
async fn incomplete_connection_preface_times_out() {
    for partial_request in [
        &HTTP2_PREFACE[..20],
        b"GET / HTTP/1.1\r\nhost: a\r\nx-slow: ",
    ] {
        let start = Instant::now();
        let (mut peer, serving, _) = connect(FixedSizeBody(1));
        peer.write_all(partial_request).await.unwrap();
        assert_eq!(
            connection_result(serving).await,
            "handshake timeout: no request received"
        );
        assert_eq!(start.elapsed().as_secs(), 10);
    }
}

// Rules: CONN-1
#[tokio::test(start_paused = true)]
async fn http2_connection_without_ping_ack_is_closed_after_40_seconds() {
    let start = Instant::now();
    let (mut peer, serving, _) = connect(FixedSizeBody(1));
    peer.write_all(HTTP2_PREFACE).await.unwrap();
    let mut received = Vec::new();
    peer.read_to_end(&mut received).await.unwrap();
    connection_result(serving).await;
    assert_eq!(start.elapsed().as_secs(), 40);
}

// Rules: CONN-1
#[tokio::test(start_paused = true)]
async fn connection_that_stops_reading_is_closed_after_40_seconds() {
    let start = Instant::now();
    let (mut peer, serving, _) = connect(FixedSizeBody(10_000));
    peer.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(
        connection_result(serving).await,
        "write timeout: the peer stopped reading"
    );
    assert_eq!(start.elapsed().as_secs(), 40);
}

// Rules: CONN-1
#[tokio::test(start_paused = true)]
async fn slow_reader_receives_the_complete_response() {
    let (mut peer, serving, _) = connect(FixedSizeBody(10_000));
    peer.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut received = Vec::new();
    while peer.read_buf(&mut received).await.unwrap() != 0 {
        tokio::time::advance(Duration::from_secs(30)).await;
    }
    assert!(received.ends_with(&[b'x'; 10_000]));
    assert_eq!(connection_result(serving).await, "ok");
}

// Rules: CONN-1
#[tokio::test(start_paused = true)]
async fn idle_http1_connection_is_closed_after_75_seconds() {
    let start = Instant::now();
    let (mut peer, serving, _) = connect(FixedSizeBody(1));
    peer.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut received = Vec::new();
    peer.read_to_end(&mut received).await.unwrap();
    connection_result(serving).await;
    assert_eq!(start.elapsed().as_secs(), 75);
}

// Rules: SHUTDOWN-1
#[tokio::test(start_paused = true)]
async fn connection_in_handshake_closes_immediately_on_shutdown() {
    let start = Instant::now();
    let (_peer, serving, stop_token) = connect(FixedSizeBody(1));
    tokio::task::yield_now().await;
    stop_token.cancel();
    assert_eq!(connection_result(serving).await, "ok");
    assert_eq!(start.elapsed().as_secs(), 0);
}

// Rules: CONN-2
#[tokio::test(start_paused = true)]
async fn garbage_closes_the_connection_immediately() {
    for garbage in [
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage garbage garbage",
        "\0\x01\x02\x03\x04",
    ] {
        let start = Instant::now();
        let (mut peer, serving, _) = connect(FixedSizeBody(1));
        peer.write_all(garbage.as_bytes()).await.unwrap();
        let mut received = Vec::new();
        peer.read_to_end(&mut received).await.unwrap();
        drop(peer);
        assert_ne!(connection_result(serving).await, "ok");
        assert_eq!(start.elapsed().as_secs(), 0);
    }
}

// Rules: CONN-2
#[tokio::test(start_paused = true)]
async fn garbage_gets_a_400_response_and_the_connection_closes_after_1_s() {
    let start = Instant::now();
    let (mut peer, serving, _) = connect(FixedSizeBody(1));
    peer.write_all(b"garbage\r\n\r\n").await.unwrap();
    let mut received = String::new();
    peer.read_to_string(&mut received).await.unwrap();
    assert!(received.starts_with("HTTP/1.1 400 "), "{received}");
    assert!(received.contains("MALFORMED_REQUEST"), "{received}");
    // Bytes received after the response are discarded.
    peer.write_all(&[0; 1000]).await.unwrap();
    assert_ne!(connection_result(serving).await, "ok");
    assert_eq!(start.elapsed().as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn request_waits_until_the_service_is_ready() {
    #[derive(Clone)]
    struct NotReadyOnce(FixedSizeBody, bool);

    impl Service<Request<Incoming>> for NotReadyOnce {
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
            assert!(self.1, "called before ready");
            self.0.call(request)
        }
    }

    let (local, mut peer) = duplex(256);
    let serving = Handle::current().spawn(async move {
        let (calls, stop_token) = (TaskTracker::new(), CancellationToken::new());
        serve(
            local,
            NotReadyOnce(FixedSizeBody(3), false),
            &ConnectionOptions::default(),
            calls,
            stop_token,
        )
        .await
    });
    peer.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut received = String::new();
    peer.read_to_string(&mut received).await.unwrap();
    assert!(received.ends_with("\r\n\r\nxxx"), "{received}");
    assert_eq!(connection_result(serving).await, "ok");
}
