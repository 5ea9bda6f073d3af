//! Fields inside messages: what a path finds in a decoded message of any type.
//! Whether it makes sense for a type is in `check`, the operation's own fields
//! are in `fields`.

use std::ops::Deref;

use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, ReflectMessage, Value};

use super::{
    check::{field, value_kind, well_known_scalar},
    filter::{Comparator, Segment},
    literal::{Held, Literal, Scalar, Truth, nanoseconds},
    subject::Subject,
};
use crate::types::key_text;

/// How many `Any`s inside each other are opened; what is deeper is not known.
pub(super) const MAX_NESTED: usize = 8;

pub(super) const ANY: &str = "google.protobuf.Any";

/// The field of an `Any` that says what is in it.
pub(crate) const TYPE: &str = "@type";

/// A question to a message: what is asked about the field that a path leads to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inside<'a> {
    subject: &'a Subject<'a>,
    comparator: Comparator,
    literal: &'a Literal,
    /// How many more `Any`s may be opened.
    nested: usize,
    /// Whether the question is to an element of a repeated field, where a text
    /// must be the value, not only stand in it.
    to_element: bool,
}

// === impl Inside ===

impl<'a> Inside<'a> {
    pub(super) fn new(
        subject: &'a Subject<'a>,
        comparator: Comparator,
        literal: &'a Literal,
    ) -> Self {
        Self {
            subject,
            comparator,
            literal,
            nested: MAX_NESTED,
            to_element: false,
        }
    }

    fn asks_presence(&self) -> bool {
        self.comparator == Comparator::Has && self.literal.text.is_star()
    }

    /// The answer about what is not there: absence is known, but nothing else is.
    pub(super) fn absent(&self) -> Truth {
        if self.asks_presence() {
            Truth::False
        } else {
            self.unfit()
        }
    }

    /// The answer about what cannot be compared with the literal. An element
    /// is known not to be the one that is asked for, then.
    fn unfit(&self) -> Truth {
        if self.to_element {
            Truth::False
        } else {
            Truth::Unknown
        }
    }

    fn scalar(&self, held: Held<'_>, rest: &[Segment]) -> Truth {
        if rest.is_empty() {
            self.test(held)
        } else {
            self.absent()
        }
    }

    fn test(&self, held: Held<'_>) -> Truth {
        let comparator = match self.comparator {
            Comparator::Has if self.to_element => Comparator::Equal,
            other => other,
        };
        match self.literal.test(comparator, held) {
            Truth::Unknown => self.unfit(),
            known => known,
        }
    }

    /// Asks the message in an `Any`, which is decoded by `open`.
    pub(super) fn any<M>(
        self,
        type_url: &str,
        open: impl FnOnce() -> Option<M>,
        path: &[Segment],
    ) -> Truth
    where
        M: Deref<Target = DynamicMessage>,
    {
        match path {
            [] if self.asks_presence() => return Truth::True,
            [first, rest @ ..] if &*first.name == TYPE => {
                return if self.asks_presence() && rest.is_empty() {
                    Truth::True
                } else {
                    self.scalar(Held::Text(type_url), rest)
                };
            }
            _ => {}
        }
        let Some(nested) = self.nested.checked_sub(1) else {
            return Truth::Unknown;
        };
        // Nobody knows what is in a type that is not registered.
        open().map_or(Truth::Unknown, |message| {
            Self { nested, ..self }.message(&message, path)
        })
    }

    /// Asks a message.
    pub(super) fn message(self, message: &DynamicMessage, path: &[Segment]) -> Truth {
        let descriptor = message.descriptor();
        match descriptor.full_name() {
            ANY => {
                let type_url = message.get_field_by_number(1);
                let type_url = type_url.as_ref().and_then(|url| url.as_str());
                let open = || self.subject.open(message);
                return self.any(type_url.unwrap_or_default(), open, path);
            }
            "google.protobuf.Struct" => return self.in_struct(message, path),
            "google.protobuf.Value" => return self.in_value(message, path),
            "google.protobuf.ListValue" => {
                let Some(values) = message.get_field_by_number(1) else {
                    return self.absent();
                };
                return self.list(values.as_list().unwrap_or_default(), path);
            }
            _ => {}
        }
        let [first, rest @ ..] = path else {
            return self.whole(message, &descriptor);
        };
        let Some(field) = field(&descriptor, &first.name) else {
            return self.absent();
        };
        if field.is_map() {
            let value = message.get_field(&field);
            return self.map(&value, rest, |value, rest| {
                self.value(value, &value_kind(&field), rest)
            });
        }
        if field.is_list() {
            let value = message.get_field(&field);
            return self.repeated(
                value.as_list().unwrap_or_default(),
                rest,
                |inside, value, rest| inside.value(value, &field.kind(), rest),
            );
        }
        if self.asks_presence() && rest.is_empty() {
            return message.has_field(&field).into();
        }
        if field.supports_presence() && !message.has_field(&field) {
            return self.absent();
        }
        self.value(&message.get_field(&field), &field.kind(), rest)
    }

    /// Asks a message as a whole: those that stand for one value, or whether a
    /// field is there.
    fn whole(self, message: &DynamicMessage, descriptor: &MessageDescriptor) -> Truth {
        if self.asks_presence() {
            return Truth::True;
        }
        if let Some(truth) = self.one_value(message, descriptor) {
            return truth;
        }
        // `m:foo` asks whether there is a foo in m.
        match (self.comparator, self.literal.text.exact()) {
            (Comparator::Has, Some(name)) => field(descriptor, name)
                .is_some_and(|field| message.has_field(&field))
                .into(),
            _ => self.unfit(),
        }
    }

    /// Asks a message of `google.protobuf` that stands for one value.
    fn one_value(self, message: &DynamicMessage, descriptor: &MessageDescriptor) -> Option<Truth> {
        let (scalar, first) = (
            well_known_scalar(descriptor)?,
            message.get_field_by_number(1)?,
        );
        let nanos = || {
            let rest = message.get_field_by_number(2)?;
            Some(nanoseconds(first.as_i64()?, rest.as_i32()?))
        };
        Some(self.test(match scalar {
            Scalar::Time => Held::Time(nanos()?),
            Scalar::Duration => Held::Duration(nanos()?),
            _ => held(&first),
        }))
    }

    fn value(self, value: &Value, kind: &Kind, rest: &[Segment]) -> Truth {
        let held = match value {
            Value::Message(message) => return self.message(message, rest),
            Value::EnumNumber(number) => {
                let known = kind.as_enum().and_then(|kind| kind.get_value(*number));
                return match known {
                    Some(known) => self.scalar(Held::Enum(known.name()), rest),
                    None => self.scalar(Held::Opaque, rest),
                };
            }
            other => held(other),
        };
        if self.asks_presence() && rest.is_empty() {
            return Truth::True;
        }
        self.scalar(held, rest)
    }

    /// Asks a map: for a key, or for what stands under one.
    fn map(
        self,
        map: &Value,
        path: &[Segment],
        ask: impl FnOnce(&Value, &[Segment]) -> Truth,
    ) -> Truth {
        let Some(map) = map.as_map() else {
            return Truth::Unknown;
        };
        let [key, rest @ ..] = path else {
            return match self.comparator {
                Comparator::Has if self.asks_presence() => (!map.is_empty()).into(),
                Comparator::Has => {
                    let mut keys = map.keys().map(key_text);
                    keys.any(|key| self.literal.text.is(&key)).into()
                }
                _ => Truth::Unknown,
            };
        };
        let found = map
            .iter()
            .find(|(found, _)| *key_text(found) == *key.name)
            .map(|(_, value)| value);
        match found {
            None => self.absent(),
            Some(_) if rest.is_empty() && self.asks_presence() => Truth::True,
            Some(value) => ask(value, rest),
        }
    }

    /// Asks whether a repeated field has an element for which the rest is true.
    /// That is known, unless what is in an element is not.
    fn repeated<T>(
        self,
        elements: &[T],
        rest: &[Segment],
        ask: impl Fn(Self, &T, &[Segment]) -> Truth,
    ) -> Truth {
        if self.comparator != Comparator::Has {
            return self.unfit();
        }
        if rest.is_empty() && self.asks_presence() {
            return (!elements.is_empty()).into();
        }
        let to_element = Self {
            to_element: true,
            ..self
        };
        let mut truth = Truth::False;
        for element in elements {
            truth = truth.max(ask(to_element, element, rest));
            if truth == Truth::True {
                break;
            }
        }
        truth
    }

    // JSON in a message: `google.protobuf.Struct` and what is in it.

    fn in_struct(self, message: &DynamicMessage, path: &[Segment]) -> Truth {
        if path.is_empty() && self.asks_presence() {
            return Truth::True;
        }
        let Some(fields) = message.get_field_by_number(1) else {
            return self.absent();
        };
        self.map(&fields, path, |value, rest| match value.as_message() {
            Some(value) => self.in_value(value, rest),
            None => Truth::Unknown,
        })
    }

    fn in_value(self, message: &DynamicMessage, path: &[Segment]) -> Truth {
        let Some((_, value)) = message.fields().next() else {
            return self.absent();
        };
        match value {
            Value::Message(inner) => self.message(inner, path),
            _ if path.is_empty() && self.asks_presence() => Truth::True,
            Value::EnumNumber(_) => self.scalar(Held::Null, path),
            Value::F64(number) => self.scalar(Held::Float(*number), path),
            Value::String(text) => self.scalar(Held::Text(text), path),
            Value::Bool(value) => self.scalar(Held::Bool(*value), path),
            _ => Truth::Unknown,
        }
    }

    fn list(self, values: &[Value], path: &[Segment]) -> Truth {
        self.repeated(values, path, |inside, value, rest| {
            match value.as_message() {
                Some(value) => inside.in_value(value, rest),
                None => Truth::Unknown,
            }
        })
    }
}

/// The value of a field that is neither a message nor an enum.
fn held(value: &Value) -> Held<'_> {
    match value {
        Value::Bool(value) => Held::Bool(*value),
        Value::I32(value) => Held::Integer((*value).into()),
        Value::I64(value) => Held::Integer((*value).into()),
        Value::U32(value) => Held::Integer((*value).into()),
        Value::U64(value) => Held::Integer((*value).into()),
        Value::F32(value) => Held::Single(*value),
        Value::F64(value) => Held::Float(*value),
        Value::String(value) => Held::Text(value),
        Value::Bytes(_)
        | Value::List(_)
        | Value::Map(_)
        | Value::EnumNumber(_)
        | Value::Message(_) => Held::Opaque,
    }
}
