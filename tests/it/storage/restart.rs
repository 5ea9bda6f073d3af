//! Restarts: stored operations are restored unchanged, and leases do not expire
//! because of the time that the server was down.

use std::time::Duration;

use longrunning::{
    Failure, NewOperation, Operation, Operations, QueueName, Report, RetryPolicy, State, WorkerId,
    proto::google::rpc::Code,
};
use tokio::time::{Instant, sleep};

use crate::support::{
    create_leased, custom_metadata, error_reason, expect_error, progress, string_value,
    test_storage::TestStorage,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Rounds to the nearest hour.
fn rounded_hours(duration: Duration) -> u64 {
    (duration.as_secs() + HOUR.as_secs() / 2) / HOUR.as_secs()
}

async fn start(storage: &TestStorage) -> Operations {
    crate::support::operations_builder()
        .storage(storage.clone())
        .start()
        .await
        .unwrap()
}

fn queue() -> QueueName {
    QueueName::parse("q").unwrap()
}

/// Drops a server without shutdown, and returns a storage with its operations for the
/// next server. It loads them in another order.
async fn crash(operations: Operations, storage: TestStorage) -> TestStorage {
    drop(operations);
    // The tasks of the server stop asynchronously.
    while !storage.is_released() {
        tokio::task::yield_now().await;
    }
    let mut stored: Vec<Operation> = storage.into_stored();
    stored.reverse();
    TestStorage::with_operations(stored)
}

async fn list(operations: &Operations) -> Vec<(String, Vec<u8>)> {
    let page = operations.list(&Default::default()).await.unwrap();
    page.operations
        .iter()
        .map(|operation| (operation.name().to_owned(), operation.bytes().to_vec()))
        .collect()
}

// Acknowledged means durable.
// Rules: DUR-5
#[tokio::test(start_paused = true)]
async fn restart_restores_same_bytes_list_order_and_queue_order() {
    let storage = TestStorage::new();
    let operations = start(&storage).await;
    for n in 0..600 {
        let new = NewOperation::queued("q")
            .priority(n % 3)
            .input(string_value(&n.to_string()));
        let name = operations.create(new).await.unwrap().operation.name_owned();
        if n % 7 == 0 {
            operations.cancel(&name).await.unwrap();
        }
    }
    let new = NewOperation::self_executed("w")
        .metadata(custom_metadata(3))
        .parent("projects/p")
        .id("x");
    let (name, token) = create_leased(&operations, new).await;
    let report = Report {
        progress: Some(progress(3)),
        ..Report::default()
    };
    operations.report(&name, token, report).await.unwrap();
    let before = list(&operations).await;

    let storage = crash(operations, storage).await;
    let operations = start(&storage).await;
    assert_eq!(list(&operations).await, before);
    assert_eq!(
        operations
            .get_cached(&name)
            .unwrap()
            .progress()
            .unwrap()
            .done_units,
        3
    );
    operations
        .renew(&name, token)
        .await
        .expect("expected the lease to be valid");
    let mut inputs = Vec::new();
    for _ in 0..600 - 86 {
        let leased = operations
            .lease(&queue(), &WorkerId::new("w"))
            .await
            .unwrap();
        let input = leased.input().unwrap().any().clone();
        assert!(
            inputs
                .last()
                .is_none_or(|(priority, _)| leased.options().priority <= *priority)
        );
        inputs.push((leased.options().priority, input));
    }
    let expected = |priority| (0..600).filter(move |n| n % 7 != 0 && n % 3 == priority);
    let expected = [2, 1, 0]
        .into_iter()
        .flat_map(expected)
        .map(|n| string_value(&n.to_string()));
    assert!(inputs.into_iter().map(|(_, input)| input).eq(expected));

    // A new operation is listed before all restored ones.
    let new = operations
        .create(NewOperation::queued("q"))
        .await
        .unwrap()
        .operation;
    assert_eq!(list(&operations).await[0].0, new.name());
}

// Rules: STATE-14
#[tokio::test(start_paused = true)]
async fn clock_set_back_across_restart_does_not_block_queue() {
    let storage = TestStorage::new();
    let operations = start(&storage).await;
    let new = NewOperation::queued("q");
    let queued = operations.create(new).await.unwrap().operation;
    // Simulates a clock that was two hours ahead.
    let ahead = queued.create_time() + 2 * HOUR;
    let new = NewOperation::queued("q").not_before(std::time::SystemTime::now() + HOUR);
    operations.create(new).await.unwrap();
    drop(queued);
    let storage = crash(operations, storage).await.with_last_timestamp(ahead);
    let operations = start(&storage).await;
    let started_at = Instant::now();
    for _ in 0..2 {
        let leased = operations.lease(&queue(), &WorkerId::new("w")).await;
        assert!(leased.unwrap().update_time() >= ahead);
    }
    assert_eq!(rounded_hours(started_at.elapsed()), 0);
}

// Rules: DUR-6
#[tokio::test(start_paused = true)]
async fn leases_get_full_duration_after_restart() {
    let storage = TestStorage::new();
    let operations = start(&storage).await;
    let retry = RetryPolicy::default().with_initial_backoff(Duration::ZERO);
    let new = NewOperation::queued("q")
        .retry_policy(retry)
        .lease_duration(10 * SECOND);
    let queued = operations.create(new).await.unwrap().operation.name_owned();
    operations
        .lease(&queue(), &WorkerId::new("w"))
        .await
        .unwrap();
    let (self_executed, token) = create_leased(&operations, NewOperation::self_executed("w")).await;
    sleep(9 * SECOND).await;
    // Loading takes longer than a lease lasts.
    let storage = crash(operations, storage)
        .await
        .with_load_duration(60 * SECOND);
    let operations = start(&storage).await;
    let started_at = Instant::now();
    sleep(9 * SECOND).await;
    assert_eq!(
        operations.get_cached(&queued).unwrap().state(),
        State::Running
    );
    let leased_again = operations
        .lease(&queue(), &WorkerId::new("v"))
        .await
        .unwrap();
    assert_eq!(
        (leased_again.name_owned(), leased_again.attempt()),
        (queued, 2)
    );
    assert_eq!(started_at.elapsed().as_secs(), 10);
    sleep(15 * SECOND).await;
    operations
        .renew(&self_executed, token)
        .await
        .expect("expected the 30 s lease to be valid");
    let expired = operations
        .wait(&self_executed, 3600 * SECOND)
        .await
        .unwrap();
    assert_eq!(
        error_reason(&expect_error(&expired.to_proto())),
        "WORKER_LOST"
    );
}

// Retention and timeouts continue.
// Rules: DUR-7
#[tokio::test(start_paused = true)]
async fn retention_backoff_and_total_timeout_continue_across_restart() {
    let storage = TestStorage::new();
    let operations = start(&storage).await;
    let new = NewOperation::self_executed("w").retention(6 * HOUR);
    let (done, token) = create_leased(&operations, new).await;
    operations
        .succeed(&done, token, string_value("done"))
        .await
        .unwrap();
    let retry = RetryPolicy::with_max_attempts(2)
        .with_jitter(0.0)
        .with_initial_backoff(4 * HOUR)
        .with_max_backoff(4 * HOUR);
    operations
        .create(NewOperation::queued("q").retry_policy(retry))
        .await
        .unwrap();
    let leased = operations
        .lease(&queue(), &WorkerId::new("w"))
        .await
        .unwrap();
    let failure = Failure::new(Code::Unavailable, "busy").retryable();
    operations
        .fail(&leased.name_owned(), leased.lease().unwrap().token, failure)
        .await
        .unwrap();
    drop(leased);
    let new = NewOperation::queued("unserved").total_timeout(5 * HOUR);
    let timing_out = operations.create(new).await.unwrap().operation.name_owned();

    // Paused time does not move the wall clock that a new server reads: for it, only
    // the real duration of this test has passed, far below an hour.
    let storage = crash(operations, storage).await;
    let operations = start(&storage).await;
    let started_at = Instant::now();
    operations.get_cached(&done).unwrap();
    assert_eq!(
        operations
            .lease(&queue(), &WorkerId::new("w"))
            .await
            .unwrap()
            .attempt(),
        2
    );
    assert_eq!(rounded_hours(started_at.elapsed()), 4);
    let timed_out = operations.wait(&timing_out, 24 * HOUR).await.unwrap();
    assert_eq!(
        error_reason(&expect_error(&timed_out.to_proto())),
        "TOTAL_TIMEOUT"
    );
    assert_eq!(rounded_hours(started_at.elapsed()), 5);
    sleep(2 * HOUR).await;
    assert!(operations.get_cached(&done).is_err());
}

// Rules: DUR-5
#[tokio::test(start_paused = true)]
async fn request_ids_ids_and_deletions_survive_restart() {
    let storage = TestStorage::new();
    let operations = start(&storage).await;
    let new = || NewOperation::queued("q").request_id("r").id("mine");
    operations.create(new()).await.unwrap();
    let (deleted, token) = create_leased(&operations, NewOperation::self_executed("w")).await;
    operations.delete(&deleted).await.unwrap();

    let storage = crash(operations, storage).await;
    let operations = start(&storage).await;
    assert!(operations.create(new()).await.unwrap().already_existed);
    let reused_error = operations.create(new().priority(1)).await.unwrap_err();
    assert_eq!(reused_error.reason(), "REQUEST_ID_REUSED");
    let exists_error = operations
        .create(NewOperation::queued("q").id("mine"))
        .await
        .unwrap_err();
    assert_eq!(exists_error.reason(), "OPERATION_EXISTS");
    assert!(
        operations.get_cached(&deleted).is_err(),
        "expected the deleted operation to stay hidden"
    );
    assert_eq!(list(&operations).await.len(), 1);
    operations
        .succeed(&deleted, token, string_value("unseen"))
        .await
        .unwrap();
    assert_eq!(
        storage.write_log().last().unwrap(),
        &format!("delete {deleted}")
    );
}

// The limits count restored operations.
// Rules: DUR-5
#[tokio::test(start_paused = true)]
async fn limits_count_operations_loaded_after_restart() {
    let storage = TestStorage::new();
    let operations = start(&storage).await;
    for _ in 0..3 {
        operations.create(NewOperation::queued("q")).await.unwrap();
    }
    let storage = crash(operations, storage).await;
    let limits = longrunning::Limits::default()
        .with_max_operations(4)
        .with_max_queue_length(3);
    let builder = crate::support::operations_builder()
        .storage(storage)
        .limits(limits);
    let operations = builder.start().await.unwrap();
    let error = operations
        .create(NewOperation::queued("q"))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "QUEUE_FULL");
    operations.create(NewOperation::queued("p")).await.unwrap();
    let error = operations
        .create(NewOperation::queued("p"))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "STORE_FULL");
}
