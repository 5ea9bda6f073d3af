//! WatchDirectives: directives that the server pushes to the holder of a lease.

use std::time::Duration;

use longrunning::proto::longrunning::v1::{HeartbeatRequest, finish_operation_request::Outcome};
use tokio::time::advance;

use crate::support::{
    harness::{Harness, Kind, heartbeat_request},
    string_value,
};

// Rules: DIRECTIVE-1
#[tokio::test(start_paused = true)]
async fn cancel_and_delete_are_pushed_only_to_lease_holder() {
    let harness = Harness::start().await;
    let (mut stream, mut other_stream) = (
        harness.watch_directives("me").await,
        harness.watch_directives("you").await,
    );
    let lease = harness.create_self_executed("me").await;
    let other_lease = harness.create_self_executed("you").await;
    harness.cancel(&lease.name).await;
    harness.delete(&lease.name).await;
    harness.cancel(&other_lease.name).await;
    for expected in [Kind::CancelRequested, Kind::OperationDeleted] {
        let directive = stream.message().await.unwrap().unwrap();
        assert_eq!(directive.kind(), expected);
        assert_eq!(directive.name, lease.name);
        assert_eq!(directive.lease_token, lease.lease_token);
    }
    let directive = other_stream.message().await.unwrap().unwrap();
    assert_eq!(directive.name, other_lease.name);
    assert_eq!(directive.kind(), Kind::CancelRequested);
}

// Rules: DIRECTIVE-1
#[tokio::test(start_paused = true)]
async fn lease_loss_is_pushed_but_finish_by_same_worker_is_not() {
    let harness = Harness::start().await;
    let mut stream = harness.watch_directives("w").await;
    let (finished, lost) = (
        harness.create_self_executed("w").await,
        harness.create_self_executed("w").await,
    );
    harness
        .finish(&finished, Outcome::Response(string_value("done")))
        .await;
    advance(Duration::from_secs(31)).await;
    let directive = stream.message().await.unwrap().unwrap();
    assert_eq!(directive.kind(), Kind::LeaseLost);
    assert_eq!(directive.name, lost.name);
}

// worker.proto: DRAIN announces a shutdown of the server, not of the worker.
// Rules: DIRECTIVE-2
#[tokio::test]
async fn draining_worker_gets_no_drain_directive() {
    let harness = Harness::start().await;
    let mut stream = harness.watch_directives("w").await;
    let lease = harness.create_self_executed("w").await;
    let draining = HeartbeatRequest {
        draining: true,
        ..heartbeat_request("w", [])
    };
    harness.try_heartbeat(draining).await.unwrap();
    harness.cancel(&lease.name).await;
    let directive = stream.message().await.unwrap().unwrap();
    assert_eq!(directive.kind(), Kind::CancelRequested);
}

// Rules: DIRECTIVE-2
#[tokio::test]
async fn last_directive_at_server_shutdown_is_drain() {
    let harness = Harness::start().await;
    let mut stream = harness.watch_directives("w").await;
    harness.operations.shutdown(Duration::ZERO).await;
    let directive = stream.message().await.unwrap().unwrap();
    assert_eq!(directive.kind(), Kind::Drain);
    assert_eq!(stream.message().await.unwrap(), None);
}
