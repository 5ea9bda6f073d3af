//! Remote workers and creators over a channel that loses messages: leases are renewed,
//! and reports and outcomes arrive, whatever their size.

use std::{
    io,
    sync::{Arc, LazyLock},
    time::Duration,
};

use longrunning::{
    Any, Context, Failure, NewOperation, Operation, RetryPolicy, WaitLimits,
    client::{Client, Worker},
    proto::google::rpc::Code,
};
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinHandle,
    time::sleep,
};
use tracing::{Dispatch, subscriber::DefaultGuard};

use crate::support::{
    expect_response,
    lossy_channel::{CallFault, LossyChannel},
    operations_builder, string_value,
};

const SECOND: Duration = Duration::from_secs(1);
const MIB: usize = 1 << 20;

/// Starts a worker of queue `q` that runs until it is aborted.
fn spawn_worker(
    network: &LossyChannel,
    handler: impl longrunning::Handler,
) -> JoinHandle<Result<(), longrunning::client::WorkerError>> {
    let worker = Worker::new(network.channel.clone(), "w").unwrap();
    tokio::spawn(worker.handler("q", 8, handler).run(std::future::pending()))
}

fn queued(attempts: u32) -> NewOperation {
    NewOperation::queued("q")
        .retry_policy(RetryPolicy::with_max_attempts(attempts).with_initial_backoff(Duration::ZERO))
}

async fn create(network: &LossyChannel, new: NewOperation) -> Arc<Operation> {
    network.operations.create(new).await.unwrap().operation
}

/// Waits for the completion of an operation and returns its response.
async fn final_response(network: &LossyChannel, operation: &Operation) -> Any {
    let name = operation.name_owned();
    let done = network.operations.wait(&name, 600 * SECOND).await.unwrap();
    expect_response(&done.to_proto())
}

fn string_value_of_size(bytes: usize) -> Any {
    string_value(&"x".repeat(bytes))
}

fn retryable_failure() -> Failure {
    Failure::new(Code::Aborted, "once more").retryable()
}

/// Returns the checkpoint of the previous attempt as the response.
fn previous_checkpoint(context: &Context) -> Result<Any, Failure> {
    Ok(context
        .checkpoint()
        .cloned()
        .unwrap_or_else(|| string_value("none")))
}

/// Captures the log of this thread until the guard is dropped.
fn capture_log() -> (Arc<Mutex<Vec<u8>>>, DefaultGuard) {
    struct LogWriter(Arc<Mutex<Vec<u8>>>);
    impl io::Write for LogWriter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    // With a single dispatcher, tracing caches "never enabled" for a call site if a
    // thread without a subscriber reaches it first. A second one prevents that.
    static SECOND_DISPATCH: LazyLock<Dispatch> =
        LazyLock::new(|| Dispatch::new(tracing_subscriber::registry()));
    LazyLock::force(&SECOND_DISPATCH);
    let log: Arc<Mutex<Vec<u8>>> = Arc::default();
    let captured = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || LogWriter(captured.clone()))
        .with_ansi(false)
        .finish();
    (log, tracing::subscriber::set_default(subscriber))
}

fn count_lines(log: &Mutex<Vec<u8>>, part: &str) -> usize {
    let text = String::from_utf8(log.lock().clone()).unwrap();
    text.lines().filter(|line| line.contains(part)).count()
}

// Rules: CLIENT-5
#[tokio::test(start_paused = true)]
async fn oversized_report_of_one_lease_does_not_lose_any_lease() {
    let (log, _guard) = capture_log();
    let network = LossyChannel::start().await;
    let _worker = spawn_worker(&network, async |context: Context| {
        let large = context.input().is_some();
        for second in 0..100 {
            if large && second % 10 == 0 {
                context.save_checkpoint(string_value_of_size(5 * MIB))?;
            }
            sleep(SECOND).await;
        }
        Ok(string_value("done"))
    });
    let large = create(&network, queued(1).input(string_value("large"))).await;
    let small = create(&network, queued(1)).await;
    for operation in [large, small] {
        assert_eq!(
            final_response(&network, &operation).await,
            string_value("done")
        );
    }
    assert_eq!(count_lines(&log, "dropping oversized reports"), 1);
}

// Rules: CLIENT-5
#[tokio::test(start_paused = true)]
async fn concurrent_large_reports_are_all_delivered() {
    let network = LossyChannel::start().await;
    let barrier = Arc::new(tokio::sync::Barrier::new(4));
    let _worker = spawn_worker(&network, move |context: Context| {
        let barrier = barrier.clone();
        async move {
            if context.attempt() == 1 {
                barrier.wait().await;
                context.save_checkpoint(string_value_of_size(MIB + MIB / 4))?;
                sleep(100 * SECOND).await;
                return Err(retryable_failure());
            }
            previous_checkpoint(&context)
        }
    });
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(create(&network, queued(2)).await);
    }
    for operation in all {
        assert!(final_response(&network, &operation).await.value.len() > MIB);
    }
}

// Rules: CLIENT-5
#[tokio::test(start_paused = true)]
async fn oversized_final_report_does_not_fail_remote_attempt() {
    let network = LossyChannel::start().await;
    let calls = network.faults.clone();
    let _worker = spawn_worker(&network, move |context: Context| {
        let calls = calls.clone();
        async move {
            context.save_checkpoint(string_value("small"))?;
            calls.wait_for_calls("Heartbeat", 1).await;
            sleep(SECOND / 20).await;
            // Too early for another heartbeat, so Finish has to send it.
            context.save_checkpoint(string_value_of_size(5 * MIB))?;
            Ok(string_value("good"))
        }
    });
    sleep(SECOND).await; // let the directive stream open
    let operation = create(&network, queued(1)).await;
    assert_eq!(
        final_response(&network, &operation).await,
        string_value("good")
    );
}

// Rules: CLIENT-7
#[tokio::test(start_paused = true)]
async fn operation_runs_even_if_create_response_was_lost() {
    let network = LossyChannel::start().await;
    let client = Client::new(network.channel.clone(), "c").unwrap();
    network.faults.inject(
        "CreateOperation",
        [CallFault::DropRequest, CallFault::DropResponse],
    );
    let (finish_tx, finish_rx) = oneshot::channel::<()>();
    let finish_rx = Arc::new(Mutex::new(Some(finish_rx)));
    let handler = move |_: Context| {
        let finish_rx = finish_rx.lock().take().expect("expected one run");
        async move {
            let _ = finish_rx.await;
            Ok(string_value("done"))
        }
    };
    let new = NewOperation::self_executed("").request_id("r");
    let running = client.start(new.clone(), handler.clone()).await.unwrap();
    assert!(!running.already_existed);
    assert_eq!(network.faults.call_count("CreateOperation"), 3);
    // The client holds the lease already, so the same request starts no second run.
    let same = client.start(new, handler).await.unwrap();
    assert!(same.already_existed);
    assert_eq!(same.operation.name, running.operation.name);
    finish_tx.send(()).unwrap();
    let finished = running.join().await.unwrap();
    assert_eq!(expect_response(&finished), string_value("done"));
}

// Rules: CLIENT-7
#[tokio::test(start_paused = true)]
async fn create_without_request_id_is_retried_without_duplicate_or_hang() {
    let network = LossyChannel::start().await;
    let client = Client::new(network.channel.clone(), "c").unwrap();
    network
        .faults
        .inject("CreateOperation", [CallFault::DropResponse]);
    let created = client.create(queued(1)).await.unwrap();
    assert!(
        created.already_existed,
        "expected the first try to create it"
    );

    let lost_requests = std::iter::repeat_with(|| CallFault::DropRequest).take(1000);
    network.faults.inject("CreateOperation", lost_requests);
    let rejected = client.create(queued(1)).await.unwrap_err();
    assert_eq!(rejected.code(), tonic::Code::Unavailable);
}

// Rules: CLIENT-6
#[tokio::test(start_paused = true)]
async fn delayed_heartbeat_does_not_overwrite_last_checkpoint() {
    let network = LossyChannel::start().await;
    let (heartbeat_gate, finish_gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let calls = network.faults.clone();
    let _worker = spawn_worker(&network, move |context: Context| {
        let calls = calls.clone();
        async move {
            if context.attempt() == 1 {
                context.save_checkpoint(string_value("older"))?;
                calls.wait_for_calls("Heartbeat", 1).await;
                context.save_checkpoint(string_value("last"))?;
                return Err(retryable_failure());
            }
            previous_checkpoint(&context)
        }
    });
    network
        .faults
        .inject("Heartbeat", [CallFault::Delay(heartbeat_gate.clone())]);
    network
        .faults
        .inject("FinishOperation", [CallFault::Delay(finish_gate.clone())]);
    sleep(SECOND).await; // let the directive stream open
    let operation = create(&network, queued(2)).await;
    network.faults.wait_for_calls("Heartbeat", 1).await;
    sleep(SECOND).await;
    heartbeat_gate.add_permits(1);
    sleep(SECOND).await;
    finish_gate.add_permits(1);
    assert_eq!(
        final_response(&network, &operation).await,
        string_value("last")
    );
}

// Rules: CLIENT-6
#[tokio::test(start_paused = true)]
async fn checkpoint_of_lost_heartbeat_is_sent_before_finish() {
    let network = LossyChannel::start().await;
    let gate = Arc::new(Semaphore::new(0));
    let calls = network.faults.clone();
    let _worker = spawn_worker(&network, move |context: Context| {
        let calls = calls.clone();
        async move {
            if context.attempt() == 1 {
                context.save_checkpoint(string_value("saved"))?;
                calls.wait_for_calls("Heartbeat", 1).await;
                return Err(retryable_failure());
            }
            previous_checkpoint(&context)
        }
    });
    network
        .faults
        .inject("Heartbeat", [CallFault::DelayThenDrop(gate.clone())]);
    sleep(SECOND).await; // let the directive stream open
    let operation = create(&network, queued(2)).await;
    network.faults.wait_for_calls("Heartbeat", 1).await;
    sleep(SECOND).await;
    gate.add_permits(1);
    assert_eq!(
        final_response(&network, &operation).await,
        string_value("saved")
    );
}

// Rules: CLIENT-8
#[tokio::test(start_paused = true)]
async fn draining_server_gets_few_heartbeats_and_watch_reconnects() {
    let network = LossyChannel::start().await;
    let _worker = spawn_worker(&network, async |_: Context| {
        sleep(600 * SECOND).await;
        Ok(Any::default())
    });
    create(&network, queued(1)).await;
    sleep(30 * SECOND).await;
    network.operations.shutdown(Duration::ZERO).await;
    let count = |method| network.faults.call_count(method);
    let (streams, heartbeats) = (count("WatchDirectives"), count("Heartbeat"));
    sleep(10 * SECOND).await;
    let streams = count("WatchDirectives") - streams;
    let heartbeats = count("Heartbeat") - heartbeats;
    assert!(streams <= 5, "{streams} streams in 10 s");
    assert!(heartbeats <= 20, "{heartbeats} heartbeats in 10 s");
}

// Rules: CLIENT-8
#[tokio::test(start_paused = true)]
async fn polling_is_throttled_when_server_max_wait_is_zero() {
    let wait_limits = WaitLimits::default().with_max_timeout(Duration::ZERO);
    let network = LossyChannel::start_with(operations_builder(), wait_limits).await;
    let _worker = spawn_worker(&network, async |_: Context| Ok(string_value("done")));
    sleep(60 * SECOND).await;
    let polls = network.faults.call_count("LeaseOperations");
    assert!(polls <= 30, "{polls} polls in a minute");
    let operation = create(&network, queued(1)).await;
    assert_eq!(
        final_response(&network, &operation).await,
        string_value("done")
    );
}

// Rules: CLIENT-9
#[tokio::test(start_paused = true)]
async fn lost_finish_response_is_logged_with_actual_outcome() {
    let (log, _guard) = capture_log();
    let network = LossyChannel::start().await;
    network
        .faults
        .inject("FinishOperation", [CallFault::DropResponse]);
    let _worker = spawn_worker(&network, async |context: Context| match context.attempt() {
        1 => Err(retryable_failure()),
        2 => Err(Failure::new(Code::NotFound, "no such page")),
        _ => panic!("expected two attempts"),
    });
    let name = create(&network, queued(2)).await.name_owned();
    let done = network.operations.wait(&name, 600 * SECOND).await.unwrap();
    assert!(done.is_done());
    network.faults.wait_for_calls("FinishOperation", 3).await;
    sleep(SECOND).await;
    assert_eq!(count_lines(&log, "failed to report attempt result"), 0);
    assert_eq!(count_lines(&log, "lease lost"), 0);
    assert_eq!(count_lines(&log, "attempt failed, may be retried"), 1);
    for failure in [
        r#"code="ABORTED" error="once more""#,
        r#"code="NOT_FOUND" error="no such page""#,
    ] {
        assert_eq!(count_lines(&log, failure), 1, "{failure}");
    }
}

// Rules: CLIENT-9
#[tokio::test(start_paused = true)]
async fn server_outage_and_recovery_are_logged_once_each() {
    let (log, _guard) = capture_log();
    let network = LossyChannel::start().await;
    let lost_requests = std::iter::repeat_with(|| CallFault::DropRequest).take(9);
    network.faults.inject("LeaseOperations", lost_requests);
    let _worker = spawn_worker(&network, async |_: Context| Ok(string_value("done")));
    let operation = create(&network, queued(1)).await;
    assert_eq!(
        final_response(&network, &operation).await,
        string_value("done")
    );
    sleep(SECOND).await; // let the worker receive the response
    assert_eq!(count_lines(&log, "server unreachable, retrying"), 1);
    assert_eq!(count_lines(&log, "server reachable again"), 1);
    assert_eq!(count_lines(&log, "succeeded"), 1);
}
