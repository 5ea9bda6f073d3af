//! The end of a server: waits are answered, handlers get their grace, and what
//! is not finished goes back to its queue.

use std::time::Duration;

use longrunning::{Any, Context, Failure, NewOperation, Operations, QueueName, State, WorkerId};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tonic::Code;

use crate::support::{
    Server,
    journal::{Gate, TestJournal},
    pending,
    problem::problem,
    response, running, text, wait,
};

const SECOND: Duration = Duration::from_secs(1);

/// Operations with a handler on `q` that says when it begins and takes `time`.
async fn slow(time: Duration, started: mpsc::Sender<Context>, journal: &TestJournal) -> Operations {
    let handler = move |context: Context| {
        let started = started.clone();
        async move {
            context.keep_checkpoint(text("half way")).unwrap();
            started.send(context).await.unwrap();
            tokio::time::sleep(time).await;
            Ok::<Any, Failure>(text("finished"))
        }
    };
    let builder = crate::support::operations().journal(journal.clone());
    builder.handler("q", 1, handler).start().await.unwrap()
}

// WAIT-10
#[tokio::test]
async fn on_shutdown_every_wait_answers_ok_with_the_present_state() {
    let server = Server::start().await;
    let (name, _) = running(&server.operations).await;
    let mut waits = JoinSet::new();
    for _ in 0..50 {
        let (mut client, request) = (server.client().await, wait(&name, 600_000));
        waits.spawn(async move { client.wait_operation(request).await });
    }
    while server.operations.waiters() < 50 {
        tokio::task::yield_now().await;
    }
    server.operations.shutdown(Duration::ZERO).await;
    for answer in waits.join_all().await {
        assert!(!answer.unwrap().into_inner().done);
    }
    assert_eq!(server.operations.waiters(), 0);
    server.close().await;
}

// BEHAVIOUR §10
#[tokio::test]
async fn while_a_server_drains_reading_goes_on() {
    let server = Server::start().await;
    let name = pending(&server.operations).await;
    server.operations.shutdown(Duration::ZERO).await;
    let mut client = server.client().await;
    let read = client
        .get_operation(crate::support::get(name.as_str()))
        .await
        .unwrap();
    assert!(!read.into_inner().done);
    assert!(
        !client
            .wait_operation(wait(&name, 60_000))
            .await
            .unwrap()
            .into_inner()
            .done
    );
    let unknown = client
        .get_operation(crate::support::get("operations/unknown"))
        .await;
    assert_eq!(problem(unknown).code, Code::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_finishes_within_the_grace_is_done() {
    let (started, mut starts) = mpsc::channel(9);
    let operations = slow(5 * SECOND, started, &TestJournal::new()).await;
    let name = operations.submit("q", Any::default()).await;
    assert!(name.is_err(), "an input without a type is refused");
    let name = operations.submit("q", text("")).await.unwrap().owned_name();
    let next = operations.submit("q", text("")).await.unwrap().owned_name();
    starts.recv().await.unwrap();
    let begun = Instant::now();
    operations.shutdown(20 * SECOND).await;
    assert_eq!(begun.elapsed(), 5 * SECOND, "no longer than it takes");
    let done = operations.get(&name).unwrap();
    assert_eq!(response(&done.to_proto()), text("finished"));
    let next = operations.get(&next).unwrap();
    assert_eq!(
        (next.state(), next.attempt()),
        (State::Pending, 0),
        "nothing more is claimed"
    );
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_does_not_finish_within_the_grace_is_dropped_and_released() {
    let (started, mut starts) = mpsc::channel(9);
    let journal = TestJournal::new();
    let operations = slow(3600 * SECOND, started, &journal).await;
    let name = operations.submit("q", text("")).await.unwrap().owned_name();
    let context = starts.recv().await.unwrap();
    let begun = Instant::now();
    operations.shutdown(20 * SECOND).await;
    assert_eq!(begun.elapsed(), 20 * SECOND);
    let released = operations.get(&name).unwrap();
    assert_eq!(released.state(), State::Pending);
    assert!(released.lease().is_none());
    assert_eq!(released.checkpoint().unwrap().any(), &text("half way"));
    assert!(
        context.is_cancelled(),
        "the context outlives its attempt and says so"
    );
}

// BEHAVIOUR §10: also without any grace, what the handler left is kept.
#[tokio::test(start_paused = true)]
async fn a_release_without_grace_keeps_the_last_checkpoint_and_does_not_count() {
    let (started, mut starts) = mpsc::channel(9);
    let operations = slow(3600 * SECOND, started, &TestJournal::new()).await;
    let name = operations.submit("q", text("")).await.unwrap().owned_name();
    starts.recv().await.unwrap();
    operations.shutdown(Duration::ZERO).await;
    let released = operations.get(&name).unwrap();
    assert_eq!(released.state(), State::Pending);
    assert_eq!(released.checkpoint().unwrap().any(), &text("half way"));
}

// BEHAVIOUR §5: a claim that is under way is not left behind as a lease of nobody.
#[tokio::test(start_paused = true)]
async fn a_claim_that_the_shutdown_overtakes_goes_back_to_its_queue() {
    let (started, _starts) = mpsc::channel(9);
    let journal = TestJournal::new();
    let operations = slow(SECOND, started, &journal).await;
    let name = operations.submit("q", text("")).await.unwrap().owned_name();
    // The pool has not run yet: from here on nothing is kept.
    journal.set(Gate::Shut);
    journal.begun(2).await;
    let shutdown = operations.shutdown(10 * SECOND);
    let open = async {
        tokio::task::yield_now().await;
        journal.set(Gate::Open);
    };
    tokio::join!(shutdown, open);
    let operation = operations.get(&name).unwrap();
    assert_eq!(
        (operation.state(), operation.is_done()),
        (State::Pending, false)
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_is_leased_from_a_server_that_shuts_down() {
    let operations = crate::support::operations().start().await.unwrap();
    let (queue, worker) = (QueueName::parse("q").unwrap(), WorkerId::new("w"));
    let poll = {
        let (operations, queue, worker) = (operations.clone(), queue.clone(), worker.clone());
        tokio::spawn(async move { operations.lease(&queue, &worker).await })
    };
    tokio::task::yield_now().await;
    operations.shutdown(Duration::ZERO).await;
    for poll in [poll.await.unwrap(), operations.lease(&queue, &worker).await] {
        assert_eq!(poll.unwrap_err().reason(), "SHUTTING_DOWN");
    }
}

#[tokio::test(start_paused = true)]
async fn workers_stop_when_the_last_handle_is_dropped() {
    let (started, mut starts) = mpsc::channel(9);
    let journal = TestJournal::new();
    let operations = slow(3600 * SECOND, started, &journal).await;
    operations.create(NewOperation::queued("q")).await.unwrap();
    let context = starts.recv().await.unwrap();
    drop(operations);
    context.cancelled().await;
    while !journal.is_alone() {
        tokio::task::yield_now().await;
    }
    let kept = journal.into_kept();
    assert_eq!(kept[0].state(), State::Pending);
}

// BEHAVIOUR §10: a store that cannot write must not hold up the end for ever.
#[tokio::test(start_paused = true)]
async fn a_shutdown_with_a_broken_journal_ends_with_the_grace() {
    let (started, mut starts) = mpsc::channel(9);
    let journal = TestJournal::new();
    let operations = slow(5 * SECOND, started, &journal).await;
    let new = NewOperation::queued("q").lease_duration(3600 * SECOND);
    operations.create(new).await.unwrap();
    starts.recv().await.unwrap();
    journal.set(Gate::Broken);
    let begun = Instant::now();
    operations.shutdown(20 * SECOND).await;
    assert!(begun.elapsed() < 30 * SECOND, "{:?}", begun.elapsed());
}

// BEHAVIOUR §5: at most one live lease, and no work without one.
#[tokio::test(start_paused = true)]
async fn a_handler_has_stopped_before_its_operation_is_offered_again() {
    struct Working(std::sync::Arc<std::sync::atomic::AtomicBool>);
    impl Drop for Working {
        fn drop(&mut self) {
            self.0.store(false, std::sync::atomic::Ordering::SeqCst);
        }
    }
    let working = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (started, mut starts) = mpsc::channel(9);
    let handler = {
        let working = working.clone();
        move |_: Context| {
            let (working, started) = (working.clone(), started.clone());
            async move {
                working.store(true, std::sync::atomic::Ordering::SeqCst);
                let _working = Working(working);
                started.send(()).await.unwrap();
                std::future::pending::<Result<Any, Failure>>().await
            }
        }
    };
    let journal = TestJournal::new();
    let builder = crate::support::operations().journal(journal.clone());
    let operations = builder.handler("q", 1, handler).start().await.unwrap();
    operations.submit("q", text("")).await.unwrap();
    starts.recv().await.unwrap();
    journal.set(Gate::Shut);
    let before = journal.count();
    let seen = async {
        journal.begun(before + 1).await;
        let working = working.load(std::sync::atomic::Ordering::SeqCst);
        journal.set(Gate::Open);
        working
    };
    let ((), working) = tokio::join!(operations.shutdown(Duration::ZERO), seen);
    assert!(
        !working,
        "the lease is given up while the handler still works"
    );
}
