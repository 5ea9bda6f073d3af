//! `longrunning::client::Client`: services that create operations on a remote server and
//! execute them in their own process.

use longrunning::{
    Any, Context, Failure, NewOperation, OperationName, Operations, State,
    client::{Client, RunningOperation},
};
use tokio::{
    sync::mpsc,
    time::{Duration, Instant, sleep},
};
use tonic::Code;

use crate::support::{
    assertions::assert_failed_with, expect_response, flaky_channel::FlakyChannel,
    operations::start_operations, string_value,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

async fn start_client() -> (Operations, FlakyChannel, Client) {
    let operations = start_operations().await;
    let network = FlakyChannel::new(&operations);
    let client = Client::new(network.channel(), "c").unwrap();
    (operations, network, client)
}

fn self_executed() -> NewOperation {
    NewOperation::self_executed("c")
}

fn operation_name(running: &RunningOperation) -> OperationName {
    running.operation.name.parse().unwrap()
}

/// Returns a handler that runs for `run_time`.
fn sleeping_handler(run_time: Duration) -> impl longrunning::Handler {
    move |_: Context| async move {
        sleep(run_time).await;
        Ok::<Any, Failure>(string_value("done"))
    }
}

/// A handler that runs until it is cancelled.
async fn run_until_cancelled(context: Context) -> Result<Any, Failure> {
    context.cancelled().await;
    Err(Failure::cancelled())
}

// Rules: CLIENT-7
#[tokio::test(start_paused = true)]
async fn started_operation_is_readable_immediately_and_runs_locally() {
    let (operations, _network, client) = start_client().await;
    let new = self_executed().lease_duration(SECOND).label("shelf", "7");
    let running = client
        .start(new, sleeping_handler(60 * SECOND))
        .await
        .unwrap();
    assert!(!running.already_existed && !running.operation.done);
    let name = operation_name(&running);
    let now = operations.get_cached(&name).unwrap();
    assert_eq!((now.state(), now.attempt()), (State::Running, 1));
    assert_eq!(now.labels().iter().next(), Some(("shelf", "7")));
    let last = running.join().await.unwrap();
    assert_eq!(expect_response(&last), string_value("done"));
    assert_eq!(operations.get_cached(&name).unwrap().to_proto(), last);
}

// Rules: CLIENT-2
#[tokio::test(start_paused = true)]
async fn cancel_by_client_or_creator_reaches_handler() {
    let (operations, _network, client) = start_client().await;
    for by_client in [true, false] {
        let new = self_executed().lease_duration(HOUR);
        let running = client.start(new, run_until_cancelled).await.unwrap();
        let (name, cancellation_token) = (operation_name(&running), running.cancellation_token());
        // Let the directive stream open.
        sleep(SECOND).await;
        let cancel_time = Instant::now();
        if by_client {
            operations.cancel(&name).await.unwrap();
            cancellation_token.cancelled().await;
        } else {
            cancellation_token.cancel();
        }
        let last = running.join().await.unwrap();
        assert_failed_with(&last, Code::Cancelled, "OPERATION_CANCELLED");
        assert_eq!(
            operations.get_cached(&name).unwrap().state(),
            State::Cancelled
        );
        assert!(
            cancel_time.elapsed() < SECOND,
            "{:?}",
            cancel_time.elapsed()
        );
    }
}

// Rules: CLIENT-7, CREATE-4
#[tokio::test(start_paused = true)]
async fn request_is_executed_once_across_creators() {
    let (operations, network, client) = start_client().await;
    let (run_tx, mut run_rx) = mpsc::unbounded_channel();
    let handler = move |_: Context| {
        run_tx.send(()).unwrap();
        async {
            sleep(10 * SECOND).await;
            Ok::<Any, Failure>(string_value("once"))
        }
    };
    let new = || self_executed().request_id("r");
    let first = client.start(new(), handler.clone()).await.unwrap();
    let again = client.start(new(), handler.clone()).await.unwrap();
    assert!(again.already_existed && !first.already_existed);
    assert_eq!(again.operation.name, first.operation.name);
    let name = operation_name(&first);
    assert_eq!(again.join().await.unwrap().name, name.to_string());
    first.join().await.unwrap();
    assert_eq!(
        operations.get_cached(&name).unwrap().state(),
        State::Succeeded
    );
    // A later request returns the completed operation.
    let late = client.start(new(), handler.clone()).await.unwrap();
    assert!(late.already_existed && late.operation.done);
    let other_client = Client::new(network.channel(), "d").unwrap();
    let elsewhere = other_client.start(new(), handler).await.unwrap();
    assert!(elsewhere.already_existed && elsewhere.operation.done);
    assert_eq!(run_rx.recv().await, Some(()));
    assert!(run_rx.try_recv().is_err(), "expected exactly one run");
}

// Rules: CLIENT-3
#[tokio::test(start_paused = true)]
async fn client_shutdown_waits_for_short_work_and_releases_rest() {
    let (operations, _network, client) = start_client().await;
    let short = client
        .start(self_executed(), sleeping_handler(5 * SECOND))
        .await
        .unwrap();
    let long = client
        .start(self_executed(), sleeping_handler(HOUR))
        .await
        .unwrap();
    let (short, long) = (operation_name(&short), operation_name(&long));
    let shutdown_start = Instant::now();
    client.shutdown(10 * SECOND).await;
    let elapsed = shutdown_start.elapsed();
    assert!((10 * SECOND..11 * SECOND).contains(&elapsed), "{elapsed:?}");
    assert_eq!(
        operations.get_cached(&short).unwrap().state(),
        State::Succeeded
    );
    let lost = operations.get_cached(&long).unwrap().to_proto();
    assert_failed_with(&lost, Code::Unavailable, "WORKER_LOST");
}

// Rules: CLIENT-7
#[tokio::test(start_paused = true)]
async fn client_creates_queued_operations_and_reports_errors() {
    let (operations, network, client) = start_client().await;
    let created = client.create(NewOperation::queued("q")).await.unwrap();
    assert_eq!((created.lease, created.already_existed), (None, false));
    let name = created.operation.unwrap().name.parse().unwrap();
    assert_eq!(
        operations.get_cached(&name).unwrap().state(),
        State::Pending
    );
    let invalid = self_executed().label("Bad", "x");
    let rejected = client
        .start(invalid, run_until_cancelled)
        .await
        .unwrap_err();
    assert_eq!(rejected.code(), Code::InvalidArgument);
    network.disconnect();
    // The first call uses the broken connection, the second one cannot connect.
    client
        .start(self_executed(), run_until_cancelled)
        .await
        .unwrap_err();
    let rejected = client
        .start(self_executed(), run_until_cancelled)
        .await
        .unwrap_err();
    assert_eq!(rejected.code(), Code::Unavailable, "{rejected}");
}
