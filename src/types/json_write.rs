//! Converts messages to ProtoJSON.
//!
//! The serializer of prost-reflect is not used: it fails for the whole message if one nested
//! `Any` is unknown, writes `null` for a NaN in a wrapper and for times that are out of
//! range, and overflows the stack on deeply nested `Any`s.

use std::{borrow::Cow, collections::BTreeSet};

use base64::{Engine, engine::general_purpose::STANDARD};
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MapKey, ReflectMessage, Value};
use prost_types::{Any, Duration, FieldMask, ListValue, Struct, Timestamp, value::Kind as Json};
use serde_json::{Map, Number, Value as JsonValue, json};

use super::names::{has_special_json, message_name};

/// The maximum nesting of objects and lists in the JSON of an operation. JSON parsers limit
/// the depth; serde_json rejects 128 levels.
const MAX_JSON_OUTPUT_DEPTH: usize = 100;

/// The range of a `Timestamp`: the years 1 to 9999.
const TIMESTAMP_SECONDS_RANGE: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
/// The maximum of a `Duration`: 10 000 years.
const MAX_DURATION_SECONDS: u64 = 315_576_000_000;
const NANOS_PER_SECOND: i32 = 1_000_000_000;

/// Integers below this are exact in a double and are written without `.0`.
const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_992.0;

/// The representation of enum values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum EnumFormat {
    /// Names, such as `"RUNNING"`.
    #[default]
    Names,
    /// Numbers, such as `2`; requested with `$alt=json;enum-encoding=int`.
    Numbers,
}

/// Converts messages to JSON.
#[derive(Debug)]
pub(super) struct JsonWriter<'a> {
    pool: &'a DescriptorPool,
    enum_format: EnumFormat,
    /// The types that were found in messages and are missing in the pool.
    pub(super) unknown_types: BTreeSet<String>,
}

/// A message has no ProtoJSON: a value is out of range, or nested too deeply.
#[derive(Debug)]
pub(super) struct NotRepresentable;

type JsonResult = Result<JsonValue, NotRepresentable>;

// === impl JsonWriter ===

impl<'a> JsonWriter<'a> {
    pub(super) fn new(pool: &'a DescriptorPool, enum_format: EnumFormat) -> Self {
        Self {
            pool,
            enum_format,
            unknown_types: BTreeSet::new(),
        }
    }

    /// Converts an `Any` that is nested `depth` levels deep. The result is
    /// `{"@type": …, "value": "<base64>"}` if its type is unknown or it has no ProtoJSON.
    pub(super) fn any_to_json(&mut self, any: &Any, depth: usize) -> JsonValue {
        if any.type_url.is_empty() && any.value.is_empty() {
            return json!({});
        }
        let is_special = has_special_json(message_name(&any.type_url));
        match self.content_to_json(any, depth) {
            Ok(JsonValue::Object(fields)) if !is_special => {
                let mut json = Map::new();
                json.insert("@type".into(), any.type_url.as_str().into());
                json.extend(fields);
                JsonValue::Object(json)
            }
            Ok(value) => json!({ "@type": any.type_url, "value": value }),
            Err(NotRepresentable) => {
                json!({ "@type": any.type_url, "value": STANDARD.encode(&any.value) })
            }
        }
    }

    /// Converts the message inside an `Any`, without its type.
    pub(super) fn content_to_json(&mut self, any: &Any, depth: usize) -> JsonResult {
        let name = message_name(&any.type_url);
        let Some(descriptor) = self.pool.get_message_by_name(name) else {
            self.unknown_types.insert(name.to_owned());
            return Err(NotRepresentable);
        };
        let message = DynamicMessage::decode(descriptor, any.value.as_slice());
        let depth = depth + usize::from(has_special_json(name));
        self.message_to_json(&message.map_err(|_| NotRepresentable)?, depth)
    }

    fn message_to_json(&mut self, message: &DynamicMessage, depth: usize) -> JsonResult {
        if depth > MAX_JSON_OUTPUT_DEPTH {
            return Err(NotRepresentable);
        }
        let descriptor = message.descriptor();
        let name = descriptor.full_name();
        if !has_special_json(name) {
            return self.fields_to_json(message, depth).map(JsonValue::Object);
        }
        match name.trim_start_matches("google.protobuf.") {
            "Any" => Ok(self.any_to_json(&transcode(message)?, depth)),
            "Timestamp" => timestamp_to_json(&transcode(message)?),
            "Duration" => duration_to_json(&transcode(message)?),
            "FieldMask" => field_mask_to_json(&transcode(message)?),
            "Struct" => struct_to_json(&transcode(message)?, depth),
            "ListValue" => list_to_json(&transcode(message)?, depth),
            "Value" => struct_value_to_json(&transcode(message)?, depth),
            // The remaining types are wrappers with a single field.
            _ => {
                let field = descriptor.get_field(1).ok_or(NotRepresentable)?;
                self.value_to_json(&message.get_field(&field), &field.kind(), depth)
            }
        }
    }

    fn fields_to_json(
        &mut self,
        message: &DynamicMessage,
        depth: usize,
    ) -> Result<Map<String, JsonValue>, NotRepresentable> {
        let mut json = Map::new();
        for (field, value) in message.fields() {
            let value = self.value_to_json(value, &field.kind(), depth + 1)?;
            json.insert(field.json_name().to_owned(), value);
        }
        for (extension, value) in message.extensions() {
            let value = self.value_to_json(value, &extension.kind(), depth + 1)?;
            json.insert(extension.json_name().to_owned(), value);
        }
        Ok(json)
    }

    fn value_to_json(&mut self, value: &Value, kind: &Kind, depth: usize) -> JsonResult {
        if depth > MAX_JSON_OUTPUT_DEPTH {
            return Err(NotRepresentable);
        }
        Ok(match value {
            Value::Bool(value) => (*value).into(),
            Value::I32(value) => (*value).into(),
            Value::U32(value) => (*value).into(),
            Value::I64(value) => value.to_string().into(),
            Value::U64(value) => value.to_string().into(),
            Value::F32(value) => double_to_json(shortest_f64(*value)),
            Value::F64(value) => double_to_json(*value),
            Value::String(value) => value.as_str().into(),
            Value::Bytes(value) => STANDARD.encode(value).into(),
            Value::EnumNumber(number) => self.enum_to_json(*number, kind),
            Value::Message(message) => self.message_to_json(message, depth)?,
            Value::List(values) => {
                let to_json = |value| self.value_to_json(value, kind, depth + 1);
                JsonValue::Array(values.iter().map(to_json).collect::<Result<_, _>>()?)
            }
            Value::Map(entries) => {
                let kind = kind.as_message().ok_or(NotRepresentable)?;
                let kind = kind.map_entry_value_field().kind();
                // Sorted, so that the output is deterministic.
                let mut entries: Vec<(&MapKey, &Value)> = entries.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                let mut json = Map::new();
                for (key, value) in entries {
                    let value = self.value_to_json(value, &kind, depth + 1)?;
                    json.insert(map_key_text(key).into_owned(), value);
                }
                JsonValue::Object(json)
            }
        })
    }

    fn enum_to_json(&self, number: i32, kind: &Kind) -> JsonValue {
        let descriptor = kind.as_enum();
        if descriptor.is_some_and(|kind| kind.full_name() == "google.protobuf.NullValue") {
            return JsonValue::Null;
        }
        match descriptor.and_then(|kind| kind.get_value(number)) {
            Some(value) if self.enum_format == EnumFormat::Names => value.name().into(),
            Some(_) | None => number.into(),
        }
    }
}

/// Converts a dynamic message to its generated type.
fn transcode<M: prost::Message + Default>(message: &DynamicMessage) -> Result<M, NotRepresentable> {
    message.transcode_to().map_err(|_| NotRepresentable)
}

/// Returns the key of a map as it is written in JSON.
pub(crate) fn map_key_text(key: &MapKey) -> Cow<'_, str> {
    match key {
        MapKey::String(key) => Cow::Borrowed(key),
        MapKey::Bool(key) => key.to_string().into(),
        MapKey::I32(key) => key.to_string().into(),
        MapKey::I64(key) => key.to_string().into(),
        MapKey::U32(key) => key.to_string().into(),
        MapKey::U64(key) => key.to_string().into(),
    }
}

/// Returns the double with the shortest text that parses to this float: 0.1, not
/// 0.10000000149011612. The shortest text of the largest float exceeds the range of a float,
/// which parsers reject, so it is converted exactly.
fn shortest_f64(value: f32) -> f64 {
    let short = value.to_string().parse().ok();
    short
        .filter(|short: &f64| short.abs() <= f32::MAX.into())
        .unwrap_or(value.into())
}

fn double_to_json(value: f64) -> JsonValue {
    match json_number(value) {
        Some(number) => JsonValue::Number(number),
        None if value.is_nan() => "NaN".into(),
        None if value < 0.0 => "-Infinity".into(),
        None => "Infinity".into(),
    }
}

/// Converts a finite number, `None` otherwise. Integers are written as `1`, not `1.0`.
fn json_number(value: f64) -> Option<Number> {
    let is_integer = value.fract() == 0.0 && value.abs() < MAX_EXACT_INTEGER;
    if is_integer && !(value == 0.0 && value.is_sign_negative()) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the value is an integer in range"
        )]
        return Some((value as i64).into());
    }
    Number::from_f64(value)
}

fn timestamp_to_json(time: &Timestamp) -> JsonResult {
    if TIMESTAMP_SECONDS_RANGE.contains(&time.seconds)
        && (0..NANOS_PER_SECOND).contains(&time.nanos)
    {
        return Ok(time.to_string().into());
    }
    Err(NotRepresentable)
}

fn duration_to_json(duration: &Duration) -> JsonResult {
    let (seconds, nanos) = (duration.seconds.signum(), duration.nanos.signum());
    let has_one_sign = i64::from(nanos) * seconds != -1;
    if duration.seconds.unsigned_abs() <= MAX_DURATION_SECONDS
        && duration.nanos.abs() < NANOS_PER_SECOND
        && has_one_sign
    {
        return Ok(duration.to_string().into());
    }
    Err(NotRepresentable)
}

/// Converts to `fooBar,baz.quxQuux`. Fails for a path that would not round-trip.
fn field_mask_to_json(mask: &FieldMask) -> JsonResult {
    let paths: Option<Vec<String>> = mask.paths.iter().map(|path| to_camel_case(path)).collect();
    Ok(paths.ok_or(NotRepresentable)?.join(",").into())
}

fn to_camel_case(path: &str) -> Option<String> {
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

fn struct_to_json(fields: &Struct, depth: usize) -> JsonResult {
    let mut json = Map::new();
    for (key, field) in &fields.fields {
        json.insert(key.clone(), struct_value_to_json(field, depth + 1)?);
    }
    Ok(JsonValue::Object(json))
}

fn list_to_json(items: &ListValue, depth: usize) -> JsonResult {
    let to_json = |item| struct_value_to_json(item, depth + 1);
    items.values.iter().map(to_json).collect()
}

fn struct_value_to_json(json: &prost_types::Value, depth: usize) -> JsonResult {
    if depth > MAX_JSON_OUTPUT_DEPTH {
        return Err(NotRepresentable);
    }
    Ok(match &json.kind {
        None | Some(Json::NullValue(_)) => JsonValue::Null,
        Some(Json::BoolValue(value)) => (*value).into(),
        // NaN would have to be a string, and would be read back as one.
        Some(Json::NumberValue(value)) => {
            JsonValue::Number(json_number(*value).ok_or(NotRepresentable)?)
        }
        Some(Json::StringValue(text)) => text.as_str().into(),
        Some(Json::StructValue(fields)) => struct_to_json(fields, depth)?,
        Some(Json::ListValue(items)) => list_to_json(items, depth)?,
    })
}
