//! Puts together an `Operations`: limits, defaults, the journal and the handlers.

use std::{collections::HashMap, fmt, sync::Arc};

use tokio_util::sync::CancellationToken;

use super::{
    creation::{Defaults, SharedTerms},
    operations::{Inner, Operations},
};
use crate::{
    clock::Clock,
    journal::{
        journal::{Journal, JournalError},
        memory::MemoryJournal,
    },
    metrics::Metrics,
    operation::{
        lease::WorkerId,
        retry::RetryPolicy,
        terms::{InvalidTerms, QueueName, Terms},
    },
    store::{follow::Reads, limits::Limits, store::Store},
    tasks::Tasks,
    types::Types,
    worker::{
        handler::{AnyHandler, Handler},
        pool::Pool,
    },
};

/// Puts together an [`Operations`].
#[derive(Clone)]
#[must_use = "call start() to begin"]
pub struct Builder {
    journal: Arc<dyn Journal>,
    limits: Limits,
    reads: Reads,
    defaults: Terms,
    retry: Vec<(String, RetryPolicy)>,
    metrics: Metrics,
    types: Types,
    handlers: Vec<(String, usize, Arc<dyn AnyHandler>)>,
}

/// Why operations cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What was kept cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A queue or a default is out of range.
    #[error(transparent)]
    Terms(#[from] InvalidTerms),
    /// A queue has workers, but none of them may work.
    #[error("queue {0:?} has a concurrency of 0; use at least 1")]
    Concurrency(String),
}

// === impl Operations ===

impl Operations {
    /// Begins to put together a server's operations.
    pub fn builder() -> Builder {
        Builder {
            journal: Arc::new(MemoryJournal),
            limits: Limits::default(),
            reads: Reads::default(),
            defaults: Terms::default(),
            retry: Vec::new(),
            metrics: Metrics::default(),
            types: Types::built_in(),
            handlers: Vec::new(),
        }
    }
}

// === impl Builder ===

impl Builder {
    /// Runs `handler` on the operations of `queue`, at most `concurrency` at once.
    pub fn handler(mut self, queue: &str, concurrency: usize, handler: impl Handler) -> Self {
        self.handlers
            .push((queue.to_owned(), concurrency, Arc::new(handler)));
        self
    }

    /// How much is taken in.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How new what clients read is, if several servers share the journal.
    pub fn reads(mut self, reads: Reads) -> Self {
        self.reads = reads;
        self
    }

    /// The terms of operations whose creator leaves them out.
    pub fn defaults(mut self, terms: Terms) -> Self {
        self.defaults = terms;
        self
    }

    /// The retry policy of the operations of `queue` whose creator leaves it out.
    pub fn retry(mut self, queue: &str, policy: RetryPolicy) -> Self {
        self.retry.push((queue.to_owned(), policy));
        self
    }

    /// The message types that filters look into, and that JSON shows. Without
    /// it, those of `google.protobuf`, `google.rpc` and `longrunning.v1`.
    pub fn types(mut self, types: Types) -> Self {
        self.types = types;
        self
    }

    /// Where changes are kept. Without it they live as long as the process.
    pub fn journal(mut self, journal: impl Journal) -> Self {
        self.journal = Arc::new(journal);
        self
    }

    #[cfg(feature = "server")]
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Reads back what the journal kept and starts the workers, on the current
    /// tokio runtime.
    ///
    /// # Errors
    /// [`StartError`] if the journal cannot be read or a value is out of range.
    pub async fn start(self) -> Result<Operations, StartError> {
        self.defaults.check()?;
        let mut handlers = Vec::new();
        for (queue, concurrency, handler) in self.handlers {
            if concurrency == 0 {
                return Err(StartError::Concurrency(queue));
            }
            handlers.push((QueueName::parse(&queue)?, concurrency, handler));
        }
        let mut retry = HashMap::new();
        for (queue, policy) in self.retry {
            policy.check().map_err(InvalidTerms::from)?;
            retry.insert(QueueName::parse(&queue)?, policy);
        }
        // From here on nothing fails, so that no worker is left behind.
        let store = Store::open(
            self.journal,
            Clock::system(),
            &self.metrics,
            self.limits,
            self.reads,
        )
        .await?;
        let (work, release) = (Tasks::default(), CancellationToken::new());
        for (queue, concurrency, handler) in handlers {
            let pool = Pool {
                store: store.clone(),
                queue,
                handler,
                worker: WorkerId::new("in-process"),
                metrics: self.metrics.clone(),
                tasks: work.clone(),
                release: release.clone(),
            };
            pool.start(concurrency);
        }
        Ok(Operations::new(Inner {
            store,
            defaults: Defaults {
                terms: self.defaults,
                retry,
            },
            shared: SharedTerms::default(),
            metrics: self.metrics,
            types: self.types,
            work,
            release,
        }))
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queues: Vec<&str> = self
            .handlers
            .iter()
            .map(|(queue, ..)| queue.as_str())
            .collect();
        f.debug_struct("Builder")
            .field("limits", &self.limits)
            .field("queues", &queues)
            .finish_non_exhaustive()
    }
}
