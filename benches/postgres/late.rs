//! How late other servers are: until a wait ends, and until a change is seen.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use longrunning::Operations;
use tokio::task::{JoinSet, yield_now};

use crate::{MINUTE, begun, end, middle_and_late};

/// From an end at one server to the answer of a wait at another, one after the other.
pub(crate) async fn wakes(how: &str, one: &Operations, other: &Operations, count: usize) {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let (name, token) = begun(one).await;
        other.look(&name).await.expect("it is there");
        let waits = {
            let (operations, name) = (other.clone(), name.clone());
            tokio::spawn(async move {
                operations.wait(&name, MINUTE).await.expect("it ends");
                Instant::now()
            })
        };
        while other.waiters() == 0 {
            yield_now().await;
        }
        end(one.clone(), name, token).await;
        let ended = Instant::now();
        let woken = waits.await.expect("it is awake");
        times.push(woken.saturating_duration_since(ended));
    }
    let (middle, late) = middle_and_late(times);
    println!("finish → wake at another server, {how}: p50 {middle:?}, p99 {late:?}");
}

/// From an acknowledged change to its sight at another server, while all are busy.
pub(crate) async fn under_load(servers: &[Operations]) {
    let is_over = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    let began = Instant::now();
    for at in 0..512 {
        let (operations, is_over) = (servers[at % 2].clone(), is_over.clone());
        load.spawn(async move {
            let mut count = 0;
            while !is_over.load(Ordering::Relaxed) {
                let (name, token) = begun(&operations).await;
                end(operations.clone(), name, token).await;
                count += 2;
            }
            count
        });
    }
    let (from, to) = (&servers[0], &servers[2]);
    let mut times = Vec::new();
    while times.len() < 500 {
        let (name, token) = begun(from).await;
        let made = Instant::now();
        while to.get(&name).is_err() {
            tokio::time::sleep(std::time::Duration::from_micros(200)).await;
        }
        times.push(made.elapsed());
        end(from.clone(), name, token).await;
    }
    is_over.store(true, Ordering::Relaxed);
    let changes: usize = load.join_all().await.into_iter().sum();
    let rate = changes as f64 / began.elapsed().as_secs_f64();
    let (middle, late) = middle_and_late(times);
    println!(
        "creation → sight at another server, beside {rate:.0} changes/s: p50 {middle:?}, p99 {late:?}"
    );
}
