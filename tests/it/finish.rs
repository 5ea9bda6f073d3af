//! How attempts end, as their workers say it.

use std::sync::Arc;

use longrunning::{
    Any,
    proto::{
        google::{longrunning::Operation, rpc},
        longrunning::v1::{
            CreateOperationRequest, FinishOperationRequest, Lease,
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
    Server, error, metadata, own_metadata,
    problem::Problem,
    reason, response,
    shop::{
        Shop, attempts, failure, finish, poll, queued, release, retryable, seconds, self_executed,
    },
    text,
};

/// A shop with one operation that has so many attempts, and its first lease.
async fn leased(max_attempts: i32) -> (Shop, Lease) {
    let shop = Shop::open().await;
    let request = CreateOperationRequest {
        retry_policy: attempts(max_attempts),
        ..queued("q")
    };
    shop.add(request).await;
    let lease = shop.one("q", "w").await;
    (shop, lease)
}

/// The next lease, and after how long it came.
async fn next(shop: &Shop) -> (Lease, Duration) {
    let begun = Instant::now();
    let mut leases = shop.lease(poll(&["q"], "w", 600)).await.unwrap();
    (leases.remove(0), begun.elapsed())
}

/// Whether `time` is so many seconds, or as much later as a look may be.
fn is_about(time: Duration, seconds: u64) -> bool {
    let exact = Duration::from_secs(seconds);
    (exact..exact + Duration::from_millis(70)).contains(&time)
}

fn with_metadata(lease: &Lease, n: u8, outcome: Outcome) -> FinishOperationRequest {
    FinishOperationRequest {
        metadata: Some(own_metadata(n)),
        ..finish(lease, outcome)
    }
}

// OP-4
#[tokio::test]
async fn a_response_is_served_byte_for_byte_and_nothing_is_empty() {
    let shop = Shop::open().await;
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
        (Some(Outcome::Response(text("done"))), text("done")),
        (Some(Outcome::Response(own_metadata(1))), own_metadata(1)),
        (Some(Outcome::Response(bare)), full),
        (Some(Outcome::Response(Any::default())), empty.clone()),
        (None, empty),
    ] {
        let lease = shop.hold("w").await;
        let done = shop.end(finish(&lease, outcome)).await.unwrap();
        assert_eq!(response(&done), expected);
        assert_eq!(metadata(&done).state, 3, "it has succeeded");
        assert_eq!(shop.get(&lease.name).await, done);
    }
}

// OP-5
#[tokio::test]
async fn a_failure_of_every_code_is_served_with_its_details() {
    let shop = Shop::open().await;
    for code in 1..=16 {
        let lease = shop.hold("w").await;
        let said = rpc::Status {
            code,
            message: format!("no {code}"),
            details: vec![text("why"), own_metadata(3)],
        };
        let outcome = Outcome::Failure(Failure {
            error: Some(said.clone()),
            ..Failure::default()
        });
        let done = shop.finish(&lease, outcome).await;
        assert_eq!(error(&done), said);
        let expected = if code == 1 { 5 } else { 4 };
        assert_eq!(metadata(&done).state, expected, "cancelled or failed");
    }
}

// BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn a_failure_that_is_final_ends_the_operation_whatever_the_policy_says() {
    let (shop, lease) = leased(5).await;
    let done = shop.finish(&lease, failure(9, "no")).await;
    assert_eq!(error(&done).code, 9);
}

// BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn a_retryable_failure_is_followed_by_an_attempt_after_the_pause_until_none_is_left() {
    let (shop, mut lease) = leased(4).await;
    for (attempt, pause) in [(2, 1), (3, 2), (4, 4)] {
        let waits = shop.finish(&lease, retryable(14, "busy")).await;
        assert_eq!((waits.done, metadata(&waits).state), (false, 1), "pending");
        let (next, took) = next(&shop).await;
        assert!(is_about(took, pause), "{took:?}");
        assert_eq!(next.attempt, attempt);
        lease = next;
    }
    let done = shop.finish(&lease, retryable(14, "busy")).await;
    assert_eq!((error(&done).code, metadata(&done).attempt), (14, 4));
}

// BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn retry_after_makes_a_pause_longer_and_never_shorter() {
    let (shop, mut lease) = leased(9).await;
    for (retry_after, pause) in [(0, 1), (60, 60), (1, 4)] {
        let Outcome::Failure(busy) = retryable(14, "busy") else {
            panic!("it is a failure")
        };
        let failure = Failure {
            retry_after: seconds(retry_after),
            ..busy
        };
        shop.finish(&lease, Outcome::Failure(failure)).await;
        let (next, took) = next(&shop).await;
        assert!(is_about(took, pause), "{took:?}");
        lease = next;
    }
}

// BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn a_release_comes_back_at_once_and_does_not_count() {
    let (shop, mut lease) = leased(2).await;
    for attempt in 2..=10 {
        let waits = shop.finish(&lease, release()).await;
        assert_eq!((waits.done, metadata(&waits).state), (false, 1), "pending");
        lease = shop.one("q", "w").await;
        assert_eq!(lease.attempt, attempt);
    }
    shop.finish(&lease, retryable(14, "the first that counts"))
        .await;
    let (last, took) = next(&shop).await;
    assert!(is_about(took, 1), "the first pause: {took:?}");
    assert!(shop.finish(&last, retryable(14, "the last")).await.done);
}

// BEHAVIOUR §4: no retry follows a cancellation.
#[tokio::test]
async fn whoever_gives_up_a_cancelled_operation_ends_it_as_cancelled() {
    for outcome in [release(), retryable(14, "busy")] {
        let (shop, lease) = leased(9).await;
        shop.cancel(&lease.name).await;
        let done = shop.finish(&lease, outcome).await;
        assert_eq!(error(&done).code, 1);
        assert_eq!(reason(&error(&done)), "OPERATION_CANCELLED");
    }
    for (outcome, state) in [
        (Outcome::Response(text("all the same")), 3),
        (failure(9, "broke on the way"), 4),
        (failure(1, "stopped"), 5),
    ] {
        let (shop, lease) = leased(9).await;
        shop.cancel(&lease.name).await;
        let done = shop.finish(&lease, outcome).await;
        assert_eq!(
            (metadata(&done).state, metadata(&done).cancel_requested),
            (state, true)
        );
    }
}

// AIP-151
#[tokio::test(start_paused = true)]
async fn metadata_in_the_last_word_is_kept_byte_for_byte_however_the_attempt_ends() {
    let (shop, lease) = leased(2).await;
    let waits = shop.end(with_metadata(&lease, 1, release())).await.unwrap();
    assert_eq!(waits.metadata, Some(own_metadata(1)));
    let lease = shop.one("q", "w").await;
    assert_eq!(shop.get(&lease.name).await.metadata, Some(own_metadata(1)));
    let busy = with_metadata(&lease, 2, retryable(14, "busy"));
    let waits = shop.end(busy).await.unwrap();
    assert_eq!(waits.metadata, Some(own_metadata(2)));
    let (lease, _) = next(&shop).await;
    let last = with_metadata(&lease, 3, Outcome::Response(text("done")));
    let done = shop.end(last).await.unwrap();
    assert_eq!(done.metadata, Some(own_metadata(3)));

    for outcome in [failure(9, "no"), retryable(14, "no"), release()] {
        let lease = shop.hold("w").await;
        let done = shop.end(with_metadata(&lease, 4, outcome)).await.unwrap();
        assert_eq!((done.done, done.metadata), (true, Some(own_metadata(4))));
    }
    // What was said earlier stays if the last word leaves it out.
    let request = CreateOperationRequest {
        metadata: Some(own_metadata(5)),
        ..self_executed("w")
    };
    let lease = shop.create(request).await.unwrap().lease.unwrap();
    let done = shop.finish(&lease, Outcome::Response(text(""))).await;
    assert_eq!(done.metadata, Some(own_metadata(5)));
}

// BEHAVIOUR §4
#[tokio::test]
async fn the_same_end_again_is_fine_and_another_one_is_too_late() {
    let ends = [
        Outcome::Response(text("one")),
        Outcome::Response(text("two")),
        failure(9, "no"),
        failure(9, "never"),
        failure(1, "no"),
    ];
    let shop = Shop::open().await;
    for (at, end) in ends.iter().enumerate() {
        let lease = shop.hold("w").await;
        let done = shop.finish(&lease, end.clone()).await;
        for (other, outcome) in ends.iter().chain([&release()]).enumerate() {
            let again = shop.end(with_metadata(&lease, 9, outcome.clone())).await;
            if other == at {
                assert_eq!(again.unwrap(), done, "its bytes never change again");
            } else {
                let refused = Problem::of(&again.unwrap_err());
                assert_eq!(refused.key(), (Code::FailedPrecondition, "OPERATION_DONE"));
            }
        }
        assert_eq!(shop.get(&lease.name).await, done);
    }
    // A failure that was the last is the same, called retryable or not.
    let lease = shop.hold("w").await;
    let done = shop.finish(&lease, retryable(14, "busy")).await;
    assert_eq!(shop.finish(&lease, failure(14, "busy")).await, done);
    // Nothing is the response Empty.
    let lease = shop.hold("w").await;
    let done = shop.end(finish(&lease, None)).await.unwrap();
    assert_eq!(
        shop.finish(&lease, Outcome::Response(Any::default())).await,
        done
    );
}

// BEHAVIOUR §4, through sockets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_finish_at_once_exactly_one_wins() {
    let server = Server::start().await;
    let mut workers = Vec::new();
    for _ in 0..8 {
        workers.push(server.worker().await);
    }
    for _ in 0..100 {
        let created = workers[0]
            .create_operation(self_executed("w"))
            .await
            .unwrap();
        let lease = created.into_inner().lease.unwrap();
        let line = Arc::new(Barrier::new(workers.len()));
        let mut racers = JoinSet::new();
        for (at, worker) in workers.iter().enumerate() {
            let (mut worker, line) = (worker.clone(), line.clone());
            let outcome = match at {
                0 => release(),
                1 => failure(9, "no"),
                _ => Outcome::Response(text(&at.to_string())),
            };
            let request = finish(&lease, outcome);
            racers.spawn(async move {
                line.wait().await;
                worker.finish_operation(request).await
            });
        }
        let mut winners: Vec<Operation> = Vec::new();
        for said in racers.join_all().await {
            match said {
                Ok(done) => winners.push(done.into_inner()),
                Err(refused) => assert_eq!(Problem::of(&refused).reason, "OPERATION_DONE"),
            }
        }
        assert_eq!(winners.len(), 1);
        let name = lease.name.parse().unwrap();
        assert_eq!(server.operations.get(&name).unwrap().to_proto(), winners[0]);
    }
}
