//! Limits: how much is taken in, and that what is given back can be taken again.

use std::time::Duration;

use longrunning::{
    Any, Context, Failure, Limits, NewOperation, Operations, Payload, QueueName, Report, Terms,
    WorkerId, proto::google::rpc::Code,
};
use tokio::task::JoinSet;

use crate::support::{
    error,
    journal::{Gate, TestJournal},
    metadata, pending, reason, running, succeeded, text,
};

async fn with(limits: Limits) -> Operations {
    crate::support::operations()
        .limits(limits)
        .start()
        .await
        .unwrap()
}

fn queued() -> NewOperation {
    NewOperation::queued("q")
}

async fn refusal(operations: &Operations, new: NewOperation) -> &'static str {
    let refused = operations.create(new).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    refused.reason()
}

// BEHAVIOUR §9
#[tokio::test]
async fn a_store_holds_so_many_operations_and_a_deleted_one_makes_room() {
    let operations = with(Limits {
        max_operations: 3,
        ..Limits::default()
    })
    .await;
    let waits = pending(&operations).await;
    let (runs, token) = running(&operations).await;
    let done = succeeded(&operations).await;
    assert_eq!(refusal(&operations, queued()).await, "STORE_FULL");
    operations.delete(&done).await.unwrap();
    pending(&operations).await;
    assert_eq!(refusal(&operations, queued()).await, "STORE_FULL");
    // What was deleted and goes on still takes its place, until it ends.
    operations.delete(&runs).await.unwrap();
    assert_eq!(refusal(&operations, queued()).await, "STORE_FULL");
    operations.succeed(&runs, token, text("")).await.unwrap();
    pending(&operations).await;
    operations.cancel(&waits).await.unwrap();
    assert_eq!(refusal(&operations, queued()).await, "STORE_FULL");
}

#[tokio::test(start_paused = true)]
async fn an_expired_operation_makes_room() {
    let operations = with(Limits {
        max_operations: 1,
        ..Limits::default()
    })
    .await;
    let new = || NewOperation::self_executed("w").retention(Duration::from_secs(10));
    let (name, token) = crate::support::hold(&operations, new()).await;
    operations.succeed(&name, token, text("")).await.unwrap();
    assert_eq!(refusal(&operations, new()).await, "STORE_FULL");
    tokio::time::sleep(Duration::from_secs(11)).await;
    operations.create(new()).await.unwrap();
}

// BEHAVIOUR §9
#[tokio::test]
async fn a_store_holds_so_many_bytes() {
    let operations = with(Limits {
        max_bytes: 100_000,
        ..Limits::default()
    })
    .await;
    let large = || queued().input(text(&"x".repeat(30_000)));
    let mut names = Vec::new();
    for _ in 0..3 {
        names.push(
            operations
                .create(large())
                .await
                .unwrap()
                .operation
                .owned_name(),
        );
    }
    assert_eq!(refusal(&operations, large()).await, "STORE_FULL");
    operations
        .create(queued())
        .await
        .expect("a small one still fits");
    operations.cancel(&names[0]).await.unwrap();
    operations
        .create(large())
        .await
        .expect("a done operation needs no input any more");
}

/// How many of these creations come through, if the journal keeps none of them
/// before all have begun.
async fn made_at_once(limits: Limits, creations: impl Iterator<Item = NewOperation>) -> usize {
    let journal = TestJournal::new();
    let builder = crate::support::operations()
        .limits(limits)
        .journal(journal.clone());
    let operations = builder.start().await.unwrap();
    journal.set(Gate::Shut);
    let mut creators = JoinSet::new();
    for new in creations {
        let operations = operations.clone();
        creators.spawn(async move { operations.create(new).await.is_ok() });
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    journal.set(Gate::Open);
    let made = creators.join_all().await;
    made.into_iter().filter(|made| *made).count()
}

// BEHAVIOUR §9: also if the journal takes its time.
#[tokio::test]
async fn creations_under_way_cannot_overrun_the_limits_together() {
    let limits = Limits {
        max_operations: 3,
        ..Limits::default()
    };
    assert_eq!(made_at_once(limits, (0..20).map(|_| queued())).await, 3);
    let limits = Limits {
        max_queue: 2,
        ..Limits::default()
    };
    assert_eq!(made_at_once(limits, (0..20).map(|_| queued())).await, 2);
}

// BEHAVIOUR §9: also if the journal takes its time.
#[tokio::test]
async fn creations_under_way_cannot_overrun_the_bytes_together() {
    let limits = Limits {
        max_bytes: 100_000,
        ..Limits::default()
    };
    let large = || queued().input(text(&"x".repeat(30_000)));
    assert_eq!(made_at_once(limits, (0..20).map(|_| large())).await, 3);
}

// BEHAVIOUR §9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creators_that_race_for_the_last_places_get_exactly_those() {
    let operations = with(Limits {
        max_operations: 100,
        max_queue: 60,
        ..Limits::default()
    })
    .await;
    let mut racers = JoinSet::new();
    for n in 0..400 {
        let operations = operations.clone();
        let queue = ["a", "b"][n % 2];
        racers.spawn(async move { operations.create(NewOperation::queued(queue)).await.is_ok() });
    }
    let made = racers
        .join_all()
        .await
        .into_iter()
        .filter(|made| *made)
        .count();
    assert_eq!(made, 100);
}

// BEHAVIOUR §9
#[tokio::test]
async fn a_queue_holds_so_many_that_wait_and_a_claim_makes_room() {
    let operations = with(Limits {
        max_queue: 2,
        ..Limits::default()
    })
    .await;
    let first = operations
        .create(queued())
        .await
        .unwrap()
        .operation
        .owned_name();
    let far = std::time::SystemTime::now() + Duration::from_secs(3600);
    operations
        .create(queued().not_before(far))
        .await
        .expect("it waits as well");
    assert_eq!(refusal(&operations, queued()).await, "QUEUE_FULL");
    operations
        .create(NewOperation::queued("other"))
        .await
        .expect("another queue");
    operations
        .create(NewOperation::self_executed("w"))
        .await
        .expect("no queue");
    let (queue, worker) = (QueueName::parse("q").unwrap(), WorkerId::new("w"));
    let token = operations
        .lease(&queue, &worker)
        .await
        .unwrap()
        .lease()
        .unwrap()
        .token;
    let third = operations
        .create(queued())
        .await
        .unwrap()
        .operation
        .owned_name();
    assert_eq!(refusal(&operations, queued()).await, "QUEUE_FULL");
    // What comes back needs no leave, but takes its place.
    operations.release(&first, token).await.unwrap();
    operations.cancel(&third).await.unwrap();
    assert_eq!(refusal(&operations, queued()).await, "QUEUE_FULL");
    operations.cancel(&first).await.unwrap();
    operations.create(queued()).await.unwrap();
}

// BEHAVIOUR §9
#[tokio::test]
async fn one_operation_is_only_so_large_and_what_is_too_large_changes_nothing() {
    let operations = with(Limits {
        max_operation_bytes: 10_000,
        ..Limits::default()
    })
    .await;
    let large = text(&"x".repeat(10_000));
    for new in [
        queued().input(large.clone()),
        queued().metadata(large.clone()),
    ] {
        assert_eq!(refusal(&operations, new).await, "TOO_LARGE");
    }
    let (name, token) = running(&operations).await;
    let before = operations.get(&name).unwrap();
    let payload = Payload::new(large.clone()).unwrap();
    let failure = Failure::new(Code::Internal, "x".repeat(10_000));
    let refused = [
        operations.succeed(&name, token, large.clone()).await,
        operations.fail(&name, token, failure.clone()).await,
        operations
            .report(
                &name,
                token,
                Report {
                    metadata: Some(payload.clone()),
                    ..Report::default()
                },
            )
            .await,
        operations
            .report(
                &name,
                token,
                Report {
                    checkpoint: Some(payload),
                    ..Report::default()
                },
            )
            .await,
    ];
    for refused in refused {
        let refused = refused.unwrap_err();
        assert_eq!(
            (refused.code(), refused.reason()),
            (Code::ResourceExhausted, "TOO_LARGE")
        );
        assert_eq!(refused.retry_after(), None, "trying again cannot help");
    }
    assert_eq!(operations.get(&name).unwrap().revision(), before.revision());
    operations
        .succeed(&name, token, text("small"))
        .await
        .unwrap();
}

// BEHAVIOUR §9
#[tokio::test]
async fn a_handler_whose_result_is_too_large_fails_with_that_reason() {
    let large = |_: Context| async { Ok::<Any, Failure>(text(&"x".repeat(10_000))) };
    let limits = Limits {
        max_operation_bytes: 5_000,
        ..Limits::default()
    };
    let operations = crate::support::operations()
        .limits(limits)
        .defaults(Terms::default())
        .handler("q", 1, large)
        .start()
        .await
        .unwrap();
    let name = operations
        .create(queued())
        .await
        .unwrap()
        .operation
        .owned_name();
    let done = operations
        .wait(&name, Duration::from_secs(60))
        .await
        .unwrap()
        .to_proto();
    let error = error(&done);
    assert_eq!((error.code, reason(&error).as_str()), (8, "TOO_LARGE"));
    assert!(metadata(&done).end_time.is_some());
}
