//! Races between calls, repeated thousands of times on several threads: exactly one
//! outcome is recorded, it never changes, and no wake-up is lost.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use longrunning::{Failure, NewOperation, OperationName, QueueName, State, WorkerId};
use tokio::{sync::Barrier, task::JoinSet};

use crate::support::{
    create_leased, create_pending, create_running,
    operations::{start_operations, wait_for_waiters},
    string_value,
};

const MINUTE: Duration = Duration::from_secs(60);

/// Starts all futures at the same moment and returns their results in the same order.
async fn run_concurrently<T: Send + 'static, const N: usize>(
    futures: [BoxFuture<'static, T>; N],
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

/// A call that takes part in a race.
#[derive(Clone, Copy)]
enum Action {
    Succeed,
    Fail,
    Cancel,
    Delete,
    Wait,
}

// Rules: OP-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_finishes_have_one_winner_with_stable_bytes() {
    let operations = start_operations().await;
    for _ in 0..3000 {
        let (name, token) = create_running(&operations).await;
        let finish = |result: &'static str| -> BoxFuture<'static, _> {
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

// Rules: OP-6, CAN-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_finish_cancel_and_wait_agree_on_one_outcome() {
    let operations = start_operations().await;
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
        let call = |action| -> BoxFuture<'static, Option<Arc<_>>> {
            let (operations, name) = (operations.clone(), name.clone());
            Box::pin(async move {
                let result = match action {
                    Action::Wait => operations.wait(&name, MINUTE).await,
                    Action::Cancel => operations.cancel(&name).await,
                    _ => operations.succeed(&name, token, string_value("won")).await,
                };
                result.ok()
            })
        };
        let calls = [Action::Succeed, Action::Cancel, Action::Wait].map(call);
        let [finished, _, waited] = run_concurrently(calls).await.try_into().unwrap();
        let last = operations.get_cached(&name).unwrap();
        let waited = waited.expect("expected the wait to succeed");
        assert!(waited.is_done() && last.is_done());
        assert_eq!(waited.bytes(), last.bytes());
        let state = if is_queued {
            State::Cancelled
        } else {
            State::Succeeded
        };
        assert_eq!(last.state(), state);
        assert_eq!(
            finished.is_some(),
            !is_queued,
            "expected only the lease holder to finish"
        );
    }
}

// Every call that can end the visibility of an operation.
// Rules: OP-6, DEL-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_finish_fail_cancel_delete_and_expiry_leave_nothing() {
    let operations = start_operations().await;
    for _ in 0..3000 {
        let new = NewOperation::self_executed("w").retention(Duration::from_micros(1));
        let (name, token) = create_leased(&operations, new).await;
        let call = |action| -> BoxFuture<'static, Result<(), longrunning::Error>> {
            let (operations, name) = (operations.clone(), name.clone());
            Box::pin(async move {
                match action {
                    Action::Delete => operations.delete(&name).await,
                    Action::Cancel => operations.cancel(&name).await.map(drop),
                    Action::Fail => {
                        let failure = Failure::cancelled();
                        operations.fail(&name, token, failure).await.map(drop)
                    }
                    _ => {
                        let response = string_value("won");
                        operations.succeed(&name, token, response).await.map(drop)
                    }
                }
            })
        };
        let calls = [
            Action::Succeed,
            Action::Fail,
            Action::Cancel,
            Action::Delete,
        ]
        .map(call);
        let results = run_concurrently(calls).await;
        let [succeeded, failed, _, deleted] = results.as_slice() else {
            unreachable!("four calls were made")
        };
        assert_ne!(
            succeeded.is_ok(),
            failed.is_ok(),
            "expected exactly one outcome"
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
                || deleted.is_err()
        );
    }
    // The last ones expire shortly after completion.
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

// Rules: WAIT-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wakeup_is_lost_in_100_000_races_of_wait_and_finish() {
    const RACE_COUNT: usize = 100_000;
    let operations = start_operations().await;
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
        // Vary the timing: the operation is finished before, during or after the wait.
        for _ in 0..race % 3 {
            std::hint::spin_loop();
        }
        let waited = tokio::time::timeout(MINUTE, operations.wait(&name, Duration::MAX)).await;
        assert!(waited.expect("expected a wake-up").unwrap().is_done());
        operations.delete(&name).await.unwrap();
    }
    drop(sender);
    finisher.await.unwrap();
    assert_eq!(operations.waiter_count(), 0);
}

// Rules: WAIT-9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_abandoned_waits_leave_no_waiter() {
    let operations = start_operations().await;
    let (name, token) = create_running(&operations).await;
    for _ in 0..10 {
        let mut waits = JoinSet::new();
        for _ in 0..1000 {
            let (operations, name) = (operations.clone(), name.clone());
            waits.spawn(async move { operations.wait(&name, MINUTE).await });
        }
        wait_for_waiters(&operations, 1000).await;
        waits.shutdown().await;
        assert_eq!(operations.waiter_count(), 0);
    }
    operations
        .succeed(&name, token, string_value(""))
        .await
        .unwrap();
}

// At most one live lease.
// Rules: LEASE-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_workers_share_queue_without_loss_or_duplicates() {
    const OPERATION_COUNT: usize = 4000;
    let operations = start_operations().await;
    let mut workers = JoinSet::new();
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    for n in 0..8 {
        let (operations, sender) = (operations.clone(), sender.clone());
        workers.spawn(async move {
            let (queue, worker) = (
                QueueName::parse("idle").unwrap(),
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
        assert!(names.remove(&done), "expected {done} to complete once");
    }
    assert!(names.is_empty());
}

// A dropped poll does not keep an operation.
// Rules: QUEUE-8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_long_polls_lose_no_operation() {
    let operations = start_operations().await;
    let queue = QueueName::parse("idle").unwrap();
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
                    .expect("expected the operation to be leased")
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
