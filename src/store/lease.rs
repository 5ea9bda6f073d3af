//! Claims: how a worker gets the leases of the next operations of its queues,
//! and how nothing is lost if it leaves on the way.

use std::{future::Future, pin::pin, sync::Arc};

use futures_util::future::{join_all, select_all};
use tokio::select;

use super::{
    ready_queue::{Permit, QueueRef, ReadyQueue},
    store::{CommitError, Store},
};
use crate::{
    error::{Error, Result},
    operation::{
        Operation,
        lease::{LeaseToken, WorkerId},
        options::QueueName,
        payload::Payload,
        transition::{Event, Report},
    },
};

/// The leases of one claim hold fewer bytes of inputs and checkpoints than
/// this, or there is just one: clients refuse messages over 4 MiB.
const MAX_BATCH_BYTES: usize = 3 << 20;

/// What a lease takes on the wire besides what people put in, about.
const LEASE_OVERHEAD_BYTES: usize = 256;

/// What a label takes on the wire besides its key and value, at the most.
const LABEL_OVERHEAD_BYTES: usize = 10;

/// An operation that was taken from a queue. Goes back if its taker leaves
/// before it has changed.
struct Dequeued<'a> {
    store: &'a Store,
    queue: &'a ReadyQueue,
    operation: Arc<Operation>,
}

/// A lease on its way to whoever asked for it. Goes back if that one left
/// before the journal had kept it: nobody would work on the operation.
struct GrantedLease(Option<(Arc<Store>, Arc<Operation>)>);

// === impl Store ===

impl Store {
    /// Waits for an operation of the queues and takes its lease, and those of
    /// more, up to `most`, if they are ready too. Gives up the wait with none
    /// when `enough` resolves.
    pub(crate) async fn lease_batch(
        self: &Arc<Self>,
        queues: &[QueueName],
        worker: &WorkerId,
        max_leases: usize,
        cancelled: impl Future<Output = ()>,
    ) -> Result<Vec<Arc<Operation>>> {
        let queue_refs: Vec<QueueRef<'_>> = queues
            .iter()
            .map(|queue| self.view.ready_queues.acquire(queue))
            .collect();
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
            let grants = join_all(
                batch
                    .iter()
                    .map(|dequeued| self.grant_lease(dequeued, worker)),
            )
            .await;
            let (mut leased, mut failed) = (Vec::with_capacity(grants.len()), None);
            for grant in grants {
                match grant.map(|granted| granted.map(GrantedLease::into_operation)) {
                    Ok(Some(operation)) if operation.lease().is_some() => leased.push(operation),
                    // It was done, cancelled or taken away in the meantime.
                    Ok(_) | Err(Error::FailedPrecondition { .. } | Error::NotFound { .. }) => {}
                    Err(error) => failed = Some(error),
                }
            }
            match failed {
                Some(error) if leased.is_empty() => return Err(error),
                _ if leased.is_empty() => {}
                _ => return Ok(leased),
            }
        }
    }

    /// Waits for the next operation of the queues.
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
            // Calls of other queues go back before the look for the best one.
            drop(rest);
            held_permit = Some((queue_refs[index].queue(), permit));
        }
    }

    /// Takes the next operation of the queues, if one is ready: in answer to the
    /// call that was heard, or one that nobody else was called for.
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
                // What the call was about is gone.
                held_permit
                    .into_iter()
                    .for_each(|(_, permit)| permit.forget());
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
                // What is ready there is for others, who were called for it.
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

    /// Takes more operations, as far as they are ready and fit in an answer.
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
            if MAX_BATCH_BYTES < bytes {
                break;
            }
            batch.push(dequeued);
        }
        batch
    }

    /// The lease of an operation; none if another server was first.
    async fn grant_lease(
        self: &Arc<Self>,
        dequeued: &Dequeued<'_>,
        worker: &WorkerId,
    ) -> Result<Option<GrantedLease>> {
        let acquire = Event::AcquireLease {
            token: LeaseToken::random(),
            worker: worker.clone(),
        };
        let name = dequeued.operation.name_owned();
        let to_granted =
            |store: &Arc<Self>, operation| GrantedLease(Some((store.clone(), operation)));
        let (store, owned_name) = (self.clone(), name.clone());
        let start_commit = async move {
            let guard = store.key_locks.lock(owned_name.as_str()).await;
            let (current, change) = store.evaluate(&owned_name, &acquire)?;
            Ok(store.persist(guard, current, change, to_granted))
        };
        match self.run_detached("claim", start_commit).await {
            Ok(granted) => Ok(Some(granted)),
            Err(CommitError::Rejected(error)) => Err(error),
            // Whoever has it now, there are others to claim.
            Err(CommitError::Conflict(current)) => {
                self.apply_conflicting_version(current, &name).await?;
                Ok(None)
            }
        }
    }
}

/// How many bytes a lease of the operation takes in an answer, about.
fn estimated_lease_bytes(operation: &Operation) -> usize {
    let payloads = [operation.input(), operation.checkpoint()];
    let payload_bytes: usize = payloads.into_iter().flatten().map(Payload::size).sum();
    let label_count = operation.labels().iter().count() + operation.trace_context().iter().count();
    let attribute_bytes = operation.attributes_size() + label_count * LABEL_OVERHEAD_BYTES;
    payload_bytes + attribute_bytes + operation.name().len() + LEASE_OVERHEAD_BYTES
}

// === impl Taken ===

impl Drop for Dequeued<'_> {
    fn drop(&mut self) {
        if let Some(operation) = self.store.view.index.get(self.operation.number())
            && operation.is_ready(self.store.clock.now())
        {
            self.queue.push(&operation);
        }
    }
}

// === impl Granted ===

impl GrantedLease {
    fn into_operation(mut self) -> Arc<Operation> {
        self.0.take().expect("it is taken once").1
    }
}

impl Drop for GrantedLease {
    fn drop(&mut self) {
        if let Some((store, operation)) = self.0.take()
            && let Some(lease) = operation.lease()
        {
            let release = Event::ReleaseLease(lease.token, Report::default());
            let tasks = store.tasks.clone();
            // A journal may call from a thread of its own.
            let runtime = store.runtime.clone();
            let _context = runtime.enter();
            tasks.spawn("release", async move {
                store.commit(&operation.name_owned(), release).await
            });
        }
    }
}
