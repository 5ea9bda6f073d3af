//! Checks restrictions against message types, and finds fields by name.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use super::{
    filter::{Comparator, Segment},
    literal::{Comparison, ScalarType, TypeError},
};

/// Checks that a path exists in this message type and that the comparison fits the type
/// of its field. Accepts every path into types whose fields are not known in advance,
/// such as `google.protobuf.Any` and `Struct`.
pub(super) fn check_path(
    descriptor: &MessageDescriptor,
    path: &[Segment],
    comparison: &Comparison,
) -> Result<(), TypeError> {
    let comparator = comparison.comparator;
    let well_known_name = descriptor.full_name().strip_prefix("google.protobuf.");
    if let Some("Any" | "Struct" | "Value" | "ListValue") = well_known_name {
        return Ok(());
    }
    let [first, rest @ ..] = path else {
        let expected = "`:`, because it is a message";
        return match well_known_scalar_type(descriptor) {
            Some(scalar) => comparison.check_type(&scalar),
            None if comparator == Comparator::Has => check_field_name(descriptor, comparison),
            None => Err(TypeError::ExpectedComparator(expected)),
        };
    };
    let Some(field) = find_field(descriptor, &first.name) else {
        return Err(TypeError::UnknownField {
            remaining_segments: path.len(),
        });
    };
    if field.is_map() {
        return match rest {
            [] if comparator == Comparator::Has => Ok(()),
            [] => Err(TypeError::ExpectedComparator("`:`, because it is a map")),
            [_, rest @ ..] => check_kind(&map_value_kind(&field), rest, comparison),
        };
    }
    if field.is_list() {
        if comparator != Comparator::Has {
            let expected = "`:`, because it is a repeated field";
            return Err(TypeError::ExpectedComparator(expected));
        }
        if rest.is_empty() && comparison.is_presence_test() {
            return Ok(());
        }
    }
    check_kind(&field.kind(), rest, comparison)
}

/// Checks `message:name`, which tests whether the message has that field.
fn check_field_name(
    descriptor: &MessageDescriptor,
    comparison: &Comparison,
) -> Result<(), TypeError> {
    let pattern = &comparison.literal.pattern;
    let is_field = |name| find_field(descriptor, name).is_some();
    if comparison.is_presence_test() || pattern.exact().is_some_and(is_field) {
        return Ok(());
    }
    let names: Vec<_> = descriptor
        .fields()
        .map(|field| field.name().to_owned())
        .collect();
    let expected = format!("one of the fields {}, or *", names.join(", "));
    Err(TypeError::ExpectedValue(expected))
}

fn check_kind(kind: &Kind, rest: &[Segment], comparison: &Comparison) -> Result<(), TypeError> {
    let scalar = match kind {
        Kind::Message(inner) => return check_path(inner, rest, comparison),
        Kind::Enum(kind) => {
            ScalarType::Enum(kind.values().map(|value| value.name().to_owned()).collect())
        }
        Kind::String => ScalarType::Text,
        Kind::Bool => ScalarType::Bool,
        Kind::Double | Kind::Float => ScalarType::Float,
        Kind::Bytes => ScalarType::Opaque,
        _ => ScalarType::Integer,
    };
    if !rest.is_empty() {
        return Err(TypeError::UnknownField {
            remaining_segments: rest.len(),
        });
    }
    comparison.check_type(&scalar)
}

/// Finds a field by its name or its JSON name.
pub(super) fn find_field(descriptor: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    descriptor
        .get_field_by_name(name)
        .or_else(|| descriptor.get_field_by_json_name(name))
}

/// Returns the kind of the values of a map field.
pub(super) fn map_value_kind(map: &FieldDescriptor) -> Kind {
    match map.kind() {
        Kind::Message(entry) => entry.map_entry_value_field().kind(),
        other => other,
    }
}

/// Returns the scalar that a well-known type represents, or `None` for other messages.
pub(super) fn well_known_scalar_type(descriptor: &MessageDescriptor) -> Option<ScalarType> {
    let name = descriptor.full_name().strip_prefix("google.protobuf.")?;
    Some(match name {
        "Timestamp" => ScalarType::Time,
        "Duration" => ScalarType::Duration,
        "BoolValue" => ScalarType::Bool,
        "StringValue" => ScalarType::Text,
        "BytesValue" => ScalarType::Opaque,
        "DoubleValue" | "FloatValue" => ScalarType::Float,
        "Int32Value" | "Int64Value" | "UInt32Value" | "UInt64Value" => ScalarType::Integer,
        _ => return None,
    })
}
