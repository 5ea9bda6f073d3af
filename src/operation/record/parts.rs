//! The parts of a record: each as it is kept, and the way there and back.

use std::{collections::BTreeMap, time::Duration};

use prost::{Message, Oneof};
use prost_types::Any;
use uuid::Uuid;

use super::Damage;
use crate::{
    clock::Timestamp,
    operation::{
        birth::{Request, Tags},
        labels::Labels,
        lease::{Lease, LeaseToken, WorkerId},
        payload::Payload,
        retry::RetryPolicy,
        stage::{Ending, Report, Stage},
        terms::{QueueName, Terms},
        trace::TraceContext,
        wire::Wire,
    },
    proto::longrunning::v1::Progress,
};

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum RecordedStage {
    /// The time from which on it is ready.
    #[prost(sfixed64, tag = "9")]
    Pending(i64),
    #[prost(message, tag = "10")]
    Running(RecordedLease),
    #[prost(message, tag = "11")]
    Cancelling(RecordedLease),
    #[prost(enumeration = "RecordedEnding", tag = "12")]
    Done(i32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum RecordedEnding {
    Unspecified = 0,
    Succeeded = 1,
    Failed = 2,
    Cancelled = 3,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RecordedLease {
    #[prost(bytes = "vec", tag = "1")]
    token: Vec<u8>,
    #[prost(string, tag = "2")]
    holder: String,
    #[prost(sfixed64, tag = "3")]
    until: i64,
    #[prost(sfixed64, optional, tag = "4")]
    attempt_until: Option<i64>,
    #[prost(sfixed64, optional, tag = "5")]
    cancel_until: Option<i64>,
}

/// Durations are in nanoseconds.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RecordedTerms {
    #[prost(string, optional, tag = "1")]
    queue: Option<String>,
    #[prost(sint32, tag = "2")]
    priority: i32,
    #[prost(uint64, optional, tag = "3")]
    total_timeout: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    attempt_timeout: Option<u64>,
    #[prost(uint64, tag = "5")]
    lease_duration: u64,
    #[prost(uint64, tag = "6")]
    retention: u64,
    #[prost(uint64, optional, tag = "7")]
    cancel_grace: Option<u64>,
    #[prost(uint32, tag = "8")]
    max_attempts: u32,
    #[prost(uint64, tag = "9")]
    initial_backoff: u64,
    #[prost(uint64, tag = "10")]
    max_backoff: u64,
    #[prost(double, tag = "11")]
    multiplier: f64,
    #[prost(double, tag = "12")]
    jitter: f64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RecordedTags {
    #[prost(btree_map = "string, string", tag = "1")]
    labels: BTreeMap<String, String>,
    #[prost(string, tag = "2")]
    request_id: String,
    #[prost(bytes = "vec", tag = "3")]
    request_digest: Vec<u8>,
    #[prost(string, tag = "4")]
    method: String,
    #[prost(btree_map = "string, string", tag = "5")]
    trace_context: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RecordedReport {
    #[prost(message, optional, tag = "1")]
    progress: Option<Progress>,
    /// Whether the metadata that clients see is the producer's own.
    #[prost(bool, tag = "2")]
    own_metadata: bool,
    #[prost(message, optional, tag = "3")]
    detail: Option<Any>,
    #[prost(message, optional, tag = "4")]
    checkpoint: Option<Any>,
}

// === impl RecordedStage ===

impl From<&Stage> for RecordedStage {
    fn from(stage: &Stage) -> Self {
        match stage {
            Stage::Pending { ready } => Self::Pending(ready.nanos()),
            Stage::Running(lease) => Self::Running((&**lease).into()),
            Stage::Cancelling(lease) => Self::Cancelling((&**lease).into()),
            Stage::Done(ending) => Self::Done(match ending {
                Ending::Succeeded => RecordedEnding::Succeeded,
                Ending::Failed => RecordedEnding::Failed,
                Ending::Cancelled => RecordedEnding::Cancelled,
            } as i32),
        }
    }
}

impl TryFrom<RecordedStage> for Stage {
    type Error = Damage;

    fn try_from(stage: RecordedStage) -> Result<Self, Damage> {
        Ok(match stage {
            RecordedStage::Pending(ready) => Self::Pending {
                ready: Timestamp::from_nanos(ready),
            },
            RecordedStage::Running(lease) => Self::Running(Box::new(lease.try_into()?)),
            RecordedStage::Cancelling(lease) => Self::Cancelling(Box::new(lease.try_into()?)),
            RecordedStage::Done(ending) => Self::Done(match RecordedEnding::try_from(ending) {
                Ok(RecordedEnding::Succeeded) => Ending::Succeeded,
                Ok(RecordedEnding::Failed) => Ending::Failed,
                Ok(RecordedEnding::Cancelled) => Ending::Cancelled,
                Ok(RecordedEnding::Unspecified) | Err(_) => return Err(Damage::Field("ending")),
            }),
        })
    }
}

// === impl RecordedLease ===

impl From<&Lease> for RecordedLease {
    fn from(lease: &Lease) -> Self {
        Self {
            token: lease.token.as_bytes().to_vec(),
            holder: lease.holder.as_str().to_owned(),
            until: lease.until.nanos(),
            attempt_until: lease.attempt_until.map(Timestamp::nanos),
            cancel_until: lease.cancel_until.map(Timestamp::nanos),
        }
    }
}

impl TryFrom<RecordedLease> for Lease {
    type Error = Damage;

    fn try_from(lease: RecordedLease) -> Result<Self, Damage> {
        Ok(Self {
            token: LeaseToken::from_bytes(&lease.token).ok_or(Damage::Field("lease token"))?,
            holder: WorkerId::new(&lease.holder),
            until: Timestamp::from_nanos(lease.until),
            attempt_until: lease.attempt_until.map(Timestamp::from_nanos),
            cancel_until: lease.cancel_until.map(Timestamp::from_nanos),
        })
    }
}

// === impl RecordedTerms ===

impl From<&Terms> for RecordedTerms {
    fn from(terms: &Terms) -> Self {
        // What is longer than 584 years is for ever.
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Self {
            queue: terms.queue.as_ref().map(ToString::to_string),
            priority: terms.priority,
            total_timeout: terms.total_timeout.map(nanos),
            attempt_timeout: terms.attempt_timeout.map(nanos),
            lease_duration: nanos(terms.lease_duration),
            retention: nanos(terms.retention),
            cancel_grace: terms.cancel_grace.map(nanos),
            max_attempts: terms.retry.max_attempts,
            initial_backoff: nanos(terms.retry.initial_backoff),
            max_backoff: nanos(terms.retry.max_backoff),
            multiplier: terms.retry.multiplier,
            jitter: terms.retry.jitter,
        }
    }
}

impl TryFrom<RecordedTerms> for Terms {
    type Error = Damage;

    fn try_from(terms: RecordedTerms) -> Result<Self, Damage> {
        let queue = terms.queue.as_deref().map(QueueName::parse).transpose();
        Ok(Self {
            queue: queue.map_err(|_| Damage::Field("queue"))?,
            priority: terms.priority,
            total_timeout: terms.total_timeout.map(Duration::from_nanos),
            attempt_timeout: terms.attempt_timeout.map(Duration::from_nanos),
            lease_duration: Duration::from_nanos(terms.lease_duration),
            retry: RetryPolicy {
                max_attempts: terms.max_attempts,
                initial_backoff: Duration::from_nanos(terms.initial_backoff),
                max_backoff: Duration::from_nanos(terms.max_backoff),
                multiplier: terms.multiplier,
                jitter: terms.jitter,
            },
            retention: Duration::from_nanos(terms.retention),
            cancel_grace: terms.cancel_grace.map(Duration::from_nanos),
        })
    }
}

// === impl RecordedTags ===

impl From<&Tags> for RecordedTags {
    fn from(tags: &Tags) -> Self {
        fn owned<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> BTreeMap<String, String> {
            pairs
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect()
        }
        let request = tags.request.as_ref();
        Self {
            labels: owned(tags.labels.iter()),
            request_id: request.map_or_else(String::new, |request| request.id.to_string()),
            request_digest: request
                .map_or_else(Vec::new, |request| request.digest.as_bytes().to_vec()),
            method: tags.method.to_string(),
            trace_context: owned(tags.trace_context.iter()),
        }
    }
}

impl TryFrom<RecordedTags> for Tags {
    type Error = Damage;

    fn try_from(tags: RecordedTags) -> Result<Self, Damage> {
        let request = (!tags.request_digest.is_empty())
            .then(|| Uuid::from_slice(&tags.request_digest))
            .transpose()
            .map_err(|_| Damage::Field("request digest"))?
            .map(|digest| Request {
                id: tags.request_id.into(),
                digest,
            });
        Ok(Self {
            labels: Labels::new(tags.labels).map_err(|_| Damage::Field("labels"))?,
            request,
            method: tags.method.into(),
            trace_context: TraceContext::new(tags.trace_context)
                .map_err(|_| Damage::Field("trace context"))?,
        })
    }
}

// === impl RecordedReport ===

impl From<&Report> for RecordedReport {
    fn from(report: &Report) -> Self {
        let any = |payload: &Payload| payload.any().clone();
        Self {
            progress: report.progress.clone(),
            own_metadata: report.metadata.is_some(),
            detail: report.detail.as_ref().map(any),
            checkpoint: report.checkpoint.as_ref().map(any),
        }
    }
}

impl RecordedReport {
    pub(super) fn into_report(self, wire: &Wire) -> Result<Report, Damage> {
        let own = || {
            let any = wire.metadata().ok_or(Damage::Field("metadata"))?;
            payload(Any {
                type_url: any.type_url.to_owned(),
                value: any.value.to_vec(),
            })
        };
        Ok(Report {
            progress: self.progress,
            metadata: self.own_metadata.then(own).transpose()?,
            detail: self.detail.map(payload).transpose()?,
            checkpoint: self.checkpoint.map(payload).transpose()?,
        })
    }
}

pub(super) fn payload(any: Any) -> Result<Payload, Damage> {
    Payload::new(any).map_err(|_| Damage::Field("type URL"))
}
