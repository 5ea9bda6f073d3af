//! The metadata of an operation whose producer has no type of its own: an
//! encoded `longrunning.v1.OperationMetadata`, written straight from the record,
//! because every change writes it anew.

use prost::{
    Message,
    encoding::{self, WireType},
};

use super::{Operation, payload::Payload};
/// What the encoded message is packed as.
pub(super) const TYPE_URL: &str = "type.googleapis.com/longrunning.v1.OperationMetadata";

/// The fields in the order of their numbers; those that are zero or empty are left out.
pub(super) fn encode(operation: &Operation) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    let buffer = &mut bytes;
    encoding::int32::encode(1, &operation.state().into(), buffer);
    let times = [
        Some(operation.create_time()),
        operation.start_time(),
        Some(operation.update_time()),
        operation.end_time(),
    ];
    for (tag, time) in (2..).zip(times) {
        put_message(tag, time.map(prost_types::Timestamp::from).as_ref(), buffer);
    }
    put_message(6, operation.progress(), buffer);
    if operation.attempt() != 0 {
        let attempt = i32::try_from(operation.attempt()).unwrap_or(i32::MAX);
        encoding::int32::encode(7, &attempt, buffer);
    }
    if operation.cancel_requested() {
        encoding::bool::encode(8, &true, buffer);
    }
    put_text(
        9,
        operation.queue().map_or("", |queue| queue.as_str()),
        buffer,
    );
    for (key, value) in operation.labels().iter() {
        encoding::encode_key(10, WireType::LengthDelimited, buffer);
        let entry_len = encoded_text_len(key) + encoded_text_len(value);
        encoding::encode_varint(entry_len as u64, buffer);
        put_text(1, key, buffer);
        put_text(2, value, buffer);
    }
    put_message(11, operation.detail().map(Payload::any), buffer);
    put_text(12, operation.method(), buffer);
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

/// How many bytes [`put_text`] takes, with a tag below 16.
fn encoded_text_len(text: &str) -> usize {
    match text.len() {
        0 => 0,
        length => 1 + encoding::encoded_len_varint(length as u64) + length,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use prost::Name;

    use super::*;
    use crate::{
        clock::Timestamp,
        operation::{
            OperationUpdate,
            labels::Labels,
            lease::{LeaseToken, WorkerId},
            name::OperationName,
            options::{ExecutionOptions, QueueName},
            spec::{Attributes, OperationSpec},
            trace::TraceContext,
            transition::{Event, Report},
        },
        proto::longrunning::v1::{OperationMetadata, Progress},
    };

    const START: Timestamp = Timestamp::from_nanos(1_790_000_000_123_456_789);

    fn new_operation(queue: Option<&str>, labels: BTreeMap<String, String>) -> Operation {
        Operation::new(
            OperationSpec {
                name: OperationName::parse("operations/o").unwrap(),
                number: 1,
                options: Arc::new(ExecutionOptions {
                    queue: queue.map(|queue| QueueName::parse(queue).unwrap()),
                    ..ExecutionOptions::default()
                }),
                attributes: Some(Arc::new(Attributes {
                    labels: Labels::new(labels).unwrap(),
                    idempotency_key: None,
                    method: queue.map_or("", |_| "acme.v1.Shop/Sell").into(),
                    trace_context: TraceContext::NONE,
                })),
                input: None,
                metadata: None,
                not_before: None,
                initial_lease: Some((LeaseToken::random(), WorkerId::new("creator"))),
            },
            START,
        )
    }

    #[test]
    fn encoded_metadata_equals_prost_encoding() {
        let labels = BTreeMap::from([("a".to_owned(), String::new())]);
        let report = Report {
            progress: Some(Progress {
                fraction: Some(0.0),
                message: "half".into(),
                ..Progress::default()
            }),
            detail: Some(Payload::empty()),
            ..Report::default()
        };
        let labelled = new_operation(Some("q"), labels);
        let token = labelled.lease().unwrap().token;
        let update = labelled
            .apply(&Event::Report(token, report), START)
            .unwrap();
        let OperationUpdate::Put(reported) = update else {
            panic!("a report changes it")
        };
        let OperationUpdate::Put(cancelling) =
            reported.apply(&Event::RequestCancel, START).unwrap()
        else {
            panic!("so does the wish to cancel")
        };
        for operation in [
            new_operation(None, BTreeMap::new()),
            labelled,
            reported,
            cancelling,
        ] {
            let bytes = encode(&operation);
            let decoded = OperationMetadata::decode(&*bytes).unwrap();
            assert_eq!(decoded.encode_to_vec(), bytes, "{decoded:?}");
            assert_eq!(decoded.state(), operation.state());
            assert_eq!(decoded.create_time, Some(START.into()));
            assert_eq!(decoded.start_time, Some(START.into()));
            assert_eq!(decoded.progress.as_ref(), operation.progress());
            assert_eq!(
                decoded.detail.as_ref(),
                operation.detail().map(Payload::any)
            );
            assert_eq!(decoded.cancel_requested, operation.cancel_requested());
            assert_eq!(decoded.queue.is_empty(), operation.queue().is_none());
            assert_eq!(decoded.method, operation.method());
            assert_eq!(decoded.labels.len(), operation.labels().iter().count());
        }
    }

    #[test]
    fn labels_of_any_count_and_length_encode_in_key_order() {
        let label = |n: usize| (format!("k{n:02}"), "v".repeat(n * 4));
        let labels: BTreeMap<_, _> = (0..64).map(label).collect();
        let bytes = encode(&new_operation(None, labels.clone()));
        let decoded = OperationMetadata::decode(&*bytes).unwrap();
        assert_eq!(
            decoded.labels.into_iter().collect::<BTreeMap<_, _>>(),
            labels
        );
        assert_eq!(bytes, encode(&new_operation(None, labels)));
    }

    #[test]
    fn metadata_type_url_matches_prost_type_url() {
        assert_eq!(TYPE_URL, OperationMetadata::type_url());
    }
}
