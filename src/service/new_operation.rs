//! Requests to create an operation, and their conversion into a validated
//! [`OperationSpec`].

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use prost::Message;
use prost_types::Any;
use uuid::Uuid;

use super::request_params::parse_payload;
use crate::{
    clock::Timestamp,
    error::{Error, Result},
    operation::{
        labels::Labels,
        lease::{LeaseToken, WorkerId},
        name::{OperationId, OperationName, Parent, excerpt},
        options::{ExecutionOptions, QueueName},
        retry::RetryPolicy,
        spec::{Attributes, IdempotencyKey, InitialLease, OperationSpec},
        trace::TraceContext,
    },
};

/// The UUIDv5 namespace of request fingerprints.
const REQUEST_FINGERPRINT_NAMESPACE: Uuid =
    Uuid::from_u128(0x6c6f_6e67_7275_6e6e_696e_672d_7265_7175);

const MAX_REQUEST_ID_BYTES: usize = 255;
const MAX_METHOD_BYTES: usize = 255;

/// A request to create an operation. Unset options get the defaults of the server.
///
/// [`Operations::create`](crate::Operations::create) validates the values.
#[derive(Clone, Debug)]
#[must_use = "pass it to Operations::create"]
pub struct NewOperation {
    pub(super) parent: String,
    pub(super) id: Option<String>,
    pub(super) request_id: Option<String>,
    pub(super) metadata: Option<Any>,
    pub(super) method: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) trace_context: BTreeMap<String, String>,
    pub(super) execution: Execution,
    pub(super) priority: Option<i32>,
    pub(super) total_timeout: Option<Duration>,
    pub(super) attempt_timeout: Option<Duration>,
    pub(super) lease_duration: Option<Duration>,
    pub(super) retry_policy: Option<RetryPolicy>,
    pub(super) retention: Option<Duration>,
    pub(super) cancel_grace_period: Option<Duration>,
}

/// The options for which a creation has no value.
#[derive(Debug)]
pub(crate) struct ExecutionDefaults {
    pub(crate) options: ExecutionOptions,
    /// The retry policies by queue, which precede that of `options`.
    pub(crate) queue_retry_policies: HashMap<QueueName, RetryPolicy>,
}

/// The execution options of the latest creations. Operations with equal options
/// share them.
#[derive(Debug, Default)]
pub(crate) struct OptionsInterner(Mutex<VecDeque<Arc<ExecutionOptions>>>);

/// The executor of an operation.
#[derive(Clone, Debug)]
pub(super) enum Execution {
    /// The creator, which gets the first lease.
    SelfExecuted { worker_id: String },
    /// A worker of `queue`.
    Queued {
        queue: String,
        input: Option<Any>,
        not_before: Option<SystemTime>,
    },
}

// === impl NewOperation ===

impl NewOperation {
    /// Makes a request for an operation that a worker of `queue` executes.
    pub fn queued(queue: &str) -> Self {
        Self::new(Execution::Queued {
            queue: queue.to_owned(),
            input: None,
            not_before: None,
        })
    }

    /// Makes a request for an operation that its creator executes. The created
    /// operation contains the lease. `worker` is the id of the creator.
    pub fn self_executed(worker: &str) -> Self {
        Self::new(Execution::SelfExecuted {
            worker_id: worker.to_owned(),
        })
    }

    pub(super) fn new(execution: Execution) -> Self {
        Self {
            parent: String::new(),
            id: None,
            request_id: None,
            metadata: None,
            method: String::new(),
            labels: BTreeMap::new(),
            trace_context: BTreeMap::new(),
            execution,
            priority: None,
            total_timeout: None,
            attempt_timeout: None,
            lease_duration: None,
            retry_policy: None,
            retention: None,
            cancel_grace_period: None,
        }
    }

    /// Sets the parent: `collection/id` pairs. Default: the root.
    pub fn parent(mut self, parent: &str) -> Self {
        parent.clone_into(&mut self.parent);
        self
    }

    /// Sets the id. Default: a UUIDv7.
    pub fn id(mut self, id: &str) -> Self {
        self.id = Some(id.to_owned());
        self
    }

    /// Makes the creation idempotent (AIP-155): a repeated request with the same id
    /// and content returns the same operation while that exists.
    pub fn request_id(mut self, id: &str) -> Self {
        self.request_id = Some(id.to_owned());
        self
    }

    /// Sets metadata of a custom type, which replaces `OperationMetadata`.
    pub fn metadata(mut self, metadata: Any) -> Self {
        self.metadata = Some(metadata);
        self
    }

    /// Sets a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets the method that started the operation, such as
    /// `bookstore.v1.Bookstore/ExportBooks`; at most 255 bytes.
    pub fn method(mut self, method: &str) -> Self {
        method.clone_into(&mut self.method);
        self
    }

    /// Sets an entry of the trace context for the workers, such as `traceparent`.
    /// See [`TraceContext`] for the allowed values.
    ///
    /// [`TraceContext`]: crate::TraceContext
    pub fn trace_context(mut self, key: &str, value: &str) -> Self {
        self.trace_context.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets the input of the worker. Ignored if the creator executes the operation.
    pub fn input(mut self, payload: Any) -> Self {
        if let Execution::Queued { input, .. } = &mut self.execution {
            *input = Some(payload);
        }
        self
    }

    /// Sets the earliest start. Ignored if the creator executes the operation.
    pub fn not_before(mut self, time: SystemTime) -> Self {
        if let Execution::Queued { not_before, .. } = &mut self.execution {
            *not_before = Some(time);
        }
        self
    }

    /// Sets the priority: higher is leased first.
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Sets the maximum time from creation to completion. When exceeded, the
    /// operation fails with DEADLINE_EXCEEDED.
    pub fn total_timeout(mut self, timeout: Duration) -> Self {
        self.total_timeout = Some(timeout);
        self
    }

    /// Sets the maximum time of one attempt. When exceeded, the attempt fails.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = Some(timeout);
        self
    }

    /// Sets the time from a heartbeat to the expiry of the lease, at least 1 s.
    pub fn lease_duration(mut self, duration: Duration) -> Self {
        self.lease_duration = Some(duration);
        self
    }

    /// Sets the retry policy.
    pub fn retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.retry_policy = Some(policy);
        self
    }

    /// Sets the time from completion to deletion.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = Some(retention);
        self
    }

    /// Sets the time that the worker has to stop after a requested cancellation.
    pub fn cancel_grace_period(mut self, grace_period: Duration) -> Self {
        self.cancel_grace_period = Some(grace_period);
        self
    }

    /// Validates the request. The number of the specification is 0: the store
    /// assigns it.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for the first invalid value.
    pub(crate) fn into_spec(
        self,
        defaults: &ExecutionDefaults,
        interner: &OptionsInterner,
    ) -> Result<OperationSpec> {
        let parent = Parent::parse(&self.parent)?;
        let id = match &self.id {
            Some(id) => OperationId::parse(id)?,
            None => OperationId::random(),
        };
        let idempotency_key = self.idempotency_key()?;
        let options = self.execution_options(defaults)?;
        let attributes = Attributes {
            method: parse_method(self.method)?,
            labels: Labels::new(self.labels)?,
            trace_context: TraceContext::new(self.trace_context)?,
            idempotency_key,
        };
        let (input, not_before, initial_lease) = match self.execution {
            Execution::SelfExecuted { worker_id } => {
                let token = LeaseToken::random();
                let worker = WorkerId::new(&worker_id);
                (None, None, Some(InitialLease { token, worker }))
            }
            Execution::Queued {
                input, not_before, ..
            } => (input, not_before.map(to_timestamp), None),
        };
        Ok(OperationSpec {
            name: OperationName::new(&parent, &id),
            number: 0,
            options: interner.intern(options),
            attributes: (attributes != Attributes::default()).then(|| Arc::new(attributes)),
            input: parse_payload("input", input)?,
            metadata: parse_payload("metadata", self.metadata)?,
            not_before,
            initial_lease,
        })
    }

    fn execution_options(&self, defaults: &ExecutionDefaults) -> Result<ExecutionOptions> {
        let queue = match &self.execution {
            Execution::SelfExecuted { .. } => None,
            Execution::Queued { queue, .. } => Some(QueueName::parse(queue)?),
        };
        let policies = &defaults.queue_retry_policies;
        let queue_policy = queue.as_ref().and_then(|queue| policies.get(queue));
        let defaults = &defaults.options;
        let retry_policy = self.retry_policy.as_ref().or(queue_policy);
        let retry_policy = retry_policy.unwrap_or(&defaults.retry_policy);
        let options = ExecutionOptions {
            retry_policy: retry_policy.clone(),
            queue,
            priority: self.priority.unwrap_or(defaults.priority),
            total_timeout: self.total_timeout.or(defaults.total_timeout),
            attempt_timeout: self.attempt_timeout.or(defaults.attempt_timeout),
            lease_duration: self.lease_duration.unwrap_or(defaults.lease_duration),
            retention: self.retention.unwrap_or(defaults.retention),
            cancel_grace_period: self.cancel_grace_period.or(defaults.cancel_grace_period),
        };
        options.check()?;
        Ok(options)
    }

    fn idempotency_key(&self) -> Result<Option<IdempotencyKey>> {
        let Some(id) = &self.request_id else {
            return Ok(None);
        };
        if id.is_empty() || id.len() > MAX_REQUEST_ID_BYTES {
            let message = format!(
                "invalid request id {:?}: use 1 to {MAX_REQUEST_ID_BYTES} bytes, preferably a UUID",
                excerpt(id)
            );
            return Err(Error::invalid("request_id", "INVALID_REQUEST_ID", message));
        }
        Ok(Some(IdempotencyKey {
            request_id: id.as_str().into(),
            fingerprint: self.fingerprint(),
        }))
    }

    /// Returns a hash of the request, which is the same on every server. It leaves
    /// out the request id, and the trace context and the worker id, which differ
    /// between retries.
    fn fingerprint(&self) -> Uuid {
        let mut bytes = Vec::new();
        let mut append = |part: &[u8]| {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part);
        };
        let encode = |any: &Option<Any>| any.as_ref().map_or_else(Vec::new, Any::encode_to_vec);
        append(self.parent.as_bytes());
        append(self.id.as_deref().unwrap_or("").as_bytes());
        append(&encode(&self.metadata));
        append(self.method.as_bytes());
        append(&(self.labels.len() as u64).to_be_bytes());
        for (key, value) in &self.labels {
            append(key.as_bytes());
            append(value.as_bytes());
        }
        match &self.execution {
            Execution::SelfExecuted { .. } => append(b"creator"),
            Execution::Queued {
                queue,
                input,
                not_before,
            } => {
                append(b"queue");
                append(queue.as_bytes());
                append(&encode(input));
                let nanos = not_before.map_or(0, |time| to_timestamp(time).nanos());
                append(&nanos.to_be_bytes());
            }
        }
        let durations = [
            self.total_timeout,
            self.attempt_timeout,
            self.lease_duration,
            self.retention,
            self.cancel_grace_period,
        ];
        for duration in durations {
            let nanos = duration.map_or(u128::MAX, |time| time.as_nanos());
            append(&nanos.to_be_bytes());
        }
        append(&self.priority.unwrap_or_default().to_be_bytes());
        if let Some(policy) = &self.retry_policy {
            append(&policy.max_attempts.to_be_bytes());
            append(&policy.max_worker_losses.to_be_bytes());
            append(&policy.initial_backoff.as_nanos().to_be_bytes());
            append(&policy.max_backoff.as_nanos().to_be_bytes());
            append(&policy.multiplier.to_be_bytes());
            append(&policy.jitter.to_be_bytes());
        }
        Uuid::new_v5(&REQUEST_FINGERPRINT_NAMESPACE, &bytes)
    }
}

// === impl OptionsInterner ===

impl OptionsInterner {
    /// The number of distinct options that are remembered.
    const CAPACITY: usize = 16;

    fn intern(&self, options: ExecutionOptions) -> Arc<ExecutionOptions> {
        let mut recent = self.0.lock();
        if let Some(same) = recent.iter().find(|known| ***known == options) {
            return same.clone();
        }
        recent.truncate(Self::CAPACITY - 1);
        let options = Arc::new(options);
        recent.push_front(options.clone());
        options
    }
}

fn parse_method(name: String) -> Result<Box<str>> {
    if name.len() <= MAX_METHOD_BYTES && !name.contains(char::is_control) {
        return Ok(name.into());
    }
    let message = format!(
        "invalid method {:?}: use at most {MAX_METHOD_BYTES} bytes without control characters, such as bookstore.v1.Bookstore/ExportBooks",
        excerpt(&name)
    );
    Err(Error::invalid("method", "INVALID_METHOD", message))
}

/// Converts a time; times before 1970 become 1970.
fn to_timestamp(time: SystemTime) -> Timestamp {
    Timestamp::default() + time.duration_since(UNIX_EPOCH).unwrap_or_default()
}
