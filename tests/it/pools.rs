//! Pools of handlers: how many work at once, and on what first.

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

use crate::support::text;

const MINUTE: Duration = Duration::from_secs(60);

async fn with<H: longrunning::Handler>(concurrency: usize, handler: H) -> Operations {
    let builder = crate::support::operations().handler("q", concurrency, handler);
    builder.start().await.unwrap()
}

fn queued() -> NewOperation {
    NewOperation::queued("q")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_works_on_as_many_as_it_may_and_never_on_more() {
    const MANY: usize = 8;
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let barrier = Arc::new(Barrier::new(MANY));
    let operations = with(MANY, {
        let (now, most) = (now.clone(), most.clone());
        move |_: Context| {
            let (now, most, barrier) = (now.clone(), most.clone(), barrier.clone());
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // Goes on only when all of them are here at once.
                barrier.wait().await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(Any::default())
            }
        }
    })
    .await;
    let mut names = Vec::new();
    for _ in 0..20 * MANY {
        names.push(
            operations
                .create(queued())
                .await
                .unwrap()
                .operation
                .owned_name(),
        );
    }
    for name in names {
        assert!(operations.wait(&name, MINUTE).await.unwrap().is_done());
    }
    assert_eq!(most.load(Ordering::SeqCst), MANY);
}

#[tokio::test]
async fn a_pool_takes_the_highest_priority_first_and_then_the_oldest() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let gate = Arc::new(Notify::new());
    let operations = with(1, {
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
        let new = queued().input(text(input)).priority(priority);
        names.push(operations.create(new).await.unwrap().operation.owned_name());
        if input == "first" {
            // The only worker has it before the others come.
            while operations.get(&names[0]).unwrap().state() != State::Running {
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
