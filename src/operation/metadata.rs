//! Encodes `longrunning.v1.OperationMetadata`, the metadata of operations whose
//! creator and worker set none of their own.

use prost::{
    Message,
    encoding::{self, WireType},
};

use super::{
    Operation, attempts,
    encoded::{non_empty_field_len, put_non_empty_field},
    options::QueueName,
    payload::Payload,
    progress,
};
use crate::proto::longrunning::v1::operation_metadata::{Attempt, State};

/// The type URL of the encoded message.
pub(super) const TYPE_URL: &str = "type.googleapis.com/longrunning.v1.OperationMetadata";

/// Encodes the metadata of an operation, fields in the order of their numbers, without zero and empty
/// ones: the bytes that prost makes, without building the message for each change. The history of a done operation ends
/// with `last_attempt`.
pub(super) fn encode(operation: &Operation, last_attempt: Option<&Attempt>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    let buffer = &mut bytes;
    encoding::int32::encode(1, &operation.state().into(), buffer);
    let times = [
        Some(operation.create_time),
        operation.start_time,
        Some(operation.update_time),
        operation.end_time(),
    ];
    for (tag, time) in (2..).zip(times) {
        put_message(tag, time.map(prost_types::Timestamp::from).as_ref(), buffer);
    }
    match operation.progress() {
        Some(progress) if operation.state() == State::Succeeded => {
            put_message(6, Some(&progress::completed(progress)), buffer);
        }
        progress => put_message(6, progress, buffer),
    }
    if operation.attempt != 0 {
        let attempt = i32::try_from(operation.attempt).unwrap_or(i32::MAX);
        encoding::int32::encode(7, &attempt, buffer);
    }
    if operation.cancel_requested {
        encoding::bool::encode(8, &true, buffer);
    }
    let queue = operation.queue().map_or("", QueueName::as_str);
    put_non_empty_field(9, queue.as_bytes(), buffer);
    for (key, value) in operation.labels().iter() {
        encoding::encode_key(10, WireType::LengthDelimited, buffer);
        let entry_len = non_empty_field_len(key.len()) + non_empty_field_len(value.len());
        encoding::encode_varint(entry_len as u64, buffer);
        put_non_empty_field(1, key.as_bytes(), buffer);
        put_non_empty_field(2, value.as_bytes(), buffer);
    }
    put_message(11, operation.detail().map(Payload::any), buffer);
    put_non_empty_field(12, operation.method().as_bytes(), buffer);
    let current = operation.current_attempt();
    let newest = current.as_ref().or(last_attempt);
    let ended = operation.ended_attempts();
    let max_ended = attempts::MAX_ATTEMPTS - usize::from(newest.is_some());
    let oldest = ended.len().saturating_sub(max_ended);
    for attempt in ended[oldest..].iter().chain(newest) {
        encoding::message::encode(13, attempt, buffer);
    }
    bytes
}

fn put_message(tag: u32, message: Option<&impl Message>, bytes: &mut Vec<u8>) {
    if let Some(message) = message {
        encoding::message::encode(tag, message, bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use prost::Name;
    use prost_types::Any;

    use super::*;
    use crate::{
        clock::Timestamp,
        operation::{
            WorkState,
            labels::Labels,
            name::OperationName,
            options::ExecutionOptions,
            report::Report,
            spec::{Attributes, OperationSpec},
            transition::{Phase, TerminalState},
        },
        proto::{
            google::rpc::Status,
            longrunning::v1::{OperationMetadata, Progress},
        },
    };

    const TIME: Timestamp = Timestamp::from_nanos(1_790_000_000_123_456_789);

    fn pending_operation(attributes: Attributes) -> Operation {
        let spec = OperationSpec {
            name: OperationName::parse("operations/a").unwrap(),
            number: 1,
            options: Arc::default(),
            attributes: Some(Arc::new(attributes)),
            input: None,
            metadata: None,
            not_before: None,
            initial_lease: None,
        };
        Operation::new(spec, TIME)
    }

    fn with_labels(labels: Labels) -> Attributes {
        Attributes {
            labels,
            ..Attributes::default()
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
        let report = Report {
            progress: Some(progress.clone()),
            detail: Some(Payload::new(detail.clone()).unwrap()),
            ..Report::default()
        };
        let attempt = Attempt {
            number: 3,
            worker_id: "w".into(),
            start_time: Some(TIME.into()),
            end_time: Some(TIME.into()),
            status: Some(Status::default()),
        };
        let last_attempt = Attempt {
            number: 4,
            ..attempt.clone()
        };
        let operation = Operation {
            phase: Phase::Done(TerminalState::Succeeded),
            start_time: Some(TIME),
            attempt: 3,
            cancel_requested: true,
            options: Arc::new(ExecutionOptions {
                queue: Some(QueueName::parse("q").unwrap()),
                ..ExecutionOptions::default()
            }),
            work_state: Some(Arc::new(WorkState {
                input: None,
                latest_report: Some(Box::new(report)),
                ended_attempts: vec![attempt.clone()],
            })),
            ..pending_operation(Attributes {
                method: "acme.v1.Shop/Sell".into(),
                ..with_labels(labels)
            })
        };
        let bytes = encode(&operation, Some(&last_attempt));
        let expected = OperationMetadata {
            state: State::Succeeded.into(),
            create_time: Some(TIME.into()),
            start_time: Some(TIME.into()),
            update_time: Some(TIME.into()),
            end_time: Some(TIME.into()),
            progress: Some(Progress {
                fraction: Some(1.0),
                ..progress
            }),
            attempt: 3,
            cancel_requested: true,
            queue: "q".into(),
            labels: [("a".to_owned(), String::new())].into(),
            detail: Some(detail),
            method: "acme.v1.Shop/Sell".into(),
            attempts: vec![attempt, last_attempt],
        };
        assert_eq!(bytes, expected.encode_to_vec());

        let minimal = OperationMetadata {
            state: State::Pending.into(),
            create_time: Some(TIME.into()),
            update_time: Some(TIME.into()),
            ..OperationMetadata::default()
        };
        assert_eq!(
            encode(&pending_operation(Attributes::default()), None),
            minimal.encode_to_vec()
        );
    }

    // Rules: OP-17
    #[test]
    fn labels_of_any_count_and_length_encode_in_key_order() {
        let label = |n: usize| (format!("k{n:02}"), "v".repeat(n * 4));
        let pairs: BTreeMap<_, _> = (0..64).map(label).collect();
        let labels = Labels::new(pairs.clone()).unwrap();
        let operation = pending_operation(with_labels(labels));
        let bytes = encode(&operation, None);
        let decoded = OperationMetadata::decode(&*bytes).unwrap();
        assert_eq!(
            decoded.labels.into_iter().collect::<BTreeMap<_, _>>(),
            pairs
        );
        assert_eq!(bytes, encode(&operation, None));
    }

    #[test]
    fn metadata_type_url_matches_prost_type_url() {
        assert_eq!(TYPE_URL, OperationMetadata::type_url());
    }
}
