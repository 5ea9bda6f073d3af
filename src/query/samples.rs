//! Random operations and random filters for tests, and a naive interpreter
//! that says which belong together: it knows an operation as the plain facts
//! that it was made of, and never looks at an `Operation`.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use proptest::prelude::*;

use super::filter::{Column, Comparator, Filter, Path, Pattern, Restriction, Segment};
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
        spec::{Attributes, InitialLease, OperationSpec},
        trace::TraceContext,
        transition::{Event, Report},
    },
    proto::{google::rpc::Code, longrunning::v1::Progress},
    types::TypeRegistry,
};

const START_SECS: i64 = 1_790_000_000;

/// What an operation is made of.
#[derive(Clone, Debug)]
pub(crate) struct SampleOperation {
    pub(crate) parent: &'static str,
    pub(crate) id: String,
    pub(crate) state: SampleState,
    pub(crate) queue: Option<&'static str>,
    pub(crate) env: Option<&'static str>,
    pub(crate) team: Option<&'static str>,
    /// Seconds after the start.
    pub(crate) created_after_secs: i64,
    pub(crate) metadata: SampleMetadata,
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SampleState {
    Pending,
    Running,
    Cancelling,
    Succeeded,
    Failed(Code),
    Cancelled,
}

/// What an operation has for metadata.
#[derive(Clone, Debug)]
pub(crate) enum SampleMetadata {
    Server(Option<(i64, &'static str)>),
    Struct(i64, &'static str),
    /// A Struct with a list of so many numbers, 15 bytes each.
    Numbers(u16),
    UnknownType,
}

/// A value as the naive interpreter has it.
#[derive(Clone, Debug, PartialEq)]
enum SampleValue {
    Text(String),
    Bool(bool),
    Number(i64),
    Seconds(i64),
    Enum(&'static str),
}

/// What is found under a path.
enum PathResult {
    Value(SampleValue),
    /// The elements of a repeated field, each with the value or hidden.
    Elements(Vec<Option<SampleValue>>),
    Absent,
    /// Nobody can know.
    Undecodable,
}

/// The built-in types, made once.
pub(crate) fn built_in_types() -> &'static TypeRegistry {
    static TYPES: LazyLock<TypeRegistry> = LazyLock::new(TypeRegistry::built_in);
    &TYPES
}

// === impl Facts ===

impl SampleOperation {
    pub(crate) fn name(&self) -> String {
        match self.parent {
            "" => format!("operations/{}", self.id),
            parent => format!("{parent}/operations/{}", self.id),
        }
    }

    /// A pending operation needs a queue; without one, its creator runs it.
    fn effective_state(&self) -> SampleState {
        match self.state {
            SampleState::Pending if self.queue.is_none() => SampleState::Running,
            state => state,
        }
    }

    pub(crate) fn to_operation(&self, number: u64) -> Operation {
        let time_at = |seconds: i64| {
            Timestamp::from_nanos((START_SECS + self.created_after_secs + seconds) * 1_000_000_000)
        };
        let labels = [("env", self.env), ("team", self.team)];
        let labels: BTreeMap<_, _> = labels
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())))
            .collect();
        let token = LeaseToken::random();
        let worker = WorkerId::new("w");
        let spec = OperationSpec {
            name: OperationName::parse(self.name()).unwrap(),
            number,
            options: Arc::new(ExecutionOptions {
                queue: self.queue.map(|queue| QueueName::parse(queue).unwrap()),
                lease_duration: Duration::from_secs(60),
                ..ExecutionOptions::default()
            }),
            attributes: Some(Arc::new(Attributes {
                labels: Labels::new(labels).unwrap(),
                idempotency_key: None,
                method: "".into(),
                trace_context: TraceContext::NONE,
            })),
            input: None,
            metadata: self.metadata.payload(),
            not_before: None,
            initial_lease: self.queue.is_none().then(|| InitialLease {
                token,
                worker: worker.clone(),
            }),
        };
        let created = Operation::new(spec, time_at(0));
        let report = Report {
            progress: match self.metadata {
                SampleMetadata::Server(Some((done_units, stage))) => Some(Progress {
                    done_units,
                    stage: stage.into(),
                    ..Progress::default()
                }),
                _ => None,
            },
            ..Report::default()
        };
        let mut events = Vec::new();
        if self.effective_state() != SampleState::Pending {
            if self.queue.is_some() {
                events.push((0, Event::AcquireLease { token, worker }));
            }
            events.push((0, Event::Report(token, report)));
        }
        match self.effective_state() {
            SampleState::Pending | SampleState::Running => {}
            SampleState::Cancelling => events.push((2, Event::RequestCancel)),
            SampleState::Succeeded => {
                let outcome = Outcome::Response(Payload::empty());
                events.push((2, Event::Finish(token, outcome, Report::default())));
            }
            SampleState::Failed(code) => {
                let mut error = status_with_reason(code, "TEST", "disk full");
                if code == Code::Internal {
                    error.details.insert(0, any_of_unknown_type());
                }
                let outcome = Outcome::Error(Box::new(error));
                events.push((2, Event::Finish(token, outcome, Report::default())));
            }
            SampleState::Cancelled => {
                events.push((2, Event::RequestCancel));
                let outcome = Outcome::cancelled();
                events.push((2, Event::Finish(token, outcome, Report::default())));
            }
        }
        events
            .into_iter()
            .fold(created, |operation, (after, event)| {
                match operation.apply(&event, time_at(after)).unwrap() {
                    OperationUpdate::Put(next) | OperationUpdate::RenewLease(next) => next,
                    OperationUpdate::Unchanged => operation,
                    OperationUpdate::Remove(_) => panic!("nothing ends unseen"),
                }
            })
    }

    fn is_done(&self) -> bool {
        !matches!(
            self.effective_state(),
            SampleState::Pending | SampleState::Running | SampleState::Cancelling
        )
    }

    fn error(&self) -> Option<(i64, &'static str)> {
        match self.effective_state() {
            SampleState::Failed(code) => Some((i64::from(i32::from(code)), "disk full")),
            SampleState::Cancelled => Some((1, "the operation was cancelled")),
            _ => None,
        }
    }

    fn state_name(&self) -> &'static str {
        match self.effective_state() {
            SampleState::Pending => "PENDING",
            SampleState::Running | SampleState::Cancelling => "RUNNING",
            SampleState::Succeeded => "SUCCEEDED",
            SampleState::Failed(Code::Cancelled) | SampleState::Cancelled => "CANCELLED",
            SampleState::Failed(_) => "FAILED",
        }
    }

    fn resolve(&self, path: &str) -> PathResult {
        let text = |text: &str| PathResult::Value(SampleValue::Text(text.to_owned()));
        let optional =
            |leaf: Option<SampleValue>| leaf.map_or(PathResult::Absent, PathResult::Value);
        let has_started = self.effective_state() != SampleState::Pending;
        match path {
            "name" => text(&self.name()),
            "done" => PathResult::Value(SampleValue::Bool(self.is_done())),
            "state" => PathResult::Value(SampleValue::Enum(self.state_name())),
            "queue" => text(self.queue.unwrap_or("")),
            "attempt" => PathResult::Value(SampleValue::Number(has_started.into())),
            "cancel_requested" => {
                let is_cancel_requested = matches!(
                    self.effective_state(),
                    SampleState::Cancelling | SampleState::Cancelled
                );
                PathResult::Value(SampleValue::Bool(is_cancel_requested))
            }
            "create_time" => PathResult::Value(SampleValue::Seconds(self.created_after_secs)),
            "start_time" => {
                optional(has_started.then_some(SampleValue::Seconds(self.created_after_secs)))
            }
            "end_time" => optional(
                self.is_done()
                    .then_some(SampleValue::Seconds(self.created_after_secs + 2)),
            ),
            "labels.env" => optional(self.env.map(|env| SampleValue::Text(env.into()))),
            "labels.team" => optional(self.team.map(|team| SampleValue::Text(team.into()))),
            "error.code" => optional(self.error().map(|(code, _)| SampleValue::Number(code))),
            "error.message" => {
                optional(self.error().map(|(_, text)| SampleValue::Text(text.into())))
            }
            "error.details.reason" => {
                let reason = |reason: &str| Some(SampleValue::Text(reason.to_owned()));
                match self.effective_state() {
                    SampleState::Failed(Code::Internal) => {
                        PathResult::Elements(vec![None, reason("TEST")])
                    }
                    SampleState::Failed(_) => PathResult::Elements(vec![reason("TEST")]),
                    SampleState::Cancelled => {
                        PathResult::Elements(vec![reason("OPERATION_CANCELLED")])
                    }
                    _ => PathResult::Absent,
                }
            }
            "metadata.@type" => text(match self.metadata {
                SampleMetadata::Server(_) => "type.googleapis.com/longrunning.v1.OperationMetadata",
                SampleMetadata::Struct(..) | SampleMetadata::Numbers(_) => {
                    "type.googleapis.com/google.protobuf.Struct"
                }
                SampleMetadata::UnknownType => "example.com/x/Own",
            }),
            _ => self.resolve_in_metadata(path),
        }
    }

    fn resolve_in_metadata(&self, path: &str) -> PathResult {
        let has_started = self.effective_state() != SampleState::Pending;
        match (path, &self.metadata) {
            (_, SampleMetadata::UnknownType) => PathResult::Undecodable,
            ("metadata.progress.done_units", SampleMetadata::Server(Some((units, _))))
                if has_started =>
            {
                PathResult::Value(SampleValue::Number(*units))
            }
            ("metadata.progress.stage", SampleMetadata::Server(Some((_, stage))))
                if has_started =>
            {
                PathResult::Value(SampleValue::Text((*stage).into()))
            }
            ("metadata.size", SampleMetadata::Struct(size, _)) => {
                PathResult::Value(SampleValue::Number(*size))
            }
            ("metadata.tag", SampleMetadata::Struct(_, tag)) => {
                PathResult::Value(SampleValue::Text((*tag).into()))
            }
            _ => PathResult::Absent,
        }
    }

    fn searchable_texts(&self) -> Vec<String> {
        let mut texts = vec![self.name(), self.queue.unwrap_or("").into()];
        texts.extend(
            [self.env, self.team]
                .into_iter()
                .flatten()
                .map(str::to_owned),
        );
        texts.extend(self.error().map(|(_, message)| message.to_owned()));
        for path in ["metadata.progress.stage", "metadata.tag"] {
            if let PathResult::Value(SampleValue::Text(text)) = self.resolve(path) {
                texts.push(text);
            }
        }
        texts
    }
}

impl SampleMetadata {
    fn payload(&self) -> Option<Payload> {
        match self {
            Self::Server(_) => None,
            Self::Struct(size, tag) => {
                let json = serde_json::json!({ "size": size, "tag": tag });
                let any = built_in_types().pack("google.protobuf.Struct", &json);
                Some(Payload::new(any.unwrap()).unwrap())
            }
            Self::Numbers(count) => {
                let numbers: Vec<u16> = (0..*count).collect();
                let json = serde_json::json!({ "numbers": numbers });
                let any = built_in_types().pack("google.protobuf.Struct", &json);
                Some(Payload::new(any.unwrap()).unwrap())
            }
            Self::UnknownType => Some(Payload::new(any_of_unknown_type()).unwrap()),
        }
    }
}

/// A message of a type that nobody has registered.
fn any_of_unknown_type() -> prost_types::Any {
    prost_types::Any {
        type_url: "example.com/x/Own".into(),
        value: vec![0xff],
    }
}

// === The naive interpreter ===

/// Whether a filter is true of the facts; none if that cannot be known.
pub(crate) fn evaluate_naively(filter: &Filter, sample: &SampleOperation) -> Option<bool> {
    match filter {
        Filter::And(filters) => {
            let results: Vec<_> = filters
                .iter()
                .map(|filter| evaluate_naively(filter, sample))
                .collect();
            if results.contains(&Some(false)) {
                return Some(false);
            }
            (!results.contains(&None)).then_some(true)
        }
        Filter::Or(filters) => {
            let results: Vec<_> = filters
                .iter()
                .map(|filter| evaluate_naively(filter, sample))
                .collect();
            if results.contains(&Some(true)) {
                return Some(true);
            }
            (!results.contains(&None)).then_some(false)
        }
        Filter::Not(inner) => evaluate_naively(inner, sample).map(|result| !result),
        Filter::Global(pattern) => {
            let texts = sample.searchable_texts();
            Some(
                texts
                    .iter()
                    .any(|candidate| is_text_match(pattern, candidate)),
            )
        }
        Filter::Restriction(Restriction {
            path,
            comparator,
            value,
        }) => {
            let names: Vec<&str> = path.0.iter().map(|segment| &*segment.name).collect();
            let is_presence_test = *comparator == Comparator::Has && value.is_wildcard();
            match (sample.resolve(&names.join(".")), is_presence_test) {
                (PathResult::Undecodable, _) | (PathResult::Absent, false) => None,
                (PathResult::Absent, true) => Some(false),
                // A key of a map or of a Struct is there whatever its value is.
                (PathResult::Value(_), true)
                    if ["env", "team", "size", "tag"].contains(names.last()?) =>
                {
                    Some(true)
                }
                (PathResult::Value(leaf), true) => Some(
                    leaf != SampleValue::Text(String::new())
                        && leaf != SampleValue::Bool(false)
                        && leaf != SampleValue::Number(0),
                ),
                (PathResult::Value(leaf), false) => compare_naively(&leaf, *comparator, value),
                (PathResult::Elements(elements), _) => {
                    let is_element_match = |element: &SampleValue| match element {
                        SampleValue::Text(text) => is_presence_test || is_full_match(value, text),
                        _ => false,
                    };
                    let known: Vec<_> = elements
                        .iter()
                        .map(|e| e.as_ref().map(is_element_match))
                        .collect();
                    if known.contains(&Some(true)) {
                        return Some(true);
                    }
                    (!known.contains(&None)).then_some(false)
                }
            }
        }
    }
}

fn compare_naively(
    actual: &SampleValue,
    comparator: Comparator,
    pattern: &Pattern,
) -> Option<bool> {
    let body = &*pattern.body;
    let order = match actual {
        SampleValue::Text(text) => match comparator {
            Comparator::Equal => return Some(is_full_match(pattern, text)),
            Comparator::NotEqual => return Some(!is_full_match(pattern, text)),
            Comparator::Has => return Some(is_text_match(pattern, text)),
            _ => text.as_str().cmp(body),
        },
        SampleValue::Enum(name) => (*name).cmp(body),
        SampleValue::Bool(flag) => flag.cmp(&(body == "true")),
        SampleValue::Number(number) => number.cmp(&body.parse().unwrap()),
        SampleValue::Seconds(seconds) => {
            let time: prost_types::Timestamp = body.parse().unwrap();
            (seconds + START_SECS).cmp(&time.seconds)
        }
    };
    Some(match comparator {
        Comparator::Equal | Comparator::Has => order.is_eq(),
        Comparator::NotEqual => order.is_ne(),
        Comparator::Less => order.is_lt(),
        Comparator::LessEqual => order.is_le(),
        Comparator::Greater => order.is_gt(),
        Comparator::GreaterEqual => order.is_ge(),
    })
}

fn is_full_match(pattern: &Pattern, text: &str) -> bool {
    // Every way to cut the text, as the stars allow.
    let cuts = 0..=text.len();
    cuts.clone().any(|start| {
        cuts.clone().any(|end| {
            (pattern.leading_wildcard || start == 0)
                && (pattern.trailing_wildcard || end == text.len())
                && text.get(start..end) == Some(&*pattern.body)
        })
    })
}

fn is_text_match(pattern: &Pattern, text: &str) -> bool {
    if pattern.leading_wildcard || pattern.trailing_wildcard {
        is_full_match(pattern, text)
    } else {
        text.contains(&*pattern.body)
    }
}

// === What tests are fed with ===

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

/// A filter that the sample operations can be asked.
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
