//! Tests with futures that are ready, pending or panic.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::oneshot;

use super::*;

fn executor() -> (InlineFirstExecutor, TaskTracker) {
    let tasks = TaskTracker::new();
    (InlineFirstExecutor(tasks.clone()), tasks)
}

async fn wait_until_finished(tasks: &TaskTracker) {
    tasks.close();
    tasks.wait().await;
}

#[tokio::test]
async fn ready_future_is_not_spawned() {
    let (executor, tasks) = executor();
    let (result_sender, mut result_receiver) = oneshot::channel();
    executor.execute(async move { result_sender.send(1).unwrap() });
    assert_eq!(result_receiver.try_recv(), Ok(1));
    assert!(tasks.is_empty());
}

#[tokio::test]
async fn pending_future_is_spawned_and_woken() {
    let (executor, tasks) = executor();
    let (input_sender, input_receiver) = oneshot::channel::<u8>();
    let (result_sender, result_receiver) = oneshot::channel();
    executor.execute(async move {
        result_sender
            .send(input_receiver.await.unwrap() + 1)
            .unwrap();
    });
    assert_eq!(tasks.len(), 1);

    input_sender.send(1).unwrap();
    assert_eq!(result_receiver.await, Ok(2));
    wait_until_finished(&tasks).await;
}

// Rules: CONN-3
#[tokio::test]
async fn panic_during_the_inline_poll_ends_only_that_future() {
    let (executor, tasks) = executor();
    let (result_sender, result_receiver) = oneshot::channel::<()>();
    executor.execute(async move {
        let _dropped_on_unwind = result_sender;
        panic!("inline");
    });
    result_receiver.await.unwrap_err();
    assert!(tasks.is_empty());
}

// Rules: CONN-3
#[tokio::test]
async fn panic_in_a_spawned_task_ends_only_that_task() {
    let (executor, tasks) = executor();
    let (input_sender, input_receiver) = oneshot::channel::<()>();
    executor.execute(async move {
        input_receiver.await.unwrap();
        panic!("in a task");
    });
    input_sender.send(()).unwrap();
    wait_until_finished(&tasks).await;
}

#[tokio::test]
async fn exhausted_coop_budget_spawns_the_remaining_futures() {
    let (executor, tasks) = executor();
    let ran = Arc::new(AtomicUsize::new(0));
    for _ in 0..1000 {
        let ran = Arc::clone(&ran);
        executor.execute(async move {
            ran.fetch_add(1, Ordering::Relaxed);
        });
    }
    let inline_count = ran.load(Ordering::Relaxed);
    assert!(
        (1..1000).contains(&inline_count),
        "{inline_count} ran inline"
    );
    assert_eq!(inline_count + tasks.len(), 1000);

    wait_until_finished(&tasks).await;
    assert_eq!(ran.load(Ordering::Relaxed), 1000);
}
