//! `longrunning::client::Worker` over a connection that can break, on paused time.

use std::{future::Future, sync::Arc};

use longrunning::{
    Any, Context, Failure, NewOperation, Operation, OperationName, Operations, QueueName,
    RetryPolicy, State, WorkerId,
    client::{Worker, WorkerError},
    proto::google::rpc::Code,
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
    time::{Duration, Instant, sleep},
};

use crate::support::{
    assertions::assert_failed_with, expect_error, expect_response,
    fake_shared_storage::FakeSharedStorage, flaky_channel::FlakyChannel,
    handlers::never_ending_handler, operations::start_operations, string_value,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A worker that is polling.
struct RunningWorker {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), WorkerError>>,
}

// === impl RunningWorker ===

impl RunningWorker {
    fn start(
        network: &FlakyChannel,
        concurrency: usize,
        handler: impl longrunning::Handler,
    ) -> Self {
        let worker = Worker::new(network.channel(), "w").unwrap();
        Self::run(worker.handler("q", concurrency, handler))
    }

    fn run(worker: Worker) -> Self {
        let worker = worker.shutdown_timeout(20 * SECOND);
        let (stop_tx, stop_rx) = oneshot::channel();
        let task = tokio::spawn(worker.run(async {
            let _ = stop_rx.await;
        }));
        Self {
            stop: Some(stop_tx),
            task,
        }
    }

    /// Signals shutdown to the worker and waits until it has drained.
    async fn drain(mut self) {
        assert!(
            !self.task.is_finished(),
            "expected the worker to run until its shutdown"
        );
        drop(self.stop.take());
        (&mut self.task).await.unwrap().unwrap();
    }
}

async fn start_with_network() -> (Operations, FlakyChannel) {
    let operations = start_operations().await;
    let network = FlakyChannel::new(&operations);
    (operations, network)
}

async fn create(operations: &Operations, new: NewOperation) -> OperationName {
    let created = operations.create(new).await.unwrap();
    created.operation.name_owned()
}

fn queued() -> NewOperation {
    NewOperation::queued("q")
}

async fn wait_until_done(operations: &Operations, name: &OperationName) -> Arc<Operation> {
    let last = operations.wait(name, HOUR).await.unwrap();
    assert!(last.is_done(), "{last:?}");
    last
}

/// Leases the next operation as another worker.
async fn lease_next(operations: &Operations) -> Arc<Operation> {
    let queue = QueueName::parse("q").unwrap();
    operations
        .lease(&queue, &WorkerId::new("else"))
        .await
        .unwrap()
}

// Rules: CLIENT-1
#[tokio::test(start_paused = true)]
async fn heartbeats_renew_short_lease_during_long_work() {
    let (operations, network) = start_with_network().await;
    let worker = RunningWorker::start(&network, 1, |_: Context| async {
        sleep(60 * SECOND).await;
        Ok::<Any, Failure>(string_value("at last"))
    });
    let name = create(&operations, queued().lease_duration(SECOND)).await;
    let last = wait_until_done(&operations, &name).await;
    assert_eq!(
        (last.attempt(), expect_response(&last.to_proto())),
        (1, string_value("at last"))
    );
    worker.drain().await;
}

// Rules: CLIENT-2
#[tokio::test(start_paused = true)]
async fn cancel_is_pushed_to_remote_handler() {
    let (operations, network) = start_with_network().await;
    let (started_tx, mut started_rx) = mpsc::channel(1);
    let worker = RunningWorker::start(&network, 1, move |context: Context| {
        let started_tx = started_tx.clone();
        async move {
            started_tx.send(()).await.unwrap();
            context.cancelled().await;
            Err::<Any, _>(Failure::cancelled())
        }
    });
    // The next heartbeat would be in 20 minutes.
    let name = create(&operations, queued().lease_duration(HOUR)).await;
    started_rx.recv().await.unwrap();
    sleep(SECOND).await;
    let cancel_time = Instant::now();
    operations.cancel(&name).await.unwrap();
    let last = wait_until_done(&operations, &name).await;
    assert_eq!(last.state(), State::Cancelled);
    assert!(
        cancel_time.elapsed() < SECOND / 10,
        "{:?}",
        cancel_time.elapsed()
    );
    worker.drain().await;
}

// Rules: CLIENT-3
#[tokio::test(start_paused = true)]
async fn drain_finishes_short_work_and_releases_long_work() {
    let (operations, network) = start_with_network().await;
    let (started_tx, mut started_rx) = mpsc::channel(2);
    let worker = RunningWorker::start(&network, 2, move |context: Context| {
        let started_tx = started_tx.clone();
        async move {
            let length: String = context.input_as().unwrap();
            started_tx.send(()).await.unwrap();
            sleep(SECOND * length.parse().unwrap()).await;
            // Too late for a heartbeat, so the release has to send it.
            context.save_checkpoint(string_value("half")).unwrap();
            sleep(SECOND * length.parse().unwrap()).await;
            Ok::<Any, Failure>(string_value(&length))
        }
    });
    let short = create(&operations, queued().input(string_value("5"))).await;
    let long = create(&operations, queued().input(string_value("19"))).await;
    let queued_name = create(&operations, queued()).await;
    started_rx.recv().await.unwrap();
    started_rx.recv().await.unwrap();
    let drain_start = Instant::now();
    worker.drain().await;
    let elapsed = drain_start.elapsed();
    assert!((20 * SECOND..21 * SECOND).contains(&elapsed), "{elapsed:?}");
    let short = operations.get_cached(&short).unwrap().to_proto();
    assert_eq!(expect_response(&short), string_value("5"));
    let state = |name| operations.get_cached(name).unwrap().state();
    assert_eq!(
        (state(&long), state(&queued_name)),
        (State::Pending, State::Pending)
    );
    assert_eq!(
        operations.get_cached(&queued_name).unwrap().attempt(),
        0,
        "expected no lease while draining"
    );
    let again = lease_next(&operations).await;
    assert_eq!((again.name_owned(), again.attempt()), (long, 2));
    assert_eq!(again.checkpoint().unwrap().any(), &string_value("half"));
}

// The lease expires while the worker is disconnected.
// Rules: CLIENT-4
#[tokio::test(start_paused = true)]
async fn fenced_worker_stops_handler_when_its_lease_expires() {
    let (operations, network) = start_with_network().await;
    let (started_tx, mut started_rx) = mpsc::channel(9);
    let (stopped_tx, stopped_rx) = oneshot::channel();
    let handler = never_ending_handler(started_tx, stopped_tx);
    let worker = Worker::new(network.channel(), "w").unwrap();
    let worker = RunningWorker::run(worker.handler("q", 1, handler).fence(true));
    let name = create(&operations, queued().lease_duration(3 * SECOND)).await;
    started_rx.recv().await.unwrap();
    network.disconnect();
    let disconnect_time = Instant::now();
    let second = lease_next(&operations).await;
    assert_eq!((second.name_owned(), second.attempt()), (name.clone(), 2));
    stopped_rx.await.unwrap();
    // The lease of 3 s, and the backoff after a lost worker.
    assert!(
        disconnect_time.elapsed() < 5 * SECOND,
        "{:?}",
        disconnect_time.elapsed()
    );
    network.reconnect();
    worker.drain().await;
    let after = operations.get_cached(&name).unwrap();
    assert_eq!(after.revision(), second.revision(), "expected no change");
}

// Rules: CLIENT-4
#[tokio::test(start_paused = true)]
async fn disconnected_worker_goes_on_beside_its_successor() {
    let (operations, network) = start_with_network().await;
    let (started_tx, mut started_rx) = mpsc::channel(9);
    let (ended_tx, mut ended_rx) = mpsc::channel(9);
    let worker = RunningWorker::start(&network, 1, move |context: Context| {
        let (started_tx, ended_tx) = (started_tx.clone(), ended_tx.clone());
        async move {
            started_tx.send(context).await.unwrap();
            sleep(20 * SECOND).await;
            ended_tx.send(()).await.unwrap();
            Ok::<Any, Failure>(string_value("late"))
        }
    });
    let name = create(&operations, queued().lease_duration(3 * SECOND)).await;
    started_rx.recv().await.unwrap();
    network.disconnect();
    let second = lease_next(&operations).await;
    assert_eq!((second.name_owned(), second.attempt()), (name.clone(), 2));
    ended_rx.recv().await.unwrap();
    // The lease of the first attempt is lost: its result changes nothing.
    network.reconnect();
    worker.drain().await;
    let after = operations.get_cached(&name).unwrap();
    assert!(!after.is_done());
}

// The server is there again after seven lease durations.
// Rules: CLIENT-4, CLU-9
#[tokio::test(start_paused = true)]
async fn result_is_repeated_until_server_that_was_away_accepts_it() {
    let storage = FakeSharedStorage::default();
    let replica = storage.start_replica().await;
    let network = FlakyChannel::new(&replica.operations);
    let (started_tx, mut started_rx) = mpsc::channel(9);
    let worker = RunningWorker::start(&network, 1, move |context: Context| {
        let started_tx = started_tx.clone();
        async move {
            started_tx.send(context).await.unwrap();
            sleep(10 * SECOND).await;
            Ok::<Any, Failure>(string_value("kept"))
        }
    });
    let name = create(&replica.operations, queued().lease_duration(3 * SECOND)).await;
    started_rx.recv().await.unwrap();
    storage.go_offline();
    sleep(20 * SECOND).await;
    storage.go_online();
    let done = wait_until_done(&replica.operations, &name).await;
    let response = expect_response(&done.to_proto());
    assert_eq!((done.attempt(), response), (1, string_value("kept")));
    worker.drain().await;
}

// A connected worker loses its lease.
// Rules: CLIENT-1
#[tokio::test(start_paused = true)]
async fn lost_lease_stops_handler_at_next_heartbeat() {
    let (operations, network) = start_with_network().await;
    let (started_tx, mut started_rx) = mpsc::channel(9);
    let (stopped_tx, stopped_rx) = oneshot::channel();
    let worker = RunningWorker::start(&network, 1, never_ending_handler(started_tx, stopped_tx));
    let name = create(&operations, queued()).await;
    started_rx.recv().await.unwrap();
    let token = operations.get_cached(&name).unwrap().lease().unwrap().token;
    operations
        .succeed(&name, token, string_value("else"))
        .await
        .unwrap();
    let ended = Instant::now();
    stopped_rx.await.unwrap();
    assert!(ended.elapsed() <= 10 * SECOND, "{:?}", ended.elapsed());
    worker.drain().await;
    let last = wait_until_done(&operations, &name).await;
    assert_eq!(expect_response(&last.to_proto()), string_value("else"));
}

// Rules: CLIENT-4
#[tokio::test(start_paused = true)]
async fn worker_retries_lease_and_finish_while_server_is_unreachable() {
    let (operations, network) = start_with_network().await;
    network.disconnect();
    let (started_tx, mut started_rx) = mpsc::channel(9);
    let finish_gate = Arc::new(Notify::new());
    let worker = RunningWorker::start(&network, 1, {
        let finish_gate = finish_gate.clone();
        move |context: Context| {
            let (started_tx, finish_gate) = (started_tx.clone(), finish_gate.clone());
            async move {
                started_tx.send(()).await.unwrap();
                finish_gate.notified().await;
                Ok::<Any, Failure>(string_value(context.name()))
            }
        }
    });
    let first = create(&operations, queued()).await;
    let second = create(&operations, queued()).await;
    network.wait_for_refused_connections(5).await;
    assert_eq!(operations.get_cached(&first).unwrap().attempt(), 0);
    network.reconnect();
    for name in [first, second] {
        started_rx.recv().await.unwrap();
        network.disconnect();
        // The handler returns while the server is unreachable.
        finish_gate.notify_one();
        network.wait_for_refused_connections(20).await;
        assert_eq!(
            operations.get_cached(&name).unwrap().state(),
            State::Running
        );
        network.reconnect();
        let last = wait_until_done(&operations, &name).await;
        assert_eq!(
            expect_response(&last.to_proto()),
            string_value(name.as_str())
        );
        assert_eq!(last.attempt(), 1);
    }
    worker.drain().await;
}

// Rules: HEARTBEAT-9
#[tokio::test(start_paused = true)]
async fn retried_remote_attempt_gets_checkpoint() {
    let (operations, network) = start_with_network().await;
    let worker = RunningWorker::start(&network, 1, |context: Context| async move {
        match (context.attempt(), context.checkpoint()) {
            (1, None) => {
                context.save_checkpoint(string_value("so far")).unwrap();
                Err(Failure::new(Code::Unavailable, "the disk is busy").retryable())
            }
            (2, Some(checkpoint)) => Ok(checkpoint.clone()),
            other => panic!("unexpected attempt and checkpoint: {other:?}"),
        }
    });
    let name = create(
        &operations,
        queued().retry_policy(RetryPolicy::with_max_attempts(2)),
    )
    .await;
    let last = wait_until_done(&operations, &name).await;
    assert_eq!(
        (last.attempt(), expect_response(&last.to_proto())),
        (2, string_value("so far"))
    );
    let name = create(&operations, queued()).await;
    let last = wait_until_done(&operations, &name).await.to_proto();
    assert_eq!(
        expect_error(&last).message,
        "the disk is busy",
        "expected no second attempt by default"
    );
    worker.drain().await;
}

// worker.proto: a panic is recorded as INTERNAL.
// Rules: HANDLER-1
#[tokio::test(start_paused = true)]
async fn remote_handler_panic_is_internal_error_and_worker_continues() {
    let (operations, network) = start_with_network().await;
    let worker = RunningWorker::start(&network, 1, |context: Context| async move {
        let input: String = context.input_as()?;
        assert_ne!(input, "bad", "bad input");
        Ok::<Any, Failure>(string_value("good"))
    });
    let retry = RetryPolicy::with_max_attempts(5);
    let bad = create(
        &operations,
        queued().input(string_value("bad")).retry_policy(retry),
    )
    .await;
    let good = create(&operations, queued().input(string_value("good"))).await;
    let last = wait_until_done(&operations, &bad).await;
    assert_eq!(last.attempt(), 1, "expected no retry after a panic");
    let failed = last.to_proto();
    assert_failed_with(&failed, Code::Internal, "HANDLER_PANICKED");
    let message = expect_error(&failed).message;
    assert!(message.contains("bad input"), "{message}");
    let last = wait_until_done(&operations, &good).await;
    assert_eq!(expect_response(&last.to_proto()), string_value("good"));
    worker.drain().await;
}

// A dropped worker releases its leases without being awaited.
// Rules: CLIENT-3
#[tokio::test(start_paused = true)]
async fn dropped_worker_releases_its_leases() {
    let (operations, network) = start_with_network().await;
    let (started_tx, mut started_rx) = mpsc::channel(9);
    let (stopped_tx, stopped_rx) = oneshot::channel();
    let mut worker =
        RunningWorker::start(&network, 1, never_ending_handler(started_tx, stopped_tx));
    let name = create(&operations, queued().lease_duration(HOUR)).await;
    started_rx.recv().await.unwrap();
    worker.task.abort();
    assert!((&mut worker.task).await.unwrap_err().is_cancelled());
    let dropped = Instant::now();
    stopped_rx.await.unwrap();
    let again = lease_next(&operations).await;
    assert_eq!((again.name_owned(), again.attempt()), (name, 2));
    assert!(dropped.elapsed() < SECOND, "{:?}", dropped.elapsed());
}

/// Runs a worker and returns the error with which it stops immediately.
async fn run_error(worker: Worker) -> WorkerError {
    let never: Box<dyn Future<Output = ()> + Send + Unpin> = Box::new(std::future::pending());
    worker.run(never).await.unwrap_err()
}

// Rules: CLIENT-10
#[tokio::test(start_paused = true)]
async fn worker_with_invalid_configuration_fails_to_run() {
    let (_operations, network) = start_with_network().await;
    let handler = |_: Context| async { Ok::<Any, Failure>(Any::default()) };
    assert!(Worker::new(network.channel(), "").is_err());
    let worker = || Worker::new(network.channel(), "w").unwrap();
    let rejected = run_error(worker()).await;
    assert!(matches!(rejected, WorkerError::NoQueues), "{rejected}");
    let rejected = run_error(worker().handler("q", 0, handler)).await;
    assert!(
        matches!(rejected, WorkerError::ZeroConcurrency(_)),
        "{rejected}"
    );
    let rejected = run_error(worker().handler("no queue", 1, handler)).await;
    assert!(
        matches!(rejected, WorkerError::InvalidQueue(_)),
        "{rejected}"
    );
}
