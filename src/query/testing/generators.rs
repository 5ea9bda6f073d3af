//! Strategies for random operations and filters.

use proptest::prelude::*;

use super::sample_operation::{START_SECS, SampleMetadata, SampleOperation, SampleState};
use crate::{
    proto::google::rpc::Code,
    query::filter::{Column, Comparator, Filter, Path, Pattern, Restriction, Segment},
};

/// Generates operations in all states, with and without queue, labels and metadata.
pub(crate) fn any_sample_operation() -> impl Strategy<Value = SampleOperation> {
    let state = proptest::sample::select(vec![
        SampleState::Pending,
        SampleState::Running,
        SampleState::Cancelling,
        SampleState::Succeeded,
        SampleState::Succeeded,
        SampleState::Failed(Code::NotFound),
        SampleState::Failed(Code::Internal),
        SampleState::Failed(Code::Cancelled),
        SampleState::Cancelled,
    ]);
    let metadata = prop_oneof![
        Just(SampleMetadata::Server(None)),
        (0i64..4, proptest::sample::select(vec!["", "scan", "hash"]))
            .prop_map(|known| SampleMetadata::Server(Some(known))),
        (0i64..4, proptest::sample::select(vec!["", "prod", "x"]))
            .prop_map(|(size, tag)| SampleMetadata::Struct(size, tag)),
        Just(SampleMetadata::UnknownType),
    ];
    let optional =
        |all: &'static [&'static str]| proptest::option::of(proptest::sample::select(all));
    let id = prop_oneof![
        "(export|import|ex|a)-[0-9]{1,3}",
        "0190b3f4-7a2e-7[0-9]{3}-8000-00000000000[0-9]"
    ];
    let parent = proptest::sample::select(vec!["", "", "projects/p", "operations/ns"]);
    (
        parent,
        id,
        state,
        optional(&["q", "r"]),
        optional(&["prod", "dev"]),
        optional(&["a", "prod", ""]),
        0i64..30,
        metadata,
    )
        .prop_map(
            |(parent, id, state, queue, env, team, created_after_secs, metadata)| SampleOperation {
                parent,
                id,
                state,
                queue,
                env,
                team,
                created_after_secs,
                metadata,
            },
        )
}

fn any_restriction() -> impl Strategy<Value = (String, Comparator, String)> {
    let text_fields = [
        "name",
        "queue",
        "labels.env",
        "labels.team",
        "error.message",
        "metadata.@type",
        "metadata.progress.stage",
        "metadata.tag",
    ];
    let number_fields = [
        "attempt",
        "error.code",
        "metadata.progress.done_units",
        "metadata.size",
    ];
    let time_fields = ["create_time", "start_time", "end_time"];
    let one_of =
        |all: &[&'static str]| proptest::sample::select(all.to_vec()).prop_map(str::to_owned);
    let any_comparator = || proptest::sample::select(vec!["=", "!=", "<", "<=", ">", ">=", ":"]);
    let equality_or_has = || proptest::sample::select(vec!["=", "!=", ":"]);
    let words = [
        "prod",
        "dev",
        "q",
        "r",
        "",
        "a",
        "scan",
        "disk full",
        "operations/a-1",
        "type.googleapis.com/google.protobuf.Struct",
    ];
    let patterns = [
        "operations/export*",
        "operations/ex-*",
        "operations/0190*",
        "projects/p/operations/a*",
        "operations/ns/*",
        "projects/*",
        "pr*",
        "*d",
        "*is*",
        "*Struct",
        "oper*",
        "operations/*",
    ];
    let time = (0i64..32).prop_map(|seconds| {
        let seconds = START_SECS + seconds;
        prost_types::Timestamp { seconds, nanos: 0 }.to_string()
    });
    let states = ["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"];
    prop_oneof![
        (one_of(&text_fields), any_comparator(), one_of(&words)),
        (one_of(&text_fields), equality_or_has(), one_of(&patterns)),
        (one_of(&["name"]), equality_or_has(), one_of(&patterns)),
        (
            one_of(&number_fields),
            any_comparator(),
            (0i64..14).prop_map(|n| n.to_string())
        ),
        (one_of(&time_fields), any_comparator(), time),
        (
            one_of(&["done", "cancel_requested"]),
            equality_or_has(),
            one_of(&["true", "false"])
        ),
        (one_of(&["state"]), equality_or_has(), one_of(&states)),
        (
            one_of(&["error.details.reason"]),
            Just(":"),
            one_of(&["TEST", "TES", "TE*", "OPERATION_CANCELLED", "x"])
        ),
        (
            prop_oneof![
                one_of(&text_fields),
                one_of(&number_fields),
                one_of(&time_fields),
                one_of(&["done", "state", "error.details.reason"])
            ],
            Just(":"),
            Just("*".to_owned())
        ),
    ]
    .prop_map(|(path, comparator, value)| {
        let comparator = match comparator {
            "=" => Comparator::Equal,
            "!=" => Comparator::NotEqual,
            "<" => Comparator::Less,
            "<=" => Comparator::LessEqual,
            ">" => Comparator::Greater,
            ">=" => Comparator::GreaterEqual,
            _ => Comparator::Has,
        };
        (path, comparator, value)
    })
}

fn parse_pattern(text: &str) -> Pattern {
    let leading_wildcard = text.starts_with('*');
    let rest = text.strip_prefix('*').unwrap_or(text);
    Pattern {
        body: rest.strip_suffix('*').unwrap_or(rest).into(),
        leading_wildcard,
        trailing_wildcard: rest.ends_with('*'),
        column: Column(1),
    }
}

/// Generates filters over the fields that sample operations have.
pub(crate) fn any_sample_filter() -> impl Strategy<Value = Filter> {
    let restriction = any_restriction().prop_map(|(path, comparator, value)| {
        let segment = |name: &str| Segment {
            name: name.into(),
            column: Column(1),
        };
        Filter::Restriction(Restriction {
            path: Path(path.split('.').map(segment).collect()),
            comparator,
            value: parse_pattern(&value),
        })
    });
    let word = proptest::sample::select(vec!["prod", "dis*", "operations", "scan", "*1"]);
    let global = word.prop_map(|word| Filter::Global(parse_pattern(word)));
    let leaf = prop_oneof![8 => restriction, 1 => global];
    leaf.prop_recursive(4, 16, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 1..4).prop_map(Filter::conjunction),
            proptest::collection::vec(inner.clone(), 1..4).prop_map(Filter::disjunction),
            inner.prop_map(|filter| Filter::Not(Box::new(filter))),
        ]
    })
}
