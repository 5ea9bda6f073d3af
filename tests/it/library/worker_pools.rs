//! Worker pools: concurrency and lease order.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use longrunning::{Any, Context, NewOperation, Operations, State};
use parking_lot::Mutex;
use tokio::sync::{Barrier, Notify};

use crate::support::{operations_builder, string_value};

const MINUTE: Duration = Duration::from_secs(60);

async fn start_with_handler<H: longrunning::Handler>(concurrency: usize, handler: H) -> Operations {
    let builder = operations_builder().handler("q", concurrency, handler);
    builder.start().await.unwrap()
}

fn queued() -> NewOperation {
    NewOperation::queued("q")
}

// Rules: HANDLER-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pool_runs_exactly_its_concurrency_in_parallel() {
    const CONCURRENCY: usize = 8;
    let (active, max_active) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let barrier = Arc::new(Barrier::new(CONCURRENCY));
    let operations = start_with_handler(CONCURRENCY, {
        let (active, max_active) = (active.clone(), max_active.clone());
        move |_: Context| {
            let (active, max_active, barrier) =
                (active.clone(), max_active.clone(), barrier.clone());
            async move {
                max_active.fetch_max(active.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // Continues only when all handlers have reached the barrier.
                barrier.wait().await;
                active.fetch_sub(1, Ordering::SeqCst);
                Ok(Any::default())
            }
        }
    })
    .await;
    let mut names = Vec::new();
    for _ in 0..20 * CONCURRENCY {
        names.push(
            operations
                .create(queued())
                .await
                .unwrap()
                .operation
                .name_owned(),
        );
    }
    for name in names {
        assert!(operations.wait(&name, MINUTE).await.unwrap().is_done());
    }
    assert_eq!(max_active.load(Ordering::SeqCst), CONCURRENCY);
}

// Rules: HANDLER-2
#[tokio::test]
async fn pool_leases_by_priority_then_age() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let gate = Arc::new(Notify::new());
    let operations = start_with_handler(1, {
        let (order, gate) = (order.clone(), gate.clone());
        move |context: Context| {
            let (order, gate) = (order.clone(), gate.clone());
            async move {
                let input: String = context.input_as().unwrap();
                if input == "first" {
                    gate.notified().await;
                }
                order.lock().push(input);
                Ok(Any::default())
            }
        }
    })
    .await;
    let mut names = Vec::new();
    for (input, priority) in [
        ("first", 0),
        ("a", 0),
        ("low", -5),
        ("high", 9),
        ("b", 0),
        ("max", i32::MAX),
        ("min", i32::MIN),
        ("also high", 9),
    ] {
        let new = queued().input(string_value(input)).priority(priority);
        names.push(operations.create(new).await.unwrap().operation.name_owned());
        if input == "first" {
            // Wait until the only worker has leased it, before creating the others.
            while operations.get_cached(&names[0]).unwrap().state() != State::Running {
                tokio::task::yield_now().await;
            }
        }
    }
    gate.notify_one();
    for name in names {
        operations.wait(&name, MINUTE).await.unwrap();
    }
    assert_eq!(
        *order.lock(),
        ["first", "max", "high", "also high", "a", "b", "low", "min"]
    );
}
