//! What is written is what is read back, and no damage passes for an operation.

use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::{
    operation::{
        birth::{Birth, Request},
        labels::Labels,
        lease::{LeaseToken, WorkerId},
        name::OperationName,
        operation::Change,
        outcome::Outcome,
        payload::Payload,
        retry::RetryPolicy,
        stage::{Event, Report},
        terms::QueueName,
        trace::TraceContext,
    },
    proto::{google::rpc::Status, longrunning::v1::Progress},
};

fn any(size: usize) -> Payload {
    Payload::new(Any {
        type_url: "acme.v1.Thing".into(),
        value: vec![7; size],
    })
    .unwrap()
}

fn request() -> Request {
    Request {
        id: "r1".into(),
        digest: Uuid::from_u128(9),
    }
}

prop_compose! {
    fn births()(
        number in 1..u64::from(u32::MAX),
        queued: bool,
        priority: i32,
        timeouts in prop::collection::vec(prop::option::of(1..u64::MAX), 3),
        tagged: bool,
        input in prop::option::of(0..2000usize),
        metadata in prop::option::of(0..50usize),
        not_before in prop::option::of(0..i64::MAX),
        multiplier in 1.0..9.0f64,
    ) -> Birth {
        let time = |n: usize| timeouts[n].map(Duration::from_nanos);
        let tags = Tags {
            labels: Labels::new([("a".into(), "é".into())].into()).unwrap(),
            request: Some(request()),
            method: "m/x".into(),
            trace_context: TraceContext::new([("traceparent".into(), "00".into())].into()).unwrap(),
        };
        let holder = (LeaseToken::random(), WorkerId::new("w"));
        Birth {
            name: OperationName::parse("projects/p/operations/x-1").unwrap(),
            number,
            terms: Arc::new(Terms {
                queue: queued.then(|| QueueName::parse("q").unwrap()),
                priority,
                total_timeout: time(0),
                attempt_timeout: time(1),
                cancel_grace: time(2),
                retry: RetryPolicy { multiplier, ..RetryPolicy::attempts(3) },
                ..Terms::default()
            }),
            tags: tagged.then(|| Arc::new(tags)),
            input: input.map(any),
            metadata: metadata.map(any),
            not_before: not_before.map(Timestamp::from_nanos),
            holder: (!queued).then_some(holder),
        }
    }
}

fn events() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0..8u8, 0..6)
}

/// The operation after what the numbers stand for, as far as that is allowed.
fn live(birth: Birth, events: &[u8]) -> Operation {
    let mut now = Timestamp::from_nanos(1_000);
    let mut operation = Operation::new(birth, now);
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
            metadata: (event % 2 == 0).then(|| any(3)),
            detail: Some(any(1)),
            checkpoint: Some(any(2)),
        };
        let error = Status {
            code: 9,
            ..Status::default()
        };
        let event = match event {
            0 => Event::Claim {
                token,
                worker: WorkerId::new("v"),
            },
            1 | 2 => Event::Report(token, report),
            3 => Event::Renew(token, Report::default()),
            4 => Event::RequestCancel,
            5 => Event::Release(token, report),
            6 => Event::Finish(token, Outcome::Response(any(5)), report),
            _ => Event::Fail {
                token,
                error: Box::new(error),
                retry_after: None,
                report,
            },
        };
        if let Ok(Change::Put(next) | Change::Renew(next)) = operation.apply(&event, now) {
            operation = next;
        }
    }
    operation
}

proptest! {
    #[test]
    fn what_is_read_is_what_was_written(birth in births(), events in events(), beside: bool) {
        let operation = live(birth, &events);
        let number = operation.number();
        let again = if beside {
            let input = operation.input().map(|input| encode_input(number, input.any()));
            Reader::default().decode(number, &encode(&operation), input.as_deref())
        } else {
            Reader::default().decode(number, &encode_with_input(&operation), None)
        };
        let again = again.unwrap();
        prop_assert_eq!(format!("{again:?}"), format!("{operation:?}"));
        prop_assert_eq!(again.bytes(), operation.bytes());
    }

    #[test]
    fn no_damage_goes_unnoticed_or_panics(birth in births(), at: prop::sample::Index, bit in 0..8u8, number in 1..9u64) {
        let operation = live(birth, &[]);
        let good = encode_with_input(&operation);
        let mut bad = good.clone();
        *at.get_mut(&mut bad) ^= 1 << bit;
        let mut reader = Reader::default();
        prop_assert!(reader.decode(operation.number(), &bad, None).is_err());
        prop_assert!(reader.decode(operation.number(), &good[..at.index(good.len())], None).is_err());
        prop_assert!(reader.decode(operation.number() + number, &good, None).is_err());
    }

    #[test]
    fn records_with_a_good_checksum_and_any_content_do_not_panic(bytes: Vec<u8>) {
        let mut record = checksum(1, &bytes).to_le_bytes().to_vec();
        record.extend(&bytes);
        let _ = Reader::default().decode(1, &record, None);
    }
}

#[test]
fn operations_with_equal_terms_share_them() {
    let birth = || Birth {
        name: OperationName::parse("operations/x").unwrap(),
        number: 1,
        terms: Arc::default(),
        tags: None,
        input: None,
        metadata: None,
        not_before: None,
        holder: None,
    };
    let record = encode(&Operation::new(birth(), Timestamp::default()));
    let mut reader = Reader::default();
    let mut read = || reader.decode(1, &record, None).unwrap();
    assert!(Arc::ptr_eq(&read().terms, &read().terms));
}
