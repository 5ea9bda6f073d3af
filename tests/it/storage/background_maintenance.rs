//! Timers, retention and races of the store, over the real clock or paused time.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use longrunning::{
    Any, Context, Failure, Limits, NewOperation, OperationName, Operations, QueueName, RetryPolicy,
    State, WorkerId, proto::google::rpc::Code,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::support::{create_leased, error_reason, expect_error, expect_response, string_value};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);
/// Longer than any step takes.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

async fn start() -> Operations {
    crate::support::operations_builder().start().await.unwrap()
}

async fn create(operations: &Operations, new: NewOperation) -> OperationName {
    operations.create(new).await.unwrap().operation.name_owned()
}

async fn lease_next(operations: &Operations) -> OperationName {
    let (queue, worker) = (QueueName::parse("q").unwrap(), WorkerId::new("w"));
    let leased = tokio::time::timeout(STEP_TIMEOUT, operations.lease(&queue, &worker)).await;
    leased
        .expect("expected a leasable operation")
        .unwrap()
        .name_owned()
}

// Rules: CREATE-6
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn create_racing_delete_never_creates_third_operation() {
    let operations = start().await;
    let mut recreated = 0;
    for round in 0..6000 {
        let new = move || NewOperation::self_executed("w").request_id(&format!("r{round}"));
        let (first, token) = create_leased(&operations, new()).await;
        if round % 2 == 0 {
            operations
                .succeed(&first, token, string_value(""))
                .await
                .unwrap();
        }
        let deletion = {
            let (operations, first) = (operations.clone(), first.clone());
            tokio::spawn(async move { operations.delete(&first).await })
        };
        let creation = {
            let operations = operations.clone();
            tokio::spawn(async move { operations.create(new()).await })
        };
        deletion.await.unwrap().unwrap();
        let raced = creation.await.unwrap().unwrap();
        let retried = operations.create(new()).await.unwrap();
        if raced.already_existed {
            assert_eq!(raced.operation.name_owned(), first);
            assert!(
                !retried.already_existed,
                "expected the deleted operation to be gone"
            );
        } else {
            recreated += 1;
            assert!(
                retried.already_existed,
                "expected no third operation in round {round}"
            );
            assert_eq!(retried.operation.name(), raced.operation.name());
        }
        let repeated = operations.create(new()).await.unwrap();
        assert!(repeated.already_existed);
        assert_eq!(repeated.operation.name(), retried.operation.name());
        operations
            .delete(&repeated.operation.name_owned())
            .await
            .unwrap();
    }
    assert!(
        recreated > 0,
        "expected a deletion to win the race at least once"
    );
}

// Rules: CREATE-10
#[tokio::test]
async fn retry_policy_with_excessive_backoff_is_rejected() {
    let operations = start().await;
    for backoff in [Duration::MAX, Duration::from_secs(u64::MAX), 367 * DAY] {
        for initial_backoff in [SECOND, backoff] {
            let retry = RetryPolicy::with_max_attempts(2)
                .with_initial_backoff(initial_backoff)
                .with_max_backoff(backoff);
            let new = NewOperation::queued("q").retry_policy(retry);
            let error = operations.create(new).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
        }
    }
}

// Rules: HANDLER-7
#[tokio::test]
async fn handler_accepts_any_positive_concurrency() {
    for concurrency in [1, usize::MAX / 2, usize::MAX] {
        let echo =
            |context: Context| async move { Ok::<Any, Failure>(context.input().unwrap().clone()) };
        let builder = crate::support::operations_builder().handler("q", concurrency, echo);
        let operations = builder.start().await.unwrap();
        let operation = operations.submit("q", string_value("x")).await.unwrap();
        let waited = operations.wait(&operation.name_owned(), STEP_TIMEOUT).await;
        assert_eq!(
            expect_response(&waited.unwrap().to_proto()),
            string_value("x")
        );
    }
}

// Rules: HANDLER-7
#[tokio::test]
async fn failed_start_leaves_no_handler_alive() {
    for (queue, concurrency) in [("not a queue", 1), ("other", 0)] {
        let handler_state = Arc::new(());
        let handler = || {
            let handler_state = handler_state.clone();
            move |_: Context| {
                let _handler_state = handler_state.clone();
                async { Ok::<Any, Failure>(string_value("")) }
            }
        };
        let started = crate::support::operations_builder()
            .handler("q", 1, handler())
            .handler(queue, concurrency, handler())
            .start()
            .await;
        assert!(started.is_err(), "{queue:?}");
        assert_eq!(Arc::strong_count(&handler_state), 1, "{queue:?}");
    }
}

// Rules: DEL-1
#[tokio::test(start_paused = true)]
async fn deleted_pending_operation_is_removed_after_retention() {
    let limits = Limits::default().with_max_operations(1);
    let operations = crate::support::operations_builder()
        .limits(limits)
        .start()
        .await
        .unwrap();
    let new = || NewOperation::queued("q").retention(60 * SECOND);
    // The retention counts from the deletion.
    let name = create(&operations, new()).await;
    sleep(DAY).await;
    operations.delete(&name).await.unwrap();
    sleep(59 * SECOND).await;
    let error = operations.create(new()).await.unwrap_err();
    assert_eq!(error.reason(), "STORE_FULL");
    sleep(2 * SECOND).await;
    create(&operations, new()).await;
}

// Rules: DEL-1
#[tokio::test(start_paused = true)]
async fn deleted_operation_can_be_leased_until_retention_ends() {
    let operations = start().await;
    let new = NewOperation::queued("q").retention(60 * SECOND);
    let name = create(&operations, new).await;
    operations.delete(&name).await.unwrap();
    sleep(59 * SECOND).await;
    let (queue, worker) = (QueueName::parse("q").unwrap(), WorkerId::new("w"));
    let leased = operations.lease(&queue, &worker).await.unwrap();
    assert_eq!(leased.name_owned(), name);
    assert!(!leased.cancel_requested());
    // A leased operation may outlive its retention.
    let token = leased.lease().unwrap().token;
    for _ in 0..10 {
        sleep(20 * SECOND).await;
        operations.renew(&name, token).await.unwrap();
    }
    let done = operations
        .succeed(&name, token, string_value(""))
        .await
        .unwrap();
    assert_eq!(done.state(), State::Succeeded);
}

// Rules: DEL-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operation_deleted_at_its_not_before_time_is_still_leased() {
    const OPERATION_COUNT: usize = 1000;
    let operations = start().await;
    for round in 0..6 {
        // Late enough to create all of them before, and the same for all.
        let not_before = SystemTime::now() + Duration::from_millis(400);
        let mut names = Vec::new();
        for _ in 0..OPERATION_COUNT {
            names.push(
                create(
                    &operations,
                    NewOperation::queued("q")
                        .not_before(not_before)
                        .lease_duration(DAY),
                )
                .await,
            );
        }
        let mut expected: HashSet<_> = names.iter().cloned().collect();
        let mut deletions = JoinSet::new();
        for (half, names) in names.chunks(OPERATION_COUNT / 2).enumerate() {
            let (operations, names) = (operations.clone(), names.to_vec());
            let lead_time = Duration::from_millis(2 + round * half as u64);
            deletions.spawn(async move {
                while SystemTime::now() + lead_time < not_before {
                    tokio::task::yield_now().await;
                }
                for name in names {
                    operations.delete(&name).await.unwrap();
                }
            });
        }
        if round % 2 == 0 {
            while deletions.join_next().await.is_some() {}
        }
        while !expected.is_empty() {
            assert!(expected.remove(&lease_next(&operations).await));
        }
        while let Some(deleted) = deletions.join_next().await {
            deleted.unwrap();
        }
    }
}

// Rules: STATE-11
#[tokio::test(start_paused = true)]
async fn awaited_total_timeout_fires_at_most_100_ms_late() {
    let operations = start().await;
    for timeout in [DAY, 30 * DAY] {
        let started_at = Instant::now();
        let new = NewOperation::queued("unserved").total_timeout(timeout);
        let name = create(&operations, new).await;
        let done = operations.wait(&name, 2 * timeout).await.unwrap();
        let elapsed = started_at.elapsed();
        let error = expect_error(&done.to_proto());
        assert_eq!(
            (error.code, error_reason(&error).as_str()),
            (Code::DeadlineExceeded as i32, "TOTAL_TIMEOUT")
        );
        assert!(elapsed >= timeout, "{elapsed:?}");
        assert!(
            elapsed <= timeout + Duration::from_millis(100),
            "{elapsed:?}"
        );
    }
}

// Rules: STATE-11
#[tokio::test(start_paused = true)]
async fn done_operation_expires_never_early_and_at_most_18_min_late() {
    let operations = start().await;
    for retention in [DAY, 30 * DAY, 365 * DAY] {
        let new = NewOperation::self_executed("w").retention(retention);
        let (name, token) = create_leased(&operations, new).await;
        operations
            .succeed(&name, token, string_value(""))
            .await
            .unwrap();
        sleep(retention - SECOND).await;
        operations
            .get_cached(&name)
            .expect("expected the operation to exist until its retention ends");
        sleep(SECOND + Duration::from_secs(1_100)).await;
        assert!(operations.get_cached(&name).is_err(), "{retention:?}");
    }
}
