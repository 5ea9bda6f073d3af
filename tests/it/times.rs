//! What time alone does: backoff, leases, timeouts, grace and retention, on
//! paused time. A look at a deadline may be 1/128 of its distance late.

use std::{sync::Arc, time::Duration};

use longrunning::{
    Failure, LeaseToken, NewOperation, Operation, OperationName, Operations, QueueName,
    RetryPolicy, Stage, State, WorkerId, proto::google::rpc::Code,
};
use tokio::time::{Instant, sleep};

use crate::support::{error, hold, metadata, reason, response, text};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

async fn start() -> Operations {
    crate::support::operations().start().await.unwrap()
}

async fn lease(operations: &Operations) -> Arc<Operation> {
    let queue = QueueName::parse("q").unwrap();
    operations.lease(&queue, &WorkerId::new("w")).await.unwrap()
}

fn token(operation: &Operation) -> LeaseToken {
    operation.lease().unwrap().token
}

async fn queued(operations: &Operations, new: NewOperation) -> OperationName {
    operations.create(new).await.unwrap().operation.owned_name()
}

fn retry(max_attempts: u32) -> RetryPolicy {
    RetryPolicy {
        jitter: 0.0,
        max_backoff: 5 * SECOND,
        ..RetryPolicy::attempts(max_attempts)
    }
}

fn busy() -> Failure {
    Failure::new(Code::Unavailable, "busy")
        .with_reason("BUSY")
        .retryable()
}

/// How an operation failed: the code and the reason.
fn failed(operation: &Operation) -> (i32, String) {
    let error = error(&operation.to_proto());
    (error.code, reason(&error))
}

/// Whether `time` is `seconds`, or as much later as a look may be.
fn is_about(time: Duration, seconds: u64) -> bool {
    let exact = Duration::from_secs(seconds);
    (exact..=exact + exact / 64 + Duration::from_millis(5)).contains(&time)
}

// BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn attempts_follow_after_pauses_that_grow_up_to_the_longest_and_are_counted() {
    let operations = start().await;
    let name = queued(&operations, NewOperation::queued("q").retry(retry(6))).await;
    let mut pauses = Vec::new();
    for attempt in 1..=6 {
        let begun = Instant::now();
        let leased = lease(&operations).await;
        pauses.push(begun.elapsed());
        assert_eq!(leased.attempt(), attempt);
        operations
            .fail(&name, token(&leased), busy())
            .await
            .unwrap();
        let shown = metadata(&operations.get(&name).unwrap().to_proto());
        assert_eq!(shown.attempt, i32::try_from(attempt).unwrap());
        let state = if attempt == 6 {
            State::Failed
        } else {
            State::Pending
        };
        assert_eq!(shown.state(), state);
    }
    for (pause, seconds) in pauses.iter().zip([0, 1, 2, 4, 5, 5]) {
        assert!(is_about(*pause, seconds), "{pauses:?}");
    }
    assert_eq!(
        failed(&operations.get(&name).unwrap()),
        (14, "BUSY".to_owned())
    );
}

// BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn released_attempts_do_not_count_and_come_back_at_once() {
    let operations = start().await;
    let name = queued(&operations, NewOperation::queued("q").retry(retry(2))).await;
    let begun = Instant::now();
    for attempt in 1..=20 {
        let leased = lease(&operations).await;
        assert_eq!(
            leased.attempt(),
            attempt,
            "the number of the attempt only grows"
        );
        operations.release(&name, token(&leased)).await.unwrap();
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let leased = lease(&operations).await;
    operations
        .fail(&name, token(&leased), busy())
        .await
        .unwrap();
    let leased = lease(&operations).await;
    assert!(
        is_about(begun.elapsed(), 1),
        "the first failure that counts"
    );
    let done = operations
        .fail(&name, token(&leased), busy())
        .await
        .unwrap();
    assert_eq!(failed(&done), (14, "BUSY".to_owned()));
    assert_eq!(done.attempt(), 22);
}

// BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn a_failure_may_ask_for_a_longer_pause() {
    let operations = start().await;
    let name = queued(&operations, NewOperation::queued("q").retry(retry(2))).await;
    let leased = lease(&operations).await;
    let failure = busy().retryable_after(60 * SECOND);
    operations
        .fail(&name, token(&leased), failure)
        .await
        .unwrap();
    let begun = Instant::now();
    lease(&operations).await;
    assert!(is_about(begun.elapsed(), 60), "{:?}", begun.elapsed());
}

// BEHAVIOUR §4: however short the pause, nobody may sleep through its end.
#[tokio::test]
async fn an_operation_whose_pause_is_over_in_microseconds_is_never_forgotten() {
    let operations = start().await;
    for nanos in (0..60_000).step_by(50) {
        let retry = RetryPolicy {
            initial_backoff: Duration::from_nanos(nanos),
            ..retry(2)
        };
        let name = queued(&operations, NewOperation::queued("q").retry(retry)).await;
        let leased = lease(&operations).await;
        operations
            .fail(&name, token(&leased), busy())
            .await
            .unwrap();
        let again = tokio::time::timeout(5 * SECOND, lease(&operations)).await;
        let again = again.unwrap_or_else(|_| panic!("lost after a pause of {nanos} ns"));
        operations
            .succeed(&name, token(&again), text(""))
            .await
            .unwrap();
    }
}

// BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn a_lease_that_runs_out_leads_to_another_attempt_or_to_worker_lost() {
    let operations = start().await;
    let new = NewOperation::queued("q")
        .retry(retry(2))
        .lease_duration(10 * SECOND);
    let name = queued(&operations, new).await;
    let first = lease(&operations).await;
    let begun = Instant::now();
    let second = lease(&operations).await;
    assert!(is_about(begun.elapsed(), 10), "{:?}", begun.elapsed());
    assert_eq!(second.attempt(), 2);
    let stale = operations
        .succeed(&name, token(&first), text("late"))
        .await
        .unwrap_err();
    assert_eq!(stale.reason(), "LEASE_LOST");
    let done = operations.wait(&name, DAY).await.unwrap();
    assert_eq!(failed(&done), (14, "WORKER_LOST".to_owned()));
    assert!(is_about(begun.elapsed(), 20), "{:?}", begun.elapsed());
}

// BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn an_operation_whose_creator_falls_silent_is_lost_unless_it_renews() {
    let operations = start().await;
    let (name, token) = hold(&operations, NewOperation::self_executed("w")).await;
    for _ in 0..100 {
        sleep(29 * SECOND).await;
        operations.renew(&name, token).await.unwrap();
    }
    assert_eq!(operations.get(&name).unwrap().attempt(), 1);
    let begun = Instant::now();
    let done = operations.wait(&name, DAY).await.unwrap();
    assert!(is_about(begun.elapsed(), 30), "{:?}", begun.elapsed());
    assert_eq!(failed(&done), (14, "WORKER_LOST".to_owned()));
}

// BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn total_timeout_ends_what_waits_and_what_runs_with_deadline_exceeded() {
    let operations = start().await;
    let begun = Instant::now();
    let limit = 100 * SECOND;
    let waits = queued(&operations, NewOperation::queued("p").total_timeout(limit)).await;
    let (runs, token) = hold(
        &operations,
        NewOperation::self_executed("w")
            .total_timeout(limit)
            .lease_duration(DAY),
    )
    .await;
    for name in [&waits, &runs] {
        let done = operations.wait(name, DAY).await.unwrap();
        assert_eq!(failed(&done), (4, "TOTAL_TIMEOUT".to_owned()));
        assert!(is_about(begun.elapsed(), 100), "{:?}", begun.elapsed());
    }
    let late = operations
        .succeed(&runs, token, text("late"))
        .await
        .unwrap_err();
    assert_eq!(late.reason(), "OPERATION_DONE");
}

// BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn attempt_timeout_ends_an_attempt_however_often_it_is_renewed() {
    let operations = start().await;
    let new = NewOperation::queued("q")
        .retry(retry(2))
        .attempt_timeout(100 * SECOND);
    let name = queued(&operations, new).await;
    for attempt in 1..=2 {
        let leased = lease(&operations).await;
        assert_eq!(leased.attempt(), attempt);
        let begun = Instant::now();
        while operations.renew(&name, token(&leased)).await.is_ok() {
            sleep(SECOND).await;
        }
        assert!(
            (100..=103).contains(&begun.elapsed().as_secs()),
            "{:?}",
            begun.elapsed()
        );
    }
    assert_eq!(
        failed(&operations.get(&name).unwrap()),
        (4, "ATTEMPT_TIMEOUT".to_owned())
    );
}

// CAN-6
#[tokio::test(start_paused = true)]
async fn a_cancellation_is_closed_by_the_server_when_the_grace_or_the_lease_is_over() {
    let operations = start().await;
    for (grace, seconds) in [(Some(5 * SECOND), 5), (None, 30)] {
        let mut new = NewOperation::self_executed("w");
        if let Some(grace) = grace {
            new = new.cancel_grace(grace);
        }
        let (name, _) = hold(&operations, new).await;
        operations.cancel(&name).await.unwrap();
        let begun = Instant::now();
        let done = operations.wait(&name, DAY).await.unwrap();
        assert_eq!(failed(&done), (1, "OPERATION_CANCELLED".to_owned()));
        assert!(is_about(begun.elapsed(), seconds), "{:?}", begun.elapsed());
    }
}

// OP-10
#[tokio::test(start_paused = true)]
async fn retention_counts_from_completion_and_a_running_operation_never_expires() {
    let operations = start().await;
    let new = NewOperation::self_executed("w")
        .retention(60 * SECOND)
        .lease_duration(365 * DAY);
    let (name, token) = hold(&operations, new).await;
    sleep(30 * DAY).await;
    assert!(!operations.get(&name).unwrap().is_done());
    operations
        .succeed(&name, token, text("kept"))
        .await
        .unwrap();
    sleep(59 * SECOND).await;
    let done = operations.get(&name).unwrap();
    assert_eq!(response(&done.to_proto()), text("kept"));
    assert_eq!(done.expires_in(operations.clock().now()), Some(SECOND));
    sleep(3 * SECOND).await;
    assert_eq!(
        operations.get(&name).unwrap_err().reason(),
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

// OP-10, BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn a_done_operation_is_kept_for_24_hours_by_default() {
    let operations = start().await;
    let (name, token) = hold(&operations, NewOperation::self_executed("w")).await;
    operations
        .succeed(&name, token, text("kept"))
        .await
        .unwrap();
    sleep(DAY - SECOND).await;
    operations.get(&name).unwrap();
    sleep(DAY / 64).await;
    operations.get(&name).unwrap_err();
}

// BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn nobody_gets_an_operation_before_its_time() {
    let operations = start().await;
    let now = std::time::UNIX_EPOCH
        + Duration::from_nanos(u64::try_from(operations.clock().now().nanos()).unwrap());
    queued(
        &operations,
        NewOperation::queued("q")
            .not_before(now + 3600 * SECOND)
            .priority(9),
    )
    .await;
    let past = queued(
        &operations,
        NewOperation::queued("q").not_before(now - 3600 * SECOND),
    )
    .await;
    let begun = Instant::now();
    assert_eq!(lease(&operations).await.owned_name(), past);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    lease(&operations).await;
    assert!(is_about(begun.elapsed(), 3600), "{:?}", begun.elapsed());
}

// BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn absurd_times_mean_never_and_break_nothing() {
    let operations = start().await;
    let forever = Duration::MAX;
    let new = NewOperation::self_executed("w")
        .total_timeout(forever)
        .attempt_timeout(forever)
        .lease_duration(forever)
        .retention(forever)
        .cancel_grace(forever);
    let (name, token) = hold(&operations, new).await;
    operations.cancel(&name).await.unwrap();
    sleep(3650 * DAY).await;
    assert!(matches!(
        operations.get(&name).unwrap().stage(),
        Stage::Cancelling(_)
    ));
    assert!(!operations.wait(&name, SECOND).await.unwrap().is_done());
    operations
        .succeed(&name, token, text("at last"))
        .await
        .unwrap();
    assert!(operations.wait(&name, forever).await.unwrap().is_done());
    sleep(3650 * DAY).await;
    operations.get(&name).unwrap();
}
