//! Fields inside messages: what a path finds in a decoded message of any type,
//! and whether a path makes sense for a type. The operation's own fields are in
//! `eval`.

use std::{borrow::Cow, fmt::Display};

use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    ReflectMessage, Value,
};

use super::{
    filter::{Comparator, Segment, Text},
    literal::{Held, Literal, Misfit, Scalar, Truth, nanoseconds},
};
use crate::{operation::wire::AnyRef, types::Types};

/// How many `Any`s inside each other are opened; what is deeper is not known.
const MAX_NESTED: usize = 8;

/// The field of an `Any` that says what is in it.
pub(crate) const TYPE: &str = "@type";

/// A question to a message: what is asked about the field that a path leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inside<'a> {
    pub(crate) types: &'a Types,
    pub(crate) comparator: Comparator,
    pub(crate) literal: &'a Literal,
    /// How many more `Any`s may be opened.
    nested: usize,
    /// Whether the question is to an element of a repeated field, where a text
    /// must be the value, not only stand in it.
    to_element: bool,
}

// === impl Inside ===

impl<'a> Inside<'a> {
    pub(crate) fn new(types: &'a Types, comparator: Comparator, literal: &'a Literal) -> Self {
        Self {
            types,
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
    pub(crate) fn absent(&self) -> Truth {
        if self.asks_presence() {
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
        self.literal.test(comparator, held)
    }

    /// Asks the message in an `Any`, which `decode` opens.
    pub(crate) fn any<'m>(
        self,
        type_url: &str,
        decode: impl FnOnce() -> Option<Cow<'m, DynamicMessage>>,
        path: &[Segment],
    ) -> Truth {
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
        decode().map_or(Truth::Unknown, |message| {
            Self { nested, ..self }.message(&message, path)
        })
    }

    /// Asks a message.
    pub(crate) fn message(self, message: &DynamicMessage, path: &[Segment]) -> Truth {
        let descriptor = message.descriptor();
        match descriptor.full_name() {
            "google.protobuf.Any" => {
                let (type_url, value) = parts_of_any(message);
                let any = AnyRef {
                    type_url: &type_url,
                    value: &value,
                };
                return self.any(&type_url, || decode(self.types, any).map(Cow::Owned), path);
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
        if let Some(held) = well_known(message, descriptor, &mut String::new()) {
            return self.test(held);
        }
        // `m:foo` asks whether there is a foo in m.
        match (self.comparator, self.literal.text.exact()) {
            (Comparator::Has, Some(name)) => field(descriptor, name)
                .is_some_and(|field| message.has_field(&field))
                .into(),
            _ => Truth::Unknown,
        }
    }

    fn value(self, value: &Value, kind: &Kind, rest: &[Segment]) -> Truth {
        let held = match value {
            Value::Message(message) => return self.message(message, rest),
            Value::EnumNumber(number) => {
                let value = kind.as_enum().and_then(|kind| kind.get_value(*number));
                return match value {
                    Some(value) => self.scalar(Held::Enum(value.name()), rest),
                    None => self.scalar(Held::Opaque, rest),
                };
            }
            Value::Bool(value) => Held::Bool(*value),
            Value::I32(value) => Held::Integer((*value).into()),
            Value::I64(value) => Held::Integer((*value).into()),
            Value::U32(value) => Held::Integer((*value).into()),
            Value::U64(value) => Held::Integer((*value).into()),
            Value::F32(value) => Held::Single(*value),
            Value::F64(value) => Held::Float(*value),
            Value::String(value) => Held::Text(value),
            Value::Bytes(_) | Value::List(_) | Value::Map(_) => Held::Opaque,
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

    /// Asks whether a repeated field has an element for which the rest is true;
    /// that is always known.
    fn repeated<T>(
        self,
        elements: &[T],
        rest: &[Segment],
        ask: impl Fn(Self, &T, &[Segment]) -> Truth,
    ) -> Truth {
        if self.comparator != Comparator::Has {
            return Truth::Unknown;
        }
        if rest.is_empty() && self.asks_presence() {
            return (!elements.is_empty()).into();
        }
        let to_element = Self {
            to_element: true,
            ..self
        };
        let mut elements = elements.iter();
        elements
            .any(|element| ask(to_element, element, rest) == Truth::True)
            .into()
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

// === Types ===

/// Whether a path makes sense for a message of this type, and the literal for
/// the field that it leads to.
pub(crate) fn check(
    descriptor: &MessageDescriptor,
    path: &[Segment],
    comparator: Comparator,
    literal: &Literal,
) -> Result<(), Misfit> {
    let is_open = matches!(
        descriptor.full_name(),
        "google.protobuf.Any"
            | "google.protobuf.Struct"
            | "google.protobuf.Value"
            | "google.protobuf.ListValue"
    );
    if is_open {
        return Ok(());
    }
    let [first, rest @ ..] = path else {
        return match (well_known_scalar(descriptor), comparator) {
            (Some(scalar), _) => literal.check(comparator, &scalar),
            (None, Comparator::Has) => Ok(()),
            (None, _) => Err(Misfit::Comparator("`:`, for it is a message")),
        };
    };
    let Some(field) = field(descriptor, &first.name) else {
        return Err(Misfit::NoField(path.len()));
    };
    if field.is_map() {
        return match rest {
            [] if comparator == Comparator::Has => Ok(()),
            [] => Err(Misfit::Comparator("`:`, for it is a map")),
            [_, rest @ ..] => check_kind(&value_kind(&field), rest, comparator, literal),
        };
    }
    if field.is_list() {
        if comparator != Comparator::Has {
            return Err(Misfit::Comparator("`:`, for it is a repeated field"));
        }
        if rest.is_empty() && literal.text.is_star() {
            return Ok(());
        }
    }
    check_kind(&field.kind(), rest, comparator, literal)
}

fn check_kind(
    kind: &Kind,
    rest: &[Segment],
    comparator: Comparator,
    literal: &Literal,
) -> Result<(), Misfit> {
    let scalar = match kind {
        Kind::Message(inner) => return check(inner, rest, comparator, literal),
        Kind::Enum(kind) => Scalar::Enum(enum_names(kind)),
        Kind::String => Scalar::Text,
        Kind::Bool => Scalar::Bool,
        Kind::Double | Kind::Float => Scalar::Float,
        Kind::Bytes => Scalar::Opaque,
        _ => Scalar::Integer,
    };
    if !rest.is_empty() {
        return Err(Misfit::NoField(rest.len()));
    }
    literal.check(comparator, &scalar)
}

fn enum_names(kind: &EnumDescriptor) -> Vec<String> {
    kind.values().map(|value| value.name().to_owned()).collect()
}

/// A field by its name, or by the one that it has in JSON.
fn field(descriptor: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    descriptor
        .get_field_by_name(name)
        .or_else(|| descriptor.get_field_by_json_name(name))
}

fn value_kind(map: &FieldDescriptor) -> Kind {
    match map.kind() {
        Kind::Message(entry) => entry.map_entry_value_field().kind(),
        other => other,
    }
}

// === Messages that stand for one value ===

fn well_known<'a>(
    message: &DynamicMessage,
    descriptor: &MessageDescriptor,
    text: &'a mut String,
) -> Option<Held<'a>> {
    let scalar = well_known_scalar(descriptor)?;
    let field = |number| message.get_field_by_number(number);
    let time = || {
        let (seconds, nanos) = (field(1)?.as_i64()?, field(2)?.as_i32()?);
        Some(nanoseconds(seconds, nanos))
    };
    match scalar {
        Scalar::Time => return Some(Held::Time(time()?)),
        Scalar::Duration => return Some(Held::Duration(time()?)),
        _ => {}
    }
    Some(match field(1)?.into_owned() {
        Value::Bool(value) => Held::Bool(value),
        Value::I32(value) => Held::Integer(value.into()),
        Value::I64(value) => Held::Integer(value.into()),
        Value::U32(value) => Held::Integer(value.into()),
        Value::U64(value) => Held::Integer(value.into()),
        Value::F32(value) => Held::Single(value),
        Value::F64(value) => Held::Float(value),
        Value::String(value) => {
            *text = value;
            Held::Text(text)
        }
        _ => Held::Opaque,
    })
}

fn well_known_scalar(descriptor: &MessageDescriptor) -> Option<Scalar> {
    Some(
        match descriptor.full_name().strip_prefix("google.protobuf.")? {
            "Timestamp" => Scalar::Time,
            "Duration" => Scalar::Duration,
            "BoolValue" => Scalar::Bool,
            "StringValue" => Scalar::Text,
            "BytesValue" => Scalar::Opaque,
            "DoubleValue" | "FloatValue" => Scalar::Float,
            "Int32Value" | "Int64Value" | "UInt32Value" | "UInt64Value" => Scalar::Integer,
            _ => return None,
        },
    )
}

fn key_text(key: &MapKey) -> Cow<'_, str> {
    let text = |key: &dyn Display| Cow::Owned(key.to_string());
    match key {
        MapKey::String(key) => Cow::Borrowed(key),
        MapKey::Bool(key) => text(key),
        MapKey::I32(key) => text(key),
        MapKey::I64(key) => text(key),
        MapKey::U32(key) => text(key),
        MapKey::U64(key) => text(key),
    }
}

// === Any ===

/// The message in an `Any`, if its type is registered and its bytes fit it.
pub(crate) fn decode(types: &Types, any: AnyRef<'_>) -> Option<DynamicMessage> {
    types.decode(any.type_url, any.value)
}

fn parts_of_any(message: &DynamicMessage) -> (String, Vec<u8>) {
    let type_url = message.get_field_by_number(1);
    let value = message.get_field_by_number(2);
    (
        type_url
            .and_then(|url| url.as_str().map(str::to_owned))
            .unwrap_or_default(),
        value
            .and_then(|value| value.as_bytes().map(|bytes| bytes.to_vec()))
            .unwrap_or_default(),
    )
}

/// Whether a text stands in any of the texts of a message.
pub(crate) fn says(types: &Types, message: &DynamicMessage, text: &Text) -> bool {
    says_nested(types, message, text, MAX_NESTED)
}

fn says_nested(types: &Types, message: &DynamicMessage, text: &Text, nested: usize) -> bool {
    if message.descriptor().full_name() == "google.protobuf.Any" {
        let (type_url, value) = parts_of_any(message);
        let any = AnyRef {
            type_url: &type_url,
            value: &value,
        };
        let inner = nested.checked_sub(1).zip(decode(types, any));
        return inner.is_some_and(|(nested, inner)| says_nested(types, &inner, text, nested));
    }
    let mut fields = message.fields();
    fields.any(|(_, value)| value_says(types, value, text, nested))
}

fn value_says(types: &Types, value: &Value, text: &Text, nested: usize) -> bool {
    let mut says = |value: &Value| value_says(types, value, text, nested);
    match value {
        Value::String(value) => text.is_in(value),
        Value::Message(message) => says_nested(types, message, text, nested),
        Value::List(values) => values.iter().any(says),
        Value::Map(values) => values.values().any(&mut says),
        _ => false,
    }
}
