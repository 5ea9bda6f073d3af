//! Puts together an `Operations`: limits, defaults, the journal and the handlers.

use std::{collections::HashMap, fmt, sync::Arc};

use tokio_util::sync::CancellationToken;

use super::{
    new_operation::{ExecutionDefaults, OptionsInterner},
    operations::{Operations, OperationsInner},
};
use crate::{
    clock::Clock,
    metrics::Metrics,
    operation::{
        lease::WorkerId,
        options::{ExecutionOptions, InvalidExecutionOptions, QueueName},
        retry::RetryPolicy,
    },
    storage::{Storage, error::StorageError, memory::MemoryStorage},
    store::{consistency::ReadConsistency, limits::Limits, state::Store},
    tasks::Tasks,
    types::TypeRegistry,
    worker::{
        handler::{DynHandler, Handler},
        pool::WorkerPool,
    },
};

/// Puts together an [`Operations`].
#[derive(Clone)]
#[must_use = "call start() to begin"]
pub struct Builder {
    storage: Arc<dyn Storage>,
    limits: Limits,
    read_consistency: ReadConsistency,
    default_options: ExecutionOptions,
    queue_retry_policies: Vec<(String, RetryPolicy)>,
    metrics: Metrics,
    types: TypeRegistry,
    handlers: Vec<(String, usize, Arc<dyn DynHandler>)>,
}

/// Why operations cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What was kept cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A queue or a default is out of range.
    #[error(transparent)]
    Options(#[from] InvalidExecutionOptions),
    /// A queue has workers, but none of them may work.
    #[error("queue {0:?} has a concurrency of 0; use at least 1")]
    ZeroConcurrency(String),
}

// === impl Operations ===

impl Operations {
    /// Begins to put together a server's operations.
    pub fn builder() -> Builder {
        Builder {
            storage: Arc::new(MemoryStorage),
            limits: Limits::default(),
            read_consistency: ReadConsistency::default(),
            default_options: ExecutionOptions::default(),
            queue_retry_policies: Vec::new(),
            metrics: Metrics::default(),
            types: TypeRegistry::built_in(),
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
    pub fn read_consistency(mut self, read_consistency: ReadConsistency) -> Self {
        self.read_consistency = read_consistency;
        self
    }

    /// The terms of operations whose creator leaves them out.
    pub fn default_options(mut self, options: ExecutionOptions) -> Self {
        self.default_options = options;
        self
    }

    /// The retry policy of the operations of `queue` whose creator leaves it out.
    pub fn queue_retry_policy(mut self, queue: &str, policy: RetryPolicy) -> Self {
        self.queue_retry_policies.push((queue.to_owned(), policy));
        self
    }

    /// The message types that filters look into, and that JSON shows. Without
    /// it, those of `google.protobuf`, `google.rpc` and `longrunning.v1`.
    pub fn types(mut self, types: TypeRegistry) -> Self {
        self.types = types;
        self
    }

    /// Where changes are kept. Without it they live as long as the process.
    pub fn storage(mut self, storage: impl Storage) -> Self {
        self.storage = Arc::new(storage);
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
        self.default_options.check()?;
        let mut handlers = Vec::new();
        for (queue, concurrency, handler) in self.handlers {
            if concurrency == 0 {
                return Err(StartError::ZeroConcurrency(queue));
            }
            handlers.push((QueueName::parse(&queue)?, concurrency, handler));
        }
        let mut queue_retry_policies = HashMap::new();
        for (queue, policy) in self.queue_retry_policies {
            policy.check().map_err(InvalidExecutionOptions::from)?;
            queue_retry_policies.insert(QueueName::parse(&queue)?, policy);
        }
        // From here on nothing fails, so that no worker is left behind.
        let store = Store::open(
            self.storage,
            Clock::system(),
            &self.metrics,
            self.limits,
            self.read_consistency,
        )
        .await?;
        let (worker_tasks, release_token) = (Tasks::default(), CancellationToken::new());
        for (queue, concurrency, handler) in handlers {
            let pool = WorkerPool {
                store: store.clone(),
                queue,
                handler,
                worker: WorkerId::new("in-process"),
                metrics: self.metrics.clone(),
                tasks: worker_tasks.clone(),
                stop_attempts: release_token.clone(),
            };
            pool.start(concurrency);
        }
        Ok(Operations::new(OperationsInner {
            store,
            defaults: ExecutionDefaults {
                options: self.default_options,
                queue_retry_policies,
            },
            options_interner: OptionsInterner::default(),
            metrics: self.metrics,
            types: self.types,
            worker_tasks,
            release_token,
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
