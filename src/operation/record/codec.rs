//! The messages inside a record, and their conversions.

use std::{collections::BTreeMap, time::Duration};

use prost::{Message, Oneof};
use prost_types::Any;
use uuid::Uuid;

use super::RecordError;
use crate::{
    clock::Timestamp,
    operation::{
        encoded::EncodedOperation,
        labels::Labels,
        lease::{Lease, LeaseToken, WorkerId},
        options::{ExecutionOptions, QueueName},
        payload::Payload,
        retry::RetryPolicy,
        spec::{Attributes, IdempotencyKey},
        trace::TraceContext,
        transition::{Phase, Report, TerminalState},
    },
    proto::longrunning::v1::Progress,
};

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum PhaseRecord {
    /// `ready_at` in nanoseconds.
    #[prost(sfixed64, tag = "9")]
    Pending(i64),
    #[prost(message, tag = "10")]
    Running(LeaseRecord),
    #[prost(message, tag = "11")]
    Cancelling(LeaseRecord),
    #[prost(enumeration = "TerminalState", tag = "12")]
    Done(i32),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LeaseRecord {
    #[prost(bytes = "vec", tag = "1")]
    token: Vec<u8>,
    #[prost(string, tag = "2")]
    holder: String,
    #[prost(sfixed64, tag = "3")]
    expires_at_ns: i64,
    #[prost(sfixed64, optional, tag = "4")]
    attempt_deadline_ns: Option<i64>,
    #[prost(sfixed64, optional, tag = "5")]
    cancel_deadline_ns: Option<i64>,
    #[prost(sfixed64, tag = "6")]
    start_time_ns: i64,
    #[prost(sfixed64, optional, tag = "7")]
    confirm_by_ns: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct OptionsRecord {
    #[prost(string, optional, tag = "1")]
    queue: Option<String>,
    #[prost(sint32, tag = "2")]
    priority: i32,
    #[prost(uint64, optional, tag = "3")]
    total_timeout_ns: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    attempt_timeout_ns: Option<u64>,
    #[prost(uint64, tag = "5")]
    lease_duration_ns: u64,
    #[prost(uint64, tag = "6")]
    retention_ns: u64,
    #[prost(uint64, optional, tag = "7")]
    cancel_grace_period_ns: Option<u64>,
    #[prost(uint32, tag = "8")]
    max_attempts: u32,
    #[prost(uint64, tag = "9")]
    initial_backoff_ns: u64,
    #[prost(uint64, tag = "10")]
    max_backoff_ns: u64,
    #[prost(double, tag = "11")]
    multiplier: f64,
    #[prost(double, tag = "12")]
    jitter: f64,
    #[prost(uint32, tag = "13")]
    max_worker_losses: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AttributesRecord {
    #[prost(btree_map = "string, string", tag = "1")]
    labels: BTreeMap<String, String>,
    #[prost(string, tag = "2")]
    request_id: String,
    #[prost(bytes = "vec", tag = "3")]
    request_fingerprint: Vec<u8>,
    #[prost(string, tag = "4")]
    method: String,
    #[prost(btree_map = "string, string", tag = "5")]
    trace_context: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ReportRecord {
    #[prost(message, optional, tag = "1")]
    progress: Option<Progress>,
    /// `true` if the metadata of the encoded operation is custom.
    #[prost(bool, tag = "2")]
    has_custom_metadata: bool,
    #[prost(message, optional, tag = "3")]
    detail: Option<Any>,
    #[prost(message, optional, tag = "4")]
    checkpoint: Option<Any>,
}

// === impl PhaseRecord ===

impl From<&Phase> for PhaseRecord {
    fn from(phase: &Phase) -> Self {
        match phase {
            Phase::Pending { ready_at } => Self::Pending(ready_at.nanos()),
            Phase::Running(lease) => Self::Running((&**lease).into()),
            Phase::Cancelling(lease) => Self::Cancelling((&**lease).into()),
            Phase::Done(state) => Self::Done((*state).into()),
        }
    }
}

impl TryFrom<PhaseRecord> for Phase {
    type Error = RecordError;

    fn try_from(phase: PhaseRecord) -> Result<Self, RecordError> {
        Ok(match phase {
            PhaseRecord::Pending(ready_at_ns) => Self::Pending {
                ready_at: Timestamp::from_nanos(ready_at_ns),
            },
            PhaseRecord::Running(lease) => Self::Running(Box::new(lease.try_into()?)),
            PhaseRecord::Cancelling(lease) => Self::Cancelling(Box::new(lease.try_into()?)),
            PhaseRecord::Done(state) => Self::Done(
                TerminalState::try_from(state)
                    .map_err(|_| RecordError::InvalidField("terminal state"))?,
            ),
        })
    }
}

// === impl LeaseRecord ===

impl From<&Lease> for LeaseRecord {
    fn from(lease: &Lease) -> Self {
        Self {
            token: lease.token.as_bytes().to_vec(),
            holder: lease.holder.as_str().to_owned(),
            start_time_ns: lease.start_time.nanos(),
            confirm_by_ns: lease.confirm_by.map(Timestamp::nanos),
            expires_at_ns: lease.expires_at.nanos(),
            attempt_deadline_ns: lease.attempt_deadline.map(Timestamp::nanos),
            cancel_deadline_ns: lease.cancel_deadline.map(Timestamp::nanos),
        }
    }
}

impl TryFrom<LeaseRecord> for Lease {
    type Error = RecordError;

    fn try_from(lease: LeaseRecord) -> Result<Self, RecordError> {
        Ok(Self {
            token: LeaseToken::from_bytes(&lease.token)
                .ok_or(RecordError::InvalidField("lease token"))?,
            holder: WorkerId::new(&lease.holder),
            start_time: Timestamp::from_nanos(lease.start_time_ns),
            confirm_by: lease.confirm_by_ns.map(Timestamp::from_nanos),
            expires_at: Timestamp::from_nanos(lease.expires_at_ns),
            attempt_deadline: lease.attempt_deadline_ns.map(Timestamp::from_nanos),
            cancel_deadline: lease.cancel_deadline_ns.map(Timestamp::from_nanos),
        })
    }
}

// === impl OptionsRecord ===

impl From<&ExecutionOptions> for OptionsRecord {
    fn from(options: &ExecutionOptions) -> Self {
        // u64::MAX nanoseconds are 584 years.
        let to_nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self {
            queue: options.queue.as_ref().map(ToString::to_string),
            priority: options.priority,
            total_timeout_ns: options.total_timeout.map(to_nanos),
            attempt_timeout_ns: options.attempt_timeout.map(to_nanos),
            lease_duration_ns: to_nanos(options.lease_duration),
            retention_ns: to_nanos(options.retention),
            cancel_grace_period_ns: options.cancel_grace_period.map(to_nanos),
            max_attempts: options.retry_policy.max_attempts,
            max_worker_losses: options.retry_policy.max_worker_losses,
            initial_backoff_ns: to_nanos(options.retry_policy.initial_backoff),
            max_backoff_ns: to_nanos(options.retry_policy.max_backoff),
            multiplier: options.retry_policy.multiplier,
            jitter: options.retry_policy.jitter,
        }
    }
}

impl TryFrom<OptionsRecord> for ExecutionOptions {
    type Error = RecordError;

    fn try_from(options: OptionsRecord) -> Result<Self, RecordError> {
        let queue = options.queue.as_deref().map(QueueName::parse).transpose();
        Ok(Self {
            queue: queue.map_err(|_| RecordError::InvalidField("queue"))?,
            priority: options.priority,
            total_timeout: options.total_timeout_ns.map(Duration::from_nanos),
            attempt_timeout: options.attempt_timeout_ns.map(Duration::from_nanos),
            lease_duration: Duration::from_nanos(options.lease_duration_ns),
            retry_policy: RetryPolicy {
                max_attempts: options.max_attempts,
                max_worker_losses: options.max_worker_losses,
                initial_backoff: Duration::from_nanos(options.initial_backoff_ns),
                max_backoff: Duration::from_nanos(options.max_backoff_ns),
                multiplier: options.multiplier,
                jitter: options.jitter,
            },
            retention: Duration::from_nanos(options.retention_ns),
            cancel_grace_period: options.cancel_grace_period_ns.map(Duration::from_nanos),
        })
    }
}

// === impl AttributesRecord ===

impl From<&Attributes> for AttributesRecord {
    fn from(attributes: &Attributes) -> Self {
        let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let key = attributes.idempotency_key.as_ref();
        Self {
            labels: attributes.labels.iter().map(owned).collect(),
            request_id: key.map_or_else(String::new, |key| key.request_id.to_string()),
            request_fingerprint: key
                .map_or_else(Vec::new, |key| key.fingerprint.as_bytes().to_vec()),
            method: attributes.method.to_string(),
            trace_context: attributes.trace_context.iter().map(owned).collect(),
        }
    }
}

impl TryFrom<AttributesRecord> for Attributes {
    type Error = RecordError;

    fn try_from(attributes: AttributesRecord) -> Result<Self, RecordError> {
        let idempotency_key = (!attributes.request_fingerprint.is_empty())
            .then(|| Uuid::from_slice(&attributes.request_fingerprint))
            .transpose()
            .map_err(|_| RecordError::InvalidField("request fingerprint"))?
            .map(|fingerprint| IdempotencyKey {
                request_id: attributes.request_id.into(),
                fingerprint,
            });
        Ok(Self {
            labels: Labels::new(attributes.labels)
                .map_err(|_| RecordError::InvalidField("labels"))?,
            idempotency_key,
            method: attributes.method.into(),
            trace_context: TraceContext::new(attributes.trace_context)
                .map_err(|_| RecordError::InvalidField("trace context"))?,
        })
    }
}

// === impl ReportRecord ===

impl From<&Report> for ReportRecord {
    fn from(report: &Report) -> Self {
        let any = |payload: &Payload| payload.any().clone();
        Self {
            progress: report.progress.clone(),
            has_custom_metadata: report.metadata.is_some(),
            detail: report.detail.as_ref().map(any),
            checkpoint: report.checkpoint.as_ref().map(any),
        }
    }
}

impl ReportRecord {
    pub(super) fn into_report(self, encoded: &EncodedOperation) -> Result<Report, RecordError> {
        let decode_custom_metadata = || {
            let any = encoded
                .metadata()
                .ok_or(RecordError::InvalidField("metadata"))?;
            parse_payload(Any {
                type_url: any.type_url.to_owned(),
                value: any.value.to_vec(),
            })
        };
        Ok(Report {
            progress: self.progress,
            metadata: self
                .has_custom_metadata
                .then(decode_custom_metadata)
                .transpose()?,
            detail: self.detail.map(parse_payload).transpose()?,
            checkpoint: self.checkpoint.map(parse_payload).transpose()?,
        })
    }
}

pub(super) fn parse_payload(any: Any) -> Result<Payload, RecordError> {
    Payload::new(any).map_err(|_| RecordError::InvalidField("type URL"))
}
