//! What the worker service refuses though the request is good: at limits, while
//! the store cannot write, at the end. And what is no request at all.

use longrunning::{
    Limits,
    proto::longrunning::v1::{FinishOperationRequest, finish_operation_request::Outcome},
};
use tonic::Code;

use crate::support::{
    Server,
    journal::{Gate, TestJournal},
    problem::{Problem, problem},
    raw::call,
    shop::{Shop, beat, failure, finish, look, queued, release, sign, with_input},
    text,
};

const METHODS: [&str; 5] = [
    "/longrunning.v1.OperationWorker/CreateOperation",
    "/longrunning.v1.OperationWorker/LeaseOperations",
    "/longrunning.v1.OperationWorker/Heartbeat",
    "/longrunning.v1.OperationWorker/FinishOperation",
    "/longrunning.v1.OperationWorker/WatchDirectives",
];

// BEHAVIOUR §9
#[tokio::test]
async fn limits_are_resource_exhausted_and_say_when_to_try_again() {
    let limits = Limits {
        max_queue: 1,
        max_operations: 3,
        max_operation_bytes: 10_000,
        ..Limits::default()
    };
    let shop = Shop::with(crate::support::operations().limits(limits)).await;
    let refused = async |request| Problem::of(&shop.create(request).await.unwrap_err());
    let large = text(&"x".repeat(10_000));
    let size = refused(with_input("q", Some(large.clone()))).await;
    assert_eq!(size.key(), (Code::ResourceExhausted, "TOO_LARGE"));
    shop.queue("q").await;
    let full = refused(queued("q")).await;
    assert_eq!(full.key(), (Code::ResourceExhausted, "QUEUE_FULL"));
    assert_eq!(
        (full.info.metadata["queue"].as_str(), full.retry.is_some()),
        ("q", true)
    );
    let held = shop.hold("w").await;
    shop.hold("w").await;
    let store = refused(queued("p")).await;
    assert_eq!(store.key(), (Code::ResourceExhausted, "STORE_FULL"));
    assert!(store.retry.is_some());
    for outcome in [
        Outcome::Response(large.clone()),
        failure(9, &"x".repeat(10_000)),
    ] {
        let size = Problem::of(&shop.end(finish(&held, outcome)).await.unwrap_err());
        assert_eq!(size.key(), (Code::ResourceExhausted, "TOO_LARGE"));
    }
    let metadata = Some(large);
    let last_word = FinishOperationRequest {
        metadata,
        ..finish(&held, release())
    };
    let size = Problem::of(&shop.end(last_word).await.unwrap_err());
    assert_eq!(size.key(), (Code::ResourceExhausted, "TOO_LARGE"));
    shop.finish(&held, failure(9, "too large, says the server"))
        .await;
}

// BEHAVIOUR §9
#[tokio::test]
async fn a_store_that_cannot_write_is_unavailable_on_every_call_that_writes() {
    let journal = TestJournal::new();
    let shop = Shop::with(crate::support::operations().journal(journal.clone())).await;
    let held = shop.hold("w").await;
    shop.queue("q").await;
    journal.set(Gate::Broken);
    let refusals = [
        shop.create(queued("q")).await.err(),
        shop.lease(look(&["q"], "w", 1)).await.err(),
        shop.heartbeat(beat("w", [sign(&held)])).await.err(),
        shop.end(finish(&held, None)).await.err(),
    ];
    for refused in refusals {
        let refused = Problem::of(&refused.expect("it cannot be kept"));
        assert_eq!(refused.key(), (Code::Unavailable, "STORE_UNAVAILABLE"));
        assert!(refused.retry.is_some());
    }
    journal.set(Gate::Open);
    assert_eq!(
        shop.one("q", "w").await.attempt,
        1,
        "it went back to its queue"
    );
    assert_eq!(shop.depth("q"), None);
}

// BEHAVIOUR §9
#[tokio::test]
async fn a_server_that_shuts_down_takes_and_gives_nothing_new_but_lets_work_end() {
    let shop = Shop::open().await;
    let held = shop.hold("w").await;
    shop.queue("q").await;
    shop.operations.shutdown(std::time::Duration::ZERO).await;
    let refusals = [
        shop.create(queued("q")).await.err(),
        shop.lease(look(&["q"], "w", 1)).await.err(),
    ];
    for refused in refusals {
        let refused = Problem::of(&refused.expect("it shuts down"));
        assert_eq!(refused.key(), (Code::Unavailable, "SHUTTING_DOWN"));
    }
    assert!(
        shop.finish(&held, Outcome::Response(text("in time")))
            .await
            .done
    );
}

// BEHAVIOUR §9, through a socket.
#[tokio::test]
async fn what_cannot_be_decoded_or_is_too_large_is_refused_on_every_method() {
    let server = Server::start().await;
    let mut large = vec![0x0a, 0x80, 0x80, 0x80, 0x03];
    large.resize(5 + (6 << 20), b'a');
    for path in METHODS {
        for bytes in [vec![0xff; 20], vec![0x0a, 200, 1, b'x']] {
            let refused = problem(call(server.channel().await, path, bytes).await);
            assert_eq!(
                refused.key(),
                (Code::InvalidArgument, "MALFORMED_REQUEST"),
                "{path}"
            );
        }
        let refused = problem(call(server.channel().await, path, large.clone()).await);
        assert_eq!(
            refused.key(),
            (Code::ResourceExhausted, "TOO_LARGE"),
            "{path}"
        );
    }
}
