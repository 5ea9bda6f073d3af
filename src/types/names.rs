//! Type names and type URLs.

/// The types of `google.protobuf` whose JSON is not an object of their fields, and which
/// are nested under `value` in the JSON of an `Any`. `Empty` is not among them.
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

/// Returns the full name of the message in a type URL.
pub(crate) fn message_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or_default()
}

/// Returns whether the type has a special JSON representation.
pub(super) fn has_special_json(name: &str) -> bool {
    name.strip_prefix("google.protobuf.")
        .is_some_and(|name| SPECIAL_JSON_TYPES.contains(&name))
}
