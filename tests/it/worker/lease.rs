//! LeaseOperations: which operations a worker receives, and how many in one batch.

use std::{collections::BTreeSet, time::Duration};

use longrunning::proto::longrunning::v1::{
    CreateOperationRequest, Lease, LeaseHeartbeat, LeaseOperationsResponse,
    create_operation_request::{Execution, Queued},
    finish_operation_request::Outcome,
};
use prost::Message;
use tokio::time::advance;
use tonic::Code;

use crate::support::{
    custom_metadata, decode_metadata,
    harness::{
        Harness, finish_request, heartbeat_request, lease_heartbeat, lease_request,
        lease_request_with_wait, max_attempts, proto_seconds, queued_request,
        queued_request_with_input, queued_request_with_priority, release, retryable_failure,
    },
    operations::server_time,
    operations_builder, string_value,
    test_storage::{TestStorage, WriteMode},
};

fn lease_names(leases: &[Lease]) -> Vec<&str> {
    leases.iter().map(|lease| lease.name.as_str()).collect()
}

// Rules: QUEUE-1
#[tokio::test]
async fn batch_is_ordered_by_priority_then_age_across_its_queues() {
    let harness = Harness::start().await;
    let mut all = Vec::new();
    for (queue, priority) in [
        ("a", 0),
        ("b", 5),
        ("c", 9),
        ("b", 0),
        ("a", 5),
        ("a", -1),
        ("b", 0),
    ] {
        all.push(
            harness
                .create_operation(queued_request_with_priority(queue, priority))
                .await,
        );
    }
    let first = harness
        .try_lease(lease_request(&["b", "a", "b"], "w", 3))
        .await
        .unwrap();
    assert_eq!(lease_names(&first), [&all[1], &all[4], &all[0]]);
    let rest = harness
        .try_lease(lease_request(&["a", "b"], "w", 100))
        .await
        .unwrap();
    assert_eq!(lease_names(&rest), [&all[3], &all[6], &all[5]]);
    assert_eq!(
        harness
            .try_lease(lease_request(&["a", "b"], "w", 100))
            .await
            .unwrap(),
        []
    );
    let queues: Vec<&str> = rest.iter().map(|lease| lease.queue.as_str()).collect();
    assert_eq!(queues, ["b", "b", "a"]);
    assert_eq!(
        (harness.queue_depth("a"), harness.queue_depth("c")),
        (None, Some(1))
    );
}

// Rules: LEASE-1
#[tokio::test]
async fn every_lease_has_unique_token_and_increasing_attempt() {
    let harness = Harness::start().await;
    for _ in 0..5 {
        harness.create_queued("q").await;
    }
    let mut tokens = BTreeSet::new();
    for round in 1..=4 {
        for lease in harness
            .try_lease(lease_request(&["q"], "w", 9))
            .await
            .unwrap()
        {
            assert_eq!(lease.attempt, round);
            tokens.insert(lease.lease_token.clone());
            harness.finish(&lease, release()).await;
        }
    }
    assert_eq!(tokens.len(), 20);
}

// 0 means 1, and 1000 is the maximum.
// Rules: QUEUE-3
#[tokio::test]
async fn max_leases_is_respected_and_capped_at_1000() {
    let harness = Harness::start().await;
    for _ in 0..1006 {
        harness.create_queued("q").await;
    }
    for (requested, expected) in [(0, 1), (1, 1), (2, 2), (i32::MAX, 1000), (1000, 2)] {
        let leases = harness
            .try_lease(lease_request(&["q"], "w", requested))
            .await
            .unwrap();
        assert_eq!(leases.len(), expected);
    }
}

// worker.proto: a batch stays below 3 MiB unless it has only one lease.
// Rules: QUEUE-4
#[tokio::test]
async fn batch_stays_below_3_mib_and_rest_comes_next() {
    let harness = Harness::start().await;
    let input = || Some(string_value(&"x".repeat(1 << 20)));
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(
            harness
                .create_operation(queued_request_with_input("q", input()))
                .await,
        );
    }
    for expected in [&all[0..2], &all[2..4], &all[4..5]] {
        let leases = harness
            .try_lease(lease_request(&["q"], "w", 1000))
            .await
            .unwrap();
        assert_eq!(lease_names(&leases), expected);
        assert_eq!(leases[0].input, input());
    }
    // An operation of the maximum size is leased alone.
    let large = Some(string_value(&"x".repeat((3 << 20) - 250)));
    for input in [None, large, None] {
        harness
            .create_operation(queued_request_with_input("q", input))
            .await;
    }
    for is_small in [true, false, true] {
        let leases = harness
            .try_lease(lease_request(&["q"], "w", 9))
            .await
            .unwrap();
        assert_eq!((leases.len(), leases[0].input.is_none()), (1, is_small));
    }
}

// worker.proto: names and labels count towards the limit.
// Rules: QUEUE-4
#[tokio::test]
async fn batch_size_limit_counts_long_names_and_labels() {
    let harness = Harness::start().await;
    let part = "p".repeat(60);
    let parent = [part.as_str(); 14].join("/");
    for _ in 0..1000 {
        let request = CreateOperationRequest {
            parent: parent.clone(),
            labels: (0..64).map(|n| (format!("k{n}"), "v".repeat(30))).collect(),
            ..queued_request("q")
        };
        harness.create_operation(request).await;
    }
    let mut leased_count = 0;
    while leased_count < 1000 {
        let leases = harness
            .try_lease(lease_request(&["q"], "w", 1000))
            .await
            .unwrap();
        leased_count += leases.len();
        assert!(leases.len() > 1);
        let response = LeaseOperationsResponse { leases };
        assert!(
            response.encoded_len() < 3 << 20,
            "{}",
            response.encoded_len()
        );
    }
}

// Rules: HEARTBEAT-9
#[tokio::test(start_paused = true)]
async fn checkpoint_reaches_next_attempt_after_every_outcome() {
    let harness = Harness::start().await;
    let request = CreateOperationRequest {
        retry_policy: max_attempts(3),
        ..queued_request("q")
    };
    let name = harness.create_operation(request).await;
    let first = harness.lease_one("q", "w").await;
    assert_eq!(first.checkpoint, None);
    let report = LeaseHeartbeat {
        checkpoint: Some(custom_metadata(1)),
        ..lease_heartbeat(&first)
    };
    harness
        .try_heartbeat(heartbeat_request("w", [report]))
        .await
        .unwrap();
    // A heartbeat without a checkpoint keeps it, and clients do not see it.
    harness.heartbeat_one(&first).await;
    assert_eq!(decode_metadata(&harness.get(&name).await).detail, None);
    let failure = retryable_failure(Code::Unavailable, "again");
    harness.finish(&first, failure).await;
    let second = &harness
        .try_lease(lease_request_with_wait(&["q"], "w", 60))
        .await
        .unwrap()[0];
    assert_eq!(second.checkpoint, Some(custom_metadata(1)));
    let report = LeaseHeartbeat {
        checkpoint: Some(custom_metadata(2)),
        ..lease_heartbeat(second)
    };
    harness
        .try_heartbeat(heartbeat_request("w", [report]))
        .await
        .unwrap();
    harness.finish(second, release()).await;
    let third = harness.lease_one("q", "w").await;
    assert_eq!(third.checkpoint, Some(custom_metadata(2)));
    // The lease expires without a heartbeat.
    let fourth = &harness
        .try_lease(lease_request_with_wait(&["q"], "w", 60))
        .await
        .unwrap()[0];
    assert_eq!(
        (&fourth.checkpoint, fourth.attempt),
        (&Some(custom_metadata(2)), 4)
    );
}

// Rules: STATE-10
#[tokio::test(start_paused = true)]
async fn lease_operations_honours_not_before() {
    let harness = Harness::start().await;
    let now = server_time(&harness.operations);
    let queued_at = |seconds| Queued {
        queue: "q".into(),
        priority: 9,
        not_before: Some((now + Duration::from_secs(seconds)).into()),
        ..Queued::default()
    };
    for seconds in [0, 100] {
        let request = CreateOperationRequest {
            execution: Some(Execution::Queued(queued_at(seconds))),
            ..CreateOperationRequest::default()
        };
        harness.create_operation(request).await;
    }
    let lease = harness.lease_one("q", "w").await;
    harness
        .finish(&lease, Outcome::Response(string_value("")))
        .await;
    assert_eq!(harness.queue_depth("q"), Some(1));
    advance(Duration::from_secs(99)).await;
    assert_eq!(
        harness
            .try_lease(lease_request(&["q"], "w", 9))
            .await
            .unwrap(),
        []
    );
    assert_eq!(
        harness
            .try_lease(lease_request_with_wait(&["q"], "w", 2))
            .await
            .unwrap()
            .len(),
        1
    );
}

// Delete does not cancel.
// Rules: DEL-1, QUEUE-2
#[tokio::test]
async fn deleted_operation_is_leased_while_hidden_and_removed_when_done() {
    let harness = Harness::start().await;
    let name = harness.create_queued("q").await;
    harness.delete(&name).await;
    let lease = harness.lease_one("q", "w").await;
    assert_eq!((&lease.name, lease.cancel_requested), (&name, false));
    let done = harness
        .finish(&lease, Outcome::Response(string_value("unseen")))
        .await;
    assert!(done.done);
    let again = harness
        .try_finish(finish_request(&lease, None))
        .await
        .unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
}

// A cancelled pending operation is done.
// Rules: QUEUE-2
#[tokio::test]
async fn cancelled_operation_leaves_its_queue() {
    let harness = Harness::start().await;
    let name = harness.create_queued("q").await;
    harness.cancel(&name).await;
    assert_eq!(
        harness
            .try_lease(lease_request(&["q"], "w", 9))
            .await
            .unwrap(),
        []
    );
    assert_eq!(harness.queue_depth("q"), None);
}

// worker.proto: a lease whose client disconnected before the response is released.
// Rules: LEASE-5
#[tokio::test(start_paused = true)]
async fn undelivered_lease_is_released_and_not_counted() {
    let storage = TestStorage::new();
    let builder = operations_builder().storage(storage.clone());
    let harness = Harness::start_with(builder).await;
    let request = CreateOperationRequest {
        lease_duration: proto_seconds(3600),
        ..queued_request("q")
    };
    harness.create_operation(request).await;
    for round in 1..=5 {
        storage.set_write_mode(WriteMode::Hold);
        let mut abandoned_poll = Box::pin(harness.try_lease(lease_request(&["q"], "gone", 9)));
        assert!(futures_util::poll!(abandoned_poll.as_mut()).is_pending());
        drop(abandoned_poll);
        storage.set_write_mode(WriteMode::Succeed);
        let next = harness
            .try_lease(lease_request_with_wait(&["q"], "w", 60))
            .await
            .unwrap();
        assert_eq!(next[0].attempt, 2 * round);
        harness.finish(&next[0], release()).await;
    }
    // The retry policy allows one attempt, and none has been counted.
    let lease = harness.lease_one("q", "w").await;
    let done = harness
        .finish(&lease, Outcome::Response(string_value("done")))
        .await;
    assert!(done.done);
}
