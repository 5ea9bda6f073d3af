//! What workers and creators send at sizes that nobody means: labels and inputs
//! far too large, a queue as long as the store, and tokens, queues and heartbeats
//! that have nothing to do with anything.

use std::collections::HashMap;

use longrunning::{
    Limits, NewOperation,
    proto::{
        google::longrunning::ListOperationsRequest,
        longrunning::v1::{
            CreateOperationRequest, Directive, Lease, LeaseReport,
            finish_operation_request::Outcome,
        },
    },
};
use tokio::time::{Duration, Instant};
use tonic::Code;

use crate::support::{
    Server,
    problem::{Problem, problem},
    shop::{Kind, Shop, beat, failure, finish, look, queued, release, sign, with_input},
    text,
};

/// How many operations wait in the long queue: `QUEUED_OPERATIONS`, which may
/// well be a million, or as many as a build with checks makes in a few seconds.
fn many() -> usize {
    std::env::var("QUEUED_OPERATIONS").map_or(50_000, |many| many.parse().unwrap())
}

/// Leases of one call.
const BATCH: usize = 1000;

/// How long this thread has been at work; who else works on the machine does
/// not count.
fn busy() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

// BEHAVIOUR §9. The measure is the work of making the operations: looks at the
// whole queue for a fifth of them would be many times as much.
#[tokio::test]
async fn a_queue_as_long_as_the_store_is_leased_from_without_a_look_at_all_of_it() {
    let many = many();
    let limits = Limits {
        max_operations: 2 * many,
        max_queue: many,
        max_bytes: usize::MAX,
        ..Limits::default()
    };
    let shop = Shop::with(crate::support::operations().limits(limits)).await;
    let begun = busy();
    let mut by_priority = [const { Vec::new() }; 3];
    for priority in [0, 1, 2].into_iter().cycle().take(many) {
        let new = NewOperation::queued("q").priority(priority);
        let created = shop.operations.create(new).await.unwrap().operation;
        by_priority[usize::try_from(priority).unwrap()].push(created.name().to_owned());
    }
    let creating = busy() - begun;
    assert_eq!(shop.depth("q"), Some(many));
    let full = Problem::of(&shop.create(queued("q")).await.unwrap_err());
    assert_eq!(full.key(), (Code::ResourceExhausted, "QUEUE_FULL"));
    // Out of the middle and off the end, as clients do it.
    let [low, _, high] = &mut by_priority;
    shop.cancel(&high.remove(high.len() / 2)).await;
    shop.delete(&low.pop().unwrap()).await;

    let begun = busy();
    let mut leased = Vec::new();
    while leased.len() < many / 5 {
        let batch = shop.lease(look(&["q"], "w", 1000)).await.unwrap();
        assert_eq!(batch.len(), BATCH);
        leased.extend(batch.into_iter().map(|lease| lease.name));
    }
    for _ in 0..BATCH {
        leased.push(shop.one("q", "w").await.name);
    }
    let leasing = busy() - begun;
    assert!(
        leasing < creating,
        "{leasing:?} to lease, {creating:?} to make"
    );
    let in_order = by_priority.iter().rev().flatten();
    assert!(
        leased.iter().eq(in_order.take(leased.len())),
        "by priority, then age"
    );
    // The cancelled one is done; the deleted one still waits for a worker, unseen.
    assert_eq!(shop.depth("q"), Some(many - 1 - leased.len()));
    let request = ListOperationsRequest {
        page_size: 1,
        ..ListOperationsRequest::default()
    };
    let newest = shop.client.clone().list_operations(request).await.unwrap();
    assert_eq!(newest.into_inner().operations.len(), 1);
}

// BEHAVIOUR §9, through a socket: one connection for all of them.
#[tokio::test]
async fn inputs_checkpoints_and_results_of_5_mib_are_too_large_and_cost_neither_lease_nor_connection()
 {
    let server = Server::start().await;
    let mut worker = server.worker().await;
    worker.create_operation(queued("q")).await.unwrap();
    let leased = worker.lease_operations(look(&["q"], "w", 1)).await;
    let lease = &leased.unwrap().into_inner().leases[0];
    // Above what a message may have, and above what an operation may have.
    for size in [5 << 20, (3 << 20) + 1] {
        let large = || Some(text(&"x".repeat(size)));
        let too_large = (Code::ResourceExhausted, "TOO_LARGE");
        let created = worker.create_operation(with_input("q", large())).await;
        assert_eq!(problem(created).key(), too_large);
        let ended = finish(lease, Outcome::Response(large().unwrap()));
        assert_eq!(
            problem(worker.finish_operation(ended).await).key(),
            too_large
        );
        let report = LeaseReport {
            checkpoint: large(),
            ..sign(lease)
        };
        match worker.heartbeat(beat("w", [report])).await {
            // The message got through, and the report in it did not.
            Ok(answer) => {
                let directive = &answer.into_inner().directives[0];
                assert_eq!(directive.kind(), Kind::Continue);
                let error = directive.error.as_ref().expect("it says why");
                assert_eq!(error.code, Code::ResourceExhausted as i32);
            }
            Err(status) => assert_eq!(Problem::of(&status).key(), too_large),
        }
    }
    let none = worker.lease_operations(look(&["q"], "w", 1)).await.unwrap();
    assert_eq!(none.into_inner().leases, [], "nothing was left behind");
    let last = worker.finish_operation(finish(lease, Outcome::Response(text("small"))));
    assert!(last.await.unwrap().into_inner().done);
}

// BEHAVIOUR §1
#[tokio::test]
async fn a_label_of_64_kib_is_refused_and_64_of_the_longest_reach_the_worker() {
    let shop = Shop::open().await;
    let with = |labels: HashMap<String, String>| CreateOperationRequest {
        labels,
        ..queued("q")
    };
    let key = |n: usize| format!("k{n:062}");
    let longest = |count: usize| (0..count).map(|n| (key(n), "\u{e9}".repeat(127))).collect();
    for bad in [
        HashMap::from([("k".to_owned(), "v".repeat(64 << 10))]),
        HashMap::from([("k".repeat(64 << 10), "v".to_owned())]),
        (0..8192).map(|n| (key(n), "v".to_owned())).collect(),
        longest(65),
    ] {
        let refused = Problem::of(&shop.create(with(bad)).await.unwrap_err());
        assert_eq!(refused.key(), (Code::InvalidArgument, "INVALID_LABELS"));
        assert!(refused.message.len() < 1024, "{}", refused.message.len());
    }
    assert_eq!(shop.depth("q"), None);
    shop.add(with(longest(64))).await;
    assert_eq!(shop.one("q", "w").await.labels, longest(64));
}

// BEHAVIOUR §9
#[tokio::test]
async fn the_token_of_another_operation_opens_nothing() {
    let shop = Shop::open().await;
    let (mine, other) = (shop.hold("w").await, shop.hold("w").await);
    let before = shop.get(&mine.name).await;
    let mixed = Lease {
        lease_token: other.lease_token.clone(),
        ..mine.clone()
    };
    for outcome in [Outcome::Response(text("")), failure(9, "no"), release()] {
        let refused = shop.end(finish(&mixed, outcome)).await.unwrap_err();
        let refused = Problem::of(&refused);
        assert_eq!(refused.key(), (Code::FailedPrecondition, "LEASE_LOST"));
    }
    assert_eq!(shop.beat(&mixed).await.kind(), Kind::LeaseLost);
    assert_eq!(shop.get(&mine.name).await, before);
    for lease in [&mine, &other] {
        assert_eq!(shop.beat(lease).await.kind(), Kind::Continue);
    }
}

// BEHAVIOUR §9
#[tokio::test(start_paused = true)]
async fn an_unknown_queue_has_nothing_and_an_empty_heartbeat_says_nothing() {
    let shop = Shop::open().await;
    let begun = Instant::now();
    assert_eq!(
        shop.lease(look(&["nobody-named-it"], "w", 9))
            .await
            .unwrap(),
        []
    );
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(shop.depth("nobody-named-it"), None);
    let empty = shop.heartbeat(beat("w", [])).await.unwrap();
    assert_eq!(empty.directives, []);
    // A report of nothing is about no lease.
    let blank = shop.heartbeat(beat("w", [LeaseReport::default()])).await;
    let [blank] = <[Directive; 1]>::try_from(blank.unwrap().directives).unwrap();
    assert_eq!(blank.kind(), Kind::LeaseLost);
    assert_eq!(blank.error.unwrap().code, Code::InvalidArgument as i32);
}
