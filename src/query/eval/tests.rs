//! What filters mean, each rule named after its id in the conformance
//! checklist, and the evaluation against the naive interpreter of `samples`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proptest::prelude::*;
use prost::Message;
use serde_json::json;

use super::*;
use crate::{
    clock::Timestamp,
    operation::{
        OperationUpdate,
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
    query::samples::{any_sample_filter, any_sample_operation, built_in_types, evaluate_naively},
};

const NOON_NS: i64 = 1_790_000_000_000_000_000;

/// An operation of queue `thumbs` with two labels, half done, ended if there is
/// an outcome.
fn build_operation(metadata: Option<Payload>, outcome: Option<Outcome>) -> Operation {
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
            trace_context: TraceContext::NONE,
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
        Event::AcquireLease { token, worker },
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

fn running() -> Operation {
    build_operation(None, None)
}

fn failed() -> Operation {
    let error = status_with_reason(Code::NotFound, "NO_FILE", "no file a*b");
    build_operation(None, Some(Outcome::Error(Box::new(error))))
}

fn succeeded() -> Operation {
    let response = pack_payload("google.protobuf.StringValue", json!("done well"));
    build_operation(None, Some(Outcome::Response(response)))
}

fn with_struct_metadata() -> Operation {
    let json = json!({
        "size": 3.5, "ok": true, "none": null, "text": "abc", "list": [1, "two"],
        "deep": { "er": [{ "x": "y" }] },
    });
    build_operation(Some(pack_payload("google.protobuf.Struct", json)), None)
}

fn with_unknown_metadata() -> Operation {
    let any = prost_types::Any {
        type_url: "type.googleapis.com/acme.Render".into(),
        value: vec![0xff],
    };
    build_operation(Some(Payload::new(any).unwrap()), None)
}

/// A status as metadata, as if it were a producer's own type, and a nested one.
fn with_status_metadata() -> Operation {
    build_operation(
        Some(Payload::pack(&status_with_reason(Code::Aborted, "R", "m"))),
        None,
    )
}

fn with_duration_metadata() -> Operation {
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

fn matches(filter: &str, operation: &Operation) -> bool {
    let query = CompiledFilter::parse(filter, built_in_types());
    query
        .unwrap_or_else(|error| panic!("{filter}: {error}"))
        .matches(operation)
}

#[track_caller]
fn assert_all_match(operation: &Operation, filters: &[&str]) {
    for filter in filters {
        assert!(matches(filter, operation), "{filter}");
    }
}

#[track_caller]
fn assert_none_match(operation: &Operation, filters: &[&str]) {
    for filter in filters {
        assert!(!matches(filter, operation), "{filter}");
    }
}

/// Neither they nor their opposites hold.
#[track_caller]
fn assert_all_unknown(operation: &Operation, filters: &[&str]) {
    assert_none_match(operation, filters);
    for filter in filters {
        assert!(
            !matches(&format!("NOT ({filter})"), operation),
            "NOT {filter}"
        );
    }
}

#[track_caller]
fn assert_rejected(cases: &[(&str, usize, &str)]) {
    for (filter, column, problem) in cases {
        let error = CompiledFilter::parse(filter, built_in_types()).expect_err(filter);
        assert_eq!(error.column, *column, "{filter}: {error}");
        assert!(error.problem.contains(problem), "{filter}: {error}");
    }
}

#[test]
fn blank_filter_matches_every_operation() {
    for operation in [running(), failed(), with_unknown_metadata()] {
        assert_all_match(&operation, &["", " \n"]);
    }
}

#[test]
fn values_compare_by_type_and_bools_and_states_have_no_order() {
    assert_all_match(
        &running(),
        &[
            "done = false",
            "done != true",
            "state = RUNNING",
            "state != PENDING",
            "attempt = 1",
            "attempt >= 1",
            "attempt < 2",
            "attempt != 0",
            "name > a",
            "name <= z",
            "queue = thumbs",
            "create_time >= 2026-09-21T14:13:20Z",
        ],
    );
    assert_none_match(
        &running(),
        &[
            "attempt > 1",
            "done = true",
            "state = PENDING",
            "queue != thumbs",
        ],
    );
    assert_rejected(&[
        (
            "done < true",
            1,
            "done to be compared with = or !=, for it has no order, found <",
        ),
        ("state >= RUNNING", 1, "no order"),
        ("cancel_requested > false", 1, "no order"),
        ("name < \"a*\"", 8, "a text without *"),
        ("1 = attempt", 1, "expected one of the fields"),
    ]);
}

#[test]
fn has_operator_tests_presence_keys_elements_and_text() {
    assert_all_match(
        &failed(),
        &[
            "error:*",
            "error.details:*",
            "error.code:5",
            "error.code:*",
            "error.message:file",
            "done:true",
            "error.details.reason:NO_FILE",
            "error.details.@type:*ErrorInfo",
            "metadata:*",
            "labels:env",
            "labels:*",
            "labels.env:*",
            "labels.note:*",
            "labels.env:prod",
            "labels.env:pro",
            "labels:e*",
            "NOT response:*",
            "NOT error.details.reason:OTHER",
            "metadata.labels:env",
            "metadata.progress:*",
            "metadata.progress:stage",
            "error:code",
            "NOT error.details.reason:NO",
        ],
    );
    assert_none_match(
        &failed(),
        &[
            "response:*",
            "labels:nope",
            "labels.nope:*",
            "error.details.reason:NO_",
        ],
    );
    assert_all_match(
        &running(),
        &[
            "NOT error:*",
            "NOT error.details:*",
            "NOT error.code:*",
            "NOT done:*",
            "start_time:*",
            "NOT end_time:*",
        ],
    );
    assert_all_match(
        &with_struct_metadata(),
        &[
            "metadata:size",
            "metadata.list:1",
            "metadata.list:two",
            "metadata.deep.er.x:y",
            "metadata.none:*",
            "metadata.list:*",
        ],
    );
    assert_none_match(
        &with_struct_metadata(),
        &[
            "metadata.list:3",
            "metadata.deep.er.x:z",
            "metadata:nope",
            "metadata.list:tw",
        ],
    );
}

#[test]
fn repeated_field_accepts_only_has_operator() {
    assert_rejected(&[
        (
            "error.details.reason = X",
            15,
            "`:`, for it is a repeated field, found =",
        ),
        ("error.details = X", 7, "`:`, for it is a repeated field"),
    ]);
    assert_rejected(&[
        ("e.0.foo=1", 1, "expected one of the fields"),
        ("e[0].foo=1", 1, "no indexing"),
    ]);
}

#[test]
fn unknown_field_is_rejected_but_evaluates_to_unknown_inside_any() {
    assert_rejected(&[
        (
            "foo = 1",
            1,
            "name, done, error, response, metadata, state, queue, method, create_time",
        ),
        ("done.x = 1", 6, "a field of done, or none, found \"x\""),
        ("done = true AND Foo:*", 17, "found \"Foo\""),
        ("error.nope = 1", 7, "a field of error"),
        ("error.code.x = 1", 12, "a field of error.code"),
        ("labels.a.b = 1", 10, "a field of labels.a"),
        ("labels = 1", 1, "one label is labels.KEY"),
        ("error = 1", 1, "`:`, for it is a message"),
        ("metadata.@type.x = 1", 16, "found \"x\""),
    ]);
    assert_all_unknown(
        &running(),
        &[
            "metadata.nope = 1",
            "metadata.nope != 1",
            "metadata.progress.nope < 1",
        ],
    );
    assert_all_match(&running(), &["NOT metadata.nope:*"]);
    // Of a type that the filter itself names, the fields are known.
    assert_rejected(&[
        (
            "metadata.@type = \"type.googleapis.com/google.rpc.Status\" AND metadata.nope = 1",
            71,
            "a field of metadata",
        ),
        (
            "metadata.code = x metadata.@type = google.rpc.Status",
            17,
            "a whole number for metadata.code",
        ),
        (
            "response.@type = google.rpc.Status (done = true OR response.nope:*)",
            61,
            "a field of response",
        ),
    ]);
    assert_all_match(
        &with_status_metadata(),
        &["metadata.@type = type.googleapis.com/google.rpc.Status AND metadata.code = 10"],
    );
}

#[test]
fn missing_or_unregistered_value_is_neither_true_nor_false() {
    assert_all_unknown(
        &running(),
        &[
            "error.code = 5",
            "error.code != 5",
            "end_time > 2020-01-01T00:00:00Z",
            "labels.nope = x",
            "labels.nope != x",
            "error.code:5",
            "error.details.reason:X",
            "response.value = x",
            "metadata.end_time < 2030-01-01T00:00:00Z",
        ],
    );
    assert_all_match(
        &running(),
        &[
            "error.code = 5 OR done = false",
            "NOT (error.code = 5 AND done = true)",
        ],
    );
    assert_all_unknown(
        &with_unknown_metadata(),
        &[
            "metadata.a = 1",
            "metadata.a:*",
            "metadata.a.b:c",
            "metadata.state = RUNNING",
        ],
    );
    assert_all_match(
        &with_unknown_metadata(),
        &[
            "metadata.@type:acme",
            "metadata:*",
            "metadata.@type:*",
            "metadata.a = 1 OR state = RUNNING",
        ],
    );
}

#[test]
fn repeated_field_is_unknown_only_for_unregistered_elements() {
    let undecodable = prost_types::Any {
        type_url: "example.com/x/Own".into(),
        value: vec![0xff],
    };
    let failed_with = |details: &[prost_types::Any]| {
        let mut error = status_with_reason(Code::NotFound, "NO_FILE", "m");
        error.details.extend_from_slice(details);
        build_operation(None, Some(Outcome::Error(Box::new(error))))
    };
    let known =
        failed_with(&[prost_types::Any::from_msg(&prost_types::Duration::default()).unwrap()]);
    assert_all_match(
        &known,
        &[
            "error.details.reason:NO_FILE",
            "NOT error.details.reason:OTHER",
            "NOT error.details.nope:1",
            "-error.details.nope:*",
        ],
    );
    let unknown = failed_with(&[undecodable]);
    assert_all_match(
        &unknown,
        &[
            "error.details.reason:NO_FILE",
            "error.details.@type:*Own",
            "error.details:*",
            "NOT error.details.@type:*Nope",
        ],
    );
    assert_all_unknown(
        &unknown,
        &[
            "error.details.reason:OTHER",
            "error.details.nope:1",
            "error.details.nope:*",
        ],
    );
    // An element that cannot be such a value is not it.
    assert_all_match(
        &with_struct_metadata(),
        &["NOT metadata.list:three", "NOT metadata.deep.er.x:z"],
    );
    assert_all_match(&with_struct_metadata(), &["NOT metadata.deep.er.nope:z"]);
}

#[test]
fn literal_must_match_field_type() {
    assert_rejected(&[
        ("done = maybe", 8, "true or false for done, found \"maybe\""),
        (
            "error.code = x",
            14,
            "a whole number for error.code, found \"x\"",
        ),
        ("error.code = 1.5", 14, "a whole number"),
        (
            "metadata.create_time > \"yesterday\"",
            24,
            "a time as RFC 3339 has it",
        ),
        (
            "create_time > yesterday",
            15,
            "such as 2026-11-21T15:04:05Z",
        ),
        ("create_time > 2026-11-21", 15, "a time"),
        (
            "state = running",
            9,
            "one of PENDING, RUNNING, SUCCEEDED, FAILED, CANCELLED",
        ),
        ("state = RUN*", 9, "one of PENDING"),
        ("attempt = \"\"", 11, "a whole number"),
        ("attempt = 5*", 11, "found \"5*\""),
    ]);
    assert_all_match(
        &failed(),
        &[
            "error.code = 5e0",
            "error.code < 18446744073709551615",
            "error.code > -9223372036854775808",
            "error.code = \"5\"",
            "create_time = \"2026-09-21T14:13:20Z\"",
            "create_time = 2026-09-21T16:13:20+02:00",
            "end_time > 2026-09-21T14:13:20.5Z",
            "expire_time = 2026-09-22T14:14:20Z",
            "state = \"FAILED\"",
            "metadata.progress.fraction = 0.5",
            "metadata.progress.fraction < 6e-1",
            "metadata.state = FAILED",
        ],
    );
    assert_all_match(
        &with_duration_metadata(),
        &[
            "metadata = 90s",
            "metadata > 89.5s",
            "metadata.seconds = 90",
        ],
    );
    assert_all_match(
        &with_struct_metadata(),
        &[
            "metadata.size = 3.5",
            "metadata.size > 3",
            "metadata.ok = true",
            "metadata.none = null",
            "metadata.text = abc",
            "metadata.size != null",
        ],
    );
    assert_all_unknown(
        &with_struct_metadata(),
        &[
            "metadata.size = x",
            "metadata.ok = 1",
            "metadata.ok < true",
            "metadata.none = 1",
        ],
    );
    assert_all_match(
        &succeeded(),
        &[
            "response.value = \"done well\"",
            "response = \"done well\"",
            "response:well",
        ],
    );
}

#[test]
fn text_pattern_has_wildcards_at_its_ends() {
    assert_all_match(
        &running(),
        &[
            "name = \"projects/p/operations/exp*\"",
            "name = \"*-7\"",
            "name = *export*",
            "name:export",
            "method = *Export",
        ],
    );
    assert_none_match(
        &running(),
        &["name = \"exp*\"", "name = export-7", "name:exp*"],
    );
    assert_all_match(
        &failed(),
        &[r#"error.message = "*a\*b""#, r#"error.message:"\*""#],
    );
    assert_none_match(&running(), &[r#"name = "projects\*""#]);
}

#[test]
fn bare_word_search_over_operation_texts_is_case_sensitive() {
    assert_all_match(
        &failed(),
        &[
            "export",
            "thumbs",
            "prod",
            "Shop",
            "hashing",
            "file",
            "two",
            "*export-7",
            "NOT nothing",
            "prod -dev",
        ],
    );
    assert_none_match(&failed(), &["EXPORT", "NO_FILE", "RUNNING", "export*"]);
    assert_all_match(&with_struct_metadata(), &["abc", "two", "y"]);
    assert_all_match(&with_unknown_metadata(), &["export-7", "NOT acme"]);
}

#[test]
fn field_names_accept_snake_case_and_camel_case() {
    assert_all_match(
        &failed(),
        &[
            "metadata.createTime = 2026-09-21T14:13:20Z",
            "metadata.create_time = 2026-09-21T14:13:20Z",
            "createTime = 2026-09-21T14:13:20Z",
            "cancelRequested = false",
            "metadata.progress.doneUnits = 7",
        ],
    );
}

#[test]
fn true_and_false_are_bools_only_for_bool_fields() {
    assert_none_match(&failed(), &["true", "false", "null", "labels.env = true"]);
    assert_all_match(&failed(), &["done = true"]);
}

#[test]
fn server_metadata_search_includes_nested_any_and_maps() {
    assert_all_match(
        &running(),
        &[
            "metadata.labels.env = prod",
            "metadata.detail.part = two",
            "metadata.detail.@type:Struct",
            "metadata.detail:part",
            "metadata.queue = thumbs",
            "metadata.attempt = 1",
            "metadata.detail:*",
        ],
    );
    assert_all_unknown(
        &running(),
        &["metadata.labels.nope = x", "metadata.detail.nope = x"],
    );
    let nested = with_status_metadata();
    assert_all_match(
        &nested,
        &[
            "metadata.details.reason:R",
            "metadata.details.@type:*ErrorInfo",
            "metadata.message = m",
        ],
    );
    assert_none_match(&nested, &["metadata.details.reason = R"]);
}

#[test]
fn spanner_restore_filter_is_accepted() {
    let filter = "(metadata.@type=type.googleapis.com/google.spanner.admin.database.v1.RestoreDatabaseMetadata) \
         AND (metadata.source_type:BACKUP) AND (metadata.progress.start_time < \"2018-03-28T14:50:00Z\") AND (error:*)";
    assert_none_match(&failed(), &[filter]);
}

proptest! {
    #[test]
    fn evaluation_agrees_with_naive_interpreter(
        facts in proptest::collection::vec(any_sample_operation(), 1..8),
        filters in proptest::collection::vec(any_sample_filter(), 1..8),
    ) {
        for filter in &filters {
            let query = CompiledFilter::new(filter, built_in_types()).map_err(|error| TestCaseError::fail(format!("{filter}: {error}")))?;
            for facts in &facts {
                let operation = facts.to_operation(1);
                let expected = evaluate_naively(filter, facts) == Some(true);
                prop_assert_eq!(query.matches(&operation), expected, "{} of {:?}", filter, facts);
            }
        }
    }
}
