//! The accept loop over real sockets: answers, floods, resets and the drain.

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
    connection::Connections,
    lanes::Lanes,
    listener::{ListenAddress, Listener},
};

/// Answers with its path. `/wait…` tells the test that it waits, and does so
/// until it is told to answer; `/panic` panics.
#[derive(Clone)]
struct Echo {
    waits: mpsc::UnboundedSender<Waiting>,
}

/// A call in flight, seen from the test: tell it to answer, or see it dropped.
struct Waiting {
    answer: CancellationToken,
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
        let waits = self.waits.clone();
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            if path.starts_with("/wait") {
                let (answer, dropped) = (CancellationToken::new(), CancellationToken::new());
                let _dropped = dropped.clone().drop_guard();
                waits
                    .send(Waiting {
                        answer: answer.clone(),
                        dropped,
                    })
                    .unwrap();
                answer.cancelled().await;
            }
            assert_ne!(path, "/panic");
            Ok(Response::new(Full::new(path.into())))
        })
    }
}

struct Served {
    address: ListenAddress,
    stopping: CancellationToken,
    serving: JoinHandle<()>,
    waits: mpsc::UnboundedReceiver<Waiting>,
    lanes: Lanes,
}

impl Served {
    fn start(address: &str, options: Connections) -> Self {
        let listener = Listener::bind(&address.parse().unwrap(), None).unwrap();
        let (address, stopping) = (listener.local(), CancellationToken::new());
        let (sender, waits) = mpsc::unbounded_channel();
        let (lanes, token) = (Lanes::start(2).unwrap(), stopping.clone());
        let serving = Handle::current().spawn({
            let lanes = lanes.clone();
            async move { serve(listener, Echo { waits: sender }, &lanes, options, token).await }
        });
        Self {
            address,
            stopping,
            serving,
            waits,
            lanes,
        }
    }

    fn local() -> Self {
        Self::start("127.0.0.1:0", Connections::default())
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address.to_string()).await.unwrap()
    }

    async fn client(&self) -> Client {
        Client::over(self.connect().await).await
    }

    async fn stopped(self) {
        self.stopping.cancel();
        self.serving.await.unwrap();
    }
}

#[derive(Clone)]
struct Client(SendRequest<Empty<Bytes>>);

impl Client {
    async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
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

#[tokio::test]
async fn clients_get_their_answers_over_http2() {
    let served = Served::local();
    for path in ["/a", "/b"] {
        let mut client = served.client().await;
        assert_eq!(client.get(path).await.unwrap(), path);
        assert_eq!(client.get(path).await.unwrap(), path);
    }
    served.stopped().await;
}

#[tokio::test]
async fn clients_get_their_answers_over_http1() {
    let served = Served::local();
    let mut client = served.connect().await;
    client
        .write_all(b"GET /old HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("/old"),
        "{answer}"
    );
    served.stopped().await;
}

#[tokio::test]
async fn clients_get_their_answers_over_a_unix_socket() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("lro.sock");
    let served = Served::start(&format!("unix:{}", path.display()), Connections::default());
    let mut client = Client::over(UnixStream::connect(&path).await.unwrap()).await;
    assert_eq!(client.get("/unix").await.unwrap(), "/unix");
    drop(client);
    served.stopped().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn a_thousand_clients_that_send_garbage_do_no_harm() {
    let served = Served::local();
    let mut garbage = JoinSet::new();
    for seed in 0..1000_u32 {
        let mut stream = served.connect().await;
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
    assert_eq!(served.client().await.get("/still").await.unwrap(), "/still");
    served.stopped().await;
}

#[tokio::test]
async fn a_panic_resets_its_stream_and_no_other() {
    let mut served = Served::local();
    let mut client = served.client().await;
    let mut other = client.clone();
    let waiting = Handle::current().spawn(async move { other.get("/wait").await });
    let call = served.waits.recv().await.unwrap();

    client.get("/panic").await.unwrap_err();
    assert_eq!(client.get("/after").await.unwrap(), "/after");
    call.answer.cancel();
    assert_eq!(waiting.await.unwrap().unwrap(), "/wait");
    drop(client);
    served.stopped().await;
}

#[tokio::test]
async fn a_call_that_its_client_gives_up_is_dropped() {
    let mut served = Served::local();
    let client = served.client().await;
    let mut asking = client.clone();
    let asked = Handle::current().spawn(async move { asking.get("/wait").await });
    let call = served.waits.recv().await.unwrap();

    asked.abort();
    call.dropped.cancelled().await;
    assert_eq!(client.clone().get("/next").await.unwrap(), "/next");
    drop(client);
    served.stopped().await;
}

#[tokio::test]
async fn the_drain_answers_calls_in_flight_and_takes_no_new_ones() {
    let mut served = Served::local();
    let (mut client, mut second) = (served.client().await, served.client().await);
    assert_eq!(second.get("/idle").await.unwrap(), "/idle");
    let asked = Handle::current().spawn(async move { client.get("/wait").await });
    let call = served.waits.recv().await.unwrap();

    served.stopping.cancel();
    // An idle connection is told to go away, which is how we know that the
    // listener is closed by now.
    while second.get("/idle").await.is_ok() {}
    TcpStream::connect(served.address.to_string())
        .await
        .unwrap_err();
    assert!(!served.serving.is_finished());

    call.answer.cancel();
    assert_eq!(asked.await.unwrap().unwrap(), "/wait");
    served.serving.await.unwrap();
}

#[tokio::test]
async fn whoever_drops_the_future_drops_every_connection_and_call() {
    let mut served = Served::local();
    let mut client = served.client().await;
    let asked = Handle::current().spawn(async move { client.get("/wait").await });
    let call = served.waits.recv().await.unwrap();

    served.serving.abort();
    asked.await.unwrap().unwrap_err();
    call.dropped.cancelled().await;
    assert_eq!(format!("{:?}", served.lanes), "[0, 0]");
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_the_others_are_kept() {
    let options = Connections {
        max_connections: 2,
        ..Connections::default()
    };
    let served = Served::start("127.0.0.1:0", options);
    let (mut first, mut second) = (served.client().await, served.client().await);
    first.get("/a").await.unwrap();
    second.get("/b").await.unwrap();
    assert_eq!(format!("{:?}", served.lanes), "[1, 1]");

    let mut third = served.connect().await;
    assert_eq!(third.read(&mut [0; 1]).await.unwrap(), 0);
    first.get("/a").await.unwrap();

    // A place that falls free is given away again.
    drop(second);
    while served.client_answers().await.is_err() {}
    drop(first);
    served.stopped().await;
}

impl Served {
    async fn client_answers(&self) -> Result<(), Box<dyn std::error::Error>> {
        let stream = TokioIo::new(self.connect().await);
        let (client, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
        Handle::current().spawn(connection);
        Client(client).get("/again").await?;
        Ok(())
    }
}

#[test]
fn an_error_of_one_connection_does_not_slow_the_loop_and_a_lasting_one_does() {
    let aborted = io::ErrorKind::ConnectionAborted.into();
    assert_eq!(backoff(&aborted, 3), None);

    let out_of_files = io::Error::from_raw_os_error(24);
    assert_eq!(backoff(&out_of_files, 0), Some(Duration::from_millis(10)));
    assert_eq!(backoff(&out_of_files, 99), Some(Duration::from_secs(1)));
}
