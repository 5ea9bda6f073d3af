//! Reads of consistency `Auto`: they ask the storage what other servers did, and read memory if it does not answer.

use longrunning::{
    NewOperation, ReadConsistency, State, proto::google::longrunning::ListOperationsRequest,
};
use tokio::time::{Duration, Instant};

use crate::support::{
    fake_shared_storage::{FakeSharedStorage, TestReplica},
    string_value,
};

const SECOND: Duration = Duration::from_secs(1);

async fn start_two_replicas() -> (FakeSharedStorage, TestReplica, TestReplica) {
    let storage = FakeSharedStorage::default();
    let start = || storage.start_replica_with(ReadConsistency::Auto);
    let (replica_a, replica_b) = (start().await, start().await);
    (storage, replica_a, replica_b)
}

// Rules: CLU-4
#[tokio::test(start_paused = true)]
async fn auto_read_includes_changes_of_other_servers() {
    let (_storage, replica_a, replica_b) = start_two_replicas().await;
    for _ in 0..100 {
        let new = NewOperation::self_executed("w");
        let created = replica_a.operations.create(new).await.unwrap().operation;
        let (name, token) = (created.name_owned(), created.lease().unwrap().token);
        let running = replica_b.operations.get(&name).await.unwrap();
        assert_eq!(running.state(), State::Running);
        let finish = replica_a
            .operations
            .succeed(&name, token, string_value("done"));
        finish.await.unwrap();
        assert!(replica_b.operations.get(&name).await.unwrap().is_done());
        let request = ListOperationsRequest::default();
        replica_a.operations.delete(&name).await.unwrap();
        let listed = replica_b.operations.list(&request).await.unwrap();
        assert_eq!(listed.operations.len(), 0);
    }
}

// Rules: CLU-4
#[tokio::test(start_paused = true)]
async fn auto_read_of_done_operation_asks_nothing_of_storage() {
    let (storage, replica_a, mut replica_b) = start_two_replicas().await;
    let new = NewOperation::queued("q");
    let created = replica_a.operations.create(new).await.unwrap().operation;
    let name = created.name_owned();
    replica_a.operations.cancel(&name).await.unwrap();
    replica_b.wait_until_caught_up().await;
    let before = storage.request_count();
    assert!(replica_b.operations.get(&name).await.unwrap().is_done());
    assert_eq!(storage.request_count(), before);
}

// Rules: CLU-4
#[tokio::test(start_paused = true)]
async fn auto_read_returns_memory_after_second_without_answer() {
    let (_storage, replica_a, mut replica_b) = start_two_replicas().await;
    let new = NewOperation::queued("q");
    let created = replica_a.operations.create(new).await.unwrap().operation;
    let name = created.name_owned();
    replica_b.wait_until_caught_up().await;
    replica_b.pause_replication();
    replica_a.operations.cancel(&name).await.unwrap();
    let start = Instant::now();
    let stale = replica_b.operations.get(&name).await.unwrap();
    assert_eq!((stale.state(), start.elapsed()), (State::Pending, SECOND));
    let start = Instant::now();
    let request = ListOperationsRequest {
        return_partial_success: true,
        ..ListOperationsRequest::default()
    };
    let listed = replica_b.operations.list(&request).await.unwrap();
    assert_eq!((listed.operations.len(), start.elapsed()), (1, SECOND));
    assert_eq!(listed.unreachable, ["-"]);
    // Also a wait ends in time.
    let start = Instant::now();
    let stale = replica_b.operations.wait(&name, 3 * SECOND).await.unwrap();
    assert_eq!(stale.state(), State::Pending);
    assert_eq!(start.elapsed(), 3 * SECOND);
    replica_b.resume_replication();
    assert!(replica_b.operations.get(&name).await.unwrap().is_done());
}

// Rules: CLU-4
#[tokio::test(start_paused = true)]
async fn auto_read_does_not_wait_during_known_outage() {
    let (storage, replica_a, _replica_b) = start_two_replicas().await;
    let new = NewOperation::queued("q");
    let created = replica_a.operations.create(new).await.unwrap().operation;
    storage.go_offline();
    let start = Instant::now();
    let read = replica_a.operations.get(&created.name_owned()).await;
    assert_eq!(read.unwrap().state(), State::Pending);
    assert_eq!(start.elapsed(), Duration::ZERO);
}
