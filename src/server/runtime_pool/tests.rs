//! Tests of the assignment of connections, and of the end of tasks.

use tokio::sync::oneshot;

use super::*;

impl RuntimePool {
    /// Returns the number of open connections of each runtime.
    pub(in crate::server) fn open_connections(&self) -> Vec<usize> {
        let runtimes = self.runtimes.iter();
        let counts = runtimes.map(|runtime| runtime.open_connections.load(Ordering::Relaxed));
        counts.collect()
    }
}

// Rules: CONN-5
#[test]
fn connection_is_assigned_to_the_least_loaded_runtime() {
    let pool = RuntimePool::start(3).unwrap();
    let mut slots: Vec<_> = (0..7).map(|_| pool.assign()).collect();
    assert_eq!(pool.open_connections(), [3, 2, 2]);

    slots.swap_remove(1);
    slots.swap_remove(4);
    assert_eq!(pool.open_connections(), [3, 0, 2]);
    let _next = pool.assign();
    assert_eq!(pool.open_connections(), [3, 1, 2]);
}

// Rules: CONN-5
#[test]
fn thread_count_0_starts_one_runtime_per_processor() {
    let processors = std::thread::available_parallelism().unwrap().get();
    assert_eq!(
        RuntimePool::start(0).unwrap().open_connections().len(),
        processors
    );
}

#[tokio::test]
async fn each_connection_runtime_has_its_own_thread() {
    let pool = RuntimePool::start(2).unwrap();
    let slots = [pool.assign(), pool.assign()];
    for (index, slot) in slots.iter().enumerate() {
        let name = slot
            .handle()
            .spawn(async { thread::current().name().map(str::to_owned) });
        assert_eq!(name.await.unwrap(), Some(format!("longrun-io-{index}")));
    }
}

#[tokio::test]
async fn tasks_are_dropped_with_the_last_pool_handle() {
    let pool = RuntimePool::start(1).unwrap();
    let (sender, mut dropped) = oneshot::channel::<()>();
    pool.assign().handle().spawn(async move {
        let _held = sender;
        std::future::pending::<()>().await;
    });
    let clone = pool.clone();
    drop(pool);
    tokio::task::yield_now().await;
    assert!(
        dropped
            .try_recv()
            .is_err_and(|error| error == oneshot::error::TryRecvError::Empty)
    );

    drop(clone);
    dropped.await.unwrap_err();
}
