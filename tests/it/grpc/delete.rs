//! DeleteOperation over gRPC: it hides an operation immediately and cancels nothing.

use longrunning::{
    NewOperation, QueueName, Report, WorkerId,
    proto::google::{
        longrunning::CancelOperationRequest,
        longrunning::{DeleteOperationRequest, ListOperationsRequest},
        rpc,
    },
};
use tonic::Code;

use crate::support::{
    GrpcClient, GrpcTestServer, create_pending, create_running, create_succeeded,
    error_details::expect_status_error, get_request, progress, string_value, wait_request,
};

async fn delete(client: &mut GrpcClient, name: &longrunning::OperationName) {
    let request = DeleteOperationRequest {
        name: name.to_string(),
    };
    client.delete_operation(request).await.unwrap();
}

// Rules: DEL-1
#[tokio::test]
async fn deleted_running_operation_continues_and_is_removed_at_completion() {
    let server = GrpcTestServer::start().await;
    let (name, token) = create_running(&server.operations).await;
    delete(&mut server.client().await, &name).await;
    let renewed = server.operations.renew(&name, token).await.unwrap();
    assert!(!renewed.cancel_requested() && !renewed.is_done());
    let report = Report {
        progress: Some(progress(1)),
        ..Report::default()
    };
    server
        .operations
        .report(&name, token, report)
        .await
        .unwrap();
    let done = server
        .operations
        .succeed(&name, token, string_value("unseen"))
        .await
        .unwrap();
    assert!(done.is_done());
    let removed = server.operations.renew(&name, token).await.unwrap_err();
    assert_eq!(removed.code(), rpc::Code::NotFound);
    let get_error = expect_status_error(
        server
            .client()
            .await
            .get_operation(get_request(name.as_str()))
            .await,
    );
    assert_eq!(get_error.code, Code::NotFound);
}

// A deleted queued operation is still leased to a worker.
// Rules: DEL-1
#[tokio::test]
async fn deleted_queued_operation_is_still_executed() {
    let server = GrpcTestServer::start().await;
    let name = create_pending(&server.operations).await;
    delete(&mut server.client().await, &name).await;
    let queue = QueueName::parse("idle").unwrap();
    let leased = server
        .operations
        .lease(&queue, &WorkerId::new("w"))
        .await
        .unwrap();
    assert_eq!(leased.name_owned(), name);
    assert!(!leased.cancel_requested());
}

// Rules: DEL-2
#[tokio::test]
async fn second_delete_is_not_found_in_every_state() {
    let server = GrpcTestServer::start().await;
    let mut client = server.client().await;
    let names = [
        create_pending(&server.operations).await,
        create_running(&server.operations).await.0,
        create_succeeded(&server.operations).await,
    ];
    for name in names {
        delete(&mut client, &name).await;
        let request = DeleteOperationRequest {
            name: name.to_string(),
        };
        let second = expect_status_error(client.delete_operation(request).await);
        assert_eq!(
            second.code_and_reason(),
            (Code::NotFound, "OPERATION_NOT_FOUND")
        );
    }
    let unknown = DeleteOperationRequest {
        name: "operations/unknown".into(),
    };
    assert_eq!(
        expect_status_error(client.delete_operation(unknown).await).code,
        Code::NotFound
    );
    let empty = expect_status_error(
        client
            .delete_operation(DeleteOperationRequest::default())
            .await,
    );
    assert_eq!(
        empty.code_and_reason(),
        (Code::InvalidArgument, "INVALID_NAME")
    );
}

// Rules: DEL-3
#[tokio::test]
async fn deleted_operation_is_not_found_on_every_client_method() {
    let server = GrpcTestServer::start().await;
    let mut client = server.client().await;
    let names = [
        create_pending(&server.operations).await,
        create_running(&server.operations).await.0,
        create_succeeded(&server.operations).await,
    ];
    for name in names {
        delete(&mut client, &name).await;
        let not_found = (Code::NotFound, "OPERATION_NOT_FOUND");
        assert_eq!(
            expect_status_error(client.get_operation(get_request(name.as_str())).await)
                .code_and_reason(),
            not_found
        );
        assert_eq!(
            expect_status_error(client.wait_operation(wait_request(&name, 60_000)).await)
                .code_and_reason(),
            not_found
        );
        let cancel = CancelOperationRequest {
            name: name.to_string(),
        };
        assert_eq!(
            expect_status_error(client.cancel_operation(cancel).await).code_and_reason(),
            not_found
        );
        let watch = longrunning::proto::longrunning::v1::WatchOperationRequest {
            name: name.to_string(),
        };
        let mut watcher = server.watch_client().await;
        assert_eq!(
            expect_status_error(watcher.watch_operation(watch).await).code_and_reason(),
            not_found
        );
    }
    let list = client
        .list_operations(ListOperationsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(list.operations.is_empty() && list.next_page_token.is_empty());
}

// Rules: DEL-3
#[tokio::test]
async fn worker_cannot_restore_deleted_operation() {
    let server = GrpcTestServer::start().await;
    let retry = longrunning::RetryPolicy::with_max_attempts(2)
        .with_initial_backoff(std::time::Duration::ZERO);
    server
        .operations
        .create(NewOperation::queued("q").retry_policy(retry))
        .await
        .unwrap();
    let (queue, worker) = (QueueName::parse("q").unwrap(), WorkerId::new("w"));
    let leased = server.operations.lease(&queue, &worker).await.unwrap();
    let (name, token) = (leased.name_owned(), leased.lease().unwrap().token);
    server.operations.delete(&name).await.unwrap();
    let failure = longrunning::Failure::new(rpc::Code::Internal, "again").retryable();
    server.operations.fail(&name, token, failure).await.unwrap();
    assert!(server.operations.get_cached(&name).is_err());
    let token = server
        .operations
        .lease(&queue, &worker)
        .await
        .unwrap()
        .lease()
        .unwrap()
        .token;
    assert!(server.operations.get_cached(&name).is_err());
    server
        .operations
        .succeed(&name, token, string_value("unseen"))
        .await
        .unwrap();
    assert!(server.operations.get_cached(&name).is_err());
    let late = server
        .operations
        .succeed(&name, token, string_value("unseen"))
        .await
        .unwrap_err();
    assert_eq!(late.code(), rpc::Code::NotFound);
}
