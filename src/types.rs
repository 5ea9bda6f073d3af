//! The registry of message types: decodes an `Any` and converts it to and from ProtoJSON.

mod descriptor_set;
mod json_read;
mod json_write;
mod names;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock},
};

use parking_lot::{Mutex, RwLock};
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, FileDescriptor, MessageDescriptor};
use prost_types::Any;
use serde_json::{Map, Value};

pub use self::descriptor_set::InvalidDescriptorSet;
pub(crate) use self::{
    descriptor_set::{DescriptorSet, LoadSummary},
    json_write::{EnumFormat, map_key_text},
    names::message_name,
};
use self::{json_read::JsonReader, json_write::JsonWriter, names::has_special_json};
use crate::proto::{
    FILE_DESCRIPTOR_SET,
    google::{
        longrunning::{Operation, operation::Result as OperationResult},
        rpc::Status,
    },
};

/// Message types by name. Clones share their types.
#[derive(Clone, Debug)]
pub struct TypeRegistry(Arc<RegistryInner>);

#[derive(Debug)]
struct RegistryInner {
    /// The types that are always registered; decoded on first use.
    built_in: &'static LazyLock<DescriptorPool>,
    /// All types, or `None` while there are only the built-in ones.
    pool: RwLock<Option<DescriptorPool>>,
    /// The sets from which `pool` was built. An update holds this lock from start to end;
    /// readers take only the lock of `pool`.
    sets_by_source: Mutex<BTreeMap<TypeSource, Vec<DescriptorSet>>>,
}

/// The source of types. Earlier sources take precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TypeSource {
    /// Added by the program that embeds the registry.
    Program,
    /// The configured descriptor sets.
    Files,
    /// Server reflection of the upstream.
    Reflection,
}

/// Why JSON cannot be converted to a message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    #[error(
        "unknown type {type_name:?}; known are the types of google.protobuf, google.rpc and longrunning.v1, \
        and those of a --descriptor-set"
    )]
    UnknownType { type_name: String },
    #[error("invalid ProtoJSON for {type_name}: {problem}")]
    InvalidJson { type_name: String, problem: String },
    #[error("JSON for {type_name} is nested too deeply: at most {MAX_JSON_INPUT_DEPTH} levels")]
    TooDeep { type_name: String },
}

static BUILT_IN_POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let mut pool = DescriptorPool::global();
    pool.decode_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .expect("the generated descriptor set is valid");
    pool
});

/// The maximum nesting of JSON input. Protobuf decoders reject more than 100 levels, and a
/// `Struct` needs three of them for each level of JSON.
const MAX_JSON_INPUT_DEPTH: usize = 32;

impl TypeRegistry {
    /// Creates a registry of the types of `google.protobuf`, `google.rpc` and `longrunning`.
    pub fn built_in() -> Self {
        Self::with_built_in(&BUILT_IN_POOL)
    }

    /// Returns a pool of the built-in types and of these encoded descriptor sets. Panics if
    /// a set is invalid.
    #[cfg(feature = "server")]
    pub(crate) fn built_in_pool_with(sets: &[&[u8]]) -> DescriptorPool {
        let mut pool = BUILT_IN_POOL.clone();
        for set in sets {
            pool.decode_file_descriptor_set(*set)
                .expect("the descriptor set of a dependency is valid");
        }
        pool
    }

    /// Creates a registry with these built-in types.
    pub(crate) fn with_built_in(built_in: &'static LazyLock<DescriptorPool>) -> Self {
        Self(Arc::new(RegistryInner {
            built_in,
            pool: RwLock::default(),
            sets_by_source: Mutex::default(),
        }))
    }

    /// Adds the types of an encoded `google.protobuf.FileDescriptorSet`, such as the one
    /// that a service registers for reflection. Built-in files take precedence over copies
    /// in the set.
    ///
    /// # Errors
    /// [`InvalidDescriptorSet`] if the bytes are no descriptor set, conflict with registered
    /// types, or import a missing file. The registry is then unchanged.
    pub fn add_descriptor_set(&self, encoded: &[u8]) -> Result<(), InvalidDescriptorSet> {
        let set = DescriptorSet::decode("the program".to_owned(), encoded)?;
        self.update_source(TypeSource::Program, |sets| sets.push(set))
            .map(drop)
    }

    /// Replaces the sets of a source, and returns how many types the new ones add. Types
    /// from reflection that conflict with them are dropped: a change of both sources arrives
    /// one by one, and reflection can be requested again.
    ///
    /// # Errors
    /// [`InvalidDescriptorSet`] if the new sets are rejected; the registry is then unchanged.
    pub(crate) fn replace_source(
        &self,
        source: TypeSource,
        sets: Vec<DescriptorSet>,
    ) -> Result<LoadSummary, InvalidDescriptorSet> {
        self.update_source(source, |current| *current = sets)
    }

    /// Returns an independent registry of the sources up to and including this one.
    pub(crate) fn up_to(&self, source: TypeSource) -> Self {
        let mut sets_by_source = self.0.sets_by_source.lock().clone();
        sets_by_source.retain(|other, _| *other <= source);
        let mut pool = DescriptorPool::clone(self.0.built_in);
        for sets in sets_by_source.values() {
            // Cannot fail: the same sets are part of the pool of this registry.
            let _ = descriptor_set::add_sets(&mut pool, sets);
        }
        Self(Arc::new(RegistryInner {
            built_in: self.0.built_in,
            pool: RwLock::new(Some(pool)),
            sets_by_source: Mutex::new(sets_by_source),
        }))
    }

    fn update_source(
        &self,
        source: TypeSource,
        update: impl FnOnce(&mut Vec<DescriptorSet>),
    ) -> Result<LoadSummary, InvalidDescriptorSet> {
        let mut sets_by_source = self.0.sets_by_source.lock();
        let mut next = sets_by_source.clone();
        update(next.entry(source).or_default());
        let mut pool = DescriptorPool::clone(self.0.built_in);
        let mut loaded = LoadSummary::default();
        for (current_source, sets) in &next {
            let previous_pool = pool.clone();
            match descriptor_set::add_sets(&mut pool, sets) {
                Ok(added) if *current_source == source => loaded = added,
                Ok(_) => {}
                Err(error)
                    if *current_source == TypeSource::Reflection
                        && source != TypeSource::Reflection =>
                {
                    pool = previous_pool;
                    loaded.dropped_reflection = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        if loaded.dropped_reflection.is_some() {
            next.remove(&TypeSource::Reflection);
        }
        *self.0.pool.write() = Some(pool);
        *sets_by_source = next;
        Ok(loaded)
    }

    /// Decodes the message inside an `Any`; `None` if its type is unknown or its bytes do
    /// not fit the type.
    pub(crate) fn decode(&self, type_url: &str, value: &[u8]) -> Option<DynamicMessage> {
        let descriptor = self.descriptor(message_name(type_url))?;
        DynamicMessage::decode(descriptor, value).ok()
    }

    /// Returns the type with this full name, such as `google.rpc.Status`.
    pub(crate) fn descriptor(&self, name: &str) -> Option<MessageDescriptor> {
        self.with_pool(|pool| pool.get_message_by_name(name))
    }

    /// Returns the `.proto` file with this name.
    pub(crate) fn file(&self, name: &str) -> Option<FileDescriptor> {
        self.with_pool(|pool| pool.get_file_by_name(name))
    }

    /// Returns the full names of the unknown types in an operation.
    pub(crate) fn unknown_types(&self, operation: &Operation) -> BTreeSet<String> {
        let pool = self.pool();
        let mut writer = JsonWriter::new(&pool, EnumFormat::Names);
        let details = match &operation.result {
            Some(OperationResult::Response(response)) => std::slice::from_ref(response),
            Some(OperationResult::Error(error)) => &error.details,
            None => &[],
        };
        for any in operation.metadata.iter().chain(details) {
            writer.any_to_json(any, 0);
        }
        writer.unknown_types
    }

    /// Converts an operation to ProtoJSON. Fields are in the order of their numbers; `done`
    /// is present even if it is false.
    pub(crate) fn operation_to_json(
        &self,
        operation: &Operation,
        enum_format: EnumFormat,
    ) -> Value {
        let pool = self.pool();
        let mut writer = JsonWriter::new(&pool, enum_format);
        let mut json = Map::new();
        json.insert("name".into(), operation.name.as_str().into());
        if let Some(metadata) = &operation.metadata {
            json.insert("metadata".into(), writer.any_to_json(metadata, 1));
        }
        json.insert("done".into(), operation.done.into());
        match &operation.result {
            Some(OperationResult::Response(response)) => {
                json.insert("response".into(), writer.any_to_json(response, 1));
            }
            Some(OperationResult::Error(error)) => {
                json.insert("error".into(), status_to_json(&mut writer, error));
            }
            None => {}
        }
        Value::Object(json)
    }

    /// Converts an `Any` to ProtoJSON. The result is `{"@type": …, "value": "<base64>"}` if
    /// its type is unknown, its bytes do not fit the type, or a value has no ProtoJSON, such
    /// as a time that is out of range.
    pub(crate) fn any_to_json(&self, any: &Any) -> Value {
        JsonWriter::new(&self.pool(), EnumFormat::Names).any_to_json(any, 0)
    }

    /// Converts an `Any` to JSON without the type if it is a value type of `google.protobuf`,
    /// such as `Struct` or `StringValue`, else as [`TypeRegistry::any_to_json`].
    pub(crate) fn to_plain_json(&self, any: &Any) -> Value {
        let name = message_name(&any.type_url);
        let is_value =
            has_special_json(name) && (name.ends_with("Value") || name.ends_with("Struct"));
        let pool = self.pool();
        let mut writer = JsonWriter::new(&pool, EnumFormat::Names);
        if is_value && let Ok(plain) = writer.content_to_json(any, 0) {
            return plain;
        }
        writer.any_to_json(any, 0)
    }

    /// Converts ProtoJSON to a message of this type.
    pub(crate) fn pack(&self, name: &str, json: &Value) -> Result<Any, PackError> {
        let type_name = || name.to_owned();
        let Some(descriptor) = self.descriptor(name) else {
            return Err(PackError::UnknownType {
                type_name: type_name(),
            });
        };
        if nesting_depth(json) > MAX_JSON_INPUT_DEPTH {
            return Err(PackError::TooDeep {
                type_name: type_name(),
            });
        }
        let message = JsonReader::new(&self.pool()).read_message(descriptor, json);
        let message = message.map_err(|problem| PackError::InvalidJson {
            type_name: type_name(),
            problem,
        })?;
        Ok(Any {
            type_url: format!("type.googleapis.com/{name}"),
            value: message.encode_to_vec(),
        })
    }

    /// Converts the output of a program: a JSON object with the `@type` of a known type to a
    /// message of that type, any other JSON object to a `google.protobuf.Struct`, and other
    /// text to a `StringValue`.
    pub(crate) fn parse_output(&self, text: &str) -> Any {
        let is_object = text.trim_start().starts_with('{');
        let object = is_object.then(|| serde_json::from_str(text).ok()).flatten();
        let packed = object.and_then(|json: Value| {
            let type_url = json.get("@type").and_then(Value::as_str);
            let has_known_type = type_url.is_some_and(|url| {
                url.contains('/') && self.descriptor(message_name(url)).is_some()
            });
            let is_typed_message = has_known_type && nesting_depth(&json) <= MAX_JSON_INPUT_DEPTH;
            let read_any = || JsonReader::new(&self.pool()).read_any(&json).ok();
            let pack_struct = || self.pack("google.protobuf.Struct", &json).ok();
            is_typed_message
                .then(read_any)
                .flatten()
                .or_else(pack_struct)
        });
        packed.unwrap_or_else(|| Any {
            type_url: String::type_url(),
            value: text.to_owned().encode_to_vec(),
        })
    }

    /// Returns a snapshot of the registered types.
    pub(crate) fn pool(&self) -> DescriptorPool {
        self.with_pool(DescriptorPool::clone)
    }

    fn with_pool<T>(&self, read: impl FnOnce(&DescriptorPool) -> T) -> T {
        read(self.0.pool.read().as_ref().unwrap_or(self.0.built_in))
    }

    /// Decodes the message inside an `Any`; `None` if it is missing, of another type, or
    /// malformed.
    pub(crate) fn unpack<M: Name + Default>(any: Option<&Any>) -> Option<M> {
        let any = any?;
        if message_name(&any.type_url) != M::full_name() {
            return None;
        }
        M::decode(any.value.as_slice()).ok()
    }
}

fn status_to_json(writer: &mut JsonWriter<'_>, error: &Status) -> Value {
    let mut json = Map::new();
    json.insert("code".into(), error.code.into());
    if !error.message.is_empty() {
        json.insert("message".into(), error.message.as_str().into());
    }
    if !error.details.is_empty() {
        let to_json = |detail| writer.any_to_json(detail, 3);
        let details = error.details.iter().map(to_json).collect();
        json.insert("details".into(), details);
    }
    Value::Object(json)
}

fn nesting_depth(json: &Value) -> usize {
    match json {
        Value::Array(items) => 1 + items.iter().map(nesting_depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(nesting_depth).max().unwrap_or(0),
        _ => 0,
    }
}
