//! Several servers that share one storage, and what the tests of them have in common.

#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
mod postgres_cache_limit;
#[cfg(feature = "postgres")]
mod postgres_failover;
#[cfg(feature = "postgres")]
mod postgres_faults;
#[cfg(feature = "postgres")]
mod postgres_pooler;
#[cfg(feature = "postgres")]
mod postgres_tls;
mod read_consistency;
mod replicas;

use std::time::Duration;

use longrunning::{NewOperation, OperationName, Operations};

const MINUTE: Duration = Duration::from_secs(60);

/// Creates an operation in the queue `jobs`.
async fn create_queued(operations: &Operations) -> OperationName {
    let new = NewOperation::queued("jobs");
    operations.create(new).await.unwrap().operation.name_owned()
}

/// Waits until a condition holds; panics after a minute.
#[cfg(feature = "postgres")]
async fn wait_until(mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    };
    let result = tokio::time::timeout(MINUTE, wait).await;
    result.expect("expected the condition to hold within a minute");
}
