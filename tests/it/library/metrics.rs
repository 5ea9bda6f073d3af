//! Metrics in the OpenMetrics text that Prometheus scrapes.

use std::time::Duration;

use longrunning::{
    Any, Context, Failure, NewOperation, Operations, QueueName, RetryPolicy, WorkerId,
    proto::google::rpc::Code,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::sync::mpsc;

use crate::support::{
    GrpcTestServer, create_running, get_request,
    operations::{start_operations, wait_for_waiters},
    operations_builder, string_value,
    test_storage::{TestStorage, WriteMode},
    wait_request,
};

/// Time limit for one step of a test.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

fn scrape_metrics(operations: &Operations) -> String {
    let (mut registry, mut text) = (Registry::default(), String::new());
    operations.metrics().register(&mut registry);
    encode(&mut text, &registry).unwrap();
    text
}

/// Waits until the metrics have this line: a series with its value.
async fn wait_for_series(operations: &Operations, line: &str) {
    let series_exists = async {
        while !scrape_metrics(operations).lines().any(|text| text == line) {
            tokio::task::yield_now().await;
        }
    };
    if tokio::time::timeout(STEP_TIMEOUT, series_exists)
        .await
        .is_err()
    {
        panic!("expected {line} in {}", scrape_metrics(operations));
    }
}

fn rpc_series(method: &str, code: &str) -> String {
    format!(
        "longrunning_grpc_requests_total{{method=\"google.longrunning.Operations/{method}\",code=\"{code}\"}} 1"
    )
}

// Rules: MET-1
#[tokio::test]
async fn oversized_message_is_counted_as_resource_exhausted() {
    let server = GrpcTestServer::start().await;
    let name = "x".repeat(5 << 20);
    let rejected = server
        .client()
        .await
        .get_operation(get_request(&name))
        .await;
    assert_eq!(rejected.unwrap_err().code(), tonic::Code::ResourceExhausted);
    wait_for_series(
        &server.operations,
        &rpc_series("GetOperation", "RESOURCE_EXHAUSTED"),
    )
    .await;
}

// Rules: MET-1
#[tokio::test]
async fn abandoned_wait_is_counted_as_cancelled() {
    let server = GrpcTestServer::start().await;
    let (name, _) = create_running(&server.operations).await;
    let (mut client, request) = (server.client().await, wait_request(&name, 600_000));
    let wait_task = tokio::spawn(async move { client.wait_operation(request).await });
    wait_for_waiters(&server.operations, 1).await;
    wait_task.abort();
    wait_for_series(
        &server.operations,
        &rpc_series("WaitOperation", "CANCELLED"),
    )
    .await;
}

/// Returns the queues that have a depth series, sorted.
fn queues_with_depth_series(operations: &Operations) -> Vec<String> {
    let lines = scrape_metrics(operations);
    let mut queues: Vec<_> = lines
        .lines()
        .filter_map(|line| line.strip_prefix("longrunning_queue_depth{queue=\""))
        .map(|line| line.split('"').next().unwrap().to_owned())
        .collect();
    queues.sort();
    queues
}

// Rules: MET-3
#[tokio::test]
async fn queue_with_only_rejected_operations_has_no_depth_series() {
    let storage = TestStorage::new();
    let builder = operations_builder().storage(storage.clone());
    let operations = builder.start().await.unwrap();
    let new = |queue: &str| NewOperation::queued(queue).id("mine");
    operations.create(new("first")).await.unwrap();
    let duplicate = operations.create(new("second")).await.unwrap_err();
    assert_eq!(duplicate.reason(), "OPERATION_EXISTS");
    storage.set_write_mode(WriteMode::Fail);
    let unavailable = operations.create(NewOperation::queued("third")).await;
    assert_eq!(unavailable.unwrap_err().reason(), "STORE_UNAVAILABLE");
    assert_eq!(queues_with_depth_series(&operations), ["first"]);
}

// Rules: MET-3
#[tokio::test]
async fn empty_queue_metric_series_is_removed_after_cancel() {
    let operations = start_operations().await;
    let new = || NewOperation::queued("q");
    let first = operations.create(new()).await.unwrap().operation;
    let second = operations.create(new()).await.unwrap().operation;
    operations.cancel(&first.name_owned()).await.unwrap();
    assert_eq!(queues_with_depth_series(&operations), ["q"]);
    operations.cancel(&second.name_owned()).await.unwrap();
    assert!(queues_with_depth_series(&operations).is_empty());
}

fn attempt_series(outcome: &str) -> String {
    format!("longrunning_attempts_total{{queue=\"q\",outcome=\"{outcome}\"}} 1")
}

fn unavailable_failure() -> Failure {
    Failure::new(Code::Unavailable, "busy").retryable()
}

// Rules: MET-2
#[tokio::test]
async fn last_retryable_attempt_is_counted_as_failed() {
    let operations = operations_builder()
        .handler("q", 1, |_: Context| async {
            Err::<Any, _>(unavailable_failure())
        })
        .start()
        .await
        .unwrap();
    let new = NewOperation::queued("q")
        .retry_policy(RetryPolicy::with_max_attempts(2).with_initial_backoff(Duration::ZERO));
    operations.create(new).await.unwrap();
    wait_for_series(&operations, &attempt_series("failed")).await;
    wait_for_series(&operations, &attempt_series("retried")).await;
}

// Rules: MET-2
#[tokio::test]
async fn failed_attempt_after_cancel_is_counted_as_cancelled() {
    let (started_tx, mut started_rx) = mpsc::channel(1);
    let handler = move |context: Context| {
        let started_tx = started_tx.clone();
        async move {
            started_tx.send(()).await.unwrap();
            context.cancelled().await;
            Err::<Any, _>(unavailable_failure())
        }
    };
    let builder = operations_builder().handler("q", 1, handler);
    let operations = builder.start().await.unwrap();
    let new = NewOperation::queued("q").retry_policy(RetryPolicy::with_max_attempts(9));
    let name = operations.create(new).await.unwrap().operation.name_owned();
    started_rx.recv().await.unwrap();
    operations.cancel(&name).await.unwrap();
    wait_for_series(&operations, &attempt_series("cancelled")).await;
}

// Rules: MET-3
#[tokio::test]
async fn empty_queue_metric_series_is_removed_after_finish() {
    let operations = start_operations().await;
    operations.submit("q", string_value("")).await.unwrap();
    let (queue, worker) = (QueueName::parse("q").unwrap(), WorkerId::new("w"));
    let leased = operations.lease(&queue, &worker).await.unwrap();
    let token = leased.lease().unwrap().token;
    let name = leased.name_owned();
    operations
        .succeed(&name, token, string_value(""))
        .await
        .unwrap();
    assert!(queues_with_depth_series(&operations).is_empty());
}

// Rules: MET-4
#[tokio::test]
async fn deleted_operations_are_counted_apart_until_they_are_removed() {
    let operations = start_operations().await;
    let (running, token) = create_running(&operations).await;
    let pending = operations.create(NewOperation::queued("q")).await.unwrap();
    let pending = pending.operation.name_owned();
    for name in [&running, &pending] {
        operations.delete(name).await.unwrap();
    }
    let series = |state: &str, count: u32| {
        format!("longrunning_deleted_operations{{state=\"{state}\"}} {count}")
    };
    let scraped = scrape_metrics(&operations);
    for line in [series("PENDING", 1), series("RUNNING", 1)] {
        assert!(scraped.contains(&line), "expected {line} in {scraped}");
    }
    operations.cancel_any(&pending).await.unwrap();
    operations
        .succeed(&running, token, string_value("unseen"))
        .await
        .unwrap();
    let scraped = scrape_metrics(&operations);
    for line in [series("PENDING", 0), series("RUNNING", 0)] {
        assert!(scraped.contains(&line), "expected {line} in {scraped}");
    }
}
