//! The registry of message types: what is inside an `Any`, as ProtoJSON. Today
//! it knows the built-in types; where more come from is for later.

use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use prost_types::Any;
use serde_json::{Map, Value, json};

use crate::proto::{
    FILE_DESCRIPTOR_SET,
    google::longrunning::{Operation, operation::Result as OperationResult},
};

/// Message types by name.
#[derive(Clone, Debug)]
pub(crate) struct Types(DescriptorPool);

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
    pub(crate) fn built_in() -> Self {
        let mut pool = DescriptorPool::global();
        pool.decode_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .expect("the descriptors are our own");
        Self(pool)
    }

    /// ProtoJSON of an operation. Fields come in the order of their numbers.
    pub(crate) fn operation(&self, operation: &Operation) -> Value {
        let mut json = Map::new();
        json.insert("name".into(), operation.name.as_str().into());
        if let Some(metadata) = &operation.metadata {
            json.insert("metadata".into(), self.any(metadata));
        }
        json.insert("done".into(), operation.done.into());
        match &operation.result {
            Some(OperationResult::Response(response)) => {
                json.insert("response".into(), self.any(response));
            }
            Some(OperationResult::Error(error)) => {
                let details: Vec<Value> = error
                    .details
                    .iter()
                    .map(|detail| self.any(detail))
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
        let fallback = || json!({ "@type": any.type_url, "value": STANDARD.encode(&any.value) });
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        match self.message(name, &any.value) {
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

    fn message(&self, name: &str, bytes: &[u8]) -> Option<Value> {
        let descriptor = self.0.get_message_by_name(name)?;
        let message = DynamicMessage::decode(descriptor, bytes).ok()?;
        let options = SerializeOptions::new().stringify_64_bit_integers(true);
        message
            .serialize_with_options(serde_json::value::Serializer, &options)
            .ok()
    }

    /// The message inside an `Any`, if it is an `M`.
    pub(crate) fn unpack<M: prost::Name + Default>(any: Option<&Any>) -> Option<M> {
        let any = any?;
        let is_wanted = any.type_url.rsplit('/').next() == Some(M::full_name().as_str());
        is_wanted
            .then(|| Message::decode(any.value.as_slice()).ok())
            .flatten()
    }
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
