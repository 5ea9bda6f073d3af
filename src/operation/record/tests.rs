//! Records round-trip, and damaged ones are rejected.

use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::{
    operation::{
        OperationUpdate,
        labels::Labels,
        lease::{LeaseToken, WorkerId},
        name::OperationName,
        options::QueueName,
        outcome::Outcome,
        payload::Payload,
        retry::RetryPolicy,
        spec::{IdempotencyKey, InitialLease, OperationSpec},
        trace::TraceContext,
        transition::{Event, Report},
    },
    proto::{google::rpc::Status, longrunning::v1::Progress},
};

fn payload_of_size(size: usize) -> Payload {
    Payload::new(Any {
        type_url: "acme.v1.Thing".into(),
        value: vec![7; size],
    })
    .unwrap()
}

fn idempotency_key() -> IdempotencyKey {
    IdempotencyKey {
        request_id: "r1".into(),
        fingerprint: Uuid::from_u128(9),
    }
}

prop_compose! {
    fn operation_specs()(
        number in 1..u64::from(u32::MAX),
        is_queued: bool,
        priority: i32,
        timeouts in prop::collection::vec(prop::option::of(1..u64::MAX), 3),
        has_attributes: bool,
        input in prop::option::of(0..2000usize),
        metadata in prop::option::of(0..50usize),
        not_before in prop::option::of(0..i64::MAX),
        multiplier in 1.0..9.0f64,
    ) -> OperationSpec {
        let time = |n: usize| timeouts[n].map(Duration::from_nanos);
        let attributes = Attributes {
            labels: Labels::new([("a".into(), "é".into())].into()).unwrap(),
            idempotency_key: Some(idempotency_key()),
            method: "m/x".into(),
            trace_context: TraceContext::new([("traceparent".into(), "00".into())].into()).unwrap(),
        };
        let lease = InitialLease { token: LeaseToken::random(), worker: WorkerId::new("w") };
        OperationSpec {
            name: OperationName::parse("projects/p/operations/x-1").unwrap(),
            number,
            options: Arc::new(ExecutionOptions {
                queue: is_queued.then(|| QueueName::parse("q").unwrap()),
                priority,
                total_timeout: time(0),
                attempt_timeout: time(1),
                cancel_grace_period: time(2),
                retry_policy: RetryPolicy { multiplier, ..RetryPolicy::with_max_attempts(3) },
                ..ExecutionOptions::default()
            }),
            attributes: has_attributes.then(|| Arc::new(attributes)),
            input: input.map(payload_of_size),
            metadata: metadata.map(payload_of_size),
            not_before: not_before.map(Timestamp::from_nanos),
            initial_lease: (!is_queued).then_some(lease),
        }
    }
}

fn event_codes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0..8u8, 0..6)
}

/// Creates an operation and applies the events of these codes, skipping rejected ones.
fn apply_events(spec: OperationSpec, events: &[u8]) -> Operation {
    let mut now = Timestamp::from_nanos(1_000);
    let mut operation = Operation::new(spec, now);
    for event in events {
        now = now + Duration::from_millis(1);
        let token = operation
            .lease()
            .map_or_else(LeaseToken::random, |lease| lease.token);
        let report = Report {
            progress: Some(Progress {
                done_units: 3,
                ..Progress::default()
            }),
            metadata: (event % 2 == 0).then(|| payload_of_size(3)),
            detail: Some(payload_of_size(1)),
            checkpoint: Some(payload_of_size(2)),
        };
        let error = Status {
            code: 9,
            ..Status::default()
        };
        let event = match event {
            0 => Event::AcquireLease {
                token,
                worker: WorkerId::new("v"),
                confirm_within: None,
            },
            1 | 2 => Event::Report(token, report),
            3 => Event::Heartbeat(token, Report::default()),
            4 => Event::RequestCancel,
            5 => Event::ReleaseLease(token, report),
            6 => Event::Finish(token, Outcome::Response(payload_of_size(5)), report),
            _ => Event::Fail {
                token,
                error: Box::new(error),
                retry_after: None,
                report,
            },
        };
        if let Ok(OperationUpdate::Put(next) | OperationUpdate::RenewLease(next)) =
            operation.apply(&event, now)
        {
            operation = next;
        }
    }
    operation
}

proptest! {
    // Rules: DUR-5
    #[test]
    fn encoded_record_decodes_to_same_operation(spec in operation_specs(), events in event_codes(), has_separate_input: bool) {
        let operation = apply_events(spec, &events);
        let number = operation.number();
        let decoded = if has_separate_input {
            let input = operation.input().map(|input| encode_input(number, input.any()));
            RecordDecoder::default().decode(number, &encode(&operation), input.as_deref())
        } else {
            RecordDecoder::default().decode(number, &encode_with_input(&operation), None)
        };
        let decoded = decoded.unwrap();
        prop_assert_eq!(format!("{decoded:?}"), format!("{operation:?}"));
        prop_assert_eq!(decoded.bytes(), operation.bytes());
    }

    // Rules: SQLITE-4
    #[test]
    fn corrupted_record_is_rejected_without_panic(spec in operation_specs(), at: prop::sample::Index, bit in 0..8u8, number_offset in 1..9u64) {
        let operation = apply_events(spec, &[]);
        let valid = encode_with_input(&operation);
        let mut invalid = valid.clone();
        *at.get_mut(&mut invalid) ^= 1 << bit;
        let mut decoder = RecordDecoder::default();
        prop_assert!(decoder.decode(operation.number(), &invalid, None).is_err());
        prop_assert!(decoder.decode(operation.number(), &valid[..at.index(valid.len())], None).is_err());
        prop_assert!(decoder.decode(operation.number() + number_offset, &valid, None).is_err());
    }

    #[test]
    fn any_record_content_with_valid_checksum_does_not_panic(bytes: Vec<u8>) {
        let mut record = checksum(1, &bytes).to_le_bytes().to_vec();
        record.extend(&bytes);
        let _ = RecordDecoder::default().decode(1, &record, None);
    }
}

// Rules: LEASE-10
#[test]
fn unconfirmed_lease_from_storage_is_unconfirmed() {
    let spec = OperationSpec {
        name: OperationName::parse("operations/x").unwrap(),
        number: 1,
        options: Arc::new(ExecutionOptions {
            queue: Some(QueueName::parse("q").unwrap()),
            ..ExecutionOptions::default()
        }),
        attributes: None,
        input: None,
        metadata: None,
        not_before: None,
        initial_lease: None,
    };
    let now = Timestamp::from_nanos(1_790_000_000_000_000_000);
    let acquire = Event::AcquireLease {
        token: LeaseToken::random(),
        worker: WorkerId::new("w"),
        confirm_within: Some(Duration::from_secs(2)),
    };
    let leased = match Operation::new(spec, now).apply(&acquire, now) {
        Ok(OperationUpdate::Put(leased)) => leased,
        other => panic!("expected a lease: {other:?}"),
    };
    let decoded = RecordDecoder::default()
        .decode(1, &encode(&leased), None)
        .unwrap();
    assert!(!decoded.lease().unwrap().is_confirmed());
    assert_eq!(decoded.lease(), leased.lease());
    assert_eq!(
        (decoded.start_time(), decoded.current_attempt()),
        (None, None)
    );
}

#[test]
fn equal_execution_options_are_interned() {
    let spec = || OperationSpec {
        name: OperationName::parse("operations/x").unwrap(),
        number: 1,
        options: Arc::default(),
        attributes: None,
        input: None,
        metadata: None,
        not_before: None,
        initial_lease: None,
    };
    let record = encode(&Operation::new(spec(), Timestamp::default()));
    let mut decoder = RecordDecoder::default();
    let mut decode = || decoder.decode(1, &record, None).unwrap();
    assert!(Arc::ptr_eq(&decode().options, &decode().options));
}
