//! Races, thousands of times on several threads: whoever wins, there is one
//! outcome, its bytes stay, and nobody sleeps through it.

use std::{sync::Arc, time::Duration};

use longrunning::{Failure, NewOperation, OperationName, Operations, QueueName, State, WorkerId};
use tokio::{sync::Barrier, task::JoinSet};

use crate::support::{create_leased, create_pending, create_running, string_value};

const MINUTE: Duration = Duration::from_secs(60);

async fn start() -> Operations {
    crate::support::operations_builder().start().await.unwrap()
}

/// Runs all of `racers` from one starting line; returns what each said.
async fn run_concurrently<T: Send + 'static, const N: usize>(
    futures: [std::pin::Pin<Box<dyn Future<Output = T> + Send>>; N],
) -> Vec<T> {
    let barrier = Arc::new(Barrier::new(N));
    let mut tasks = JoinSet::new();
    for (index, future) in futures.into_iter().enumerate() {
        let barrier = barrier.clone();
        tasks.spawn(async move {
            barrier.wait().await;
            (index, future.await)
        });
    }
    let mut results = tasks.join_all().await;
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

// OP-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_finishes_have_one_winner_with_stable_bytes() {
    let operations = start().await;
    for _ in 0..3000 {
        let (name, token) = create_running(&operations).await;
        let finish = |result: &'static str| -> std::pin::Pin<Box<dyn Future<Output = _> + Send>> {
            let (operations, name) = (operations.clone(), name.clone());
            Box::pin(async move { operations.succeed(&name, token, string_value(result)).await })
        };
        let results = run_concurrently([finish("one"), finish("two"), finish("three")]).await;
        let winners: Vec<_> = results.iter().flatten().collect();
        assert_eq!(winners.len(), 1);
        let losers = results.iter().flat_map(|result| result.as_ref().err());
        assert!(
            losers
                .clone()
                .all(|error| error.reason() == "OPERATION_ALREADY_DONE")
        );
        assert_eq!(
            operations.get_cached(&name).unwrap().bytes(),
            winners[0].bytes()
        );
        operations.delete(&name).await.unwrap();
    }
}

// OP-6, CAN-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_finish_cancel_and_wait_agree_on_one_outcome() {
    let operations = start().await;
    for round in 0..5000 {
        let is_queued = round % 2 == 0;
        let (name, token) = if is_queued {
            (
                create_pending(&operations).await,
                longrunning::LeaseToken::random(),
            )
        } else {
            create_running(&operations).await
        };
        let call = |action: u8| -> std::pin::Pin<Box<dyn Future<Output = Option<Arc<_>>> + Send>> {
            let (operations, name) = (operations.clone(), name.clone());
            Box::pin(async move {
                match action {
                    0 => operations
                        .succeed(&name, token, string_value("won"))
                        .await
                        .ok(),
                    1 => operations.cancel(&name).await.ok(),
                    _ => operations.wait(&name, MINUTE).await.ok(),
                }
            })
        };
        let results = run_concurrently([call(0), call(1), call(2)]).await;
        let last = operations.get_cached(&name).unwrap();
        let waited = results[2].as_ref().expect("nobody deletes it");
        assert!(waited.is_done() && last.is_done());
        assert_eq!(waited.bytes(), last.bytes());
        let state = if is_queued {
            State::Cancelled
        } else {
            State::Succeeded
        };
        assert_eq!(last.state(), state);
        assert_eq!(
            results[0].is_some(),
            !is_queued,
            "only the holder can finish"
        );
    }
}

// OP-6, DEL-3: the four that can end what clients see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_finish_fail_cancel_delete_and_expiry_leave_nothing() {
    let operations = start().await;
    for _ in 0..3000 {
        let new = NewOperation::self_executed("w").retention(Duration::from_micros(1));
        let (name, token) = create_leased(&operations, new).await;
        let call = |action: u8| -> std::pin::Pin<
            Box<dyn Future<Output = Result<(), longrunning::Error>> + Send>,
        > {
            let (operations, name) = (operations.clone(), name.clone());
            Box::pin(async move {
                match action {
                    0 => operations
                        .succeed(&name, token, string_value("won"))
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
        let results = run_concurrently([call(0), call(1), call(2), call(3)]).await;
        assert!(
            !(results[0].is_ok() && results[1].is_ok()),
            "one outcome at the most"
        );
        assert!(
            results[0].is_ok() || results[1].is_ok(),
            "and one at the least"
        );
        for error in results.iter().flat_map(|result| result.as_ref().err()) {
            assert!(
                matches!(
                    error.reason(),
                    "OPERATION_ALREADY_DONE" | "OPERATION_NOT_FOUND"
                ),
                "{error}"
            );
        }
        let wait_result = operations.wait(&name, MINUTE).await;
        assert!(
            wait_result.is_err_and(|error| error.reason() == "OPERATION_NOT_FOUND")
                || results[3].is_err()
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
    assert_eq!(operations.waiter_count(), 0);
}

// WAIT-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wakeup_is_lost_in_100_000_races_of_wait_and_finish() {
    const RACE_COUNT: usize = 100_000;
    let operations = start().await;
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<(OperationName, _)>(1);
    let finisher = {
        let operations = operations.clone();
        tokio::spawn(async move {
            while let Some((name, token)) = receiver.recv().await {
                operations
                    .succeed(&name, token, string_value(""))
                    .await
                    .unwrap();
            }
        })
    };
    for race in 0..RACE_COUNT {
        let (name, token) = create_running(&operations).await;
        sender.send((name.clone(), token)).await.unwrap();
        // Now here, now there: the finisher comes before, within and after the wait.
        for _ in 0..race % 3 {
            std::hint::spin_loop();
        }
        let waited = tokio::time::timeout(MINUTE, operations.wait(&name, Duration::MAX)).await;
        assert!(waited.expect("the wake-up was lost").unwrap().is_done());
        operations.delete(&name).await.unwrap();
    }
    drop(sender);
    finisher.await.unwrap();
    assert_eq!(operations.waiter_count(), 0);
}

// WAIT-9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_abandoned_waits_leave_no_waiter() {
    let operations = start().await;
    let (name, token) = create_running(&operations).await;
    for _ in 0..10 {
        let mut waits = JoinSet::new();
        for _ in 0..1000 {
            let (operations, name) = (operations.clone(), name.clone());
            waits.spawn(async move { operations.wait(&name, MINUTE).await });
        }
        while operations.waiter_count() < 1000 {
            tokio::task::yield_now().await;
        }
        waits.shutdown().await;
        assert_eq!(operations.waiter_count(), 0);
    }
    operations
        .succeed(&name, token, string_value(""))
        .await
        .unwrap();
}

// BEHAVIOUR §5: at most one live lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_workers_share_queue_without_loss_or_duplicates() {
    const OPERATION_COUNT: usize = 4000;
    let operations = start().await;
    let mut workers = JoinSet::new();
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    for n in 0..8 {
        let (operations, sender) = (operations.clone(), sender.clone());
        workers.spawn(async move {
            let (queue, worker) = (
                QueueName::parse("nobody").unwrap(),
                WorkerId::new(&n.to_string()),
            );
            loop {
                let leased = operations.lease(&queue, &worker).await.unwrap();
                let lease = leased.lease().unwrap();
                assert_eq!((leased.attempt(), &lease.holder), (1, &worker));
                operations
                    .succeed(&leased.name_owned(), lease.token, string_value(""))
                    .await
                    .unwrap();
                sender.send(leased.name_owned()).unwrap();
            }
        });
    }
    let mut names = std::collections::HashSet::new();
    for _ in 0..OPERATION_COUNT {
        names.insert(create_pending(&operations).await);
    }
    for _ in 0..OPERATION_COUNT {
        let done = receiver.recv().await.unwrap();
        assert!(names.remove(&done), "{done} was done twice");
    }
    assert!(names.is_empty());
}

// BEHAVIOUR §5: a poll that is given up takes nothing with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_long_polls_lose_no_operation() {
    let operations = start().await;
    let queue = QueueName::parse("nobody").unwrap();
    let worker = WorkerId::new("w");
    for round in 0..3000_u64 {
        let poll = {
            let (operations, queue, worker) = (operations.clone(), queue.clone(), worker.clone());
            tokio::spawn(async move { operations.lease(&queue, &worker).await.unwrap() })
        };
        let name = create_pending(&operations).await;
        for _ in 0..round % 5 {
            tokio::task::yield_now().await;
        }
        poll.abort();
        let leased = match poll.await {
            Ok(leased) => leased,
            Err(_) => {
                let retried = operations.lease(&queue, &worker);
                tokio::time::timeout(MINUTE, retried)
                    .await
                    .expect("the operation was lost")
                    .unwrap()
            }
        };
        assert_eq!(leased.name_owned(), name);
        operations
            .succeed(&name, leased.lease().unwrap().token, string_value(""))
            .await
            .unwrap();
    }
}
