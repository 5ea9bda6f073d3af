//! The attempts of a queued operation: which of them count, their history and their progress, on paused time.

use std::{sync::Arc, time::Duration};

use longrunning::{
    AttemptResult, Failure, LeaseToken, NewOperation, Operation, OperationName, Operations,
    QueueName, Report, RetryPolicy, State, WorkerId,
    proto::{
        google::rpc::{Code, Status},
        longrunning::v1::{Progress, operation_metadata::Attempt},
    },
};
use prost::Message;
use tokio::time::{Instant, sleep};

use crate::support::{
    assertions::{assert_failed_with, assert_within_timer_slack},
    decode_metadata, error_reason, expect_error,
    operations::start_operations,
    progress,
};

const LEASE_DURATION: Duration = Duration::from_secs(30);

async fn create(operations: &Operations, policy: RetryPolicy) -> OperationName {
    let policy = policy
        .with_jitter(0.0)
        .with_max_backoff(Duration::from_secs(5));
    let new = NewOperation::queued("q")
        .lease_duration(LEASE_DURATION)
        .retry_policy(policy);
    operations.create(new).await.unwrap().operation.name_owned()
}

async fn lease_next(operations: &Operations, worker: &str) -> Arc<Operation> {
    let queue = QueueName::parse("q").unwrap();
    operations
        .lease(&queue, &WorkerId::new(worker))
        .await
        .unwrap()
}

fn token(operation: &Operation) -> LeaseToken {
    operation.lease().unwrap().token
}

fn busy() -> Failure {
    Failure::new(Code::Unavailable, "busy")
        .with_reason("BUSY")
        .retryable()
}

/// Returns the history as (number, worker, reason of the status); the reason is "" for OK and while the attempt runs.
fn history(operations: &Operations, name: &OperationName) -> Vec<(i32, String, String)> {
    let metadata = decode_metadata(&operations.get_cached(name).unwrap().to_proto());
    let entry = |attempt: Attempt| {
        assert!(attempt.start_time.is_some());
        assert_eq!(attempt.end_time.is_some(), attempt.status.is_some());
        let failure = attempt.status.filter(|status| status.code != 0);
        let reason = failure.map_or_else(String::new, |status| error_reason(&status));
        (attempt.number, attempt.worker_id, reason)
    };
    metadata.attempts.into_iter().map(entry).collect()
}

fn entry(number: i32, worker: &str, reason: &str) -> (i32, String, String) {
    (number, worker.to_owned(), reason.to_owned())
}

// Rules: LEASE-3, STATE-5
#[tokio::test(start_paused = true)]
async fn lost_worker_is_replaced_by_default_until_the_fourth_loss() {
    let operations = start_operations().await;
    let name = create(&operations, RetryPolicy::default()).await;
    let mut delays = Vec::new();
    for attempt in 1..=4 {
        let start = Instant::now();
        assert_eq!(lease_next(&operations, "w").await.attempt(), attempt);
        delays.push(start.elapsed());
        sleep(LEASE_DURATION + Duration::from_millis(300)).await;
    }
    // The backoff of the first loss, less the time that the loop slept after it.
    for (delay, seconds) in delays.into_iter().zip([0, 1, 2, 4]) {
        let expected = Duration::from_secs(seconds);
        assert!(
            delay <= expected && expected - delay <= Duration::from_millis(400),
            "{delay:?}"
        );
    }
    let lost = operations.get_cached(&name).unwrap().to_proto();
    assert_failed_with(&lost, Code::Unavailable, "WORKER_LOST");
    let message = expect_error(&lost).message;
    assert!(message.contains("4 workers were lost in all"), "{message}");
}

// Rules: LEASE-3
#[tokio::test(start_paused = true)]
async fn max_worker_losses_of_zero_ends_operation_at_first_loss() {
    let operations = start_operations().await;
    let policy = RetryPolicy::with_max_attempts(9).with_max_worker_losses(0);
    let name = create(&operations, policy).await;
    lease_next(&operations, "w").await;
    sleep(LEASE_DURATION + Duration::from_secs(1)).await;
    let lost = operations.get_cached(&name).unwrap();
    assert_eq!(lost.attempt(), 1);
    assert_failed_with(&lost.to_proto(), Code::Unavailable, "WORKER_LOST");
}

// Rules: LEASE-3, STATE-4, STATE-7
#[tokio::test(start_paused = true)]
async fn failures_losses_and_releases_are_counted_apart() {
    let operations = start_operations().await;
    let policy = RetryPolicy::with_max_attempts(2).with_max_worker_losses(1);
    let name = create(&operations, policy).await;
    lease_next(&operations, "a").await;
    let lost_at = Instant::now() + LEASE_DURATION;
    let leased = lease_next(&operations, "b").await;
    assert_within_timer_slack(lost_at.elapsed(), 1);
    operations.release(&name, token(&leased)).await.unwrap();
    let failed_at = Instant::now();
    let leased = lease_next(&operations, "c").await;
    operations
        .fail(&name, token(&leased), busy())
        .await
        .unwrap();
    let leased = lease_next(&operations, "d").await;
    // The first failure: the loss before it does not prolong the backoff.
    assert_within_timer_slack(failed_at.elapsed(), 1);
    operations
        .fail(&name, token(&leased), busy())
        .await
        .unwrap();
    let failed = operations.get_cached(&name).unwrap();
    assert_failed_with(&failed.to_proto(), Code::Unavailable, "BUSY");
    assert_eq!(failed.attempt(), 4);
}

// Rules: OP-18
#[tokio::test(start_paused = true)]
async fn history_lists_each_attempt_with_its_worker_and_status() {
    let operations = start_operations().await;
    let name = create(&operations, RetryPolicy::with_max_attempts(9)).await;
    assert_eq!(history(&operations, &name), []);
    lease_next(&operations, "lost").await;
    let leased = lease_next(&operations, "failing").await;
    operations
        .fail(&name, token(&leased), busy())
        .await
        .unwrap();
    let leased = lease_next(&operations, "releasing").await;
    operations.release(&name, token(&leased)).await.unwrap();
    let leased = lease_next(&operations, "good").await;
    let expected = [
        entry(1, "lost", "WORKER_LOST"),
        entry(2, "failing", "BUSY"),
        entry(3, "releasing", "RELEASED"),
        entry(4, "good", ""),
    ];
    assert_eq!(history(&operations, &name), expected);
    operations
        .succeed(&name, token(&leased), prost_types::Any::default())
        .await
        .unwrap();
    assert_eq!(history(&operations, &name), expected);
    let metadata = decode_metadata(&operations.get_cached(&name).unwrap().to_proto());
    assert_eq!(metadata.attempts[3].status, Some(Status::default()));
    assert_eq!(metadata.attempts[3].end_time, metadata.end_time);
    assert_eq!(metadata.attempts[0].start_time, metadata.start_time);
}

// Rules: OP-18
#[tokio::test(start_paused = true)]
async fn history_has_the_last_ten_attempts_with_bounded_statuses() {
    let operations = start_operations().await;
    let name = create(&operations, RetryPolicy::with_max_attempts(99)).await;
    for _ in 1..=12 {
        let leased = lease_next(&operations, "w").await;
        let failure = Failure::new(Code::Internal, "é".repeat(3000)).retryable();
        operations
            .fail(&name, token(&leased), failure)
            .await
            .unwrap();
    }
    lease_next(&operations, "w").await;
    let metadata = decode_metadata(&operations.get_cached(&name).unwrap().to_proto());
    let numbers: Vec<i32> = metadata
        .attempts
        .iter()
        .map(|attempt| attempt.number)
        .collect();
    assert_eq!(numbers, (4..=13).collect::<Vec<i32>>());
    let status = metadata.attempts[0].status.clone().unwrap();
    assert_eq!(status.message, "é".repeat(512));
    assert_eq!(error_reason(&status), "HANDLER_FAILED");
}

// Rules: OP-19
#[tokio::test(start_paused = true)]
async fn attempt_starts_without_progress_and_success_completes_it() {
    let operations = start_operations().await;
    let name = create(&operations, RetryPolicy::with_max_attempts(2)).await;
    let report = |progress: Progress| Report {
        progress: Some(progress),
        ..Report::default()
    };
    let current = || decode_metadata(&operations.get_cached(&name).unwrap().to_proto());
    let leased = lease_next(&operations, "w").await;
    operations
        .report(&name, token(&leased), report(progress(40)))
        .await
        .unwrap();
    assert_eq!(current().progress, Some(progress(40)));
    operations
        .fail(&name, token(&leased), busy())
        .await
        .unwrap();
    assert_eq!(
        (current().state(), current().progress),
        (State::Pending, None)
    );
    let leased = lease_next(&operations, "w").await;
    assert_eq!(current().progress, None);
    let last = Progress {
        message: "last".into(),
        fraction: Some(0.7),
        eta: Some(prost_types::Timestamp::default()),
        ..progress(70)
    };
    let succeeded = AttemptResult::Succeeded(prost_types::Any::default());
    operations
        .finish(&name, token(&leased), succeeded, report(last))
        .await
        .unwrap();
    let complete = Progress {
        message: "last".into(),
        fraction: Some(1.0),
        ..progress(100)
    };
    assert_eq!(current().progress, Some(complete));
}

// Rules: CAN-8
#[tokio::test(start_paused = true)]
async fn retryable_failure_after_cancellation_is_kept_in_error_details() {
    let operations = start_operations().await;
    let name = create(&operations, RetryPolicy::with_max_attempts(9)).await;
    let leased = lease_next(&operations, "w").await;
    operations.cancel(&name).await.unwrap();
    let done = operations
        .fail(&name, token(&leased), busy())
        .await
        .unwrap()
        .to_proto();
    assert_failed_with(&done, Code::Cancelled, "OPERATION_CANCELLED");
    let error = expect_error(&done);
    assert_eq!(
        error.details[1].type_url,
        "type.googleapis.com/google.rpc.Status"
    );
    let cause = Status::decode(&*error.details[1].value).unwrap();
    assert_eq!(
        (cause.message.as_str(), error_reason(&cause).as_str()),
        ("busy", "BUSY")
    );
    assert_eq!(history(&operations, &name), [entry(1, "w", "BUSY")]);
    // The worker did not get the response, and repeats the call.
    let repeated = operations
        .fail(&name, token(&leased), busy())
        .await
        .unwrap();
    assert_eq!(repeated.to_proto(), done);
}
