//! Races, thousands of times on several threads: whoever wins, there is one
//! outcome, its bytes stay, and nobody sleeps through it.

use std::{sync::Arc, time::Duration};

use longrunning::{
    Failure, NewOperation, OperationName, Operations, QueueName, Stage, State, WorkerId,
};
use tokio::{sync::Barrier, task::JoinSet};

use crate::support::{hold, pending, running, text};

const MINUTE: Duration = Duration::from_secs(60);

async fn start() -> Operations {
    crate::support::operations().start().await.unwrap()
}

/// Runs all of `racers` from one starting line; returns what each said.
async fn race<T: Send + 'static, const N: usize>(
    racers: [std::pin::Pin<Box<dyn Future<Output = T> + Send>>; N],
) -> Vec<T> {
    let line = Arc::new(Barrier::new(N));
    let mut tasks = JoinSet::new();
    for (at, racer) in racers.into_iter().enumerate() {
        let line = line.clone();
        tasks.spawn(async move {
            line.wait().await;
            (at, racer.await)
        });
    }
    let mut said = tasks.join_all().await;
    said.sort_by_key(|(at, _)| *at);
    said.into_iter().map(|(_, said)| said).collect()
}

// OP-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_outcomes_that_race_one_wins_and_its_bytes_stay() {
    let operations = start().await;
    for _ in 0..3000 {
        let (name, token) = running(&operations).await;
        let finish = |answer: &'static str| -> std::pin::Pin<Box<dyn Future<Output = _> + Send>> {
            let (operations, name) = (operations.clone(), name.clone());
            Box::pin(async move { operations.succeed(&name, token, text(answer)).await })
        };
        let said = race([finish("one"), finish("two"), finish("three")]).await;
        let winners: Vec<_> = said.iter().flatten().collect();
        assert_eq!(winners.len(), 1);
        let losers = said.iter().flat_map(|said| said.as_ref().err());
        assert!(
            losers
                .clone()
                .all(|error| error.reason() == "OPERATION_DONE")
        );
        assert_eq!(operations.get(&name).unwrap().bytes(), winners[0].bytes());
        operations.delete(&name).await.unwrap();
    }
}

// OP-6, CAN-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finish_cancel_and_wait_that_race_agree_on_one_outcome() {
    let operations = start().await;
    for round in 0..5000 {
        let queued = round % 2 == 0;
        let (name, token) = if queued {
            (
                pending(&operations).await,
                longrunning::LeaseToken::random(),
            )
        } else {
            running(&operations).await
        };
        let with = |act: u8| -> std::pin::Pin<Box<dyn Future<Output = Option<Arc<_>>> + Send>> {
            let (operations, name) = (operations.clone(), name.clone());
            Box::pin(async move {
                match act {
                    0 => operations.succeed(&name, token, text("won")).await.ok(),
                    1 => operations.cancel(&name).await.ok(),
                    _ => operations.wait(&name, MINUTE).await.ok(),
                }
            })
        };
        let said = race([with(0), with(1), with(2)]).await;
        let last = operations.get(&name).unwrap();
        let waited = said[2].as_ref().expect("nobody deletes it");
        assert!(waited.is_done() && last.is_done());
        assert_eq!(waited.bytes(), last.bytes());
        let state = if queued {
            State::Cancelled
        } else {
            State::Succeeded
        };
        assert_eq!(last.state(), state);
        assert_eq!(said[0].is_some(), !queued, "only the holder can finish");
    }
}

// OP-6, DEL-3: the four that can end what clients see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finish_fail_cancel_and_delete_that_race_with_expiry_leave_nothing_behind() {
    let operations = start().await;
    for _ in 0..3000 {
        let new = NewOperation::self_executed("w").retention(Duration::from_micros(1));
        let (name, token) = hold(&operations, new).await;
        let with = |act: u8| -> std::pin::Pin<
            Box<dyn Future<Output = Result<(), longrunning::Error>> + Send>,
        > {
            let (operations, name) = (operations.clone(), name.clone());
            Box::pin(async move {
                match act {
                    0 => operations
                        .succeed(&name, token, text("won"))
                        .await
                        .map(drop),
                    1 => operations
                        .fail(&name, token, Failure::cancelled())
                        .await
                        .map(drop),
                    2 => operations.cancel(&name).await.map(drop),
                    _ => operations.delete(&name).await,
                }
            })
        };
        let said = race([with(0), with(1), with(2), with(3)]).await;
        assert!(
            !(said[0].is_ok() && said[1].is_ok()),
            "one outcome at the most"
        );
        assert!(said[0].is_ok() || said[1].is_ok(), "and one at the least");
        for error in said.iter().flat_map(|said| said.as_ref().err()) {
            assert!(
                matches!(error.reason(), "OPERATION_DONE" | "OPERATION_NOT_FOUND"),
                "{error}"
            );
        }
        let end = operations.wait(&name, MINUTE).await;
        assert!(
            end.is_err_and(|error| error.reason() == "OPERATION_NOT_FOUND") || said[3].is_err()
        );
    }
    // The last ones expire within a moment.
    while !operations
        .list(&Default::default())
        .await
        .unwrap()
        .operations
        .is_empty()
    {
        tokio::task::yield_now().await;
    }
    assert_eq!(operations.waiters(), 0);
}

// WAIT-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wake_up_is_lost_in_100_000_races_of_wait_and_finish() {
    const RACES: usize = 100_000;
    let operations = start().await;
    let (tell, mut told) = tokio::sync::mpsc::channel::<(OperationName, _)>(1);
    let finisher = {
        let operations = operations.clone();
        tokio::spawn(async move {
            while let Some((name, token)) = told.recv().await {
                operations.succeed(&name, token, text("")).await.unwrap();
            }
        })
    };
    for race in 0..RACES {
        let (name, token) = running(&operations).await;
        tell.send((name.clone(), token)).await.unwrap();
        // Now here, now there: the finisher comes before, within and after the wait.
        for _ in 0..race % 3 {
            std::hint::spin_loop();
        }
        let waited = tokio::time::timeout(MINUTE, operations.wait(&name, Duration::MAX)).await;
        assert!(waited.expect("the wake-up was lost").unwrap().is_done());
        operations.delete(&name).await.unwrap();
    }
    drop(tell);
    finisher.await.unwrap();
    assert_eq!(operations.waiters(), 0);
}

// WAIT-9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_abandoned_waits_leave_no_waiter_behind() {
    let operations = start().await;
    let (name, token) = running(&operations).await;
    for _ in 0..10 {
        let mut waits = JoinSet::new();
        for _ in 0..1000 {
            let (operations, name) = (operations.clone(), name.clone());
            waits.spawn(async move { operations.wait(&name, MINUTE).await });
        }
        while operations.waiters() < 1000 {
            tokio::task::yield_now().await;
        }
        waits.shutdown().await;
        assert_eq!(operations.waiters(), 0);
    }
    operations.succeed(&name, token, text("")).await.unwrap();
}

// BEHAVIOUR §5: at most one live lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_race_for_a_queue_share_it_without_loss_or_doubling() {
    const MANY: usize = 4000;
    let operations = start().await;
    let mut workers = JoinSet::new();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    for n in 0..8 {
        let (operations, tell) = (operations.clone(), tell.clone());
        workers.spawn(async move {
            let (queue, worker) = (
                QueueName::parse("nobody").unwrap(),
                WorkerId::new(&n.to_string()),
            );
            loop {
                let leased = operations.lease(&queue, &worker).await.unwrap();
                let Stage::Running(lease) = leased.stage() else {
                    panic!("it is leased")
                };
                assert_eq!((leased.attempt(), &lease.holder), (1, &worker));
                operations
                    .succeed(&leased.owned_name(), lease.token, text(""))
                    .await
                    .unwrap();
                tell.send(leased.owned_name()).unwrap();
            }
        });
    }
    let mut names = std::collections::HashSet::new();
    for _ in 0..MANY {
        names.insert(pending(&operations).await);
    }
    for _ in 0..MANY {
        let done = told.recv().await.unwrap();
        assert!(names.remove(&done), "{done} was done twice");
    }
    assert!(names.is_empty());
}

// BEHAVIOUR §5: a poll that is given up takes nothing with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_polls_that_are_given_up_lose_no_operation() {
    let operations = start().await;
    let queue = QueueName::parse("nobody").unwrap();
    let worker = WorkerId::new("w");
    for round in 0..3000_u64 {
        let poll = {
            let (operations, queue, worker) = (operations.clone(), queue.clone(), worker.clone());
            tokio::spawn(async move { operations.lease(&queue, &worker).await.unwrap() })
        };
        let name = pending(&operations).await;
        for _ in 0..round % 5 {
            tokio::task::yield_now().await;
        }
        poll.abort();
        let leased = match poll.await {
            Ok(leased) => leased,
            Err(_) => {
                let again = operations.lease(&queue, &worker);
                tokio::time::timeout(MINUTE, again)
                    .await
                    .expect("the operation was lost")
                    .unwrap()
            }
        };
        assert_eq!(leased.owned_name(), name);
        operations
            .succeed(&name, leased.lease().unwrap().token, text(""))
            .await
            .unwrap();
    }
}
