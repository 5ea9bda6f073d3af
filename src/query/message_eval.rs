//! Fields inside messages: what a path finds in a decoded message of any type.
//! Whether it makes sense for a type is in `check`, the operation's own fields
//! are in `fields`.

use std::ops::Deref;

use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, ReflectMessage, Value};

use super::{
    check::{find_field, map_value_kind, well_known_scalar_type},
    decoded::DecodedOperation,
    filter::{Comparator, Segment},
    literal::{FieldValue, Literal, ScalarType, TruthValue, total_nanoseconds},
};
use crate::types::map_key_text;

/// How many `Any`s inside each other are opened; what is deeper is not known.
pub(super) const MAX_ANY_DEPTH: usize = 8;

pub(super) const ANY_TYPE_NAME: &str = "google.protobuf.Any";

/// The field of an `Any` that says what is in it.
pub(crate) const TYPE_FIELD: &str = "@type";

/// A question to a message: what is asked about the field that a path leads to.
#[derive(Clone, Copy, Debug)]
pub(super) struct MessageEvaluator<'a> {
    decoded: &'a DecodedOperation<'a>,
    comparator: Comparator,
    literal: &'a Literal,
    /// How many more `Any`s may be opened.
    remaining_any_depth: usize,
    /// Whether the question is to an element of a repeated field, where a text
    /// must be the value, not only stand in it.
    in_repeated: bool,
}

// === impl Inside ===

impl<'a> MessageEvaluator<'a> {
    pub(super) fn new(
        decoded: &'a DecodedOperation<'a>,
        comparator: Comparator,
        literal: &'a Literal,
    ) -> Self {
        Self {
            decoded,
            comparator,
            literal,
            remaining_any_depth: MAX_ANY_DEPTH,
            in_repeated: false,
        }
    }

    fn is_presence_test(&self) -> bool {
        self.comparator == Comparator::Has && self.literal.pattern.is_wildcard()
    }

    /// The answer about what is not there: absence is known, but nothing else is.
    pub(super) fn truth_if_missing(&self) -> TruthValue {
        if self.is_presence_test() {
            TruthValue::False
        } else {
            self.truth_if_incomparable()
        }
    }

    /// The answer about what cannot be compared with the literal. An element
    /// is known not to be the one that is asked for, then.
    fn truth_if_incomparable(&self) -> TruthValue {
        if self.in_repeated {
            TruthValue::False
        } else {
            TruthValue::Unknown
        }
    }

    fn evaluate_scalar(&self, value: FieldValue<'_>, rest: &[Segment]) -> TruthValue {
        if rest.is_empty() {
            self.compare(value)
        } else {
            self.truth_if_missing()
        }
    }

    fn compare(&self, value: FieldValue<'_>) -> TruthValue {
        let comparator = match self.comparator {
            Comparator::Has if self.in_repeated => Comparator::Equal,
            other => other,
        };
        match self.literal.evaluate(comparator, value) {
            TruthValue::Unknown => self.truth_if_incomparable(),
            known => known,
        }
    }

    /// Asks the message in an `Any`, which is decoded by `open`.
    pub(super) fn evaluate_any<M>(
        self,
        type_url: &str,
        decode: impl FnOnce() -> Option<M>,
        path: &[Segment],
    ) -> TruthValue
    where
        M: Deref<Target = DynamicMessage>,
    {
        match path {
            [] if self.is_presence_test() => return TruthValue::True,
            [first, rest @ ..] if &*first.name == TYPE_FIELD => {
                return if self.is_presence_test() && rest.is_empty() {
                    TruthValue::True
                } else {
                    self.evaluate_scalar(FieldValue::Text(type_url), rest)
                };
            }
            _ => {}
        }
        let Some(remaining_any_depth) = self.remaining_any_depth.checked_sub(1) else {
            return TruthValue::Unknown;
        };
        // Nobody knows what is in a type that is not registered.
        decode().map_or(TruthValue::Unknown, |message| {
            Self {
                remaining_any_depth,
                ..self
            }
            .evaluate_message(&message, path)
        })
    }

    /// Asks a message.
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
                return self.evaluate_list(values.as_list().unwrap_or_default(), path);
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
            return self.evaluate_repeated(
                value.as_list().unwrap_or_default(),
                rest,
                |evaluator, value, rest| evaluator.evaluate_value(value, &field.kind(), rest),
            );
        }
        if self.is_presence_test() && rest.is_empty() {
            return message.has_field(&field).into();
        }
        if field.supports_presence() && !message.has_field(&field) {
            return self.truth_if_missing();
        }
        self.evaluate_value(&message.get_field(&field), &field.kind(), rest)
    }

    /// Asks a message as a whole: those that stand for one value, or whether a
    /// field is there.
    fn evaluate_message_itself(
        self,
        message: &DynamicMessage,
        descriptor: &MessageDescriptor,
    ) -> TruthValue {
        if self.is_presence_test() {
            return TruthValue::True;
        }
        if let Some(truth) = self.evaluate_well_known(message, descriptor) {
            return truth;
        }
        // `m:foo` asks whether there is a foo in m.
        match (self.comparator, self.literal.pattern.exact()) {
            (Comparator::Has, Some(name)) => find_field(descriptor, name)
                .is_some_and(|field| message.has_field(&field))
                .into(),
            _ => self.truth_if_incomparable(),
        }
    }

    /// Asks a message of `google.protobuf` that stands for one value.
    fn evaluate_well_known(
        self,
        message: &DynamicMessage,
        descriptor: &MessageDescriptor,
    ) -> Option<TruthValue> {
        let (scalar, first_field) = (
            well_known_scalar_type(descriptor)?,
            message.get_field_by_number(1)?,
        );
        let nanos = || {
            let nanos_field = message.get_field_by_number(2)?;
            Some(total_nanoseconds(
                first_field.as_i64()?,
                nanos_field.as_i32()?,
            ))
        };
        Some(self.compare(match scalar {
            ScalarType::Time => FieldValue::Time(nanos()?),
            ScalarType::Duration => FieldValue::Duration(nanos()?),
            _ => field_value(&first_field),
        }))
    }

    fn evaluate_value(self, value: &Value, kind: &Kind, rest: &[Segment]) -> TruthValue {
        let scalar = match value {
            Value::Message(message) => return self.evaluate_message(message, rest),
            Value::EnumNumber(number) => {
                let known = kind.as_enum().and_then(|kind| kind.get_value(*number));
                return match known {
                    Some(known) => self.evaluate_scalar(FieldValue::Enum(known.name()), rest),
                    None => self.evaluate_scalar(FieldValue::Opaque, rest),
                };
            }
            other => field_value(other),
        };
        if self.is_presence_test() && rest.is_empty() {
            return TruthValue::True;
        }
        self.evaluate_scalar(scalar, rest)
    }

    /// Asks a map: for a key, or for what stands under one.
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
            return match self.comparator {
                Comparator::Has if self.is_presence_test() => (!map.is_empty()).into(),
                Comparator::Has => {
                    let mut keys = map.keys().map(map_key_text);
                    keys.any(|key| self.literal.pattern.is_match(&key)).into()
                }
                _ => TruthValue::Unknown,
            };
        };
        let found = map
            .iter()
            .find(|(found, _)| *map_key_text(found) == *key.name)
            .map(|(_, value)| value);
        match found {
            None => self.truth_if_missing(),
            Some(_) if rest.is_empty() && self.is_presence_test() => TruthValue::True,
            Some(value) => evaluate(value, rest),
        }
    }

    /// Asks whether a repeated field has an element for which the rest is true.
    /// That is known, unless what is in an element is not.
    fn evaluate_repeated<T>(
        self,
        elements: &[T],
        rest: &[Segment],
        evaluate: impl Fn(Self, &T, &[Segment]) -> TruthValue,
    ) -> TruthValue {
        if self.comparator != Comparator::Has {
            return self.truth_if_incomparable();
        }
        if rest.is_empty() && self.is_presence_test() {
            return (!elements.is_empty()).into();
        }
        let element_evaluator = Self {
            in_repeated: true,
            ..self
        };
        let mut truth = TruthValue::False;
        for element in elements {
            truth = truth.max(evaluate(element_evaluator, element, rest));
            if truth == TruthValue::True {
                break;
            }
        }
        truth
    }

    // JSON in a message: `google.protobuf.Struct` and what is in it.

    fn evaluate_struct(self, message: &DynamicMessage, path: &[Segment]) -> TruthValue {
        if path.is_empty() && self.is_presence_test() {
            return TruthValue::True;
        }
        let Some(fields) = message.get_field_by_number(1) else {
            return self.truth_if_missing();
        };
        self.evaluate_map(&fields, path, |value, rest| match value.as_message() {
            Some(value) => self.evaluate_json_value(value, rest),
            None => TruthValue::Unknown,
        })
    }

    fn evaluate_json_value(self, message: &DynamicMessage, path: &[Segment]) -> TruthValue {
        let Some((_, value)) = message.fields().next() else {
            return self.truth_if_missing();
        };
        match value {
            Value::Message(inner) => self.evaluate_message(inner, path),
            _ if path.is_empty() && self.is_presence_test() => TruthValue::True,
            Value::EnumNumber(_) => self.evaluate_scalar(FieldValue::Null, path),
            Value::F64(number) => self.evaluate_scalar(FieldValue::Float64(*number), path),
            Value::String(text) => self.evaluate_scalar(FieldValue::Text(text), path),
            Value::Bool(value) => self.evaluate_scalar(FieldValue::Bool(*value), path),
            _ => TruthValue::Unknown,
        }
    }

    fn evaluate_list(self, values: &[Value], path: &[Segment]) -> TruthValue {
        self.evaluate_repeated(values, path, |evaluator, value, rest| {
            match value.as_message() {
                Some(value) => evaluator.evaluate_json_value(value, rest),
                None => TruthValue::Unknown,
            }
        })
    }
}

/// The value of a field that is neither a message nor an enum.
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
