//! GetOperation, and the shape of the Operation that every method serves.

use longrunning::{
    Failure, NewOperation, Report, State,
    proto::google::{
        longrunning::{ListOperationsRequest, Operation},
        rpc::Code,
    },
};
use tokio::task::JoinSet;
use tonic::Code as Grpc;

use crate::support::{
    Server, error, get, hold, metadata, own_metadata, pending, problem::problem, response, running,
    succeeded, text, wait,
};

/// The operation as Get serves it now.
async fn now(server: &Server, name: &str) -> Operation {
    let mut client = server.client().await;
    client.get_operation(get(name)).await.unwrap().into_inner()
}

// OP-1
#[tokio::test]
async fn an_operation_that_is_not_done_has_neither_error_nor_response() {
    let server = Server::start().await;
    let waits = pending(&server.operations).await;
    let (runs, token) = running(&server.operations).await;
    let asked = running(&server.operations).await.0;
    server.operations.cancel(&asked).await.unwrap();
    server
        .operations
        .report(&runs, token, Report::default())
        .await
        .unwrap();
    for name in [waits, runs, asked] {
        let operation = now(&server, name.as_str()).await;
        assert!(
            !operation.done && operation.result.is_none(),
            "{operation:?}"
        );
    }
}

// OP-8
#[tokio::test]
async fn every_response_repeats_the_full_name_byte_for_byte() {
    let server = Server::start().await;
    let new = NewOperation::self_executed("test")
        .parent("projects/p-1/locations/eu")
        .id("x-1");
    let created = server.operations.create(new).await.unwrap().operation;
    let name = "projects/p-1/locations/eu/operations/x-1";
    assert_eq!(created.name(), name);
    let mut client = server.client().await;
    assert_eq!(now(&server, name).await.name, name);
    let waited = client
        .wait_operation(wait(&created.owned_name(), 1))
        .await
        .unwrap();
    assert_eq!(waited.into_inner().name, name);
    let list = client
        .list_operations(ListOperationsRequest::default())
        .await
        .unwrap();
    assert_eq!(list.into_inner().operations[0].name, name);
}

// OP-7
#[tokio::test]
async fn a_server_made_name_ends_with_operations_and_a_uuid_v7_that_never_comes_again() {
    let server = Server::start().await;
    let mut seen = std::collections::HashSet::new();
    for _ in 0..200 {
        let name = pending(&server.operations).await;
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

// OP-14
#[tokio::test]
async fn metadata_stays_on_done_operations() {
    let server = Server::start().await;
    let new = NewOperation::self_executed("test").label("team", "blue");
    let (name, token) = hold(&server.operations, new).await;
    let progress = Some(crate::support::progress(42));
    let report = Report {
        progress: progress.clone(),
        ..Report::default()
    };
    server
        .operations
        .report(&name, token, report)
        .await
        .unwrap();
    server
        .operations
        .succeed(&name, token, text("done"))
        .await
        .unwrap();
    let metadata = metadata(&now(&server, name.as_str()).await);
    assert_eq!(metadata.state(), State::Succeeded);
    assert_eq!(metadata.progress, progress);
    assert_eq!(metadata.labels["team"], "blue");
    assert_eq!(metadata.attempt, 1);
    assert!(metadata.create_time.is_some() && metadata.start_time.is_some());
    assert_eq!(metadata.end_time, metadata.update_time);
}

// BEHAVIOUR §2
#[tokio::test]
async fn a_producers_own_metadata_is_kept_byte_for_byte_to_the_end() {
    let server = Server::start().await;
    let new = NewOperation::self_executed("test").metadata(own_metadata(1));
    let (name, token) = hold(&server.operations, new).await;
    assert_eq!(
        now(&server, name.as_str()).await.metadata,
        Some(own_metadata(1))
    );
    let progress = Report {
        progress: Some(crate::support::progress(1)),
        ..Report::default()
    };
    server
        .operations
        .report(&name, token, progress)
        .await
        .unwrap();
    assert_eq!(
        now(&server, name.as_str()).await.metadata,
        Some(own_metadata(1))
    );
    let payload = longrunning::Payload::new(own_metadata(2)).unwrap();
    let newer = Report {
        metadata: Some(payload),
        ..Report::default()
    };
    server.operations.report(&name, token, newer).await.unwrap();
    server.operations.cancel(&name).await.unwrap();
    server
        .operations
        .fail(&name, token, Failure::cancelled())
        .await
        .unwrap();
    let operation = now(&server, name.as_str()).await;
    assert_eq!(operation.metadata, Some(own_metadata(2)));
    assert_eq!(error(&operation).code, 1);
}

// OP-13
#[tokio::test]
async fn our_metadata_tells_the_state_by_the_names_of_aip_216() {
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
    let server = Server::start().await;
    let waits = pending(&server.operations).await;
    let metadata_of = async |name: &str| metadata(&now(&server, name).await);
    let before = metadata_of(waits.as_str()).await;
    assert_eq!(before.state(), State::Pending);
    assert_eq!((before.queue.as_str(), before.attempt), ("nobody", 0));
    assert!(before.start_time.is_none() && before.end_time.is_none());
    let (runs, token) = running(&server.operations).await;
    assert_eq!(metadata_of(runs.as_str()).await.state(), State::Running);
    server
        .operations
        .fail(&runs, token, Failure::new(Code::Aborted, "no"))
        .await
        .unwrap();
    assert_eq!(metadata_of(runs.as_str()).await.state(), State::Failed);
    let done = succeeded(&server.operations).await;
    assert_eq!(metadata_of(done.as_str()).await.state(), State::Succeeded);
    server.operations.cancel(&waits).await.unwrap();
    assert_eq!(metadata_of(waits.as_str()).await.state(), State::Cancelled);
}

// GET-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_answers_at_once_while_a_thousand_waits_are_open() {
    let server = Server::start().await;
    let (name, token) = running(&server.operations).await;
    let mut waits = JoinSet::new();
    for _ in 0..10 {
        let client = server.client().await;
        for _ in 0..100 {
            let (mut client, request) = (client.clone(), wait(&name, 60_000));
            waits.spawn(async move { client.wait_operation(request).await.unwrap().into_inner() });
        }
    }
    let mut client = server.client().await;
    while server.operations.waiters() < 1000 {
        assert!(
            !client
                .get_operation(get(name.as_str()))
                .await
                .unwrap()
                .into_inner()
                .done
        );
    }
    let begun = tokio::time::Instant::now();
    client.get_operation(get(name.as_str())).await.unwrap();
    assert!(begun.elapsed().as_secs() < 30);
    server
        .operations
        .succeed(&name, token, text("all"))
        .await
        .unwrap();
    while let Some(operation) = waits.join_next().await {
        assert_eq!(response(&operation.unwrap()), text("all"));
    }
    assert_eq!(server.operations.waiters(), 0);
}

// GET-2
#[tokio::test]
async fn an_unknown_name_is_not_found() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let problem = problem(client.get_operation(get("operations/unknown")).await);
    assert_eq!(problem.key(), (Grpc::NotFound, "OPERATION_NOT_FOUND"));
    assert_eq!(problem.info.metadata["name"], "operations/unknown");
    assert!(problem.message.contains("operations/unknown"));
}

// GET-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_created_operation_can_be_read_on_any_connection_when_create_returns() {
    let server = Server::start().await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(server.client().await);
    }
    let mut creators = JoinSet::new();
    for mut client in clients {
        let operations = server.operations.clone();
        creators.spawn(async move {
            for _ in 0..200 {
                let name = pending(&operations).await;
                let read = client.get_operation(get(name.as_str())).await.unwrap();
                assert_eq!(read.into_inner().name, name.as_str());
            }
        });
    }
    while let Some(creator) = creators.join_next().await {
        creator.unwrap();
    }
}
