//! Valid requests that the worker service rejects: at limits, while the store is not
//! writable, and during shutdown. Also messages that cannot be decoded.

use longrunning::{
    Limits,
    proto::longrunning::v1::{
        CreateOperationRequest, FinishOperationRequest, RetryPolicy,
        finish_operation_request::Outcome,
    },
};
use tonic::Code;

use crate::support::{
    GrpcTestServer,
    assertions::{assert_error_code, assert_failed_with},
    decode_metadata,
    error_details::{ErrorDetails, expect_status_error},
    harness::{
        Harness, failure, finish_request, heartbeat_request, lease_heartbeat, lease_request,
        max_attempts, proto_seconds, queued_request, queued_request_with_input, release,
        retryable_failure,
    },
    operations_builder,
    raw_requests::raw_unary_call,
    string_value,
    test_storage::{TestStorage, WriteMode},
};

const WORKER_METHODS: [&str; 5] = [
    "/longrunning.v1.OperationWorker/CreateOperation",
    "/longrunning.v1.OperationWorker/LeaseOperations",
    "/longrunning.v1.OperationWorker/Heartbeat",
    "/longrunning.v1.OperationWorker/FinishOperation",
    "/longrunning.v1.OperationWorker/WatchDirectives",
];

// Rules: ERR-6, LIMIT-2
#[tokio::test]
async fn limit_errors_are_resource_exhausted_with_retry_info() {
    let limits = Limits::default()
        .with_max_queue_length(1)
        .with_max_operations(3)
        .with_max_operation_bytes(10_000);
    let harness = Harness::start_with(operations_builder().limits(limits)).await;
    let create_error =
        async |request| ErrorDetails::from_status(&harness.try_create(request).await.unwrap_err());
    let large = string_value(&"x".repeat(10_000));
    let too_large = create_error(queued_request_with_input("q", Some(large))).await;
    assert_eq!(
        too_large.code_and_reason(),
        (Code::ResourceExhausted, "TOO_LARGE")
    );
    harness.create_queued("q").await;
    let full = create_error(queued_request("q")).await;
    assert_eq!(
        full.code_and_reason(),
        (Code::ResourceExhausted, "QUEUE_FULL")
    );
    assert_eq!(
        (
            full.info.metadata["queue"].as_str(),
            full.retry_info.is_some()
        ),
        ("q", true)
    );
    harness.create_self_executed("w").await;
    harness.create_self_executed("w").await;
    let store_full = create_error(queued_request("p")).await;
    assert_eq!(
        store_full.code_and_reason(),
        (Code::ResourceExhausted, "STORE_FULL")
    );
    assert!(store_full.retry_info.is_some());
}

// Rules: LIMIT-2, FINISH-1
#[tokio::test]
async fn oversized_result_is_recorded_as_error_and_repeatable() {
    let limits = Limits::default().with_max_operation_bytes(10_000);
    let harness = Harness::start_with(operations_builder().limits(limits)).await;
    let large = "x".repeat(10_000);
    for outcome in [
        Outcome::Response(string_value(&large)),
        failure(Code::FailedPrecondition, &large),
        retryable_failure(Code::Unavailable, &large),
    ] {
        harness.create_queued("q").await;
        let lease = harness.lease_one("q", "w").await;
        let done = harness.finish(&lease, outcome.clone()).await;
        assert_failed_with(&done, Code::ResourceExhausted, "TOO_LARGE");
        assert_eq!(decode_metadata(&done).attempts.len(), 1);
        assert_eq!(harness.finish(&lease, outcome).await, done);
        // Only the large result is what the error stands for.
        let other = Outcome::Response(string_value("small"));
        let rejected = harness.try_finish(finish_request(&lease, other)).await;
        let rejected = ErrorDetails::from_status(&rejected.unwrap_err());
        assert_eq!(rejected.info.reason, "OPERATION_ALREADY_DONE");
    }
}

// Rules: LIMIT-6
#[tokio::test]
async fn small_failure_of_operation_filled_by_input_is_retried_then_recorded() {
    let limits = Limits::default().with_max_operation_bytes(10_000);
    let harness = Harness::start_with(operations_builder().limits(limits)).await;
    for input_size in (9_500..10_000).step_by(10) {
        let input = Some(string_value(&"i".repeat(input_size)));
        let request = CreateOperationRequest {
            retry_policy: Some(RetryPolicy {
                initial_backoff: proto_seconds(0),
                ..max_attempts(3).unwrap()
            }),
            ..queued_request_with_input("q", input)
        };
        if harness.try_create(request).await.is_err() {
            break;
        }
        for attempt in 1..=3 {
            let lease = harness.lease_one("q", "w").await;
            assert_eq!(lease.attempt, attempt);
            let failure = retryable_failure(Code::Unavailable, "busy");
            let after = harness.finish(&lease, failure.clone()).await;
            assert_eq!(after.done, attempt == 3);
            if after.done {
                assert_error_code(&after, Code::Unavailable);
                assert_eq!(harness.finish(&lease, failure).await, after);
            }
        }
    }
}

// Rules: LIMIT-2
#[tokio::test]
async fn oversized_last_metadata_is_dropped_and_result_recorded() {
    let limits = Limits::default().with_max_operation_bytes(10_000);
    let harness = Harness::start_with(operations_builder().limits(limits)).await;
    harness.create_queued("q").await;
    for outcome in [release(), Outcome::Response(string_value("small"))] {
        let lease = harness.lease_one("q", "w").await;
        let request = FinishOperationRequest {
            metadata: Some(string_value(&"x".repeat(10_000))),
            ..finish_request(&lease, outcome.clone())
        };
        let after = harness.try_finish(request).await.unwrap();
        assert_eq!(after.done, outcome != release());
        // The metadata of the server itself.
        decode_metadata(&after);
    }
}

// Rules: ERR-10
#[tokio::test]
async fn worker_writes_are_unavailable_while_store_is_unwritable() {
    let storage = TestStorage::new();
    let harness = Harness::start_with(operations_builder().storage(storage.clone())).await;
    let held = harness.create_self_executed("w").await;
    harness.create_queued("q").await;
    storage.set_write_mode(WriteMode::Fail);
    let errors = [
        harness.try_create(queued_request("q")).await.err(),
        harness.try_lease(lease_request(&["q"], "w", 1)).await.err(),
        harness
            .try_heartbeat(heartbeat_request("w", [lease_heartbeat(&held)]))
            .await
            .err(),
        harness.try_finish(finish_request(&held, None)).await.err(),
    ];
    for rejected in errors {
        let rejected = ErrorDetails::from_status(&rejected.expect("expected the write to fail"));
        assert_eq!(
            rejected.code_and_reason(),
            (Code::Unavailable, "STORE_UNAVAILABLE")
        );
        assert!(rejected.retry_info.is_some());
    }
    storage.set_write_mode(WriteMode::Succeed);
    assert_eq!(
        harness.lease_one("q", "w").await.attempt,
        1,
        "expected the operation to be back in its queue"
    );
    assert_eq!(harness.queue_depth("q"), None);
}

// Rules: SHUTDOWN-2
#[tokio::test]
async fn shutdown_rejects_create_and_lease_but_accepts_finish() {
    let harness = Harness::start().await;
    let held = harness.create_self_executed("w").await;
    harness.create_queued("q").await;
    harness.operations.shutdown(std::time::Duration::ZERO).await;
    let errors = [
        harness.try_create(queued_request("q")).await.err(),
        harness.try_lease(lease_request(&["q"], "w", 1)).await.err(),
    ];
    for rejected in errors {
        let rejected =
            ErrorDetails::from_status(&rejected.expect("expected the server to be shutting down"));
        assert_eq!(
            rejected.code_and_reason(),
            (Code::Unavailable, "SHUTTING_DOWN")
        );
    }
    assert!(
        harness
            .finish(&held, Outcome::Response(string_value("in time")))
            .await
            .done
    );
}

// Through a socket.
// Rules: ERR-9, LIMIT-1
#[tokio::test]
async fn undecodable_or_oversized_message_is_rejected_by_worker_methods() {
    let server = GrpcTestServer::start().await;
    let mut large = vec![0x0a, 0x80, 0x80, 0x80, 0x03];
    large.resize(5 + (6 << 20), b'a');
    for path in WORKER_METHODS {
        for bytes in [vec![0xff; 20], vec![0x0a, 200, 1, b'x']] {
            let rejected =
                expect_status_error(raw_unary_call(server.channel().await, path, bytes).await);
            assert_eq!(
                rejected.code_and_reason(),
                (Code::InvalidArgument, "MALFORMED_REQUEST"),
                "{path}"
            );
        }
        let rejected =
            expect_status_error(raw_unary_call(server.channel().await, path, large.clone()).await);
        assert_eq!(
            rejected.code_and_reason(),
            (Code::ResourceExhausted, "TOO_LARGE"),
            "{path}"
        );
    }
}
