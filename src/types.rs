//! The registry of message types: what is inside an `Any`, as ProtoJSON, and
//! back. How JSON is written lives in `json`, how it is read in `parse`, what a
//! descriptor set must be like in `sets`. Where sets come from and when they
//! are read again is the affair of `server` and `cli`.

mod json;
mod names;
mod parse;
mod sets;
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

pub use self::sets::InvalidTypes;
use self::{
    json::Writer,
    names::{is_special, message_name},
    parse::Reader,
};
pub(crate) use self::{
    json::{Enums, key_text},
    sets::{DescriptorSet, Loaded},
};
use crate::proto::{
    FILE_DESCRIPTOR_SET,
    google::{
        longrunning::{Operation, operation::Result as OperationResult},
        rpc::Status,
    },
};

/// Message types by name. Clones are handles to the same types: what is added
/// through one is known to all.
#[derive(Clone, Debug)]
pub struct Types(Arc<Registry>);

#[derive(Debug)]
struct Registry {
    /// The types that are always there, made when somebody asks for the first one.
    built_in: &'static LazyLock<DescriptorPool>,
    /// None while there are no others.
    pool: RwLock<Option<DescriptorPool>>,
    /// What the pool was made of, beside the built-in types. Who changes the
    /// types holds this lock all along; who reads them never waits for it.
    layers: Mutex<BTreeMap<Layer, Vec<DescriptorSet>>>,
}

/// Where types are from. What comes first wins over what comes later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layer {
    /// The program that the registry is part of.
    Program,
    /// The descriptor sets that somebody named.
    Files,
    /// The reflection of another server.
    Reflection,
}

/// Why a JSON value is not the message that it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    #[error(
        "{0:?} is not a known type; there are those of google.protobuf, google.rpc and longrunning.v1, \
        and those of a --descriptor-set"
    )]
    Unknown(String),
    #[error("it is not the ProtoJSON of {0}: {1}")]
    Unfit(String, String),
    #[error("it is nested too deeply for a {0}: at most {MAX_DEPTH} levels")]
    Deep(String),
}

static BUILT_IN: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let mut pool = DescriptorPool::global();
    pool.decode_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .expect("the descriptors are our own");
    pool
});

/// How deep a JSON value may be. Protobuf refuses what is nested more than 100
/// levels, and a Struct has three of them for each one of JSON.
const MAX_DEPTH: usize = 32;

impl Types {
    /// The types of `google.protobuf`, `google.rpc` and `longrunning`.
    pub fn built_in() -> Self {
        Self::above(&BUILT_IN)
    }

    /// The built-in types and those of these encoded descriptor sets, for a pool
    /// that lives as long as the program.
    #[cfg(feature = "server")]
    pub(crate) fn built_in_with(sets: &[&[u8]]) -> DescriptorPool {
        let mut pool = BUILT_IN.clone();
        for set in sets {
            pool.decode_file_descriptor_set(*set)
                .expect("they are those of a dependency");
        }
        pool
    }

    /// A registry whose built-in types are these.
    pub(crate) fn above(built_in: &'static LazyLock<DescriptorPool>) -> Self {
        Self(Arc::new(Registry {
            built_in,
            pool: RwLock::default(),
            layers: Mutex::default(),
        }))
    }

    /// Adds the types of an encoded `google.protobuf.FileDescriptorSet`, such
    /// as the one that a service gives to its reflection. Built-in files that
    /// are in it too stay as they are.
    ///
    /// # Errors
    /// [`InvalidTypes`] if it is something else, contradicts what is there, or
    /// imports a file that it does not have. Nothing is added then.
    pub fn add_descriptor_set(&self, encoded: &[u8]) -> Result<(), InvalidTypes> {
        let set = DescriptorSet::decode("the program".to_owned(), encoded)?;
        self.change(Layer::Program, |sets| sets.push(set)).map(drop)
    }

    /// Takes these sets for those that the layer has; the old ones stay if
    /// the new ones are refused. What reflection told before is left out if it
    /// does not fit them: a change on both sides comes here one by one, and
    /// the other server can be asked again. Returns how much the layer adds.
    pub(crate) fn replace(
        &self,
        layer: Layer,
        sets: Vec<DescriptorSet>,
    ) -> Result<Loaded, InvalidTypes> {
        self.change(layer, |old| *old = sets)
    }

    /// A registry of its own, with what the layers down to this one have.
    pub(crate) fn down_to(&self, layer: Layer) -> Self {
        let mut layers = self.0.layers.lock().clone();
        layers.retain(|each, _| *each <= layer);
        let mut pool = DescriptorPool::clone(self.0.built_in);
        for sets in layers.values() {
            // They are in the pool of this registry, so that they agree.
            let _ = sets::add(&mut pool, sets);
        }
        Self(Arc::new(Registry {
            built_in: self.0.built_in,
            pool: RwLock::new(Some(pool)),
            layers: Mutex::new(layers),
        }))
    }

    fn change(
        &self,
        layer: Layer,
        change: impl FnOnce(&mut Vec<DescriptorSet>),
    ) -> Result<Loaded, InvalidTypes> {
        let mut layers = self.0.layers.lock();
        let mut next = layers.clone();
        change(next.entry(layer).or_default());
        let mut pool = DescriptorPool::clone(self.0.built_in);
        let mut loaded = Loaded::default();
        for (each, sets) in &next {
            let before = pool.clone();
            match sets::add(&mut pool, sets) {
                Ok(added) if *each == layer => loaded = added,
                Ok(_) => {}
                Err(error) if *each == Layer::Reflection && layer != Layer::Reflection => {
                    pool = before;
                    loaded.left_out = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        if loaded.left_out.is_some() {
            next.remove(&Layer::Reflection);
        }
        *self.0.pool.write() = Some(pool);
        *layers = next;
        Ok(loaded)
    }

    /// The message inside an `Any`, whatever it is; nothing if its type is not
    /// known or its bytes do not fit it.
    pub(crate) fn decode(&self, type_url: &str, value: &[u8]) -> Option<DynamicMessage> {
        let descriptor = self.descriptor(message_name(type_url))?;
        DynamicMessage::decode(descriptor, value).ok()
    }

    /// The type of this full name, such as `google.rpc.Status`.
    pub(crate) fn descriptor(&self, name: &str) -> Option<MessageDescriptor> {
        self.with_pool(|pool| pool.get_message_by_name(name))
    }

    /// The `.proto` file of this name.
    pub(crate) fn file(&self, name: &str) -> Option<FileDescriptor> {
        self.with_pool(|pool| pool.get_file_by_name(name))
    }

    /// The full names of the types in an operation that are not known.
    pub(crate) fn unknown(&self, operation: &Operation) -> BTreeSet<String> {
        let pool = self.pool();
        let mut writer = Writer::new(&pool, Enums::Names);
        let details = match &operation.result {
            Some(OperationResult::Response(response)) => std::slice::from_ref(response),
            Some(OperationResult::Error(error)) => &error.details,
            None => &[],
        };
        for any in operation.metadata.iter().chain(details) {
            writer.any(any, 0);
        }
        writer.unknown
    }

    /// ProtoJSON of an operation. Fields come in the order of their numbers;
    /// `done` is there even if it is false.
    pub(crate) fn operation(&self, operation: &Operation, enums: Enums) -> Value {
        let pool = self.pool();
        let mut writer = Writer::new(&pool, enums);
        let mut json = Map::new();
        json.insert("name".into(), operation.name.as_str().into());
        if let Some(metadata) = &operation.metadata {
            json.insert("metadata".into(), writer.any(metadata, 1));
        }
        json.insert("done".into(), operation.done.into());
        match &operation.result {
            Some(OperationResult::Response(response)) => {
                json.insert("response".into(), writer.any(response, 1));
            }
            Some(OperationResult::Error(error)) => {
                json.insert("error".into(), status(&mut writer, error));
            }
            None => {}
        }
        Value::Object(json)
    }

    /// ProtoJSON of an `Any`; `{"@type": …, "value": "<base64>"}` if its type
    /// is not known, its bytes do not fit it, or a value in it has no ProtoJSON,
    /// as a time that is out of range.
    pub(crate) fn any(&self, any: &Any) -> Value {
        Writer::new(&self.pool(), Enums::Names).any(any, 0)
    }

    /// The JSON for whoever wants the value and not its type: a value of
    /// `google.protobuf`, such as `Struct` or `StringValue`, stands for itself;
    /// everything else is as in [`Types::any`].
    pub(crate) fn bare(&self, any: &Any) -> Value {
        let name = message_name(&any.type_url);
        let is_value = is_special(name) && (name.ends_with("Value") || name.ends_with("Struct"));
        let content = || Writer::new(&self.pool(), Enums::Names).content(any, 0).ok();
        let bare = is_value.then(content).flatten();
        bare.unwrap_or_else(|| self.any(any))
    }

    /// The message of this type that a ProtoJSON value stands for.
    pub(crate) fn pack(&self, name: &str, json: &Value) -> Result<Any, PackError> {
        let descriptor = self
            .descriptor(name)
            .ok_or_else(|| PackError::Unknown(name.to_owned()))?;
        if MAX_DEPTH < depth(json) {
            return Err(PackError::Deep(name.to_owned()));
        }
        let message = Reader::new(&self.pool())
            .message(descriptor, json)
            .map_err(|error| PackError::Unfit(name.to_owned(), error))?;
        Ok(Any {
            type_url: format!("type.googleapis.com/{name}"),
            value: message.encode_to_vec(),
        })
    }

    /// What a program wrote: a JSON object with the `@type` of a known type as
    /// a message of it, another one as `google.protobuf.Struct`, and other text
    /// as `StringValue`.
    pub(crate) fn of_text(&self, text: &str) -> Any {
        let object = text.trim_start().starts_with('{');
        let object = object.then(|| serde_json::from_str(text).ok()).flatten();
        let packed = object.and_then(|json: Value| {
            let typed = json
                .get("@type")
                .and_then(Value::as_str)
                .is_some_and(|url| {
                    url.contains('/') && self.descriptor(message_name(url)).is_some()
                });
            let typed = typed && depth(&json) <= MAX_DEPTH;
            let typed = typed.then(|| Reader::new(&self.pool()).any(&json).ok());
            let plain = || self.pack("google.protobuf.Struct", &json).ok();
            typed.flatten().or_else(plain)
        });
        packed.unwrap_or_else(|| Any {
            type_url: String::type_url(),
            value: text.to_owned().encode_to_vec(),
        })
    }

    /// The types as they are now.
    pub(crate) fn pool(&self) -> DescriptorPool {
        self.with_pool(DescriptorPool::clone)
    }

    fn with_pool<T>(&self, ask: impl FnOnce(&DescriptorPool) -> T) -> T {
        ask(self.0.pool.read().as_ref().unwrap_or(self.0.built_in))
    }

    /// The message inside an `Any`, if it is an `M`.
    pub(crate) fn unpack<M: Name + Default>(any: Option<&Any>) -> Option<M> {
        let any = any?;
        let is_wanted = message_name(&any.type_url) == M::full_name();
        is_wanted
            .then(|| Message::decode(any.value.as_slice()).ok())
            .flatten()
    }
}

fn status(writer: &mut Writer<'_>, error: &Status) -> Value {
    let mut json = Map::new();
    json.insert("code".into(), error.code.into());
    if !error.message.is_empty() {
        json.insert("message".into(), error.message.as_str().into());
    }
    if !error.details.is_empty() {
        let details = error.details.iter().map(|detail| writer.any(detail, 3));
        json.insert("details".into(), details.collect());
    }
    Value::Object(json)
}

fn depth(json: &Value) -> usize {
    match json {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
