//! What the worker service refuses, each with its code, its reason and the
//! field at fault. `support::problem` checks the form of every error.

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
    problem::{Problem, problem},
    shop::{
        Shop, attempts, failure, finish, look, queued, release, retryable, seconds, self_executed,
        with_input,
    },
    text,
};

/// An `Any` that names no type.
fn nameless() -> Option<Any> {
    Some(Any {
        type_url: "type.googleapis.com/".into(),
        value: vec![1],
    })
}

fn duration(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}

fn queue(queued: Queued) -> CreateOperationRequest {
    CreateOperationRequest {
        execution: Some(Execution::Queued(queued)),
        ..CreateOperationRequest::default()
    }
}

fn in_q() -> Queued {
    Queued {
        queue: "q".into(),
        ..Queued::default()
    }
}

fn labelled(key: &str, value: &str) -> CreateOperationRequest {
    CreateOperationRequest {
        labels: [(key.to_owned(), value.to_owned())].into(),
        ..queued("q")
    }
}

fn traced(key: &str, value: &str) -> CreateOperationRequest {
    CreateOperationRequest {
        trace_context: [(key.to_owned(), value.to_owned())].into(),
        ..queued("q")
    }
}

fn retried(policy: RetryPolicy) -> CreateOperationRequest {
    CreateOperationRequest {
        retry_policy: Some(policy),
        ..queued("q")
    }
}

/// Requests to create something that cannot be, with the reason and the field.
#[rustfmt::skip]
fn bad_creations() -> Vec<(CreateOperationRequest, &'static str, &'static str)> {
    let many = |value: &str| (0..65).map(|n| (format!("k{n}"), value.to_owned())).collect();
    let policy = RetryPolicy::default;
    let time = |seconds, nanos| queue(Queued {
        not_before: Some(prost_types::Timestamp { seconds, nanos }),
        ..in_q()
    });
    let base = || queued("q");
    vec![
        (CreateOperationRequest { execution: None, ..base() }, "INVALID_EXECUTION", "execution"),
        (self_executed(""), "INVALID_WORKER_ID", "worker_id"),
        (self_executed(&"w".repeat(256)), "INVALID_WORKER_ID", "worker_id"),
        (queued(""), "INVALID_QUEUE", "queue"),
        (queued("-q"), "INVALID_QUEUE", "queue"),
        (queued(&"q".repeat(64)), "INVALID_QUEUE", "queue"),
        (with_input("q", nameless()), "INVALID_ANY", "input"),
        (with_input("q", Some(Any::default())), "INVALID_ANY", "input"),
        (time(0, -1), "INVALID_TIME", "not_before"),
        (time(0, 1_000_000_000), "INVALID_TIME", "not_before"),
        (time(253_402_300_800, 0), "INVALID_TIME", "not_before"),
        (time(-62_135_596_801, 0), "INVALID_TIME", "not_before"),
        (CreateOperationRequest { parent: "projects".into(), ..base() }, "INVALID_NAME", "parent"),
        (CreateOperationRequest { operation_id: "No".into(), ..base() }, "INVALID_NAME", "operation_id"),
        (CreateOperationRequest { request_id: "r".repeat(256), ..base() }, "INVALID_REQUEST_ID", "request_id"),
        (CreateOperationRequest { metadata: nameless(), ..base() }, "INVALID_ANY", "metadata"),
        (CreateOperationRequest { method: "m".repeat(256), ..base() }, "INVALID_METHOD", "method"),
        (CreateOperationRequest { method: "a\nb".into(), ..base() }, "INVALID_METHOD", "method"),
        (labelled("Team", ""), "INVALID_LABELS", "labels"),
        (labelled("team", &"v".repeat(256)), "INVALID_LABELS", "labels"),
        (CreateOperationRequest { labels: many(""), ..base() }, "INVALID_LABELS", "labels"),
        (traced("Trace", ""), "INVALID_TRACE_CONTEXT", "trace_context"),
        (traced("trace", "ä"), "INVALID_TRACE_CONTEXT", "trace_context"),
        (CreateOperationRequest { trace_context: many(""), ..base() }, "INVALID_TRACE_CONTEXT", "trace_context"),
        (CreateOperationRequest { total_timeout: duration(-1, 0), ..base() }, "INVALID_DURATION", "total_timeout"),
        (CreateOperationRequest { total_timeout: seconds(0), ..base() }, "INVALID_TERMS", "total_timeout"),
        (CreateOperationRequest { attempt_timeout: duration(0, 1_000_000_000), ..base() }, "INVALID_DURATION", "attempt_timeout"),
        (CreateOperationRequest { attempt_timeout: seconds(0), ..base() }, "INVALID_TERMS", "attempt_timeout"),
        (CreateOperationRequest { lease_duration: duration(0, 999_999_999), ..base() }, "INVALID_TERMS", "lease_duration"),
        (CreateOperationRequest { lease_duration: duration(1, -1), ..base() }, "INVALID_DURATION", "lease_duration"),
        (CreateOperationRequest { retention: duration(315_576_000_001, 0), ..base() }, "INVALID_DURATION", "retention"),
        (CreateOperationRequest { cancel_grace: duration(-1, 0), ..base() }, "INVALID_DURATION", "cancel_grace"),
        (CreateOperationRequest { retry_policy: attempts(2), ..self_executed("w") }, "INVALID_TERMS", "retry_policy"),
        (retried(RetryPolicy { max_attempts: -1, ..policy() }), "INVALID_TERMS", "retry_policy"),
        (retried(RetryPolicy { initial_backoff: duration(-1, 0), ..policy() }), "INVALID_DURATION", "retry_policy"),
        (retried(RetryPolicy { max_backoff: seconds(0), ..policy() }), "INVALID_TERMS", "retry_policy"),
        (retried(RetryPolicy { initial_backoff: seconds(9), max_backoff: seconds(8), ..policy() }), "INVALID_TERMS", "retry_policy"),
        (retried(RetryPolicy { max_backoff: seconds(367 * 86_400), ..policy() }), "INVALID_TERMS", "retry_policy"),
        (retried(RetryPolicy { multiplier: Some(0.9), ..policy() }), "INVALID_TERMS", "retry_policy"),
        (retried(RetryPolicy { multiplier: Some(f64::NAN), ..policy() }), "INVALID_TERMS", "retry_policy"),
        (retried(RetryPolicy { jitter: Some(1.1), ..policy() }), "INVALID_TERMS", "retry_policy"),
    ]
}

fn is_about(problem: &Problem, reason: &str, field: &str) -> bool {
    problem.key() == (Code::InvalidArgument, reason)
        && problem.fields == [(field.to_owned(), reason.to_owned())]
}

// BEHAVIOUR §9
#[tokio::test]
async fn a_creation_out_of_range_names_the_field_at_fault_and_leaves_nothing_behind() {
    let shop = Shop::open().await;
    for (request, reason, field) in bad_creations() {
        let refused = shop.create(request.clone()).await.expect_err(field);
        let refused = Problem::of(&refused);
        assert!(
            is_about(&refused, reason, field),
            "{request:?}: {refused:?}"
        );
    }
    let all = shop.operations.list(&Default::default()).await.unwrap();
    assert!(all.operations.is_empty());
    assert_eq!(shop.depth("q"), None, "no queue was made for them");
}

// BEHAVIOUR §9
#[tokio::test]
async fn an_id_that_is_taken_is_refused() {
    let shop = Shop::open().await;
    let request = || CreateOperationRequest {
        operation_id: "id".into(),
        ..queued("q")
    };
    shop.add(request()).await;
    let refused = Problem::of(&shop.create(request()).await.unwrap_err());
    assert_eq!(refused.key(), (Code::AlreadyExists, "OPERATION_EXISTS"));
}

// BEHAVIOUR §9
#[tokio::test]
async fn a_bad_request_for_leases_names_the_field_at_fault() {
    let shop = Shop::open().await;
    let many: Vec<String> = (0..65).map(|n| format!("q{n}")).collect();
    let base = || look(&["q"], "w", 1);
    let bad = [
        (look(&[], "w", 1), "INVALID_QUEUE", "queues"),
        (
            LeaseOperationsRequest {
                queues: many,
                ..base()
            },
            "INVALID_QUEUE",
            "queues",
        ),
        (look(&["q", "-"], "w", 1), "INVALID_QUEUE", "queue"),
        (look(&["q"], "", 1), "INVALID_WORKER_ID", "worker_id"),
        (
            look(&["q"], &"w".repeat(256), 1),
            "INVALID_WORKER_ID",
            "worker_id",
        ),
        (look(&["q"], "w", -1), "INVALID_MAX_LEASES", "max_leases"),
        (
            LeaseOperationsRequest {
                wait: duration(-1, 0),
                ..base()
            },
            "INVALID_TIMEOUT",
            "wait",
        ),
    ];
    for (request, reason, field) in bad {
        let refused = Problem::of(&shop.lease(request).await.expect_err(field));
        assert!(is_about(&refused, reason, field), "{refused:?}");
    }
    let most: Vec<String> = (0..64).map(|n| format!("q{n}")).collect();
    let request = LeaseOperationsRequest {
        queues: most,
        ..base()
    };
    assert_eq!(shop.lease(request).await.unwrap(), []);
}

// BEHAVIOUR §9
#[tokio::test]
async fn every_call_of_a_worker_wants_to_know_who_it_is() {
    let shop = Shop::open().await;
    let mut worker = shop.worker.clone();
    for worker_id in [String::new(), "w".repeat(256)] {
        let request = HeartbeatRequest {
            worker_id: worker_id.clone(),
            ..Default::default()
        };
        let beat = problem(worker.heartbeat(request).await);
        let watch = problem(
            worker
                .watch_directives(WatchDirectivesRequest { worker_id })
                .await,
        );
        for refused in [beat, watch] {
            assert!(
                is_about(&refused, "INVALID_WORKER_ID", "worker_id"),
                "{refused:?}"
            );
        }
    }
}

// BEHAVIOUR §9
#[tokio::test]
async fn a_bad_end_names_the_field_at_fault_and_does_not_end_anything() {
    let shop = Shop::open().await;
    let lease = shop.hold("w").await;
    let failed = |error: Option<rpc::Status>, retryable| {
        Outcome::Failure(Failure {
            error,
            retryable,
            retry_after: None,
        })
    };
    let detailed = rpc::Status {
        code: 9,
        message: "no".into(),
        details: nameless().into_iter().collect(),
    };
    let late = Failure {
        error: Some(rpc::Status {
            code: 14,
            ..Default::default()
        }),
        retryable: true,
        retry_after: duration(-1, 0),
    };
    let end = |outcome| finish(&lease, outcome);
    let nothing = Outcome::Response(text(""));
    let bad = [
        (
            FinishOperationRequest {
                name: String::new(),
                ..end(nothing.clone())
            },
            "INVALID_NAME",
            "name",
        ),
        (
            FinishOperationRequest {
                lease_token: Vec::new(),
                ..end(nothing.clone())
            },
            "INVALID_LEASE_TOKEN",
            "lease_token",
        ),
        (
            end(Outcome::Response(nameless().unwrap())),
            "INVALID_ANY",
            "response",
        ),
        (
            end(Outcome::Response(Any {
                type_url: String::new(),
                value: vec![1],
            })),
            "INVALID_ANY",
            "response",
        ),
        (end(failed(None, false)), "INVALID_ERROR", "error"),
        (end(failed(None, true)), "INVALID_ERROR", "error"),
        (end(failure(0, "ok?")), "INVALID_ERROR", "error"),
        (end(failure(17, "?")), "INVALID_ERROR", "error"),
        (end(failure(-1, "?")), "INVALID_ERROR", "error"),
        (end(retryable(17, "?")), "INVALID_ERROR", "error"),
        (end(failed(Some(detailed), false)), "INVALID_ERROR", "error"),
        (
            end(Outcome::Failure(late)),
            "INVALID_DURATION",
            "retry_after",
        ),
        (
            FinishOperationRequest {
                metadata: nameless(),
                ..end(nothing)
            },
            "INVALID_ANY",
            "metadata",
        ),
        (
            FinishOperationRequest {
                metadata: nameless(),
                ..end(release())
            },
            "INVALID_ANY",
            "metadata",
        ),
    ];
    let before = shop.get(&lease.name).await;
    for (request, reason, field) in bad {
        let refused = Problem::of(&shop.end(request.clone()).await.expect_err(field));
        assert!(
            is_about(&refused, reason, field),
            "{request:?}: {refused:?}"
        );
    }
    assert_eq!(shop.get(&lease.name).await, before);
}

// BEHAVIOUR §9
#[tokio::test]
async fn an_end_without_the_lease_is_refused_in_words_that_no_client_retries() {
    let shop = Shop::open().await;
    let held = shop.hold("w").await;
    for lease_token in [vec![0; 16], vec![0; 3], vec![0; 1000]] {
        let stranger = Lease {
            lease_token,
            ..held.clone()
        };
        for outcome in [
            Outcome::Response(text("")),
            failure(9, "no"),
            retryable(14, "no"),
            release(),
        ] {
            let refused = shop.end(finish(&stranger, outcome)).await.unwrap_err();
            let refused = Problem::of(&refused);
            assert_eq!(refused.key(), (Code::FailedPrecondition, "LEASE_LOST"));
            assert_eq!(refused.info.metadata["name"], held.name);
            assert_eq!(refused.retry, None);
        }
    }
    for name in ["operations/unknown", "no name at all"] {
        let unknown = Lease {
            name: name.into(),
            ..held.clone()
        };
        let refused = shop.end(finish(&unknown, None)).await.unwrap_err();
        assert_eq!(
            Problem::of(&refused).key(),
            (Code::NotFound, "OPERATION_NOT_FOUND")
        );
    }
}
