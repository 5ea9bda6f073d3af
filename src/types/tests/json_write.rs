//! Tests of ProtoJSON in both directions, after the conformance cases of protobuf: the rules
//! JSON-1 to JSON-8.

use prost::Message;
use prost_types::Any;
use serde_json::{Value, json};

use super::{pack_well_known, test_registry};
use crate::{
    proto::google::{
        longrunning::{Operation, operation::Result as OperationResult},
        rpc::Status,
    },
    types::{EnumFormat, TypeRegistry},
};

/// Converts the JSON of an `Everything` to a message and back.
fn json_round_trip(json: &str) -> Value {
    let types = test_registry();
    let parsed: Value = serde_json::from_str(json).unwrap();
    let any = types.pack("test.Everything", &parsed);
    let mut written = types.any_to_json(&any.unwrap_or_else(|error| panic!("{json}: {error}")));
    written.as_object_mut().unwrap().shift_remove("@type");
    written
}

// Rules: JSON-1, JSON-2, JSON-4, JSON-5, JSON-6, JSON-7
#[test]
fn any_accepted_json_form_is_written_in_canonical_form() {
    for (given, written) in [
        // JSON-7: 64 bits are strings, 32 bits are numbers; both forms are accepted.
        (
            r#"{"i64": 7, "u64": "18446744073709551615"}"#,
            r#"{"i64":"7","u64":"18446744073709551615"}"#,
        ),
        (
            r#"{"i64": -9223372036854775808}"#,
            r#"{"i64":"-9223372036854775808"}"#,
        ),
        (
            r#"{"s64": "-1", "f64": 1, "sf64": "2"}"#,
            r#"{"s64":"-1","f64":"1","sf64":"2"}"#,
        ),
        (
            r#"{"i32": "7", "u32": 4294967295}"#,
            r#"{"i32":7,"u32":4294967295}"#,
        ),
        (r#"{"i32": 1e3}"#, r#"{"i32":1000}"#),
        (r#"{"numbers": [1, "2"]}"#, r#"{"numbers":["1","2"]}"#),
        // JSON-7: NaN and infinities are strings.
        (
            r#"{"floatValue": 0.1, "doubleValue": 0.1}"#,
            r#"{"floatValue":0.1,"doubleValue":0.1}"#,
        ),
        (
            r#"{"floatValue": 1, "doubleValue": 1e300}"#,
            r#"{"floatValue":1,"doubleValue":1e+300}"#,
        ),
        (
            r#"{"floatValue": 3.4028234663852886e38}"#,
            r#"{"floatValue":3.4028234663852886e+38}"#,
        ),
        (r#"{"doubleValue": "1.5"}"#, r#"{"doubleValue":1.5}"#),
        (
            r#"{"floatValue": "NaN", "doubleValue": "-Infinity"}"#,
            r#"{"floatValue":"NaN","doubleValue":"-Infinity"}"#,
        ),
        // JSON-7: bytes are base64 with padding; URL-safe and unpadded are accepted.
        (r#"{"data": "-_8"}"#, r#"{"data":"+/8="}"#),
        (r#"{"data": "AQI="}"#, r#"{"data":"AQI="}"#),
        // JSON-7: enums are names; numbers are accepted, and unknown ones are written.
        (
            r#"{"color": 1, "colors": ["NEGATIVE", 0, 7]}"#,
            r#"{"color":"RED","colors":["NEGATIVE","COLOR_UNSPECIFIED",7]}"#,
        ),
        // JSON-1: camelCase is written, both are accepted; `json_name` takes precedence.
        (r#"{"snake_case_name": "a"}"#, r#"{"snakeCaseName":"a"}"#),
        (r#"{"renamed": "a"}"#, r#"{"@named":"a"}"#),
        // JSON-2: without presence a default is omitted, with presence it is not.
        (
            r#"{"i32": 0, "text": "", "flag": false, "color": 0, "numbers": [], "byName": {}}"#,
            "{}",
        ),
        (r#"{"maybe": 0}"#, r#"{"maybe":0}"#),
        (r#"{"this": ""}"#, r#"{"this":""}"#),
        (r#"{"that": 0}"#, r#"{"that":0}"#),
        (r#"{"nested": {}}"#, r#"{"nested":{}}"#),
        (r#"{"i32": null, "nested": null, "time": null}"#, "{}"),
        (r#"{"nothing": null}"#, r#"{"nothing":null}"#),
        // Map keys are strings, in a fixed order.
        (
            r#"{"byNumber": {"10": {}, "-1": {"i32": 1}, "9": {}}}"#,
            r#"{"byNumber":{"-1":{"i32":1},"9":{},"10":{}}}"#,
        ),
        (
            r#"{"byFlag": {"true": "a", "false": "b"}}"#,
            r#"{"byFlag":{"false":"b","true":"a"}}"#,
        ),
        (
            r#"{"byName": {"b": 1, "a": "2"}}"#,
            r#"{"byName":{"a":"2","b":"1"}}"#,
        ),
        // JSON-6: times in UTC with 0, 3, 6 or 9 digits; offsets are accepted.
        (
            r#"{"time": "1970-01-01T00:00:00Z"}"#,
            r#"{"time":"1970-01-01T00:00:00Z"}"#,
        ),
        (
            r#"{"time": "1970-01-01T01:00:00.010+01:00"}"#,
            r#"{"time":"1970-01-01T00:00:00.010Z"}"#,
        ),
        (
            r#"{"time": "1970-01-01T00:00:00.000010Z"}"#,
            r#"{"time":"1970-01-01T00:00:00.000010Z"}"#,
        ),
        (
            r#"{"time": "1970-01-01T00:00:00.000000010Z"}"#,
            r#"{"time":"1970-01-01T00:00:00.000000010Z"}"#,
        ),
        (
            r#"{"time": "0001-01-01T00:00:00Z"}"#,
            r#"{"time":"0001-01-01T00:00:00Z"}"#,
        ),
        (
            r#"{"time": "9999-12-31T23:59:59.999999999Z"}"#,
            r#"{"time":"9999-12-31T23:59:59.999999999Z"}"#,
        ),
        (r#"{"duration": "1.5s"}"#, r#"{"duration":"1.500s"}"#),
        (
            r#"{"duration": "-0.000000001s"}"#,
            r#"{"duration":"-0.000000001s"}"#,
        ),
        (r#"{"duration": "0s"}"#, r#"{"duration":"0s"}"#),
        (
            r#"{"duration": "-315576000000.999999999s"}"#,
            r#"{"duration":"-315576000000.999999999s"}"#,
        ),
        (
            r#"{"mask": "foo,barBaz.quxQuux"}"#,
            r#"{"mask":"foo,barBaz.quxQuux"}"#,
        ),
        (r#"{"mask": ""}"#, r#"{"mask":""}"#),
        // Types of `google.protobuf` with special JSON.
        (
            r#"{"object": {"a": [1, 1.5, null, {"b": "c"}, true, 1e300]}}"#,
            r#"{"object":{"a":[1,1.5,null,{"b":"c"},true,1e+300]}}"#,
        ),
        (r#"{"value": null}"#, r#"{"value":null}"#),
        (
            r#"{"value": {"a": []}, "list": [[], {}]}"#,
            r#"{"value":{"a":[]},"list":[[],{}]}"#,
        ),
        (r#"{"empty": {}}"#, r#"{"empty":{}}"#),
        (
            r#"{"boolWrapper": false, "int32Wrapper": 0, "int64Wrapper": 0, "uint32Wrapper": 0, "uint64Wrapper": 0}"#,
            r#"{"boolWrapper":false,"int32Wrapper":0,"int64Wrapper":"0","uint32Wrapper":0,"uint64Wrapper":"0"}"#,
        ),
        (
            r#"{"floatWrapper": "NaN", "doubleWrapper": "Infinity", "stringWrapper": "", "bytesWrapper": ""}"#,
            r#"{"floatWrapper":"NaN","doubleWrapper":"Infinity","stringWrapper":"","bytesWrapper":""}"#,
        ),
        (r#"{"floatWrapper": 0.1}"#, r#"{"floatWrapper":0.1}"#),
        // JSON-4: in an Any, special forms are nested under `value`; Empty has none.
        (
            r#"{"any": {"@type": "a/google.protobuf.Empty"}}"#,
            r#"{"any":{"@type":"a/google.protobuf.Empty"}}"#,
        ),
        (
            r#"{"any": {"value": "1.5s", "@type": "a/google.protobuf.Duration"}}"#,
            r#"{"any":{"@type":"a/google.protobuf.Duration","value":"1.500s"}}"#,
        ),
        (
            r#"{"any": {"@type": "a/google.protobuf.Any", "value": {"@type": "a/test.Everything", "i32": 1}}}"#,
            r#"{"any":{"@type":"a/google.protobuf.Any","value":{"@type":"a/test.Everything","i32":1}}}"#,
        ),
        (
            r#"{"any": {"@type": "a/google.protobuf.Struct", "value": {"a": 1}}}"#,
            r#"{"any":{"@type":"a/google.protobuf.Struct","value":{"a":1}}}"#,
        ),
        (
            r#"{"any": {"@type": "a/google.protobuf.Value", "value": null}}"#,
            r#"{"any":{"@type":"a/google.protobuf.Value","value":null}}"#,
        ),
        (
            r#"{"any": {"@type": "a/google.protobuf.UInt64Value", "value": 3}}"#,
            r#"{"any":{"@type":"a/google.protobuf.UInt64Value","value":"3"}}"#,
        ),
        (r#"{"any": {}}"#, r#"{"any":{}}"#),
        // JSON-5: an unknown type does not affect the rest of the message.
        (
            r#"{"i32": 1, "anys": [{"@type": "a/no.Such", "value": "AQI="}, {"@type": "a/test.Everything", "any": {"@type": "a/google.protobuf.Empty"}}]}"#,
            r#"{"i32":1,"anys":[{"@type":"a/no.Such","value":"AQI="},{"@type":"a/test.Everything","any":{"@type":"a/google.protobuf.Empty"}}]}"#,
        ),
        (
            r#"{"anyByName": {"x": {"@type": "a/no.Such", "value": ""}}}"#,
            r#"{"anyByName":{"x":{"@type":"a/no.Such","value":""}}}"#,
        ),
    ] {
        assert_eq!(json_round_trip(given).to_string(), written, "{given}");
    }
}

// Rules: JSON-6, JSON-8
#[test]
fn json_outside_message_schema_is_rejected() {
    let types = test_registry();
    for json in [
        r#"{"unknown": 1}"#,
        r#"{"i32": 2147483648}"#,
        r#"{"i32": 1.5}"#,
        r#"{"u32": -1}"#,
        r#"{"i64": "9223372036854775808"}"#,
        r#"{"numbers": [null]}"#,
        r#"{"text": 1}"#,
        r#"{"flag": "true"}"#,
        r#"{"color": "PINK"}"#,
        r#"{"data": "?"}"#,
        r#"{"this": "a", "that": 1}"#,
        r#"{"time": "1970-01-01t00:00:00Z"}"#,
        r#"{"time": "1970-01-01T00:00:00"}"#,
        r#"{"time": "0000-01-01T00:00:00Z"}"#,
        r#"{"duration": "1"}"#,
        r#"{"duration": "315576000001s"}"#,
        r#"{"mask": "foo_bar"}"#,
        r#"{"any": {"@type": "a/no.Such"}}"#,
        r#"{"any": {"@type": "a/no.Such", "value": 1}}"#,
        r#"{"any": {"value": 1}}"#,
        r#"{"any": {"@type": "a/google.protobuf.Duration", "value": "1s", "more": 1}}"#,
        r#"{"any": {"@type": "a/test.Everything", "unknown": 1}}"#,
        r#"{"anyByName": []}"#,
        r#"{"byNumber": {"x": {}}}"#,
        r#"{"nested": {"any": 7}}"#,
    ] {
        let parsed: Value = serde_json::from_str(json).unwrap();
        let result = types.pack("test.Everything", &parsed);
        assert!(result.is_err(), "{json}");
    }
}

// The output is accepted by other parsers.
// Rules: JSON-5, JSON-6
#[test]
fn value_without_protojson_becomes_base64() {
    use prost_types::{Duration, FieldMask, Struct, Timestamp, Value, value::Kind};
    let time = |seconds, nanos| pack_well_known("Timestamp", &Timestamp { seconds, nanos });
    let duration = |seconds, nanos| pack_well_known("Duration", &Duration { seconds, nanos });
    let mask = |path: &str| {
        pack_well_known(
            "FieldMask",
            &FieldMask {
                paths: vec![path.to_owned()],
            },
        )
    };
    let number = |number| Value {
        kind: Some(Kind::NumberValue(number)),
    };
    let fields = |value| {
        pack_well_known(
            "Struct",
            &Struct {
                fields: [("a".to_owned(), value)].into(),
            },
        )
    };
    for any in [
        time(-62_135_596_801, 0),
        time(253_402_300_800, 0),
        time(0, -1),
        time(0, 1_000_000_000),
        duration(315_576_000_001, 0),
        duration(-315_576_000_001, 0),
        duration(1, -1),
        duration(-1, 1),
        duration(0, 1_000_000_000),
        mask("fooBar"),
        mask("foo__bar"),
        mask("foo_3_bar"),
        mask("foo_"),
        mask("a,b"),
        mask(""),
        fields(number(f64::NAN)),
        fields(number(f64::INFINITY)),
    ] {
        let written = TypeRegistry::built_in().any_to_json(&any);
        let text = written["value"].as_str().unwrap_or_default();
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text);
        assert_eq!(bytes.as_ref(), Ok(&any.value), "{written}");
    }
}

// Rules: JSON-5
#[test]
fn base64_fallback_affects_only_innermost_any() {
    let types = test_registry();
    let out_of_range = pack_well_known(
        "Timestamp",
        &prost_types::Timestamp {
            seconds: i64::MAX,
            nanos: 0,
        },
    );
    let outer = types.pack("test.Everything", &json!({ "i32": 1 })).unwrap();
    // Field 24, the Any.
    let mut value = outer.value;
    prost::encoding::message::encode(24, &out_of_range, &mut value);
    let written = types.any_to_json(&Any { value, ..outer });
    assert_eq!(written["i32"], json!(1));
    assert_eq!(written["any"]["@type"], json!(out_of_range.type_url));
}

// Rules: JSON-9
#[test]
fn deeply_nested_any_does_not_overflow_stack() {
    let mut any = pack_well_known("StringValue", &String::from("x"));
    for _ in 0..5_000 {
        any = Any {
            type_url: "a/google.protobuf.Any".into(),
            value: any.encode_to_vec(),
        };
    }
    let text = TypeRegistry::built_in().any_to_json(&any).to_string();
    assert!(serde_json::from_str::<Value>(&text).is_ok());
}

// Rules: JSON-9
#[test]
fn json_depth_stays_within_parser_limits() {
    let types = test_registry();
    // 60 lists of messages are 120 levels of JSON.
    let mut value = Vec::new();
    for _ in 0..60 {
        let mut outer = Vec::new();
        prost::encoding::bytes::encode(
            18,
            &{
                // An entry of the map: key 1, and the message as its value.
                let mut entry = vec![8, 1];
                prost::encoding::bytes::encode(2, &value, &mut entry);
                entry
            },
            &mut outer,
        );
        value = outer;
    }
    let any = Any {
        type_url: "a/test.Everything".into(),
        value,
    };
    let text = types.any_to_json(&any).to_string();
    assert!(serde_json::from_str::<Value>(&text).is_ok(), "{text}");
}

// Rules: HTTP-7, JSON-2
#[test]
fn status_json_omits_empty_fields_and_supports_numeric_enums() {
    let types = test_registry();
    let colored = types.pack("test.Everything", &json!({ "color": "RED", "colors": [7] }));
    let status = |message: &str, details| Status {
        code: 5,
        message: message.to_owned(),
        details,
    };
    let written = |status, enums| {
        let failed = Operation {
            result: Some(OperationResult::Error(status)),
            ..Operation::default()
        };
        types.operation_to_json(&failed, enums)["error"].clone()
    };
    let code_only = written(status("", vec![]), EnumFormat::Names);
    assert_eq!(code_only.to_string(), r#"{"code":5}"#);
    let full = written(status("no", vec![colored.unwrap()]), EnumFormat::Numbers);
    let expected = r#"{"code":5,"message":"no","details":[{"@type":"type.googleapis.com/test.Everything","color":1,"colors":[7]}]}"#;
    assert_eq!(full.to_string(), expected);
}

// Rules: JSON-3
#[test]
fn unknown_fields_are_omitted_from_json() {
    let types = test_registry();
    let mut any = types.pack("test.Everything", &json!({ "i32": 1 })).unwrap();
    prost::encoding::uint64::encode(999, &7, &mut any.value);
    let written = types.any_to_json(&any);
    assert_eq!(written.as_object().unwrap().len(), 2, "{written}");
}
