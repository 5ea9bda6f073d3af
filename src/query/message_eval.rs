//! Evaluates a comparison on a field inside a decoded message of any type.

use std::ops::Deref;

use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, ReflectMessage, Value};

use super::{
    check::{find_field, map_value_kind, well_known_scalar_type},
    decoded::DecodedOperation,
    filter::{Comparator, Segment},
    literal::{Comparison, FieldValue, ScalarType, TruthValue, total_nanoseconds},
};
use crate::types::map_key_text;

/// The maximum number of nested `Any`s that are decoded; deeper fields are `Unknown`.
pub(super) const MAX_ANY_DEPTH: usize = 8;

pub(super) const ANY_TYPE_NAME: &str = "google.protobuf.Any";

/// The pseudo field of an `Any` that holds its type URL.
pub(crate) const TYPE_FIELD: &str = "@type";

/// Evaluates one comparison; passed by value, with the state of the descent.
#[derive(Clone, Copy, Debug)]
pub(super) struct MessageEvaluator<'a> {
    decoded: &'a DecodedOperation<'a>,
    comparison: &'a Comparison,
    /// The number of further nested `Any`s that may be decoded.
    remaining_any_depth: usize,
    /// Whether the current value is an element of a repeated field. There `:` compares
    /// the whole text instead of searching it.
    in_repeated: bool,
}

// === impl MessageEvaluator ===

impl<'a> MessageEvaluator<'a> {
    pub(super) fn new(decoded: &'a DecodedOperation<'a>, comparison: &'a Comparison) -> Self {
        Self {
            decoded,
            comparison,
            remaining_any_depth: MAX_ANY_DEPTH,
            in_repeated: false,
        }
    }

    /// Returns the result for a missing field: false for a presence test, else as for an
    /// incomparable value.
    pub(super) fn truth_if_missing(&self) -> TruthValue {
        if self.comparison.is_presence_test() {
            TruthValue::False
        } else {
            self.truth_if_incomparable()
        }
    }

    /// Returns the result for a value that cannot be compared with the literal. An element
    /// of a repeated field is then known not to match.
    fn truth_if_incomparable(&self) -> TruthValue {
        if self.in_repeated {
            TruthValue::False
        } else {
            TruthValue::Unknown
        }
    }

    fn evaluate_scalar(&self, value: FieldValue<'_>, rest: &[Segment]) -> TruthValue {
        match rest {
            [] if self.comparison.is_presence_test() => TruthValue::True,
            [] => self.compare(value),
            _ => self.truth_if_missing(),
        }
    }

    fn compare(&self, value: FieldValue<'_>) -> TruthValue {
        let comparator = match self.comparison.comparator {
            Comparator::Has if self.in_repeated => Comparator::Equal,
            other => other,
        };
        match self.comparison.literal.evaluate(comparator, value) {
            TruthValue::Unknown => self.truth_if_incomparable(),
            known => known,
        }
    }

    /// Evaluates an `Any`; calls `decode` only if the path leads into its content.
    pub(super) fn evaluate_any<M: Deref<Target = DynamicMessage>>(
        self,
        type_url: &str,
        decode: impl FnOnce() -> Option<M>,
        path: &[Segment],
    ) -> TruthValue {
        match path {
            [] if self.comparison.is_presence_test() => return TruthValue::True,
            [first, rest @ ..] if &*first.name == TYPE_FIELD => {
                return self.evaluate_scalar(FieldValue::Text(type_url), rest);
            }
            _ => {}
        }
        let Some(remaining_any_depth) = self.remaining_any_depth.checked_sub(1) else {
            return TruthValue::Unknown;
        };
        let inner = Self {
            remaining_any_depth,
            ..self
        };
        // The content of an unregistered type is unknown.
        decode().map_or(TruthValue::Unknown, |message| {
            inner.evaluate_message(&message, path)
        })
    }

    /// Evaluates the field at `path` of a message, or the message itself if `path` is empty.
    pub(super) fn evaluate_message(self, message: &DynamicMessage, path: &[Segment]) -> TruthValue {
        let descriptor = message.descriptor();
        match descriptor.full_name() {
            ANY_TYPE_NAME => {
                let type_url = message.get_field_by_number(1);
                let type_url = type_url.as_ref().and_then(|url| url.as_str());
                let decode = || self.decoded.decode_any(message);
                return self.evaluate_any(type_url.unwrap_or_default(), decode, path);
            }
            "google.protobuf.Struct" => return self.evaluate_struct(message, path),
            "google.protobuf.Value" => return self.evaluate_json_value(message, path),
            "google.protobuf.ListValue" => {
                let Some(values) = message.get_field_by_number(1) else {
                    return self.truth_if_missing();
                };
                let values = values.as_list().unwrap_or_default();
                return self.evaluate_repeated(values, path, |evaluator, value| {
                    evaluator.evaluate_nested_json_value(value, path)
                });
            }
            _ => {}
        }
        let [first, rest @ ..] = path else {
            return self.evaluate_message_itself(message, &descriptor);
        };
        let Some(field) = find_field(&descriptor, &first.name) else {
            return self.truth_if_missing();
        };
        if field.is_map() {
            let value = message.get_field(&field);
            return self.evaluate_map(&value, rest, |value, rest| {
                self.evaluate_value(value, &map_value_kind(&field), rest)
            });
        }
        if field.is_list() {
            let value = message.get_field(&field);
            let elements = value.as_list().unwrap_or_default();
            return self.evaluate_repeated(elements, rest, |evaluator, value| {
                evaluator.evaluate_value(value, &field.kind(), rest)
            });
        }
        if self.comparison.is_presence_test() && rest.is_empty() {
            return message.has_field(&field).into();
        }
        if field.supports_presence() && !message.has_field(&field) {
            return self.truth_if_missing();
        }
        self.evaluate_value(&message.get_field(&field), &field.kind(), rest)
    }

    /// Evaluates a message without a path: a scalar well-known type, or whether a field is
    /// set.
    fn evaluate_message_itself(
        self,
        message: &DynamicMessage,
        descriptor: &MessageDescriptor,
    ) -> TruthValue {
        if self.comparison.is_presence_test() {
            return TruthValue::True;
        }
        if let Some(truth) = self.evaluate_well_known(message, descriptor) {
            return truth;
        }
        // `m:foo` tests whether field foo of m is set.
        let pattern = &self.comparison.literal.pattern;
        match (self.comparison.comparator, pattern.exact()) {
            (Comparator::Has, Some(name)) => find_field(descriptor, name)
                .is_some_and(|field| message.has_field(&field))
                .into(),
            _ => self.truth_if_incomparable(),
        }
    }

    /// Evaluates a well-known type that represents a scalar; `None` for other messages.
    fn evaluate_well_known(
        self,
        message: &DynamicMessage,
        descriptor: &MessageDescriptor,
    ) -> Option<TruthValue> {
        let scalar = well_known_scalar_type(descriptor)?;
        let first_field = message.get_field_by_number(1)?;
        let nanos = || {
            let (seconds, nanos) = (first_field.as_i64()?, message.get_field_by_number(2)?);
            Some(total_nanoseconds(seconds, nanos.as_i32()?))
        };
        Some(self.compare(match scalar {
            ScalarType::Time => FieldValue::Time(nanos()?),
            ScalarType::Duration => FieldValue::Duration(nanos()?),
            _ => field_value(&first_field),
        }))
    }

    fn evaluate_value(self, value: &Value, kind: &Kind, rest: &[Segment]) -> TruthValue {
        match value {
            Value::Message(message) => self.evaluate_message(message, rest),
            Value::EnumNumber(number) => {
                let known = kind.as_enum().and_then(|kind| kind.get_value(*number));
                let name = known.as_ref().map(|known| FieldValue::Enum(known.name()));
                self.evaluate_scalar(name.unwrap_or(FieldValue::Opaque), rest)
            }
            other => self.evaluate_scalar(field_value(other), rest),
        }
    }

    /// Evaluates a map: its keys, or the value of the key that `path` starts with.
    fn evaluate_map(
        self,
        map: &Value,
        path: &[Segment],
        evaluate: impl FnOnce(&Value, &[Segment]) -> TruthValue,
    ) -> TruthValue {
        let Some(map) = map.as_map() else {
            return TruthValue::Unknown;
        };
        let [key, rest @ ..] = path else {
            return match self.comparison.comparator {
                Comparator::Has if self.comparison.is_presence_test() => (!map.is_empty()).into(),
                Comparator::Has => {
                    let pattern = &self.comparison.literal.pattern;
                    let mut keys = map.keys().map(map_key_text);
                    keys.any(|key| pattern.is_match(&key)).into()
                }
                _ => TruthValue::Unknown,
            };
        };
        let mut entries = map.iter();
        match entries.find(|(found, _)| *map_key_text(found) == *key.name) {
            None => self.truth_if_missing(),
            Some(_) if rest.is_empty() && self.comparison.is_presence_test() => TruthValue::True,
            Some((_, value)) => evaluate(value, rest),
        }
    }

    /// Returns whether the rest of the path is true of any element; `Unknown` only if it is
    /// true of none and unknown of at least one.
    fn evaluate_repeated(
        self,
        elements: &[Value],
        rest: &[Segment],
        evaluate: impl Fn(Self, &Value) -> TruthValue,
    ) -> TruthValue {
        if self.comparison.comparator != Comparator::Has {
            return self.truth_if_incomparable();
        }
        if rest.is_empty() && self.comparison.is_presence_test() {
            return (!elements.is_empty()).into();
        }
        let element_evaluator = Self {
            in_repeated: true,
            ..self
        };
        TruthValue::any(
            elements
                .iter()
                .map(|element| evaluate(element_evaluator, element)),
        )
    }

    // `google.protobuf.Struct`, `Value` and `ListValue`.

    fn evaluate_struct(self, message: &DynamicMessage, path: &[Segment]) -> TruthValue {
        if path.is_empty() && self.comparison.is_presence_test() {
            return TruthValue::True;
        }
        let Some(fields) = message.get_field_by_number(1) else {
            return self.truth_if_missing();
        };
        self.evaluate_map(&fields, path, |value, rest| {
            self.evaluate_nested_json_value(value, rest)
        })
    }

    fn evaluate_nested_json_value(self, value: &Value, path: &[Segment]) -> TruthValue {
        value.as_message().map_or(TruthValue::Unknown, |value| {
            self.evaluate_json_value(value, path)
        })
    }

    fn evaluate_json_value(self, message: &DynamicMessage, path: &[Segment]) -> TruthValue {
        let Some((_, value)) = message.fields().next() else {
            return self.truth_if_missing();
        };
        match value {
            Value::Message(inner) => self.evaluate_message(inner, path),
            Value::EnumNumber(_) => self.evaluate_scalar(FieldValue::Null, path),
            other => self.evaluate_scalar(field_value(other), path),
        }
    }
}

/// Converts a scalar; enums, messages and collections become `Opaque`.
fn field_value(value: &Value) -> FieldValue<'_> {
    match value {
        Value::Bool(value) => FieldValue::Bool(*value),
        Value::I32(value) => FieldValue::Integer((*value).into()),
        Value::I64(value) => FieldValue::Integer((*value).into()),
        Value::U32(value) => FieldValue::Integer((*value).into()),
        Value::U64(value) => FieldValue::Integer((*value).into()),
        Value::F32(value) => FieldValue::Float32(*value),
        Value::F64(value) => FieldValue::Float64(*value),
        Value::String(value) => FieldValue::Text(value),
        Value::Bytes(_)
        | Value::List(_)
        | Value::Map(_)
        | Value::EnumNumber(_)
        | Value::Message(_) => FieldValue::Opaque,
    }
}
