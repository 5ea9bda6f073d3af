//! Measures the allocated bytes per operation and per waiter, and prints a table. Run with
//! `cargo bench --bench memory`.

use std::{alloc::System, time::Duration};

use longrunning::{Any, Limits, NewOperation, Operations};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const OPERATION_COUNT: usize = 1_000_000;
const WAITER_COUNT: usize = 100_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    runtime.block_on(async {
        println!("| object | encoded | other | total |\n| --- | --- | --- | --- |");
        measure_operations("running, self-executed", |operations| async move {
            create_operations(&operations, false).await
        })
        .await;
        measure_operations("done", |operations| async move {
            create_operations(&operations, true).await
        })
        .await;
        measure_waiters().await;
    });
}

async fn measure_operations<F>(name: &str, populate: impl FnOnce(Operations) -> F)
where
    F: Future<Output = usize>,
{
    let operations = start_operations().await;
    let region = Region::new(ALLOCATOR);
    let encoded = populate(operations.clone()).await / OPERATION_COUNT;
    let allocated = allocated_bytes(&region) / OPERATION_COUNT;
    // Memory that is freed later would distort the next measurement.
    operations.shutdown(Duration::ZERO).await;
    drop(operations);
    println!(
        "| {name} operation | {encoded} B | {} B | {allocated} B |",
        allocated.saturating_sub(encoded)
    );
}

async fn create_operations(operations: &Operations, finish: bool) -> usize {
    let mut encoded = 0;
    for _ in 0..OPERATION_COUNT {
        let created = operations
            .create(NewOperation::self_executed("bench"))
            .await
            .expect("the store accepts it")
            .operation;
        let last = if finish {
            let token = created.lease().expect("it is self-executed").token;
            operations
                .succeed(&created.name_owned(), token, Any::default())
                .await
                .expect("the lease is held")
        } else {
            created
        };
        encoded += last.bytes().len();
    }
    encoded
}

/// Measures waiters of distinct operations, each in a task as in a server.
async fn measure_waiters() {
    let operations = start_operations().await;
    let mut names = Vec::with_capacity(WAITER_COUNT);
    for _ in 0..WAITER_COUNT {
        let created = operations
            .create(NewOperation::self_executed("bench"))
            .await
            .expect("the store accepts it");
        names.push(created.operation.name_owned());
    }
    let region = Region::new(ALLOCATOR);
    let mut waiter_tasks = tokio::task::JoinSet::new();
    for name in names {
        let operations = operations.clone();
        waiter_tasks.spawn(async move {
            operations
                .wait(&name, Duration::from_secs(600))
                .await
                .is_ok()
        });
    }
    while operations.waiter_count() < WAITER_COUNT {
        tokio::task::yield_now().await;
    }
    println!(
        "| waiter, with its task | | | {} B |",
        allocated_bytes(&region) / WAITER_COUNT
    );
}

async fn start_operations() -> Operations {
    let limits = Limits::default()
        .with_max_operations(2 * OPERATION_COUNT)
        .with_max_total_bytes(usize::MAX)
        .with_max_waiters(usize::MAX);
    Operations::builder()
        .limits(limits)
        .start()
        .await
        .expect("defaults are in range")
}

fn allocated_bytes(region: &Region<'_, System>) -> usize {
    let change = region.change();
    change
        .bytes_allocated
        .saturating_sub(change.bytes_deallocated)
}
