//! CancelOperation over gRPC. How a handler learns of it is in `handlers`.

use longrunning::{
    Failure, NewOperation, State,
    proto::google::longrunning::{CancelOperationRequest, ListOperationsRequest},
};
use tonic::Code;

use crate::support::{
    Client, Server, error, get, hold, metadata, pending, problem::problem, reason, response,
    running, succeeded, text,
};

fn request(name: &str) -> CancelOperationRequest {
    CancelOperationRequest { name: name.into() }
}

async fn cancel(client: &mut Client, name: &str) {
    client.cancel_operation(request(name)).await.unwrap();
}

// OP-3, CAN-1
#[tokio::test]
async fn a_queued_operation_is_cancelled_at_once_and_stays_listed() {
    let server = Server::start().await;
    let name = pending(&server.operations).await;
    let mut client = server.client().await;
    cancel(&mut client, name.as_str()).await;
    let operation = client
        .get_operation(get(name.as_str()))
        .await
        .unwrap()
        .into_inner();
    let error = error(&operation);
    assert_eq!(
        (error.code, reason(&error).as_str()),
        (1, "OPERATION_CANCELLED")
    );
    let ours = metadata(&operation);
    assert_eq!(
        (ours.state(), ours.cancel_requested),
        (State::Cancelled, true)
    );
    let list = client
        .list_operations(ListOperationsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(list.operations, [operation]);
}

// CAN-1, CAN-5
#[tokio::test]
async fn cancel_of_a_running_operation_returns_before_the_worker_says_anything() {
    let server = Server::start().await;
    let (name, _) = running(&server.operations).await;
    let mut client = server.client().await;
    cancel(&mut client, name.as_str()).await;
    let operation = client
        .get_operation(get(name.as_str()))
        .await
        .unwrap()
        .into_inner();
    assert!(!operation.done);
    let ours = metadata(&operation);
    assert_eq!(
        (ours.state(), ours.cancel_requested),
        (State::Running, true)
    );
}

// CAN-2
#[tokio::test]
async fn a_cancelled_operation_ends_as_its_worker_says() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let (stops, stops_token) = running(&server.operations).await;
    let (succeeds, succeeds_token) = running(&server.operations).await;
    for name in [&stops, &succeeds] {
        cancel(&mut client, name.as_str()).await;
    }
    server
        .operations
        .fail(&stops, stops_token, Failure::cancelled())
        .await
        .unwrap();
    server
        .operations
        .succeed(&succeeds, succeeds_token, text("too late"))
        .await
        .unwrap();
    let stopped = client
        .get_operation(get(stops.as_str()))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(error(&stopped).code, 1);
    let done = client
        .get_operation(get(succeeds.as_str()))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(response(&done), text("too late"));
    assert!(metadata(&done).cancel_requested);
}

// BEHAVIOUR §4: no retry follows a cancellation.
#[tokio::test]
async fn a_retryable_failure_or_a_release_after_a_cancellation_is_cancelled() {
    let server = Server::start().await;
    let queue = longrunning::QueueName::parse("q").unwrap();
    let mut client = server.client().await;
    for released in [false, true] {
        let retry = longrunning::RetryPolicy::attempts(5);
        server
            .operations
            .create(NewOperation::queued("q").retry(retry))
            .await
            .unwrap();
        let worker = longrunning::WorkerId::new("w");
        let leased = server.operations.lease(&queue, &worker).await.unwrap();
        let (name, token) = (leased.owned_name(), leased.lease().unwrap().token);
        cancel(&mut client, name.as_str()).await;
        if released {
            server.operations.release(&name, token).await.unwrap();
        } else {
            let failure = Failure::new(longrunning::proto::google::rpc::Code::Internal, "oops");
            server
                .operations
                .fail(&name, token, failure.retryable())
                .await
                .unwrap();
        }
        let operation = client
            .get_operation(get(name.as_str()))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(error(&operation).code, 1);
    }
}

// CAN-3
#[tokio::test]
async fn cancel_again_and_cancel_of_a_done_operation_are_ok_and_change_nothing() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let (runs, _) = running(&server.operations).await;
    cancel(&mut client, runs.as_str()).await;
    let waits = pending(&server.operations).await;
    cancel(&mut client, waits.as_str()).await;
    let done = succeeded(&server.operations).await;
    let (failed, token) = hold(&server.operations, NewOperation::self_executed("w")).await;
    let failure = Failure::new(longrunning::proto::google::rpc::Code::Internal, "oops");
    server
        .operations
        .fail(&failed, token, failure)
        .await
        .unwrap();
    for name in [runs, waits, done, failed] {
        let before = server.operations.get(&name).unwrap();
        for _ in 0..3 {
            cancel(&mut client, name.as_str()).await;
        }
        let after = server.operations.get(&name).unwrap();
        assert_eq!(after.bytes(), before.bytes());
        assert_eq!(after.revision(), before.revision());
    }
}

// CAN-4
#[tokio::test]
async fn cancel_of_an_unknown_operation_is_not_found_and_of_an_empty_name_invalid() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let unknown = problem(client.cancel_operation(request("operations/unknown")).await);
    assert_eq!(unknown.key(), (Code::NotFound, "OPERATION_NOT_FOUND"));
    let empty = problem(client.cancel_operation(request("")).await);
    assert_eq!(empty.key(), (Code::InvalidArgument, "INVALID_NAME"));
    assert_eq!(empty.fields[0].0, "name");
}
