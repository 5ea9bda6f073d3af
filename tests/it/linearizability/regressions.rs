//! Minimal reproductions of defects found by recorded histories.

use std::time::Duration;

use longrunning::{
    Clock, Completion, NewOperation, Operations, PostgresStorage, Storage, Write, WriteError,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    select,
    sync::oneshot,
    time::sleep,
};

use crate::support::{
    fake_shared_storage::FakeSharedStorage,
    postgres::{open_storage, test_config},
};

async fn write(storage: &PostgresStorage, write: Write) -> Result<(), WriteError> {
    let (sender, receiver) = oneshot::channel();
    let completion =
        Completion::new(move |result| sender.send(result).expect("expected a receiver"));
    storage.write(write, completion);
    receiver.await.unwrap()
}

// Two servers acknowledged different outcomes of a deleted operation.
// Rules: CLU-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_server_deleting_operation_gets_conflict() {
    let Some(config) = test_config() else { return };
    let (storage_a, storage_b) = (open_storage(&config).await, open_storage(&config).await);
    let creator = Operations::builder().start().await.unwrap();
    let created = creator.create(NewOperation::queued("jobs")).await.unwrap();
    write(&storage_a, Write::Put(created.operation.clone()))
        .await
        .unwrap();
    write(&storage_a, Write::Remove(created.operation.clone()))
        .await
        .unwrap();
    let second_delete = write(&storage_b, Write::Remove(created.operation)).await;
    assert!(
        matches!(second_delete, Err(WriteError::Conflict { current: None })),
        "{second_delete:?}"
    );
}

// Rules: CLU-7
#[tokio::test]
async fn no_op_cancel_at_lagging_server_returns_not_found() {
    let storage = FakeSharedStorage::default();
    let (replica_a, mut replica_b) = (storage.start_replica().await, storage.start_replica().await);
    let created = replica_a
        .operations
        .create(NewOperation::queued("jobs"))
        .await
        .unwrap();
    let name = created.operation.name_owned();
    replica_a.operations.cancel(&name).await.unwrap();
    replica_b.wait_until_caught_up().await;
    replica_b.pause_replication();
    replica_a.operations.delete(&name).await.unwrap();
    // For the lagging server the operation is done, so cancel needs no write.
    let cancel_result = replica_b.operations.cancel(&name).await;
    assert_eq!(cancel_result.unwrap_err().reason(), "OPERATION_NOT_FOUND");
}

// A delayed response to the first time query shifted lease expiry by half of the delay.
// Rules: CLU-17
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_time_response_does_not_skew_server_clock() {
    const RESPONSE_DELAY: Duration = Duration::from_secs(2);
    let Some(mut config) = test_config() else {
        return;
    };
    let reference = open_storage(&config).await;
    let reference_clock = reference.shared().unwrap().clock().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream_address = config.url.rsplit_once('@').unwrap().1;
    let upstream_address = upstream_address.split('/').next().unwrap().to_owned();
    let proxy_address = listener.local_addr().unwrap().to_string();
    config.url = config.url.replace(&upstream_address, &proxy_address);
    let proxy = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut upstream = TcpStream::connect(upstream_address).await.unwrap();
        let ((mut client_read, mut client_write), (mut upstream_read, mut upstream_write)) =
            (client.split(), upstream.split());
        let (query_sender, query_receiver) = oneshot::channel();
        let forward = async {
            let mut query_sender = Some(query_sender);
            let mut bytes = vec![0; 1 << 16];
            while let Ok(count @ 1..) = client_read.read(&mut bytes).await {
                let query = String::from_utf8_lossy(&bytes[..count]);
                if query.contains("clock_timestamp") {
                    query_sender.take().map(|sender| sender.send(()));
                }
                upstream_write.write_all(&bytes[..count]).await.unwrap();
            }
        };
        let backward = async {
            select! {
                _ = copy(&mut upstream_read, &mut client_write) => {}
                _ = query_receiver => {}
            }
            // Delays only the response to the time query.
            sleep(RESPONSE_DELAY).await;
            let _ = copy(&mut upstream_read, &mut client_write).await;
        };
        tokio::join!(forward, backward);
    });
    let delayed = open_storage(&config).await;
    let skew_nanos = |clock: Clock| clock.now().nanos() - reference_clock.now().nanos();
    let skew_nanos = skew_nanos(delayed.shared().unwrap().clock().unwrap()).unsigned_abs();
    assert!(
        Duration::from_nanos(skew_nanos) < RESPONSE_DELAY / 4,
        "{skew_nanos} ns"
    );
    proxy.abort();
}
