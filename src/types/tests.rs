//! Tests of the registry with common messages.

mod descriptor_set;
mod json_write;
mod random;

use prost_types::Any;
use serde_json::{Value, json};

use super::*;
use crate::{
    operation::payload::Payload,
    proto::longrunning::v1::{OperationMetadata, Progress},
};

fn any_json(any: &Any) -> String {
    TypeRegistry::built_in().any_to_json(any).to_string()
}

// Rules: JSON-4
#[test]
fn known_any_fields_are_written_beside_type_url() {
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
        .assert_eq(&any_json(Payload::pack(&metadata).any()));
    assert_eq!(
        any_json(Payload::empty().any()),
        r#"{"@type":"type.googleapis.com/google.protobuf.Empty"}"#
    );
}

// Rules: JSON-4
#[test]
fn well_known_type_with_special_json_is_nested_under_value() {
    let duration = Payload::pack(&prost_types::Duration {
        seconds: 1,
        nanos: 500_000_000,
    });
    let expected = r#"{"@type":"type.googleapis.com/google.protobuf.Duration","value":"1.500s"}"#;
    assert_eq!(any_json(duration.any()), expected);
}

#[test]
fn plain_json_of_value_types_round_trips() {
    let types = TypeRegistry::built_in();
    let json: Value = serde_json::from_str(r#"{"a":[1.5,null,{"b":"c"}]}"#).unwrap();
    for name in ["Struct", "Value"] {
        let any = types
            .pack(&format!("google.protobuf.{name}"), &json)
            .unwrap();
        assert_eq!(types.to_plain_json(&any), json);
    }
    for (name, json) in [
        ("StringValue", json!("x")),
        ("BoolValue", json!(true)),
        ("ListValue", json!([1])),
        ("Int64Value", json!("7")),
    ] {
        let any = types
            .pack(&format!("google.protobuf.{name}"), &json)
            .unwrap();
        assert_eq!(types.to_plain_json(&any), json);
    }
    let duration = types
        .pack("google.protobuf.Duration", &json!("1s"))
        .unwrap();
    assert_eq!(
        types.to_plain_json(&duration),
        types.any_to_json(&duration),
        "a duration is not a value type"
    );
}

// Rules: JSON-8
#[test]
fn invalid_message_json_is_rejected_with_reason() {
    let types = TypeRegistry::built_in();
    let pack_error = |name: &str, json: Value| types.pack(name, &json).unwrap_err().to_string();
    assert!(pack_error("a.B", json!({})).contains("unknown type \"a.B\""));
    let invalid = pack_error("google.rpc.Status", json!({ "cod": 1 }));
    assert!(
        invalid.contains("google.rpc.Status") && invalid.contains("cod"),
        "{invalid}"
    );
    for depth in [32, 100] {
        let deep = (0..depth).fold(json!({}), |inner, _| json!({ "a": inner }));
        let deep = pack_error("google.protobuf.Struct", deep);
        assert!(deep.contains("too deeply"), "{depth}: {deep}");
    }
}

// Rules: COMMAND-2
#[test]
fn program_output_becomes_struct_if_json_object_else_string() {
    let types = TypeRegistry::built_in();
    let json = |text: &str| types.any_to_json(&types.parse_output(text)).to_string();
    expect_test::expect![[
        r#"{"@type":"type.googleapis.com/google.protobuf.Struct","value":{"a":1}}"#
    ]]
    .assert_eq(&json(" {\"a\": 1}\n"));
    let typed = r#"{"@type": "a/google.rpc.Status", "code": 5}"#;
    assert_eq!(types.parse_output(typed).type_url, "a/google.rpc.Status");
    for text in [
        r#"{"@type": "Person", "name": "Ann"}"#,
        r#"{"@type": "Status", "code": 5}"#,
        r#"{"@type": "a/google.rpc.Status", "cod": 5}"#,
        r#"{"@type": 7}"#,
    ] {
        let plain = types.parse_output(text);
        let name = message_name(&plain.type_url);
        assert_eq!(name, "google.protobuf.Struct", "{text}");
    }
    for text in ["[1]", "{a}", "7", "{\"a\": 1} {}"] {
        let any = types.parse_output(text);
        assert_eq!(
            (any.type_url, types.to_plain_json(&types.parse_output(text))),
            (String::type_url(), json!(text))
        );
    }
}

// Rules: JSON-5
#[test]
fn unknown_type_or_damaged_bytes_become_base64() {
    let unknown = Any {
        type_url: "type.googleapis.com/a.B".into(),
        value: vec![1, 2],
    };
    assert_eq!(
        any_json(&unknown),
        r#"{"@type":"type.googleapis.com/a.B","value":"AQI="}"#
    );
    let damaged = Any {
        type_url: "type.googleapis.com/google.rpc.Status".into(),
        value: vec![0xff],
    };
    assert_eq!(
        any_json(&damaged),
        r#"{"@type":"type.googleapis.com/google.rpc.Status","value":"/w=="}"#
    );
}

// === Helpers ===

/// Compiles these files and their imports to an encoded descriptor set.
fn compile_protos(files: &[(&str, &str)]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    for (name, source) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, source).unwrap();
    }
    let names = files.iter().map(|(name, _)| name);
    let set = protox::compile(names, [directory.path()]);
    set.unwrap_or_else(|error| panic!("{error:?}"))
        .encode_to_vec()
}

/// Returns one file of an encoded set.
fn find_file(set: &[u8], name: &str) -> prost_types::FileDescriptorProto {
    let set = prost_types::FileDescriptorSet::decode(set).unwrap();
    let mut files = set.file.into_iter();
    files.find(|file| file.name() == name).unwrap()
}

/// Returns a set that contains only one file of an encoded set.
fn single_file_set(set: &[u8], name: &str) -> Vec<u8> {
    let file = vec![find_file(set, name)];
    prost_types::FileDescriptorSet { file }.encode_to_vec()
}

/// Returns the built-in types and `test.Everything`, which has a field of each kind.
fn test_registry() -> TypeRegistry {
    static SET: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let source = include_str!("tests/everything.proto");
        compile_protos(&[("everything.proto", source)])
    });
    let types = TypeRegistry::built_in();
    types.add_descriptor_set(&SET).unwrap();
    types
}

fn pack_well_known(name: &str, message: &impl Message) -> Any {
    Any {
        type_url: format!("type.googleapis.com/google.protobuf.{name}"),
        value: message.encode_to_vec(),
    }
}
