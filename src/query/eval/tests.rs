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
        birth::{Birth, Tags},
        labels::Labels,
        lease::{LeaseToken, WorkerId},
        name::OperationName,
        operation::Change,
        outcome::{Outcome, status},
        payload::Payload,
        stage::{Event, Report},
        terms::{QueueName, Terms},
        trace::TraceContext,
    },
    proto::{google::rpc::Code, longrunning::v1::Progress},
    query::samples::{any_facts, any_filter, naive, types},
};

const NOON: i64 = 1_790_000_000_000_000_000;

/// An operation of queue `thumbs` with two labels, half done, ended if there is
/// an outcome.
fn operation(metadata: Option<Payload>, outcome: Option<Outcome>) -> Operation {
    let labels = [("env", "prod"), ("note", "")];
    let labels: BTreeMap<_, _> = labels
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let birth = Birth {
        name: OperationName::parse("projects/p/operations/export-7").unwrap(),
        number: 1,
        terms: Arc::new(Terms {
            queue: Some(QueueName::parse("thumbs").unwrap()),
            ..Terms::default()
        }),
        tags: Some(Arc::new(Tags {
            labels: Labels::new(labels).unwrap(),
            request: None,
            method: "shop.v1.Shop/Export".into(),
            trace_context: TraceContext::NONE,
        })),
        input: None,
        metadata,
        not_before: None,
        holder: None,
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
        detail: Some(packed("google.protobuf.Struct", json!({ "part": "two" }))),
        ..Report::default()
    };
    let mut events = vec![Event::Claim { token, worker }, Event::Report(token, report)];
    events.extend(outcome.map(|outcome| Event::Finish(token, outcome, Report::default())));
    let now = Timestamp::from_nanos(NOON);
    let born = Operation::new(birth, now);
    events.into_iter().fold(born, |operation, event| {
        match operation
            .apply(&event, now + Duration::from_secs(60))
            .unwrap()
        {
            Change::Put(next) => next,
            other => panic!("{other:?}"),
        }
    })
}

fn packed(name: &str, json: serde_json::Value) -> Payload {
    Payload::new(types().pack(name, &json).unwrap()).unwrap()
}

fn running() -> Operation {
    operation(None, None)
}

fn failed() -> Operation {
    let error = status(Code::NotFound, "NO_FILE", "no file a*b");
    operation(None, Some(Outcome::Error(Box::new(error))))
}

fn succeeded() -> Operation {
    let response = packed("google.protobuf.StringValue", json!("done well"));
    operation(None, Some(Outcome::Response(response)))
}

fn with_struct() -> Operation {
    let json = json!({
        "size": 3.5, "ok": true, "none": null, "text": "abc", "list": [1, "two"],
        "deep": { "er": [{ "x": "y" }] },
    });
    operation(Some(packed("google.protobuf.Struct", json)), None)
}

fn unknown() -> Operation {
    let any = prost_types::Any {
        type_url: "type.googleapis.com/acme.Render".into(),
        value: vec![0xff],
    };
    operation(Some(Payload::new(any).unwrap()), None)
}

/// A status as metadata, as if it were a producer's own type, and a nested one.
fn with_status() -> Operation {
    operation(Some(Payload::pack(&status(Code::Aborted, "R", "m"))), None)
}

fn with_duration() -> Operation {
    let duration = prost_types::Duration {
        seconds: 90,
        nanos: 0,
    };
    let any = prost_types::Any {
        type_url: "type.googleapis.com/google.protobuf.Duration".into(),
        value: duration.encode_to_vec(),
    };
    operation(Some(Payload::new(any).unwrap()), None)
}

fn matches(filter: &str, operation: &Operation) -> bool {
    let query = Query::parse(filter, types());
    query
        .unwrap_or_else(|error| panic!("{filter}: {error}"))
        .matches(operation)
}

#[track_caller]
fn hold(operation: &Operation, filters: &[&str]) {
    for filter in filters {
        assert!(matches(filter, operation), "{filter}");
    }
}

#[track_caller]
fn do_not_hold(operation: &Operation, filters: &[&str]) {
    for filter in filters {
        assert!(!matches(filter, operation), "{filter}");
    }
}

/// Neither they nor their opposites hold.
#[track_caller]
fn are_unknown(operation: &Operation, filters: &[&str]) {
    do_not_hold(operation, filters);
    for filter in filters {
        assert!(
            !matches(&format!("NOT ({filter})"), operation),
            "NOT {filter}"
        );
    }
}

#[track_caller]
fn is_refused(table: &[(&str, usize, &str)]) {
    for (filter, column, problem) in table {
        let error = Query::parse(filter, types()).expect_err(filter);
        assert_eq!(error.column, *column, "{filter}: {error}");
        assert!(error.problem.contains(problem), "{filter}: {error}");
    }
}

#[test]
fn fil_1_a_blank_filter_matches_everything() {
    for operation in [running(), failed(), unknown()] {
        hold(&operation, &["", " \n"]);
    }
}

#[test]
fn fil_4_values_compare_by_their_type_and_truth_and_states_have_no_order() {
    hold(
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
    do_not_hold(
        &running(),
        &[
            "attempt > 1",
            "done = true",
            "state = PENDING",
            "queue != thumbs",
        ],
    );
    is_refused(&[
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
fn fil_5_has_asks_for_presence_keys_elements_and_text() {
    hold(
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
    do_not_hold(
        &failed(),
        &[
            "response:*",
            "labels:nope",
            "labels.nope:*",
            "error.details.reason:NO_",
        ],
    );
    hold(
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
    hold(
        &with_struct(),
        &[
            "metadata:size",
            "metadata.list:1",
            "metadata.list:two",
            "metadata.deep.er.x:y",
            "metadata.none:*",
            "metadata.list:*",
        ],
    );
    do_not_hold(
        &with_struct(),
        &[
            "metadata.list:3",
            "metadata.deep.er.x:z",
            "metadata:nope",
            "metadata.list:tw",
        ],
    );
}

#[test]
fn fil_6_a_repeated_field_is_asked_with_has_only() {
    is_refused(&[
        (
            "error.details.reason = X",
            15,
            "`:`, for it is a repeated field, found =",
        ),
        ("error.details = X", 7, "`:`, for it is a repeated field"),
    ]);
    is_refused(&[
        ("e.0.foo=1", 1, "expected one of the fields"),
        ("e[0].foo=1", 1, "no indexing"),
    ]);
}

#[test]
fn fil_7_an_unknown_field_is_refused_with_the_known_ones_and_one_in_an_any_is_not_known() {
    is_refused(&[
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
    are_unknown(
        &running(),
        &[
            "metadata.nope = 1",
            "metadata.nope != 1",
            "metadata.progress.nope < 1",
        ],
    );
    hold(&running(), &["NOT metadata.nope:*"]);
    // Of a type that the filter itself names, the fields are known.
    is_refused(&[
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
    hold(
        &with_status(),
        &["metadata.@type = type.googleapis.com/google.rpc.Status AND metadata.code = 10"],
    );
}

#[test]
fn fil_8_what_is_absent_or_of_an_unknown_type_is_neither_true_nor_false() {
    are_unknown(
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
    hold(
        &running(),
        &[
            "error.code = 5 OR done = false",
            "NOT (error.code = 5 AND done = true)",
        ],
    );
    are_unknown(
        &unknown(),
        &[
            "metadata.a = 1",
            "metadata.a:*",
            "metadata.a.b:c",
            "metadata.state = RUNNING",
        ],
    );
    hold(
        &unknown(),
        &[
            "metadata.@type:acme",
            "metadata:*",
            "metadata.@type:*",
            "metadata.a = 1 OR state = RUNNING",
        ],
    );
}

#[test]
fn fil_8_of_a_repeated_field_only_elements_of_an_unknown_type_are_not_known() {
    let own = prost_types::Any {
        type_url: "example.com/x/Own".into(),
        value: vec![0xff],
    };
    let with = |details: &[prost_types::Any]| {
        let mut error = status(Code::NotFound, "NO_FILE", "m");
        error.details.extend_from_slice(details);
        operation(None, Some(Outcome::Error(Box::new(error))))
    };
    let known = with(&[prost_types::Any::from_msg(&prost_types::Duration::default()).unwrap()]);
    hold(
        &known,
        &[
            "error.details.reason:NO_FILE",
            "NOT error.details.reason:OTHER",
            "NOT error.details.nope:1",
            "-error.details.nope:*",
        ],
    );
    let unknown = with(&[own]);
    hold(
        &unknown,
        &[
            "error.details.reason:NO_FILE",
            "error.details.@type:*Own",
            "error.details:*",
            "NOT error.details.@type:*Nope",
        ],
    );
    are_unknown(
        &unknown,
        &[
            "error.details.reason:OTHER",
            "error.details.nope:1",
            "error.details.nope:*",
        ],
    );
    // An element that cannot be such a value is not it.
    hold(
        &with_struct(),
        &["NOT metadata.list:three", "NOT metadata.deep.er.x:z"],
    );
    hold(&with_struct(), &["NOT metadata.deep.er.nope:z"]);
}

#[test]
fn fil_9_literals_must_fit_the_type_of_the_field() {
    is_refused(&[
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
    hold(
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
    hold(
        &with_duration(),
        &[
            "metadata = 90s",
            "metadata > 89.5s",
            "metadata.seconds = 90",
        ],
    );
    hold(
        &with_struct(),
        &[
            "metadata.size = 3.5",
            "metadata.size > 3",
            "metadata.ok = true",
            "metadata.none = null",
            "metadata.text = abc",
            "metadata.size != null",
        ],
    );
    are_unknown(
        &with_struct(),
        &[
            "metadata.size = x",
            "metadata.ok = 1",
            "metadata.ok < true",
            "metadata.none = 1",
        ],
    );
    hold(
        &succeeded(),
        &[
            "response.value = \"done well\"",
            "response = \"done well\"",
            "response:well",
        ],
    );
}

#[test]
fn fil_10_text_has_wildcards_at_its_ends() {
    hold(
        &running(),
        &[
            "name = \"projects/p/operations/exp*\"",
            "name = \"*-7\"",
            "name = *export*",
            "name:export",
            "method = *Export",
        ],
    );
    do_not_hold(
        &running(),
        &["name = \"exp*\"", "name = export-7", "name:exp*"],
    );
    hold(
        &failed(),
        &[r#"error.message = "*a\*b""#, r#"error.message:"\*""#],
    );
    do_not_hold(&running(), &[r#"name = "projects\*""#]);
}

#[test]
fn fil_11_a_bare_word_is_searched_in_the_texts_of_an_operation_by_case() {
    hold(
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
    do_not_hold(&failed(), &["EXPORT", "NO_FILE", "RUNNING", "export*"]);
    hold(&with_struct(), &["abc", "two", "y"]);
    hold(&unknown(), &["export-7", "NOT acme"]);
}

#[test]
fn fil_12_fields_are_snake_case_and_may_be_camel_case() {
    hold(
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
fn fil_15_true_and_false_mean_more_only_to_a_field_that_is_true_or_false() {
    do_not_hold(&failed(), &["true", "false", "null", "labels.env = true"]);
    hold(&failed(), &["done = true"]);
}

#[test]
fn the_metadata_of_the_server_is_searched_down_to_a_nested_any_and_into_maps() {
    hold(
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
    are_unknown(
        &running(),
        &["metadata.labels.nope = x", "metadata.detail.nope = x"],
    );
    let nested = with_status();
    hold(
        &nested,
        &[
            "metadata.details.reason:R",
            "metadata.details.@type:*ErrorInfo",
            "metadata.message = m",
        ],
    );
    do_not_hold(&nested, &["metadata.details.reason = R"]);
}

#[test]
fn the_example_of_spanner_is_understood() {
    let filter = "(metadata.@type=type.googleapis.com/google.spanner.admin.database.v1.RestoreDatabaseMetadata) \
         AND (metadata.source_type:BACKUP) AND (metadata.progress.start_time < \"2018-03-28T14:50:00Z\") AND (error:*)";
    do_not_hold(&failed(), &[filter]);
}

proptest! {
    #[test]
    fn evaluation_is_that_of_the_naive_interpreter(
        facts in proptest::collection::vec(any_facts(), 1..8),
        filters in proptest::collection::vec(any_filter(), 1..8),
    ) {
        for filter in &filters {
            let query = Query::new(filter, types()).map_err(|error| TestCaseError::fail(format!("{filter}: {error}")))?;
            for facts in &facts {
                let operation = facts.operation(1);
                let expected = naive(filter, facts) == Some(true);
                prop_assert_eq!(query.matches(&operation), expected, "{} of {:?}", filter, facts);
            }
        }
    }
}
