//! Random operations and random filters for tests, and a naive interpreter
//! that says which belong together: it knows an operation as the plain facts
//! that it was made of, and never looks at an `Operation`.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use proptest::prelude::*;

use super::filter::{Column, Comparator, Filter, Path, Restriction, Segment, Text};
use crate::{
    clock::Timestamp,
    operation::{
        birth::{Birth, Tags},
        labels::Labels,
        lease::{LeaseToken, WorkerId},
        name::OperationName,
        operation::{Change, Operation},
        outcome::{Outcome, status},
        payload::Payload,
        stage::{Event, Report},
        terms::{QueueName, Terms},
        trace::TraceContext,
    },
    proto::{google::rpc::Code, longrunning::v1::Progress},
    types::Types,
};

const START: i64 = 1_790_000_000;

/// What an operation is made of.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) parent: &'static str,
    pub(crate) id: String,
    pub(crate) end: End,
    pub(crate) queue: Option<&'static str>,
    pub(crate) env: Option<&'static str>,
    pub(crate) team: Option<&'static str>,
    /// Seconds after the start.
    pub(crate) created: i64,
    pub(crate) metadata: Metadata,
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Pending,
    Running,
    Cancelling,
    Succeeded,
    Failed(Code),
    Cancelled,
}

/// What an operation has for metadata.
#[derive(Clone, Debug)]
pub(crate) enum Metadata {
    Own(Option<(i64, &'static str)>),
    Struct(i64, &'static str),
    /// A Struct with a list of so many numbers, 15 bytes each.
    Numbers(u16),
    Unknown,
}

/// A value as the naive interpreter has it.
#[derive(Clone, Debug, PartialEq)]
enum Leaf {
    Text(String),
    Bool(bool),
    Number(i64),
    Seconds(i64),
    Enum(&'static str),
}

/// What is found under a path.
enum Found {
    Value(Leaf),
    /// The elements of a repeated field, each with the value or hidden.
    Elements(Vec<Option<Leaf>>),
    Absent,
    /// Nobody can know.
    Hidden,
}

/// The built-in types, made once.
pub(crate) fn types() -> &'static Types {
    static TYPES: LazyLock<Types> = LazyLock::new(Types::built_in);
    &TYPES
}

// === impl Facts ===

impl Facts {
    pub(crate) fn name(&self) -> String {
        match self.parent {
            "" => format!("operations/{}", self.id),
            parent => format!("{parent}/operations/{}", self.id),
        }
    }

    /// A pending operation needs a queue; without one, its creator runs it.
    fn end(&self) -> End {
        match self.end {
            End::Pending if self.queue.is_none() => End::Running,
            end => end,
        }
    }

    pub(crate) fn operation(&self, number: u64) -> Operation {
        let at =
            |seconds: i64| Timestamp::from_nanos((START + self.created + seconds) * 1_000_000_000);
        let labels = [("env", self.env), ("team", self.team)];
        let labels: BTreeMap<_, _> = labels
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())))
            .collect();
        let token = LeaseToken::random();
        let worker = WorkerId::new("w");
        let birth = Birth {
            name: OperationName::parse(self.name()).unwrap(),
            number,
            terms: Arc::new(Terms {
                queue: self.queue.map(|queue| QueueName::parse(queue).unwrap()),
                lease_duration: Duration::from_secs(60),
                ..Terms::default()
            }),
            tags: Some(Arc::new(Tags {
                labels: Labels::new(labels).unwrap(),
                request: None,
                method: "".into(),
                trace_context: TraceContext::NONE,
            })),
            input: None,
            metadata: self.metadata.payload(),
            not_before: None,
            holder: self.queue.is_none().then(|| (token, worker.clone())),
        };
        let born = Operation::new(birth, at(0));
        let report = Report {
            progress: match self.metadata {
                Metadata::Own(Some((done_units, stage))) => Some(Progress {
                    done_units,
                    stage: stage.into(),
                    ..Progress::default()
                }),
                _ => None,
            },
            ..Report::default()
        };
        let mut events = Vec::new();
        if self.end() != End::Pending {
            if self.queue.is_some() {
                events.push((0, Event::Claim { token, worker }));
            }
            events.push((0, Event::Report(token, report)));
        }
        match self.end() {
            End::Pending | End::Running => {}
            End::Cancelling => events.push((2, Event::RequestCancel)),
            End::Succeeded => {
                let outcome = Outcome::Response(Payload::empty());
                events.push((2, Event::Finish(token, outcome, Report::default())));
            }
            End::Failed(code) => {
                let mut error = status(code, "TEST", "disk full");
                if code == Code::Internal {
                    error.details.insert(0, unknown());
                }
                let outcome = Outcome::Error(Box::new(error));
                events.push((2, Event::Finish(token, outcome, Report::default())));
            }
            End::Cancelled => {
                events.push((2, Event::RequestCancel));
                let outcome = Outcome::cancelled();
                events.push((2, Event::Finish(token, outcome, Report::default())));
            }
        }
        events.into_iter().fold(born, |operation, (after, event)| {
            match operation.apply(&event, at(after)).unwrap() {
                Change::Put(next) | Change::Renew(next) => next,
                Change::Unchanged => operation,
                Change::Forget(_) => panic!("nothing ends unseen"),
            }
        })
    }

    fn is_done(&self) -> bool {
        !matches!(self.end(), End::Pending | End::Running | End::Cancelling)
    }

    fn error(&self) -> Option<(i64, &'static str)> {
        match self.end() {
            End::Failed(code) => Some((i64::from(i32::from(code)), "disk full")),
            End::Cancelled => Some((1, "the operation was cancelled")),
            _ => None,
        }
    }

    fn state(&self) -> &'static str {
        match self.end() {
            End::Pending => "PENDING",
            End::Running | End::Cancelling => "RUNNING",
            End::Succeeded => "SUCCEEDED",
            End::Failed(Code::Cancelled) | End::Cancelled => "CANCELLED",
            End::Failed(_) => "FAILED",
        }
    }

    fn find(&self, path: &str) -> Found {
        let text = |text: &str| Found::Value(Leaf::Text(text.to_owned()));
        let maybe = |leaf: Option<Leaf>| leaf.map_or(Found::Absent, Found::Value);
        let began = self.end() != End::Pending;
        match path {
            "name" => text(&self.name()),
            "done" => Found::Value(Leaf::Bool(self.is_done())),
            "state" => Found::Value(Leaf::Enum(self.state())),
            "queue" => text(self.queue.unwrap_or("")),
            "attempt" => Found::Value(Leaf::Number(began.into())),
            "cancel_requested" => {
                let asked = matches!(self.end(), End::Cancelling | End::Cancelled);
                Found::Value(Leaf::Bool(asked))
            }
            "create_time" => Found::Value(Leaf::Seconds(self.created)),
            "start_time" => maybe(began.then_some(Leaf::Seconds(self.created))),
            "end_time" => maybe(self.is_done().then_some(Leaf::Seconds(self.created + 2))),
            "labels.env" => maybe(self.env.map(|env| Leaf::Text(env.into()))),
            "labels.team" => maybe(self.team.map(|team| Leaf::Text(team.into()))),
            "error.code" => maybe(self.error().map(|(code, _)| Leaf::Number(code))),
            "error.message" => maybe(self.error().map(|(_, text)| Leaf::Text(text.into()))),
            "error.details.reason" => {
                let reason = |reason: &str| Some(Leaf::Text(reason.to_owned()));
                match self.end() {
                    End::Failed(Code::Internal) => Found::Elements(vec![None, reason("TEST")]),
                    End::Failed(_) => Found::Elements(vec![reason("TEST")]),
                    End::Cancelled => Found::Elements(vec![reason("OPERATION_CANCELLED")]),
                    _ => Found::Absent,
                }
            }
            "metadata.@type" => text(match self.metadata {
                Metadata::Own(_) => "type.googleapis.com/longrunning.v1.OperationMetadata",
                Metadata::Struct(..) | Metadata::Numbers(_) => {
                    "type.googleapis.com/google.protobuf.Struct"
                }
                Metadata::Unknown => "example.com/x/Own",
            }),
            _ => self.find_in_metadata(path),
        }
    }

    fn find_in_metadata(&self, path: &str) -> Found {
        let began = self.end() != End::Pending;
        match (path, &self.metadata) {
            (_, Metadata::Unknown) => Found::Hidden,
            ("metadata.progress.done_units", Metadata::Own(Some((units, _)))) if began => {
                Found::Value(Leaf::Number(*units))
            }
            ("metadata.progress.stage", Metadata::Own(Some((_, stage)))) if began => {
                Found::Value(Leaf::Text((*stage).into()))
            }
            ("metadata.size", Metadata::Struct(size, _)) => Found::Value(Leaf::Number(*size)),
            ("metadata.tag", Metadata::Struct(_, tag)) => Found::Value(Leaf::Text((*tag).into())),
            _ => Found::Absent,
        }
    }

    fn texts(&self) -> Vec<String> {
        let mut texts = vec![self.name(), self.queue.unwrap_or("").into()];
        texts.extend(
            [self.env, self.team]
                .into_iter()
                .flatten()
                .map(str::to_owned),
        );
        texts.extend(self.error().map(|(_, message)| message.to_owned()));
        for path in ["metadata.progress.stage", "metadata.tag"] {
            if let Found::Value(Leaf::Text(text)) = self.find(path) {
                texts.push(text);
            }
        }
        texts
    }
}

impl Metadata {
    fn payload(&self) -> Option<Payload> {
        match self {
            Self::Own(_) => None,
            Self::Struct(size, tag) => {
                let json = serde_json::json!({ "size": size, "tag": tag });
                let any = types().pack("google.protobuf.Struct", &json);
                Some(Payload::new(any.unwrap()).unwrap())
            }
            Self::Numbers(count) => {
                let numbers: Vec<u16> = (0..*count).collect();
                let json = serde_json::json!({ "numbers": numbers });
                let any = types().pack("google.protobuf.Struct", &json);
                Some(Payload::new(any.unwrap()).unwrap())
            }
            Self::Unknown => Some(Payload::new(unknown()).unwrap()),
        }
    }
}

/// A message of a type that nobody has registered.
fn unknown() -> prost_types::Any {
    prost_types::Any {
        type_url: "example.com/x/Own".into(),
        value: vec![0xff],
    }
}

// === The naive interpreter ===

/// Whether a filter is true of the facts; none if that cannot be known.
pub(crate) fn naive(filter: &Filter, facts: &Facts) -> Option<bool> {
    match filter {
        Filter::And(all) => {
            let all: Vec<_> = all.iter().map(|filter| naive(filter, facts)).collect();
            if all.contains(&Some(false)) {
                return Some(false);
            }
            (!all.contains(&None)).then_some(true)
        }
        Filter::Or(any) => {
            let any: Vec<_> = any.iter().map(|filter| naive(filter, facts)).collect();
            if any.contains(&Some(true)) {
                return Some(true);
            }
            (!any.contains(&None)).then_some(false)
        }
        Filter::Not(inner) => naive(inner, facts).map(|known| !known),
        Filter::Anywhere(text) => {
            let texts = facts.texts();
            Some(texts.iter().any(|found| stands_in(text, found)))
        }
        Filter::Compare(Restriction {
            path,
            comparator,
            value,
        }) => {
            let names: Vec<&str> = path.0.iter().map(|segment| &*segment.name).collect();
            let asks_presence = *comparator == Comparator::Has && value.is_star();
            match (facts.find(&names.join(".")), asks_presence) {
                (Found::Hidden, _) | (Found::Absent, false) => None,
                (Found::Absent, true) => Some(false),
                // A key of a map or of a Struct is there whatever its value is.
                (Found::Value(_), true)
                    if ["env", "team", "size", "tag"].contains(names.last()?) =>
                {
                    Some(true)
                }
                (Found::Value(leaf), true) => Some(
                    leaf != Leaf::Text(String::new())
                        && leaf != Leaf::Bool(false)
                        && leaf != Leaf::Number(0),
                ),
                (Found::Value(leaf), false) => compare(&leaf, *comparator, value),
                (Found::Elements(elements), _) => {
                    let is_it = |leaf: &Leaf| match leaf {
                        Leaf::Text(text) => asks_presence || is_whole(value, text),
                        _ => false,
                    };
                    let known: Vec<_> = elements.iter().map(|e| e.as_ref().map(is_it)).collect();
                    if known.contains(&Some(true)) {
                        return Some(true);
                    }
                    (!known.contains(&None)).then_some(false)
                }
            }
        }
    }
}

fn compare(leaf: &Leaf, comparator: Comparator, value: &Text) -> Option<bool> {
    let body = &*value.body;
    let order = match leaf {
        Leaf::Text(text) => match comparator {
            Comparator::Equal => return Some(is_whole(value, text)),
            Comparator::NotEqual => return Some(!is_whole(value, text)),
            Comparator::Has => return Some(stands_in(value, text)),
            _ => text.as_str().cmp(body),
        },
        Leaf::Enum(name) => (*name).cmp(body),
        Leaf::Bool(held) => held.cmp(&(body == "true")),
        Leaf::Number(held) => held.cmp(&body.parse().unwrap()),
        Leaf::Seconds(held) => {
            let time: prost_types::Timestamp = body.parse().unwrap();
            (held + START).cmp(&time.seconds)
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

fn is_whole(value: &Text, text: &str) -> bool {
    // Every way to cut the text, as the stars allow.
    let cuts = 0..=text.len();
    cuts.clone().any(|from| {
        cuts.clone().any(|to| {
            (value.open_start || from == 0)
                && (value.open_end || to == text.len())
                && text.get(from..to) == Some(&*value.body)
        })
    })
}

fn stands_in(value: &Text, text: &str) -> bool {
    if value.open_start || value.open_end {
        is_whole(value, text)
    } else {
        text.contains(&*value.body)
    }
}

// === What tests are fed with ===

pub(crate) fn any_facts() -> impl Strategy<Value = Facts> {
    let end = proptest::sample::select(vec![
        End::Pending,
        End::Running,
        End::Cancelling,
        End::Succeeded,
        End::Succeeded,
        End::Failed(Code::NotFound),
        End::Failed(Code::Internal),
        End::Failed(Code::Cancelled),
        End::Cancelled,
    ]);
    let metadata = prop_oneof![
        Just(Metadata::Own(None)),
        (0i64..4, proptest::sample::select(vec!["", "scan", "hash"]))
            .prop_map(|known| Metadata::Own(Some(known))),
        (0i64..4, proptest::sample::select(vec!["", "prod", "x"]))
            .prop_map(|(size, tag)| Metadata::Struct(size, tag)),
        Just(Metadata::Unknown),
    ];
    let maybe = |all: &'static [&'static str]| proptest::option::of(proptest::sample::select(all));
    let id = prop_oneof![
        "(export|import|ex|a)-[0-9]{1,3}",
        "0190b3f4-7a2e-7[0-9]{3}-8000-00000000000[0-9]"
    ];
    let parent = proptest::sample::select(vec!["", "", "projects/p", "operations/ns"]);
    (
        parent,
        id,
        end,
        maybe(&["q", "r"]),
        maybe(&["prod", "dev"]),
        maybe(&["a", "prod", ""]),
        0i64..30,
        metadata,
    )
        .prop_map(
            |(parent, id, end, queue, env, team, created, metadata)| Facts {
                parent,
                id,
                end,
                queue,
                env,
                team,
                created,
                metadata,
            },
        )
}

fn any_restriction() -> impl Strategy<Value = (String, Comparator, String)> {
    let texts = [
        "name",
        "queue",
        "labels.env",
        "labels.team",
        "error.message",
        "metadata.@type",
        "metadata.progress.stage",
        "metadata.tag",
    ];
    let numbers = [
        "attempt",
        "error.code",
        "metadata.progress.done_units",
        "metadata.size",
    ];
    let times = ["create_time", "start_time", "end_time"];
    let one_of =
        |all: &[&'static str]| proptest::sample::select(all.to_vec()).prop_map(str::to_owned);
    let any_order = || proptest::sample::select(vec!["=", "!=", "<", "<=", ">", ">=", ":"]);
    let no_order = || proptest::sample::select(vec!["=", "!=", ":"]);
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
        let seconds = START + seconds;
        prost_types::Timestamp { seconds, nanos: 0 }.to_string()
    });
    let states = ["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"];
    prop_oneof![
        (one_of(&texts), any_order(), one_of(&words)),
        (one_of(&texts), no_order(), one_of(&patterns)),
        (one_of(&["name"]), no_order(), one_of(&patterns)),
        (
            one_of(&numbers),
            any_order(),
            (0i64..14).prop_map(|n| n.to_string())
        ),
        (one_of(&times), any_order(), time),
        (
            one_of(&["done", "cancel_requested"]),
            no_order(),
            one_of(&["true", "false"])
        ),
        (one_of(&["state"]), no_order(), one_of(&states)),
        (
            one_of(&["error.details.reason"]),
            Just(":"),
            one_of(&["TEST", "TES", "TE*", "OPERATION_CANCELLED", "x"])
        ),
        (
            prop_oneof![
                one_of(&texts),
                one_of(&numbers),
                one_of(&times),
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

fn text(value: &str) -> Text {
    let open_start = value.starts_with('*');
    let rest = value.strip_prefix('*').unwrap_or(value);
    Text {
        body: rest.strip_suffix('*').unwrap_or(rest).into(),
        open_start,
        open_end: rest.ends_with('*'),
        column: Column(1),
    }
}

/// A filter that the sample operations can be asked.
pub(crate) fn any_filter() -> impl Strategy<Value = Filter> {
    let restriction = any_restriction().prop_map(|(path, comparator, value)| {
        let segment = |name: &str| Segment {
            name: name.into(),
            column: Column(1),
        };
        Filter::Compare(Restriction {
            path: Path(path.split('.').map(segment).collect()),
            comparator,
            value: text(&value),
        })
    });
    let word = proptest::sample::select(vec!["prod", "dis*", "operations", "scan", "*1"]);
    let anywhere = word.prop_map(|word| Filter::Anywhere(text(word)));
    let leaf = prop_oneof![8 => restriction, 1 => anywhere];
    leaf.prop_recursive(4, 16, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 1..4).prop_map(Filter::all),
            proptest::collection::vec(inner.clone(), 1..4).prop_map(Filter::any),
            inner.prop_map(|filter| Filter::Not(Box::new(filter))),
        ]
    })
}
