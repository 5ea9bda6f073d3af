//! Limits of the store: capacity is enforced, and released when operations end.

use std::time::Duration;

use longrunning::{
    Any, Context, ExecutionOptions, Failure, Limits, NewOperation, Operations, Payload, QueueName,
    Report, WorkerId, proto::google::rpc::Code,
};
use tokio::task::JoinSet;

use crate::support::{
    create_pending, create_running, create_succeeded, decode_metadata, error_reason, expect_error,
    string_value,
    test_storage::{TestStorage, WriteMode},
};

async fn start_with_limits(limits: Limits) -> Operations {
    crate::support::operations_builder()
        .limits(limits)
        .start()
        .await
        .unwrap()
}

fn new_queued() -> NewOperation {
    NewOperation::queued("q")
}

async fn create_error_reason(operations: &Operations, new: NewOperation) -> &'static str {
    let error = operations.create(new).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    error.reason()
}

// Rules: LIMIT-3
#[tokio::test]
async fn max_operations_is_enforced_until_operations_are_removed() {
    let operations = start_with_limits(Limits::default().with_max_operations(3)).await;
    let pending_name = create_pending(&operations).await;
    let (running_name, token) = create_running(&operations).await;
    let done_name = create_succeeded(&operations).await;
    assert_eq!(
        create_error_reason(&operations, new_queued()).await,
        "STORE_FULL"
    );
    operations.delete(&done_name).await.unwrap();
    create_pending(&operations).await;
    assert_eq!(
        create_error_reason(&operations, new_queued()).await,
        "STORE_FULL"
    );
    // A deleted operation counts until it is done.
    operations.delete(&running_name).await.unwrap();
    assert_eq!(
        create_error_reason(&operations, new_queued()).await,
        "STORE_FULL"
    );
    operations
        .succeed(&running_name, token, string_value(""))
        .await
        .unwrap();
    create_pending(&operations).await;
    operations.cancel(&pending_name).await.unwrap();
    assert_eq!(
        create_error_reason(&operations, new_queued()).await,
        "STORE_FULL"
    );
}

// Rules: LIMIT-3
#[tokio::test(start_paused = true)]
async fn expired_operation_frees_store_capacity() {
    let operations = start_with_limits(Limits::default().with_max_operations(1)).await;
    let new = || NewOperation::self_executed("w").retention(Duration::from_secs(10));
    let (name, token) = crate::support::create_leased(&operations, new()).await;
    operations
        .succeed(&name, token, string_value(""))
        .await
        .unwrap();
    assert_eq!(create_error_reason(&operations, new()).await, "STORE_FULL");
    tokio::time::sleep(Duration::from_secs(11)).await;
    operations.create(new()).await.unwrap();
}

// Rules: LIMIT-3, LIMIT-4
#[tokio::test]
async fn max_total_bytes_is_enforced_and_cancel_frees_input() {
    let operations = start_with_limits(Limits::default().with_max_total_bytes(100_000)).await;
    let large = || new_queued().input(string_value(&"x".repeat(30_000)));
    let mut names = Vec::new();
    for _ in 0..3 {
        names.push(
            operations
                .create(large())
                .await
                .unwrap()
                .operation
                .name_owned(),
        );
    }
    assert_eq!(
        create_error_reason(&operations, large()).await,
        "STORE_FULL"
    );
    operations
        .create(new_queued())
        .await
        .expect("expected a small operation to fit");
    operations.cancel(&names[0]).await.unwrap();
    operations
        .create(large())
        .await
        .expect("expected the input of a done operation to be freed");
}

/// Returns how many creations succeed if no write completes before all have started.
async fn count_concurrent_creates(
    limits: Limits,
    creations: impl Iterator<Item = NewOperation>,
) -> usize {
    let storage = TestStorage::new();
    let builder = crate::support::operations_builder()
        .limits(limits)
        .storage(storage.clone());
    let operations = builder.start().await.unwrap();
    storage.set_write_mode(WriteMode::Hold);
    let mut creators = JoinSet::new();
    for new in creations {
        let operations = operations.clone();
        creators.spawn(async move { operations.create(new).await.is_ok() });
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    storage.set_write_mode(WriteMode::Succeed);
    let results = creators.join_all().await;
    results.into_iter().filter(|is_created| *is_created).count()
}

// Also if the storage is slow.
// Rules: LIMIT-3, LIMIT-5
#[tokio::test]
async fn concurrent_creates_never_exceed_count_limits() {
    let limits = Limits::default().with_max_operations(3);
    assert_eq!(
        count_concurrent_creates(limits, (0..20).map(|_| new_queued())).await,
        3
    );
    let limits = Limits::default().with_max_queue_length(2);
    assert_eq!(
        count_concurrent_creates(limits, (0..20).map(|_| new_queued())).await,
        2
    );
}

// Also if the storage is slow.
// Rules: LIMIT-3
#[tokio::test]
async fn concurrent_creates_never_exceed_byte_limit() {
    let limits = Limits::default().with_max_total_bytes(100_000);
    let large = || new_queued().input(string_value(&"x".repeat(30_000)));
    assert_eq!(
        count_concurrent_creates(limits, (0..20).map(|_| large())).await,
        3
    );
}

// Rules: LIMIT-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_creates_fill_store_exactly_to_its_limit() {
    let operations = start_with_limits(
        Limits::default()
            .with_max_operations(100)
            .with_max_queue_length(60),
    )
    .await;
    let mut creates = JoinSet::new();
    for n in 0..400 {
        let operations = operations.clone();
        let queue = ["a", "b"][n % 2];
        creates.spawn(async move { operations.create(NewOperation::queued(queue)).await.is_ok() });
    }
    let created_count = creates
        .join_all()
        .await
        .into_iter()
        .filter(|is_created| *is_created)
        .count();
    assert_eq!(created_count, 100);
}

// Rules: LIMIT-5
#[tokio::test]
async fn max_queue_length_counts_pending_and_lease_frees_slot() {
    let operations = start_with_limits(Limits::default().with_max_queue_length(2)).await;
    let first = operations
        .create(new_queued())
        .await
        .unwrap()
        .operation
        .name_owned();
    let far = std::time::SystemTime::now() + Duration::from_secs(3600);
    operations
        .create(new_queued().not_before(far))
        .await
        .expect("expected room for a second pending operation");
    assert_eq!(
        create_error_reason(&operations, new_queued()).await,
        "QUEUE_FULL"
    );
    operations
        .create(NewOperation::queued("other"))
        .await
        .expect("expected room in another queue");
    operations
        .create(NewOperation::self_executed("w"))
        .await
        .expect("expected no queue limit for a self-executed operation");
    let (queue, worker) = (QueueName::parse("q").unwrap(), WorkerId::new("w"));
    let token = operations
        .lease(&queue, &worker)
        .await
        .unwrap()
        .lease()
        .unwrap()
        .token;
    let third = operations
        .create(new_queued())
        .await
        .unwrap()
        .operation
        .name_owned();
    assert_eq!(
        create_error_reason(&operations, new_queued()).await,
        "QUEUE_FULL"
    );
    // A released operation always returns to its queue, and counts there.
    operations.release(&first, token).await.unwrap();
    operations.cancel(&third).await.unwrap();
    assert_eq!(
        create_error_reason(&operations, new_queued()).await,
        "QUEUE_FULL"
    );
    operations.cancel(&first).await.unwrap();
    operations.create(new_queued()).await.unwrap();
}

// Rules: LIMIT-2
#[tokio::test]
async fn operation_over_max_operation_bytes_is_rejected_unchanged() {
    let operations = start_with_limits(Limits::default().with_max_operation_bytes(10_000)).await;
    let large = string_value(&"x".repeat(10_000));
    for new in [
        new_queued().input(large.clone()),
        new_queued().metadata(large.clone()),
    ] {
        assert_eq!(create_error_reason(&operations, new).await, "TOO_LARGE");
    }
    let (name, token) = create_running(&operations).await;
    let before = operations.get_cached(&name).unwrap();
    let payload = Payload::new(large.clone()).unwrap();
    let results = [
        operations
            .report(
                &name,
                token,
                Report {
                    metadata: Some(payload.clone()),
                    ..Report::default()
                },
            )
            .await,
        operations
            .report(
                &name,
                token,
                Report {
                    checkpoint: Some(payload),
                    ..Report::default()
                },
            )
            .await,
    ];
    for result in results {
        let error = result.unwrap_err();
        assert_eq!(
            (error.code(), error.reason()),
            (Code::ResourceExhausted, "TOO_LARGE")
        );
        assert_eq!(
            error.retry_after(),
            None,
            "expected no retry delay, because a retry cannot succeed"
        );
    }
    assert_eq!(
        operations.get_cached(&name).unwrap().revision(),
        before.revision()
    );
    operations
        .succeed(&name, token, string_value("small"))
        .await
        .unwrap();
}

// Rules: LIMIT-2
#[tokio::test]
async fn oversized_handler_result_fails_with_too_large() {
    let large = |_: Context| async { Ok::<Any, Failure>(string_value(&"x".repeat(10_000))) };
    let limits = Limits::default().with_max_operation_bytes(5_000);
    let operations = crate::support::operations_builder()
        .limits(limits)
        .default_options(ExecutionOptions::default())
        .handler("q", 1, large)
        .start()
        .await
        .unwrap();
    let name = operations
        .create(new_queued())
        .await
        .unwrap()
        .operation
        .name_owned();
    let done = operations
        .wait(&name, Duration::from_secs(60))
        .await
        .unwrap()
        .to_proto();
    let error = expect_error(&done);
    assert_eq!(
        (error.code, error_reason(&error).as_str()),
        (Code::ResourceExhausted as i32, "TOO_LARGE")
    );
    assert!(decode_metadata(&done).end_time.is_some());
}
