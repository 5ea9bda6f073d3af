//! Claims: how a worker gets the lease of the next operation of a queue, and
//! how nothing is lost if it leaves on the way.

use std::sync::Arc;

use tokio::select;

use super::{ready::Queue, store::Store};
use crate::{
    error::{Error, Result},
    operation::{
        lease::{LeaseToken, WorkerId},
        operation::Operation,
        stage::Event,
        terms::QueueName,
    },
};

/// A number that was taken from a queue. Goes back if its taker leaves before
/// the operation has changed.
struct Taken<'a> {
    store: &'a Store,
    queue: &'a Queue,
    number: u64,
}

/// A lease on its way to whoever asked for it. Goes back if that one left
/// before the journal had kept it: nobody would work on the operation.
struct Granted(Option<(Arc<Store>, Arc<Operation>)>);

// === impl Store ===

impl Store {
    /// Waits for an operation of the queue and takes its lease.
    pub(crate) async fn claim(
        self: &Arc<Self>,
        queue: &QueueName,
        worker: &WorkerId,
    ) -> Result<Arc<Operation>> {
        let visit = self.view.ready.visit(queue);
        let queue = visit.queue();
        let stopping = self.tasks.stopping();
        loop {
            let number = select! {
                biased;
                () = stopping.cancelled() => return Err(Error::ShuttingDown),
                number = queue.next() => number,
            };
            let taken = Taken {
                store: self,
                queue,
                number,
            };
            let Some(operation) = self.view.index.get(taken.number) else {
                continue;
            };
            let claim = Event::Claim {
                token: LeaseToken::random(),
                worker: worker.clone(),
            };
            let (store, name) = (self.clone(), operation.owned_name());
            let grant = async move {
                let operation = store.change(&name, &claim).await?;
                Ok(Granted(Some((store, operation))))
            };
            match self
                .tasks
                .to_the_end("claim", grant)
                .await
                .map(Granted::take)
            {
                Ok(operation) if operation.lease().is_some() => return Ok(operation),
                // It was done, cancelled or taken away in the meantime.
                Ok(_) | Err(Error::Refused { .. } | Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

// === impl Taken ===

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(operation) = self.store.view.index.get(self.number)
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
            && tokio::runtime::Handle::try_current().is_ok()
        {
            let (tasks, release) = (store.tasks.clone(), Event::Release(lease.token));
            tasks.spawn("release", async move {
                store.commit(&operation.owned_name(), release).await
            });
        }
    }
}
