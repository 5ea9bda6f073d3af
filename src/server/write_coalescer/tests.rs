//! Tests with sockets that split writes, block, stall and fail.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::atomic::{AtomicUsize, Ordering},
};

use futures_util::{FutureExt, future::join, poll};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

/// A socket whose writes follow a script.
#[derive(Clone, Default)]
struct ScriptedSocket(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    steps: VecDeque<Step>,
    received: Vec<u8>,
    writes: usize,
    closed: bool,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Accept(usize),
    Pending,
    Fail,
}

impl ScriptedSocket {
    fn new(steps: &[Step]) -> Self {
        let socket = Self::default();
        socket.0.lock().steps.extend(steps);
        socket
    }
}

impl AsyncRead for ScriptedSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ScriptedSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut script = self.0.lock();
        assert!(!script.closed, "write after shutdown");
        script.writes += 1;
        let step = script
            .steps
            .pop_front()
            .unwrap_or(Step::Accept(bytes.len()));
        // Repeat the script.
        script.steps.push_back(step);
        match step {
            Step::Accept(max_bytes) => {
                let accepted = bytes.len().min(max_bytes);
                script.received.extend_from_slice(&bytes[..accepted]);
                Poll::Ready(Ok(accepted))
            }
            Step::Pending => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Step::Fail => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().closed = true;
        Poll::Ready(Ok(()))
    }
}

/// Returns a connection that writes and flushes each chunk and shuts down.
fn write_chunks(io: ScriptedSocket, chunks: Vec<Vec<u8>>) -> impl Future<Output = io::Result<()>> {
    coalesce_writes(io, |mut socket| {
        Box::pin(async move {
            for chunk in chunks {
                socket.write_all(&chunk).await?;
                socket.flush().await?;
            }
            socket.shutdown().await
        })
    })
}

fn chunks(sizes: &[usize]) -> Vec<Vec<u8>> {
    let mut next = 0_u8;
    let mut byte = || {
        next = next.wrapping_mul(31).wrapping_add(7);
        next
    };
    sizes
        .iter()
        .map(|size| (0..*size).map(|_| byte()).collect())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    // Rules: CONN-6
    #[test]
    fn every_coalesced_byte_arrives_once_and_in_order(
        sizes in prop::collection::vec(prop_oneof![0_usize..2_000, 16_000_usize..300_000], 0..12),
        mut steps in prop::collection::vec(
            prop_oneof![Just(Step::Pending), (1_usize..40_000).prop_map(Step::Accept)],
            0..12,
        ),
    ) {
        steps.push(Step::Accept(9_000));
        let socket = ScriptedSocket::new(&steps);
        let chunks = chunks(&sizes);
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(write_chunks(socket.clone(), chunks.clone()))?;

        let script = socket.0.lock();
        prop_assert!(script.received == chunks.concat());
        prop_assert!(script.closed);
    }
}

#[tokio::test]
async fn writes_and_flushes_of_one_poll_become_one_send() {
    let socket = ScriptedSocket::default();
    write_chunks(socket.clone(), chunks(&[300; 100]))
        .await
        .unwrap();
    assert_eq!(socket.0.lock().writes, 1);
}

#[tokio::test]
async fn write_larger_than_the_buffer_is_not_copied() {
    let socket = ScriptedSocket::default();
    let mut connection = coalesce_writes(socket.clone(), |mut socket| {
        Box::pin(async move { socket.write_all(&[1; 3 * MAX_BUFFERED_BYTES]).await })
    });
    assert!(poll!(&mut connection).is_ready());
    assert_eq!(socket.0.lock().received.len(), 3 * MAX_BUFFERED_BYTES);
    assert_eq!(connection.coalescer.lock().buffer.capacity(), 0);
}

#[tokio::test]
async fn full_buffer_blocks_the_writer_until_the_peer_reads() {
    let (local, mut peer) = duplex(1024);
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    let mut connection = coalesce_writes(local, |mut socket| {
        Box::pin(async move {
            for _ in 0..1024 {
                socket.write_all(&[7; 1024]).await?;
                count.fetch_add(1024, Ordering::Relaxed);
            }
            socket.shutdown().await
        })
    });
    assert!(poll!(&mut connection).is_pending());
    let before = accepted.load(Ordering::Relaxed);
    assert!(
        (MAX_BUFFERED_BYTES - 1024..=MAX_BUFFERED_BYTES + 1024).contains(&before),
        "{before} bytes accepted"
    );
    assert!(connection.write_progress().has_pending_bytes);

    let mut read = Vec::new();
    let (result, length) = join(connection, peer.read_to_end(&mut read)).await;
    result.unwrap();
    assert_eq!(length.unwrap(), 1024 * 1024);
}

// Rules: CONN-6
#[tokio::test]
async fn pending_bytes_are_sent_after_the_connection_future_ends() {
    let (local, mut peer) = duplex(16);
    let mut connection = coalesce_writes(local, |mut socket| {
        Box::pin(async move { socket.write_all(&[3; 4000]).await })
    });
    assert!(poll!(&mut connection).is_pending());

    let mut read = [0; 4000];
    let (result, length) = join(connection, peer.read_exact(&mut read)).await;
    result.unwrap();
    assert_eq!(length.unwrap(), 4000);
}

#[tokio::test]
async fn failed_send_ends_an_idle_connection() {
    let socket = ScriptedSocket::new(&[Step::Fail]);
    let connection = coalesce_writes(socket, |mut socket| {
        Box::pin(async move {
            socket.write_all(b"answer").await?;
            std::future::pending::<io::Result<()>>().await
        })
    });
    assert_eq!(
        connection.await.unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
}

// Rules: CONN-6
#[tokio::test]
async fn failed_send_fails_later_writes_flushes_and_shutdowns() {
    let (mut captured_socket, socket) = (None, ScriptedSocket::new(&[Step::Fail]));
    let connection = coalesce_writes(socket, |socket| {
        captured_socket = Some(socket);
        std::future::ready(Ok::<_, io::Error>(()))
    });
    let mut socket = captured_socket.unwrap();
    socket.write_all(b"answer").await.unwrap();
    connection.await.unwrap_err();

    for result in [
        socket.write(b"more").await.map(drop),
        socket.flush().await,
        socket.shutdown().await,
    ] {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}

#[tokio::test]
async fn zero_byte_write_is_a_write_zero_error() {
    let connection = write_chunks(ScriptedSocket::new(&[Step::Accept(0)]), chunks(&[10]));
    assert_eq!(
        connection.await.unwrap_err().kind(),
        io::ErrorKind::WriteZero
    );
}

#[tokio::test]
async fn connection_error_takes_precedence_over_socket_error() {
    let socket = ScriptedSocket::new(&[Step::Fail]);
    let connection = coalesce_writes(socket, |mut socket| {
        Box::pin(async move {
            socket.write_all(b"goodbye").await?;
            Err::<(), _>(io::Error::other("protocol error"))
        })
    });
    assert_eq!(connection.await.unwrap_err().to_string(), "protocol error");
}

// Rules: CONN-6
#[tokio::test]
async fn half_closed_peer_still_receives_the_response() {
    let (local, mut peer) = duplex(64);
    let connection = coalesce_writes(local, |mut socket| {
        Box::pin(async move {
            let mut request = String::new();
            socket.read_to_string(&mut request).await?;
            socket.write_all(request.repeat(100).as_bytes()).await?;
            socket.shutdown().await
        })
    });
    let client = async {
        peer.write_all(b"hello").await?;
        peer.shutdown().await?;
        let mut response = String::new();
        peer.read_to_string(&mut response).await.map(|_| response)
    };
    let (result, response) = join(connection, client).await;
    result.unwrap();
    assert_eq!(response.unwrap(), "hello".repeat(100));
}

#[tokio::test]
async fn drained_connection_holds_no_buffer() {
    for size in [1, 5_000, 100_000, MAX_BUFFERED_BYTES] {
        let mut connection = coalesce_writes(ScriptedSocket::default(), |mut socket| {
            Box::pin(async move {
                socket.write_all(&vec![1; size]).await?;
                std::future::pending::<io::Result<()>>().await
            })
        });
        assert!(poll!(&mut connection).is_pending());
        assert!(!connection.write_progress().has_pending_bytes);
        assert_eq!(connection.coalescer.lock().buffer.capacity(), 0);
    }
}

#[tokio::test]
async fn stalled_connection_holds_less_than_twice_its_pending_bytes() {
    for pending in [1, 5_000, RETAIN_THRESHOLD_BYTES] {
        let mut connection =
            coalesce_writes(ScriptedSocket::new(&[Step::Pending]), |mut socket| {
                Box::pin(async move {
                    socket.write_all(&vec![1; pending]).await?;
                    std::future::pending::<io::Result<()>>().await
                })
            });
        assert!(poll!(&mut connection).is_pending());
        assert_eq!(connection.coalescer.lock().pending().len(), pending);
        assert!(connection.coalescer.lock().buffer.capacity() < 2 * pending);
    }
}

#[tokio::test]
async fn write_progress_has_sent_bytes_and_pending_bytes() {
    let mut connection = coalesce_writes(
        ScriptedSocket::new(&[Step::Accept(40), Step::Pending]),
        |mut socket| Box::pin(async move { socket.write_all(&[1; 100]).await }),
    );
    assert!((&mut connection).now_or_never().is_none());
    let expected = |sent_bytes, has_pending_bytes| WriteProgress {
        sent_bytes,
        has_pending_bytes,
    };
    assert_eq!(connection.write_progress(), expected(40, true));
    poll_fn(|cx| Pin::new(&mut connection).poll(cx))
        .await
        .unwrap();
    assert_eq!(connection.write_progress(), expected(100, false));
}
