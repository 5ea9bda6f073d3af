//! WaitOperation: when it answers, and with what. Races with the end of an
//! operation are in `races`.

use std::time::Duration;

use longrunning::{Failure, Limits, NewOperation, Operations, State, proto::google};
use tokio::{task::JoinSet, time::Instant};
use tonic::Code;

use crate::support::{
    Server, error, get, hold, metadata, pending, problem::problem, response, running, succeeded,
    text, wait,
};

const MS: Duration = Duration::from_millis(1);

fn endless(name: &longrunning::OperationName) -> google::longrunning::WaitOperationRequest {
    google::longrunning::WaitOperationRequest {
        name: name.to_string(),
        timeout: None,
    }
}

/// Waits until so many waits are open.
async fn waiters(operations: &Operations, count: usize) {
    while operations.waiters() != count {
        tokio::task::yield_now().await;
    }
}

// WAIT-1
#[tokio::test]
async fn a_done_operation_is_answered_at_once() {
    let server = Server::start().await;
    let name = succeeded(&server.operations).await;
    let begun = Instant::now();
    let answer = server
        .client()
        .await
        .wait_operation(wait(&name, 60_000))
        .await
        .unwrap();
    assert_eq!(response(&answer.into_inner()), text("result"));
    assert!(begun.elapsed() < 30_000 * MS);
}

// WAIT-2
#[tokio::test]
async fn a_wait_that_runs_out_answers_the_latest_state_with_ok() {
    let server = Server::start().await;
    let (name, token) = running(&server.operations).await;
    let mut client = server.client().await;
    let begun = Instant::now();
    // Long enough for the report, also on a slow disk.
    let request = wait(&name, 2000);
    let answer = tokio::spawn(async move { client.wait_operation(request).await });
    waiters(&server.operations, 1).await;
    let report = longrunning::Report {
        progress: Some(crate::support::progress(7)),
        ..Default::default()
    };
    server
        .operations
        .report(&name, token, report)
        .await
        .unwrap();
    let operation = answer.await.unwrap().unwrap().into_inner();
    assert!(!operation.done);
    assert_eq!(metadata(&operation).progress.unwrap().done_units, 7);
    assert!(
        (2000 * MS..30_000 * MS).contains(&begun.elapsed()),
        "{:?}",
        begun.elapsed()
    );
}

// WAIT-2
#[tokio::test]
async fn a_wait_answers_when_the_operation_is_done_however_it_ends() {
    let server = Server::start().await;
    let (good, good_token) = running(&server.operations).await;
    let (bad, bad_token) = running(&server.operations).await;
    let queued = pending(&server.operations).await;
    let mut answers = JoinSet::new();
    for (at, name) in [&good, &bad, &queued].into_iter().enumerate() {
        let (mut client, request) = (server.client().await, endless(name));
        answers.spawn(async move {
            (
                at,
                client.wait_operation(request).await.unwrap().into_inner(),
            )
        });
    }
    waiters(&server.operations, 3).await;
    server
        .operations
        .succeed(&good, good_token, text("yes"))
        .await
        .unwrap();
    let failure = Failure::new(google::rpc::Code::Internal, "no");
    server
        .operations
        .fail(&bad, bad_token, failure)
        .await
        .unwrap();
    server.operations.cancel(&queued).await.unwrap();
    while let Some(answer) = answers.join_next().await {
        match answer.unwrap() {
            (0, operation) => assert_eq!(response(&operation), text("yes")),
            (1, operation) => assert_eq!(error(&operation).code, 13),
            (_, operation) => assert_eq!(error(&operation).code, 1),
        }
    }
    assert_eq!(server.operations.waiters(), 0);
}

// WAIT-2: a retry is no end.
#[tokio::test]
async fn a_wait_sleeps_through_progress_and_retries() {
    let server = Server::start().await;
    let retry = longrunning::RetryPolicy {
        initial_backoff: Duration::ZERO,
        ..longrunning::RetryPolicy::attempts(2)
    };
    let new = NewOperation::queued("q").retry(retry);
    let name = server
        .operations
        .create(new)
        .await
        .unwrap()
        .operation
        .owned_name();
    let (mut client, request) = (server.client().await, endless(&name));
    let answer = tokio::spawn(async move { client.wait_operation(request).await });
    waiters(&server.operations, 1).await;
    let queue = longrunning::QueueName::parse("q").unwrap();
    let worker = longrunning::WorkerId::new("w");
    let lease = server
        .operations
        .lease(&queue, &worker)
        .await
        .unwrap()
        .lease()
        .unwrap()
        .token;
    let failure = Failure::new(google::rpc::Code::Unavailable, "again").retryable();
    server.operations.fail(&name, lease, failure).await.unwrap();
    let lease = server
        .operations
        .lease(&queue, &worker)
        .await
        .unwrap()
        .lease()
        .unwrap()
        .token;
    assert_eq!(server.operations.waiters(), 1);
    server
        .operations
        .succeed(&name, lease, text("at last"))
        .await
        .unwrap();
    let operation = answer.await.unwrap().unwrap().into_inner();
    assert_eq!(response(&operation), text("at last"));
    assert_eq!(metadata(&operation).attempt, 2);
}

// WAIT-4
#[tokio::test]
async fn over_the_limit_of_waiters_a_wait_answers_early_and_does_not_fail() {
    let limits = Limits {
        max_waiters: 1,
        ..Limits::default()
    };
    let server = Server::with(crate::support::operations().limits(limits)).await;
    let (name, token) = running(&server.operations).await;
    let mut client = server.client().await;
    let (mut other, request) = (client.clone(), endless(&name));
    let first = tokio::spawn(async move { other.wait_operation(request).await });
    waiters(&server.operations, 1).await;
    let early = client
        .wait_operation(endless(&name))
        .await
        .unwrap()
        .into_inner();
    assert!(!early.done);
    server
        .operations
        .succeed(&name, token, text("late"))
        .await
        .unwrap();
    assert!(first.await.unwrap().unwrap().into_inner().done);
}

// WAIT-8
#[tokio::test]
async fn an_unknown_name_is_not_found_at_once_and_a_deleted_one_wakes_its_waiters() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let unknown = "operations/unknown".parse().unwrap();
    let unknown = problem(client.wait_operation(wait(&unknown, 60_000)).await);
    assert_eq!(unknown.key(), (Code::NotFound, "OPERATION_NOT_FOUND"));

    let (name, _) = running(&server.operations).await;
    let (mut other, request) = (client.clone(), endless(&name));
    let answer = tokio::spawn(async move { other.wait_operation(request).await });
    waiters(&server.operations, 1).await;
    server.operations.delete(&name).await.unwrap();
    let deleted = problem(answer.await.unwrap());
    assert_eq!(deleted.key(), (Code::NotFound, "OPERATION_NOT_FOUND"));
}

// WAIT-8: another operation of the same name is not the one that was waited for.
#[tokio::test]
async fn a_wait_ends_with_not_found_when_its_name_is_taken_by_another_operation() {
    let server = Server::start().await;
    let new = || NewOperation::self_executed("test").id("again");
    let (name, token) = hold(&server.operations, new()).await;
    let (mut client, request) = (server.client().await, endless(&name));
    let answer = tokio::spawn(async move { client.wait_operation(request).await });
    waiters(&server.operations, 1).await;
    server.operations.delete(&name).await.unwrap();
    server
        .operations
        .succeed(&name, token, text("unseen"))
        .await
        .unwrap();
    hold(&server.operations, new()).await;
    assert_eq!(problem(answer.await.unwrap()).code, Code::NotFound);
}

// WAIT-9
#[tokio::test]
async fn a_client_that_goes_away_frees_its_waiter() {
    let server = Server::start().await;
    let (name, _) = running(&server.operations).await;
    let mut waits = JoinSet::new();
    for _ in 0..100 {
        let (mut client, request) = (server.client().await, endless(&name));
        waits.spawn(async move { client.wait_operation(request).await });
    }
    waiters(&server.operations, 100).await;
    // Their streams are reset and their connections close.
    waits.shutdown().await;
    waiters(&server.operations, 0).await;
    assert!(!server.operations.get(&name).unwrap().is_done());
}

// WAIT-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_completion_wakes_ten_thousand_waits() {
    let server = Server::start().await;
    let (name, token) = running(&server.operations).await;
    let mut waits = JoinSet::new();
    for _ in 0..10_000 {
        let (operations, name) = (server.operations.clone(), name.clone());
        waits.spawn(async move { operations.wait(&name, Duration::from_secs(60)).await });
    }
    waiters(&server.operations, 10_000).await;
    server
        .operations
        .succeed(&name, token, text("all"))
        .await
        .unwrap();
    while let Some(answer) = waits.join_next().await {
        assert_eq!(answer.unwrap().unwrap().state(), State::Succeeded);
    }
}

// WAIT-12
#[tokio::test]
async fn a_hundred_waits_on_one_connection_do_not_block_its_gets() {
    let server = Server::start().await;
    let (name, _) = running(&server.operations).await;
    let mut client = server.client().await;
    let mut waits = JoinSet::new();
    for _ in 0..100 {
        let (mut client, request) = (client.clone(), endless(&name));
        waits.spawn(async move { client.wait_operation(request).await });
    }
    waiters(&server.operations, 100).await;
    let get = client.get_operation(get(name.as_str()));
    assert!(!get.await.unwrap().into_inner().done);
}
