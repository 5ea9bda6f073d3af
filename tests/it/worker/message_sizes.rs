//! Extreme requests of workers and creators: oversized labels and messages, very long
//! queues, foreign lease tokens, unknown queues and empty heartbeats.

use std::collections::HashMap;

use longrunning::{
    Limits, NewOperation,
    proto::{
        google::longrunning::ListOperationsRequest,
        longrunning::v1::{
            CreateOperationRequest, Directive, Lease, LeaseHeartbeat,
            finish_operation_request::Outcome,
        },
    },
};
use tokio::time::{Duration, Instant};
use tonic::Code;

use crate::support::{
    GrpcTestServer,
    error_details::{ErrorDetails, expect_status_error},
    harness::{
        Harness, Kind, failure, finish_request, heartbeat_request, lease_heartbeat, lease_request,
        queued_request, queued_request_with_input, release,
    },
    operations_builder, string_value,
};

/// Returns the length of the long queue: `QUEUED_OPERATIONS`, by default 50 000, which
/// a debug build creates within seconds.
fn queue_length() -> usize {
    std::env::var("QUEUED_OPERATIONS").map_or(50_000, |length| length.parse().unwrap())
}

const BATCH_SIZE: usize = 1000;

/// Returns the CPU time of this thread, which does not depend on other processes.
fn thread_cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

// Compares with the cost of creating the operations: scanning the whole
// queue for a fifth of the leases would cost many times as much.
// Rules: QUEUE-13
#[tokio::test]
async fn lease_cost_does_not_depend_on_queue_length() {
    let length = queue_length();
    let limits = Limits::default()
        .with_max_operations(2 * length)
        .with_max_queue_length(length)
        .with_max_total_bytes(usize::MAX);
    let harness = Harness::start_with(operations_builder().limits(limits)).await;
    let start = thread_cpu_time();
    let mut by_priority = [const { Vec::new() }; 3];
    for priority in [0, 1, 2].into_iter().cycle().take(length) {
        let new = NewOperation::queued("q").priority(priority);
        let created = harness.operations.create(new).await.unwrap().operation;
        by_priority[usize::try_from(priority).unwrap()].push(created.name().to_owned());
    }
    let create_time = thread_cpu_time() - start;
    assert_eq!(harness.queue_depth("q"), Some(length));
    let full =
        ErrorDetails::from_status(&harness.try_create(queued_request("q")).await.unwrap_err());
    assert_eq!(
        full.code_and_reason(),
        (Code::ResourceExhausted, "QUEUE_FULL")
    );
    // Remove one operation from the middle and one from the end of the queue.
    let [low_priority, _, high_priority] = &mut by_priority;
    harness
        .cancel(&high_priority.remove(high_priority.len() / 2))
        .await;
    harness.delete(&low_priority.pop().unwrap()).await;

    let start = thread_cpu_time();
    let mut leased = Vec::new();
    while leased.len() < length / 5 {
        let batch = harness
            .try_lease(lease_request(&["q"], "w", 1000))
            .await
            .unwrap();
        assert_eq!(batch.len(), BATCH_SIZE);
        leased.extend(batch.into_iter().map(|lease| lease.name));
    }
    for _ in 0..BATCH_SIZE {
        leased.push(harness.lease_one("q", "w").await.name);
    }
    let lease_time = thread_cpu_time() - start;
    assert!(
        lease_time < create_time,
        "expected less than the {create_time:?} of creating, took {lease_time:?}"
    );
    let in_order = by_priority.iter().rev().flatten();
    assert!(
        leased.iter().eq(in_order.take(leased.len())),
        "expected leases ordered by priority, then age"
    );
    // The cancelled operation left the queue; the deleted one stays, hidden.
    assert_eq!(harness.queue_depth("q"), Some(length - 1 - leased.len()));
    let request = ListOperationsRequest {
        page_size: 1,
        ..ListOperationsRequest::default()
    };
    let newest = harness
        .client
        .clone()
        .list_operations(request)
        .await
        .unwrap();
    assert_eq!(newest.into_inner().operations.len(), 1);
}

// Through a socket: all calls share one connection.
// Rules: LIMIT-1
#[tokio::test]
async fn oversized_message_is_rejected_and_keeps_lease_and_connection() {
    let server = GrpcTestServer::start().await;
    let mut worker = server.worker_client().await;
    worker.create_operation(queued_request("q")).await.unwrap();
    let leased = worker.lease_operations(lease_request(&["q"], "w", 1)).await;
    let lease = &leased.unwrap().into_inner().leases[0];
    // Above the message limit, and above the operation limit only.
    for size in [5 << 20, (3 << 20) + 1] {
        let large = || Some(string_value(&"x".repeat(size)));
        let too_large = (Code::ResourceExhausted, "TOO_LARGE");
        let created = worker
            .create_operation(queued_request_with_input("q", large()))
            .await;
        assert_eq!(expect_status_error(created).code_and_reason(), too_large);
        let report = LeaseHeartbeat {
            checkpoint: large(),
            ..lease_heartbeat(lease)
        };
        match worker.heartbeat(heartbeat_request("w", [report])).await {
            // The message is below its limit, but its report is rejected.
            Ok(response) => {
                let directive = &response.into_inner().directives[0];
                assert_eq!(directive.kind(), Kind::Continue);
                let error = directive.error.as_ref().expect("expected an error");
                assert_eq!(error.code, Code::ResourceExhausted as i32);
            }
            Err(status) => assert_eq!(
                ErrorDetails::from_status(&status).code_and_reason(),
                too_large
            ),
        }
    }
    let result = Outcome::Response(string_value(&"x".repeat(5 << 20)));
    let rejected = worker.finish_operation(finish_request(lease, result)).await;
    assert_eq!(
        expect_status_error(rejected).code_and_reason(),
        (Code::ResourceExhausted, "TOO_LARGE")
    );
    let none = worker
        .lease_operations(lease_request(&["q"], "w", 1))
        .await
        .unwrap();
    assert_eq!(
        none.into_inner().leases,
        [],
        "expected no created operation"
    );
    let last = worker.finish_operation(finish_request(
        lease,
        Outcome::Response(string_value("small")),
    ));
    assert!(last.await.unwrap().into_inner().done);
}

// Rules: NAME-6
#[tokio::test]
async fn label_of_64_kib_is_rejected_and_64_longest_reach_worker() {
    let harness = Harness::start().await;
    let create_with_labels = |labels: HashMap<String, String>| CreateOperationRequest {
        labels,
        ..queued_request("q")
    };
    let key = |n: usize| format!("k{n:062}");
    let longest = |count: usize| (0..count).map(|n| (key(n), "\u{e9}".repeat(127))).collect();
    for bad in [
        HashMap::from([("k".to_owned(), "v".repeat(64 << 10))]),
        HashMap::from([("k".repeat(64 << 10), "v".to_owned())]),
        (0..8192).map(|n| (key(n), "v".to_owned())).collect(),
        longest(65),
    ] {
        let rejected = ErrorDetails::from_status(
            &harness
                .try_create(create_with_labels(bad))
                .await
                .unwrap_err(),
        );
        assert_eq!(
            rejected.code_and_reason(),
            (Code::InvalidArgument, "INVALID_LABELS")
        );
        assert!(rejected.message.len() < 1024, "{}", rejected.message.len());
    }
    assert_eq!(harness.queue_depth("q"), None);
    harness
        .create_operation(create_with_labels(longest(64)))
        .await;
    assert_eq!(harness.lease_one("q", "w").await.labels, longest(64));
}

// Rules: LEASE-7
#[tokio::test]
async fn lease_token_of_other_operation_is_rejected() {
    let harness = Harness::start().await;
    let (mine, other) = (
        harness.create_self_executed("w").await,
        harness.create_self_executed("w").await,
    );
    let before = harness.get(&mine.name).await;
    let wrong_token = Lease {
        lease_token: other.lease_token.clone(),
        ..mine.clone()
    };
    for outcome in [
        Outcome::Response(string_value("")),
        failure(Code::FailedPrecondition, "no"),
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
    }
    assert_eq!(
        harness.heartbeat_one(&wrong_token).await.kind(),
        Kind::LeaseLost
    );
    assert_eq!(harness.get(&mine.name).await, before);
    for lease in [&mine, &other] {
        assert_eq!(harness.heartbeat_one(lease).await.kind(), Kind::Continue);
    }
}

// Rules: HEARTBEAT-2, QUEUE-12
#[tokio::test(start_paused = true)]
async fn unknown_queue_is_empty_and_empty_heartbeat_gets_no_directives() {
    let harness = Harness::start().await;
    let start = Instant::now();
    assert_eq!(
        harness
            .try_lease(lease_request(&["unknown"], "w", 9))
            .await
            .unwrap(),
        []
    );
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(harness.queue_depth("unknown"), None);
    let empty = harness
        .try_heartbeat(heartbeat_request("w", []))
        .await
        .unwrap();
    assert_eq!(empty.directives, []);
    // A default report names no lease.
    let blank = harness
        .try_heartbeat(heartbeat_request("w", [LeaseHeartbeat::default()]))
        .await;
    let [blank] = <[Directive; 1]>::try_from(blank.unwrap().directives).unwrap();
    assert_eq!(blank.kind(), Kind::LeaseLost);
    assert_eq!(blank.error.unwrap().code, Code::InvalidArgument as i32);
}
