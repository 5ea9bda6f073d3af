//! Long polls of LeaseOperations: their duration, order and wake-ups.

use std::{pin::Pin, task::Poll, time::Duration};

use futures_util::poll;
use longrunning::{
    Limits,
    proto::longrunning::v1::{
        HeartbeatRequest, Lease, LeaseOperationsRequest, finish_operation_request::Outcome,
    },
};
use tokio::time::{Instant, advance, timeout};
use tonic::{Code, Request};

use crate::support::{
    GrpcTestServer,
    error_details::ErrorDetails,
    harness::{
        Harness, finish_request, heartbeat_request, lease_request, lease_request_with_wait,
        queue_depth, queued_request, release,
    },
    operations_builder, string_value,
};

const SECOND: Duration = Duration::from_secs(1);
/// Time limit for one step of a test.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

type PendingPoll<'a> = Pin<Box<dyn Future<Output = Result<Vec<Lease>, tonic::Status>> + 'a>>;

/// Starts polls, which wait in this order.
async fn start_polls<'a>(
    harness: &'a Harness,
    requests: &[LeaseOperationsRequest],
) -> Vec<PendingPoll<'a>> {
    let mut polls: Vec<PendingPoll<'a>> = Vec::new();
    for request in requests {
        polls.push(Box::pin(harness.try_lease(request.clone())));
        assert!(poll!(polls.last_mut().unwrap().as_mut()).is_pending());
    }
    polls
}

/// Polls each pending poll once. Returns the names that it leased, or `None` if it still
/// waits or has returned before.
async fn collect_ready(polls: &mut [Option<PendingPoll<'_>>]) -> Vec<Option<Vec<String>>> {
    let mut results = Vec::new();
    for slot in polls {
        let poll_result = match slot {
            Some(poll) => poll!(poll.as_mut()),
            None => Poll::Pending,
        };
        results.push(match poll_result {
            Poll::Ready(leases) => {
                *slot = None;
                Some(
                    leases
                        .unwrap()
                        .into_iter()
                        .map(|lease| lease.name)
                        .collect(),
                )
            }
            Poll::Pending => None,
        });
    }
    results
}

// Rules: QUEUE-5
#[tokio::test(start_paused = true)]
async fn poll_returns_as_soon_as_operation_is_ready() {
    let harness = Harness::start().await;
    let mut polls = start_polls(&harness, &[lease_request_with_wait(&["a", "b"], "w", 600)]).await;
    advance(100 * SECOND).await;
    let start = Instant::now();
    let name = harness.create_queued("b").await;
    let leases = polls.remove(0).await.unwrap();
    assert_eq!((leases.len(), &leases[0].name), (1, &name));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

// A poll returns every operation that is ready when it wakes.
// Rules: QUEUE-5
#[tokio::test]
async fn poll_returns_all_operations_that_are_ready() {
    let harness = Harness::start().await;
    let request = LeaseOperationsRequest {
        max_leases: 3,
        ..lease_request_with_wait(&["a", "b"], "w", 600)
    };
    let mut polls = start_polls(&harness, &[request]).await;
    for queue in ["a", "b", "a", "b"] {
        harness.create_queued(queue).await;
    }
    assert_eq!(polls.remove(0).await.unwrap().len(), 3);
}

// Rules: QUEUE-6
#[tokio::test(start_paused = true)]
async fn poll_timeout_returns_empty_response() {
    let harness = Harness::start().await;
    let without_wait = LeaseOperationsRequest {
        wait_timeout: None,
        ..lease_request(&["q"], "w", 1)
    };
    for (request, seconds) in [
        (lease_request(&["q"], "w", 1), 0),
        (lease_request_with_wait(&["q"], "w", 7), 7),
        (without_wait, 30),
        (lease_request_with_wait(&["q"], "w", 86_400), 600),
    ] {
        let start = Instant::now();
        assert_eq!(harness.try_lease(request).await.unwrap(), []);
        let excess = start.elapsed() - Duration::from_secs(seconds);
        assert!(
            excess <= Duration::from_millis(1),
            "{seconds} s and {excess:?}"
        );
    }
    assert_eq!(
        harness.queue_depth("q"),
        None,
        "expected the queue to be removed with the last poll"
    );
}

// Through a socket, where tonic's own timer would answer CANCELLED.
// Rules: QUEUE-6, WAIT-5
#[tokio::test]
async fn poll_returns_before_rpc_deadline() {
    let server = GrpcTestServer::start().await;
    let mut worker = server.worker_client().await;
    // A busy machine may miss the deadline once, but not ten times.
    for _ in 0..10 {
        let mut request = Request::new(lease_request_with_wait(&["q"], "w", 60));
        let headers = request.metadata_mut();
        headers.insert("grpc-timeout", "300m".parse().unwrap());
        let start = Instant::now();
        let result = worker.lease_operations(request).await;
        let elapsed_ms = start.elapsed().as_millis();
        assert!(elapsed_ms >= 200, "{elapsed_ms} ms");
        if let (Ok(response), ..300) = (result, elapsed_ms) {
            assert_eq!(response.into_inner().leases, []);
            return;
        }
    }
    panic!("expected a response before the deadline");
}

// No thundering herd, and no poll is skipped.
// Rules: QUEUE-7
#[tokio::test]
async fn waiting_polls_get_one_operation_each_in_fifo_order() {
    const POLL_COUNT: usize = 50;
    for burst in [1, 2, 3, 7, POLL_COUNT] {
        let harness = Harness::start().await;
        let requests = vec![lease_request_with_wait(&["q"], "w", 600); POLL_COUNT];
        let polls = start_polls(&harness, &requests).await;
        let mut polls: Vec<_> = polls.into_iter().map(Some).collect();
        let mut served = Vec::new();
        while served.len() < POLL_COUNT {
            for _ in 0..burst.min(POLL_COUNT - served.len()) {
                harness.create_queued("q").await;
            }
            for (index, leased_names) in collect_ready(&mut polls).await.into_iter().enumerate() {
                served.extend(leased_names.map(|names| (index, names.len())));
            }
        }
        let expected: Vec<_> = (0..POLL_COUNT).map(|index| (index, 1)).collect();
        assert_eq!(served, expected, "bursts of {burst}");
    }
}

// Rules: QUEUE-7
#[tokio::test]
async fn poll_of_several_queues_passes_on_unused_permit() {
    let harness = Harness::start().await;
    for (first, second) in [("a", "b"), ("b", "a")] {
        let requests = [
            lease_request_with_wait(&["a", "b"], "w1", 600),
            lease_request_with_wait(&["a"], "w2", 600),
            lease_request_with_wait(&["b"], "w3", 600),
        ];
        let polls = start_polls(&harness, &requests).await;
        let mut polls: Vec<_> = polls.into_iter().map(Some).collect();
        let mut names = [
            harness.create_queued(first).await,
            harness.create_queued(second).await,
        ];
        // Ids of the same millisecond have no order.
        names.sort();
        let mut leased_names: Vec<String> = Vec::new();
        while leased_names.len() < 2 {
            let before = leased_names.len();
            leased_names.extend(
                collect_ready(&mut polls)
                    .await
                    .into_iter()
                    .flatten()
                    .flatten(),
            );
            assert!(
                leased_names.len() > before,
                "expected a poll to wake for the ready operation"
            );
        }
        leased_names.sort();
        assert_eq!(leased_names, names);
        assert!(polls[0].is_none(), "expected the first poll to be served");
    }
}

// Rules: QUEUE-8
#[tokio::test]
async fn dropped_polls_lose_neither_operations_nor_permits() {
    let harness = Harness::start().await;
    for round in 0..1000 {
        let requests = vec![lease_request_with_wait(&["a", "b"], "w", 600); 3];
        let mut polls = start_polls(&harness, &requests).await;
        let queue = if round % 2 == 0 { "a" } else { "b" };
        let name = harness.create_queued(queue).await;
        // The first poll has been woken and is dropped before it runs.
        drop(polls.remove(0));
        let leases = timeout(STEP_TIMEOUT, polls.remove(0))
            .await
            .expect("expected the second poll to be woken");
        assert_eq!(leases.unwrap()[0].name, name);
    }
    assert_eq!(
        (harness.queue_depth("a"), harness.queue_depth("b")),
        (None, None)
    );
}

// worker.proto: HeartbeatRequest.draining.
// Rules: QUEUE-9
#[tokio::test]
async fn draining_worker_gets_only_its_own_polls_answered() {
    let harness = Harness::start().await;
    let requests = [
        lease_request_with_wait(&["a"], "w", 600),
        lease_request_with_wait(&["a", "b"], "w", 600),
        lease_request_with_wait(&["a"], "other", 600),
    ];
    let mut polls = start_polls(&harness, &requests).await;
    let drain = HeartbeatRequest {
        draining: true,
        ..heartbeat_request("w", [])
    };
    let response = harness.try_heartbeat(drain).await.unwrap();
    assert_eq!(response.directives, []);
    for poll in polls.drain(0..2) {
        assert_eq!(poll.await.unwrap(), []);
    }
    assert!(poll!(polls[0].as_mut()).is_pending());
    let name = harness.create_queued("a").await;
    assert_eq!(polls.remove(0).await.unwrap()[0].name, name);
    // The worker may poll again.
    let name = harness.create_queued("a").await;
    assert_eq!(harness.lease_one("a", "w").await.name, name);
}

// Rules: QUEUE-10
#[tokio::test]
async fn shutdown_answers_open_polls_with_unavailable() {
    let harness = Harness::start().await;
    let mut polls = start_polls(&harness, &[lease_request_with_wait(&["q"], "w", 600)]).await;
    harness.operations.shutdown(Duration::ZERO).await;
    let rejected = ErrorDetails::from_status(&polls.remove(0).await.unwrap_err());
    assert_eq!(
        rejected.code_and_reason(),
        (Code::Unavailable, "SHUTTING_DOWN")
    );
}

// worker.proto: an error, because clients would repeat an empty response immediately.
// Rules: QUEUE-11
#[tokio::test]
async fn poll_over_waiter_limit_is_rejected_only_if_queue_is_empty() {
    let limits = Limits::default().with_max_waiters(1);
    let harness = Harness::start_with(operations_builder().limits(limits)).await;
    let mut polls = start_polls(&harness, &[lease_request_with_wait(&["q"], "w", 600)]).await;
    let poll_over_limit = timeout(
        STEP_TIMEOUT,
        harness.try_lease(lease_request_with_wait(&["p"], "w", 600)),
    )
    .await;
    let rejected = poll_over_limit.expect("expected no wait").unwrap_err();
    let rejected = ErrorDetails::from_status(&rejected);
    assert_eq!(
        rejected.code_and_reason(),
        (Code::ResourceExhausted, "TOO_MANY_WAITERS")
    );
    assert!(rejected.retry_info.is_some());
    assert_eq!(
        harness
            .try_lease(lease_request_with_wait(&["p"], "w", 0))
            .await
            .unwrap(),
        []
    );
    harness.create_queued("p").await;
    assert_eq!(
        harness
            .try_lease(lease_request_with_wait(&["p"], "w", 600))
            .await
            .unwrap()
            .len(),
        1
    );
    harness.create_queued("q").await;
    assert_eq!(polls.remove(0).await.unwrap().len(), 1);
    // 10 000 dropped polls free their slots.
    for _ in 0..10_000 {
        start_polls(&harness, &[lease_request_with_wait(&["q"], "w", 600)]).await;
    }
    start_polls(&harness, &[lease_request_with_wait(&["q"], "w", 600)]).await;
}

// Rules: QUEUE-12
#[tokio::test]
async fn queues_created_by_polls_are_removed_when_polls_end() {
    let harness = Harness::start().await;
    for round in 0..1000 {
        let (first_queue, second_queue) = (format!("a{round}"), format!("b{round}"));
        let request = lease_request_with_wait(&[&first_queue, &second_queue], "w", 600);
        let polls = start_polls(&harness, &[request.clone(), request]).await;
        assert_eq!(
            harness.queue_depth(&first_queue),
            Some(0),
            "expected the queue to exist while a poll waits"
        );
        drop(polls);
        assert_eq!(
            (
                harness.queue_depth(&first_queue),
                harness.queue_depth(&second_queue)
            ),
            (None, None)
        );
    }
}

// Through a socket: a worker disconnects by resetting its stream.
// Rules: LEASE-5, QUEUE-8
#[tokio::test]
async fn disconnected_worker_frees_its_poll_and_operations() {
    let server = GrpcTestServer::start().await;
    for _ in 0..20 {
        let mut worker = server.worker_client().await;
        let poll_task = tokio::spawn(async move {
            worker
                .lease_operations(lease_request_with_wait(&["q"], "gone", 600))
                .await
        });
        while queue_depth(&server.operations, "q").is_none() {
            tokio::task::yield_now().await;
        }
        poll_task.abort();
        assert!(poll_task.await.unwrap_err().is_cancelled());
        while queue_depth(&server.operations, "q").is_some() {
            tokio::task::yield_now().await;
        }
        let mut worker = server.worker_client().await;
        worker.create_operation(queued_request("q")).await.unwrap();
        let leases = worker
            .lease_operations(lease_request_with_wait(&["q"], "w", 60))
            .await;
        let leases = leases.unwrap().into_inner().leases;
        assert_eq!(leases[0].attempt, 1);
        let finish = finish_request(&leases[0], Outcome::Response(string_value("")));
        worker.finish_operation(finish).await.unwrap();
    }
}

// A released operation wakes the next poll.
// Rules: QUEUE-5
#[tokio::test]
async fn released_operation_goes_to_waiting_poll() {
    let harness = Harness::start().await;
    let name = harness.create_queued("q").await;
    let mut lease = harness.lease_one("q", "w").await;
    for attempt in 2..50 {
        let mut polls =
            start_polls(&harness, &[lease_request_with_wait(&["p", "q"], "w", 600)]).await;
        harness.finish(&lease, release()).await;
        lease = polls.remove(0).await.unwrap().remove(0);
        assert_eq!((&lease.name, lease.attempt), (&name, attempt));
    }
}
