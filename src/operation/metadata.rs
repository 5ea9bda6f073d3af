//! The metadata of an operation whose producer has no type of its own: an
//! encoded `longrunning.v1.OperationMetadata`, written straight from the record,
//! because every change writes it anew.

use prost::{
    Message,
    encoding::{self, WireType},
};

use super::{operation::Operation, payload::Payload};
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
        let length = text_length(key) + text_length(value);
        encoding::encode_varint(length as u64, buffer);
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
fn text_length(text: &str) -> usize {
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
            birth::{Birth, Tags},
            labels::Labels,
            lease::{LeaseToken, WorkerId},
            name::OperationName,
            operation::Change,
            stage::{Event, Report},
            terms::{QueueName, Terms},
            trace::TraceContext,
        },
        proto::longrunning::v1::{OperationMetadata, Progress},
    };

    const START: Timestamp = Timestamp::from_nanos(1_790_000_000_123_456_789);

    fn born(queue: Option<&str>, labels: BTreeMap<String, String>) -> Operation {
        Operation::new(
            Birth {
                name: OperationName::parse("operations/o").unwrap(),
                number: 1,
                terms: Arc::new(Terms {
                    queue: queue.map(|queue| QueueName::parse(queue).unwrap()),
                    ..Terms::default()
                }),
                tags: Some(Arc::new(Tags {
                    labels: Labels::new(labels).unwrap(),
                    request: None,
                    method: queue.map_or("", |_| "acme.v1.Shop/Sell").into(),
                    trace_context: TraceContext::NONE,
                })),
                input: None,
                metadata: None,
                not_before: None,
                holder: Some((LeaseToken::random(), WorkerId::new("creator"))),
            },
            START,
        )
    }

    #[test]
    fn what_is_written_is_what_prost_would_write() {
        let one = BTreeMap::from([("a".to_owned(), String::new())]);
        let report = Report {
            progress: Some(Progress {
                fraction: Some(0.0),
                message: "half".into(),
                ..Progress::default()
            }),
            detail: Some(Payload::empty()),
            ..Report::default()
        };
        let rich = born(Some("q"), one);
        let token = rich.lease().unwrap().token;
        let told = rich.apply(&Event::Report(token, report), START).unwrap();
        let Change::Put(told) = told else {
            panic!("a report changes it")
        };
        let Change::Put(asked) = told.apply(&Event::RequestCancel, START).unwrap() else {
            panic!("so does the wish to cancel")
        };
        for operation in [born(None, BTreeMap::new()), rich, told, asked] {
            let bytes = encode(&operation);
            let read = OperationMetadata::decode(&*bytes).unwrap();
            assert_eq!(read.encode_to_vec(), bytes, "{read:?}");
            assert_eq!(read.state(), operation.state());
            assert_eq!(read.create_time, Some(START.into()));
            assert_eq!(read.start_time, Some(START.into()));
            assert_eq!(read.progress.as_ref(), operation.progress());
            assert_eq!(read.detail.as_ref(), operation.detail().map(Payload::any));
            assert_eq!(read.cancel_requested, operation.cancel_requested());
            assert_eq!(read.queue.is_empty(), operation.queue().is_none());
            assert_eq!(read.method, operation.method());
            assert_eq!(read.labels.len(), operation.labels().iter().count());
        }
    }

    #[test]
    fn labels_stand_in_their_order_whatever_their_number_and_length() {
        let label = |n: usize| (format!("k{n:02}"), "v".repeat(n * 4));
        let labels: BTreeMap<_, _> = (0..64).map(label).collect();
        let bytes = encode(&born(None, labels.clone()));
        let read = OperationMetadata::decode(&*bytes).unwrap();
        assert_eq!(read.labels.into_iter().collect::<BTreeMap<_, _>>(), labels);
        assert_eq!(bytes, encode(&born(None, labels)));
    }

    #[test]
    fn the_type_url_is_that_of_the_message() {
        assert_eq!(TYPE_URL, OperationMetadata::type_url());
    }
}
