//! Which operations a worker gets, and how many at once.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use longrunning::proto::longrunning::v1::{
    CreateOperationRequest, Lease, LeaseOperationsResponse, LeaseReport,
    create_operation_request::{Execution, Queued},
    finish_operation_request::Outcome,
};
use prost::Message;
use tokio::time::advance;

use crate::support::{
    metadata, own_metadata,
    shop::{
        Shop, attempts, beat, finish, look, poll, queued, release, retryable, seconds, sign,
        with_input, with_priority,
    },
    text,
};

fn names(leases: &[Lease]) -> Vec<&str> {
    leases.iter().map(|lease| lease.name.as_str()).collect()
}

// BEHAVIOUR §5
#[tokio::test]
async fn a_batch_comes_by_priority_then_age_across_its_queues_only() {
    let shop = Shop::open().await;
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
        all.push(shop.add(with_priority(queue, priority)).await);
    }
    let first = shop.lease(look(&["b", "a", "b"], "w", 3)).await.unwrap();
    assert_eq!(names(&first), [&all[1], &all[4], &all[0]]);
    let rest = shop.lease(look(&["a", "b"], "w", 100)).await.unwrap();
    assert_eq!(names(&rest), [&all[3], &all[6], &all[5]]);
    assert_eq!(shop.lease(look(&["a", "b"], "w", 100)).await.unwrap(), []);
    let queues: Vec<&str> = rest.iter().map(|lease| lease.queue.as_str()).collect();
    assert_eq!(queues, ["b", "b", "a"]);
    assert_eq!((shop.depth("a"), shop.depth("c")), (None, Some(1)));
}

// BEHAVIOUR §5
#[tokio::test]
async fn every_lease_has_a_token_of_its_own_and_an_attempt_that_only_grows() {
    let shop = Shop::open().await;
    for _ in 0..5 {
        shop.queue("q").await;
    }
    let mut tokens = BTreeSet::new();
    for round in 1..=4 {
        for lease in shop.lease(look(&["q"], "w", 9)).await.unwrap() {
            assert_eq!(lease.attempt, round);
            tokens.insert(lease.lease_token.clone());
            shop.finish(&lease, release()).await;
        }
    }
    assert_eq!(tokens.len(), 20);
}

// BEHAVIOUR §5: 0 stands for 1, and 1000 are the most.
#[tokio::test]
async fn max_leases_is_kept_to_and_cut_at_a_thousand() {
    let shop = Shop::open().await;
    for _ in 0..1006 {
        shop.queue("q").await;
    }
    for (asked, given) in [(0, 1), (1, 1), (2, 2), (i32::MAX, 1000), (1000, 2)] {
        let leases = shop.lease(look(&["q"], "w", asked)).await.unwrap();
        assert_eq!(leases.len(), given);
    }
}

// worker.proto: together below 3 MiB, or just one.
#[tokio::test]
async fn a_batch_stays_below_3_mib_and_what_did_not_fit_comes_next_time() {
    let shop = Shop::open().await;
    let input = || Some(text(&"x".repeat(1 << 20)));
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(shop.add(with_input("q", input())).await);
    }
    for expected in [&all[0..2], &all[2..4], &all[4..5]] {
        let leases = shop.lease(look(&["q"], "w", 1000)).await.unwrap();
        assert_eq!(names(&leases), expected);
        assert_eq!(leases[0].input, input());
    }
    // One that is as large as it may be comes alone.
    let large = Some(text(&"x".repeat((3 << 20) - 250)));
    for input in [None, large, None] {
        shop.add(with_input("q", input)).await;
    }
    let lengths = [(1, true), (1, false), (1, true)];
    for (length, is_small) in lengths {
        let leases = shop.lease(look(&["q"], "w", 9)).await.unwrap();
        assert_eq!(
            (leases.len(), leases[0].input.is_none()),
            (length, is_small)
        );
    }
}

// worker.proto: long names and many labels count too.
#[tokio::test]
async fn a_thousand_leases_with_long_names_and_many_labels_stay_below_3_mib() {
    let shop = Shop::open().await;
    let part = "p".repeat(60);
    let parent = [part.as_str(); 14].join("/");
    for _ in 0..1000 {
        let request = CreateOperationRequest {
            parent: parent.clone(),
            labels: (0..64).map(|n| (format!("k{n}"), "v".repeat(30))).collect(),
            ..queued("q")
        };
        shop.add(request).await;
    }
    let mut got = 0;
    while got < 1000 {
        let leases = shop.lease(look(&["q"], "w", 1000)).await.unwrap();
        got += leases.len();
        assert!(1 < leases.len());
        let answer = LeaseOperationsResponse { leases };
        assert!(answer.encoded_len() < 3 << 20, "{}", answer.encoded_len());
    }
}

// BEHAVIOUR §5
#[tokio::test(start_paused = true)]
async fn a_checkpoint_reaches_the_next_attempt_however_this_one_ended() {
    let shop = Shop::open().await;
    let request = CreateOperationRequest {
        retry_policy: attempts(3),
        ..queued("q")
    };
    let name = shop.add(request).await;
    let first = shop.one("q", "w").await;
    assert_eq!(first.checkpoint, None);
    let report = LeaseReport {
        checkpoint: Some(own_metadata(1)),
        ..sign(&first)
    };
    shop.heartbeat(beat("w", [report])).await.unwrap();
    // A sign of life that says nothing keeps it, and clients do not see it.
    shop.beat(&first).await;
    assert_eq!(metadata(&shop.get(&name).await).detail, None);
    shop.finish(&first, retryable(14, "again")).await;
    let second = &shop.lease(poll(&["q"], "w", 60)).await.unwrap()[0];
    assert_eq!(second.checkpoint, Some(own_metadata(1)));
    let report = LeaseReport {
        checkpoint: Some(own_metadata(2)),
        ..sign(second)
    };
    shop.heartbeat(beat("w", [report])).await.unwrap();
    shop.finish(second, release()).await;
    let third = shop.one("q", "w").await;
    assert_eq!(third.checkpoint, Some(own_metadata(2)));
    // And if the worker falls silent.
    let fourth = &shop.lease(poll(&["q"], "w", 60)).await.unwrap()[0];
    assert_eq!(
        (&fourth.checkpoint, fourth.attempt),
        (&Some(own_metadata(2)), 4)
    );
}

// BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn nobody_gets_an_operation_before_its_time() {
    let shop = Shop::open().await;
    let now = u64::try_from(shop.operations.clock().now().nanos()).unwrap();
    let now = SystemTime::UNIX_EPOCH + Duration::from_nanos(now);
    let late = |seconds| Queued {
        queue: "q".into(),
        priority: 9,
        not_before: Some((now + Duration::from_secs(seconds)).into()),
        ..Queued::default()
    };
    for seconds in [0, 100] {
        let request = CreateOperationRequest {
            execution: Some(Execution::Queued(late(seconds))),
            ..CreateOperationRequest::default()
        };
        shop.add(request).await;
    }
    assert_eq!(shop.lease(look(&["q"], "w", 9)).await.unwrap().len(), 1);
    assert_eq!(shop.depth("q"), Some(1), "the other one waits");
    advance(Duration::from_secs(99)).await;
    assert_eq!(shop.lease(look(&["q"], "w", 9)).await.unwrap(), []);
    assert_eq!(shop.lease(poll(&["q"], "w", 2)).await.unwrap().len(), 1);
}

// BEHAVIOUR §3: deleting does not cancel.
#[tokio::test]
async fn a_deleted_operation_is_worked_on_unseen_and_then_forgotten() {
    let shop = Shop::open().await;
    let name = shop.queue("q").await;
    shop.delete(&name).await;
    let lease = shop.one("q", "w").await;
    assert_eq!((&lease.name, lease.cancel_requested), (&name, false));
    let done = shop.finish(&lease, Outcome::Response(text("unseen"))).await;
    assert!(done.done);
    let again = shop.end(finish(&lease, None)).await.unwrap_err();
    assert_eq!(again.code(), tonic::Code::NotFound);
}

// BEHAVIOUR §4: what is cancelled while it waits is done.
#[tokio::test]
async fn a_cancelled_operation_is_in_no_queue() {
    let shop = Shop::open().await;
    let name = shop.queue("q").await;
    shop.cancel(&name).await;
    assert_eq!(shop.lease(look(&["q"], "w", 9)).await.unwrap(), []);
    assert_eq!(shop.depth("q"), None);
}

// worker.proto: the lease that a client leaves behind on its way.
#[tokio::test(start_paused = true)]
async fn a_lease_that_its_worker_never_got_goes_back_and_counts_for_nothing() {
    use crate::support::journal::{Gate, TestJournal};
    let journal = TestJournal::new();
    let builder = crate::support::operations().journal(journal.clone());
    let shop = Shop::with(builder).await;
    let request = CreateOperationRequest {
        lease_duration: seconds(3600),
        ..queued("q")
    };
    shop.add(request).await;
    for round in 1..=5 {
        journal.set(Gate::Shut);
        let mut leaver = Box::pin(shop.lease(look(&["q"], "gone", 9)));
        assert!(futures_util::poll!(leaver.as_mut()).is_pending());
        drop(leaver);
        journal.set(Gate::Open);
        let next = shop.lease(poll(&["q"], "w", 60)).await.unwrap();
        assert_eq!(next[0].attempt, 2 * round, "the number only grows");
        shop.finish(&next[0], release()).await;
    }
    // It has one attempt by its policy, and it still has it.
    let lease = shop.one("q", "w").await;
    let done = shop.finish(&lease, Outcome::Response(text("done"))).await;
    assert!(done.done);
}
