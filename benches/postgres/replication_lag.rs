//! Measures replication lag: the latency of a wake-up and of visibility on another server.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use longrunning::Operations;
use tokio::task::{JoinSet, yield_now};

use crate::{WAIT_TIMEOUT, create_operation, finish_operation, median_and_p99};

/// Measures the time from a finish on one server to the wake-up of a waiter on another.
pub(crate) async fn bench_wake_up(
    mode: &str,
    source: &Operations,
    observer: &Operations,
    count: usize,
) {
    let mut latencies = Vec::with_capacity(count);
    for _ in 0..count {
        let (name, token) = create_operation(source).await;
        observer.get(&name).await.expect("it exists");
        let waiter = {
            let (operations, name) = (observer.clone(), name.clone());
            tokio::spawn(async move {
                operations
                    .wait(&name, WAIT_TIMEOUT)
                    .await
                    .expect("it exists");
                Instant::now()
            })
        };
        while observer.waiter_count() == 0 {
            yield_now().await;
        }
        finish_operation(source.clone(), name, token).await;
        let finished_at = Instant::now();
        let woken_at = waiter.await.expect("the waiter does not panic");
        latencies.push(woken_at.saturating_duration_since(finished_at));
    }
    let (median, p99) = median_and_p99(latencies);
    println!("finish → wake-up on another server, {mode}: p50 {median:?}, p99 {p99:?}");
}

/// Measures the time from an acknowledged creation to its visibility on another server, under
/// load.
pub(crate) async fn bench_visibility_under_load(servers: &[Operations]) {
    let is_stopped = Arc::new(AtomicBool::new(false));
    let mut load_tasks = JoinSet::new();
    let started = Instant::now();
    for index in 0..512 {
        let (operations, is_stopped) = (servers[index % 2].clone(), is_stopped.clone());
        load_tasks.spawn(async move {
            let mut count = 0;
            while !is_stopped.load(Ordering::Relaxed) {
                let (name, token) = create_operation(&operations).await;
                finish_operation(operations.clone(), name, token).await;
                count += 2;
            }
            count
        });
    }
    let (source, observer) = (&servers[0], &servers[2]);
    let mut latencies = Vec::new();
    while latencies.len() < 500 {
        let (name, token) = create_operation(source).await;
        let created_at = Instant::now();
        while observer.get_cached(&name).is_err() {
            tokio::time::sleep(std::time::Duration::from_micros(200)).await;
        }
        latencies.push(created_at.elapsed());
        finish_operation(source.clone(), name, token).await;
    }
    is_stopped.store(true, Ordering::Relaxed);
    let changes: usize = load_tasks.join_all().await.into_iter().sum();
    let rate = changes as f64 / started.elapsed().as_secs_f64();
    let (median, p99) = median_and_p99(latencies);
    println!(
        "create → visible on another server, at {rate:.0} changes/s: p50 {median:?}, p99 {p99:?}"
    );
}
