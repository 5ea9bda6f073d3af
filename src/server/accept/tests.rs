//! Tests of the accept loop over real sockets: responses, garbage, resets and drain.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::tempdir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    runtime::Handle,
    sync::mpsc,
    task::JoinHandle,
};

use super::*;
use crate::server::{
    accept::serve,
    connection::ConnectionOptions,
    listener::{ListenAddress, Listener},
    runtime_pool::RuntimePool,
};

/// Answers with the path. `/wait…` sends a [`PendingCall`] to the test and waits for
/// its release; `/panic` panics.
#[derive(Clone)]
struct Echo {
    calls: mpsc::UnboundedSender<PendingCall>,
}

/// A call in flight: the test releases it or observes its drop.
struct PendingCall {
    release: CancellationToken,
    dropped: CancellationToken,
}

impl Service<Request<Incoming>> for Echo {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let calls = self.calls.clone();
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            if path.starts_with("/wait") {
                let (release, dropped) = (CancellationToken::new(), CancellationToken::new());
                let _dropped = dropped.clone().drop_guard();
                calls
                    .send(PendingCall {
                        release: release.clone(),
                        dropped,
                    })
                    .unwrap();
                release.cancelled().await;
            }
            assert_ne!(path, "/panic");
            Ok(Response::new(Full::new(path.into())))
        })
    }
}

struct TestServer {
    address: ListenAddress,
    stop_token: CancellationToken,
    serving: JoinHandle<()>,
    calls: mpsc::UnboundedReceiver<PendingCall>,
    runtime_pool: RuntimePool,
}

impl TestServer {
    fn start(address: &str, options: ConnectionOptions) -> Self {
        let listener = Listener::bind(&address.parse().unwrap(), None).unwrap();
        let (address, stop_token) = (listener.local_addr(), CancellationToken::new());
        let (sender, calls) = mpsc::unbounded_channel();
        let (runtime_pool, token) = (RuntimePool::start(2).unwrap(), stop_token.clone());
        let serving = Handle::current().spawn({
            let runtime_pool = runtime_pool.clone();
            async move {
                serve(
                    listener,
                    Echo { calls: sender },
                    &runtime_pool,
                    options,
                    token,
                )
                .await;
            }
        });
        Self {
            address,
            stop_token,
            serving,
            calls,
            runtime_pool,
        }
    }

    fn on_loopback() -> Self {
        Self::start("127.0.0.1:0", ConnectionOptions::default())
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address.to_string()).await.unwrap()
    }

    async fn client(&self) -> Client {
        Client::connect_over(self.connect().await).await
    }

    async fn shut_down(self) {
        self.stop_token.cancel();
        self.serving.await.unwrap();
    }
}

#[derive(Clone)]
struct Client(SendRequest<Empty<Bytes>>);

impl Client {
    async fn connect_over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        Handle::current().spawn(connection);
        Self(client)
    }

    async fn get(&mut self, path: &str) -> hyper::Result<Bytes> {
        let request = Request::get(format!("http://test{path}"))
            .body(Empty::new())
            .unwrap();
        let response = self.0.send_request(request).await?;
        assert!(!response.headers().contains_key("date"));
        Ok(response.into_body().collect().await?.to_bytes())
    }
}

// Rules: HTTP-18
#[tokio::test]
async fn requests_are_answered_over_http2() {
    let server = TestServer::on_loopback();
    for path in ["/a", "/b"] {
        let mut client = server.client().await;
        assert_eq!(client.get(path).await.unwrap(), path);
        assert_eq!(client.get(path).await.unwrap(), path);
    }
    server.shut_down().await;
}

// Rules: HTTP-18
#[tokio::test]
async fn requests_are_answered_over_http1() {
    let server = TestServer::on_loopback();
    let mut client = server.connect().await;
    client
        .write_all(b"GET /old HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).await.unwrap();
    assert!(
        response.starts_with("HTTP/1.1 200 OK") && response.ends_with("/old"),
        "{response}"
    );
    server.shut_down().await;
}

// Rules: CONN-7
#[tokio::test]
async fn requests_are_answered_over_a_unix_socket() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("lro.sock");
    let server = TestServer::start(
        &format!("unix:{}", path.display()),
        ConnectionOptions::default(),
    );
    let mut client = Client::connect_over(UnixStream::connect(&path).await.unwrap()).await;
    assert_eq!(client.get("/unix").await.unwrap(), "/unix");
    drop(client);
    server.shut_down().await;
    assert!(!path.exists());
}

// Rules: CONN-2
#[tokio::test]
async fn server_survives_1000_clients_that_send_garbage() {
    let server = TestServer::on_loopback();
    let mut garbage = JoinSet::new();
    for seed in 0..1000_u32 {
        let mut stream = server.connect().await;
        garbage.spawn(async move {
            let bytes: Vec<u8> = (0..64)
                .flat_map(|i: u32| seed.wrapping_mul(i * i + 1).to_le_bytes())
                .collect();
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
    }
    garbage.join_all().await;
    assert_eq!(server.client().await.get("/still").await.unwrap(), "/still");
    server.shut_down().await;
}

// Rules: CONN-3
#[tokio::test]
async fn panicking_call_resets_only_its_own_stream() {
    let mut server = TestServer::on_loopback();
    let mut client = server.client().await;
    let mut other = client.clone();
    let pending_request = Handle::current().spawn(async move { other.get("/wait").await });
    let call = server.calls.recv().await.unwrap();

    client.get("/panic").await.unwrap_err();
    assert_eq!(client.get("/after").await.unwrap(), "/after");
    call.release.cancel();
    assert_eq!(pending_request.await.unwrap().unwrap(), "/wait");
    drop(client);
    server.shut_down().await;
}

// Rules: CONN-3
#[tokio::test]
async fn call_cancelled_by_its_client_is_dropped() {
    let mut server = TestServer::on_loopback();
    let client = server.client().await;
    let mut cancelled_client = client.clone();
    let pending_request =
        Handle::current().spawn(async move { cancelled_client.get("/wait").await });
    let call = server.calls.recv().await.unwrap();

    pending_request.abort();
    call.dropped.cancelled().await;
    assert_eq!(client.clone().get("/next").await.unwrap(), "/next");
    drop(client);
    server.shut_down().await;
}

// Rules: SHUTDOWN-1
#[tokio::test]
async fn drain_answers_in_flight_calls_and_rejects_new_connections() {
    let mut server = TestServer::on_loopback();
    let (mut client, mut second) = (server.client().await, server.client().await);
    assert_eq!(second.get("/idle").await.unwrap(), "/idle");
    let pending_request = Handle::current().spawn(async move { client.get("/wait").await });
    let call = server.calls.recv().await.unwrap();

    server.stop_token.cancel();
    // The idle connection gets GOAWAY after the listener is closed.
    while second.get("/idle").await.is_ok() {}
    TcpStream::connect(server.address.to_string())
        .await
        .unwrap_err();
    assert!(!server.serving.is_finished());

    call.release.cancel();
    assert_eq!(pending_request.await.unwrap().unwrap(), "/wait");
    server.serving.await.unwrap();
}

#[tokio::test]
async fn dropping_serve_drops_every_connection_and_call() {
    let mut server = TestServer::on_loopback();
    let mut client = server.client().await;
    let pending_request = Handle::current().spawn(async move { client.get("/wait").await });
    let call = server.calls.recv().await.unwrap();

    server.serving.abort();
    pending_request.await.unwrap().unwrap_err();
    call.dropped.cancelled().await;
    assert_eq!(server.runtime_pool.open_connections(), [0, 0]);
}

// Rules: CONN-4
#[tokio::test]
async fn connection_above_the_limit_is_closed_and_others_stay_open() {
    let options = ConnectionOptions {
        max_connections: 2,
        ..ConnectionOptions::default()
    };
    let server = TestServer::start("127.0.0.1:0", options);
    let (mut first, mut second) = (server.client().await, server.client().await);
    first.get("/a").await.unwrap();
    second.get("/b").await.unwrap();
    assert_eq!(server.runtime_pool.open_connections(), [1, 1]);

    let mut third = server.connect().await;
    assert_eq!(third.read(&mut [0; 1]).await.unwrap(), 0);
    first.get("/a").await.unwrap();

    // Closing a connection frees its slot.
    drop(second);
    while server.try_request().await.is_err() {}
    drop(first);
    server.shut_down().await;
}

impl TestServer {
    async fn try_request(&self) -> Result<(), Box<dyn std::error::Error>> {
        let stream = TokioIo::new(self.connect().await);
        let (client, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
        Handle::current().spawn(connection);
        Client(client).get("/again").await?;
        Ok(())
    }
}

// Rules: CONN-4
#[test]
fn accept_backs_off_on_lasting_errors_but_not_connection_errors() {
    let aborted = io::ErrorKind::ConnectionAborted.into();
    assert_eq!(accept_retry_delay(&aborted, 3), None);

    let too_many_open_files = io::Error::from_raw_os_error(24);
    assert_eq!(
        accept_retry_delay(&too_many_open_files, 0),
        Some(Duration::from_millis(10))
    );
    assert_eq!(
        accept_retry_delay(&too_many_open_files, 99),
        Some(Duration::from_secs(1))
    );
}
