//! The registry of message types: what is inside an `Any`, as ProtoJSON, and
//! back. Today it knows the built-in types; where more come from is for later.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use parking_lot::RwLock;
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use prost_types::Any;
use serde_json::{Map, Value, json};

use crate::proto::{
    FILE_DESCRIPTOR_SET,
    google::longrunning::{Operation, operation::Result as OperationResult},
};

/// Message types by name. Clones are handles to the same types.
#[derive(Clone, Debug)]
pub struct Types(Arc<RwLock<DescriptorPool>>);

/// How the values of enums are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Enums {
    /// `"RUNNING"`: the usual form.
    Names,
    /// `2`: for who asks for it, as `$alt=json;enum-encoding=int` does.
    Numbers,
}

/// Why a JSON value is not the message that it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    #[error(
        "{0:?} is not a known type; there are those of google.protobuf, google.rpc and longrunning.v1"
    )]
    Unknown(String),
    #[error("it is not the ProtoJSON of {0}: {1}")]
    Unfit(String, serde_json::Error),
    #[error("it is nested too deeply for a {0}: at most {MAX_DEPTH} levels")]
    Deep(String),
}

/// How deep a JSON value may be. Protobuf refuses what is nested more than 100
/// levels, and a Struct has three of them for each one of JSON.
const MAX_DEPTH: usize = 32;

/// The types whose JSON is not an object, so that it stands under `value`.
const SPECIAL: [&str; 15] = [
    "Any",
    "BoolValue",
    "BytesValue",
    "DoubleValue",
    "Duration",
    "FieldMask",
    "FloatValue",
    "Int32Value",
    "Int64Value",
    "ListValue",
    "StringValue",
    "Struct",
    "Timestamp",
    "UInt32Value",
    "UInt64Value",
];

impl Types {
    /// The types of `google.protobuf`, `google.rpc` and `longrunning`.
    pub fn built_in() -> Self {
        let mut pool = DescriptorPool::global();
        pool.decode_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .expect("the descriptors are our own");
        Self(Arc::new(RwLock::new(pool)))
    }

    /// The message inside an `Any`, whatever it is; nothing if its type is not
    /// known or its bytes do not fit it.
    pub(crate) fn decode(&self, any: &Any) -> Option<DynamicMessage> {
        let descriptor = self.descriptor(message_name(&any.type_url))?;
        DynamicMessage::decode(descriptor, any.value.as_slice()).ok()
    }

    /// The type of this full name, such as `google.rpc.Status`.
    pub(crate) fn descriptor(&self, name: &str) -> Option<MessageDescriptor> {
        self.0.read().get_message_by_name(name)
    }

    /// ProtoJSON of an operation. Fields come in the order of their numbers.
    pub(crate) fn operation(&self, operation: &Operation) -> Value {
        self.operation_with(operation, Enums::Names)
    }

    /// As [`Types::operation`], with a choice of how enums are written.
    pub(crate) fn operation_with(&self, operation: &Operation, enums: Enums) -> Value {
        let mut json = Map::new();
        json.insert("name".into(), operation.name.as_str().into());
        if let Some(metadata) = &operation.metadata {
            json.insert("metadata".into(), self.any_with(metadata, enums));
        }
        json.insert("done".into(), operation.done.into());
        match &operation.result {
            Some(OperationResult::Response(response)) => {
                json.insert("response".into(), self.any_with(response, enums));
            }
            Some(OperationResult::Error(error)) => {
                let details: Vec<Value> = error
                    .details
                    .iter()
                    .map(|detail| self.any_with(detail, enums))
                    .collect();
                let error =
                    json!({ "code": error.code, "message": error.message, "details": details });
                json.insert("error".into(), error);
            }
            None => {}
        }
        Value::Object(json)
    }

    /// ProtoJSON of an `Any`; `{"@type": …, "value": "<base64>"}` if its type
    /// is not known or its bytes do not fit it.
    pub(crate) fn any(&self, any: &Any) -> Value {
        self.any_with(any, Enums::Names)
    }

    fn any_with(&self, any: &Any, enums: Enums) -> Value {
        let fallback = || json!({ "@type": any.type_url, "value": STANDARD.encode(&any.value) });
        let name = message_name(&any.type_url);
        match self.message(any, enums) {
            Some(Value::Object(fields)) if !is_special(name) => {
                let mut json = Map::new();
                json.insert("@type".into(), any.type_url.as_str().into());
                json.extend(fields);
                Value::Object(json)
            }
            Some(value) => json!({ "@type": any.type_url, "value": value }),
            None => fallback(),
        }
    }

    /// The JSON for whoever wants the value and not its type: a value of
    /// `google.protobuf`, such as `Struct` or `StringValue`, stands for itself;
    /// everything else is as in [`Types::any`].
    pub(crate) fn bare(&self, any: &Any) -> Value {
        let name = message_name(&any.type_url);
        let is_value = is_special(name) && (name.ends_with("Value") || name.ends_with("Struct"));
        let bare = is_value.then(|| self.message(any, Enums::Names)).flatten();
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
        let message = DynamicMessage::deserialize(descriptor, json)
            .map_err(|error| PackError::Unfit(name.to_owned(), error))?;
        Ok(Any {
            type_url: format!("type.googleapis.com/{name}"),
            value: message.encode_to_vec(),
        })
    }

    /// What a program wrote: a JSON object as `google.protobuf.Struct`, other
    /// text as `StringValue`.
    pub(crate) fn of_text(&self, text: &str) -> Any {
        let object = text.trim_start().starts_with('{');
        let object = object.then(|| serde_json::from_str(text).ok()).flatten();
        let packed = object.and_then(|json| self.pack("google.protobuf.Struct", &json).ok());
        packed.unwrap_or_else(|| Any {
            type_url: String::type_url(),
            value: text.to_owned().encode_to_vec(),
        })
    }

    fn message(&self, any: &Any, enums: Enums) -> Option<Value> {
        let options = SerializeOptions::new()
            .stringify_64_bit_integers(true)
            .use_enum_numbers(enums == Enums::Numbers);
        self.decode(any)?
            .serialize_with_options(serde_json::value::Serializer, &options)
            .ok()
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

fn depth(json: &Value) -> usize {
    match json {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// The full name of the message in a type URL.
fn message_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or_default()
}

fn is_special(name: &str) -> bool {
    name.strip_prefix("google.protobuf.")
        .is_some_and(|name| SPECIAL.contains(&name) || name == "Value")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        operation::payload::Payload,
        proto::longrunning::v1::{OperationMetadata, Progress},
    };

    fn json(any: &Any) -> String {
        Types::built_in().any(any).to_string()
    }

    #[test]
    fn a_known_type_is_unfolded_beside_its_type_url() {
        let metadata = OperationMetadata {
            state: 2,
            progress: Some(Progress {
                done_units: 3,
                fraction: Some(0.5),
                ..Default::default()
            }),
            ..Default::default()
        };
        expect_test::expect![[r#"{"@type":"type.googleapis.com/longrunning.v1.OperationMetadata","state":"RUNNING","progress":{"fraction":0.5,"doneUnits":"3"}}"#]]
            .assert_eq(&json(Payload::pack(&metadata).any()));
        assert_eq!(
            json(Payload::empty().any()),
            r#"{"@type":"type.googleapis.com/google.protobuf.Empty"}"#
        );
    }

    #[test]
    fn a_well_known_type_of_special_form_stands_under_value() {
        let duration = Payload::pack(&prost_types::Duration {
            seconds: 1,
            nanos: 500_000_000,
        });
        let expected =
            r#"{"@type":"type.googleapis.com/google.protobuf.Duration","value":"1.500s"}"#;
        assert_eq!(json(duration.any()), expected);
    }

    #[test]
    fn a_value_without_its_type_is_bare_json_and_comes_back() {
        let types = Types::built_in();
        let json: Value = serde_json::from_str(r#"{"a":[1.5,null,{"b":"c"}]}"#).unwrap();
        for name in ["Struct", "Value"] {
            let any = types
                .pack(&format!("google.protobuf.{name}"), &json)
                .unwrap();
            assert_eq!(types.bare(&any), json);
        }
        for (name, json) in [
            ("StringValue", json!("x")),
            ("BoolValue", json!(true)),
            ("ListValue", json!([1.0])),
            ("Int64Value", json!("7")),
        ] {
            let any = types
                .pack(&format!("google.protobuf.{name}"), &json)
                .unwrap();
            assert_eq!(types.bare(&any), json);
        }
        let duration = types
            .pack("google.protobuf.Duration", &json!("1s"))
            .unwrap();
        assert_eq!(
            types.bare(&duration),
            types.any(&duration),
            "its text could be anything"
        );
    }

    #[test]
    fn json_that_is_no_such_message_is_refused_with_what_is_wrong() {
        let types = Types::built_in();
        let refused = |name: &str, json: Value| types.pack(name, &json).unwrap_err().to_string();
        assert!(refused("a.B", json!({})).contains("\"a.B\" is not a known type"));
        let unfit = refused("google.rpc.Status", json!({ "cod": 1 }));
        assert!(
            unfit.contains("google.rpc.Status") && unfit.contains("cod"),
            "{unfit}"
        );
        for depth in [32, 100] {
            let deep = (0..depth).fold(json!({}), |inner, _| json!({ "a": inner }));
            let deep = refused("google.protobuf.Struct", deep);
            assert!(deep.contains("too deeply"), "{depth}: {deep}");
        }
    }

    #[test]
    fn the_text_of_a_program_is_a_struct_if_it_is_a_json_object_and_else_itself() {
        let types = Types::built_in();
        let json = |text: &str| types.any(&types.of_text(text)).to_string();
        expect_test::expect![[
            r#"{"@type":"type.googleapis.com/google.protobuf.Struct","value":{"a":1.0}}"#
        ]]
        .assert_eq(&json(" {\"a\": 1}\n"));
        for text in ["[1]", "{a}", "7", "{\"a\": 1} {}"] {
            let any = types.of_text(text);
            assert_eq!(
                (any.type_url, types.bare(&types.of_text(text))),
                (String::type_url(), json!(text))
            );
        }
    }

    #[test]
    fn an_unknown_type_or_damaged_bytes_are_shown_as_base64() {
        let unknown = Any {
            type_url: "type.googleapis.com/a.B".into(),
            value: vec![1, 2],
        };
        assert_eq!(
            json(&unknown),
            r#"{"@type":"type.googleapis.com/a.B","value":"AQI="}"#
        );
        let damaged = Any {
            type_url: "type.googleapis.com/google.rpc.Status".into(),
            value: vec![0xff],
        };
        assert_eq!(
            json(&damaged),
            r#"{"@type":"type.googleapis.com/google.rpc.Status","value":"/w=="}"#
        );
    }
}
