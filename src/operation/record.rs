//! An operation as a journal keeps it: a protobuf message of our own, behind a
//! checksum. The encoded `google.longrunning.Operation` is kept as it is, so
//! that a restart changes no byte; what can be read from it is not kept twice.
//! The numbers of the fields never change, and none is used again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use prost::{Message, Oneof};
use prost_types::Any;
use uuid::Uuid;

use super::{
    birth::{Request, Tags},
    labels::Labels,
    lease::{Lease, LeaseToken, WorkerId},
    operation::{Operation, Work},
    payload::Payload,
    retry::RetryPolicy,
    stage::{Ending, Report, Stage},
    terms::{QueueName, Terms},
    trace::TraceContext,
    wire::Wire,
};
use crate::{clock::Timestamp, proto::longrunning::v1::Progress};

/// How many sets of terms a reader remembers, so that operations share them.
const SHARED_TERMS: usize = 16;

const CHECKSUM: usize = size_of::<u32>();

/// The bytes are not those that were written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    #[error("its checksum does not match")]
    Checksum,
    #[error("it cannot be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
    #[error("its {0} is missing or wrong")]
    Field(&'static str),
}

/// Reads records; those that follow each other share their terms.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    terms: Vec<(RecordedTerms, Arc<Terms>)>,
}

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(uint32, tag = "1")]
    revision: u32,
    #[prost(uint32, tag = "2")]
    attempt: u32,
    #[prost(uint32, tag = "3")]
    released: u32,
    #[prost(bool, tag = "4")]
    cancel_requested: bool,
    #[prost(bool, tag = "5")]
    hidden: bool,
    #[prost(sfixed64, tag = "6")]
    create_time: i64,
    #[prost(sfixed64, optional, tag = "7")]
    start_time: Option<i64>,
    #[prost(sfixed64, tag = "8")]
    update_time: i64,
    #[prost(oneof = "RecordedStage", tags = "9, 10, 11, 12")]
    stage: Option<RecordedStage>,
    #[prost(bytes = "vec", tag = "13")]
    wire: Vec<u8>,
    #[prost(message, optional, tag = "14")]
    terms: Option<RecordedTerms>,
    #[prost(message, optional, tag = "15")]
    tags: Option<RecordedTags>,
    #[prost(message, optional, tag = "16")]
    latest: Option<RecordedReport>,
    /// The input, if it is not kept elsewhere.
    #[prost(message, optional, tag = "17")]
    input: Option<Any>,
    #[prost(bool, tag = "18")]
    input_is_elsewhere: bool,
}

#[derive(Clone, PartialEq, Oneof)]
enum RecordedStage {
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
enum RecordedEnding {
    Unspecified = 0,
    Succeeded = 1,
    Failed = 2,
    Cancelled = 3,
}

#[derive(Clone, PartialEq, Message)]
struct RecordedLease {
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
struct RecordedTerms {
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
struct RecordedTags {
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
struct RecordedReport {
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

/// The record of an operation, without its input.
pub(crate) fn encode(operation: &Operation) -> Vec<u8> {
    encode_with(operation, None)
}

/// The record of an operation with its input.
pub(crate) fn encode_with_input(operation: &Operation) -> Vec<u8> {
    encode_with(
        operation,
        operation.input().map(|input| input.any().clone()),
    )
}

/// An input that is kept beside the record.
pub(crate) fn encode_input(number: u64, input: &Payload) -> Vec<u8> {
    seal(number, input.any())
}

fn encode_with(operation: &Operation, input: Option<Any>) -> Vec<u8> {
    let latest = operation
        .work
        .as_ref()
        .and_then(|work| work.latest.as_ref());
    let record = Record {
        revision: operation.revision,
        attempt: operation.attempt,
        released: operation.released,
        cancel_requested: operation.cancel_requested,
        hidden: operation.hidden,
        create_time: operation.create_time.nanos(),
        start_time: operation.start_time.map(Timestamp::nanos),
        update_time: operation.update_time.nanos(),
        stage: Some(RecordedStage::from(&operation.stage)),
        wire: operation.wire.bytes().to_vec(),
        terms: Some(RecordedTerms::from(&*operation.terms)),
        tags: operation.tags.as_deref().map(RecordedTags::from),
        latest: latest.map(|latest| RecordedReport::from(&**latest)),
        input_is_elsewhere: input.is_none() && operation.input().is_some(),
        input,
    };
    seal(operation.number, &record)
}

/// Puts the checksum in front. It covers the number too, so that a record that
/// came to stand in another's place is noticed.
fn seal(number: u64, message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(CHECKSUM + message.encoded_len());
    bytes.extend_from_slice(&[0; CHECKSUM]);
    message
        .encode(&mut bytes)
        .expect("a vector has room for everything");
    let sum = checksum(number, &bytes[CHECKSUM..]);
    bytes[..CHECKSUM].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn unseal(number: u64, bytes: &[u8]) -> Result<&[u8], Damage> {
    let (sum, rest) = bytes.split_first_chunk().ok_or(Damage::Checksum)?;
    if u32::from_le_bytes(*sum) == checksum(number, rest) {
        Ok(rest)
    } else {
        Err(Damage::Checksum)
    }
}

fn checksum(number: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

// === impl Reader ===

impl Reader {
    /// Reads back what [`encode`] wrote, and the input that was kept beside it.
    pub(crate) fn decode(
        &mut self,
        number: u64,
        record: &[u8],
        input: Option<&[u8]>,
    ) -> Result<Operation, Damage> {
        let record = Record::decode(unseal(number, record)?)?;
        let input = match input {
            Some(input) if record.input_is_elsewhere => Some(Any::decode(unseal(number, input)?)?),
            None if record.input_is_elsewhere => return Err(Damage::Field("input")),
            _ => record.input,
        };
        let wire = Wire::read(record.wire).ok_or(Damage::Field("operation"))?;
        let latest = record
            .latest
            .map(|latest| latest.into_report(&wire))
            .transpose()?;
        let work = Work {
            input: input.map(payload).transpose()?,
            latest: latest.map(Box::new),
        };
        let tags = record.tags.map(Tags::try_from).transpose()?;
        let terms = record.terms.ok_or(Damage::Field("terms"))?;
        Ok(Operation {
            number,
            revision: record.revision,
            attempt: record.attempt,
            released: record.released,
            cancel_requested: record.cancel_requested,
            hidden: record.hidden,
            create_time: Timestamp::from_nanos(record.create_time),
            start_time: record.start_time.map(Timestamp::from_nanos),
            update_time: Timestamp::from_nanos(record.update_time),
            stage: record.stage.ok_or(Damage::Field("stage"))?.try_into()?,
            terms: self.share(terms)?,
            tags: tags.map(Arc::new),
            work: work.shared(),
            wire,
        })
    }

    fn share(&mut self, recorded: RecordedTerms) -> Result<Arc<Terms>, Damage> {
        if let Some((_, terms)) = self.terms.iter().find(|(known, _)| *known == recorded) {
            return Ok(terms.clone());
        }
        let terms = Arc::new(Terms::try_from(recorded.clone())?);
        self.terms.truncate(SHARED_TERMS - 1);
        self.terms.insert(0, (recorded, terms.clone()));
        Ok(terms)
    }
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
    fn into_report(self, wire: &Wire) -> Result<Report, Damage> {
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

fn payload(any: Any) -> Result<Payload, Damage> {
    Payload::new(any).map_err(|_| Damage::Field("type URL"))
}

#[cfg(test)]
mod tests;
