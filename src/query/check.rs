//! Whether a path and a literal make sense for a type of message, before any
//! message is asked, and how the fields of a type are found by name. What a path
//! finds in a message is in `inside`.

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};

use super::{
    filter::{Comparator, Segment},
    literal::{Literal, ScalarType, TypeError},
};

/// Whether a path makes sense for a message of this type, and the literal for
/// the field that it leads to.
pub(super) fn check_path(
    descriptor: &MessageDescriptor,
    path: &[Segment],
    comparator: Comparator,
    literal: &Literal,
) -> Result<(), TypeError> {
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
            (Some(scalar), _) => literal.check_type(comparator, &scalar),
            (None, Comparator::Has) => Ok(()),
            (None, _) => Err(TypeError::ExpectedComparator("`:`, for it is a message")),
        };
    };
    let Some(field) = find_field(descriptor, &first.name) else {
        return Err(TypeError::UnknownField(path.len()));
    };
    if field.is_map() {
        return match rest {
            [] if comparator == Comparator::Has => Ok(()),
            [] => Err(TypeError::ExpectedComparator("`:`, for it is a map")),
            [_, rest @ ..] => check_kind(&map_value_kind(&field), rest, comparator, literal),
        };
    }
    if field.is_list() {
        if comparator != Comparator::Has {
            return Err(TypeError::ExpectedComparator(
                "`:`, for it is a repeated field",
            ));
        }
        if rest.is_empty() && literal.pattern.is_wildcard() {
            return Ok(());
        }
    }
    check_kind(&field.kind(), rest, comparator, literal)
}

fn check_kind(
    kind: &Kind,
    rest: &[Segment],
    comparator: Comparator,
    literal: &Literal,
) -> Result<(), TypeError> {
    let scalar = match kind {
        Kind::Message(inner) => return check_path(inner, rest, comparator, literal),
        Kind::Enum(kind) => ScalarType::Enum(enum_names(kind)),
        Kind::String => ScalarType::Text,
        Kind::Bool => ScalarType::Bool,
        Kind::Double | Kind::Float => ScalarType::Float,
        Kind::Bytes => ScalarType::Opaque,
        _ => ScalarType::Integer,
    };
    if !rest.is_empty() {
        return Err(TypeError::UnknownField(rest.len()));
    }
    literal.check_type(comparator, &scalar)
}

fn enum_names(kind: &EnumDescriptor) -> Vec<String> {
    kind.values().map(|value| value.name().to_owned()).collect()
}

/// A field by its name, or by the one that it has in JSON.
pub(super) fn find_field(descriptor: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    descriptor
        .get_field_by_name(name)
        .or_else(|| descriptor.get_field_by_json_name(name))
}

/// What the values of a map are.
pub(super) fn map_value_kind(map: &FieldDescriptor) -> Kind {
    match map.kind() {
        Kind::Message(entry) => entry.map_entry_value_field().kind(),
        other => other,
    }
}

/// What a message of `google.protobuf` stands for, if that is one value.
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
