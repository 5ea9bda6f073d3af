//! GetOperation over gRPC, and the fields of the Operation that every method returns.

use longrunning::{
    Failure, NewOperation, Progress, Report, State,
    proto::google::{longrunning::ListOperationsRequest, rpc},
};
use tokio::task::JoinSet;
use tonic::Code;

use crate::support::{
    GrpcTestServer, assertions::assert_error_code, create_leased, create_pending, create_running,
    create_succeeded, custom_metadata, decode_metadata, error_details::expect_status_error,
    expect_response, get_request, operations::get_operation, progress, string_value, wait_request,
};

// Rules: OP-1
#[tokio::test]
async fn unfinished_operation_has_neither_error_nor_response() {
    let server = GrpcTestServer::start().await;
    let pending_name = create_pending(&server.operations).await;
    let (running_name, token) = create_running(&server.operations).await;
    let cancelling_name = create_running(&server.operations).await.0;
    server.operations.cancel(&cancelling_name).await.unwrap();
    server
        .operations
        .report(&running_name, token, Report::default())
        .await
        .unwrap();
    for name in [pending_name, running_name, cancelling_name] {
        let operation = get_operation(&server, name.as_str()).await;
        assert!(
            !operation.done && operation.result.is_none(),
            "{operation:?}"
        );
    }
}

// Rules: OP-8
#[tokio::test]
async fn every_response_has_full_name_byte_for_byte() {
    let server = GrpcTestServer::start().await;
    let new = NewOperation::self_executed("test")
        .parent("projects/p-1/locations/eu")
        .id("x-1");
    let created = server.operations.create(new).await.unwrap().operation;
    let name = "projects/p-1/locations/eu/operations/x-1";
    assert_eq!(created.name(), name);
    let mut client = server.client().await;
    assert_eq!(get_operation(&server, name).await.name, name);
    let waited = client
        .wait_operation(wait_request(&created.name_owned(), 1))
        .await
        .unwrap();
    assert_eq!(waited.into_inner().name, name);
    let list = client
        .list_operations(ListOperationsRequest::default())
        .await
        .unwrap();
    assert_eq!(list.into_inner().operations[0].name, name);
}

// Rules: OP-7
#[tokio::test]
async fn generated_names_end_with_unique_uuid_v7() {
    let server = GrpcTestServer::start().await;
    let mut seen = std::collections::HashSet::new();
    for _ in 0..200 {
        let name = create_pending(&server.operations).await;
        let id = name
            .as_str()
            .strip_prefix("operations/")
            .unwrap()
            .to_owned();
        let id: uuid::Uuid = id.parse().unwrap();
        assert_eq!(id.get_version_num(), 7);
        server.operations.delete(&name).await.unwrap();
        assert!(seen.insert(id));
    }
}

// Rules: OP-14
#[tokio::test]
async fn done_operation_retains_metadata() {
    let server = GrpcTestServer::start().await;
    let new = NewOperation::self_executed("test").label("team", "blue");
    let (name, token) = create_leased(&server.operations, new).await;
    let report = Report {
        progress: Some(progress(42)),
        ..Report::default()
    };
    server
        .operations
        .report(&name, token, report)
        .await
        .unwrap();
    server
        .operations
        .succeed(&name, token, string_value("done"))
        .await
        .unwrap();
    let metadata = decode_metadata(&get_operation(&server, name.as_str()).await);
    assert_eq!(metadata.state(), State::Succeeded);
    let complete = Progress {
        fraction: Some(1.0),
        ..progress(100)
    };
    assert_eq!(metadata.progress, Some(complete));
    assert_eq!(metadata.labels["team"], "blue");
    assert_eq!(metadata.attempt, 1);
    assert!(metadata.create_time.is_some() && metadata.start_time.is_some());
    assert_eq!(metadata.end_time, metadata.update_time);
}

// Rules: OP-16
#[tokio::test]
async fn custom_metadata_is_served_byte_for_byte_until_completion() {
    let server = GrpcTestServer::start().await;
    let new = NewOperation::self_executed("test").metadata(custom_metadata(1));
    let (name, token) = create_leased(&server.operations, new).await;
    assert_eq!(
        get_operation(&server, name.as_str()).await.metadata,
        Some(custom_metadata(1))
    );
    let progress_report = Report {
        progress: Some(progress(1)),
        ..Report::default()
    };
    server
        .operations
        .report(&name, token, progress_report)
        .await
        .unwrap();
    assert_eq!(
        get_operation(&server, name.as_str()).await.metadata,
        Some(custom_metadata(1))
    );
    let payload = longrunning::Payload::new(custom_metadata(2)).unwrap();
    let metadata_report = Report {
        metadata: Some(payload),
        ..Report::default()
    };
    server
        .operations
        .report(&name, token, metadata_report)
        .await
        .unwrap();
    server.operations.cancel(&name).await.unwrap();
    server
        .operations
        .fail(&name, token, Failure::cancelled())
        .await
        .unwrap();
    let operation = get_operation(&server, name.as_str()).await;
    assert_eq!(operation.metadata, Some(custom_metadata(2)));
    assert_error_code(&operation, Code::Cancelled);
}

// Rules: OP-13
#[tokio::test]
async fn operation_metadata_has_aip_216_states() {
    let names: Vec<_> = (0..=5)
        .map(|n| State::try_from(n).unwrap().as_str_name())
        .collect();
    let expected = [
        "STATE_UNSPECIFIED",
        "PENDING",
        "RUNNING",
        "SUCCEEDED",
        "FAILED",
        "CANCELLED",
    ];
    assert_eq!(names, expected);
    let server = GrpcTestServer::start().await;
    let pending_name = create_pending(&server.operations).await;
    let metadata_of = async |name: &str| decode_metadata(&get_operation(&server, name).await);
    let before = metadata_of(pending_name.as_str()).await;
    assert_eq!(before.state(), State::Pending);
    assert_eq!((before.queue.as_str(), before.attempt), ("idle", 0));
    assert!(before.start_time.is_none() && before.end_time.is_none());
    let (running_name, token) = create_running(&server.operations).await;
    assert_eq!(
        metadata_of(running_name.as_str()).await.state(),
        State::Running
    );
    server
        .operations
        .fail(&running_name, token, Failure::new(rpc::Code::Aborted, "no"))
        .await
        .unwrap();
    assert_eq!(
        metadata_of(running_name.as_str()).await.state(),
        State::Failed
    );
    let done = create_succeeded(&server.operations).await;
    assert_eq!(metadata_of(done.as_str()).await.state(), State::Succeeded);
    server.operations.cancel(&pending_name).await.unwrap();
    assert_eq!(
        metadata_of(pending_name.as_str()).await.state(),
        State::Cancelled
    );
}

// Rules: GET-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_returns_immediately_during_1000_open_waits() {
    let server = GrpcTestServer::start().await;
    let (name, token) = create_running(&server.operations).await;
    let mut waits = JoinSet::new();
    for _ in 0..10 {
        let client = server.client().await;
        for _ in 0..100 {
            let (mut client, request) = (client.clone(), wait_request(&name, 60_000));
            waits.spawn(async move { client.wait_operation(request).await.unwrap().into_inner() });
        }
    }
    let mut client = server.client().await;
    while server.operations.waiter_count() < 1000 {
        assert!(
            !client
                .get_operation(get_request(name.as_str()))
                .await
                .unwrap()
                .into_inner()
                .done
        );
    }
    let start = tokio::time::Instant::now();
    client
        .get_operation(get_request(name.as_str()))
        .await
        .unwrap();
    assert!(start.elapsed().as_secs() < 30);
    server
        .operations
        .succeed(&name, token, string_value("all"))
        .await
        .unwrap();
    while let Some(operation) = waits.join_next().await {
        assert_eq!(expect_response(&operation.unwrap()), string_value("all"));
    }
    assert_eq!(server.operations.waiter_count(), 0);
}

// Rules: GET-2
#[tokio::test]
async fn get_of_unknown_name_is_not_found() {
    let server = GrpcTestServer::start().await;
    let mut client = server.client().await;
    let details = expect_status_error(
        client
            .get_operation(get_request("operations/unknown"))
            .await,
    );
    assert_eq!(
        details.code_and_reason(),
        (Code::NotFound, "OPERATION_NOT_FOUND")
    );
    assert_eq!(details.info.metadata["name"], "operations/unknown");
    assert!(details.message.contains("operations/unknown"));
}

// Rules: GET-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn created_operation_is_readable_on_any_connection_after_create() {
    let server = GrpcTestServer::start().await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(server.client().await);
    }
    let mut creators = JoinSet::new();
    for mut client in clients {
        let operations = server.operations.clone();
        creators.spawn(async move {
            for _ in 0..200 {
                let name = create_pending(&operations).await;
                let read = client
                    .get_operation(get_request(name.as_str()))
                    .await
                    .unwrap();
                assert_eq!(read.into_inner().name, name.as_str());
            }
        });
    }
    while let Some(creator) = creators.join_next().await {
        creator.unwrap();
    }
}
