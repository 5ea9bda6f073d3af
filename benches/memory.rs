//! Bytes per operation and per waiter, counted at the allocator. Run with
//! `cargo bench --bench memory`; prints a table and gates nothing.

use std::{alloc::System, time::Duration};

use longrunning::{Any, Limits, NewOperation, Operations};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const OPERATIONS: usize = 1_000_000;
const WAITERS: usize = 100_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    runtime.block_on(async {
        println!("| what | encoded | held beyond | in all |\n| --- | --- | --- | --- |");
        measure("running, self-executed", |operations| async move {
            create(&operations, false).await
        })
        .await;
        measure("done", |operations| async move {
            create(&operations, true).await
        })
        .await;
        waiters().await;
    });
}

async fn measure<F>(what: &str, fill: impl FnOnce(Operations) -> F)
where
    F: Future<Output = usize>,
{
    let operations = start().await;
    let region = Region::new(ALLOCATOR);
    let encoded = fill(operations.clone()).await / OPERATIONS;
    let held = held(&region) / OPERATIONS;
    // What is freed later would count against the next measure.
    operations.shutdown(Duration::ZERO).await;
    drop(operations);
    println!(
        "| {what} operation | {encoded} B | {} B | {held} B |",
        held.saturating_sub(encoded)
    );
}

async fn create(operations: &Operations, done: bool) -> usize {
    let mut encoded = 0;
    for _ in 0..OPERATIONS {
        let created = operations
            .create(NewOperation::self_executed("bench"))
            .await
            .expect("there is room")
            .operation;
        let last = if done {
            let token = created.lease().expect("it is self-executed").token;
            operations
                .succeed(&created.owned_name(), token, Any::default())
                .await
                .expect("the lease is held")
        } else {
            created
        };
        encoded += last.bytes().len();
    }
    encoded
}

/// Waiters of as many operations, each a task as a server would have it.
async fn waiters() {
    let operations = start().await;
    let mut names = Vec::with_capacity(WAITERS);
    for _ in 0..WAITERS {
        let created = operations
            .create(NewOperation::self_executed("bench"))
            .await
            .expect("there is room");
        names.push(created.operation.owned_name());
    }
    let region = Region::new(ALLOCATOR);
    let mut waits = tokio::task::JoinSet::new();
    for name in names {
        let operations = operations.clone();
        waits.spawn(async move {
            operations
                .wait(&name, Duration::from_secs(600))
                .await
                .is_ok()
        });
    }
    while operations.waiters() < WAITERS {
        tokio::task::yield_now().await;
    }
    println!(
        "| waiter, with its task | | | {} B |",
        held(&region) / WAITERS
    );
}

async fn start() -> Operations {
    let limits = Limits {
        max_operations: 2 * OPERATIONS,
        max_bytes: usize::MAX,
        max_waiters: usize::MAX,
        ..Limits::default()
    };
    Operations::builder()
        .limits(limits)
        .start()
        .await
        .expect("defaults are in range")
}

fn held(region: &Region<'_, System>) -> usize {
    let change = region.change();
    change
        .bytes_allocated
        .saturating_sub(change.bytes_deallocated)
}
