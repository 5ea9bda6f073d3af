//! What a store does by itself: it keeps its clock, forgets what nobody asks
//! for any more, and loses nothing on the way.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use longrunning::{
    Any, Context, Failure, Limits, NewOperation, OperationName, Operations, QueueName, RetryPolicy,
    State, WorkerId,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::support::{error, hold, reason, response, text};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);
/// So long a step may take before the test has failed.
const GUARD: Duration = Duration::from_secs(60);

async fn start() -> Operations {
    crate::support::operations().start().await.unwrap()
}

async fn created(operations: &Operations, new: NewOperation) -> OperationName {
    operations.create(new).await.unwrap().operation.owned_name()
}

async fn leased(operations: &Operations) -> OperationName {
    let (queue, worker) = (QueueName::parse("q").unwrap(), WorkerId::new("w"));
    let leased = tokio::time::timeout(GUARD, operations.lease(&queue, &worker)).await;
    leased.expect("a worker gets it").unwrap().owned_name()
}

// AIP-155
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_request_that_races_with_a_deletion_never_makes_a_third_operation() {
    let operations = start().await;
    let mut made_anew = 0;
    for round in 0..6000 {
        let new = move || NewOperation::self_executed("w").request_id(&format!("r{round}"));
        let (first, token) = hold(&operations, new()).await;
        if round % 2 == 0 {
            operations.succeed(&first, token, text("")).await.unwrap();
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
        if raced.reused {
            assert_eq!(raced.operation.owned_name(), first);
            assert!(!retried.reused, "the deleted one is gone");
        } else {
            made_anew += 1;
            assert!(retried.reused, "round {round} made a third operation");
            assert_eq!(retried.operation.name(), raced.operation.name());
        }
        let again = operations.create(new()).await.unwrap();
        assert!(again.reused);
        assert_eq!(again.operation.name(), retried.operation.name());
        operations
            .delete(&again.operation.owned_name())
            .await
            .unwrap();
    }
    assert!(0 < made_anew, "the deletion was never first");
}

#[tokio::test]
async fn a_retry_policy_whose_pauses_never_end_is_refused() {
    let operations = start().await;
    for pause in [Duration::MAX, Duration::from_secs(u64::MAX), 367 * DAY] {
        for initial_backoff in [SECOND, pause] {
            let retry = RetryPolicy {
                initial_backoff,
                max_backoff: pause,
                ..RetryPolicy::attempts(2)
            };
            let new = NewOperation::queued("q").retry(retry);
            let refused = operations.create(new).await.unwrap_err();
            assert_eq!(
                refused.code(),
                longrunning::proto::google::rpc::Code::InvalidArgument
            );
        }
    }
}

#[tokio::test]
async fn a_handler_may_have_any_concurrency_above_zero() {
    for concurrency in [1, usize::MAX / 2, usize::MAX] {
        let echo =
            |context: Context| async move { Ok::<Any, Failure>(context.input().unwrap().clone()) };
        let builder = crate::support::operations().handler("q", concurrency, echo);
        let operations = builder.start().await.unwrap();
        let operation = operations.submit("q", text("x")).await.unwrap();
        let waited = operations.wait(&operation.owned_name(), GUARD).await;
        assert_eq!(response(&waited.unwrap().to_proto()), text("x"));
    }
}

#[tokio::test]
async fn a_start_that_fails_leaves_no_worker_behind() {
    for (queue, concurrency) in [("not a queue", 1), ("other", 0)] {
        let held = Arc::new(());
        let handler = || {
            let held = held.clone();
            move |_: Context| {
                let _held = held.clone();
                async { Ok::<Any, Failure>(text("")) }
            }
        };
        let started = crate::support::operations()
            .handler("q", 1, handler())
            .handler(queue, concurrency, handler())
            .start()
            .await;
        assert!(started.is_err(), "{queue:?}");
        assert_eq!(Arc::strong_count(&held), 1, "{queue:?}");
    }
}

// DEL-1
#[tokio::test(start_paused = true)]
async fn a_deleted_operation_that_no_worker_takes_up_goes_with_its_retention() {
    let limits = Limits {
        max_operations: 1,
        ..Limits::default()
    };
    let operations = crate::support::operations()
        .limits(limits)
        .start()
        .await
        .unwrap();
    let new = || NewOperation::queued("q").retention(60 * SECOND);
    // Deleted late, it stays as long.
    let name = created(&operations, new()).await;
    sleep(DAY).await;
    operations.delete(&name).await.unwrap();
    sleep(59 * SECOND).await;
    let full = operations.create(new()).await.unwrap_err();
    assert_eq!(full.reason(), "STORE_FULL");
    sleep(2 * SECOND).await;
    created(&operations, new()).await;
}

// DEL-1
#[tokio::test(start_paused = true)]
async fn a_deleted_operation_waits_for_its_worker_until_its_retention_is_over() {
    let operations = start().await;
    let new = NewOperation::queued("q").retention(60 * SECOND);
    let name = created(&operations, new).await;
    operations.delete(&name).await.unwrap();
    sleep(59 * SECOND).await;
    let (queue, worker) = (QueueName::parse("q").unwrap(), WorkerId::new("w"));
    let leased = operations.lease(&queue, &worker).await.unwrap();
    assert_eq!(leased.owned_name(), name);
    assert!(!leased.cancel_requested());
    // Whoever works on it may take longer than that.
    let token = leased.lease().unwrap().token;
    for _ in 0..10 {
        sleep(20 * SECOND).await;
        operations.renew(&name, token).await.unwrap();
    }
    let done = operations.succeed(&name, token, text("")).await.unwrap();
    assert_eq!(done.state(), State::Succeeded);
}

// DEL-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_that_is_deleted_when_its_time_comes_still_gets_a_worker() {
    const MANY: usize = 1000;
    let operations = start().await;
    for round in 0..6 {
        // Long enough to create them all, and all at one time.
        let time = SystemTime::now() + Duration::from_millis(400);
        let mut names = Vec::new();
        for _ in 0..MANY {
            names.push(created(&operations, NewOperation::queued("q").not_before(time)).await);
        }
        let mut expected: HashSet<_> = names.iter().cloned().collect();
        let mut deletions = JoinSet::new();
        for (half, names) in names.chunks(MANY / 2).enumerate() {
            let (operations, names) = (operations.clone(), names.to_vec());
            let before = Duration::from_millis(2 + round * half as u64);
            deletions.spawn(async move {
                while SystemTime::now() + before < time {
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
            assert!(expected.remove(&leased(&operations).await));
        }
        while let Some(deleted) = deletions.join_next().await {
            deleted.unwrap();
        }
    }
}

// BEHAVIOUR §6
#[tokio::test(start_paused = true)]
async fn a_timeout_that_somebody_waits_for_is_at_most_100_ms_late_however_long_it_is() {
    let operations = start().await;
    for timeout in [DAY, 30 * DAY] {
        let begun = Instant::now();
        let new = NewOperation::queued("nobody").total_timeout(timeout);
        let name = created(&operations, new).await;
        let done = operations.wait(&name, 2 * timeout).await.unwrap();
        let taken = begun.elapsed();
        let error = error(&done.to_proto());
        assert_eq!((error.code, reason(&error).as_str()), (4, "TOTAL_TIMEOUT"));
        assert!(timeout <= taken, "{taken:?}");
        assert!(taken <= timeout + Duration::from_millis(100), "{taken:?}");
    }
}

// BEHAVIOUR §6
#[tokio::test(start_paused = true)]
async fn what_is_done_never_goes_early_and_at_most_18_minutes_late() {
    let operations = start().await;
    for retention in [DAY, 30 * DAY, 365 * DAY] {
        let new = NewOperation::self_executed("w").retention(retention);
        let (name, token) = hold(&operations, new).await;
        operations.succeed(&name, token, text("")).await.unwrap();
        sleep(retention - SECOND).await;
        operations.get(&name).expect("its time is not over");
        sleep(SECOND + Duration::from_secs(1_100)).await;
        assert!(operations.get(&name).is_err(), "{retention:?}");
    }
}
