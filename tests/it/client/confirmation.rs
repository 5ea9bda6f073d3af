//! Remote workers start the work when their first heartbeat is answered.

use std::{sync::Arc, time::Duration};

use longrunning::{
    Any, Context, Failure, NewOperation, OperationName, Operations, RetryPolicy, State,
    client::{Worker, WorkerError},
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::support::{
    decode_metadata,
    lossy_channel::{CallFault, LossyChannel},
    string_value,
};

const SECOND: Duration = Duration::from_secs(1);

/// Creates an operation of queue `q` that fails with the first lost worker.
async fn create(operations: &Operations) -> OperationName {
    let policy = RetryPolicy::default().with_max_worker_losses(0);
    let new = NewOperation::queued("q").retry_policy(policy);
    operations.create(new).await.unwrap().operation.name_owned()
}

/// Starts a worker whose handler sends the number of its attempt and succeeds.
fn spawn_worker(
    network: &LossyChannel,
    stop: oneshot::Receiver<()>,
) -> (
    JoinHandle<Result<(), WorkerError>>,
    mpsc::UnboundedReceiver<u32>,
) {
    let (started_sender, started) = mpsc::unbounded_channel();
    let handler = move |context: Context| {
        started_sender.send(context.attempt()).unwrap();
        async { Ok::<Any, Failure>(string_value("done")) }
    };
    let worker = Worker::new(network.channel.clone(), "w").unwrap();
    let worker = worker.handler("q", 8, handler);
    let run = worker.run(async { drop(stop.await) });
    (tokio::spawn(run), started)
}

// Rules: CLIENT-12
#[tokio::test(start_paused = true)]
async fn handler_starts_when_first_heartbeat_is_answered() {
    let network = LossyChannel::start().await;
    let gate = Arc::new(Semaphore::new(0));
    network
        .faults
        .inject("Heartbeat", [CallFault::Delay(gate.clone())]);
    let name = create(&network.operations).await;
    let (_stop_sender, stop) = oneshot::channel();
    let (_worker, mut started) = spawn_worker(&network, stop);
    sleep(SECOND).await;
    assert!(started.try_recv().is_err());
    let start = Instant::now();
    gate.add_permits(1);
    assert_eq!(started.recv().await, Some(1));
    assert_eq!(start.elapsed(), Duration::ZERO);
    let done = network.operations.wait(&name, 60 * SECOND).await.unwrap();
    assert_eq!(done.state(), State::Succeeded);
}

// Rules: CLIENT-12
#[tokio::test(start_paused = true)]
async fn handler_never_starts_without_answer_and_no_attempt_is_lost() {
    let network = LossyChannel::start().await;
    // One each 500 ms, for the 2 s of the first lease and a part of the second one.
    let lost = (0..6).map(|_| CallFault::DropRequest);
    network.faults.inject("Heartbeat", lost);
    let name = create(&network.operations).await;
    let (_stop_sender, stop) = oneshot::channel();
    let (_worker, mut started) = spawn_worker(&network, stop);
    let done = network.operations.wait(&name, 60 * SECOND).await.unwrap();
    assert_eq!(done.state(), State::Succeeded);
    assert_eq!(done.attempt(), 2);
    assert_eq!(started.recv().await, Some(2));
    assert!(started.try_recv().is_err());
    let attempts = decode_metadata(&done.to_proto()).attempts;
    assert_eq!(attempts.len(), 1, "{attempts:?}");
}

// Rules: CLIENT-3, CLIENT-12
#[tokio::test(start_paused = true)]
async fn worker_that_drains_releases_unconfirmed_lease() {
    let network = LossyChannel::start().await;
    let gate = Arc::new(Semaphore::new(0));
    network
        .faults
        .inject("Heartbeat", [CallFault::DelayThenDrop(gate.clone())]);
    let name = create(&network.operations).await;
    let (stop_sender, stop) = oneshot::channel();
    let (worker, mut started) = spawn_worker(&network, stop);
    network.faults.wait_for_calls("Heartbeat", 1).await;
    stop_sender.send(()).unwrap();
    gate.add_permits(1);
    worker.await.unwrap().unwrap();
    let after = network.operations.get_cached(&name).unwrap();
    assert!(started.try_recv().is_err());
    assert_eq!(after.state(), State::Pending);
}

// A new lease each 100 ms, more often than reports are sent.
// Rules: CLIENT-12
#[tokio::test(start_paused = true)]
async fn report_is_sent_while_leases_arrive_all_the_time() {
    let network = LossyChannel::start().await;
    let handler = |context: Context| async move {
        let Some(_) = context.input() else {
            return Ok::<Any, Failure>(string_value("short"));
        };
        sleep(SECOND).await;
        context.report_progress(crate::support::progress(7));
        sleep(60 * SECOND).await;
        Ok(string_value("long"))
    };
    let worker = Worker::new(network.channel.clone(), "w").unwrap();
    tokio::spawn(worker.handler("q", 8, handler).run(std::future::pending()));
    let long = NewOperation::queued("q").input(string_value("long"));
    let long = network.operations.create(long).await.unwrap().operation;
    for _ in 0..30 {
        create(&network.operations).await;
        sleep(SECOND / 10).await;
    }
    let running = network.operations.get_cached(&long.name_owned()).unwrap();
    assert_eq!(running.progress().map(|it| it.done_units), Some(7));
}
