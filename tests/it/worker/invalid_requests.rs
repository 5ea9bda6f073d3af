//! Invalid requests to the worker service: each is rejected with a code, a reason and
//! the invalid field.

use longrunning::{
    Any,
    proto::{
        google::rpc,
        longrunning::v1::{
            CreateOperationRequest, FinishOperationRequest, HeartbeatRequest, Lease,
            LeaseOperationsRequest, RetryPolicy, WatchDirectivesRequest,
            create_operation_request::{Execution, Queued},
            finish_operation_request::{Failure, Outcome},
        },
    },
};
use tonic::Code;

use crate::support::{
    error_details::{ErrorDetails, expect_status_error},
    harness::{
        Harness, failure, finish_request, lease_request, max_attempts, proto_seconds,
        queued_request, queued_request_with_input, release, retryable_failure,
        self_executed_request,
    },
    string_value,
};

/// Returns an `Any` without a type name.
fn any_without_type() -> Option<Any> {
    Some(Any {
        type_url: "type.googleapis.com/".into(),
        value: vec![1],
    })
}

fn duration(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}

fn request_with_queued(queued: Queued) -> CreateOperationRequest {
    CreateOperationRequest {
        execution: Some(Execution::Queued(queued)),
        ..CreateOperationRequest::default()
    }
}

fn default_queued() -> Queued {
    Queued {
        queue: "q".into(),
        ..Queued::default()
    }
}

fn request_with_label(key: &str, value: &str) -> CreateOperationRequest {
    CreateOperationRequest {
        labels: [(key.to_owned(), value.to_owned())].into(),
        ..queued_request("q")
    }
}

fn request_with_trace(key: &str, value: &str) -> CreateOperationRequest {
    CreateOperationRequest {
        trace_context: [(key.to_owned(), value.to_owned())].into(),
        ..queued_request("q")
    }
}

fn request_with_retry_policy(policy: RetryPolicy) -> CreateOperationRequest {
    CreateOperationRequest {
        retry_policy: Some(policy),
        ..queued_request("q")
    }
}

/// Returns invalid requests, each with the expected reason and field.
#[rustfmt::skip]
fn invalid_create_requests() -> Vec<(CreateOperationRequest, &'static str, &'static str)> {
    let too_many_entries = |value: &str| (0..65).map(|n| (format!("k{n}"), value.to_owned())).collect();
    let policy = RetryPolicy::default;
    let not_before_time = |seconds, nanos| request_with_queued(Queued {
        not_before: Some(prost_types::Timestamp { seconds, nanos }),
        ..default_queued()
    });
    let base = || queued_request("q");
    vec![
        (CreateOperationRequest { execution: None, ..base() }, "INVALID_EXECUTION", "execution"),
        (self_executed_request(""), "INVALID_WORKER_ID", "worker_id"),
        (self_executed_request(&"w".repeat(256)), "INVALID_WORKER_ID", "worker_id"),
        (queued_request(""), "INVALID_QUEUE", "queue"),
        (queued_request("-q"), "INVALID_QUEUE", "queue"),
        (queued_request(&"q".repeat(64)), "INVALID_QUEUE", "queue"),
        (queued_request_with_input("q", any_without_type()), "INVALID_ANY", "input"),
        (queued_request_with_input("q", Some(Any::default())), "INVALID_ANY", "input"),
        (not_before_time(0, -1), "INVALID_TIME", "not_before"),
        (not_before_time(0, 1_000_000_000), "INVALID_TIME", "not_before"),
        (not_before_time(253_402_300_800, 0), "INVALID_TIME", "not_before"),
        (not_before_time(-62_135_596_801, 0), "INVALID_TIME", "not_before"),
        (CreateOperationRequest { parent: "projects".into(), ..base() }, "INVALID_NAME", "parent"),
        (CreateOperationRequest { operation_id: "No".into(), ..base() }, "INVALID_NAME", "operation_id"),
        (CreateOperationRequest { request_id: "r".repeat(256), ..base() }, "INVALID_REQUEST_ID", "request_id"),
        (CreateOperationRequest { metadata: any_without_type(), ..base() }, "INVALID_ANY", "metadata"),
        (CreateOperationRequest { method: "m".repeat(256), ..base() }, "INVALID_METHOD", "method"),
        (CreateOperationRequest { method: "a\nb".into(), ..base() }, "INVALID_METHOD", "method"),
        (request_with_label("Team", ""), "INVALID_LABELS", "labels"),
        (request_with_label("team", &"v".repeat(256)), "INVALID_LABELS", "labels"),
        (CreateOperationRequest { labels: too_many_entries(""), ..base() }, "INVALID_LABELS", "labels"),
        (request_with_trace("Trace", ""), "INVALID_TRACE_CONTEXT", "trace_context"),
        (request_with_trace("trace", "ä"), "INVALID_TRACE_CONTEXT", "trace_context"),
        (CreateOperationRequest { trace_context: too_many_entries(""), ..base() }, "INVALID_TRACE_CONTEXT", "trace_context"),
        (CreateOperationRequest { total_timeout: duration(-1, 0), ..base() }, "INVALID_DURATION", "total_timeout"),
        (CreateOperationRequest { total_timeout: proto_seconds(0), ..base() }, "INVALID_EXECUTION_OPTIONS", "total_timeout"),
        (CreateOperationRequest { attempt_timeout: duration(0, 1_000_000_000), ..base() }, "INVALID_DURATION", "attempt_timeout"),
        (CreateOperationRequest { attempt_timeout: proto_seconds(0), ..base() }, "INVALID_EXECUTION_OPTIONS", "attempt_timeout"),
        (CreateOperationRequest { lease_duration: duration(0, 999_999_999), ..base() }, "INVALID_EXECUTION_OPTIONS", "lease_duration"),
        (CreateOperationRequest { lease_duration: duration(1, -1), ..base() }, "INVALID_DURATION", "lease_duration"),
        (CreateOperationRequest { retention: duration(315_576_000_001, 0), ..base() }, "INVALID_DURATION", "retention"),
        (CreateOperationRequest { cancel_grace_period: duration(-1, 0), ..base() }, "INVALID_DURATION", "cancel_grace_period"),
        (CreateOperationRequest { retry_policy: max_attempts(2), ..self_executed_request("w") }, "INVALID_EXECUTION_OPTIONS", "retry_policy"),
        (request_with_retry_policy(RetryPolicy { max_attempts: -1, ..policy() }), "INVALID_EXECUTION_OPTIONS", "retry_policy"),
        (request_with_retry_policy(RetryPolicy { max_worker_losses: Some(-1), ..policy() }), "INVALID_EXECUTION_OPTIONS", "retry_policy"),
        (request_with_retry_policy(RetryPolicy { initial_backoff: duration(-1, 0), ..policy() }), "INVALID_DURATION", "retry_policy"),
        (request_with_retry_policy(RetryPolicy { max_backoff: proto_seconds(0), ..policy() }), "INVALID_EXECUTION_OPTIONS", "retry_policy"),
        (request_with_retry_policy(RetryPolicy { initial_backoff: proto_seconds(9), max_backoff: proto_seconds(8), ..policy() }), "INVALID_EXECUTION_OPTIONS", "retry_policy"),
        (request_with_retry_policy(RetryPolicy { max_backoff: proto_seconds(367 * 86_400), ..policy() }), "INVALID_EXECUTION_OPTIONS", "retry_policy"),
        (request_with_retry_policy(RetryPolicy { multiplier: Some(0.9), ..policy() }), "INVALID_EXECUTION_OPTIONS", "retry_policy"),
        (request_with_retry_policy(RetryPolicy { multiplier: Some(f64::NAN), ..policy() }), "INVALID_EXECUTION_OPTIONS", "retry_policy"),
        (request_with_retry_policy(RetryPolicy { jitter: Some(1.1), ..policy() }), "INVALID_EXECUTION_OPTIONS", "retry_policy"),
    ]
}

fn has_field_violation(details: &ErrorDetails, reason: &str, field: &str) -> bool {
    details.code_and_reason() == (Code::InvalidArgument, reason)
        && details.field_violations == [(field.to_owned(), reason.to_owned())]
}

// Rules: CREATE-8
#[tokio::test]
async fn invalid_create_names_violated_field_and_has_no_effect() {
    let harness = Harness::start().await;
    for (request, reason, field) in invalid_create_requests() {
        let rejected = harness.try_create(request.clone()).await.expect_err(field);
        let rejected = ErrorDetails::from_status(&rejected);
        assert!(
            has_field_violation(&rejected, reason, field),
            "{request:?}: {rejected:?}"
        );
    }
    let all = harness.operations.list(&Default::default()).await.unwrap();
    assert!(all.operations.is_empty());
    assert_eq!(harness.queue_depth("q"), None, "expected no queue");
}

// Rules: CREATE-7
#[tokio::test]
async fn duplicate_operation_id_is_rejected() {
    let harness = Harness::start().await;
    let request = || CreateOperationRequest {
        operation_id: "id".into(),
        ..queued_request("q")
    };
    harness.create_operation(request()).await;
    let rejected = ErrorDetails::from_status(&harness.try_create(request()).await.unwrap_err());
    assert_eq!(
        rejected.code_and_reason(),
        (Code::AlreadyExists, "OPERATION_EXISTS")
    );
}

// Rules: QUEUE-14
#[tokio::test]
async fn invalid_lease_request_names_violated_field() {
    let harness = Harness::start().await;
    let too_many_queues: Vec<String> = (0..65).map(|n| format!("q{n}")).collect();
    let base = || lease_request(&["q"], "w", 1);
    let cases = [
        (lease_request(&[], "w", 1), "INVALID_QUEUE", "queues"),
        (
            LeaseOperationsRequest {
                queues: too_many_queues,
                ..base()
            },
            "INVALID_QUEUE",
            "queues",
        ),
        (lease_request(&["q", "-"], "w", 1), "INVALID_QUEUE", "queue"),
        (
            lease_request(&["q"], "", 1),
            "INVALID_WORKER_ID",
            "worker_id",
        ),
        (
            lease_request(&["q"], &"w".repeat(256), 1),
            "INVALID_WORKER_ID",
            "worker_id",
        ),
        (
            lease_request(&["q"], "w", -1),
            "INVALID_MAX_LEASES",
            "max_leases",
        ),
        (
            LeaseOperationsRequest {
                wait_timeout: duration(-1, 0),
                ..base()
            },
            "INVALID_TIMEOUT",
            "wait_timeout",
        ),
    ];
    for (request, reason, field) in cases {
        let rejected =
            ErrorDetails::from_status(&harness.try_lease(request).await.expect_err(field));
        assert!(
            has_field_violation(&rejected, reason, field),
            "{rejected:?}"
        );
    }
    let max_queues: Vec<String> = (0..64).map(|n| format!("q{n}")).collect();
    let request = LeaseOperationsRequest {
        queues: max_queues,
        ..base()
    };
    assert_eq!(harness.try_lease(request).await.unwrap(), []);
}

// Rules: QUEUE-14
#[tokio::test]
async fn heartbeat_and_watch_directives_require_valid_worker_id() {
    let harness = Harness::start().await;
    let mut worker = harness.worker.clone();
    for worker_id in [String::new(), "w".repeat(256)] {
        let request = HeartbeatRequest {
            worker_id: worker_id.clone(),
            ..Default::default()
        };
        let heartbeat_error = expect_status_error(worker.heartbeat(request).await);
        let watch_error = expect_status_error(
            worker
                .watch_directives(WatchDirectivesRequest { worker_id })
                .await,
        );
        for rejected in [heartbeat_error, watch_error] {
            assert!(
                has_field_violation(&rejected, "INVALID_WORKER_ID", "worker_id"),
                "{rejected:?}"
            );
        }
    }
}

// Rules: FINISH-3
#[tokio::test]
async fn invalid_finish_names_violated_field_and_has_no_effect() {
    let harness = Harness::start().await;
    let lease = harness.create_self_executed("w").await;
    let failed_with = |error: Option<rpc::Status>, retryable| {
        Outcome::Failure(Failure {
            error,
            retryable,
            retry_after: None,
        })
    };
    let detailed = rpc::Status {
        code: Code::FailedPrecondition as i32,
        message: "no".into(),
        details: any_without_type().into_iter().collect(),
    };
    let negative_retry_after = Failure {
        error: Some(rpc::Status {
            code: Code::Unavailable as i32,
            ..Default::default()
        }),
        retryable: true,
        retry_after: duration(-1, 0),
    };
    let finish_with = |outcome| finish_request(&lease, outcome);
    let success = Outcome::Response(string_value(""));
    let cases = [
        (
            FinishOperationRequest {
                name: String::new(),
                ..finish_with(success.clone())
            },
            "INVALID_NAME",
            "name",
        ),
        (
            FinishOperationRequest {
                lease_token: Vec::new(),
                ..finish_with(success.clone())
            },
            "INVALID_LEASE_TOKEN",
            "lease_token",
        ),
        (
            finish_with(Outcome::Response(any_without_type().unwrap())),
            "INVALID_ANY",
            "response",
        ),
        (
            finish_with(Outcome::Response(Any {
                type_url: String::new(),
                value: vec![1],
            })),
            "INVALID_ANY",
            "response",
        ),
        (
            finish_with(failed_with(None, false)),
            "INVALID_ERROR",
            "error",
        ),
        (
            finish_with(failed_with(None, true)),
            "INVALID_ERROR",
            "error",
        ),
        (finish_with(failure(0, "ok?")), "INVALID_ERROR", "error"),
        (finish_with(failure(17, "?")), "INVALID_ERROR", "error"),
        (finish_with(failure(-1, "?")), "INVALID_ERROR", "error"),
        (
            finish_with(retryable_failure(17, "?")),
            "INVALID_ERROR",
            "error",
        ),
        (
            finish_with(failed_with(Some(detailed), false)),
            "INVALID_ERROR",
            "error",
        ),
        (
            finish_with(Outcome::Failure(negative_retry_after)),
            "INVALID_DURATION",
            "retry_after",
        ),
        (
            FinishOperationRequest {
                metadata: any_without_type(),
                ..finish_with(success)
            },
            "INVALID_ANY",
            "metadata",
        ),
        (
            FinishOperationRequest {
                metadata: any_without_type(),
                ..finish_with(release())
            },
            "INVALID_ANY",
            "metadata",
        ),
    ];
    let before = harness.get(&lease.name).await;
    for (request, reason, field) in cases {
        let rejected =
            ErrorDetails::from_status(&harness.try_finish(request.clone()).await.expect_err(field));
        assert!(
            has_field_violation(&rejected, reason, field),
            "{request:?}: {rejected:?}"
        );
    }
    assert_eq!(harness.get(&lease.name).await, before);
}

// Rules: FINISH-5
#[tokio::test]
async fn finish_without_lease_is_rejected_as_not_retryable() {
    let harness = Harness::start().await;
    let held = harness.create_self_executed("w").await;
    for lease_token in [vec![0; 16], vec![0; 3], vec![0; 1000]] {
        let wrong_token = Lease {
            lease_token,
            ..held.clone()
        };
        for outcome in [
            Outcome::Response(string_value("")),
            failure(Code::FailedPrecondition, "no"),
            retryable_failure(Code::Unavailable, "no"),
            release(),
        ] {
            let rejected = harness
                .try_finish(finish_request(&wrong_token, outcome))
                .await
                .unwrap_err();
            let rejected = ErrorDetails::from_status(&rejected);
            assert_eq!(
                rejected.code_and_reason(),
                (Code::FailedPrecondition, "LEASE_LOST")
            );
            assert_eq!(rejected.info.metadata["name"], held.name);
            assert_eq!(rejected.retry_info, None);
        }
    }
    for name in ["operations/unknown", "no name at all"] {
        let unknown = Lease {
            name: name.into(),
            ..held.clone()
        };
        let rejected = harness
            .try_finish(finish_request(&unknown, None))
            .await
            .unwrap_err();
        assert_eq!(
            ErrorDetails::from_status(&rejected).code_and_reason(),
            (Code::NotFound, "OPERATION_NOT_FOUND")
        );
    }
}
