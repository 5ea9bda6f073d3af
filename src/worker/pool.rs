//! The in-process worker pool of one queue: leases operations and runs the
//! handler with bounded concurrency.

use std::{future::pending, mem, sync::Arc, time::Duration};

use tokio::{
    select,
    sync::Semaphore,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span};

use super::{attempt::Attempt, context::LeasedOperation, handler::DynHandler};
use crate::{
    error::Error,
    metrics::Metrics,
    operation::{Operation, lease::WorkerId, options::QueueName},
    store::{lease_delivery::UndeliveredLease, state::Store},
    tasks::Tasks,
};

/// The delay after the store failed to persist a lease.
const LEASE_RETRY_DELAY: Duration = Duration::from_millis(500);

/// The worker pool of one queue.
#[derive(Clone)]
pub(crate) struct WorkerPool {
    pub(crate) store: Arc<Store>,
    pub(crate) queue: QueueName,
    pub(crate) handler: Arc<dyn DynHandler>,
    pub(crate) worker: WorkerId,
    pub(crate) metrics: Metrics,
    /// Runs the pool and its attempts; stopping it ends leasing.
    pub(crate) tasks: Tasks,
    /// Ends attempts early, after the shutdown timeout.
    pub(crate) stop_attempts: CancellationToken,
}

impl WorkerPool {
    /// Runs at most `concurrency` operations at once, until `tasks` is stopped.
    pub(crate) fn start(self, concurrency: usize) {
        let tasks = self.tasks.clone();
        tasks.spawn("pool", self.run(concurrency));
    }

    async fn run(self, concurrency: usize) {
        // Holding the handle keeps the queue alive while it is empty.
        let _queue = self.store.view.ready_queues.get_or_create(&self.queue);
        let permits = Arc::new(Semaphore::new(concurrency.min(Semaphore::MAX_PERMITS)));
        let stopping = self.tasks.stop_token().clone();
        let stopped = stopping.cancelled();
        tokio::pin!(stopped);
        let mut is_failing = false;
        loop {
            let permit = select! {
                biased;
                () = &mut stopped => return,
                permit = permits.clone().acquire_owned() => permit.expect("semaphore is never closed"),
            };
            let leased = select! {
                biased;
                () = &mut stopped => return,
                leased = self.store.lease_batch(std::slice::from_ref(&self.queue), &self.worker, 1, None, pending()) => leased,
            };
            match leased {
                Ok(mut leased) => {
                    if mem::take(&mut is_failing) {
                        info!(queue = %self.queue, "leasing operations again");
                    }
                    let Some(operation) = leased.pop().map(UndeliveredLease::deliver) else {
                        continue;
                    };
                    let pool = self.clone();
                    self.tasks.spawn("attempt", async move {
                        pool.run_attempt(operation).await;
                        drop(permit);
                    });
                }
                Err(Error::ShuttingDown) => return,
                Err(error) => {
                    if !mem::replace(&mut is_failing, true) {
                        error!(queue = %self.queue, %error, retry_in = ?LEASE_RETRY_DELAY, "failed to lease an operation, retrying");
                    }
                    sleep(LEASE_RETRY_DELAY).await;
                }
            }
        }
    }

    async fn run_attempt(&self, operation: Arc<Operation>) {
        let Some(leased_operation) = LeasedOperation::from_operation(&operation) else {
            return;
        };
        let span = info_span!("attempt", operation.name = operation.name(), queue = %self.queue, attempt = operation.attempt());
        let started = Instant::now();
        let attempt = Attempt::new(self.store.clone(), &operation, leased_operation.token);
        let handler = self.handler.clone();
        let run = attempt.run(leased_operation, handler, &self.tasks, &self.stop_attempts);
        let outcome = run.instrument(span).await;
        let duration_secs = started.elapsed().as_secs_f64();
        self.metrics
            .record_attempt(self.queue.as_str(), outcome, duration_secs);
    }
}
