//! Converts ProtoJSON to messages. prost-reflect parses everything except `Any`: it rejects
//! unknown types and the usual form of `Empty`, so that the output of `JsonWriter` could not
//! be read back.

use std::collections::HashMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    Value as Field,
};
use prost_types::Any;
use serde_json::{Map, Value};

use super::names::{has_special_json, message_name};

const ANY_TYPE_NAME: &str = "google.protobuf.Any";

/// Converts JSON to messages.
#[derive(Debug)]
pub(super) struct JsonReader<'a> {
    pool: &'a DescriptorPool,
    /// Whether a message of a type can contain an `Any`, by the full name of the type.
    contains_any_cache: HashMap<String, bool>,
}

// === impl JsonReader ===

impl<'a> JsonReader<'a> {
    pub(super) fn new(pool: &'a DescriptorPool) -> Self {
        Self {
            pool,
            contains_any_cache: HashMap::new(),
        }
    }

    /// Converts JSON to a message; the error describes what is wrong with the JSON.
    pub(super) fn read_message(
        &mut self,
        descriptor: MessageDescriptor,
        json: &Value,
    ) -> Result<DynamicMessage, String> {
        if descriptor.full_name() == ANY_TYPE_NAME {
            let mut message = DynamicMessage::new(descriptor);
            let transcoded = message.transcode_from(&self.read_any(json)?);
            transcoded.map_err(|error| error.to_string())?;
            return Ok(message);
        }
        let fields = match json {
            Value::Object(fields) if self.contains_any(&descriptor) => fields,
            _ => return deserialize_without_any(descriptor, json),
        };
        let (mut plain_fields, mut any_fields) = (Map::new(), Vec::new());
        for (key, value) in fields {
            let field = descriptor.get_field_by_json_name(key);
            let field = field.or_else(|| descriptor.get_field_by_name(key));
            if let Some(field) = field
                && !value.is_null()
                && let Kind::Message(kind) = field.kind()
                && self.contains_any(&kind)
            {
                any_fields.push((field, value));
            } else {
                plain_fields.insert(key.clone(), value.clone());
            }
        }
        let mut message = deserialize_without_any(descriptor, &Value::Object(plain_fields))?;
        for (field, value) in any_fields {
            if let Some(oneof) = field.containing_oneof()
                && oneof.fields().any(|other| message.has_field(&other))
            {
                let name = oneof.name();
                return Err(format!("multiple fields provided for oneof '{name}'"));
            }
            let value = self.read_field(&field, value);
            let value = value.map_err(|error| format!("{}: {error}", field.json_name()))?;
            message.set_field(&field, value);
        }
        Ok(message)
    }

    fn read_field(&mut self, field: &FieldDescriptor, json: &Value) -> Result<Field, String> {
        let Kind::Message(descriptor) = field.kind() else {
            return Err("expected a message".to_owned());
        };
        if field.is_map() {
            let entries = json.as_object().ok_or("expected a map")?;
            let key_kind = descriptor.map_entry_key_field().kind();
            let Kind::Message(descriptor) = descriptor.map_entry_value_field().kind() else {
                return Err("expected a map of messages".to_owned());
            };
            let mut map = HashMap::new();
            for (key, value) in entries {
                let value = self.read_message(descriptor.clone(), value)?;
                map.insert(parse_map_key(&key_kind, key)?, Field::Message(value));
            }
            return Ok(Field::Map(map));
        }
        if field.is_list() {
            let items = json.as_array().ok_or("expected a list")?;
            let read = |item| {
                self.read_message(descriptor.clone(), item)
                    .map(Field::Message)
            };
            return Ok(Field::List(
                items.iter().map(read).collect::<Result<_, _>>()?,
            ));
        }
        Ok(Field::Message(self.read_message(descriptor, json)?))
    }

    /// Converts a JSON object with `@type` to an `Any`; an empty object is an empty `Any`.
    pub(super) fn read_any(&mut self, json: &Value) -> Result<Any, String> {
        let fields = json.as_object().ok_or("expected an object with @type")?;
        if fields.is_empty() {
            return Ok(Any::default());
        }
        let type_url = fields.get("@type").and_then(Value::as_str);
        let type_url = type_url.ok_or("expected the field '@type'")?;
        let name = message_name(type_url);
        let descriptor = self.pool.get_message_by_name(name);
        let value = if let Some(descriptor) = &descriptor
            && !has_special_json(name)
        {
            let mut fields = fields.clone();
            fields.shift_remove("@type");
            let message = self.read_message(descriptor.clone(), &Value::Object(fields))?;
            message.encode_to_vec()
        } else {
            let value = fields.get("value").ok_or("expected the field 'value'")?;
            if let Some(other) = fields.keys().find(|key| *key != "@type" && *key != "value") {
                return Err(format!("unrecognized field name '{other}'"));
            }
            match descriptor {
                Some(descriptor) => self.read_message(descriptor, value)?.encode_to_vec(),
                None => {
                    let bytes = value.as_str().and_then(|text| STANDARD.decode(text).ok());
                    bytes.ok_or_else(|| {
                        format!("{name:?} is an unknown type, and its value is not base64")
                    })?
                }
            }
        };
        Ok(Any {
            type_url: type_url.to_owned(),
            value,
        })
    }

    fn contains_any(&mut self, descriptor: &MessageDescriptor) -> bool {
        let name = descriptor.full_name();
        if name == ANY_TYPE_NAME {
            return true;
        }
        if let Some(known) = self.contains_any_cache.get(name) {
            return *known;
        }
        // Iterates over all reachable types instead of recursing: types can be cyclic.
        let (mut visited, mut pending) = (Vec::new(), vec![descriptor.clone()]);
        let mut is_found = false;
        while !is_found && let Some(descriptor) = pending.pop() {
            is_found = descriptor.full_name() == ANY_TYPE_NAME;
            if !visited.contains(&descriptor) {
                let fields = descriptor.fields();
                pending.extend(fields.filter_map(|field| field.kind().as_message().cloned()));
                visited.push(descriptor);
            }
        }
        self.contains_any_cache.insert(name.to_owned(), is_found);
        is_found
    }
}

fn deserialize_without_any(
    descriptor: MessageDescriptor,
    json: &Value,
) -> Result<DynamicMessage, String> {
    DynamicMessage::deserialize(descriptor, json).map_err(|error| error.to_string())
}

fn parse_map_key(kind: &Kind, text: &str) -> Result<MapKey, String> {
    let key = match kind {
        Kind::Bool => text.parse().ok().map(MapKey::Bool),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => text.parse().ok().map(MapKey::I32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => text.parse().ok().map(MapKey::I64),
        Kind::Uint32 | Kind::Fixed32 => text.parse().ok().map(MapKey::U32),
        Kind::Uint64 | Kind::Fixed64 => text.parse().ok().map(MapKey::U64),
        _ => Some(MapKey::String(text.to_owned())),
    };
    key.ok_or_else(|| format!("{text:?} is not a valid key of this map"))
}
