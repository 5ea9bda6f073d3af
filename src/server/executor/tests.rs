//! The in-place executor with futures that are ready, wait and panic.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::oneshot;

use super::*;

fn executor() -> (InPlace, TaskTracker) {
    let tasks = TaskTracker::new();
    (InPlace::new(tasks.clone()), tasks)
}

async fn finished(tasks: &TaskTracker) {
    tasks.close();
    tasks.wait().await;
}

#[tokio::test]
async fn a_future_that_is_ready_never_becomes_a_task() {
    let (executor, tasks) = executor();
    let (answer, mut answered) = oneshot::channel();
    executor.execute(async move { answer.send(1).unwrap() });
    assert_eq!(answered.try_recv(), Ok(1));
    assert!(tasks.is_empty());
}

#[tokio::test]
async fn a_future_that_waits_becomes_a_task_and_is_woken() {
    let (executor, tasks) = executor();
    let (ask, asked) = oneshot::channel::<u8>();
    let (answer, answered) = oneshot::channel();
    executor.execute(async move { answer.send(asked.await.unwrap() + 1).unwrap() });
    assert_eq!(tasks.len(), 1);

    ask.send(1).unwrap();
    assert_eq!(answered.await, Ok(2));
    finished(&tasks).await;
}

#[tokio::test]
async fn a_panic_in_place_ends_that_future_only() {
    let (executor, tasks) = executor();
    let (answer, answered) = oneshot::channel::<()>();
    executor.execute(async move {
        let _dropped_on_the_way_out = answer;
        panic!("in place");
    });
    answered.await.unwrap_err();
    assert!(tasks.is_empty());
}

#[tokio::test]
async fn a_panic_in_a_task_ends_that_task_only() {
    let (executor, tasks) = executor();
    let (ask, asked) = oneshot::channel::<()>();
    executor.execute(async move {
        asked.await.unwrap();
        panic!("in a task");
    });
    ask.send(()).unwrap();
    finished(&tasks).await;
}

#[tokio::test]
async fn a_long_row_of_futures_yields_the_rest_of_its_turn() {
    let (executor, tasks) = executor();
    let ran = Arc::new(AtomicUsize::new(0));
    for _ in 0..1000 {
        let ran = Arc::clone(&ran);
        executor.execute(async move {
            ran.fetch_add(1, Ordering::Relaxed);
        });
    }
    let in_place = ran.load(Ordering::Relaxed);
    assert!((1..1000).contains(&in_place), "{in_place} ran in place");
    assert_eq!(in_place + tasks.len(), 1000);

    finished(&tasks).await;
    assert_eq!(ran.load(Ordering::Relaxed), 1000);
}
