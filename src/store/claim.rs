//! Claims: how a worker gets the leases of the next operations of its queues,
//! and how nothing is lost if it leaves on the way.

use std::{future::Future, pin::pin, sync::Arc};

use futures_util::future::{join_all, select_all};
use tokio::select;

use super::{
    ready::{Call, Queue, Visit},
    store::{Lost, Store},
};
use crate::{
    error::{Error, Result},
    operation::{
        lease::{LeaseToken, WorkerId},
        operation::Operation,
        payload::Payload,
        stage::{Event, Report},
        terms::QueueName,
    },
};

/// The leases of one claim hold fewer bytes of inputs and checkpoints than
/// this, or there is just one: clients refuse messages over 4 MiB.
const CLAIM_BYTES: usize = 3 << 20;

/// What a lease takes on the wire besides what people put in, about.
const LEASE_BYTES: usize = 256;

/// What a label takes on the wire besides its key and value, at the most.
const LABEL_BYTES: usize = 10;

/// An operation that was taken from a queue. Goes back if its taker leaves
/// before it has changed.
struct Taken<'a> {
    store: &'a Store,
    queue: &'a Queue,
    operation: Arc<Operation>,
}

/// A lease on its way to whoever asked for it. Goes back if that one left
/// before the journal had kept it: nobody would work on the operation.
struct Granted(Option<(Arc<Store>, Arc<Operation>)>);

// === impl Store ===

impl Store {
    /// Waits for an operation of the queues and takes its lease, and those of
    /// more, up to `most`, if they are ready too. Gives up the wait with none
    /// when `enough` resolves.
    pub(crate) async fn claim(
        self: &Arc<Self>,
        queues: &[QueueName],
        worker: &WorkerId,
        most: usize,
        enough: impl Future<Output = ()>,
    ) -> Result<Vec<Arc<Operation>>> {
        let visits: Vec<Visit<'_>> = queues
            .iter()
            .map(|queue| self.view.ready.visit(queue))
            .collect();
        let stopping = self.tasks.stopping();
        let mut enough = pin!(enough);
        loop {
            let first = select! {
                biased;
                () = stopping.cancelled() => return Err(Error::ShuttingDown),
                taken = self.next(&visits) => taken,
                () = &mut enough => return Ok(Vec::new()),
            };
            let batch = self.batch(first, &visits, most);
            let grants = join_all(batch.iter().map(|taken| self.grant(taken, worker))).await;
            let (mut claimed, mut failed) = (Vec::with_capacity(grants.len()), None);
            for grant in grants {
                match grant.map(|granted| granted.map(Granted::take)) {
                    Ok(Some(operation)) if operation.lease().is_some() => claimed.push(operation),
                    // It was done, cancelled or taken away in the meantime.
                    Ok(_) | Err(Error::Refused { .. } | Error::NotFound { .. }) => {}
                    Err(error) => failed = Some(error),
                }
            }
            match failed {
                Some(error) if claimed.is_empty() => return Err(error),
                _ if claimed.is_empty() => {}
                _ => return Ok(claimed),
            }
        }
    }

    /// Waits for the next operation of the queues.
    async fn next<'a>(&'a self, visits: &'a [Visit<'_>]) -> Taken<'a> {
        let mut heard = None;
        loop {
            if let Some(taken) = self.take(visits, heard.take()) {
                return taken;
            }
            let calls = visits.iter().map(|visit| Box::pin(visit.queue().call()));
            let (call, at, others) = select_all(calls).await;
            // Calls of other queues go back before the look for the best one.
            drop(others);
            heard = Some((visits[at].queue(), call));
        }
    }

    /// Takes the next operation of the queues, if one is ready: in answer to the
    /// call that was heard, or one that nobody else was called for.
    fn take<'a>(
        &'a self,
        visits: &'a [Visit<'_>],
        mut heard: Option<(&'a Queue, Call<'a>)>,
    ) -> Option<Taken<'a>> {
        let mut queues: Vec<&Queue> = visits.iter().map(Visit::queue).collect();
        loop {
            let firsts = queues.iter().enumerate();
            let firsts = firsts.filter_map(|(at, queue)| Some((queue.first()?, at)));
            let Some((_, at)) = firsts.min() else {
                // What the call was about is gone.
                heard.into_iter().for_each(|(_, call)| call.forget());
                return None;
            };
            let queue = queues[at];
            let call = match heard.take() {
                Some((of, call)) if std::ptr::eq(of, queue) => Some(call),
                other => {
                    heard = other;
                    queue.spare_call()
                }
            };
            let Some(call) = call else {
                // What is ready there is for others, who were called for it.
                queues.swap_remove(at);
                continue;
            };
            if let Some(number) = queue.take(call)
                && let Some(operation) = self.view.index.get(number)
            {
                return Some(Taken {
                    store: self,
                    queue,
                    operation,
                });
            }
        }
    }

    /// Takes more operations, as far as they are ready and fit in an answer.
    fn batch<'a>(
        &'a self,
        first: Taken<'a>,
        visits: &'a [Visit<'_>],
        most: usize,
    ) -> Vec<Taken<'a>> {
        let mut bytes = lease_size(&first.operation);
        let mut batch = vec![first];
        while batch.len() < most
            && let Some(taken) = self.take(visits, None)
        {
            bytes += lease_size(&taken.operation);
            if CLAIM_BYTES < bytes {
                break;
            }
            batch.push(taken);
        }
        batch
    }

    /// The lease of an operation; none if another server was first.
    async fn grant(
        self: &Arc<Self>,
        taken: &Taken<'_>,
        worker: &WorkerId,
    ) -> Result<Option<Granted>> {
        let claim = Event::Claim {
            token: LeaseToken::random(),
            worker: worker.clone(),
        };
        let name = taken.operation.owned_name();
        let granted = |store: &Arc<Self>, operation| Granted(Some((store.clone(), operation)));
        let (store, own_name) = (self.clone(), name.clone());
        let begin = async move {
            let turn = store.turns.of(own_name.as_str()).await;
            let (current, change) = store.consider(&own_name, &claim)?;
            Ok(store.keep(turn, current, change, granted))
        };
        match self.to_the_end("claim", begin).await {
            Ok(granted) => Ok(Some(granted)),
            Err(Lost::Error(error)) => Err(error),
            // Whoever has it now, there are others to claim.
            Err(Lost::Outrun(winner)) => {
                self.concede(winner, &name).await?;
                Ok(None)
            }
        }
    }
}

/// How many bytes a lease of the operation takes in an answer, about.
fn lease_size(operation: &Operation) -> usize {
    let payloads = [operation.input(), operation.checkpoint()];
    let payloads: usize = payloads.into_iter().flatten().map(Payload::size).sum();
    let labels = operation.labels().iter().count() + operation.trace_context().iter().count();
    let tags = operation.tags_size() + labels * LABEL_BYTES;
    payloads + tags + operation.name().len() + LEASE_BYTES
}

// === impl Taken ===

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(operation) = self.store.view.index.get(self.operation.number())
            && operation.is_ready(self.store.clock.now())
        {
            self.queue.offer(&operation);
        }
    }
}

// === impl Granted ===

impl Granted {
    fn take(mut self) -> Arc<Operation> {
        self.0.take().expect("it is taken once").1
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        if let Some((store, operation)) = self.0.take()
            && let Some(lease) = operation.lease()
        {
            let release = Event::Release(lease.token, Report::default());
            let tasks = store.tasks.clone();
            // A journal may call from a thread of its own.
            let runtime = store.runtime.clone();
            let _context = runtime.enter();
            tasks.spawn("release", async move {
                store.commit(&operation.owned_name(), release).await
            });
        }
    }
}
