//! Checks restrictions against message types, and finds fields by name.

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};

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
    let is_dynamic = matches!(
        descriptor.full_name(),
        "google.protobuf.Any"
            | "google.protobuf.Struct"
            | "google.protobuf.Value"
            | "google.protobuf.ListValue"
    );
    if is_dynamic {
        return Ok(());
    }
    let [first, rest @ ..] = path else {
        return match (well_known_scalar_type(descriptor), comparator) {
            (Some(scalar), _) => comparison.check_type(&scalar),
            (None, Comparator::Has) => Ok(()),
            (None, _) => Err(TypeError::ExpectedComparator(
                "`:`, because it is a message",
            )),
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
            return Err(TypeError::ExpectedComparator(
                "`:`, because it is a repeated field",
            ));
        }
        if rest.is_empty() && comparison.is_presence_test() {
            return Ok(());
        }
    }
    check_kind(&field.kind(), rest, comparison)
}

fn check_kind(kind: &Kind, rest: &[Segment], comparison: &Comparison) -> Result<(), TypeError> {
    let scalar = match kind {
        Kind::Message(inner) => return check_path(inner, rest, comparison),
        Kind::Enum(kind) => ScalarType::Enum(enum_names(kind)),
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

fn enum_names(kind: &EnumDescriptor) -> Vec<String> {
    kind.values().map(|value| value.name().to_owned()).collect()
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
    Some(
        match descriptor.full_name().strip_prefix("google.protobuf.")? {
            "Timestamp" => ScalarType::Time,
            "Duration" => ScalarType::Duration,
            "BoolValue" => ScalarType::Bool,
            "StringValue" => ScalarType::Text,
            "BytesValue" => ScalarType::Opaque,
            "DoubleValue" | "FloatValue" => ScalarType::Float,
            "Int32Value" | "Int64Value" | "UInt32Value" | "UInt64Value" => ScalarType::Integer,
            _ => return None,
        },
    )
}
