//! CreateOperation: what creators and workers receive, and idempotency by request id.

use std::{collections::HashMap, sync::Arc};

use longrunning::{
    ExecutionOptions, State,
    proto::longrunning::v1::{
        CreateOperationRequest, Lease, RetryPolicy,
        create_operation_request::{Execution, Queued},
        finish_operation_request::Outcome,
    },
};
use tokio::{
    sync::Barrier,
    task::JoinSet,
    time::{Duration, advance},
};
use tonic::{Code, Request};

use crate::support::{
    GrpcTestServer,
    assertions::{assert_error_code, assert_failed_with},
    custom_metadata, decode_metadata,
    error_details::ErrorDetails,
    expect_response,
    harness::{
        Harness, finish_request, lease_request, max_attempts, proto_seconds, queued_request,
        queued_request_with_input, release, retryable_failure, self_executed_request,
    },
    operations_builder, string_value,
};

fn string_map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

/// Returns a request that sets every optional field.
fn full_request(execution: Option<Execution>) -> CreateOperationRequest {
    CreateOperationRequest {
        parent: "projects/p".into(),
        operation_id: "rich".into(),
        method: "acme.v1.Renderer/Render".into(),
        labels: string_map(&[("team", "blue"), ("user", "änn")]),
        execution,
        attempt_timeout: proto_seconds(600),
        lease_duration: proto_seconds(60),
        cancel_grace_period: proto_seconds(5),
        trace_context: string_map(&[("traceparent", "00-4bf92f-01")]),
        ..CreateOperationRequest::default()
    }
}

// Rules: CREATE-1
#[tokio::test(start_paused = true)]
async fn self_executed_create_returns_operation_with_lease() {
    let harness = Harness::start().await;
    let created = harness
        .try_create(full_request(self_executed_request("host-7/1").execution))
        .await
        .unwrap();
    assert!(!created.already_existed);
    let operation = created.operation.unwrap();
    assert_eq!(operation.name, "projects/p/operations/rich");
    assert_eq!(operation, harness.get(&operation.name).await);
    let operation_metadata = decode_metadata(&operation);
    assert_eq!(
        (operation_metadata.attempt, operation_metadata.state()),
        (1, State::Running)
    );
    assert_eq!(
        (
            operation_metadata.queue.as_str(),
            operation_metadata.method.as_str()
        ),
        ("", "acme.v1.Renderer/Render")
    );
    let lease = created.lease.unwrap();
    assert_eq!(lease.name, operation.name);
    assert_eq!((lease.lease_token.len(), lease.attempt), (16, 1));
    assert_eq!(lease.lease_remaining, proto_seconds(60));
    assert_eq!(lease.attempt_remaining, proto_seconds(600));
    assert_eq!(lease.cancel_grace_period, proto_seconds(5));
    assert_eq!(
        (lease.input.clone(), lease.checkpoint.clone()),
        (None, None)
    );
    assert_eq!((lease.queue.as_str(), lease.cancel_requested), ("", false));
    assert_eq!(lease.method, "acme.v1.Renderer/Render");
    assert_eq!(
        lease.labels,
        string_map(&[("team", "blue"), ("user", "änn")])
    );
    assert_eq!(
        lease.trace_context,
        string_map(&[("traceparent", "00-4bf92f-01")])
    );
    let done = harness
        .finish(&lease, Outcome::Response(string_value("done")))
        .await;
    assert_eq!(expect_response(&done), string_value("done"));
}

// Rules: CREATE-2, LEASE-4
#[tokio::test(start_paused = true)]
async fn lease_of_queued_operation_has_all_created_fields() {
    let harness = Harness::start().await;
    let created = harness
        .try_create(full_request(
            queued_request_with_input("q.1", Some(string_value("input"))).execution,
        ))
        .await
        .unwrap();
    assert_eq!(
        created.lease, None,
        "expected no lease before a worker asks"
    );
    let operation_metadata = decode_metadata(&created.operation.unwrap());
    assert_eq!(
        (operation_metadata.attempt, operation_metadata.state()),
        (0, State::Pending)
    );
    assert_eq!(
        (
            operation_metadata.start_time,
            operation_metadata.queue.as_str()
        ),
        (None, "q.1")
    );
    let lease = harness.lease_one("q.1", "w").await;
    assert_eq!(lease.name, "projects/p/operations/rich");
    assert_eq!(
        (lease.input, lease.queue.as_str()),
        (Some(string_value("input")), "q.1")
    );
    assert_eq!(
        (lease.attempt, lease.lease_remaining),
        (1, proto_seconds(60))
    );
    assert_eq!(
        (lease.attempt_remaining, lease.cancel_grace_period),
        (proto_seconds(600), proto_seconds(5))
    );
    assert_eq!(lease.method, "acme.v1.Renderer/Render");
    assert_eq!(
        lease.labels,
        string_map(&[("team", "blue"), ("user", "änn")])
    );
    assert_eq!(
        lease.trace_context,
        string_map(&[("traceparent", "00-4bf92f-01")])
    );
}

// Rules: CREATE-3
#[tokio::test(start_paused = true)]
async fn omitted_fields_get_server_defaults() {
    let harness = Harness::start().await;
    harness.create_queued("q").await;
    let lease = harness.lease_one("q", "w").await;
    assert_eq!(
        (lease.lease_remaining, lease.attempt_remaining),
        (proto_seconds(30), None)
    );
    assert_eq!(
        (lease.cancel_grace_period, lease.method.as_str()),
        (None, "")
    );
    assert!(lease.labels.is_empty() && lease.trace_context.is_empty());

    let defaults = ExecutionOptions::default()
        .with_lease_duration(Duration::from_secs(7))
        .with_attempt_timeout(Duration::from_secs(8));
    let harness = Harness::start_with(operations_builder().default_options(defaults)).await;
    harness.create_queued("q").await;
    let lease = harness.lease_one("q", "w").await;
    assert_eq!(
        (lease.lease_remaining, lease.attempt_remaining),
        (proto_seconds(7), proto_seconds(8))
    );
}

// Metadata of a user-defined type is served unchanged.
// Rules: OP-16
#[tokio::test]
async fn custom_metadata_is_served_from_creation() {
    let harness = Harness::start().await;
    let request = CreateOperationRequest {
        metadata: Some(custom_metadata(3)),
        ..queued_request("q")
    };
    let created = harness
        .try_create(request)
        .await
        .unwrap()
        .operation
        .unwrap();
    assert_eq!(created.metadata, Some(custom_metadata(3)));
    assert_eq!(harness.get(&created.name).await, created);
}

// worker.proto: trace headers of the call apply if the request has no trace context.
// Rules: CREATE-9
#[tokio::test]
async fn trace_context_comes_from_valid_headers_unless_in_request() {
    let harness = Harness::start().await;
    let long = "x".repeat(1025);
    let header_trace = string_map(&[("traceparent", "00-1111-01"), ("tracestate", "a=b")]);
    for (trace_context, parent, expected) in [
        (string_map(&[]), "00-1111-01", header_trace),
        (
            string_map(&[("baggage", "k=v")]),
            "00-1111-01",
            string_map(&[("baggage", "k=v")]),
        ),
        (string_map(&[]), long.as_str(), string_map(&[])),
    ] {
        let mut request = Request::new(CreateOperationRequest {
            trace_context,
            ..self_executed_request("w")
        });
        let headers = request.metadata_mut();
        headers.insert("traceparent", parent.parse().unwrap());
        headers.insert("tracestate", "a=b".parse().unwrap());
        let created = harness
            .worker
            .clone()
            .create_operation(request)
            .await
            .unwrap();
        assert_eq!(created.into_inner().lease.unwrap().trace_context, expected);
    }
}

// Rules: CREATE-4
#[tokio::test(start_paused = true)]
async fn repeated_create_returns_current_operation_and_live_lease() {
    let harness = Harness::start().await;
    let request = |trace: &str| CreateOperationRequest {
        request_id: "r".into(),
        trace_context: string_map(&[("traceparent", trace)]),
        ..self_executed_request("w")
    };
    let first = harness.try_create(request("00-1-01")).await.unwrap();
    let lease = first.lease.unwrap();
    advance(Duration::from_secs(10)).await;
    let again = harness.try_create(request("00-2-01")).await.unwrap();
    assert!(again.already_existed);
    assert_eq!(again.operation, first.operation);
    let live = again.lease.unwrap();
    assert_eq!(
        live.lease_token, lease.lease_token,
        "expected the same lease"
    );
    assert_eq!(
        live.lease_remaining,
        proto_seconds(20),
        "expected no renewal"
    );
    assert_eq!(
        live.trace_context, lease.trace_context,
        "expected the trace context of the first request"
    );
    let done = harness
        .finish(&lease, Outcome::Response(string_value("done")))
        .await;
    let last = harness.try_create(request("00-3-01")).await.unwrap();
    assert_eq!(
        (last.operation, last.lease, last.already_existed),
        (Some(done), None, true)
    );
}

// A retry by the client may reach another instance of the service.
// Rules: CREATE-4
#[tokio::test]
async fn same_request_from_other_creator_returns_no_lease() {
    let harness = Harness::start().await;
    let request = |worker| CreateOperationRequest {
        request_id: "r".into(),
        ..self_executed_request(worker)
    };
    let first = harness.try_create(request("host-1")).await.unwrap();
    let other = harness.try_create(request("host-2")).await.unwrap();
    assert_eq!(other.operation, first.operation);
    assert_eq!((other.lease, other.already_existed), (None, true));
    let again = harness.try_create(request("host-1")).await.unwrap();
    let token = |lease: Option<Lease>| lease.map(|lease| lease.lease_token);
    assert_eq!(token(again.lease), token(first.lease));
}

// From the moment of expiry, whether or not the timer has run.
// Rules: CREATE-4
#[tokio::test(start_paused = true)]
async fn repeated_create_does_not_return_expired_lease() {
    let harness = Harness::start().await;
    let request = || CreateOperationRequest {
        request_id: "r".into(),
        ..self_executed_request("w")
    };
    harness.try_create(request()).await.unwrap();
    advance(Duration::from_secs(30)).await;
    let expired = harness.try_create(request()).await.unwrap();
    assert_eq!((expired.lease, expired.already_existed), (None, true));
}

// Rules: CREATE-4
#[tokio::test]
async fn repeated_create_never_returns_lease_of_queued_operation() {
    let harness = Harness::start().await;
    let request = || CreateOperationRequest {
        request_id: "r".into(),
        ..queued_request("q")
    };
    let first = harness.try_create(request()).await.unwrap();
    let lease = harness.lease_one("q", "w").await;
    let again = harness.try_create(request()).await.unwrap();
    assert_eq!((again.lease, again.already_existed), (None, true));
    assert_eq!(decode_metadata(&again.operation.unwrap()).attempt, 1);
    assert_eq!(lease.name, first.operation.unwrap().name);
}

/// Returns variants of `base`, a request for queue `q`, that differ in one field each.
#[rustfmt::skip]
fn requests_with_one_change(base: &CreateOperationRequest) -> Vec<CreateOperationRequest> {
    let base = || base.clone();
    let with_queued = |queued: Queued| {
        let execution = Some(Execution::Queued(Queued { queue: "q".into(), ..queued }));
        CreateOperationRequest { execution, ..base() }
    };
    let default_queued = Queued::default;
    let not_before = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
    vec![
        CreateOperationRequest { execution: queued_request("p").execution, ..base() },
        CreateOperationRequest { execution: self_executed_request("w").execution, ..base() },
        with_queued(Queued { input: Some(string_value("")), ..default_queued() }),
        with_queued(Queued { priority: 1, ..default_queued() }),
        with_queued(Queued { not_before, ..default_queued() }),
        CreateOperationRequest { operation_id: "id".into(), ..base() },
        CreateOperationRequest { metadata: Some(custom_metadata(0)), ..base() },
        CreateOperationRequest { method: "m".into(), ..base() },
        CreateOperationRequest { labels: string_map(&[("a", "")]), ..base() },
        CreateOperationRequest { total_timeout: proto_seconds(1), ..base() },
        CreateOperationRequest { attempt_timeout: proto_seconds(1), ..base() },
        CreateOperationRequest { lease_duration: proto_seconds(31), ..base() },
        CreateOperationRequest { retention: proto_seconds(1), ..base() },
        CreateOperationRequest { cancel_grace_period: proto_seconds(1), ..base() },
        CreateOperationRequest { retry_policy: max_attempts(2), ..base() },
        CreateOperationRequest { retry_policy: Some(RetryPolicy { max_worker_losses: Some(1), ..RetryPolicy::default() }), ..base() },
    ]
}

// Rules: CREATE-5
#[tokio::test]
async fn request_id_reuse_is_rejected_for_every_differing_field() {
    let harness = Harness::start().await;
    let base = CreateOperationRequest {
        request_id: "r".into(),
        ..queued_request("q")
    };
    harness.create_operation(base.clone()).await;
    for other in requests_with_one_change(&base) {
        let rejected = harness
            .try_create(other.clone())
            .await
            .expect_err("expected different content to be rejected");
        let rejected = ErrorDetails::from_status(&rejected);
        let expected = (Code::AlreadyExists, "REQUEST_ID_REUSED");
        assert_eq!(rejected.code_and_reason(), expected, "{other:?}");
        assert_eq!(rejected.info.metadata["requestId"], "r");
    }
    let elsewhere = CreateOperationRequest {
        parent: "projects/p".into(),
        ..base
    };
    let elsewhere = harness.try_create(elsewhere).await.unwrap();
    assert!(
        !elsewhere.already_existed,
        "expected request ids to be scoped to their parent"
    );
}

// Rules: CREATE-6
#[tokio::test]
async fn request_id_is_reusable_after_delete() {
    let harness = Harness::start().await;
    let request = || CreateOperationRequest {
        request_id: "r".into(),
        ..self_executed_request("w")
    };
    let first = harness.try_create(request()).await.unwrap().lease.unwrap();
    harness.delete(&first.name).await;
    let second = harness.try_create(request()).await.unwrap();
    assert!(!second.already_existed);
    let second = second.lease.unwrap();
    assert_ne!(second.name, first.name);
    // Completion of the first does not release the request id of the second.
    harness
        .finish(&first, Outcome::Response(string_value("")))
        .await;
    let again = harness.try_create(request()).await.unwrap();
    assert_eq!(again.lease.unwrap().lease_token, second.lease_token);
}

// Through sockets.
// Rules: CREATE-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_creates_of_16_clients_share_one_operation_and_lease() {
    let server = GrpcTestServer::start().await;
    let mut clients = Vec::new();
    for _ in 0..16 {
        clients.push(server.worker_client().await);
    }
    for round in 0..100 {
        let barrier = Arc::new(Barrier::new(clients.len()));
        let mut racers = JoinSet::new();
        for client in &clients {
            let (mut client, barrier) = (client.clone(), barrier.clone());
            racers.spawn(async move {
                barrier.wait().await;
                let request = CreateOperationRequest {
                    request_id: format!("r{round}"),
                    ..self_executed_request("w")
                };
                client.create_operation(request).await.unwrap().into_inner()
            });
        }
        let all = racers.join_all().await;
        let reused = all.iter().filter(|created| created.already_existed).count();
        assert_eq!(reused, clients.len() - 1, "expected exactly one creation");
        let mut leases = all.iter().map(|created| {
            let lease = created.lease.as_ref().unwrap();
            (&lease.name, &lease.lease_token)
        });
        let first = leases.next().unwrap();
        assert!(leases.all(|other| other == first));
    }
    assert_eq!(
        server
            .operations
            .list(&Default::default())
            .await
            .unwrap()
            .operations
            .len(),
        100
    );
}

// Only its creator can execute a self-executed operation.
// Rules: STATE-7
#[tokio::test]
async fn finish_with_release_of_self_executed_operation_is_worker_lost() {
    let harness = Harness::start().await;
    let lease = harness.create_self_executed("w").await;
    let done = harness.finish(&lease, release()).await;
    assert_failed_with(&done, Code::Unavailable, "WORKER_LOST");
    assert_eq!(
        harness
            .try_lease(lease_request(&["q"], "w", 9))
            .await
            .unwrap(),
        []
    );
    let again = harness
        .try_finish(finish_request(&lease, release()))
        .await
        .unwrap_err();
    assert_eq!(
        ErrorDetails::from_status(&again).reason,
        "OPERATION_ALREADY_DONE"
    );
}

// worker.proto: an empty RetryPolicy is the default, one attempt.
// Rules: CREATE-3
#[tokio::test]
async fn empty_retry_policy_means_one_attempt() {
    let harness = Harness::start().await;
    let request = CreateOperationRequest {
        retry_policy: Some(RetryPolicy::default()),
        ..queued_request("q")
    };
    harness.create_operation(request).await;
    let lease = harness.lease_one("q", "w").await;
    let failure = retryable_failure(Code::Unavailable, "busy");
    assert_error_code(&harness.finish(&lease, failure).await, Code::Unavailable);
}
