//! Messages as ProtoJSON, from their descriptors. What is inside an `Any` is
//! looked up in a pool; which types that has, and JSON back to messages, live
//! elsewhere.
//!
//! prost-reflect has a serializer too. This one exists because that one fails
//! as a whole where one nested `Any` is not known, writes `null` for a NaN in a
//! wrapper and times that are out of range, and follows `Any`s into each other
//! as deep as the stack goes.

use std::{borrow::Cow, collections::BTreeSet};

use base64::{Engine, engine::general_purpose::STANDARD};
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MapKey, ReflectMessage, Value};
use prost_types::{Any, Duration, FieldMask, ListValue, Struct, Timestamp, value::Kind as Json};
use serde_json::{Map, Number, Value as JsonValue, json};

use super::names::{is_special, message_name};

/// How deep objects and lists may be inside an operation. Parsers of JSON
/// refuse depths that they deem hostile; serde_json does from 128 on.
const MAX_DEPTH: usize = 100;

/// The range of a Timestamp: the years 1 to 9999.
const TIMES: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
/// The most seconds of a Duration: 10 000 years.
const LONGEST: u64 = 315_576_000_000;
const NANOS: i32 = 1_000_000_000;

/// Integers that a double holds exactly, and that are written without `.0`.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// How the values of enums are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Enums {
    /// `"RUNNING"`: the usual form.
    #[default]
    Names,
    /// `2`: for who asks for it, as `$alt=json;enum-encoding=int` does.
    Numbers,
}

/// Writes messages as JSON.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    pool: &'a DescriptorPool,
    enums: Enums,
    /// The types that were met and that the pool has not.
    pub(super) unknown: BTreeSet<String>,
}

/// Why a message has no ProtoJSON: a value is out of its range, or too deep.
#[derive(Debug)]
pub(super) struct Unprintable;

type Printed = Result<JsonValue, Unprintable>;

// === impl Writer ===

impl<'a> Writer<'a> {
    pub(super) fn new(pool: &'a DescriptorPool, enums: Enums) -> Self {
        Self {
            pool,
            enums,
            unknown: BTreeSet::new(),
        }
    }

    /// An `Any`; `{"@type": …, "value": "<base64>"}` if its type is not known or
    /// it has no ProtoJSON.
    pub(super) fn any(&mut self, any: &Any, depth: usize) -> JsonValue {
        if any.type_url.is_empty() && any.value.is_empty() {
            return json!({});
        }
        let is_special = is_special(message_name(&any.type_url));
        match self.content(any, depth) {
            Ok(JsonValue::Object(fields)) if !is_special => {
                let mut json = Map::new();
                json.insert("@type".into(), any.type_url.as_str().into());
                json.extend(fields);
                JsonValue::Object(json)
            }
            Ok(value) => json!({ "@type": any.type_url, "value": value }),
            Err(Unprintable) => {
                json!({ "@type": any.type_url, "value": STANDARD.encode(&any.value) })
            }
        }
    }

    /// The message inside an `Any`, without its type.
    pub(super) fn content(&mut self, any: &Any, depth: usize) -> Printed {
        let name = message_name(&any.type_url);
        let Some(descriptor) = self.pool.get_message_by_name(name) else {
            self.unknown.insert(name.to_owned());
            return Err(Unprintable);
        };
        let message = DynamicMessage::decode(descriptor, any.value.as_slice());
        let depth = depth + usize::from(is_special(name));
        self.message(&message.map_err(|_| Unprintable)?, depth)
    }

    fn message(&mut self, message: &DynamicMessage, depth: usize) -> Printed {
        if MAX_DEPTH < depth {
            return Err(Unprintable);
        }
        let descriptor = message.descriptor();
        let name = descriptor.full_name();
        if !is_special(name) {
            return self.fields(message, depth).map(JsonValue::Object);
        }
        match name.trim_start_matches("google.protobuf.") {
            "Any" => Ok(self.any(&known(message)?, depth)),
            "Timestamp" => timestamp(&known(message)?),
            "Duration" => duration(&known(message)?),
            "FieldMask" => field_mask(&known(message)?),
            "Struct" => object(&known(message)?, depth),
            "ListValue" => list(&known(message)?, depth),
            "Value" => value(&known(message)?, depth),
            // What is left are the wrappers, which have one field.
            _ => {
                let field = descriptor.get_field(1).ok_or(Unprintable)?;
                self.value(&message.get_field(&field), &field.kind(), depth)
            }
        }
    }

    fn fields(
        &mut self,
        message: &DynamicMessage,
        depth: usize,
    ) -> Result<Map<String, JsonValue>, Unprintable> {
        let mut json = Map::new();
        for (field, value) in message.fields() {
            let value = self.value(value, &field.kind(), depth + 1)?;
            json.insert(field.json_name().to_owned(), value);
        }
        for (extension, value) in message.extensions() {
            let value = self.value(value, &extension.kind(), depth + 1)?;
            json.insert(extension.json_name().to_owned(), value);
        }
        Ok(json)
    }

    fn value(&mut self, value: &Value, kind: &Kind, depth: usize) -> Printed {
        if MAX_DEPTH < depth {
            return Err(Unprintable);
        }
        Ok(match value {
            Value::Bool(value) => (*value).into(),
            Value::I32(value) => (*value).into(),
            Value::U32(value) => (*value).into(),
            Value::I64(value) => value.to_string().into(),
            Value::U64(value) => value.to_string().into(),
            Value::F32(value) => double(shortest(*value)),
            Value::F64(value) => double(*value),
            Value::String(value) => value.as_str().into(),
            Value::Bytes(value) => STANDARD.encode(value).into(),
            Value::EnumNumber(number) => self.enumeration(*number, kind),
            Value::Message(message) => self.message(message, depth)?,
            Value::List(values) => {
                let values = values
                    .iter()
                    .map(|value| self.value(value, kind, depth + 1));
                JsonValue::Array(values.collect::<Result<_, _>>()?)
            }
            Value::Map(entries) => {
                let kind = kind.as_message().ok_or(Unprintable)?;
                let kind = kind.map_entry_value_field().kind();
                // In an order of its own, so that the same bytes are the same text.
                let mut entries: Vec<(&MapKey, &Value)> = entries.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                let mut json = Map::new();
                for (key, value) in entries {
                    json.insert(
                        key_text(key).into_owned(),
                        self.value(value, &kind, depth + 1)?,
                    );
                }
                JsonValue::Object(json)
            }
        })
    }

    fn enumeration(&self, number: i32, kind: &Kind) -> JsonValue {
        let descriptor = kind.as_enum();
        if descriptor.is_some_and(|kind| kind.full_name() == "google.protobuf.NullValue") {
            return JsonValue::Null;
        }
        match descriptor.and_then(|kind| kind.get_value(number)) {
            Some(value) if self.enums == Enums::Names => value.name().into(),
            Some(_) | None => number.into(),
        }
    }
}

/// A message of `google.protobuf` as the generated type that it is.
fn known<M: prost::Message + Default>(message: &DynamicMessage) -> Result<M, Unprintable> {
    message.transcode_to().map_err(|_| Unprintable)
}

/// The key of a map as it is written in JSON.
pub(crate) fn key_text(key: &MapKey) -> Cow<'_, str> {
    let text = |key: &dyn ToString| Cow::Owned(key.to_string());
    match key {
        MapKey::String(key) => Cow::Borrowed(key),
        MapKey::Bool(key) => text(key),
        MapKey::I32(key) => text(key),
        MapKey::I64(key) => text(key),
        MapKey::U32(key) => text(key),
        MapKey::U64(key) => text(key),
    }
}

/// The double with the shortest text that is this float: 0.1, and not
/// 0.10000000149011612. That of the largest float is larger than it, which
/// parsers refuse.
fn shortest(value: f32) -> f64 {
    let short = value.to_string().parse().ok();
    short
        .filter(|short: &f64| short.abs() <= f32::MAX.into())
        .unwrap_or(value.into())
}

fn double(value: f64) -> JsonValue {
    match number(value) {
        Some(number) => JsonValue::Number(number),
        None if value.is_nan() => "NaN".into(),
        None if value < 0.0 => "-Infinity".into(),
        None => "Infinity".into(),
    }
}

/// A finite number. An integer is one in JSON too: `1`, not `1.0`.
fn number(value: f64) -> Option<Number> {
    let is_integer = value.fract() == 0.0 && value.abs() < EXACT;
    if is_integer && !(value == 0.0 && value.is_sign_negative()) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "it is an integer, and in range"
        )]
        return Some((value as i64).into());
    }
    Number::from_f64(value)
}

fn timestamp(time: &Timestamp) -> Printed {
    if TIMES.contains(&time.seconds) && (0..NANOS).contains(&time.nanos) {
        return Ok(time.to_string().into());
    }
    Err(Unprintable)
}

fn duration(duration: &Duration) -> Printed {
    let (seconds, nanos) = (duration.seconds.signum(), duration.nanos.signum());
    let has_one_sign = i64::from(nanos) * seconds != -1;
    if duration.seconds.unsigned_abs() <= LONGEST && duration.nanos.abs() < NANOS && has_one_sign {
        return Ok(duration.to_string().into());
    }
    Err(Unprintable)
}

/// `fooBar,baz.quxQuux`; nothing for a path that would not come back as it was.
fn field_mask(mask: &FieldMask) -> Printed {
    let paths: Option<Vec<String>> = mask.paths.iter().map(|path| camel(path)).collect();
    Ok(paths.ok_or(Unprintable)?.join(",").into())
}

fn camel(path: &str) -> Option<String> {
    let mut camel = String::new();
    let mut characters = path.chars();
    while let Some(character) = characters.next() {
        match character {
            '_' => {
                let next = characters.next().filter(char::is_ascii_lowercase)?;
                camel.push(next.to_ascii_uppercase());
            }
            ',' => return None,
            character if character.is_ascii_uppercase() => return None,
            character => camel.push(character),
        }
    }
    (!camel.is_empty()).then_some(camel)
}

fn object(fields: &Struct, depth: usize) -> Printed {
    let mut json = Map::new();
    for (key, field) in &fields.fields {
        json.insert(key.clone(), value(field, depth + 1)?);
    }
    Ok(JsonValue::Object(json))
}

fn list(items: &ListValue, depth: usize) -> Printed {
    let items = items.values.iter().map(|item| value(item, depth + 1));
    Ok(JsonValue::Array(items.collect::<Result<_, _>>()?))
}

fn value(json: &prost_types::Value, depth: usize) -> Printed {
    if MAX_DEPTH < depth {
        return Err(Unprintable);
    }
    Ok(match &json.kind {
        None | Some(Json::NullValue(_)) => JsonValue::Null,
        Some(Json::BoolValue(value)) => (*value).into(),
        // NaN would have to be a text, and would come back as one.
        Some(Json::NumberValue(value)) => JsonValue::Number(number(*value).ok_or(Unprintable)?),
        Some(Json::StringValue(text)) => text.as_str().into(),
        Some(Json::StructValue(fields)) => object(fields, depth)?,
        Some(Json::ListValue(items)) => list(items, depth)?,
    })
}
