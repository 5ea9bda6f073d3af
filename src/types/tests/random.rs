//! Tests with random operations: the JSON follows the rules and can be read back.

use proptest::prelude::*;
use prost::Message;
use prost_reflect::{DynamicMessage, Kind, MapKey, MessageDescriptor, Value};
use prost_types::Any;
use serde_json::Value as JsonValue;

use super::test_registry;
use crate::{
    proto::google::{
        longrunning::{Operation, operation::Result as OperationResult},
        rpc::Status,
    },
    types::{EnumFormat, TypeRegistry, has_special_json},
};

/// Generates messages from a seed.
struct MessageGenerator<'a> {
    types: &'a TypeRegistry,
    rng_state: u64,
    /// Whether to generate values out of range, unknown types and malformed bytes.
    allows_invalid: bool,
    has_any: bool,
}

impl MessageGenerator<'_> {
    fn next_u64(&mut self) -> u64 {
        // SplitMix64.
        self.rng_state = self.rng_state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.rng_state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn random_below(&mut self, limit: u64) -> u64 {
        self.next_u64() % limit
    }

    fn random_text(&mut self) -> String {
        let texts = [
            "",
            "a",
            "foo_bar",
            "\"\\/\u{0}\u{7f}",
            "ä\u{1f600}\u{2028}",
            "NaN",
        ];
        texts[usize::try_from(self.random_below(6)).unwrap()].to_owned()
    }

    #[expect(clippy::cast_possible_truncation, reason = "any number will do")]
    fn random_i64(&mut self) -> i64 {
        match self.random_below(4) {
            0 => self.next_u64().cast_signed(),
            1 => i64::MIN,
            2 => 0,
            _ => i64::from(self.next_u64() as i8),
        }
    }

    fn random_f64(&mut self) -> f64 {
        let doubles = [
            0.5,
            1.0,
            -3.0,
            1e300,
            0.1,
            9_007_199_254_740_993.0,
            f64::MIN_POSITIVE,
        ];
        let invalid = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0];
        let index = usize::try_from(self.random_below(11)).unwrap();
        match invalid.get(index) {
            Some(invalid) if self.allows_invalid => *invalid,
            _ => doubles[index % doubles.len()],
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "any number will do")]
    fn random_value(&mut self, kind: &Kind, depth: u32) -> Value {
        match kind {
            Kind::Bool => Value::Bool(self.random_below(2) == 1),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(self.random_i64() as i32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(self.random_i64()),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(self.next_u64() as u32),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(self.next_u64()),
            Kind::Float => Value::F32(match self.random_f64() as f32 {
                infinite if infinite.is_infinite() && !self.allows_invalid => f32::MIN,
                float => float,
            }),
            Kind::Double => Value::F64(self.random_f64()),
            Kind::String => Value::String(self.random_text()),
            Kind::Bytes => Value::Bytes(self.random_text().into_bytes().into()),
            Kind::Enum(values) if values.full_name() == "google.protobuf.NullValue" => {
                Value::EnumNumber(0)
            }
            Kind::Enum(_) => {
                Value::EnumNumber([0, 1, -1, 7][usize::try_from(self.random_below(4)).unwrap()])
            }
            Kind::Message(descriptor) => Value::Message(self.random_message(descriptor, depth)),
        }
    }

    fn random_message(&mut self, descriptor: &MessageDescriptor, depth: u32) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        let seconds = i64::try_from(self.random_below(1 << 35)).unwrap();
        let nanos = [0, 10, 10_000, 10_000_000][usize::try_from(self.random_below(4)).unwrap()];
        match descriptor.full_name() {
            "google.protobuf.Any" => {
                self.has_any = true;
                let any = self.random_any(depth);
                message.transcode_from(&any).unwrap();
            }
            "google.protobuf.Timestamp" if !self.allows_invalid => {
                let time = prost_types::Timestamp { seconds, nanos };
                message.transcode_from(&time).unwrap();
            }
            "google.protobuf.Duration" if !self.allows_invalid => {
                let sign = if self.random_below(2) == 0 { 1 } else { -1 };
                let duration = prost_types::Duration {
                    seconds: seconds * sign,
                    nanos: nanos * i32::try_from(sign).unwrap(),
                };
                message.transcode_from(&duration).unwrap();
            }
            "google.protobuf.FieldMask" if !self.allows_invalid => {
                let paths = ["a", "foo_bar.baz_qux", "x1"].map(str::to_owned).to_vec();
                let mask = prost_types::FieldMask { paths };
                message.transcode_from(&mask).unwrap();
            }
            "google.protobuf.Value" if depth == 0 => {
                let value = prost_types::Value {
                    kind: Some(prost_types::value::Kind::BoolValue(true)),
                };
                message.transcode_from(&value).unwrap();
            }
            name => {
                let is_value = name == "google.protobuf.Value";
                let fields: Vec<_> = descriptor.fields().collect();
                let chosen = self.random_below(fields.len().max(1) as u64);
                for (index, field) in fields.iter().enumerate() {
                    let is_chosen = index as u64 == chosen;
                    // A Value must have one of its fields set.
                    let is_set = is_chosen || (!is_value && self.random_below(5) == 0);
                    let is_deep = matches!(field.kind(), Kind::Message(_)) && depth == 0;
                    if !is_set || (is_deep && !is_value) {
                        continue;
                    }
                    let value = self.random_field(field, depth.saturating_sub(1));
                    message.set_field(field, value);
                }
            }
        }
        message
    }

    fn random_field(&mut self, field: &prost_reflect::FieldDescriptor, depth: u32) -> Value {
        if field.is_map() {
            let kind = field.kind();
            let entry = kind.as_message().unwrap();
            let value = self.random_value(&entry.map_entry_value_field().kind(), depth);
            let key = match entry.map_entry_key_field().kind() {
                Kind::Bool => MapKey::Bool(self.random_below(2) == 1),
                Kind::Int32 => MapKey::I32(i32::try_from(self.random_below(9)).unwrap() - 4),
                _ => MapKey::String(self.random_text()),
            };
            return Value::Map([(key, value)].into());
        }
        if field.is_list() {
            let count = self.random_below(3);
            return Value::List(
                (0..count)
                    .map(|_| self.random_value(&field.kind(), depth))
                    .collect(),
            );
        }
        self.random_value(&field.kind(), depth)
    }

    fn random_any(&mut self, depth: u32) -> Any {
        let names = [
            "test.Everything",
            "google.protobuf.Empty",
            "google.protobuf.Timestamp",
            "google.protobuf.Duration",
            "google.protobuf.Struct",
            "google.protobuf.DoubleValue",
            "google.protobuf.FieldMask",
            "google.protobuf.Any",
            "google.rpc.Status",
            "longrunning.v1.OperationMetadata",
            "no.Such",
        ];
        let name = names[usize::try_from(self.random_below(names.len() as u64)).unwrap()];
        let value = match self.types.descriptor(name) {
            Some(_) if self.allows_invalid && self.random_below(8) == 0 => vec![0xff],
            Some(descriptor) => self
                .random_message(&descriptor, depth.saturating_sub(1))
                .encode_to_vec(),
            None => vec![1, 2],
        };
        Any {
            type_url: format!("type.googleapis.com/{name}"),
            value,
        }
    }

    fn random_operation(&mut self) -> Operation {
        let result = match self.random_below(3) {
            0 => None,
            1 => Some(OperationResult::Response(self.random_any(4))),
            _ => Some(OperationResult::Error(Status {
                code: 5,
                message: self.random_text(),
                details: (0..self.random_below(3))
                    .map(|_| self.random_any(4))
                    .collect(),
            })),
        };
        Operation {
            name: format!("operations/{}", self.next_u64()),
            metadata: (self.random_below(4) != 0).then(|| self.random_any(4)),
            done: result.is_some(),
            result,
        }
    }
}

/// Asserts the rules for every `Any` in JSON and its content.
fn assert_any_rules(json: &JsonValue) {
    match json {
        JsonValue::Object(fields) => {
            if let Some(url) = fields.get("@type") {
                let name = url.as_str().unwrap().rsplit('/').next().unwrap();
                // JSON-4.
                if has_special_json(name) {
                    assert_eq!(fields.len(), 2, "{json}");
                    assert!(fields.contains_key("value"), "{json}");
                }
                if name == "google.protobuf.Empty" && fields.len() != 1 {
                    assert!(fields["value"].is_string(), "damaged bytes: {json}");
                }
            }
            fields.values().for_each(assert_any_rules);
        }
        JsonValue::Array(items) => items.iter().for_each(assert_any_rules),
        // JSON-7: NaN and infinities are strings.
        JsonValue::Number(number) => assert!(number.as_f64().is_some_and(f64::is_finite)),
        JsonValue::Null | JsonValue::Bool(_) | JsonValue::String(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    // Rules: JSON-1, JSON-2, JSON-3, JSON-4, JSON-5, JSON-6, JSON-7
    #[test]
    fn random_operation_json_follows_protojson_rules(seed: u64) {
        let types = test_registry();
        let mut generator = MessageGenerator { types: &types, rng_state: seed, allows_invalid: true, has_any: false };
        let operation = generator.random_operation();
        for enums in [EnumFormat::Names, EnumFormat::Numbers] {
            let json = types.operation_to_json(&operation, enums);
            let text = json.to_string();
            prop_assert_eq!(&serde_json::from_str::<JsonValue>(&text).unwrap(), &json);
            assert_any_rules(&json);
            let fields = json.as_object().unwrap();
            for (key, value) in fields {
                let known = ["name", "metadata", "done", "error", "response"];
                prop_assert!(known.contains(&key.as_str()), "JSON-3: {}", key);
                prop_assert!(!value.is_null(), "JSON-2: {}", text);
            }
            prop_assert!(fields.get("metadata").is_none_or(|any| any.get("@type").is_some()));
            let results = ["error", "response"].iter().filter(|key| fields.contains_key(**key));
            prop_assert_eq!(results.count() == 1, operation.done);
            prop_assert!(!text.contains(":\"1970-01-01t") && !text.contains("\"+"), "JSON-6");
        }
    }

    // Rules: JSON-7
    #[test]
    fn random_message_json_round_trips(seed: u64) {
        let types = test_registry();
        let mut generator = MessageGenerator { types: &types, rng_state: seed, allows_invalid: false, has_any: false };
        let descriptor = types.descriptor("test.Everything").unwrap();
        let message = generator.random_message(&descriptor, 4);
        let any = Any {
            type_url: "type.googleapis.com/test.Everything".into(),
            value: message.encode_to_vec(),
        };
        let json = types.any_to_json(&any);
        let mut content: JsonValue = serde_json::from_str(&json.to_string()).unwrap();
        prop_assert_eq!(&content, &json);
        content.as_object_mut().unwrap().shift_remove("@type");
        let back = types.pack("test.Everything", &content);
        let back = back.unwrap_or_else(|error| panic!("{error}: {json}"));
        prop_assert_eq!(&types.any_to_json(&back), &json);
        // The bytes of an Any may differ in the order of map entries.
        if !generator.has_any {
            let back = types.decode(&back.type_url, &back.value).unwrap();
            prop_assert_eq!(back, types.decode(&any.type_url, &any.value).unwrap());
        }
    }
}
