//! The stored form of an operation: a checksum, then a protobuf message that
//! contains the encoded `google.longrunning.Operation` byte for byte.
//!
//! Field numbers are part of the storage format: never change or reuse one.

mod codec;

use std::sync::Arc;

use prost::Message;
use prost_types::Any;

use self::codec::{AttributesRecord, OptionsRecord, PhaseRecord, ReportRecord, parse_payload};
use super::{
    Operation, WorkState, encoded::EncodedOperation, options::ExecutionOptions, spec::Attributes,
};
use crate::{clock::Timestamp, proto::longrunning::v1::operation_metadata::Attempt};

/// The number of distinct execution options that a decoder interns.
const MAX_INTERNED_OPTIONS: usize = 16;

const CHECKSUM_BYTES: usize = size_of::<u32>();

/// A record that cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("checksum mismatch")]
    ChecksumMismatch,
    #[error("malformed protobuf: {0}")]
    Protobuf(#[from] prost::DecodeError),
    #[error("missing or invalid {0}")]
    InvalidField(&'static str),
}

/// Decodes records. Operations with equal execution options share them.
#[derive(Debug, Default)]
pub(crate) struct RecordDecoder {
    interned_options: Vec<(OptionsRecord, Arc<ExecutionOptions>)>,
}

#[derive(Clone, PartialEq, Message)]
struct OperationRecord {
    #[prost(uint32, tag = "1")]
    revision: u32,
    #[prost(uint32, tag = "2")]
    attempt: u32,
    #[prost(bool, tag = "4")]
    cancel_requested: bool,
    #[prost(bool, tag = "5")]
    deleted: bool,
    #[prost(sfixed64, tag = "6")]
    create_time_ns: i64,
    #[prost(sfixed64, optional, tag = "7")]
    start_time_ns: Option<i64>,
    #[prost(sfixed64, tag = "8")]
    update_time_ns: i64,
    #[prost(oneof = "PhaseRecord", tags = "9, 10, 11, 12")]
    phase: Option<PhaseRecord>,
    #[prost(bytes = "vec", tag = "13")]
    encoded: Vec<u8>,
    #[prost(message, optional, tag = "14")]
    options: Option<OptionsRecord>,
    #[prost(message, optional, tag = "15")]
    attributes: Option<AttributesRecord>,
    #[prost(message, optional, tag = "16")]
    latest_report: Option<ReportRecord>,
    /// The input, unless it is stored separately.
    #[prost(message, optional, tag = "17")]
    input: Option<Any>,
    #[prost(bool, tag = "18")]
    has_separate_input: bool,
    #[prost(uint32, tag = "19")]
    failed_attempts: u32,
    #[prost(uint32, tag = "20")]
    worker_losses: u32,
    #[prost(uint32, tag = "21")]
    unconfirmed_leases: u32,
    #[prost(message, repeated, tag = "22")]
    ended_attempts: Vec<Attempt>,
}

/// Encodes the record of an operation without its input.
#[cfg(feature = "sqlite")]
pub(crate) fn encode(operation: &Operation) -> Vec<u8> {
    encode_record(operation, None)
}

/// Encodes the record of an operation with its input.
pub(crate) fn encode_with_input(operation: &Operation) -> Vec<u8> {
    encode_record(
        operation,
        operation.input().map(|input| input.any().clone()),
    )
}

/// Encodes an input that is stored separately from its record.
#[cfg(feature = "sqlite")]
pub(crate) fn encode_input(number: u64, input: &Any) -> Vec<u8> {
    encode_with_checksum(number, input)
}

fn encode_record(operation: &Operation, input: Option<Any>) -> Vec<u8> {
    let record = OperationRecord {
        revision: operation.revision,
        attempt: operation.attempt,
        failed_attempts: operation.failed_attempts,
        worker_losses: operation.worker_losses,
        unconfirmed_leases: operation.unconfirmed_leases,
        ended_attempts: operation.ended_attempts().to_vec(),
        cancel_requested: operation.cancel_requested,
        deleted: operation.deleted,
        create_time_ns: operation.create_time.nanos(),
        start_time_ns: operation.start_time.map(Timestamp::nanos),
        update_time_ns: operation.update_time.nanos(),
        phase: Some(PhaseRecord::from(&operation.phase)),
        encoded: operation.encoded.as_bytes().to_vec(),
        options: Some(OptionsRecord::from(&*operation.options)),
        attributes: operation.attributes.as_deref().map(AttributesRecord::from),
        latest_report: operation.latest_report().map(ReportRecord::from),
        has_separate_input: input.is_none() && operation.input().is_some(),
        input,
    };
    encode_with_checksum(operation.number, &record)
}

/// Encodes a message behind its checksum. The checksum covers the number, to detect
/// a record that was stored in the place of another one.
fn encode_with_checksum(number: u64, message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(CHECKSUM_BYTES + message.encoded_len());
    bytes.extend_from_slice(&[0; CHECKSUM_BYTES]);
    message
        .encode(&mut bytes)
        .expect("a vector grows as needed");
    let sum = checksum(number, &bytes[CHECKSUM_BYTES..]);
    bytes[..CHECKSUM_BYTES].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn verify_checksum(number: u64, bytes: &[u8]) -> Result<&[u8], RecordError> {
    let (sum, rest) = bytes
        .split_first_chunk()
        .ok_or(RecordError::ChecksumMismatch)?;
    let is_valid = u32::from_le_bytes(*sum) == checksum(number, rest);
    is_valid
        .then_some(rest)
        .ok_or(RecordError::ChecksumMismatch)
}

fn checksum(number: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

// === impl RecordDecoder ===

impl RecordDecoder {
    /// Decodes a record, and its input if that is stored separately.
    ///
    /// # Errors
    /// [`RecordError`] if the bytes are damaged or belong to another number.
    pub(crate) fn decode(
        &mut self,
        number: u64,
        record: &[u8],
        input: Option<&[u8]>,
    ) -> Result<Operation, RecordError> {
        let record = OperationRecord::decode(verify_checksum(number, record)?)?;
        let input = match input {
            Some(input) if record.has_separate_input => {
                Some(Any::decode(verify_checksum(number, input)?)?)
            }
            None if record.has_separate_input => return Err(RecordError::InvalidField("input")),
            _ => record.input,
        };
        let encoded = EncodedOperation::from_bytes(record.encoded)
            .ok_or(RecordError::InvalidField("operation"))?;
        let latest_report = record
            .latest_report
            .map(|report| report.into_report(&encoded))
            .transpose()?;
        let work_state = WorkState {
            input: input.map(parse_payload).transpose()?,
            latest_report: latest_report.map(Box::new),
            ended_attempts: record.ended_attempts,
        };
        let attributes = record.attributes.map(Attributes::try_from).transpose()?;
        let options = record.options.ok_or(RecordError::InvalidField("options"))?;
        Ok(Operation {
            number,
            revision: record.revision,
            attempt: record.attempt,
            failed_attempts: record.failed_attempts,
            worker_losses: record.worker_losses,
            unconfirmed_leases: record.unconfirmed_leases,
            cancel_requested: record.cancel_requested,
            deleted: record.deleted,
            create_time: Timestamp::from_nanos(record.create_time_ns),
            start_time: record.start_time_ns.map(Timestamp::from_nanos),
            update_time: Timestamp::from_nanos(record.update_time_ns),
            phase: record
                .phase
                .ok_or(RecordError::InvalidField("phase"))?
                .try_into()?,
            options: self.intern_options(options)?,
            attributes: attributes.map(Arc::new),
            work_state: work_state.into_shared(),
            encoded,
        })
    }

    fn intern_options(
        &mut self,
        record: OptionsRecord,
    ) -> Result<Arc<ExecutionOptions>, RecordError> {
        if let Some((_, options)) = self
            .interned_options
            .iter()
            .find(|(known, _)| *known == record)
        {
            return Ok(options.clone());
        }
        let options = Arc::new(ExecutionOptions::try_from(record.clone())?);
        self.interned_options.truncate(MAX_INTERNED_OPTIONS - 1);
        self.interned_options.insert(0, (record, options.clone()));
        Ok(options)
    }
}

#[cfg(test)]
mod tests;
