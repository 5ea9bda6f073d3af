//! An operation as a journal keeps it: a protobuf message of our own, behind a
//! checksum. The encoded `google.longrunning.Operation` is kept as it is, so
//! that a restart changes no byte; what can be read from it is not kept twice.
//! The numbers of the fields never change, and none is used again.

mod parts;

use std::sync::Arc;

use prost::Message;
use prost_types::Any;

use self::parts::{RecordedReport, RecordedStage, RecordedTags, RecordedTerms, payload};
use super::{
    birth::Tags,
    operation::{Operation, Work},
    terms::Terms,
    wire::Wire,
};
use crate::clock::Timestamp;

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

/// The record of an operation, without its input.
#[cfg(feature = "sqlite")]
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
#[cfg(feature = "sqlite")]
pub(crate) fn encode_input(number: u64, input: &Any) -> Vec<u8> {
    seal(number, input)
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

#[cfg(test)]
mod tests;
