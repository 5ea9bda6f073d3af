//! FinishOperation: responses, failures, retries and releases.

use std::sync::Arc;

use longrunning::{
    Any, State,
    proto::{
        google::{longrunning::Operation, rpc},
        longrunning::v1::{
            CreateOperationRequest, FinishOperationRequest, Lease, Progress,
            finish_operation_request::{Failure, Outcome},
        },
    },
};
use tokio::{
    sync::Barrier,
    task::JoinSet,
    time::{Duration, Instant},
};
use tonic::Code;

use crate::support::{
    GrpcTestServer,
    assertions::{assert_error_code, assert_failed_with, assert_within_timer_slack},
    custom_metadata, decode_metadata,
    error_details::ErrorDetails,
    expect_error, expect_response,
    harness::{
        Harness, failure, finish_request, lease_request_with_wait, max_attempts, proto_seconds,
        queued_request, release, retryable_failure, self_executed_request,
    },
    string_value,
};

/// Starts a harness with one operation of `attempt_limit` attempts, and leases it.
async fn harness_with_lease(attempt_limit: i32) -> (Harness, Lease) {
    let harness = Harness::start().await;
    let request = CreateOperationRequest {
        retry_policy: max_attempts(attempt_limit),
        ..queued_request("q")
    };
    harness.create_operation(request).await;
    let lease = harness.lease_one("q", "w").await;
    (harness, lease)
}

/// Returns the next lease and the time that the poll took.
async fn lease_next(harness: &Harness) -> (Lease, Duration) {
    let start = Instant::now();
    let mut leases = harness
        .try_lease(lease_request_with_wait(&["q"], "w", 600))
        .await
        .unwrap();
    (leases.remove(0), start.elapsed())
}

/// Asserts that an operation waits for its next attempt.
#[track_caller]
fn assert_pending(operation: &Operation) {
    assert!(!operation.done);
    assert_eq!(decode_metadata(operation).state(), State::Pending);
}

fn busy() -> Outcome {
    retryable_failure(Code::Unavailable, "busy")
}

fn finish_with_metadata(lease: &Lease, n: u8, outcome: Outcome) -> FinishOperationRequest {
    FinishOperationRequest {
        metadata: Some(custom_metadata(n)),
        ..finish_request(lease, outcome)
    }
}

// Rules: FINISH-6
#[tokio::test]
async fn finish_takes_last_progress_and_rejects_one_out_of_range() {
    let (harness, lease) = harness_with_lease(1).await;
    let finish = |fraction| FinishOperationRequest {
        progress: Some(Progress {
            fraction: Some(fraction),
            stage: "uploading".into(),
            ..Progress::default()
        }),
        ..finish_request(&lease, failure(rpc::Code::Internal, "broken"))
    };
    let rejected = harness.try_finish(finish(1.5)).await.unwrap_err();
    assert_eq!(
        ErrorDetails::from_status(&rejected).code_and_reason(),
        (Code::InvalidArgument, "INVALID_PROGRESS")
    );
    let failed = harness.try_finish(finish(0.5)).await.unwrap();
    let progress = decode_metadata(&failed).progress.unwrap();
    assert_eq!(
        (progress.fraction, progress.stage.as_str()),
        (Some(0.5), "uploading")
    );
}

// Rules: FINISH-1, OP-2
#[tokio::test]
async fn response_is_served_byte_for_byte_and_missing_one_is_empty() {
    let harness = Harness::start().await;
    let empty = Any {
        type_url: "type.googleapis.com/google.protobuf.Empty".into(),
        value: Vec::new(),
    };
    let bare = Any {
        type_url: "acme.v1.Film".into(),
        value: vec![0xff, 0, 1],
    };
    let full = Any {
        type_url: "type.googleapis.com/acme.v1.Film".into(),
        ..bare.clone()
    };
    for (outcome, expected) in [
        (
            Some(Outcome::Response(string_value("done"))),
            string_value("done"),
        ),
        (
            Some(Outcome::Response(custom_metadata(1))),
            custom_metadata(1),
        ),
        (Some(Outcome::Response(bare)), full),
        (Some(Outcome::Response(Any::default())), empty.clone()),
        (None, empty),
    ] {
        let lease = harness.create_self_executed("w").await;
        let done = harness
            .try_finish(finish_request(&lease, outcome))
            .await
            .unwrap();
        assert_eq!(expect_response(&done), expected);
        assert_eq!(decode_metadata(&done).state(), State::Succeeded);
        assert_eq!(harness.get(&lease.name).await, done);
    }
}

// Rules: FINISH-1, OP-4
#[tokio::test]
async fn failure_of_every_code_is_served_with_its_details() {
    let harness = Harness::start().await;
    for code in 1..=16 {
        let lease = harness.create_self_executed("w").await;
        let status = rpc::Status {
            code,
            message: format!("failed with code {code}"),
            details: vec![string_value("why"), custom_metadata(3)],
        };
        let outcome = Outcome::Failure(Failure {
            error: Some(status.clone()),
            ..Failure::default()
        });
        let done = harness.finish(&lease, outcome).await;
        assert_eq!(expect_error(&done), status);
        let expected = if code == Code::Cancelled as i32 {
            State::Cancelled
        } else {
            State::Failed
        };
        assert_eq!(decode_metadata(&done).state(), expected);
    }
}

// Rules: STATE-4
#[tokio::test(start_paused = true)]
async fn non_retryable_failure_ends_operation_despite_retry_policy() {
    let (harness, lease) = harness_with_lease(5).await;
    let outcome = failure(Code::FailedPrecondition, "no");
    let done = harness.finish(&lease, outcome).await;
    assert_error_code(&done, Code::FailedPrecondition);
}

// Rules: STATE-4, STATE-5
#[tokio::test(start_paused = true)]
async fn retryable_failure_is_retried_with_backoff_until_max_attempts() {
    let (harness, mut lease) = harness_with_lease(4).await;
    for (attempt, expected_secs) in [(2, 1), (3, 2), (4, 4)] {
        assert_pending(&harness.finish(&lease, busy()).await);
        let (next_lease, elapsed) = lease_next(&harness).await;
        assert_within_timer_slack(elapsed, expected_secs);
        assert_eq!(next_lease.attempt, attempt);
        lease = next_lease;
    }
    let done = harness.finish(&lease, busy()).await;
    assert_error_code(&done, Code::Unavailable);
    assert_eq!(decode_metadata(&done).attempt, 4);
}

// Rules: STATE-6
#[tokio::test(start_paused = true)]
async fn retry_after_extends_backoff_and_never_shortens_it() {
    let (harness, mut lease) = harness_with_lease(9).await;
    for (retry_after, expected_secs) in [(0, 1), (60, 60), (1, 4)] {
        let Outcome::Failure(failure) = busy() else {
            unreachable!("`busy` returns a failure")
        };
        let failure = Failure {
            retry_after: proto_seconds(retry_after),
            ..failure
        };
        harness.finish(&lease, Outcome::Failure(failure)).await;
        let (next_lease, elapsed) = lease_next(&harness).await;
        assert_within_timer_slack(elapsed, expected_secs);
        lease = next_lease;
    }
}

// Rules: STATE-7
#[tokio::test(start_paused = true)]
async fn released_operation_is_available_immediately_and_not_counted() {
    let (harness, mut lease) = harness_with_lease(2).await;
    for attempt in 2..=10 {
        assert_pending(&harness.finish(&lease, release()).await);
        lease = harness.lease_one("q", "w").await;
        assert_eq!(lease.attempt, attempt);
    }
    // The first attempt that counts, so the first backoff follows.
    harness.finish(&lease, busy()).await;
    let (last, elapsed) = lease_next(&harness).await;
    assert_within_timer_slack(elapsed, 1);
    assert!(harness.finish(&last, busy()).await.done);
}

// A cancelled operation is not retried.
// Rules: CAN-7
#[tokio::test]
async fn releasing_or_retrying_cancelled_operation_cancels_it() {
    for outcome in [release(), busy()] {
        let (harness, lease) = harness_with_lease(9).await;
        harness.cancel(&lease.name).await;
        let done = harness.finish(&lease, outcome).await;
        assert_failed_with(&done, Code::Cancelled, "OPERATION_CANCELLED");
    }
    for (outcome, state) in [
        (
            Outcome::Response(string_value("too late")),
            State::Succeeded,
        ),
        (failure(Code::FailedPrecondition, "broken"), State::Failed),
        (failure(Code::Cancelled, "stopped"), State::Cancelled),
    ] {
        let (harness, lease) = harness_with_lease(9).await;
        harness.cancel(&lease.name).await;
        let done = harness.finish(&lease, outcome).await;
        assert_eq!(
            (
                decode_metadata(&done).state(),
                decode_metadata(&done).cancel_requested
            ),
            (state, true)
        );
    }
}

// Rules: FINISH-2
#[tokio::test(start_paused = true)]
async fn metadata_in_finish_is_stored_byte_for_byte_for_every_outcome() {
    let (harness, lease) = harness_with_lease(2).await;
    let pending_operation = harness
        .try_finish(finish_with_metadata(&lease, 1, release()))
        .await
        .unwrap();
    assert_eq!(pending_operation.metadata, Some(custom_metadata(1)));
    let lease = harness.lease_one("q", "w").await;
    assert_eq!(
        harness.get(&lease.name).await.metadata,
        Some(custom_metadata(1))
    );
    let retried = finish_with_metadata(&lease, 2, busy());
    let pending_operation = harness.try_finish(retried).await.unwrap();
    assert_eq!(pending_operation.metadata, Some(custom_metadata(2)));
    let (lease, _) = lease_next(&harness).await;
    let last = finish_with_metadata(&lease, 3, Outcome::Response(string_value("done")));
    let done = harness.try_finish(last).await.unwrap();
    assert_eq!(done.metadata, Some(custom_metadata(3)));

    for outcome in [failure(Code::FailedPrecondition, "no"), busy(), release()] {
        let lease = harness.create_self_executed("w").await;
        let done = harness
            .try_finish(finish_with_metadata(&lease, 4, outcome))
            .await
            .unwrap();
        assert_eq!((done.done, done.metadata), (true, Some(custom_metadata(4))));
    }
    // A Finish without metadata keeps the current metadata.
    let request = CreateOperationRequest {
        metadata: Some(custom_metadata(5)),
        ..self_executed_request("w")
    };
    let lease = harness.try_create(request).await.unwrap().lease.unwrap();
    let done = harness
        .finish(&lease, Outcome::Response(string_value("")))
        .await;
    assert_eq!(done.metadata, Some(custom_metadata(5)));
}

// Rules: STATE-3
#[tokio::test]
async fn repeated_finish_succeeds_and_different_outcome_is_rejected() {
    let outcomes = [
        Outcome::Response(string_value("one")),
        Outcome::Response(string_value("two")),
        failure(Code::FailedPrecondition, "no"),
        failure(Code::FailedPrecondition, "never"),
        failure(Code::Cancelled, "no"),
    ];
    let harness = Harness::start().await;
    for (index, first_outcome) in outcomes.iter().enumerate() {
        let lease = harness.create_self_executed("w").await;
        let done = harness.finish(&lease, first_outcome.clone()).await;
        for (other_index, outcome) in outcomes.iter().chain([&release()]).enumerate() {
            let again = harness
                .try_finish(finish_with_metadata(&lease, 9, outcome.clone()))
                .await;
            if other_index == index {
                assert_eq!(again.unwrap(), done);
            } else {
                let rejected = ErrorDetails::from_status(&again.unwrap_err());
                assert_eq!(
                    rejected.code_and_reason(),
                    (Code::FailedPrecondition, "OPERATION_ALREADY_DONE")
                );
            }
        }
        assert_eq!(harness.get(&lease.name).await, done);
    }
    // Without attempts left, a retryable failure and a final one are the same outcome.
    let lease = harness.create_self_executed("w").await;
    let done = harness.finish(&lease, busy()).await;
    let final_failure = failure(Code::Unavailable, "busy");
    assert_eq!(harness.finish(&lease, final_failure).await, done);
    // A Finish without an outcome is the response Empty.
    let lease = harness.create_self_executed("w").await;
    let done = harness
        .try_finish(finish_request(&lease, None))
        .await
        .unwrap();
    assert_eq!(
        harness
            .finish(&lease, Outcome::Response(Any::default()))
            .await,
        done
    );
}

// Through sockets.
// Rules: FINISH-4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_finishes_have_exactly_one_winner() {
    let server = GrpcTestServer::start().await;
    let mut workers = Vec::new();
    for _ in 0..8 {
        workers.push(server.worker_client().await);
    }
    for _ in 0..100 {
        let created = workers[0]
            .create_operation(self_executed_request("w"))
            .await
            .unwrap();
        let lease = created.into_inner().lease.unwrap();
        let barrier = Arc::new(Barrier::new(workers.len()));
        let mut racers = JoinSet::new();
        for (index, worker) in workers.iter().enumerate() {
            let (mut worker, barrier) = (worker.clone(), barrier.clone());
            let outcome = match index {
                0 => release(),
                1 => failure(Code::FailedPrecondition, "no"),
                _ => Outcome::Response(string_value(&index.to_string())),
            };
            let request = finish_request(&lease, outcome);
            racers.spawn(async move {
                barrier.wait().await;
                worker.finish_operation(request).await
            });
        }
        let mut winners: Vec<Operation> = Vec::new();
        for result in racers.join_all().await {
            match result {
                Ok(done) => winners.push(done.into_inner()),
                Err(rejected) => {
                    assert_eq!(
                        ErrorDetails::from_status(&rejected).reason,
                        "OPERATION_ALREADY_DONE"
                    );
                }
            }
        }
        assert_eq!(winners.len(), 1);
        let name = lease.name.parse().unwrap();
        assert_eq!(
            server.operations.get_cached(&name).unwrap().to_proto(),
            winners[0]
        );
    }
}
