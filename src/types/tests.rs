//! Tests of the registry: what it knows, and the JSON of common messages. The
//! rules of JSON, of descriptor sets and of random operations have files of
//! their own.

mod json;
mod random;
mod sets;

use prost_types::Any;
use serde_json::{Value, json};

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
    let expected = r#"{"@type":"type.googleapis.com/google.protobuf.Duration","value":"1.500s"}"#;
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
        ("ListValue", json!([1])),
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
        r#"{"@type":"type.googleapis.com/google.protobuf.Struct","value":{"a":1}}"#
    ]]
    .assert_eq(&json(" {\"a\": 1}\n"));
    let typed = r#"{"@type": "a/google.rpc.Status", "code": 5}"#;
    assert_eq!(types.of_text(typed).type_url, "a/google.rpc.Status");
    for text in [
        r#"{"@type": "Person", "name": "Ann"}"#,
        r#"{"@type": "Status", "code": 5}"#,
        r#"{"@type": "a/google.rpc.Status", "cod": 5}"#,
        r#"{"@type": 7}"#,
    ] {
        let plain = types.of_text(text);
        let name = message_name(&plain.type_url);
        assert_eq!(name, "google.protobuf.Struct", "{text}");
    }
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

// === what the tests share ===

/// The encoded descriptor set of these files and of all that they import.
fn compile(files: &[(&str, &str)]) -> Vec<u8> {
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

/// One file of a set.
fn file(set: &[u8], name: &str) -> prost_types::FileDescriptorProto {
    let set = prost_types::FileDescriptorSet::decode(set).unwrap();
    let mut files = set.file.into_iter();
    files.find(|file| file.name() == name).unwrap()
}

/// The set with that one file of a set.
fn only(set: &[u8], name: &str) -> Vec<u8> {
    let file = vec![file(set, name)];
    prost_types::FileDescriptorSet { file }.encode_to_vec()
}

/// The built-in types and `test.Everything`, which has a field of each kind.
fn everything() -> Types {
    static SET: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let source = include_str!("tests/everything.proto");
        compile(&[("everything.proto", source)])
    });
    let types = Types::built_in();
    types.add_descriptor_set(&SET).unwrap();
    types
}

fn pack(name: &str, message: &impl Message) -> Any {
    Any {
        type_url: format!("type.googleapis.com/google.protobuf.{name}"),
        value: message.encode_to_vec(),
    }
}
