//! Services that create operations on a server elsewhere and execute them
//! themselves, as `longrunning::remote::Creator` does it.

use longrunning::{
    Any, Context, Failure, NewOperation, OperationName, Operations, State,
    remote::{Creator, Started},
};
use tokio::{
    sync::mpsc,
    time::{Duration, Instant, sleep},
};

use crate::support::{error, line::Line, reason, response, text};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

async fn open() -> (Operations, Line, Creator) {
    let operations = crate::support::operations().start().await.unwrap();
    let line = Line::to(&operations);
    let creator = Creator::new(line.channel(), "c").unwrap();
    (operations, line, creator)
}

fn own() -> NewOperation {
    NewOperation::self_executed("c")
}

fn name(started: &Started) -> OperationName {
    started.operation.name.parse().unwrap()
}

/// A handler that takes so long.
fn takes(time: Duration) -> impl longrunning::Handler {
    move |_: Context| async move {
        sleep(time).await;
        Ok::<Any, Failure>(text("done"))
    }
}

/// A handler that works until it is told to stop.
async fn until_stopped(context: Context) -> Result<Any, Failure> {
    context.cancelled().await;
    Err(Failure::cancelled())
}

// BEHAVIOUR §5
#[tokio::test(start_paused = true)]
async fn what_is_started_can_be_read_at_once_and_is_finished_here() {
    let (operations, _line, creator) = open().await;
    let new = own().lease_duration(SECOND).label("shelf", "7");
    let started = creator.start(new, takes(60 * SECOND)).await.unwrap();
    assert!(!started.reused && !started.operation.done);
    let name = name(&started);
    let now = operations.get(&name).unwrap();
    assert_eq!((now.state(), now.attempt()), (State::Running, 1));
    assert_eq!(now.labels().iter().next(), Some(("shelf", "7")));
    let last = started.finished().await.unwrap();
    assert_eq!(response(&last), text("done"));
    assert_eq!(operations.get(&name).unwrap().to_proto(), last);
}

// BEHAVIOUR §5
#[tokio::test(start_paused = true)]
async fn a_cancellation_by_a_client_and_the_creators_own_reach_the_handler() {
    let (operations, _line, creator) = open().await;
    for by_client in [true, false] {
        let new = own().lease_duration(HOUR);
        let started = creator.start(new, until_stopped).await.unwrap();
        let (name, signal) = (name(&started), started.stop_signal());
        // The stream of directives is open.
        sleep(SECOND).await;
        let asked = Instant::now();
        if by_client {
            operations.cancel(&name).await.unwrap();
            signal.cancelled().await;
        } else {
            signal.cancel();
        }
        let last = started.finished().await.unwrap();
        assert_eq!(reason(&error(&last)), "OPERATION_CANCELLED");
        assert_eq!(operations.get(&name).unwrap().state(), State::Cancelled);
        assert!(asked.elapsed() < SECOND, "{:?}", asked.elapsed());
    }
}

// BEHAVIOUR §5
#[tokio::test(start_paused = true)]
async fn the_same_request_is_executed_once_wherever_it_comes_from() {
    let (operations, line, creator) = open().await;
    let (run, mut runs) = mpsc::unbounded_channel();
    let handler = move |_: Context| {
        run.send(()).unwrap();
        async {
            sleep(10 * SECOND).await;
            Ok::<Any, Failure>(text("once"))
        }
    };
    let new = || own().request_id("r");
    let first = creator.start(new(), handler.clone()).await.unwrap();
    let again = creator.start(new(), handler.clone()).await.unwrap();
    assert!(again.reused && !first.reused);
    assert_eq!(again.operation.name, first.operation.name);
    let name = name(&first);
    assert_eq!(again.finished().await.unwrap().name, name.to_string());
    first.finished().await.unwrap();
    assert_eq!(operations.get(&name).unwrap().state(), State::Succeeded);
    // Whoever comes late gets the one that is done.
    let late = creator.start(new(), handler.clone()).await.unwrap();
    assert!(late.reused && late.operation.done);
    let another = Creator::new(line.channel(), "d").unwrap();
    let elsewhere = another.start(new(), handler).await.unwrap();
    assert!(elsewhere.reused && elsewhere.operation.done);
    assert_eq!(runs.recv().await, Some(()));
    assert!(runs.try_recv().is_err(), "it ran once");
}

// BEHAVIOUR §5
#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_what_is_short_and_gives_up_the_rest() {
    let (operations, _line, creator) = open().await;
    let short = creator.start(own(), takes(5 * SECOND)).await.unwrap();
    let long = creator.start(own(), takes(HOUR)).await.unwrap();
    let (short, long) = (name(&short), name(&long));
    let told = Instant::now();
    creator.shutdown(10 * SECOND).await;
    let took = told.elapsed();
    assert!((10 * SECOND..11 * SECOND).contains(&took), "{took:?}");
    assert_eq!(operations.get(&short).unwrap().state(), State::Succeeded);
    let lost = error(&operations.get(&long).unwrap().to_proto());
    assert_eq!(reason(&lost), "WORKER_LOST");
}

// BEHAVIOUR §5
#[tokio::test(start_paused = true)]
async fn a_creator_queues_for_others_too_and_says_when_it_cannot() {
    let (operations, line, creator) = open().await;
    let created = creator.create(NewOperation::queued("q")).await.unwrap();
    assert_eq!((created.lease, created.reused), (None, false));
    let name = created.operation.unwrap().name.parse().unwrap();
    assert_eq!(operations.get(&name).unwrap().state(), State::Pending);
    let bad = own().label("Bad", "x");
    let refused = creator.start(bad, until_stopped).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    line.cut();
    // The first call finds a connection that breaks, the second finds none.
    creator.start(own(), until_stopped).await.unwrap_err();
    let refused = creator.start(own(), until_stopped).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
}
