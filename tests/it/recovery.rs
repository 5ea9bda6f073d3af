//! A restart: what the journal kept comes back as it was, and nobody loses a
//! lease for the time that the server was away.

use std::time::Duration;

use longrunning::{
    Failure, NewOperation, Operation, Operations, QueueName, Report, RetryPolicy, State, WorkerId,
    proto::google::rpc::Code,
};
use tokio::time::{Instant, sleep};

use crate::support::{error, hold, journal::TestJournal, own_metadata, progress, reason, text};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// To the nearest.
fn hours(time: Duration) -> u64 {
    (time.as_secs() + HOUR.as_secs() / 2) / HOUR.as_secs()
}

async fn start(journal: &TestJournal) -> Operations {
    crate::support::operations()
        .journal(journal.clone())
        .start()
        .await
        .unwrap()
}

fn queue() -> QueueName {
    QueueName::parse("q").unwrap()
}

/// Ends a server the hard way, without a word to anybody, and returns the
/// journal of the next one, which replays in another order.
async fn crash(operations: Operations, journal: TestJournal) -> TestJournal {
    drop(operations);
    // Its tasks notice on their own.
    while !journal.is_alone() {
        tokio::task::yield_now().await;
    }
    let mut kept: Vec<Operation> = journal.into_kept();
    kept.reverse();
    TestJournal::with(kept)
}

async fn list(operations: &Operations) -> Vec<(String, Vec<u8>)> {
    let page = operations.list(&Default::default()).await.unwrap();
    page.operations
        .iter()
        .map(|operation| (operation.name().to_owned(), operation.bytes().to_vec()))
        .collect()
}

// BEHAVIOUR §5: acknowledged means durable.
#[tokio::test(start_paused = true)]
async fn a_replay_brings_back_the_same_bytes_in_the_same_order_and_the_same_queue() {
    let journal = TestJournal::new();
    let operations = start(&journal).await;
    for n in 0..600 {
        let new = NewOperation::queued("q")
            .priority(n % 3)
            .input(text(&n.to_string()));
        let name = operations.create(new).await.unwrap().operation.owned_name();
        if n % 7 == 0 {
            operations.cancel(&name).await.unwrap();
        }
    }
    let new = NewOperation::self_executed("w")
        .metadata(own_metadata(3))
        .parent("projects/p")
        .id("x");
    let (name, token) = hold(&operations, new).await;
    let report = Report {
        progress: Some(progress(3)),
        ..Report::default()
    };
    operations.report(&name, token, report).await.unwrap();
    let before = list(&operations).await;

    let journal = crash(operations, journal).await;
    let operations = start(&journal).await;
    assert_eq!(list(&operations).await, before);
    assert_eq!(
        operations
            .get(&name)
            .unwrap()
            .progress()
            .unwrap()
            .done_units,
        3
    );
    operations
        .renew(&name, token)
        .await
        .expect("the lease is still good");
    let mut inputs = Vec::new();
    for _ in 0..600 - 86 {
        let leased = operations
            .lease(&queue(), &WorkerId::new("w"))
            .await
            .unwrap();
        let input = leased.input().unwrap().any().clone();
        assert!(
            inputs
                .last()
                .is_none_or(|(priority, _)| leased.terms().priority <= *priority)
        );
        inputs.push((leased.terms().priority, input));
    }
    let expected = |priority| (0..600).filter(move |n| n % 7 != 0 && n % 3 == priority);
    let expected = [2, 1, 0]
        .into_iter()
        .flat_map(expected)
        .map(|n| text(&n.to_string()));
    assert!(inputs.into_iter().map(|(_, input)| input).eq(expected));

    // What comes now is newer than all that was there before.
    let new = operations
        .create(NewOperation::queued("q"))
        .await
        .unwrap()
        .operation;
    assert_eq!(list(&operations).await[0].0, new.name());
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_went_back_over_a_restart_holds_up_no_queue() {
    let journal = TestJournal::new();
    let operations = start(&journal).await;
    let new = NewOperation::queued("q");
    let queued = operations.create(new).await.unwrap().operation;
    // As if the clock had been two hours ahead, and the operation not ready before.
    let ahead = queued.create_time() + 2 * HOUR;
    let new = NewOperation::queued("q").not_before(std::time::SystemTime::now() + HOUR);
    operations.create(new).await.unwrap();
    drop(queued);
    let journal = crash(operations, journal).await.up_to(ahead);
    let operations = start(&journal).await;
    let begun = Instant::now();
    for _ in 0..2 {
        let leased = operations.lease(&queue(), &WorkerId::new("w")).await;
        assert!(ahead <= leased.unwrap().update_time());
    }
    assert_eq!(hours(begun.elapsed()), 0);
}

// BEHAVIOUR §4
#[tokio::test(start_paused = true)]
async fn after_a_restart_no_lease_is_over_for_a_full_lease_duration() {
    let journal = TestJournal::new();
    let operations = start(&journal).await;
    let retry = RetryPolicy::attempts(2);
    let new = NewOperation::queued("q")
        .retry(retry)
        .lease_duration(10 * SECOND);
    let queued = operations.create(new).await.unwrap().operation.owned_name();
    operations
        .lease(&queue(), &WorkerId::new("w"))
        .await
        .unwrap();
    let (own, token) = hold(&operations, NewOperation::self_executed("w")).await;
    sleep(9 * SECOND).await;
    // To read what was kept takes longer than a lease lasts.
    let journal = crash(operations, journal).await.slow(60 * SECOND);
    let operations = start(&journal).await;
    let begun = Instant::now();
    sleep(9 * SECOND).await;
    assert_eq!(operations.get(&queued).unwrap().state(), State::Running);
    let again = operations
        .lease(&queue(), &WorkerId::new("v"))
        .await
        .unwrap();
    assert_eq!((again.owned_name(), again.attempt()), (queued, 2));
    assert_eq!(begun.elapsed().as_secs(), 10);
    sleep(15 * SECOND).await;
    operations
        .renew(&own, token)
        .await
        .expect("30 s are not over");
    let lost = operations.wait(&own, 3600 * SECOND).await.unwrap();
    assert_eq!(reason(&error(&lost.to_proto())), "WORKER_LOST");
}

// BEHAVIOUR §4: the clock of what is done and of what must end goes on.
#[tokio::test(start_paused = true)]
async fn retention_pauses_and_total_timeouts_go_on_over_a_restart() {
    let journal = TestJournal::new();
    let operations = start(&journal).await;
    let new = NewOperation::self_executed("w").retention(6 * HOUR);
    let (done, token) = hold(&operations, new).await;
    operations
        .succeed(&done, token, text("done"))
        .await
        .unwrap();
    let retry = RetryPolicy {
        jitter: 0.0,
        initial_backoff: 4 * HOUR,
        max_backoff: 4 * HOUR,
        ..RetryPolicy::attempts(2)
    };
    operations
        .create(NewOperation::queued("q").retry(retry))
        .await
        .unwrap();
    let leased = operations
        .lease(&queue(), &WorkerId::new("w"))
        .await
        .unwrap();
    let failure = Failure::new(Code::Unavailable, "busy").retryable();
    operations
        .fail(&leased.owned_name(), leased.lease().unwrap().token, failure)
        .await
        .unwrap();
    drop(leased);
    let new = NewOperation::queued("nobody").total_timeout(5 * HOUR);
    let late = operations.create(new).await.unwrap().operation.owned_name();

    // Paused time does not move the wall clock that a new server reads: to it
    // no time has passed but what this test took in earnest, far below an hour.
    let journal = crash(operations, journal).await;
    let operations = start(&journal).await;
    let begun = Instant::now();
    operations.get(&done).unwrap();
    assert_eq!(
        operations
            .lease(&queue(), &WorkerId::new("w"))
            .await
            .unwrap()
            .attempt(),
        2
    );
    assert_eq!(hours(begun.elapsed()), 4);
    let ended = operations.wait(&late, 24 * HOUR).await.unwrap();
    assert_eq!(reason(&error(&ended.to_proto())), "TOTAL_TIMEOUT");
    assert_eq!(hours(begun.elapsed()), 5);
    sleep(2 * HOUR).await;
    assert!(operations.get(&done).is_err());
}

// BEHAVIOUR §5
#[tokio::test(start_paused = true)]
async fn request_ids_ids_and_what_was_deleted_are_remembered() {
    let journal = TestJournal::new();
    let operations = start(&journal).await;
    let new = || NewOperation::queued("q").request_id("r").id("mine");
    operations.create(new()).await.unwrap();
    let (hidden, token) = hold(&operations, NewOperation::self_executed("w")).await;
    operations.delete(&hidden).await.unwrap();

    let journal = crash(operations, journal).await;
    let operations = start(&journal).await;
    assert!(operations.create(new()).await.unwrap().reused);
    let other = operations.create(new().priority(1)).await.unwrap_err();
    assert_eq!(other.reason(), "REQUEST_ID_REUSED");
    let taken = operations
        .create(NewOperation::queued("q").id("mine"))
        .await
        .unwrap_err();
    assert_eq!(taken.reason(), "OPERATION_EXISTS");
    assert!(operations.get(&hidden).is_err(), "it stays hidden");
    assert_eq!(list(&operations).await.len(), 1);
    operations
        .succeed(&hidden, token, text("unseen"))
        .await
        .unwrap();
    assert_eq!(journal.log().last().unwrap(), &format!("forget {hidden}"));
}

// BEHAVIOUR §9: the limits know what was there before.
#[tokio::test(start_paused = true)]
async fn limits_count_what_a_replay_brought_back() {
    let journal = TestJournal::new();
    let operations = start(&journal).await;
    for _ in 0..3 {
        operations.create(NewOperation::queued("q")).await.unwrap();
    }
    let journal = crash(operations, journal).await;
    let limits = longrunning::Limits {
        max_operations: 4,
        max_queue: 3,
        ..Default::default()
    };
    let builder = crate::support::operations().journal(journal).limits(limits);
    let operations = builder.start().await.unwrap();
    let full = operations
        .create(NewOperation::queued("q"))
        .await
        .unwrap_err();
    assert_eq!(full.reason(), "QUEUE_FULL");
    operations.create(NewOperation::queued("p")).await.unwrap();
    let full = operations
        .create(NewOperation::queued("p"))
        .await
        .unwrap_err();
    assert_eq!(full.reason(), "STORE_FULL");
}
