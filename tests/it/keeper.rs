//! Workers and creators elsewhere keep their leases, and the server learns how
//! attempts end: with reports of any size, over a bad line.

use std::{
    io,
    sync::{Arc, LazyLock},
    time::Duration,
};

use longrunning::{
    Any, Context, Failure, NewOperation, Operation, RetryPolicy, WaitLimits,
    proto::google::rpc::Code,
    remote::{Creator, Worker},
};
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinHandle,
    time::sleep,
};
use tracing::{Dispatch, subscriber::DefaultGuard};

use crate::support::{
    faults::{Fate, Line},
    response, text,
};

const SECOND: Duration = Duration::from_secs(1);
const MIB: usize = 1 << 20;

/// A worker of the queue `q`, which works until it is dropped.
fn work(
    line: &Line,
    handler: impl longrunning::Handler,
) -> JoinHandle<Result<(), longrunning::remote::WorkerError>> {
    let worker = Worker::new(line.channel.clone(), "w").unwrap();
    tokio::spawn(worker.handler("q", 8, handler).run(std::future::pending()))
}

fn queued(attempts: u32) -> NewOperation {
    NewOperation::queued("q").retry(RetryPolicy {
        initial_backoff: Duration::ZERO,
        ..RetryPolicy::attempts(attempts)
    })
}

async fn create(line: &Line, new: NewOperation) -> Arc<Operation> {
    line.operations.create(new).await.unwrap().operation
}

/// The response of an operation, at the end of its last attempt.
async fn outcome(line: &Line, operation: &Operation) -> Any {
    let name = operation.owned_name();
    let done = line.operations.wait(&name, 600 * SECOND).await.unwrap();
    response(&done.to_proto())
}

fn sized(bytes: usize) -> Any {
    text(&"x".repeat(bytes))
}

fn again() -> Failure {
    Failure::new(Code::Aborted, "once more").retryable()
}

/// The checkpoint of the attempt before.
fn found(context: &Context) -> Result<Any, Failure> {
    Ok(context
        .checkpoint()
        .cloned()
        .unwrap_or_else(|| text("none")))
}

/// What is logged by this thread, as long as the guard lives.
fn log() -> (Arc<Mutex<Vec<u8>>>, DefaultGuard) {
    struct Writer(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    // Of a lone subscriber, tracing notes for good that a line is not wanted if
    // another thread, which has none, comes by there first.
    static COMPANY: LazyLock<Dispatch> =
        LazyLock::new(|| Dispatch::new(tracing_subscriber::registry()));
    LazyLock::force(&COMPANY);
    let log: Arc<Mutex<Vec<u8>>> = Arc::default();
    let kept = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || Writer(kept.clone()))
        .with_ansi(false)
        .finish();
    (log, tracing::subscriber::set_default(subscriber))
}

fn lines(log: &Mutex<Vec<u8>>, part: &str) -> usize {
    let text = String::from_utf8(log.lock().clone()).unwrap();
    text.lines().filter(|line| line.contains(part)).count()
}

#[tokio::test(start_paused = true)]
async fn a_report_that_is_too_large_costs_no_lease() {
    let (log, _guard) = log();
    let line = Line::open().await;
    let _worker = work(&line, async |context: Context| {
        let large = context.input().is_some();
        for second in 0..100 {
            if large && second % 10 == 0 {
                context.keep_checkpoint(sized(5 * MIB))?;
            }
            sleep(SECOND).await;
        }
        Ok(text("kept"))
    });
    let large = create(&line, queued(1).input(text("large"))).await;
    let innocent = create(&line, queued(1)).await;
    for operation in [large, innocent] {
        assert_eq!(outcome(&line, &operation).await, text("kept"));
    }
    assert_eq!(lines(&log, "reports that are too large are dropped"), 1);
}

#[tokio::test(start_paused = true)]
async fn large_reports_that_come_at_once_all_get_through() {
    let line = Line::open().await;
    let at_once = Arc::new(tokio::sync::Barrier::new(4));
    let _worker = work(&line, move |context: Context| {
        let at_once = at_once.clone();
        async move {
            if context.attempt() == 1 {
                at_once.wait().await;
                context.keep_checkpoint(sized(MIB + MIB / 4))?;
                sleep(100 * SECOND).await;
                return Err(again());
            }
            found(&context)
        }
    });
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(create(&line, queued(2)).await);
    }
    for operation in all {
        assert!(MIB < outcome(&line, &operation).await.value.len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_last_report_that_is_too_large_spoils_no_result() {
    let line = Line::open().await;
    let calls = line.calls.clone();
    let _worker = work(&line, move |context: Context| {
        let calls = calls.clone();
        async move {
            context.keep_checkpoint(text("small"))?;
            calls.reach("Heartbeat", 1).await;
            sleep(SECOND / 20).await;
            // Too soon for another heartbeat: the end has to bring it.
            context.keep_checkpoint(sized(5 * MIB))?;
            Ok(text("good"))
        }
    });
    sleep(SECOND).await; // the stream of directives is open
    let operation = create(&line, queued(1)).await;
    assert_eq!(outcome(&line, &operation).await, text("good"));
}

#[tokio::test(start_paused = true)]
async fn an_operation_whose_creation_was_answered_to_nobody_is_worked_on_all_the_same() {
    let line = Line::open().await;
    let creator = Creator::new(line.channel.clone(), "c").unwrap();
    line.calls
        .disturb("CreateOperation", [Fate::LoseRequest, Fate::LoseAnswer]);
    let (end, ended) = oneshot::channel::<()>();
    let ended = Arc::new(Mutex::new(Some(ended)));
    let handler = move |_: Context| {
        let ended = ended.lock().take().expect("it runs once");
        async move {
            let _ = ended.await;
            Ok(text("done"))
        }
    };
    let new = NewOperation::self_executed("").request_id("r");
    let started = creator.start(new.clone(), handler.clone()).await.unwrap();
    assert!(!started.reused);
    assert_eq!(line.calls.count("CreateOperation"), 3);
    // It is held already, so that the same request starts nothing more.
    let same = creator.start(new, handler).await.unwrap();
    assert!(same.reused);
    assert_eq!(same.operation.name, started.operation.name);
    end.send(()).unwrap();
    let finished = started.finished().await.unwrap();
    assert_eq!(response(&finished), text("done"));
}

#[tokio::test(start_paused = true)]
async fn a_creator_without_a_request_id_makes_no_second_operation_and_does_not_hang() {
    let line = Line::open().await;
    let creator = Creator::new(line.channel.clone(), "c").unwrap();
    line.calls.disturb("CreateOperation", [Fate::LoseAnswer]);
    let created = creator.create(queued(1)).await.unwrap();
    assert!(created.reused, "the first try made it");

    let lost = std::iter::repeat_with(|| Fate::LoseRequest).take(1000);
    line.calls.disturb("CreateOperation", lost);
    let refused = creator.create(queued(1)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn an_older_checkpoint_does_not_overtake_the_last_one() {
    let line = Line::open().await;
    let (beat, end) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let calls = line.calls.clone();
    let _worker = work(&line, move |context: Context| {
        let calls = calls.clone();
        async move {
            if context.attempt() == 1 {
                context.keep_checkpoint(text("older"))?;
                calls.reach("Heartbeat", 1).await;
                context.keep_checkpoint(text("last"))?;
                return Err(again());
            }
            found(&context)
        }
    });
    line.calls.disturb("Heartbeat", [Fate::Wait(beat.clone())]);
    line.calls
        .disturb("FinishOperation", [Fate::Wait(end.clone())]);
    sleep(SECOND).await; // the stream of directives is open
    let operation = create(&line, queued(2)).await;
    line.calls.reach("Heartbeat", 1).await;
    sleep(SECOND).await;
    beat.add_permits(1);
    sleep(SECOND).await;
    end.add_permits(1);
    assert_eq!(outcome(&line, &operation).await, text("last"));
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_whose_heartbeat_was_lost_is_told_before_the_end() {
    let line = Line::open().await;
    let gate = Arc::new(Semaphore::new(0));
    let calls = line.calls.clone();
    let _worker = work(&line, move |context: Context| {
        let calls = calls.clone();
        async move {
            if context.attempt() == 1 {
                context.keep_checkpoint(text("kept"))?;
                calls.reach("Heartbeat", 1).await;
                return Err(again());
            }
            found(&context)
        }
    });
    line.calls
        .disturb("Heartbeat", [Fate::WaitAndLose(gate.clone())]);
    sleep(SECOND).await; // the stream of directives is open
    let operation = create(&line, queued(2)).await;
    line.calls.reach("Heartbeat", 1).await;
    sleep(SECOND).await;
    gate.add_permits(1);
    assert_eq!(outcome(&line, &operation).await, text("kept"));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_drains_is_not_stormed() {
    let line = Line::open().await;
    let _worker = work(&line, async |_: Context| {
        sleep(600 * SECOND).await;
        Ok(Any::default())
    });
    create(&line, queued(1)).await;
    sleep(30 * SECOND).await;
    line.operations.shutdown(Duration::ZERO).await;
    let count = || {
        let count = |method| line.calls.count(method);
        (count("WatchDirectives"), count("Heartbeat"))
    };
    let before = count();
    sleep(10 * SECOND).await;
    let (streams, beats) = (count().0 - before.0, count().1 - before.1);
    assert!(streams <= 5, "{streams} streams in 10 s");
    assert!(beats <= 20, "{beats} heartbeats in 10 s");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_lets_nobody_wait_is_asked_with_pauses() {
    let waits = WaitLimits {
        max: Duration::ZERO,
        ..WaitLimits::default()
    };
    let line = Line::with(crate::support::operations(), waits).await;
    let _worker = work(&line, async |_: Context| Ok(text("done")));
    sleep(60 * SECOND).await;
    let polls = line.calls.count("LeaseOperations");
    assert!(polls <= 30, "{polls} in a minute");
    let operation = create(&line, queued(1)).await;
    assert_eq!(outcome(&line, &operation).await, text("done"));
}

#[tokio::test(start_paused = true)]
async fn an_end_whose_answer_was_lost_is_logged_as_it_is_and_not_as_unrecorded() {
    let (log, _guard) = log();
    let line = Line::open().await;
    line.calls.disturb("FinishOperation", [Fate::LoseAnswer]);
    let _worker = work(&line, async |context: Context| match context.attempt() {
        1 => Err(again()),
        2 => Err(Failure::new(Code::NotFound, "no such page")),
        _ => panic!("two attempts are enough"),
    });
    let name = create(&line, queued(2)).await.owned_name();
    let done = line.operations.wait(&name, 600 * SECOND).await.unwrap();
    assert!(done.is_done());
    line.calls.reach("FinishOperation", 3).await;
    sleep(SECOND).await;
    assert_eq!(lines(&log, "is not recorded"), 0);
    assert_eq!(lines(&log, "a lease is lost"), 0);
    assert_eq!(lines(&log, "failed; another attempt may follow"), 1);
    for failure in [
        r#"code="ABORTED" error.message="once more""#,
        r#"code="NOT_FOUND" error.message="no such page""#,
    ] {
        assert_eq!(lines(&log, failure), 1, "{failure}");
    }
}

#[tokio::test(start_paused = true)]
async fn that_a_server_is_away_is_logged_once_and_that_it_is_back_too() {
    let (log, _guard) = log();
    let line = Line::open().await;
    let lost = std::iter::repeat_with(|| Fate::LoseRequest).take(9);
    line.calls.disturb("LeaseOperations", lost);
    let _worker = work(&line, async |_: Context| Ok(text("done")));
    let operation = create(&line, queued(1)).await;
    assert_eq!(outcome(&line, &operation).await, text("done"));
    sleep(SECOND).await; // the worker hears of it, too
    assert_eq!(lines(&log, "calls to the server fail"), 1);
    assert_eq!(lines(&log, "calls to the server get through again"), 1);
    assert_eq!(lines(&log, "succeeded"), 1);
}
