//! WaitOperation over gRPC: when it returns, and the state that it returns.

use std::time::Duration;

use longrunning::{
    Failure, Limits, NewOperation, QueueName, RetryPolicy, State, WorkerId, proto::google::rpc,
};
use tokio::{task::JoinSet, time::Instant};
use tonic::Code;

use crate::support::{
    GrpcTestServer,
    assertions::assert_error_code,
    create_leased, create_pending, create_running, create_succeeded, decode_metadata,
    error_details::expect_status_error,
    expect_response, get_request,
    operations::{wait_for_waiters, wait_request_without_timeout},
    string_value, wait_request,
};

const MS: Duration = Duration::from_millis(1);

// Rules: WAIT-1
#[tokio::test]
async fn wait_on_done_operation_returns_immediately() {
    let server = GrpcTestServer::start().await;
    let name = create_succeeded(&server.operations).await;
    let start = Instant::now();
    let waited = server
        .client()
        .await
        .wait_operation(wait_request(&name, 60_000))
        .await
        .unwrap();
    assert_eq!(
        expect_response(&waited.into_inner()),
        string_value("result")
    );
    assert!(start.elapsed() < 30_000 * MS);
}

// Rules: WAIT-2
#[tokio::test]
async fn wait_timeout_returns_latest_state() {
    let server = GrpcTestServer::start().await;
    let (name, token) = create_running(&server.operations).await;
    let mut client = server.client().await;
    let start = Instant::now();
    // Long enough for the report to become durable on a slow disk.
    let request = wait_request(&name, 2000);
    let wait_task = tokio::spawn(async move { client.wait_operation(request).await });
    wait_for_waiters(&server.operations, 1).await;
    let report = longrunning::Report {
        progress: Some(crate::support::progress(7)),
        ..Default::default()
    };
    server
        .operations
        .report(&name, token, report)
        .await
        .unwrap();
    let operation = wait_task.await.unwrap().unwrap().into_inner();
    assert!(!operation.done);
    assert_eq!(decode_metadata(&operation).progress.unwrap().done_units, 7);
    assert!(
        (2000 * MS..30_000 * MS).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
}

// Rules: WAIT-2
#[tokio::test]
async fn wait_returns_on_success_failure_and_cancel() {
    let server = GrpcTestServer::start().await;
    let (succeeding, succeeding_token) = create_running(&server.operations).await;
    let (failing, failing_token) = create_running(&server.operations).await;
    let queued = create_pending(&server.operations).await;
    let mut wait_tasks = JoinSet::new();
    for name in [&succeeding, &failing, &queued] {
        let (mut client, request) = (server.client().await, wait_request_without_timeout(name));
        wait_tasks.spawn(async move { client.wait_operation(request).await.unwrap().into_inner() });
    }
    wait_for_waiters(&server.operations, 3).await;
    server
        .operations
        .succeed(&succeeding, succeeding_token, string_value("yes"))
        .await
        .unwrap();
    let failure = Failure::new(rpc::Code::Internal, "no");
    server
        .operations
        .fail(&failing, failing_token, failure)
        .await
        .unwrap();
    server.operations.cancel(&queued).await.unwrap();
    for operation in wait_tasks.join_all().await {
        if operation.name == succeeding.as_str() {
            assert_eq!(expect_response(&operation), string_value("yes"));
        } else if operation.name == failing.as_str() {
            assert_error_code(&operation, Code::Internal);
        } else {
            assert_error_code(&operation, Code::Cancelled);
        }
    }
    assert_eq!(server.operations.waiter_count(), 0);
}

// A retry does not complete the operation.
// Rules: WAIT-2
#[tokio::test]
async fn wait_ignores_progress_and_retries() {
    let server = GrpcTestServer::start().await;
    let retry = RetryPolicy::with_max_attempts(2).with_initial_backoff(Duration::ZERO);
    let new = NewOperation::queued("q").retry_policy(retry);
    let name = server
        .operations
        .create(new)
        .await
        .unwrap()
        .operation
        .name_owned();
    let (mut client, request) = (server.client().await, wait_request_without_timeout(&name));
    let wait_task = tokio::spawn(async move { client.wait_operation(request).await });
    wait_for_waiters(&server.operations, 1).await;
    let queue = QueueName::parse("q").unwrap();
    let worker = WorkerId::new("w");
    let token = server
        .operations
        .lease(&queue, &worker)
        .await
        .unwrap()
        .lease()
        .unwrap()
        .token;
    let failure = Failure::new(rpc::Code::Unavailable, "again").retryable();
    server.operations.fail(&name, token, failure).await.unwrap();
    let token = server
        .operations
        .lease(&queue, &worker)
        .await
        .unwrap()
        .lease()
        .unwrap()
        .token;
    assert_eq!(server.operations.waiter_count(), 1);
    server
        .operations
        .succeed(&name, token, string_value("at last"))
        .await
        .unwrap();
    let operation = wait_task.await.unwrap().unwrap().into_inner();
    assert_eq!(expect_response(&operation), string_value("at last"));
    assert_eq!(decode_metadata(&operation).attempt, 2);
}

// Rules: WAIT-4
#[tokio::test]
async fn wait_over_waiter_limit_returns_current_state() {
    let limits = Limits::default().with_max_waiters(1);
    let server =
        GrpcTestServer::start_with(crate::support::operations_builder().limits(limits)).await;
    let (name, token) = create_running(&server.operations).await;
    let mut client = server.client().await;
    let (mut other_client, request) = (client.clone(), wait_request_without_timeout(&name));
    let first = tokio::spawn(async move { other_client.wait_operation(request).await });
    wait_for_waiters(&server.operations, 1).await;
    let current = client
        .wait_operation(wait_request_without_timeout(&name))
        .await
        .unwrap()
        .into_inner();
    assert!(!current.done);
    server
        .operations
        .succeed(&name, token, string_value("late"))
        .await
        .unwrap();
    assert!(first.await.unwrap().unwrap().into_inner().done);
}

// Rules: WAIT-8
#[tokio::test]
async fn wait_on_unknown_name_fails_and_delete_wakes_waiters() {
    let server = GrpcTestServer::start().await;
    let mut client = server.client().await;
    let unknown = "operations/unknown".parse().unwrap();
    let unknown = expect_status_error(client.wait_operation(wait_request(&unknown, 60_000)).await);
    assert_eq!(
        unknown.code_and_reason(),
        (Code::NotFound, "OPERATION_NOT_FOUND")
    );

    let (name, _) = create_running(&server.operations).await;
    let (mut other_client, request) = (client.clone(), wait_request_without_timeout(&name));
    let wait_task = tokio::spawn(async move { other_client.wait_operation(request).await });
    wait_for_waiters(&server.operations, 1).await;
    server.operations.delete(&name).await.unwrap();
    let deleted = expect_status_error(wait_task.await.unwrap());
    assert_eq!(
        deleted.code_and_reason(),
        (Code::NotFound, "OPERATION_NOT_FOUND")
    );
}

// A wait ends with its operation and does not move to another of the same name.
// Rules: WAIT-8
#[tokio::test]
async fn wait_is_not_found_when_name_is_reused() {
    let server = GrpcTestServer::start().await;
    let new = || NewOperation::self_executed("test").id("again");
    let (name, token) = create_leased(&server.operations, new()).await;
    let (mut client, request) = (server.client().await, wait_request_without_timeout(&name));
    let wait_task = tokio::spawn(async move { client.wait_operation(request).await });
    wait_for_waiters(&server.operations, 1).await;
    server.operations.delete(&name).await.unwrap();
    server
        .operations
        .succeed(&name, token, string_value("unseen"))
        .await
        .unwrap();
    create_leased(&server.operations, new()).await;
    assert_eq!(
        expect_status_error(wait_task.await.unwrap()).code,
        Code::NotFound
    );
}

// Rules: WAIT-9
#[tokio::test]
async fn disconnected_client_frees_its_waiter() {
    let server = GrpcTestServer::start().await;
    let (name, _) = create_running(&server.operations).await;
    let mut waits = JoinSet::new();
    for _ in 0..100 {
        let (mut client, request) = (server.client().await, wait_request_without_timeout(&name));
        waits.spawn(async move { client.wait_operation(request).await });
    }
    wait_for_waiters(&server.operations, 100).await;
    // Aborting the tasks resets their streams and closes their connections.
    waits.shutdown().await;
    wait_for_waiters(&server.operations, 0).await;
    assert!(!server.operations.get_cached(&name).unwrap().is_done());
}

// Rules: WAIT-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_completion_wakes_10000_waits() {
    let server = GrpcTestServer::start().await;
    let (name, token) = create_running(&server.operations).await;
    let mut waits = JoinSet::new();
    for _ in 0..10_000 {
        let (operations, name) = (server.operations.clone(), name.clone());
        waits.spawn(async move { operations.wait(&name, Duration::from_secs(60)).await });
    }
    wait_for_waiters(&server.operations, 10_000).await;
    server
        .operations
        .succeed(&name, token, string_value("all"))
        .await
        .unwrap();
    while let Some(result) = waits.join_next().await {
        assert_eq!(result.unwrap().unwrap().state(), State::Succeeded);
    }
}

// Rules: WAIT-12
#[tokio::test]
async fn get_is_not_blocked_by_100_waits_on_same_connection() {
    let server = GrpcTestServer::start().await;
    let (name, _) = create_running(&server.operations).await;
    let mut client = server.client().await;
    let mut waits = JoinSet::new();
    for _ in 0..100 {
        let (mut client, request) = (client.clone(), wait_request_without_timeout(&name));
        waits.spawn(async move { client.wait_operation(request).await });
    }
    wait_for_waiters(&server.operations, 100).await;
    let get = client.get_operation(get_request(name.as_str()));
    assert!(!get.await.unwrap().into_inner().done);
}
