//! Creation, as those who create operations see it: what they and the workers
//! get, and that asking twice is not asking for two.

use std::{collections::HashMap, sync::Arc};

use longrunning::{
    Terms,
    proto::longrunning::v1::{
        CreateOperationRequest, Lease, RetryPolicy,
        create_operation_request::{Execution, Queued},
        finish_operation_request::Outcome,
    },
};
use tokio::{sync::Barrier, task::JoinSet, time::advance};
use tonic::{Code, Request};

use crate::support::{
    Server, error, metadata, own_metadata,
    problem::Problem,
    reason, response,
    shop::{Shop, attempts, finish, look, queued, release, seconds, self_executed, with_input},
    text,
};

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

/// A request in which everything is said.
fn rich(execution: Option<Execution>) -> CreateOperationRequest {
    CreateOperationRequest {
        parent: "projects/p".into(),
        operation_id: "rich".into(),
        method: "acme.v1.Renderer/Render".into(),
        labels: map(&[("team", "blue"), ("user", "änn")]),
        execution,
        attempt_timeout: seconds(600),
        lease_duration: seconds(60),
        cancel_grace: seconds(5),
        trace_context: map(&[("traceparent", "00-4bf92f-01")]),
        ..CreateOperationRequest::default()
    }
}

// BEHAVIOUR §5
#[tokio::test(start_paused = true)]
async fn a_creator_that_executes_gets_the_lease_with_the_operation() {
    let shop = Shop::open().await;
    let created = shop
        .create(rich(self_executed("host-7/1").execution))
        .await
        .unwrap();
    assert!(!created.reused);
    let operation = created.operation.unwrap();
    assert_eq!(operation.name, "projects/p/operations/rich");
    assert_eq!(operation, shop.get(&operation.name).await);
    let shown = metadata(&operation);
    assert_eq!((shown.attempt, shown.state), (1, 2), "it is running");
    assert_eq!(
        (shown.queue.as_str(), shown.method.as_str()),
        ("", "acme.v1.Renderer/Render")
    );
    let lease = created.lease.unwrap();
    assert_eq!(lease.name, operation.name);
    assert_eq!((lease.lease_token.len(), lease.attempt), (16, 1));
    assert_eq!(lease.lease_remaining, seconds(60));
    assert_eq!(lease.attempt_remaining, seconds(600));
    assert_eq!(lease.cancel_grace, seconds(5));
    assert_eq!(
        (lease.input.clone(), lease.checkpoint.clone()),
        (None, None)
    );
    assert_eq!((lease.queue.as_str(), lease.cancel_requested), ("", false));
    assert_eq!(lease.method, "acme.v1.Renderer/Render");
    assert_eq!(lease.labels, map(&[("team", "blue"), ("user", "änn")]));
    assert_eq!(lease.trace_context, map(&[("traceparent", "00-4bf92f-01")]));
    let done = shop.finish(&lease, Outcome::Response(text("done"))).await;
    assert_eq!(response(&done), text("done"));
}

// BEHAVIOUR §5
#[tokio::test(start_paused = true)]
async fn the_worker_of_a_queue_gets_everything_that_the_creator_said() {
    let shop = Shop::open().await;
    let created = shop
        .create(rich(with_input("q.1", Some(text("input"))).execution))
        .await
        .unwrap();
    assert_eq!(created.lease, None, "nobody works on it yet");
    let shown = metadata(&created.operation.unwrap());
    assert_eq!((shown.attempt, shown.state), (0, 1), "it is pending");
    assert_eq!((shown.start_time, shown.queue.as_str()), (None, "q.1"));
    let lease = shop.one("q.1", "w").await;
    assert_eq!(lease.name, "projects/p/operations/rich");
    assert_eq!(
        (lease.input, lease.queue.as_str()),
        (Some(text("input")), "q.1")
    );
    assert_eq!((lease.attempt, lease.lease_remaining), (1, seconds(60)));
    assert_eq!(
        (lease.attempt_remaining, lease.cancel_grace),
        (seconds(600), seconds(5))
    );
    assert_eq!(lease.method, "acme.v1.Renderer/Render");
    assert_eq!(lease.labels, map(&[("team", "blue"), ("user", "änn")]));
    assert_eq!(lease.trace_context, map(&[("traceparent", "00-4bf92f-01")]));
}

// BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn what_is_left_out_gets_the_defaults_of_the_server() {
    let shop = Shop::open().await;
    shop.queue("q").await;
    let lease = shop.one("q", "w").await;
    assert_eq!(
        (lease.lease_remaining, lease.attempt_remaining),
        (seconds(30), None)
    );
    assert_eq!((lease.cancel_grace, lease.method.as_str()), (None, ""));
    assert!(lease.labels.is_empty() && lease.trace_context.is_empty());

    let defaults = Terms {
        lease_duration: std::time::Duration::from_secs(7),
        attempt_timeout: Some(std::time::Duration::from_secs(8)),
        ..Terms::default()
    };
    let shop = Shop::with(crate::support::operations().defaults(defaults)).await;
    shop.queue("q").await;
    let lease = shop.one("q", "w").await;
    assert_eq!(
        (lease.lease_remaining, lease.attempt_remaining),
        (seconds(7), seconds(8))
    );
}

// AIP-151: metadata of the creator's own type is served as it is.
#[tokio::test]
async fn metadata_of_the_creators_own_is_served_from_the_beginning() {
    let shop = Shop::open().await;
    let request = CreateOperationRequest {
        metadata: Some(own_metadata(3)),
        ..queued("q")
    };
    let created = shop.create(request).await.unwrap().operation.unwrap();
    assert_eq!(created.metadata, Some(own_metadata(3)));
    assert_eq!(shop.get(&created.name).await, created);
}

// worker.proto: the trace of the call counts where the request names none.
#[tokio::test]
async fn a_trace_comes_from_the_headers_unless_the_request_has_one_or_they_are_malformed() {
    let shop = Shop::open().await;
    let long = "x".repeat(1025);
    let ours = map(&[("traceparent", "00-1111-01"), ("tracestate", "a=b")]);
    for (said, parent, expected) in [
        (map(&[]), "00-1111-01", ours),
        (
            map(&[("baggage", "k=v")]),
            "00-1111-01",
            map(&[("baggage", "k=v")]),
        ),
        (map(&[]), long.as_str(), map(&[])),
    ] {
        let mut request = Request::new(CreateOperationRequest {
            trace_context: said,
            ..self_executed("w")
        });
        let headers = request.metadata_mut();
        headers.insert("traceparent", parent.parse().unwrap());
        headers.insert("tracestate", "a=b".parse().unwrap());
        let created = shop.worker.clone().create_operation(request).await.unwrap();
        assert_eq!(created.into_inner().lease.unwrap().trace_context, expected);
    }
}

// AIP-155
#[tokio::test(start_paused = true)]
async fn the_same_request_again_brings_the_operation_and_the_live_lease_as_it_is_now() {
    let shop = Shop::open().await;
    let request = |trace: &str| CreateOperationRequest {
        request_id: "r".into(),
        trace_context: map(&[("traceparent", trace)]),
        ..self_executed("w")
    };
    let first = shop.create(request("00-1-01")).await.unwrap();
    let lease = first.lease.unwrap();
    advance(std::time::Duration::from_secs(10)).await;
    let again = shop.create(request("00-2-01")).await.unwrap();
    assert!(again.reused);
    assert_eq!(again.operation, first.operation);
    let live = again.lease.unwrap();
    assert_eq!(live.lease_token, lease.lease_token, "nobody took it");
    assert_eq!(live.lease_remaining, seconds(20), "and nobody renewed it");
    assert_eq!(live.trace_context, lease.trace_context, "that of the first");
    let done = shop.finish(&lease, Outcome::Response(text("done"))).await;
    let last = shop.create(request("00-3-01")).await.unwrap();
    assert_eq!(
        (last.operation, last.lease, last.reused),
        (Some(done), None, true)
    );
}

// AIP-155: a client's retry may reach another instance of the service.
#[tokio::test]
async fn another_creator_with_the_same_request_gets_the_operation_and_no_lease() {
    let shop = Shop::open().await;
    let request = |worker| CreateOperationRequest {
        request_id: "r".into(),
        ..self_executed(worker)
    };
    let first = shop.create(request("host-1")).await.unwrap();
    let other = shop.create(request("host-2")).await.unwrap();
    assert_eq!(other.operation, first.operation);
    assert_eq!((other.lease, other.reused), (None, true));
    let again = shop.create(request("host-1")).await.unwrap();
    let token = |lease: Option<Lease>| lease.map(|lease| lease.lease_token);
    assert_eq!(token(again.lease), token(first.lease));
}

// AIP-155: the moment the lease is over, not when somebody looks.
#[tokio::test(start_paused = true)]
async fn a_lease_that_is_over_is_not_handed_out_again() {
    let shop = Shop::open().await;
    let request = || CreateOperationRequest {
        request_id: "r".into(),
        ..self_executed("w")
    };
    shop.create(request()).await.unwrap();
    advance(std::time::Duration::from_secs(30)).await;
    let over = shop.create(request()).await.unwrap();
    assert_eq!((over.lease, over.reused), (None, true));
}

// AIP-155
#[tokio::test]
async fn the_lease_of_a_queued_operation_is_never_given_to_its_creator() {
    let shop = Shop::open().await;
    let request = || CreateOperationRequest {
        request_id: "r".into(),
        ..queued("q")
    };
    let first = shop.create(request()).await.unwrap();
    let lease = shop.one("q", "w").await;
    let again = shop.create(request()).await.unwrap();
    assert_eq!((again.lease, again.reused), (None, true));
    assert_eq!(metadata(&again.operation.unwrap()).attempt, 1);
    assert_eq!(lease.name, first.operation.unwrap().name);
}

/// The request of `base` for a queue, each time with one thing changed.
#[rustfmt::skip]
fn changed(base: &CreateOperationRequest) -> Vec<CreateOperationRequest> {
    let base = || base.clone();
    let queue = |queued: Queued| {
        let execution = Some(Execution::Queued(Queued { queue: "q".into(), ..queued }));
        CreateOperationRequest { execution, ..base() }
    };
    let none = Queued::default;
    let not_before = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
    vec![
        CreateOperationRequest { execution: queued("p").execution, ..base() },
        CreateOperationRequest { execution: self_executed("w").execution, ..base() },
        queue(Queued { input: Some(text("")), ..none() }),
        queue(Queued { priority: 1, ..none() }),
        queue(Queued { not_before, ..none() }),
        CreateOperationRequest { operation_id: "id".into(), ..base() },
        CreateOperationRequest { metadata: Some(own_metadata(0)), ..base() },
        CreateOperationRequest { method: "m".into(), ..base() },
        CreateOperationRequest { labels: map(&[("a", "")]), ..base() },
        CreateOperationRequest { total_timeout: seconds(1), ..base() },
        CreateOperationRequest { attempt_timeout: seconds(1), ..base() },
        CreateOperationRequest { lease_duration: seconds(31), ..base() },
        CreateOperationRequest { retention: seconds(1), ..base() },
        CreateOperationRequest { cancel_grace: seconds(1), ..base() },
        CreateOperationRequest { retry_policy: attempts(2), ..base() },
    ]
}

// AIP-155
#[tokio::test]
async fn the_same_request_id_with_other_content_is_refused_whatever_differs() {
    let shop = Shop::open().await;
    let base = CreateOperationRequest {
        request_id: "r".into(),
        ..queued("q")
    };
    shop.add(base.clone()).await;
    for other in changed(&base) {
        let refused = shop.create(other.clone()).await.expect_err("other content");
        let refused = Problem::of(&refused);
        let expected = (Code::AlreadyExists, "REQUEST_ID_REUSED");
        assert_eq!(refused.key(), expected, "{other:?}");
        assert_eq!(refused.info.metadata["requestId"], "r");
    }
    let elsewhere = CreateOperationRequest {
        parent: "projects/p".into(),
        ..base
    };
    let elsewhere = shop.create(elsewhere).await.unwrap();
    assert!(!elsewhere.reused, "each parent has its own");
}

// AIP-155
#[tokio::test]
async fn a_request_id_is_free_again_when_its_operation_is_deleted() {
    let shop = Shop::open().await;
    let request = || CreateOperationRequest {
        request_id: "r".into(),
        ..self_executed("w")
    };
    let first = shop.create(request()).await.unwrap().lease.unwrap();
    shop.delete(&first.name).await;
    let second = shop.create(request()).await.unwrap();
    assert!(!second.reused);
    let second = second.lease.unwrap();
    assert_ne!(second.name, first.name);
    // The end of the first takes nothing away from the second.
    shop.finish(&first, Outcome::Response(text(""))).await;
    let again = shop.create(request()).await.unwrap();
    assert_eq!(again.lease.unwrap().lease_token, second.lease_token);
}

// AIP-155, through sockets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_creators_with_one_request_id_get_one_operation_and_one_lease() {
    let server = Server::start().await;
    let mut clients = Vec::new();
    for _ in 0..16 {
        clients.push(server.worker().await);
    }
    for round in 0..100 {
        let line = Arc::new(Barrier::new(clients.len()));
        let mut racers = JoinSet::new();
        for client in &clients {
            let (mut client, line) = (client.clone(), line.clone());
            racers.spawn(async move {
                line.wait().await;
                let request = CreateOperationRequest {
                    request_id: format!("r{round}"),
                    ..self_executed("w")
                };
                client.create_operation(request).await.unwrap().into_inner()
            });
        }
        let all = racers.join_all().await;
        let reused = all.iter().filter(|created| created.reused).count();
        assert_eq!(reused, clients.len() - 1, "one of them made it");
        let mut seen = all.iter().map(|created| {
            let lease = created.lease.as_ref().unwrap();
            (&lease.name, &lease.lease_token)
        });
        let first = seen.next().unwrap();
        assert!(seen.all(|other| other == first));
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

// BEHAVIOUR §4: nobody can take up what its creator executes.
#[tokio::test]
async fn a_creator_that_gives_its_operation_back_has_lost_it() {
    let shop = Shop::open().await;
    let lease = shop.hold("w").await;
    let done = error(&shop.finish(&lease, release()).await);
    assert_eq!((done.code, reason(&done).as_str()), (14, "WORKER_LOST"));
    assert_eq!(shop.lease(look(&["q"], "w", 9)).await.unwrap(), []);
    let again = shop.end(finish(&lease, release())).await.unwrap_err();
    assert_eq!(Problem::of(&again).reason, "OPERATION_DONE");
}

// worker.proto: RetryPolicy with nothing set is the default: one attempt.
#[tokio::test]
async fn an_empty_retry_policy_means_one_attempt() {
    let shop = Shop::open().await;
    let request = CreateOperationRequest {
        retry_policy: Some(RetryPolicy::default()),
        ..queued("q")
    };
    shop.add(request).await;
    let lease = shop.one("q", "w").await;
    let done = shop
        .finish(&lease, crate::support::shop::retryable(14, "busy"))
        .await;
    assert_eq!(error(&done).code, 14);
}
