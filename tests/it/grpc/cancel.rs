//! CancelOperation over gRPC.

use longrunning::{
    Failure, NewOperation, QueueName, RetryPolicy, State, WorkerId,
    proto::google::longrunning::{CancelOperationRequest, ListOperationsRequest},
};
use tonic::Code;

use crate::support::{
    GrpcClient, GrpcTestServer,
    assertions::{assert_error_code, assert_failed_with},
    create_leased, create_pending, create_running, create_succeeded, decode_metadata,
    error_details::expect_status_error,
    expect_response,
    operations::get_operation,
    string_value,
};

fn cancel_request(name: &str) -> CancelOperationRequest {
    CancelOperationRequest { name: name.into() }
}

async fn cancel(client: &mut GrpcClient, name: &str) {
    client.cancel_operation(cancel_request(name)).await.unwrap();
}

// Rules: OP-3, CAN-1
#[tokio::test]
async fn cancelled_queued_operation_is_done_immediately_and_stays_listed() {
    let server = GrpcTestServer::start().await;
    let name = create_pending(&server.operations).await;
    let mut client = server.client().await;
    cancel(&mut client, name.as_str()).await;
    let operation = get_operation(&server, name.as_str()).await;
    assert_failed_with(&operation, Code::Cancelled, "OPERATION_CANCELLED");
    let operation_metadata = decode_metadata(&operation);
    assert_eq!(
        (
            operation_metadata.state(),
            operation_metadata.cancel_requested
        ),
        (State::Cancelled, true)
    );
    let list = client
        .list_operations(ListOperationsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(list.operations, [operation]);
}

// Rules: CAN-1, CAN-5
#[tokio::test]
async fn cancel_of_running_operation_returns_before_worker_reacts() {
    let server = GrpcTestServer::start().await;
    let (name, _) = create_running(&server.operations).await;
    let mut client = server.client().await;
    cancel(&mut client, name.as_str()).await;
    let operation = get_operation(&server, name.as_str()).await;
    assert!(!operation.done);
    let operation_metadata = decode_metadata(&operation);
    assert_eq!(
        (
            operation_metadata.state(),
            operation_metadata.cancel_requested
        ),
        (State::Running, true)
    );
}

// Rules: CAN-2
#[tokio::test]
async fn worker_decides_outcome_of_cancelled_operation() {
    let server = GrpcTestServer::start().await;
    let mut client = server.client().await;
    let (stopping, stopping_token) = create_running(&server.operations).await;
    let (succeeding, succeeding_token) = create_running(&server.operations).await;
    for name in [&stopping, &succeeding] {
        cancel(&mut client, name.as_str()).await;
    }
    server
        .operations
        .fail(&stopping, stopping_token, Failure::cancelled())
        .await
        .unwrap();
    server
        .operations
        .succeed(&succeeding, succeeding_token, string_value("too late"))
        .await
        .unwrap();
    let stopped = get_operation(&server, stopping.as_str()).await;
    assert_error_code(&stopped, Code::Cancelled);
    let done = get_operation(&server, succeeding.as_str()).await;
    assert_eq!(expect_response(&done), string_value("too late"));
    assert!(decode_metadata(&done).cancel_requested);
}

// A cancelled operation is not retried.
// Rules: CAN-7
#[tokio::test]
async fn retryable_failure_or_release_after_cancel_ends_as_cancelled() {
    let server = GrpcTestServer::start().await;
    let queue = QueueName::parse("q").unwrap();
    let mut client = server.client().await;
    for is_release in [false, true] {
        let retry = RetryPolicy::with_max_attempts(5);
        server
            .operations
            .create(NewOperation::queued("q").retry_policy(retry))
            .await
            .unwrap();
        let worker = WorkerId::new("w");
        let leased = server.operations.lease(&queue, &worker).await.unwrap();
        let (name, token) = (leased.name_owned(), leased.lease().unwrap().token);
        cancel(&mut client, name.as_str()).await;
        if is_release {
            server.operations.release(&name, token).await.unwrap();
        } else {
            let failure = Failure::new(longrunning::proto::google::rpc::Code::Internal, "oops");
            server
                .operations
                .fail(&name, token, failure.retryable())
                .await
                .unwrap();
        }
        let operation = get_operation(&server, name.as_str()).await;
        assert_error_code(&operation, Code::Cancelled);
    }
}

// Rules: CAN-3
#[tokio::test]
async fn repeated_cancel_and_cancel_of_done_operation_change_nothing() {
    let server = GrpcTestServer::start().await;
    let mut client = server.client().await;
    let (running_name, _) = create_running(&server.operations).await;
    cancel(&mut client, running_name.as_str()).await;
    let queued_name = create_pending(&server.operations).await;
    cancel(&mut client, queued_name.as_str()).await;
    let done = create_succeeded(&server.operations).await;
    let (failed, token) = create_leased(&server.operations, NewOperation::self_executed("w")).await;
    let failure = Failure::new(longrunning::proto::google::rpc::Code::Internal, "oops");
    server
        .operations
        .fail(&failed, token, failure)
        .await
        .unwrap();
    for name in [running_name, queued_name, done, failed] {
        let before = server.operations.get_cached(&name).unwrap();
        for _ in 0..3 {
            cancel(&mut client, name.as_str()).await;
        }
        let after = server.operations.get_cached(&name).unwrap();
        assert_eq!(after.bytes(), before.bytes());
        assert_eq!(after.revision(), before.revision());
    }
}

// Rules: CAN-4
#[tokio::test]
async fn cancel_of_unknown_name_is_not_found_and_of_empty_name_invalid() {
    let server = GrpcTestServer::start().await;
    let mut client = server.client().await;
    let unknown = expect_status_error(
        client
            .cancel_operation(cancel_request("operations/unknown"))
            .await,
    );
    assert_eq!(
        unknown.code_and_reason(),
        (Code::NotFound, "OPERATION_NOT_FOUND")
    );
    let empty = expect_status_error(client.cancel_operation(cancel_request("")).await);
    assert_eq!(
        empty.code_and_reason(),
        (Code::InvalidArgument, "INVALID_NAME")
    );
    assert_eq!(empty.field_violations[0].0, "name");
}
