//! Long polls for leases: how long they take, and that no poll sleeps beside an
//! operation that is ready.

use std::{pin::Pin, time::Duration};

use futures_util::poll as look_at;
use longrunning::{
    Limits, WaitLimits,
    proto::longrunning::v1::{
        HeartbeatRequest, Lease, LeaseOperationsRequest, finish_operation_request::Outcome,
    },
};
use tokio::time::{Instant, advance, timeout};
use tonic::{Code, Request};

use crate::support::{
    Server,
    problem::Problem,
    shop::{Shop, beat, depth, look, poll, queued, release},
    text,
};

const SECOND: Duration = Duration::from_secs(1);
/// So long a step may take before the test has failed.
const GUARD: Duration = Duration::from_secs(60);

type Poll<'a> = Pin<Box<dyn Future<Output = Result<Vec<Lease>, tonic::Status>> + 'a>>;

/// Polls that have begun to wait, in this order.
async fn waiting<'a>(shop: &'a Shop, requests: &[LeaseOperationsRequest]) -> Vec<Poll<'a>> {
    let mut polls: Vec<Poll<'a>> = Vec::new();
    for request in requests {
        polls.push(Box::pin(shop.lease(request.clone())));
        assert!(look_at!(polls.last_mut().unwrap().as_mut()).is_pending());
    }
    polls
}

/// What became of each poll: the names that it got, if it is answered.
async fn answers(polls: &mut [Option<Poll<'_>>]) -> Vec<Option<Vec<String>>> {
    let mut answers = Vec::new();
    for slot in polls {
        let answer = match slot {
            Some(poll) => look_at!(poll.as_mut()),
            None => std::task::Poll::Pending,
        };
        answers.push(match answer {
            std::task::Poll::Ready(leases) => {
                *slot = None;
                Some(
                    leases
                        .unwrap()
                        .into_iter()
                        .map(|lease| lease.name)
                        .collect(),
                )
            }
            std::task::Poll::Pending => None,
        });
    }
    answers
}

// BEHAVIOUR §5
#[tokio::test(start_paused = true)]
async fn a_poll_answers_as_soon_as_one_is_ready() {
    let shop = Shop::open().await;
    let mut polls = waiting(&shop, &[poll(&["a", "b"], "w", 600)]).await;
    advance(100 * SECOND).await;
    let begun = Instant::now();
    let name = shop.queue("b").await;
    let leases = polls.remove(0).await.unwrap();
    assert_eq!((leases.len(), &leases[0].name), (1, &name));
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

// BEHAVIOUR §5: as many as are ready when the first one is.
#[tokio::test]
async fn a_poll_answers_with_all_that_became_ready_together() {
    let shop = Shop::open().await;
    let request = LeaseOperationsRequest {
        max_leases: 3,
        ..poll(&["a", "b"], "w", 600)
    };
    let mut polls = waiting(&shop, &[request]).await;
    for queue in ["a", "b", "a", "b"] {
        shop.queue(queue).await;
    }
    assert_eq!(polls.remove(0).await.unwrap().len(), 3);
}

// BEHAVIOUR §5
#[tokio::test(start_paused = true)]
async fn a_poll_without_luck_is_empty_when_the_wait_is_over() {
    let shop = Shop::open().await;
    let usual = LeaseOperationsRequest {
        wait: None,
        ..look(&["q"], "w", 1)
    };
    for (request, seconds) in [
        (look(&["q"], "w", 1), 0),
        (poll(&["q"], "w", 7), 7),
        (usual, 30),
        (poll(&["q"], "w", 86_400), 600),
    ] {
        let begun = Instant::now();
        assert_eq!(shop.lease(request).await.unwrap(), []);
        let over = begun.elapsed() - Duration::from_secs(seconds);
        assert!(over <= Duration::from_millis(1), "{seconds} s and {over:?}");
    }
    assert_eq!(shop.depth("q"), None, "the queue went with the last poll");
}

// WAIT-5, through a socket, where tonic's own timer would answer CANCELLED.
#[tokio::test]
async fn a_poll_answers_before_the_deadline_of_the_call() {
    let waits = WaitLimits::default();
    let server = Server::with_waits(crate::support::operations(), waits).await;
    let mut worker = server.worker().await;
    // A machine that stands still for a moment may miss it, but not ten times.
    for _ in 0..10 {
        let mut request = Request::new(poll(&["q"], "w", 60));
        let headers = request.metadata_mut();
        headers.insert("grpc-timeout", "300m".parse().unwrap());
        let begun = Instant::now();
        let answer = worker.lease_operations(request).await;
        let took = begun.elapsed().as_millis();
        assert!(200 <= took, "{took} ms");
        if let (Ok(answer), ..300) = (answer, took) {
            assert_eq!(answer.into_inner().leases, []);
            return;
        }
    }
    panic!("no poll was answered before its deadline");
}

// BEHAVIOUR §5: no thundering herd, and nobody is passed over.
#[tokio::test]
async fn polls_that_wait_get_one_operation_each_in_the_order_in_which_they_came() {
    const MANY: usize = 50;
    for burst in [1, 2, 3, 7, MANY] {
        let shop = Shop::open().await;
        let requests = vec![poll(&["q"], "w", 600); MANY];
        let polls = waiting(&shop, &requests).await;
        let mut polls: Vec<_> = polls.into_iter().map(Some).collect();
        let mut served = Vec::new();
        while served.len() < MANY {
            for _ in 0..burst.min(MANY - served.len()) {
                shop.queue("q").await;
            }
            for (at, answer) in answers(&mut polls).await.into_iter().enumerate() {
                served.extend(answer.map(|names| (at, names.len())));
            }
        }
        let order: Vec<_> = (0..MANY).map(|at| (at, 1)).collect();
        assert_eq!(served, order, "in bursts of {burst}");
    }
}

// BEHAVIOUR §5
#[tokio::test]
async fn a_poll_of_several_queues_passes_on_the_call_that_it_does_not_need() {
    let shop = Shop::open().await;
    for (first, second) in [("a", "b"), ("b", "a")] {
        let requests = [
            poll(&["a", "b"], "w1", 600),
            poll(&["a"], "w2", 600),
            poll(&["b"], "w3", 600),
        ];
        let polls = waiting(&shop, &requests).await;
        let mut polls: Vec<_> = polls.into_iter().map(Some).collect();
        let names = [shop.queue(first).await, shop.queue(second).await];
        let mut got: Vec<String> = Vec::new();
        while got.len() < 2 {
            let before = got.len();
            got.extend(answers(&mut polls).await.into_iter().flatten().flatten());
            assert!(before < got.len(), "an operation is ready and nobody moves");
        }
        got.sort();
        assert_eq!(got, names);
        assert!(polls[0].is_none(), "the first to come is served");
    }
}

// BEHAVIOUR §5
#[tokio::test]
async fn polls_that_give_up_take_neither_operations_nor_calls_with_them() {
    let shop = Shop::open().await;
    for round in 0..1000 {
        let requests = vec![poll(&["a", "b"], "w", 600); 3];
        let mut polls = waiting(&shop, &requests).await;
        let queue = if round % 2 == 0 { "a" } else { "b" };
        let name = shop.queue(queue).await;
        // Its call is under way to the first, who leaves without hearing it.
        drop(polls.remove(0));
        let leases = timeout(GUARD, polls.remove(0)).await.expect("it was lost");
        assert_eq!(leases.unwrap()[0].name, name);
    }
    assert_eq!((shop.depth("a"), shop.depth("b")), (None, None));
}

// worker.proto: HeartbeatRequest.draining.
#[tokio::test]
async fn a_draining_worker_gets_its_open_polls_back_and_nobody_else_does() {
    let shop = Shop::open().await;
    let requests = [
        poll(&["a"], "w", 600),
        poll(&["a", "b"], "w", 600),
        poll(&["a"], "other", 600),
    ];
    let mut polls = waiting(&shop, &requests).await;
    let drain = HeartbeatRequest {
        draining: true,
        ..beat("w", [])
    };
    let answer = shop.heartbeat(drain).await.unwrap();
    assert_eq!(answer.directives, []);
    for poll in polls.drain(0..2) {
        assert_eq!(poll.await.unwrap(), []);
    }
    assert!(look_at!(polls[0].as_mut()).is_pending());
    let name = shop.queue("a").await;
    assert_eq!(polls.remove(0).await.unwrap()[0].name, name);
    // It may come back.
    let name = shop.queue("a").await;
    assert_eq!(shop.one("a", "w").await.name, name);
}

// BEHAVIOUR §9
#[tokio::test]
async fn a_shutdown_answers_open_polls_with_unavailable() {
    let shop = Shop::open().await;
    let mut polls = waiting(&shop, &[poll(&["q"], "w", 600)]).await;
    shop.operations.shutdown(Duration::ZERO).await;
    let refused = Problem::of(&polls.remove(0).await.unwrap_err());
    assert_eq!(refused.key(), (Code::Unavailable, "SHUTTING_DOWN"));
}

// worker.proto: an empty answer would be asked for again at once.
#[tokio::test]
async fn over_the_limit_of_waiters_a_poll_looks_and_is_refused_if_there_is_nothing() {
    let limits = Limits {
        max_waiters: 1,
        ..Limits::default()
    };
    let shop = Shop::with(crate::support::operations().limits(limits)).await;
    let mut polls = waiting(&shop, &[poll(&["q"], "w", 600)]).await;
    let early = timeout(GUARD, shop.lease(poll(&["p"], "w", 600))).await;
    let refused = early.expect("it does not wait").unwrap_err();
    let refused = Problem::of(&refused);
    assert_eq!(refused.key(), (Code::ResourceExhausted, "TOO_MANY_WAITERS"));
    assert!(refused.retry.is_some(), "it says when to come back");
    assert_eq!(shop.lease(poll(&["p"], "w", 0)).await.unwrap(), []);
    shop.queue("p").await;
    assert_eq!(shop.lease(poll(&["p"], "w", 600)).await.unwrap().len(), 1);
    shop.queue("q").await;
    assert_eq!(polls.remove(0).await.unwrap().len(), 1);
    // 10 000 polls that were given up left no place taken.
    for _ in 0..10_000 {
        waiting(&shop, &[poll(&["q"], "w", 600)]).await;
    }
    waiting(&shop, &[poll(&["q"], "w", 600)]).await;
}

// BEHAVIOUR §5
#[tokio::test]
async fn names_that_pollers_make_up_do_not_stay_for_ever() {
    let shop = Shop::open().await;
    for round in 0..1000 {
        let (one, two) = (format!("a{round}"), format!("b{round}"));
        let request = poll(&[&one, &two], "w", 600);
        let polls = waiting(&shop, &[request.clone(), request]).await;
        assert_eq!(
            shop.depth(&one),
            Some(0),
            "it is there while somebody waits"
        );
        drop(polls);
        assert_eq!((shop.depth(&one), shop.depth(&two)), (None, None));
    }
}

// BEHAVIOUR §5, through a socket: the reset of a stream is how a worker leaves.
#[tokio::test]
async fn a_worker_that_disconnects_leaves_its_place_and_its_operations_to_others() {
    let server = Server::start().await;
    for _ in 0..20 {
        let mut worker = server.worker().await;
        let gone =
            tokio::spawn(async move { worker.lease_operations(poll(&["q"], "gone", 600)).await });
        while depth(&server.operations, "q").is_none() {
            tokio::task::yield_now().await;
        }
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        while depth(&server.operations, "q").is_some() {
            tokio::task::yield_now().await;
        }
        let mut worker = server.worker().await;
        worker.create_operation(queued("q")).await.unwrap();
        let leases = worker.lease_operations(poll(&["q"], "w", 60)).await;
        let leases = leases.unwrap().into_inner().leases;
        assert_eq!(leases[0].attempt, 1);
        let end = crate::support::shop::finish(&leases[0], Outcome::Response(text("")));
        worker.finish_operation(end).await.unwrap();
    }
}

// BEHAVIOUR §5: what goes back wakes the next who waits.
#[tokio::test]
async fn an_operation_that_is_released_goes_to_a_poll_that_waits() {
    let shop = Shop::open().await;
    let name = shop.queue("q").await;
    let mut lease = shop.one("q", "w").await;
    for attempt in 2..50 {
        let mut polls = waiting(&shop, &[poll(&["p", "q"], "w", 600)]).await;
        shop.finish(&lease, release()).await;
        lease = polls.remove(0).await.unwrap().remove(0);
        assert_eq!((&lease.name, lease.attempt), (&name, attempt));
    }
}
