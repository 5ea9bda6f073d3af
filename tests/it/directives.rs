//! WatchDirectives: what a worker is told at once about the operations it
//! holds. That heartbeats tell the same is tested in `heartbeat`.

use std::time::Duration;

use longrunning::proto::longrunning::v1::{HeartbeatRequest, finish_operation_request::Outcome};
use tokio::time::advance;

use crate::support::{
    shop::{Kind, Shop},
    text,
};

#[tokio::test(start_paused = true)]
async fn a_cancellation_and_a_deletion_are_pushed_to_the_holder_and_only_to_it() {
    let shop = Shop::open().await;
    let (mut mine, mut others) = (shop.watch("me").await, shop.watch("you").await);
    let lease = shop.hold("me").await;
    let of_other = shop.hold("you").await;
    shop.cancel(&lease.name).await;
    shop.delete(&lease.name).await;
    shop.cancel(&of_other.name).await;
    for expected in [Kind::CancelRequested, Kind::OperationDeleted] {
        let directive = mine.message().await.unwrap().unwrap();
        assert_eq!(directive.kind(), expected);
        assert_eq!(directive.name, lease.name);
        assert_eq!(directive.lease_token, lease.lease_token);
    }
    let directive = others.message().await.unwrap().unwrap();
    assert_eq!(directive.name, of_other.name);
    assert_eq!(directive.kind(), Kind::CancelRequested);
}

#[tokio::test(start_paused = true)]
async fn what_a_worker_did_itself_is_no_news_to_it_and_a_lost_lease_is() {
    let shop = Shop::open().await;
    let mut stream = shop.watch("w").await;
    let (finished, lost) = (shop.hold("w").await, shop.hold("w").await);
    shop.finish(&finished, Outcome::Response(text("done")))
        .await;
    advance(Duration::from_secs(31)).await;
    let directive = stream.message().await.unwrap().unwrap();
    assert_eq!(directive.kind(), Kind::LeaseLost);
    assert_eq!(directive.name, lost.name);
}

// worker.proto: DRAIN is a word of the server.
#[tokio::test]
async fn a_worker_that_drains_is_not_told_so() {
    let shop = Shop::open().await;
    let mut stream = shop.watch("w").await;
    let lease = shop.hold("w").await;
    let draining = HeartbeatRequest {
        worker_id: "w".into(),
        draining: true,
        ..HeartbeatRequest::default()
    };
    shop.heartbeat(draining).await.unwrap();
    shop.cancel(&lease.name).await;
    let directive = stream.message().await.unwrap().unwrap();
    assert_eq!(directive.kind(), Kind::CancelRequested);
}

#[tokio::test]
async fn the_last_directive_of_a_server_that_shuts_down_is_drain() {
    let shop = Shop::with(crate::support::operations()).await;
    let mut stream = shop.watch("w").await;
    shop.operations.shutdown(Duration::ZERO).await;
    let directive = stream.message().await.unwrap().unwrap();
    assert_eq!(directive.kind(), Kind::Drain);
    assert_eq!(stream.message().await.unwrap(), None);
}
