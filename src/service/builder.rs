//! Configures and starts an [`Operations`].

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
        options::{ExecutionOptions, InvalidExecutionOptions, InvalidQueueName, QueueName},
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

/// The configuration of an [`Operations`] that is not started yet.
#[derive(Clone)]
#[must_use = "call start() to get an Operations"]
pub struct Builder {
    storage: Arc<dyn Storage>,
    limits: Limits,
    read_consistency: ReadConsistency,
    default_options: ExecutionOptions,
    queue_retry_policies: Vec<(String, RetryPolicy)>,
    metrics: Metrics,
    types: TypeRegistry,
    handlers: Vec<QueueHandler>,
}

/// A handler and the queue whose operations it runs.
#[derive(Clone)]
struct QueueHandler {
    queue: String,
    /// The most operations that run at a time.
    concurrency: usize,
    handler: Arc<dyn DynHandler>,
}

/// The error of [`Builder::start`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The stored operations cannot be loaded.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The default options or a queue's retry policy are out of range.
    #[error(transparent)]
    Options(#[from] InvalidExecutionOptions),
    /// A queue name is malformed.
    #[error(transparent)]
    InvalidQueue(#[from] InvalidQueueName),
    /// A queue has a handler with a concurrency of 0.
    #[error("queue {queue:?} has a concurrency of 0; use at least 1")]
    ZeroConcurrency {
        /// The name of the queue.
        queue: String,
    },
}

// === impl Operations ===

impl Operations {
    /// Returns a builder with the default configuration.
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
    /// Runs `handler` for the operations of `queue`, at most `concurrency` at a time.
    pub fn handler(mut self, queue: &str, concurrency: usize, handler: impl Handler) -> Self {
        self.handlers.push(QueueHandler {
            queue: queue.to_owned(),
            concurrency,
            handler: Arc::new(handler),
        });
        self
    }

    /// Sets the capacity limits.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets the consistency of reads. It matters only for a [`SharedStorage`](crate::SharedStorage).
    pub fn read_consistency(mut self, read_consistency: ReadConsistency) -> Self {
        self.read_consistency = read_consistency;
        self
    }

    /// Sets the options for which a creation has no value.
    pub fn default_options(mut self, options: ExecutionOptions) -> Self {
        self.default_options = options;
        self
    }

    /// Sets the retry policy of `queue` for creations without one.
    pub fn queue_retry_policy(mut self, queue: &str, policy: RetryPolicy) -> Self {
        self.queue_retry_policies.push((queue.to_owned(), policy));
        self
    }

    /// Sets the message types that filters and JSON can decode. Default: those of
    /// `google.protobuf`, `google.rpc` and `longrunning.v1`.
    pub fn types(mut self, types: TypeRegistry) -> Self {
        self.types = types;
        self
    }

    /// Sets the storage. Default: [`MemoryStorage`], which is lost with the process.
    pub fn storage(mut self, storage: impl Storage) -> Self {
        self.storage = Arc::new(storage);
        self
    }

    #[cfg(feature = "server")]
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Loads the stored operations and starts the workers.
    ///
    /// # Errors
    /// [`StartError`] if the storage cannot be read or a value is out of range. No
    /// worker runs then.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn start(self) -> Result<Operations, StartError> {
        self.default_options.check()?;
        let mut handlers = Vec::new();
        for registered in self.handlers {
            let QueueHandler {
                queue,
                concurrency,
                handler,
            } = registered;
            if concurrency == 0 {
                return Err(StartError::ZeroConcurrency { queue });
            }
            handlers.push((QueueName::parse(&queue)?, concurrency, handler));
        }
        let mut queue_retry_policies = HashMap::new();
        for (queue, policy) in self.queue_retry_policies {
            policy.check().map_err(InvalidExecutionOptions::from)?;
            queue_retry_policies.insert(QueueName::parse(&queue)?, policy);
        }
        let (storage, clock, limits) = (self.storage, Clock::system(), self.limits);
        // The last fallible step: an error after it would leave workers running.
        let store =
            Store::open(storage, clock, &self.metrics, limits, self.read_consistency).await?;
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
        Ok(Operations(Arc::new(OperationsInner {
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
        })))
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queues = self.handlers.iter().map(|registered| &registered.queue);
        let queues: Vec<&String> = queues.collect();
        f.debug_struct("Builder")
            .field("limits", &self.limits)
            .field("queues", &queues)
            .finish_non_exhaustive()
    }
}
