//! Effects of time alone: backoff, lease expiry, timeouts, grace periods and retention,
//! on paused time.

use std::{sync::Arc, time::Duration};

use longrunning::{
    Failure, LeaseToken, NewOperation, Operation, OperationName, Operations, QueueName,
    RetryPolicy, State, WorkerId, proto::google::rpc::Code,
};
use tokio::time::{Instant, sleep};

use crate::support::{
    assertions::{assert_failed_with, assert_within_timer_slack},
    create_leased, decode_metadata, expect_response,
    operations::{server_time, start_operations},
    string_value,
};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

async fn lease_next(operations: &Operations) -> Arc<Operation> {
    let queue = QueueName::parse("q").unwrap();
    operations.lease(&queue, &WorkerId::new("w")).await.unwrap()
}

fn token(operation: &Operation) -> LeaseToken {
    operation.lease().unwrap().token
}

async fn create(operations: &Operations, new: NewOperation) -> OperationName {
    operations.create(new).await.unwrap().operation.name_owned()
}

fn retry_policy(max_attempts: u32) -> RetryPolicy {
    RetryPolicy::with_max_attempts(max_attempts)
        .with_jitter(0.0)
        .with_max_backoff(5 * SECOND)
}

fn unavailable_failure() -> Failure {
    Failure::new(Code::Unavailable, "busy")
        .with_reason("BUSY")
        .retryable()
}

// Rules: STATE-4, STATE-5
#[tokio::test(start_paused = true)]
async fn retry_backoff_grows_to_max_backoff_and_attempts_are_counted() {
    let operations = start_operations().await;
    let name = create(
        &operations,
        NewOperation::queued("q").retry_policy(retry_policy(6)),
    )
    .await;
    let mut delays = Vec::new();
    for attempt in 1..=6 {
        let start = Instant::now();
        let leased = lease_next(&operations).await;
        delays.push(start.elapsed());
        assert_eq!(leased.attempt(), attempt);
        operations
            .fail(&name, token(&leased), unavailable_failure())
            .await
            .unwrap();
        let operation_metadata = decode_metadata(&operations.get_cached(&name).unwrap().to_proto());
        assert_eq!(operation_metadata.attempt, i32::try_from(attempt).unwrap());
        let state = if attempt == 6 {
            State::Failed
        } else {
            State::Pending
        };
        assert_eq!(operation_metadata.state(), state);
    }
    for (delay, seconds) in delays.iter().zip([0, 1, 2, 4, 5, 5]) {
        assert_within_timer_slack(*delay, seconds);
    }
    let failed = operations.get_cached(&name).unwrap().to_proto();
    assert_failed_with(&failed, Code::Unavailable, "BUSY");
}

// Rules: STATE-7
#[tokio::test(start_paused = true)]
async fn released_attempts_are_not_counted_and_available_immediately() {
    let operations = start_operations().await;
    let name = create(
        &operations,
        NewOperation::queued("q").retry_policy(retry_policy(2)),
    )
    .await;
    let start = Instant::now();
    for attempt in 1..=20 {
        let leased = lease_next(&operations).await;
        assert_eq!(leased.attempt(), attempt);
        operations.release(&name, token(&leased)).await.unwrap();
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    let leased = lease_next(&operations).await;
    operations
        .fail(&name, token(&leased), unavailable_failure())
        .await
        .unwrap();
    let leased = lease_next(&operations).await;
    // The first failure that counts, so the first backoff follows.
    assert_within_timer_slack(start.elapsed(), 1);
    let done = operations
        .fail(&name, token(&leased), unavailable_failure())
        .await
        .unwrap();
    assert_failed_with(&done.to_proto(), Code::Unavailable, "BUSY");
    assert_eq!(done.attempt(), 22);
}

// Rules: STATE-6
#[tokio::test(start_paused = true)]
async fn retryable_failure_may_request_longer_backoff() {
    let operations = start_operations().await;
    let name = create(
        &operations,
        NewOperation::queued("q").retry_policy(retry_policy(2)),
    )
    .await;
    let leased = lease_next(&operations).await;
    let failure = unavailable_failure().retryable_after(60 * SECOND);
    operations
        .fail(&name, token(&leased), failure)
        .await
        .unwrap();
    let start = Instant::now();
    lease_next(&operations).await;
    assert_within_timer_slack(start.elapsed(), 60);
}

// The wake-up after a backoff is not lost, however short the backoff is.
// Rules: STATE-11
#[tokio::test]
async fn operation_with_microsecond_backoff_is_never_lost() {
    let operations = start_operations().await;
    for nanos in (0..60_000).step_by(50) {
        let policy = retry_policy(2).with_initial_backoff(Duration::from_nanos(nanos));
        let name = create(&operations, NewOperation::queued("q").retry_policy(policy)).await;
        let leased = lease_next(&operations).await;
        operations
            .fail(&name, token(&leased), unavailable_failure())
            .await
            .unwrap();
        let again = tokio::time::timeout(5 * SECOND, lease_next(&operations)).await;
        let again =
            again.unwrap_or_else(|_| panic!("expected a lease after a backoff of {nanos} ns"));
        operations
            .succeed(&name, token(&again), string_value(""))
            .await
            .unwrap();
    }
}

// Rules: LEASE-3
#[tokio::test(start_paused = true)]
async fn expired_lease_is_retried_or_fails_with_worker_lost() {
    let operations = start_operations().await;
    let new = NewOperation::queued("q")
        .retry_policy(retry_policy(1).with_max_worker_losses(1))
        .lease_duration(10 * SECOND);
    let name = create(&operations, new).await;
    let first = lease_next(&operations).await;
    let start = Instant::now();
    let second = lease_next(&operations).await;
    // The backoff of a second follows the loss.
    assert_within_timer_slack(start.elapsed(), 11);
    assert_eq!(second.attempt(), 2);
    let stale = operations
        .succeed(&name, token(&first), string_value("late"))
        .await
        .unwrap_err();
    assert_eq!(stale.reason(), "LEASE_LOST");
    let done = operations.wait(&name, DAY).await.unwrap();
    assert_failed_with(&done.to_proto(), Code::Unavailable, "WORKER_LOST");
    assert_within_timer_slack(start.elapsed(), 21);
}

// Rules: LEASE-3
#[tokio::test(start_paused = true)]
async fn self_executed_operation_fails_without_lease_renewal() {
    let operations = start_operations().await;
    let (name, token) = create_leased(&operations, NewOperation::self_executed("w")).await;
    for _ in 0..100 {
        sleep(29 * SECOND).await;
        operations.renew(&name, token).await.unwrap();
    }
    assert_eq!(operations.get_cached(&name).unwrap().attempt(), 1);
    let start = Instant::now();
    let done = operations.wait(&name, DAY).await.unwrap();
    assert_within_timer_slack(start.elapsed(), 30);
    assert_failed_with(&done.to_proto(), Code::Unavailable, "WORKER_LOST");
}

// Rules: STATE-8
#[tokio::test(start_paused = true)]
async fn total_timeout_fails_pending_and_running_operations() {
    let operations = start_operations().await;
    let start = Instant::now();
    let limit = 100 * SECOND;
    let pending_name = create(&operations, NewOperation::queued("p").total_timeout(limit)).await;
    let (running_name, token) = create_leased(
        &operations,
        NewOperation::self_executed("w")
            .total_timeout(limit)
            .lease_duration(DAY),
    )
    .await;
    for name in [&pending_name, &running_name] {
        let done = operations.wait(name, DAY).await.unwrap();
        assert_failed_with(&done.to_proto(), Code::DeadlineExceeded, "TOTAL_TIMEOUT");
        assert_within_timer_slack(start.elapsed(), 100);
    }
    let late = operations
        .succeed(&running_name, token, string_value("late"))
        .await
        .unwrap_err();
    assert_eq!(late.reason(), "OPERATION_ALREADY_DONE");
}

// Rules: STATE-9
#[tokio::test(start_paused = true)]
async fn attempt_timeout_ends_attempt_despite_renewals() {
    let operations = start_operations().await;
    let new = NewOperation::queued("q")
        .retry_policy(retry_policy(2))
        .attempt_timeout(100 * SECOND);
    let name = create(&operations, new).await;
    for attempt in 1..=2 {
        let leased = lease_next(&operations).await;
        assert_eq!(leased.attempt(), attempt);
        let start = Instant::now();
        while operations.renew(&name, token(&leased)).await.is_ok() {
            sleep(SECOND).await;
        }
        assert!(
            (100..=103).contains(&start.elapsed().as_secs()),
            "{:?}",
            start.elapsed()
        );
    }
    let failed = operations.get_cached(&name).unwrap().to_proto();
    assert_failed_with(&failed, Code::DeadlineExceeded, "ATTEMPT_TIMEOUT");
}

// Rules: CAN-6
#[tokio::test(start_paused = true)]
async fn server_completes_cancel_after_grace_period_or_lease_expiry() {
    let operations = start_operations().await;
    for (grace, seconds) in [(Some(5 * SECOND), 5), (None, 30)] {
        let mut new = NewOperation::self_executed("w");
        if let Some(grace) = grace {
            new = new.cancel_grace_period(grace);
        }
        let (name, _) = create_leased(&operations, new).await;
        operations.cancel(&name).await.unwrap();
        let start = Instant::now();
        let done = operations.wait(&name, DAY).await.unwrap();
        assert_failed_with(&done.to_proto(), Code::Cancelled, "OPERATION_CANCELLED");
        assert_within_timer_slack(start.elapsed(), seconds);
    }
}

// Rules: OP-10
#[tokio::test(start_paused = true)]
async fn retention_counts_from_completion_and_running_never_expires() {
    let operations = start_operations().await;
    let new = NewOperation::self_executed("w")
        .retention(60 * SECOND)
        .lease_duration(365 * DAY);
    let (name, token) = create_leased(&operations, new).await;
    sleep(30 * DAY).await;
    assert!(!operations.get_cached(&name).unwrap().is_done());
    operations
        .succeed(&name, token, string_value("result"))
        .await
        .unwrap();
    sleep(59 * SECOND).await;
    let done = operations.get_cached(&name).unwrap();
    assert_eq!(expect_response(&done.to_proto()), string_value("result"));
    assert_eq!(done.expires_in(operations.clock().now()), Some(SECOND));
    sleep(3 * SECOND).await;
    assert_eq!(
        operations.get_cached(&name).unwrap_err().reason(),
        "OPERATION_NOT_FOUND"
    );
    assert!(
        operations
            .list(&Default::default())
            .await
            .unwrap()
            .operations
            .is_empty()
    );
}

// Rules: CREATE-3, OP-10
#[tokio::test(start_paused = true)]
async fn done_operation_is_retained_for_24_hours_by_default() {
    let operations = start_operations().await;
    let (name, token) = create_leased(&operations, NewOperation::self_executed("w")).await;
    operations
        .succeed(&name, token, string_value("result"))
        .await
        .unwrap();
    sleep(DAY - SECOND).await;
    operations.get_cached(&name).unwrap();
    sleep(DAY / 64).await;
    operations.get_cached(&name).unwrap_err();
}

// Rules: STATE-10
#[tokio::test(start_paused = true)]
async fn operation_is_not_leased_before_not_before_time() {
    let operations = start_operations().await;
    let now = server_time(&operations);
    create(
        &operations,
        NewOperation::queued("q")
            .not_before(now + 3600 * SECOND)
            .priority(9),
    )
    .await;
    let past = create(
        &operations,
        NewOperation::queued("q").not_before(now - 3600 * SECOND),
    )
    .await;
    let start = Instant::now();
    let leased = lease_next(&operations).await;
    assert_eq!(leased.name_owned(), past);
    assert_eq!(start.elapsed(), Duration::ZERO);
    operations
        .succeed(&past, token(&leased), string_value(""))
        .await
        .unwrap();
    lease_next(&operations).await;
    assert_within_timer_slack(start.elapsed(), 3600);
}

// Rules: STATE-12
#[tokio::test(start_paused = true)]
async fn maximum_durations_mean_never() {
    let operations = start_operations().await;
    let forever = Duration::MAX;
    let new = NewOperation::self_executed("w")
        .total_timeout(forever)
        .attempt_timeout(forever)
        .lease_duration(forever)
        .retention(forever)
        .cancel_grace_period(forever);
    let (name, token) = create_leased(&operations, new).await;
    operations.cancel(&name).await.unwrap();
    sleep(3650 * DAY).await;
    let cancelling = operations.get_cached(&name).unwrap();
    assert!(cancelling.cancel_requested() && cancelling.lease().is_some());
    assert!(!operations.wait(&name, SECOND).await.unwrap().is_done());
    operations
        .succeed(&name, token, string_value("at last"))
        .await
        .unwrap();
    assert!(operations.wait(&name, forever).await.unwrap().is_done());
    sleep(3650 * DAY).await;
    operations.get_cached(&name).unwrap();
}
