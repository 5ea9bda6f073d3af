//! DeleteOperation: hides at once, cancels nothing.

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
    Client, Server, get, pending, problem::problem, progress, running, succeeded, text, wait,
};

async fn delete(client: &mut Client, name: &longrunning::OperationName) {
    let request = DeleteOperationRequest {
        name: name.to_string(),
    };
    client.delete_operation(request).await.unwrap();
}

// DEL-1
#[tokio::test]
async fn delete_does_not_cancel_what_runs_and_its_record_is_forgotten_at_the_end() {
    let server = Server::start().await;
    let (name, token) = running(&server.operations).await;
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
        .succeed(&name, token, text("unseen"))
        .await
        .unwrap();
    assert!(done.is_done());
    let gone = server.operations.renew(&name, token).await.unwrap_err();
    assert_eq!(gone.code(), rpc::Code::NotFound);
    let get = problem(
        server
            .client()
            .await
            .get_operation(get(name.as_str()))
            .await,
    );
    assert_eq!(get.code, Code::NotFound);
}

// DEL-1: a deleted operation that waits still gets its worker.
#[tokio::test]
async fn a_queued_operation_that_was_deleted_is_still_executed() {
    let server = Server::start().await;
    let name = pending(&server.operations).await;
    delete(&mut server.client().await, &name).await;
    let queue = QueueName::parse("nobody").unwrap();
    let leased = server
        .operations
        .lease(&queue, &WorkerId::new("w"))
        .await
        .unwrap();
    assert_eq!(leased.owned_name(), name);
    assert!(!leased.cancel_requested());
}

// DEL-2
#[tokio::test]
async fn a_second_delete_is_not_found_whatever_the_stage() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let names = [
        pending(&server.operations).await,
        running(&server.operations).await.0,
        succeeded(&server.operations).await,
    ];
    for name in names {
        delete(&mut client, &name).await;
        let request = DeleteOperationRequest {
            name: name.to_string(),
        };
        let second = problem(client.delete_operation(request).await);
        assert_eq!(second.key(), (Code::NotFound, "OPERATION_NOT_FOUND"));
    }
    let unknown = DeleteOperationRequest {
        name: "operations/unknown".into(),
    };
    assert_eq!(
        problem(client.delete_operation(unknown).await).code,
        Code::NotFound
    );
    let empty = problem(
        client
            .delete_operation(DeleteOperationRequest::default())
            .await,
    );
    assert_eq!(empty.key(), (Code::InvalidArgument, "INVALID_NAME"));
}

// DEL-3
#[tokio::test]
async fn to_clients_a_deleted_operation_is_missing_everywhere() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let names = [
        pending(&server.operations).await,
        running(&server.operations).await.0,
        succeeded(&server.operations).await,
    ];
    for name in names {
        delete(&mut client, &name).await;
        let not_found = (Code::NotFound, "OPERATION_NOT_FOUND");
        assert_eq!(
            problem(client.get_operation(get(name.as_str())).await).key(),
            not_found
        );
        assert_eq!(
            problem(client.wait_operation(wait(&name, 60_000)).await).key(),
            not_found
        );
        let cancel = CancelOperationRequest {
            name: name.to_string(),
        };
        assert_eq!(
            problem(client.cancel_operation(cancel).await).key(),
            not_found
        );
        let watch = longrunning::proto::longrunning::v1::WatchOperationRequest {
            name: name.to_string(),
        };
        let mut watcher = server.watcher().await;
        assert_eq!(
            problem(watcher.watch_operation(watch).await).key(),
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

// DEL-3
#[tokio::test]
async fn a_worker_cannot_bring_a_deleted_operation_back() {
    let server = Server::start().await;
    let retry = longrunning::RetryPolicy {
        initial_backoff: std::time::Duration::ZERO,
        ..longrunning::RetryPolicy::attempts(2)
    };
    server
        .operations
        .create(NewOperation::queued("q").retry(retry))
        .await
        .unwrap();
    let (queue, worker) = (QueueName::parse("q").unwrap(), WorkerId::new("w"));
    let leased = server.operations.lease(&queue, &worker).await.unwrap();
    let (name, token) = (leased.owned_name(), leased.lease().unwrap().token);
    server.operations.delete(&name).await.unwrap();
    let failure = longrunning::Failure::new(rpc::Code::Internal, "again").retryable();
    server.operations.fail(&name, token, failure).await.unwrap();
    assert!(server.operations.get(&name).is_err());
    let token = server
        .operations
        .lease(&queue, &worker)
        .await
        .unwrap()
        .lease()
        .unwrap()
        .token;
    assert!(server.operations.get(&name).is_err());
    server
        .operations
        .succeed(&name, token, text("unseen"))
        .await
        .unwrap();
    assert!(server.operations.get(&name).is_err());
    let late = server
        .operations
        .succeed(&name, token, text("unseen"))
        .await
        .unwrap_err();
    assert_eq!(late.code(), rpc::Code::NotFound);
}
