//! What the names of types tell. What the types are made of is elsewhere.

/// The types of `google.protobuf` whose JSON is not an object of their fields,
/// so that inside an `Any` it stands under `value`. Empty is none of them.
const SPECIAL_JSON_TYPES: [&str; 16] = [
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
    "Value",
];

/// The full name of the message in a type URL.
pub(super) fn message_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or_default()
}

/// Whether the JSON of this type has a form of its own.
pub(super) fn has_special_json(name: &str) -> bool {
    name.strip_prefix("google.protobuf.")
        .is_some_and(|name| SPECIAL_JSON_TYPES.contains(&name))
}
