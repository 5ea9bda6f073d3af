//! Operations with messages of different types.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use prost::Message;
use serde_json::json;

use crate::{
    clock::Timestamp,
    operation::{
        Operation, OperationUpdate,
        labels::Labels,
        lease::{LeaseToken, WorkerId},
        name::OperationName,
        options::{ExecutionOptions, QueueName},
        outcome::{Outcome, status_with_reason},
        payload::Payload,
        spec::{Attributes, OperationSpec},
        trace::TraceContext,
        transition::{Event, Report},
    },
    proto::{google::rpc::Code, longrunning::v1::Progress},
    query::testing::built_in_types,
};

const NOON_NS: i64 = 1_790_000_000_000_000_000;

/// Builds an operation of queue `thumbs` with two labels and progress, finished if there
/// is an outcome.
pub(super) fn build_operation(metadata: Option<Payload>, outcome: Option<Outcome>) -> Operation {
    let labels = [("env", "prod"), ("note", "")];
    let labels: BTreeMap<_, _> = labels
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let spec = OperationSpec {
        name: OperationName::parse("projects/p/operations/export-7").unwrap(),
        number: 1,
        options: Arc::new(ExecutionOptions {
            queue: Some(QueueName::parse("thumbs").unwrap()),
            ..ExecutionOptions::default()
        }),
        attributes: Some(Arc::new(Attributes {
            labels: Labels::new(labels).unwrap(),
            idempotency_key: None,
            method: "shop.v1.Shop/Export".into(),
            trace_context: TraceContext::default(),
        })),
        input: None,
        metadata,
        not_before: None,
        initial_lease: None,
    };
    let token = LeaseToken::random();
    let worker = WorkerId::new("w");
    let report = Report {
        progress: Some(Progress {
            fraction: Some(0.5),
            done_units: 7,
            stage: "hashing".into(),
            ..Progress::default()
        }),
        detail: Some(pack_payload(
            "google.protobuf.Struct",
            json!({ "part": "two" }),
        )),
        ..Report::default()
    };
    let mut events = vec![
        Event::AcquireLease {
            token,
            worker,
            confirm_within: None,
        },
        Event::Report(token, report),
    ];
    events.extend(outcome.map(|outcome| Event::Finish(token, outcome, Report::default())));
    let now = Timestamp::from_nanos(NOON_NS);
    let created = Operation::new(spec, now);
    events.into_iter().fold(created, |operation, event| {
        match operation
            .apply(&event, now + Duration::from_secs(60))
            .unwrap()
        {
            OperationUpdate::Put(next) => next,
            other => panic!("{other:?}"),
        }
    })
}

fn pack_payload(name: &str, json: serde_json::Value) -> Payload {
    Payload::new(built_in_types().pack(name, &json).unwrap()).unwrap()
}

pub(super) fn running() -> Operation {
    build_operation(None, None)
}

pub(super) fn failed() -> Operation {
    let error = status_with_reason(Code::NotFound, "NO_FILE", "no file a*b");
    build_operation(None, Some(Outcome::Error(Box::new(error))))
}

pub(super) fn succeeded() -> Operation {
    let response = pack_payload("google.protobuf.StringValue", json!("done well"));
    build_operation(None, Some(Outcome::Response(response)))
}

pub(super) fn with_struct_metadata() -> Operation {
    let json = json!({
        "size": 3.5, "ok": true, "none": null, "text": "abc", "list": [1, "two"],
        "deep": { "er": [{ "x": "y" }] },
    });
    build_operation(Some(pack_payload("google.protobuf.Struct", json)), None)
}

pub(super) fn with_unknown_metadata() -> Operation {
    let any = prost_types::Any {
        type_url: "type.googleapis.com/acme.Render".into(),
        value: vec![0xff],
    };
    build_operation(Some(Payload::new(any).unwrap()), None)
}

/// An operation with a `google.rpc.Status` as metadata, which contains another `Any`.
pub(super) fn with_status_metadata() -> Operation {
    build_operation(
        Some(Payload::pack(&status_with_reason(Code::Aborted, "R", "m"))),
        None,
    )
}

pub(super) fn with_duration_metadata() -> Operation {
    let duration = prost_types::Duration {
        seconds: 90,
        nanos: 0,
    };
    let any = prost_types::Any {
        type_url: "type.googleapis.com/google.protobuf.Duration".into(),
        value: duration.encode_to_vec(),
    };
    build_operation(Some(Payload::new(any).unwrap()), None)
}
