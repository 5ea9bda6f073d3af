//! A naive filter interpreter for tests. It evaluates a parsed filter on the plain values
//! of a [`SampleOperation`] and shares no code with the real evaluation.

use super::sample_operation::{START_SECS, SampleMetadata, SampleOperation, SampleState};
use crate::{
    proto::google::rpc::Code,
    query::filter::{Comparator, Filter, Pattern, Restriction},
};

#[derive(Clone, Debug, PartialEq)]
enum SampleValue {
    Text(String),
    Bool(bool),
    Number(i64),
    Seconds(i64),
    Enum(&'static str),
}

/// The result of resolving a path.
enum PathResult {
    Value(SampleValue),
    /// The elements of a repeated field; `None` is an element of an unregistered type.
    Elements(Vec<Option<SampleValue>>),
    Absent,
    /// The message is of an unregistered type.
    Undecodable,
}

impl SampleOperation {
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

/// Returns whether a filter is true of an operation, or `None` if that is unknown.
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
                // Map keys and fields of a Struct are set even if their value is a default.
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
    // Try every substring that the wildcards allow.
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
