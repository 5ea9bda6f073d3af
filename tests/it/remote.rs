//! Workers and creators in other processes than the server, as
//! `longrunning::remote` makes them: over a connection, which can break, on
//! paused time, so that what takes time takes none.

use std::{future::Future, sync::Arc};

use longrunning::{
    Any, Context, Failure, NewOperation, Operation, OperationName, Operations, QueueName,
    RetryPolicy, State, WorkerId,
    proto::google::rpc::Code,
    remote::{Worker, WorkerError},
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
    time::{Duration, Instant, sleep},
};

use crate::support::{error, line::Line, reason, response, text};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A worker at work.
struct Work {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), WorkerError>>,
}

// === impl Work ===

impl Work {
    fn start(line: &Line, concurrency: usize, handler: impl longrunning::Handler) -> Self {
        let worker = Worker::new(line.channel(), "w").unwrap();
        let worker = worker.handler("q", concurrency, handler).grace(20 * SECOND);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(worker.run(async {
            let _ = stopped.await;
        }));
        Self {
            stop: Some(stop),
            task,
        }
    }

    /// Tells the worker to stop, and waits until it has drained.
    async fn drain(mut self) {
        assert!(
            !self.task.is_finished(),
            "it works until it is told to stop"
        );
        drop(self.stop.take());
        (&mut self.task).await.unwrap().unwrap();
    }
}

/// Tells when it is dropped: the handler that owns it was stopped.
struct Guard(Option<oneshot::Sender<()>>);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.take().map(|stopped| stopped.send(()));
    }
}

async fn start() -> (Operations, Line) {
    let operations = crate::support::operations().start().await.unwrap();
    let line = Line::to(&operations);
    (operations, line)
}

async fn queue(operations: &Operations, new: NewOperation) -> OperationName {
    let created = operations.create(new).await.unwrap();
    created.operation.owned_name()
}

fn in_q() -> NewOperation {
    NewOperation::queued("q")
}

async fn done(operations: &Operations, name: &OperationName) -> Arc<Operation> {
    let last = operations.wait(name, HOUR).await.unwrap();
    assert!(last.is_done(), "{last:?}");
    last
}

/// What somebody else gets who asks for the next operation.
async fn next(operations: &Operations) -> Arc<Operation> {
    let queue = QueueName::parse("q").unwrap();
    operations
        .lease(&queue, &WorkerId::new("else"))
        .await
        .unwrap()
}

/// A handler that says that it began, and never ends.
fn endless(begun: mpsc::Sender<Guard>, stopped: oneshot::Sender<()>) -> impl longrunning::Handler {
    let stopped = parking_lot::Mutex::new(Some(stopped));
    move |_: Context| {
        let guard = Guard(stopped.lock().take());
        let begun = begun.clone();
        async move {
            let _guard = guard;
            begun.send(Guard(None)).await.unwrap();
            std::future::pending::<Result<Any, Failure>>().await
        }
    }
}

// BEHAVIOUR §5
#[tokio::test(start_paused = true)]
async fn heartbeats_keep_a_short_lease_alive_during_long_work() {
    let (operations, line) = start().await;
    let work = Work::start(&line, 1, |_: Context| async {
        sleep(60 * SECOND).await;
        Ok::<Any, Failure>(text("at last"))
    });
    let name = queue(&operations, in_q().lease_duration(SECOND)).await;
    let last = done(&operations, &name).await;
    assert_eq!(
        (last.attempt(), response(&last.to_proto())),
        (1, text("at last"))
    );
    work.drain().await;
}

// BEHAVIOUR §5
#[tokio::test(start_paused = true)]
async fn a_cancellation_reaches_the_handler_by_push() {
    let (operations, line) = start().await;
    let (begun, mut began) = mpsc::channel(1);
    let work = Work::start(&line, 1, move |context: Context| {
        let begun = begun.clone();
        async move {
            begun.send(()).await.unwrap();
            context.cancelled().await;
            Err::<Any, _>(Failure::cancelled())
        }
    });
    // The next heartbeat would come in twenty minutes.
    let name = queue(&operations, in_q().lease_duration(HOUR)).await;
    began.recv().await.unwrap();
    sleep(SECOND).await;
    let asked = Instant::now();
    operations.cancel(&name).await.unwrap();
    let last = done(&operations, &name).await;
    assert_eq!(last.state(), State::Cancelled);
    assert!(asked.elapsed() < SECOND / 10, "{:?}", asked.elapsed());
    work.drain().await;
}

// BEHAVIOUR §5
#[tokio::test(start_paused = true)]
async fn a_drain_finishes_what_is_short_and_gives_back_what_is_long() {
    let (operations, line) = start().await;
    let (begun, mut began) = mpsc::channel(2);
    let work = Work::start(&line, 2, move |context: Context| {
        let begun = begun.clone();
        async move {
            let length: String = context.input_as().unwrap();
            begun.send(()).await.unwrap();
            sleep(SECOND * length.parse().unwrap()).await;
            // Too late for a heartbeat: it goes with the last word.
            context.keep_checkpoint(text("half")).unwrap();
            sleep(SECOND * length.parse().unwrap()).await;
            Ok::<Any, Failure>(text(&length))
        }
    });
    let short = queue(&operations, in_q().input(text("5"))).await;
    let long = queue(&operations, in_q().input(text("19"))).await;
    let waits = queue(&operations, in_q()).await;
    began.recv().await.unwrap();
    began.recv().await.unwrap();
    let told = Instant::now();
    work.drain().await;
    let took = told.elapsed();
    assert!((20 * SECOND..21 * SECOND).contains(&took), "{took:?}");
    let short = operations.get(&short).unwrap().to_proto();
    assert_eq!(response(&short), text("5"));
    let state = |name| operations.get(name).unwrap().state();
    assert_eq!(
        (state(&long), state(&waits)),
        (State::Pending, State::Pending)
    );
    assert_eq!(operations.get(&waits).unwrap().attempt(), 0, "nothing new");
    let again = next(&operations).await;
    assert_eq!((again.owned_name(), again.attempt()), (long, 2));
    assert_eq!(again.checkpoint().unwrap().any(), &text("half"));
}

// BEHAVIOUR §5: the lease runs out while the worker cannot be reached.
#[tokio::test(start_paused = true)]
async fn a_worker_that_is_cut_off_stops_its_handler_and_records_nothing() {
    let (operations, line) = start().await;
    let (begun, mut began) = mpsc::channel(9);
    let (stop, stopped) = oneshot::channel();
    let work = Work::start(&line, 1, endless(begun, stop));
    let new = in_q().lease_duration(3 * SECOND);
    let name = queue(&operations, new.retry(RetryPolicy::attempts(9))).await;
    began.recv().await.unwrap();
    line.cut();
    let cut = Instant::now();
    let second = next(&operations).await;
    assert_eq!((second.owned_name(), second.attempt()), (name.clone(), 2));
    stopped.await.unwrap();
    assert!(cut.elapsed() < 4 * SECOND, "{:?}", cut.elapsed());
    line.mend();
    work.drain().await;
    let after = operations.get(&name).unwrap();
    assert_eq!(after.revision(), second.revision(), "nobody said anything");
}

// BEHAVIOUR §5: the operation is taken away from a worker that can be reached.
#[tokio::test(start_paused = true)]
async fn a_lost_lease_stops_the_handler_by_the_next_heartbeat() {
    let (operations, line) = start().await;
    let (begun, mut began) = mpsc::channel(9);
    let (stop, stopped) = oneshot::channel();
    let work = Work::start(&line, 1, endless(begun, stop));
    let name = queue(&operations, in_q()).await;
    began.recv().await.unwrap();
    let token = operations.get(&name).unwrap().lease().unwrap().token;
    operations
        .succeed(&name, token, text("else"))
        .await
        .unwrap();
    let ended = Instant::now();
    stopped.await.unwrap();
    assert!(ended.elapsed() <= 10 * SECOND, "{:?}", ended.elapsed());
    work.drain().await;
    let last = done(&operations, &name).await;
    assert_eq!(response(&last.to_proto()), text("else"));
}

// BEHAVIOUR §5
#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_is_waited_for_at_the_start_and_at_the_end_of_work() {
    let (operations, line) = start().await;
    line.cut();
    let (begun, mut began) = mpsc::channel(9);
    let go_on = Arc::new(Notify::new());
    let work = Work::start(&line, 1, {
        let go_on = go_on.clone();
        move |context: Context| {
            let (begun, go_on) = (begun.clone(), go_on.clone());
            async move {
                begun.send(()).await.unwrap();
                go_on.notified().await;
                Ok::<Any, Failure>(text(context.name()))
            }
        }
    });
    let first = queue(&operations, in_q()).await;
    let second = queue(&operations, in_q()).await;
    line.refused(5).await;
    assert_eq!(operations.get(&first).unwrap().attempt(), 0);
    line.mend();
    for name in [first, second] {
        began.recv().await.unwrap();
        line.cut();
        // The handler ends while nobody can be told.
        go_on.notify_one();
        line.refused(20).await;
        assert_eq!(operations.get(&name).unwrap().state(), State::Running);
        line.mend();
        let last = done(&operations, &name).await;
        assert_eq!(response(&last.to_proto()), text(name.as_str()));
        assert_eq!(last.attempt(), 1);
    }
    work.drain().await;
}

// BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn a_failed_attempt_is_followed_by_one_that_gets_its_checkpoint() {
    let (operations, line) = start().await;
    let work = Work::start(&line, 1, |context: Context| async move {
        match (context.attempt(), context.checkpoint()) {
            (1, None) => {
                context.keep_checkpoint(text("so far")).unwrap();
                Err(Failure::new(Code::Unavailable, "the disk is busy").retryable())
            }
            (2, Some(checkpoint)) => Ok(checkpoint.clone()),
            other => panic!("{other:?} is no attempt of this test"),
        }
    });
    let name = queue(&operations, in_q().retry(RetryPolicy::attempts(2))).await;
    let last = done(&operations, &name).await;
    assert_eq!(
        (last.attempt(), response(&last.to_proto())),
        (2, text("so far"))
    );
    let name = queue(&operations, in_q()).await;
    let last = done(&operations, &name).await.to_proto();
    assert_eq!(
        error(&last).message,
        "the disk is busy",
        "no attempt is left"
    );
    work.drain().await;
}

// worker.proto: a panic is recorded as INTERNAL.
#[tokio::test(start_paused = true)]
async fn a_panic_of_a_handler_is_an_internal_error_and_the_worker_lives_on() {
    let (operations, line) = start().await;
    let work = Work::start(&line, 1, |context: Context| async move {
        let input: String = context.input_as()?;
        assert_ne!(input, "bad", "it is bad");
        Ok::<Any, Failure>(text("good"))
    });
    let retry = RetryPolicy::attempts(5);
    let bad = queue(&operations, in_q().input(text("bad")).retry(retry)).await;
    let good = queue(&operations, in_q().input(text("good"))).await;
    let last = done(&operations, &bad).await;
    let failed = error(&last.to_proto());
    assert_eq!((failed.code, last.attempt()), (Code::Internal.into(), 1));
    assert_eq!(reason(&failed), "HANDLER_PANICKED");
    assert!(failed.message.contains("it is bad"), "{}", failed.message);
    let last = done(&operations, &good).await;
    assert_eq!(response(&last.to_proto()), text("good"));
    work.drain().await;
}

// DESIGN: the future of a worker that is dropped gives back what it holds.
#[tokio::test(start_paused = true)]
async fn a_worker_that_is_dropped_gives_back_what_it_holds() {
    let (operations, line) = start().await;
    let (begun, mut began) = mpsc::channel(9);
    let (stop, stopped) = oneshot::channel();
    let mut work = Work::start(&line, 1, endless(begun, stop));
    let name = queue(&operations, in_q().lease_duration(HOUR)).await;
    began.recv().await.unwrap();
    work.task.abort();
    assert!((&mut work.task).await.unwrap_err().is_cancelled());
    let dropped = Instant::now();
    stopped.await.unwrap();
    let again = next(&operations).await;
    assert_eq!((again.owned_name(), again.attempt()), (name, 2));
    assert!(dropped.elapsed() < SECOND, "{:?}", dropped.elapsed());
}

/// A worker that cannot work says so at once.
async fn refusal(worker: Worker) -> WorkerError {
    let never: Box<dyn Future<Output = ()> + Send + Unpin> = Box::new(std::future::pending());
    worker.run(never).await.unwrap_err()
}

// worker.proto
#[tokio::test(start_paused = true)]
async fn a_worker_without_work_is_refused() {
    let (_operations, line) = start().await;
    let handler = |_: Context| async { Ok::<Any, Failure>(Any::default()) };
    assert!(Worker::new(line.channel(), "").is_err());
    let worker = || Worker::new(line.channel(), "w").unwrap();
    let refused = refusal(worker()).await;
    assert!(matches!(refused, WorkerError::NoQueue), "{refused}");
    let refused = refusal(worker().handler("q", 0, handler)).await;
    assert!(matches!(refused, WorkerError::Concurrency(_)), "{refused}");
    let refused = refusal(worker().handler("no queue", 1, handler)).await;
    assert!(matches!(refused, WorkerError::Queue(_)), "{refused}");
}
