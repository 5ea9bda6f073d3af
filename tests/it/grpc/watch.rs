//! `longrunning.v1.OperationWatch`: a stream of the states of one operation.

use longrunning::{
    Limits, OperationName, Report,
    proto::{google::longrunning::Operation, longrunning::v1::WatchOperationRequest},
};
use tonic::{Code, Status, Streaming};

use crate::support::{
    GrpcTestServer, create_pending, create_running, create_succeeded, decode_metadata,
    error_details::{ErrorDetails, expect_status_error},
    expect_response,
    operations::{start_operations, wait_for_waiters},
    progress, string_value,
};

async fn open_watch(server: &GrpcTestServer, name: &OperationName) -> Streaming<Operation> {
    let request = WatchOperationRequest {
        name: name.to_string(),
    };
    server
        .watch_client()
        .await
        .watch_operation(request)
        .await
        .unwrap()
        .into_inner()
}

async fn next_message(stream: &mut Streaming<Operation>) -> Result<Option<Operation>, Status> {
    stream.message().await
}

fn progress_report(done_units: i64) -> Report {
    Report {
        progress: Some(progress(done_units)),
        ..Report::default()
    }
}

// Rules: WATCH-1
#[tokio::test]
async fn watch_sends_current_state_each_change_and_ends_when_done() {
    let server = GrpcTestServer::start().await;
    let (name, token) = create_running(&server.operations).await;
    let mut stream = open_watch(&server, &name).await;
    let first = next_message(&mut stream).await.unwrap().unwrap();
    assert!(!first.done && decode_metadata(&first).progress.is_none());
    for done_units in 1..=3 {
        server
            .operations
            .report(&name, token, progress_report(done_units))
            .await
            .unwrap();
        let change = next_message(&mut stream).await.unwrap().unwrap();
        assert_eq!(change.name, name.as_str());
        assert_eq!(
            decode_metadata(&change).progress.unwrap().done_units,
            done_units
        );
    }
    // A heartbeat without a report is no change.
    server.operations.renew(&name, token).await.unwrap();
    server
        .operations
        .succeed(&name, token, string_value("end"))
        .await
        .unwrap();
    assert_eq!(
        expect_response(&next_message(&mut stream).await.unwrap().unwrap()),
        string_value("end")
    );
    assert_eq!(next_message(&mut stream).await.unwrap(), None);
    assert_eq!(server.operations.waiter_count(), 0);
}

// Rules: WATCH-1
#[tokio::test]
async fn watch_of_done_operation_sends_it_once_and_ends() {
    let server = GrpcTestServer::start().await;
    let name = create_succeeded(&server.operations).await;
    let mut stream = open_watch(&server, &name).await;
    assert!(next_message(&mut stream).await.unwrap().unwrap().done);
    assert_eq!(next_message(&mut stream).await.unwrap(), None);
}

// Rules: WATCH-2
#[tokio::test]
async fn watch_coalesces_unread_changes_to_latest() {
    let operations = start_operations().await;
    let (name, token) = create_running(&operations).await;
    let mut watch = operations.watch(&name).await.unwrap();
    watch.next().await.unwrap().unwrap();
    for done_units in 1..=1000 {
        operations
            .report(&name, token, progress_report(done_units))
            .await
            .unwrap();
    }
    let newest = watch.next().await.unwrap().unwrap();
    assert_eq!(newest.progress().unwrap().done_units, 1000);
    operations
        .report(&name, token, progress_report(1001))
        .await
        .unwrap();
    operations
        .succeed(&name, token, string_value("end"))
        .await
        .unwrap();
    assert!(watch.next().await.unwrap().unwrap().is_done());
    assert!(watch.next().await.is_none());
}

// Rules: WATCH-3
#[tokio::test]
async fn watch_ends_with_not_found_on_delete() {
    let server = GrpcTestServer::start().await;
    let name = create_pending(&server.operations).await;
    let mut stream = open_watch(&server, &name).await;
    next_message(&mut stream).await.unwrap().unwrap();
    server.operations.delete(&name).await.unwrap();
    let error_details = ErrorDetails::from_status(&next_message(&mut stream).await.unwrap_err());
    assert_eq!(
        error_details.code_and_reason(),
        (Code::NotFound, "OPERATION_NOT_FOUND")
    );
}

// Rules: WATCH-3
#[tokio::test]
async fn watch_ends_with_unavailable_at_shutdown() {
    let server = GrpcTestServer::start().await;
    let name = create_pending(&server.operations).await;
    let mut stream = open_watch(&server, &name).await;
    next_message(&mut stream).await.unwrap().unwrap();
    server.operations.shutdown(std::time::Duration::ZERO).await;
    let error_details = ErrorDetails::from_status(&next_message(&mut stream).await.unwrap_err());
    assert_eq!(
        error_details.code_and_reason(),
        (Code::Unavailable, "SHUTTING_DOWN")
    );
    assert!(error_details.retry_info.is_some());
}

// Rules: WATCH-4
#[tokio::test]
async fn disconnected_watch_frees_its_waiter() {
    let server = GrpcTestServer::start().await;
    let name = create_pending(&server.operations).await;
    let mut stream = open_watch(&server, &name).await;
    next_message(&mut stream).await.unwrap().unwrap();
    assert_eq!(server.operations.waiter_count(), 1);
    drop(stream);
    wait_for_waiters(&server.operations, 0).await;
}

// Rules: WATCH-4
#[tokio::test]
async fn watch_over_waiter_limit_is_rejected_with_retry_info() {
    let limits = Limits::default().with_max_waiters(1);
    let server =
        GrpcTestServer::start_with(crate::support::operations_builder().limits(limits)).await;
    let name = create_pending(&server.operations).await;
    let _open = open_watch(&server, &name).await;
    let request = WatchOperationRequest {
        name: name.to_string(),
    };
    let rejected = expect_status_error(server.watch_client().await.watch_operation(request).await);
    assert_eq!(
        rejected.code_and_reason(),
        (Code::ResourceExhausted, "TOO_MANY_WAITERS")
    );
    assert!(rejected.retry_info.is_some());
    let unknown = WatchOperationRequest {
        name: "operations/unknown".into(),
    };
    let unknown = expect_status_error(server.watch_client().await.watch_operation(unknown).await);
    assert_eq!(unknown.code, Code::NotFound);
}
