//! What the metrics say, in the text that a scraper reads.

use std::time::Duration;

use longrunning::{
    Any, Context, Failure, NewOperation, Operations, QueueName, RetryPolicy, WorkerId,
    proto::google::rpc::Code,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::sync::mpsc;

use crate::support::{
    Server, get,
    journal::{Gate, TestJournal},
    running, text, wait,
};

/// So long a count may take before the test has failed.
const GUARD: Duration = Duration::from_secs(30);

fn scraped(operations: &Operations) -> String {
    let (mut registry, mut text) = (Registry::default(), String::new());
    operations.metrics().register(&mut registry);
    encode(&mut text, &registry).unwrap();
    text
}

/// Waits until a line is there.
async fn counted(operations: &Operations, line: &str) {
    let seen = async {
        while !scraped(operations).lines().any(|text| text == line) {
            tokio::task::yield_now().await;
        }
    };
    if tokio::time::timeout(GUARD, seen).await.is_err() {
        panic!("{line} is not in {}", scraped(operations));
    }
}

fn rpcs(method: &str, code: &str) -> String {
    format!(
        "longrunning_rpcs_total{{method=\"google.longrunning.Operations/{method}\",code=\"{code}\"}} 1"
    )
}

#[tokio::test]
async fn an_oversized_message_counts_as_the_code_that_its_caller_sees() {
    let server = Server::start().await;
    let name = "x".repeat(5 << 20);
    let refused = server.client().await.get_operation(get(&name)).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::ResourceExhausted);
    counted(
        &server.operations,
        &rpcs("GetOperation", "RESOURCE_EXHAUSTED"),
    )
    .await;
}

#[tokio::test]
async fn a_wait_whose_client_left_counts_as_cancelled() {
    let server = Server::start().await;
    let (name, _) = running(&server.operations).await;
    let (mut client, request) = (server.client().await, wait(&name, 600_000));
    let waiting = tokio::spawn(async move { client.wait_operation(request).await });
    while server.operations.waiters() == 0 {
        tokio::task::yield_now().await;
    }
    waiting.abort();
    counted(&server.operations, &rpcs("WaitOperation", "CANCELLED")).await;
}

/// The queues that have a depth.
fn queues(operations: &Operations) -> Vec<String> {
    let lines = scraped(operations);
    let mut queues: Vec<_> = lines
        .lines()
        .filter_map(|line| line.strip_prefix("longrunning_queue_depth{queue=\""))
        .map(|line| line.split('"').next().unwrap().to_owned())
        .collect();
    queues.sort();
    queues
}

#[tokio::test]
async fn a_queue_that_only_refused_operations_named_has_no_series() {
    let journal = TestJournal::new();
    let builder = crate::support::operations().journal(journal.clone());
    let operations = builder.start().await.unwrap();
    let new = |queue: &str| NewOperation::queued(queue).id("mine");
    operations.create(new("first")).await.unwrap();
    let taken = operations.create(new("second")).await.unwrap_err();
    assert_eq!(taken.reason(), "OPERATION_EXISTS");
    journal.set(Gate::Broken);
    let lost = operations.create(NewOperation::queued("third")).await;
    assert_eq!(lost.unwrap_err().reason(), "STORE_UNAVAILABLE");
    assert_eq!(queues(&operations), ["first"]);
}

#[tokio::test]
async fn a_queue_whose_operations_are_finished_has_no_series_any_more() {
    let operations = crate::support::operations().start().await.unwrap();
    let new = || NewOperation::queued("q");
    let first = operations.create(new()).await.unwrap().operation;
    let second = operations.create(new()).await.unwrap().operation;
    operations.cancel(&first.owned_name()).await.unwrap();
    assert_eq!(queues(&operations), ["q"]);
    operations.cancel(&second.owned_name()).await.unwrap();
    assert!(queues(&operations).is_empty());
}

fn attempts(end: &str) -> String {
    format!("longrunning_attempts_total{{queue=\"q\",end=\"{end}\"}} 1")
}

fn busy() -> Failure {
    Failure::new(Code::Unavailable, "busy").retryable()
}

#[tokio::test]
async fn an_attempt_that_may_be_retried_but_was_the_last_counts_as_failed() {
    let operations = crate::support::operations()
        .handler("q", 1, |_: Context| async { Err::<Any, _>(busy()) })
        .start()
        .await
        .unwrap();
    let new = NewOperation::queued("q").retry(RetryPolicy {
        initial_backoff: Duration::ZERO,
        ..RetryPolicy::attempts(2)
    });
    operations.create(new).await.unwrap();
    counted(&operations, &attempts("failed")).await;
    counted(&operations, &attempts("retried")).await;
}

#[tokio::test]
async fn an_attempt_that_was_cancelled_counts_as_cancelled_however_it_failed() {
    let (started, mut starts) = mpsc::channel(1);
    let handler = move |context: Context| {
        let started = started.clone();
        async move {
            started.send(()).await.unwrap();
            context.cancelled().await;
            Err::<Any, _>(busy())
        }
    };
    let builder = crate::support::operations().handler("q", 1, handler);
    let operations = builder.start().await.unwrap();
    let new = NewOperation::queued("q").retry(RetryPolicy::attempts(9));
    let name = operations.create(new).await.unwrap().operation.owned_name();
    starts.recv().await.unwrap();
    operations.cancel(&name).await.unwrap();
    counted(&operations, &attempts("cancelled")).await;
}

#[tokio::test]
async fn a_queue_whose_last_operation_was_claimed_and_finished_has_no_series_any_more() {
    let operations = crate::support::operations().start().await.unwrap();
    operations.submit("q", text("")).await.unwrap();
    let (queue, worker) = (QueueName::parse("q").unwrap(), WorkerId::new("w"));
    let leased = operations.lease(&queue, &worker).await.unwrap();
    let token = leased.lease().unwrap().token;
    let name = leased.owned_name();
    operations.succeed(&name, token, text("")).await.unwrap();
    assert!(queues(&operations).is_empty());
}
