//! Leases the next operations of queues to a worker. An operation returns to its queue if the worker leaves before it
//! has received the lease.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use futures_util::future::{join_all, select_all};
use tokio::select;

use super::{
    commit::{CommitError, Intent, OnAbandon},
    lease_delivery::UndeliveredLease,
    ready_queue::{Permit, QueueRef, ReadyQueue},
    state::Store,
};
use crate::{
    error::{Error, Result},
    operation::{
        Operation,
        lease::{LeaseToken, WorkerId},
        options::QueueName,
        payload::Payload,
        transition::Event,
    },
};

/// The most bytes in the leases of one batch, unless it has just one lease: clients reject messages over 4 MiB.
const MAX_BATCH_BYTES: usize = 3 << 20;

/// Approximate encoded size of a lease without its payloads, name and attributes.
const LEASE_OVERHEAD_BYTES: usize = 256;

/// Maximum encoded size of a label without its key and value.
const LABEL_OVERHEAD_BYTES: usize = 10;

/// An operation that was taken from its ready queue. On drop it returns to the queue, if it is still ready.
struct Dequeued<'a> {
    store: &'a Store,
    queue: &'a ReadyQueue,
    operation: Arc<Operation>,
}

// === impl Store ===

impl Store {
    /// Waits until an operation of the queues is ready, and leases it together with others that are ready, at most
    /// `max_leases`. Returns an empty batch when `cancelled` resolves first.
    ///
    /// # Errors
    /// UNAVAILABLE during a shutdown, or if no lease of the batch could be stored.
    pub(crate) async fn lease_batch(
        self: &Arc<Self>,
        queues: &[QueueName],
        worker: &WorkerId,
        max_leases: usize,
        confirm_within: Option<Duration>,
        cancelled: impl Future<Output = ()>,
    ) -> Result<Vec<UndeliveredLease>> {
        let acquire = |queue| self.view.ready_queues.acquire(queue);
        let queue_refs: Vec<_> = queues.iter().map(acquire).collect();
        let stopping = self.tasks.stop_token();
        let mut cancelled = pin!(cancelled);
        loop {
            let first = select! {
                biased;
                () = stopping.cancelled() => return Err(Error::ShuttingDown),
                dequeued = self.wait_for_ready(&queue_refs) => dequeued,
                () = &mut cancelled => return Ok(Vec::new()),
            };
            let batch = self.pop_batch(first, &queue_refs, max_leases);
            let grants = batch
                .iter()
                .map(|dequeued| self.grant_lease(dequeued, worker, confirm_within));
            let (mut leased, mut failed) = (Vec::with_capacity(batch.len()), None);
            for grant in join_all(grants).await {
                match grant {
                    Ok(Some(lease)) => leased.push(lease),
                    // It became done, was cancelled or was leased by another server meanwhile.
                    Ok(None) | Err(Error::FailedPrecondition { .. } | Error::NotFound { .. }) => {}
                    Err(error) => failed = Some(error),
                }
            }
            match failed {
                _ if !leased.is_empty() => return Ok(leased),
                Some(error) => return Err(error),
                None => {}
            }
        }
    }

    /// Waits for the next operation of the queues, by priority, then age.
    async fn wait_for_ready<'a>(&'a self, queue_refs: &'a [QueueRef<'_>]) -> Dequeued<'a> {
        let mut held_permit = None;
        loop {
            if let Some(dequeued) = self.try_pop(queue_refs, held_permit.take()) {
                return dequeued;
            }
            let permits = queue_refs
                .iter()
                .map(|queue_ref| Box::pin(queue_ref.queue().acquire_permit()));
            let (permit, index, rest) = select_all(permits).await;
            // Return the permits of other queues before the best queue is chosen.
            drop(rest);
            held_permit = Some((queue_refs[index].queue(), permit));
        }
    }

    /// Takes the next ready operation of the queues, with the permit that was acquired or one that no waiter holds.
    fn try_pop<'a>(
        &'a self,
        queue_refs: &'a [QueueRef<'_>],
        mut held_permit: Option<(&'a ReadyQueue, Permit<'a>)>,
    ) -> Option<Dequeued<'a>> {
        let mut queues: Vec<&ReadyQueue> = queue_refs.iter().map(QueueRef::queue).collect();
        loop {
            let queues_by_index = queues.iter().enumerate();
            let heads = queues_by_index.filter_map(|(index, queue)| Some((queue.peek()?, index)));
            let Some((_, index)) = heads.min() else {
                // The operation that the permit stood for has left its queue.
                let (_, permit) = held_permit?;
                permit.forget();
                return None;
            };
            let queue = queues[index];
            let permit = match held_permit.take() {
                Some((permit_queue, permit)) if std::ptr::eq(permit_queue, queue) => Some(permit),
                other => {
                    held_permit = other;
                    queue.try_acquire_permit()
                }
            };
            let Some(permit) = permit else {
                // Waiters hold the permits for what is ready there.
                queues.swap_remove(index);
                continue;
            };
            if let Some(number) = queue.pop(permit)
                && let Some(operation) = self.view.index.get(number)
            {
                return Some(Dequeued {
                    store: self,
                    queue,
                    operation,
                });
            }
        }
    }

    /// Takes more ready operations, as long as they fit into one response.
    fn pop_batch<'a>(
        &'a self,
        first: Dequeued<'a>,
        queue_refs: &'a [QueueRef<'_>],
        max_leases: usize,
    ) -> Vec<Dequeued<'a>> {
        let mut bytes = estimated_lease_bytes(&first.operation);
        let mut batch = vec![first];
        while batch.len() < max_leases
            && let Some(dequeued) = self.try_pop(queue_refs, None)
        {
            bytes += estimated_lease_bytes(&dequeued.operation);
            if bytes > MAX_BATCH_BYTES {
                break;
            }
            batch.push(dequeued);
        }
        batch
    }

    /// Leases an operation to a worker. Returns `None` if it became done, or another server committed first.
    async fn grant_lease(
        self: &Arc<Self>,
        dequeued: &Dequeued<'_>,
        worker: &WorkerId,
        confirm_within: Option<Duration>,
    ) -> Result<Option<UndeliveredLease>> {
        let acquire = Intent::Apply(Event::AcquireLease {
            token: LeaseToken::random(),
            worker: worker.clone(),
            confirm_within,
        });
        let name = dequeued.operation.name_owned();
        let begun = self
            .begin_commit(&name, &Arc::new(acquire), false, OnAbandon::RevokeLease)
            .await?;
        match begun.wait().await {
            Ok(committed) => Ok(committed.into_lease()),
            Err(CommitError::Rejected(error)) => Err(error),
            Err(CommitError::Conflict { current }) => {
                self.publish_conflicting_version(current, &name).await?;
                Ok(None)
            }
        }
    }
}

/// Returns the approximate encoded size of the operation's lease in a response.
fn estimated_lease_bytes(operation: &Operation) -> usize {
    let payloads = [operation.input(), operation.checkpoint()];
    let payload_bytes: usize = payloads.into_iter().flatten().map(Payload::size).sum();
    let label_count = operation.labels().iter().count() + operation.trace_context().iter().count();
    let attribute_bytes = operation.attributes_size() + label_count * LABEL_OVERHEAD_BYTES;
    payload_bytes + attribute_bytes + operation.name().len() + LEASE_OVERHEAD_BYTES
}

// === impl Dequeued ===

impl Drop for Dequeued<'_> {
    fn drop(&mut self) {
        if let Some(operation) = self.store.view.index.get(self.operation.number())
            && operation.is_ready(self.store.clock.now())
        {
            self.queue.push(&operation);
        }
    }
}
