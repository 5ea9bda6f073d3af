//! longrunning.v1.OperationWatch: the states of one operation as a stream.

use longrunning::{
    Limits, OperationName, Report,
    proto::{google::longrunning::Operation, longrunning::v1::WatchOperationRequest},
};
use tonic::{Code, Status, Streaming};

use crate::support::{
    Server, metadata, pending,
    problem::{Problem, problem},
    progress, response, running, succeeded, text,
};

async fn watch(server: &Server, name: &OperationName) -> Streaming<Operation> {
    let request = WatchOperationRequest {
        name: name.to_string(),
    };
    server
        .watcher()
        .await
        .watch_operation(request)
        .await
        .unwrap()
        .into_inner()
}

async fn next(stream: &mut Streaming<Operation>) -> Result<Option<Operation>, Status> {
    stream.message().await
}

fn units(done: i64) -> Report {
    Report {
        progress: Some(progress(done)),
        ..Report::default()
    }
}

// BEHAVIOUR §3
#[tokio::test]
async fn a_watch_shows_the_present_state_then_each_change_and_ends_after_the_done_one() {
    let server = Server::start().await;
    let (name, token) = running(&server.operations).await;
    let mut stream = watch(&server, &name).await;
    let first = next(&mut stream).await.unwrap().unwrap();
    assert!(!first.done && metadata(&first).progress.is_none());
    for done in 1..=3 {
        server
            .operations
            .report(&name, token, units(done))
            .await
            .unwrap();
        let change = next(&mut stream).await.unwrap().unwrap();
        assert_eq!(change.name, name.as_str());
        assert_eq!(metadata(&change).progress.unwrap().done_units, done);
    }
    // A sign of life is no change.
    server.operations.renew(&name, token).await.unwrap();
    server
        .operations
        .succeed(&name, token, text("end"))
        .await
        .unwrap();
    assert_eq!(
        response(&next(&mut stream).await.unwrap().unwrap()),
        text("end")
    );
    assert_eq!(next(&mut stream).await.unwrap(), None);
    assert_eq!(server.operations.waiters(), 0);
}

#[tokio::test]
async fn a_watch_of_a_done_operation_shows_it_once_and_ends() {
    let server = Server::start().await;
    let name = succeeded(&server.operations).await;
    let mut stream = watch(&server, &name).await;
    assert!(next(&mut stream).await.unwrap().unwrap().done);
    assert_eq!(next(&mut stream).await.unwrap(), None);
}

#[tokio::test]
async fn changes_that_come_faster_than_they_are_read_are_folded_and_the_newest_wins() {
    let operations = crate::support::operations().start().await.unwrap();
    let (name, token) = running(&operations).await;
    let mut watch = operations.watch(&name).await.unwrap();
    watch.next().await.unwrap().unwrap();
    for done in 1..=1000 {
        operations.report(&name, token, units(done)).await.unwrap();
    }
    let newest = watch.next().await.unwrap().unwrap();
    assert_eq!(newest.progress().unwrap().done_units, 1000);
    operations.report(&name, token, units(1001)).await.unwrap();
    operations.succeed(&name, token, text("end")).await.unwrap();
    assert!(watch.next().await.unwrap().unwrap().is_done());
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_watch_ends_with_not_found_when_its_operation_is_deleted() {
    let server = Server::start().await;
    let name = pending(&server.operations).await;
    let mut stream = watch(&server, &name).await;
    next(&mut stream).await.unwrap().unwrap();
    server.operations.delete(&name).await.unwrap();
    let end = Problem::of(&next(&mut stream).await.unwrap_err());
    assert_eq!(end.key(), (Code::NotFound, "OPERATION_NOT_FOUND"));
}

#[tokio::test]
async fn a_watch_ends_with_unavailable_when_the_server_shuts_down() {
    let server = Server::start().await;
    let name = pending(&server.operations).await;
    let mut stream = watch(&server, &name).await;
    next(&mut stream).await.unwrap().unwrap();
    server.operations.shutdown(std::time::Duration::ZERO).await;
    let end = Problem::of(&next(&mut stream).await.unwrap_err());
    assert_eq!(end.key(), (Code::Unavailable, "SHUTTING_DOWN"));
    assert!(end.retry.is_some());
}

#[tokio::test]
async fn a_watch_whose_client_goes_away_is_no_waiter_any_more() {
    let server = Server::start().await;
    let name = pending(&server.operations).await;
    let mut stream = watch(&server, &name).await;
    next(&mut stream).await.unwrap().unwrap();
    assert_eq!(server.operations.waiters(), 1);
    drop(stream);
    while server.operations.waiters() != 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_watch_over_the_limit_of_waiters_is_refused_with_a_time_to_come_back() {
    let limits = Limits {
        max_waiters: 1,
        ..Limits::default()
    };
    let server = Server::with(crate::support::operations().limits(limits)).await;
    let name = pending(&server.operations).await;
    let _open = watch(&server, &name).await;
    let request = WatchOperationRequest {
        name: name.to_string(),
    };
    let refused = problem(server.watcher().await.watch_operation(request).await);
    assert_eq!(refused.key(), (Code::ResourceExhausted, "TOO_MANY_WAITERS"));
    assert!(refused.retry.is_some());
    let unknown = WatchOperationRequest {
        name: "operations/unknown".into(),
    };
    let unknown = problem(server.watcher().await.watch_operation(unknown).await);
    assert_eq!(unknown.code, Code::NotFound);
}
