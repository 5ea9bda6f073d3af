//! What histories have shown to be wrong, each as small as it can be.

use std::time::Duration;

use longrunning::{Clock, Entry, Journal, NewOperation, Operations, PostgresJournal, Then, Unkept};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    select,
    sync::oneshot,
    time::sleep,
};

use crate::support::{
    postgres::{journal, schema},
    table::Table,
};

async fn append(journal: &PostgresJournal, entry: Entry) -> Result<(), Unkept> {
    let (tell, told) = oneshot::channel();
    let then = Then::new(move |kept| tell.send(kept).expect("somebody waits"));
    journal.append(entry, then);
    told.await.unwrap()
}

// Two ends of an operation that was deleted were both acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_servers_that_let_go_of_an_operation_one_is_told_that_it_is_gone() {
    let Some(options) = schema() else { return };
    let (one, other) = (journal(&options).await, journal(&options).await);
    let maker = Operations::builder().start().await.unwrap();
    let made = maker.create(NewOperation::queued("jobs")).await.unwrap();
    append(&one, Entry::Put(made.operation.clone()))
        .await
        .unwrap();
    append(&one, Entry::Forget(made.operation.clone()))
        .await
        .unwrap();
    let late = append(&other, Entry::Forget(made.operation)).await;
    assert!(matches!(late, Err(Unkept::Stale(None))), "{late:?}");
}

#[tokio::test]
async fn a_server_that_has_nothing_to_change_knows_that_the_operation_is_gone() {
    let table = Table::default();
    let (one, mut other) = (table.replica().await, table.replica().await);
    let made = one
        .operations
        .create(NewOperation::queued("jobs"))
        .await
        .unwrap();
    let name = made.operation.owned_name();
    one.operations.cancel(&name).await.unwrap();
    other.catch_up().await;
    other.reads(false);
    one.operations.delete(&name).await.unwrap();
    // It is done, as far as the other server knows, so that nothing is to be done.
    let late = other.operations.cancel(&name).await;
    assert_eq!(late.unwrap_err().reason(), "OPERATION_NOT_FOUND");
}

// A server whose first question for the time was answered late had leases that were
// over early, or late, by half of the delay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_late_does_not_put_the_clock_of_a_server_wrong() {
    const LATE: Duration = Duration::from_secs(2);
    let Some(mut options) = schema() else { return };
    let begun = journal(&options).await;
    let right = begun.shared().unwrap().clock().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = options.url.rsplit_once('@').unwrap().1;
    let place = place.split('/').next().unwrap().to_owned();
    let way = listener.local_addr().unwrap().to_string();
    options.url = options.url.replace(&place, &way);
    let passing = tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = TcpStream::connect(place).await.unwrap();
        let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
            (near.split(), far.split());
        let (asked, is_asked) = oneshot::channel();
        let there = async {
            let mut asked = Some(asked);
            let mut bytes = vec![0; 1 << 16];
            while let Ok(count @ 1..) = near_read.read(&mut bytes).await {
                let question = String::from_utf8_lossy(&bytes[..count]);
                if question.contains("clock_timestamp") {
                    asked.take().map(|asked| asked.send(()));
                }
                far_write.write_all(&bytes[..count]).await.unwrap();
            }
        };
        let back = async {
            select! {
                _ = copy(&mut far_read, &mut near_write) => {}
                _ = is_asked => {}
            }
            // The answer takes its time, and only this one.
            sleep(LATE).await;
            let _ = copy(&mut far_read, &mut near_write).await;
        };
        tokio::join!(there, back);
    });
    let late = journal(&options).await;
    let off = |clock: Clock| clock.now().nanos() - right.now().nanos();
    let off = off(late.shared().unwrap().clock().unwrap()).unsigned_abs();
    assert!(Duration::from_nanos(off) < LATE / 4, "{off} ns");
    passing.abort();
}
