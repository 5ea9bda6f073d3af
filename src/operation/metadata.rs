//! Encodes `longrunning.v1.OperationMetadata`, the metadata of operations whose
//! creator and worker set none of their own.

use prost::{
    Message,
    encoding::{self, WireType},
};
use prost_types::Any;

use super::labels::Labels;
use crate::{
    clock::Timestamp,
    proto::longrunning::v1::{Progress, operation_metadata::State},
};

/// The type URL of the encoded message.
pub(super) const TYPE_URL: &str = "type.googleapis.com/longrunning.v1.OperationMetadata";

/// The fields of `longrunning.v1.OperationMetadata`.
#[derive(Debug)]
pub(super) struct MetadataFields<'a> {
    pub(super) state: State,
    pub(super) create_time: Timestamp,
    pub(super) start_time: Option<Timestamp>,
    pub(super) update_time: Timestamp,
    pub(super) end_time: Option<Timestamp>,
    pub(super) progress: Option<&'a Progress>,
    pub(super) attempt: u32,
    pub(super) cancel_requested: bool,
    pub(super) queue: &'a str,
    pub(super) labels: &'a Labels,
    pub(super) detail: Option<&'a Any>,
    pub(super) method: &'a str,
}

/// Encodes the fields in the order of their numbers, without zero and empty
/// ones: the bytes that prost makes, without building the message for each change.
pub(super) fn encode(fields: &MetadataFields<'_>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    let buffer = &mut bytes;
    encoding::int32::encode(1, &fields.state.into(), buffer);
    let times = [
        Some(fields.create_time),
        fields.start_time,
        Some(fields.update_time),
        fields.end_time,
    ];
    for (tag, time) in (2..).zip(times) {
        put_message(tag, time.map(prost_types::Timestamp::from).as_ref(), buffer);
    }
    put_message(6, fields.progress, buffer);
    if fields.attempt != 0 {
        let attempt = i32::try_from(fields.attempt).unwrap_or(i32::MAX);
        encoding::int32::encode(7, &attempt, buffer);
    }
    if fields.cancel_requested {
        encoding::bool::encode(8, &true, buffer);
    }
    put_text(9, fields.queue, buffer);
    for (key, value) in fields.labels.iter() {
        encoding::encode_key(10, WireType::LengthDelimited, buffer);
        let entry_len = encoded_text_len(key) + encoded_text_len(value);
        encoding::encode_varint(entry_len as u64, buffer);
        put_text(1, key, buffer);
        put_text(2, value, buffer);
    }
    put_message(11, fields.detail, buffer);
    put_text(12, fields.method, buffer);
    bytes
}

fn put_message(tag: u32, message: Option<&impl Message>, bytes: &mut Vec<u8>) {
    if let Some(message) = message {
        encoding::message::encode(tag, message, bytes);
    }
}

fn put_text(tag: u32, text: &str, bytes: &mut Vec<u8>) {
    if !text.is_empty() {
        encoding::encode_key(tag, WireType::LengthDelimited, bytes);
        encoding::encode_varint(text.len() as u64, bytes);
        bytes.extend_from_slice(text.as_bytes());
    }
}

/// Returns the number of bytes that [`put_text`] appends, for a tag below 16.
fn encoded_text_len(text: &str) -> usize {
    match text.len() {
        0 => 0,
        length => 1 + encoding::encoded_len_varint(length as u64) + length,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Name;

    use super::*;
    use crate::proto::longrunning::v1::OperationMetadata;

    const TIME: Timestamp = Timestamp::from_nanos(1_790_000_000_123_456_789);

    fn minimal_fields(labels: &Labels) -> MetadataFields<'_> {
        MetadataFields {
            state: State::Pending,
            create_time: TIME,
            start_time: None,
            update_time: TIME,
            end_time: None,
            progress: None,
            attempt: 0,
            cancel_requested: false,
            queue: "",
            labels,
            detail: None,
            method: "",
        }
    }

    // Rules: OP-17
    #[test]
    fn encoded_metadata_equals_prost_encoding() {
        let progress = Progress {
            fraction: Some(0.0),
            message: "half".into(),
            ..Progress::default()
        };
        let detail = Any {
            type_url: "type.googleapis.com/google.protobuf.Empty".into(),
            value: Vec::new(),
        };
        let labels = Labels::new([("a".to_owned(), String::new())].into()).unwrap();
        let bytes = encode(&MetadataFields {
            state: State::Succeeded,
            start_time: Some(TIME),
            end_time: Some(TIME),
            progress: Some(&progress),
            attempt: 3,
            cancel_requested: true,
            queue: "q",
            detail: Some(&detail),
            method: "acme.v1.Shop/Sell",
            ..minimal_fields(&labels)
        });
        let expected = OperationMetadata {
            state: State::Succeeded.into(),
            create_time: Some(TIME.into()),
            start_time: Some(TIME.into()),
            update_time: Some(TIME.into()),
            end_time: Some(TIME.into()),
            progress: Some(progress),
            attempt: 3,
            cancel_requested: true,
            queue: "q".into(),
            labels: [("a".to_owned(), String::new())].into(),
            detail: Some(detail),
            method: "acme.v1.Shop/Sell".into(),
        };
        assert_eq!(bytes, expected.encode_to_vec());

        let minimal = OperationMetadata {
            state: State::Pending.into(),
            create_time: Some(TIME.into()),
            update_time: Some(TIME.into()),
            ..OperationMetadata::default()
        };
        assert_eq!(
            encode(&minimal_fields(&Labels::NONE)),
            minimal.encode_to_vec()
        );
    }

    // Rules: OP-17
    #[test]
    fn labels_of_any_count_and_length_encode_in_key_order() {
        let label = |n: usize| (format!("k{n:02}"), "v".repeat(n * 4));
        let pairs: BTreeMap<_, _> = (0..64).map(label).collect();
        let labels = Labels::new(pairs.clone()).unwrap();
        let bytes = encode(&minimal_fields(&labels));
        let decoded = OperationMetadata::decode(&*bytes).unwrap();
        assert_eq!(
            decoded.labels.into_iter().collect::<BTreeMap<_, _>>(),
            pairs
        );
        assert_eq!(bytes, encode(&minimal_fields(&labels)));
    }

    #[test]
    fn metadata_type_url_matches_prost_type_url() {
        assert_eq!(TYPE_URL, OperationMetadata::type_url());
    }
}
