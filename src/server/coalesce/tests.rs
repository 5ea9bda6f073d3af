//! The coalescing socket against sockets that split, pend, stall and break.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::atomic::{AtomicUsize, Ordering},
};

use futures_util::{FutureExt, future::join, poll};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

/// A socket that does with each write what its script says, in turn.
#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    steps: VecDeque<Step>,
    taken: Vec<u8>,
    writes: usize,
    closed: bool,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Take(usize),
    Pend,
    Break,
}

impl Scripted {
    fn new(steps: &[Step]) -> Self {
        let socket = Self::default();
        socket.0.lock().steps.extend(steps);
        socket
    }
}

impl AsyncRead for Scripted {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut script = self.0.lock();
        assert!(!script.closed, "written after the shutdown");
        script.writes += 1;
        let step = script.steps.pop_front().unwrap_or(Step::Take(bytes.len()));
        // A script that runs round and round never runs out of whims.
        script.steps.push_back(step);
        match step {
            Step::Take(most) => {
                let taken = bytes.len().min(most);
                script.taken.extend_from_slice(&bytes[..taken]);
                Poll::Ready(Ok(taken))
            }
            Step::Pend => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Step::Break => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
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

/// A connection that writes `chunks`, each with a flush, and shuts down.
fn writing(io: Scripted, chunks: Vec<Vec<u8>>) -> impl Future<Output = io::Result<()>> {
    coalesce(io, |mut socket| {
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

    #[test]
    fn every_byte_arrives_once_and_in_order(
        sizes in prop::collection::vec(prop_oneof![0_usize..2_000, 16_000_usize..300_000], 0..12),
        mut steps in prop::collection::vec(
            prop_oneof![Just(Step::Pend), (1_usize..40_000).prop_map(Step::Take)],
            0..12,
        ),
    ) {
        steps.push(Step::Take(9_000));
        let socket = Scripted::new(&steps);
        let chunks = chunks(&sizes);
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(writing(socket.clone(), chunks.clone()))?;

        let script = socket.0.lock();
        prop_assert!(script.taken == chunks.concat());
        prop_assert!(script.closed);
    }
}

#[tokio::test]
async fn writes_and_flushes_of_one_poll_leave_in_one_send() {
    let socket = Scripted::default();
    writing(socket.clone(), chunks(&[300; 100])).await.unwrap();
    assert_eq!(socket.0.lock().writes, 1);
}

#[tokio::test]
async fn a_write_larger_than_the_buffer_is_not_copied() {
    let socket = Scripted::default();
    let mut connection = coalesce(socket.clone(), |mut socket| {
        Box::pin(async move { socket.write_all(&[1; 3 * LIMIT]).await })
    });
    assert!(poll!(&mut connection).is_ready());
    assert_eq!(socket.0.lock().taken.len(), 3 * LIMIT);
    assert_eq!(connection.shared.lock().buffer.capacity(), 0);
}

#[tokio::test]
async fn a_full_buffer_makes_the_writer_wait_until_the_peer_reads() {
    let (ours, mut peers) = duplex(1024);
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    let mut connection = coalesce(ours, |mut socket| {
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
        (LIMIT - 1024..=LIMIT + 1024).contains(&before),
        "took {before}"
    );
    assert!(connection.progress().1);

    let mut read = Vec::new();
    let (served, length) = join(connection, peers.read_to_end(&mut read)).await;
    served.unwrap();
    assert_eq!(length.unwrap(), 1024 * 1024);
}

#[tokio::test]
async fn what_waits_when_the_connection_ends_is_still_sent() {
    let (ours, mut peers) = duplex(16);
    let mut connection = coalesce(ours, |mut socket| {
        Box::pin(async move { socket.write_all(&[3; 4000]).await })
    });
    assert!(poll!(&mut connection).is_pending());

    let mut read = [0; 4000];
    let (served, length) = join(connection, peers.read_exact(&mut read)).await;
    served.unwrap();
    assert_eq!(length.unwrap(), 4000);
}

#[tokio::test]
async fn a_failed_send_ends_the_connection_even_while_it_only_waits() {
    let socket = Scripted::new(&[Step::Break]);
    let connection = coalesce(socket, |mut socket| {
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

#[tokio::test]
async fn a_failed_send_is_told_to_later_writes_flushes_and_shutdowns() {
    let (mut handed, socket) = (None, Scripted::new(&[Step::Break]));
    let connection = coalesce(socket, |socket| {
        handed = Some(socket);
        std::future::ready(Ok::<_, io::Error>(()))
    });
    let mut socket = handed.unwrap();
    socket.write_all(b"answer").await.unwrap();
    connection.await.unwrap_err();

    for told in [
        socket.write(b"more").await.map(drop),
        socket.flush().await,
        socket.shutdown().await,
    ] {
        assert_eq!(told.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}

#[tokio::test]
async fn a_socket_that_takes_nothing_is_broken() {
    let connection = writing(Scripted::new(&[Step::Take(0)]), chunks(&[10]));
    assert_eq!(
        connection.await.unwrap_err().kind(),
        io::ErrorKind::WriteZero
    );
}

#[tokio::test]
async fn the_error_of_the_connection_hides_that_of_the_socket() {
    let socket = Scripted::new(&[Step::Break]);
    let connection = coalesce(socket, |mut socket| {
        Box::pin(async move {
            socket.write_all(b"goodbye").await?;
            Err::<(), _>(io::Error::other("protocol error"))
        })
    });
    assert_eq!(connection.await.unwrap_err().to_string(), "protocol error");
}

#[tokio::test]
async fn a_peer_that_closed_its_side_still_gets_its_answer() {
    let (ours, mut peers) = duplex(64);
    let connection = coalesce(ours, |mut socket| {
        Box::pin(async move {
            let mut asked = String::new();
            socket.read_to_string(&mut asked).await?;
            socket.write_all(asked.repeat(100).as_bytes()).await?;
            socket.shutdown().await
        })
    });
    let asking = async {
        peers.write_all(b"hello").await?;
        peers.shutdown().await?;
        let mut answer = String::new();
        peers.read_to_string(&mut answer).await.map(|_| answer)
    };
    let (served, answer) = join(connection, asking).await;
    served.unwrap();
    assert_eq!(answer.unwrap(), "hello".repeat(100));
}

#[tokio::test]
async fn a_drained_connection_holds_no_buffer() {
    for size in [1, 5_000, 100_000, LIMIT] {
        let mut connection = coalesce(Scripted::default(), |mut socket| {
            Box::pin(async move {
                socket.write_all(&vec![1; size]).await?;
                std::future::pending::<io::Result<()>>().await
            })
        });
        assert!(poll!(&mut connection).is_pending());
        assert!(!connection.progress().1);
        assert_eq!(connection.shared.lock().buffer.capacity(), 0);
    }
}

#[tokio::test]
async fn a_stalled_connection_holds_what_waits_and_little_more() {
    for waiting in [1, 5_000, KEPT] {
        let mut connection = coalesce(Scripted::new(&[Step::Pend]), |mut socket| {
            Box::pin(async move {
                socket.write_all(&vec![1; waiting]).await?;
                std::future::pending::<io::Result<()>>().await
            })
        });
        assert!(poll!(&mut connection).is_pending());
        assert_eq!(connection.shared.lock().waiting().len(), waiting);
        assert!(connection.shared.lock().buffer.capacity() < 2 * waiting);
    }
}

#[tokio::test]
async fn bytes_and_progress_are_counted() {
    let mut connection = coalesce(
        Scripted::new(&[Step::Take(40), Step::Pend]),
        |mut socket| Box::pin(async move { socket.write_all(&[1; 100]).await }),
    );
    assert!((&mut connection).now_or_never().is_none());
    assert_eq!(connection.progress(), (40, true));
    poll_fn(|cx| Pin::new(&mut connection).poll(cx))
        .await
        .unwrap();
    assert_eq!(connection.progress(), (100, false));
}
