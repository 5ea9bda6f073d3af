//! Confirmation of leases: a lease whose worker never calls is no attempt.

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;
use http_body_util::BodyExt;
use longrunning::{
    Operation, State, proto,
    proto::longrunning::v1::{
        CreateOperationRequest, Lease, LeaseOperationsRequest, OperationMetadata, RetryPolicy,
        directive::Kind, finish_operation_request::Outcome,
    },
    worker_server,
};
use prost::Message;
use tokio::time::{Duration, Instant, sleep};
use tonic::Code;
use tower::ServiceExt;

use crate::support::{
    assertions::{assert_failed_with, assert_within_timer_slack},
    decode_metadata, expect_error,
    harness::{
        Harness, failure, lease_request, lease_request_with_wait, proto_seconds, queued_request,
        release, retryable_failure,
    },
    string_value, wait_request,
};

const CONFIRM_SECS: i64 = 2;

/// A request for one lease that must be confirmed within [`CONFIRM_SECS`].
fn confirmed_lease_request(worker: &str) -> LeaseOperationsRequest {
    LeaseOperationsRequest {
        confirm_within: proto_seconds(CONFIRM_SECS),
        ..lease_request_with_wait(&["q"], worker, 600)
    }
}

async fn lease_unconfirmed(harness: &Harness, worker: &str) -> Lease {
    let leases = harness.try_lease(confirmed_lease_request(worker)).await;
    leases.unwrap().remove(0)
}

/// Creates an operation of queue `q` whose retries have no jitter.
async fn create(harness: &Harness, max_worker_losses: i32) -> String {
    let retry_policy = RetryPolicy {
        jitter: Some(0.0),
        max_worker_losses: Some(max_worker_losses),
        ..RetryPolicy::default()
    };
    let request = CreateOperationRequest {
        retry_policy: Some(retry_policy),
        ..queued_request("q")
    };
    harness.create_operation(request).await
}

async fn wait_until_done(harness: &Harness, name: &str) -> proto::google::longrunning::Operation {
    let mut client = harness.client.clone();
    let done = client
        .wait_operation(wait_request(&name.parse().unwrap(), 600_000))
        .await;
    done.unwrap().into_inner()
}

async fn metadata(harness: &Harness, name: &str) -> OperationMetadata {
    decode_metadata(&harness.get(name).await)
}

// Rules: LEASE-8, OP-18
#[tokio::test(start_paused = true)]
async fn unconfirmed_lease_returns_to_its_place_and_is_no_attempt() {
    let harness = Harness::start().await;
    let first = create(&harness, 0).await;
    let second = create(&harness, 0).await;
    let start = Instant::now();
    let unconfirmed = lease_unconfirmed(&harness, "a").await;
    assert_eq!((&unconfirmed.name, unconfirmed.attempt), (&first, 1));
    let leased = metadata(&harness, &first).await;
    assert_eq!((leased.state(), leased.attempt), (State::Running, 1));
    assert_eq!((leased.start_time, leased.attempts), (None, vec![]));

    sleep(Duration::from_millis(2_100)).await;
    let requeued = metadata(&harness, &first).await;
    assert_eq!(requeued.state(), State::Pending);
    assert_eq!((requeued.start_time, requeued.attempts), (None, vec![]));
    // Before the operation that was created later.
    let again = lease_unconfirmed(&harness, "b").await;
    assert_eq!((&again.name, again.attempt), (&first, 2));
    let other = lease_unconfirmed(&harness, "b").await;
    assert_eq!(other.name, second);
    let late = harness.heartbeat_one(&unconfirmed).await;
    assert_eq!(late.kind(), Kind::LeaseLost);

    let confirmed_at = start.elapsed();
    assert_eq!(harness.heartbeat_one(&again).await.kind(), Kind::Continue);
    sleep(Duration::from_secs(10)).await;
    let running = metadata(&harness, &first).await;
    assert_eq!(running.state(), State::Running);
    let [attempt] = <[_; 1]>::try_from(running.attempts).unwrap();
    assert_eq!((attempt.number, attempt.worker_id.as_str()), (2, "b"));
    assert_eq!(attempt.start_time, running.start_time);
    let began = SystemTime::try_from(running.start_time.unwrap()).unwrap();
    let created = SystemTime::try_from(running.create_time.unwrap()).unwrap();
    let delay = began.duration_since(created).unwrap();
    assert!(delay >= confirmed_at && delay - confirmed_at < Duration::from_millis(100));
}

// Rules: LEASE-8
#[tokio::test(start_paused = true)]
async fn any_first_call_of_holder_confirms_lease() {
    let outcomes = [
        Outcome::Response(string_value("done")),
        failure(Code::Internal, "broken"),
        retryable_failure(Code::Unavailable, "busy"),
        release(),
    ];
    for outcome in outcomes {
        let harness = Harness::start().await;
        create(&harness, 0).await;
        let lease = lease_unconfirmed(&harness, "w").await;
        let after = decode_metadata(&harness.finish(&lease, outcome).await);
        assert_eq!(after.attempts.len(), 1, "{after:?}");
        assert!(after.start_time.is_some());
    }
}

// A worker without heartbeats.
// Rules: LEASE-8
#[tokio::test(start_paused = true)]
async fn lease_without_confirm_within_is_held_for_its_duration() {
    let harness = Harness::start().await;
    create(&harness, 0).await;
    let lease = harness.lease_one("q", "w").await;
    sleep(Duration::from_secs(29)).await;
    let done = harness
        .finish(&lease, Outcome::Response(string_value("slow")))
        .await;
    assert_eq!(decode_metadata(&done).attempts.len(), 1);
}

// Rules: LEASE-9
#[tokio::test(start_paused = true)]
async fn fifth_unconfirmed_lease_in_a_row_counts_as_lost_worker() {
    let harness = Harness::start().await;
    let name = create(&harness, 0).await;
    for (attempt, backoff) in [(1, 0), (2, 0), (3, 0), (4, 1), (5, 2)] {
        let start = Instant::now();
        let lease = lease_unconfirmed(&harness, "w").await;
        assert_eq!(lease.attempt, attempt);
        // The time to confirm the lease before, and the backoff.
        let confirm_secs = if attempt == 1 { 0 } else { 2 };
        assert_within_timer_slack(start.elapsed(), confirm_secs + backoff);
    }
    let done = wait_until_done(&harness, &name).await;
    assert_failed_with(&done, Code::Unavailable, "WORKER_LOST");
    let message = expect_error(&done).message;
    assert!(message.contains("five in a row"), "{message}");
}

// Rules: LEASE-9
#[tokio::test(start_paused = true)]
async fn confirmed_lease_starts_count_of_unconfirmed_leases_again() {
    let harness = Harness::start().await;
    let name = create(&harness, 0).await;
    for _ in 0..2 {
        for _ in 0..4 {
            lease_unconfirmed(&harness, "w").await;
        }
        let lease = lease_unconfirmed(&harness, "w").await;
        harness.finish(&lease, release()).await;
    }
    assert_eq!(metadata(&harness, &name).await.state(), State::Pending);
    assert_eq!(metadata(&harness, &name).await.attempts.len(), 2);
}

// Rules: CAN-6, LEASE-8
#[tokio::test(start_paused = true)]
async fn cancelled_operation_with_unconfirmed_lease_ends_cancelled() {
    let harness = Harness::start().await;
    let name = create(&harness, 3).await;
    let start = Instant::now();
    lease_unconfirmed(&harness, "w").await;
    harness.cancel(&name).await;
    let done = wait_until_done(&harness, &name).await;
    assert_failed_with(&done, Code::Cancelled, "OPERATION_CANCELLED");
    assert_within_timer_slack(start.elapsed(), 2);
}

// Rules: STATE-9
#[tokio::test(start_paused = true)]
async fn attempt_timeout_begins_with_confirmation() {
    let harness = Harness::start().await;
    let request = CreateOperationRequest {
        attempt_timeout: proto_seconds(10),
        ..queued_request("q")
    };
    let name = harness.create_operation(request).await;
    let lease = harness.lease_one("q", "w").await;
    assert_eq!(lease.attempt_remaining, proto_seconds(10));
    sleep(Duration::from_secs(9)).await;
    let start = Instant::now();
    assert_eq!(harness.heartbeat_one(&lease).await.kind(), Kind::Continue);
    let done = wait_until_done(&harness, &name).await;
    assert_failed_with(&done, Code::DeadlineExceeded, "ATTEMPT_TIMEOUT");
    assert_within_timer_slack(start.elapsed(), 10);
}

// The stream was reset before its response was sent.
// Rules: LEASE-5
#[tokio::test(start_paused = true)]
async fn response_that_is_never_sent_returns_its_leases_at_once() {
    let harness = Harness::start().await;
    let names = [create(&harness, 0).await, create(&harness, 0).await];
    let call = async || {
        let message = lease_request(&["q"], "w", 9).encode_to_vec();
        let mut frame = vec![0];
        frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend(message);
        let request = http::Request::post("/longrunning.v1.OperationWorker/LeaseOperations")
            .header("content-type", "application/grpc")
            .body(http_body_util::Full::new(Bytes::from(frame)))
            .unwrap();
        let service = worker_server(&harness.operations);
        service.oneshot(request).await.unwrap()
    };
    let leased = |name: &str| {
        let name = name.parse().unwrap();
        let operation: Arc<Operation> = harness.operations.get_cached(&name).unwrap();
        operation.lease().is_some()
    };
    let unsent = call().await;
    assert!(names.iter().all(|name| leased(name)));
    let start = Instant::now();
    drop(unsent);
    let again = harness.try_lease(lease_request_with_wait(&["q"], "w", 600));
    assert_eq!(again.await.unwrap().len(), 1);
    assert_eq!(start.elapsed(), Duration::ZERO);
    let revoked = metadata(&harness, &names[1]).await;
    assert_eq!((revoked.start_time, revoked.attempts), (None, vec![]));

    let sent = call().await;
    assert!(sent.into_body().collect().await.is_ok());
    tokio::task::yield_now().await;
    assert!(names.iter().all(|name| leased(name)));
}
