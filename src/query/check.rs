//! Whether a path and a literal make sense for a type of message, before any
//! message is asked, and how the fields of a type are found by name. What a path
//! finds in a message is in `inside`.

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};

use super::{
    filter::{Comparator, Segment},
    literal::{Literal, Misfit, Scalar},
};

/// Whether a path makes sense for a message of this type, and the literal for
/// the field that it leads to.
pub(super) fn check(
    descriptor: &MessageDescriptor,
    path: &[Segment],
    comparator: Comparator,
    literal: &Literal,
) -> Result<(), Misfit> {
    let is_open = matches!(
        descriptor.full_name(),
        "google.protobuf.Any"
            | "google.protobuf.Struct"
            | "google.protobuf.Value"
            | "google.protobuf.ListValue"
    );
    if is_open {
        return Ok(());
    }
    let [first, rest @ ..] = path else {
        return match (well_known_scalar(descriptor), comparator) {
            (Some(scalar), _) => literal.check(comparator, &scalar),
            (None, Comparator::Has) => Ok(()),
            (None, _) => Err(Misfit::Comparator("`:`, for it is a message")),
        };
    };
    let Some(field) = field(descriptor, &first.name) else {
        return Err(Misfit::NoField(path.len()));
    };
    if field.is_map() {
        return match rest {
            [] if comparator == Comparator::Has => Ok(()),
            [] => Err(Misfit::Comparator("`:`, for it is a map")),
            [_, rest @ ..] => check_kind(&value_kind(&field), rest, comparator, literal),
        };
    }
    if field.is_list() {
        if comparator != Comparator::Has {
            return Err(Misfit::Comparator("`:`, for it is a repeated field"));
        }
        if rest.is_empty() && literal.text.is_star() {
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
) -> Result<(), Misfit> {
    let scalar = match kind {
        Kind::Message(inner) => return check(inner, rest, comparator, literal),
        Kind::Enum(kind) => Scalar::Enum(enum_names(kind)),
        Kind::String => Scalar::Text,
        Kind::Bool => Scalar::Bool,
        Kind::Double | Kind::Float => Scalar::Float,
        Kind::Bytes => Scalar::Opaque,
        _ => Scalar::Integer,
    };
    if !rest.is_empty() {
        return Err(Misfit::NoField(rest.len()));
    }
    literal.check(comparator, &scalar)
}

fn enum_names(kind: &EnumDescriptor) -> Vec<String> {
    kind.values().map(|value| value.name().to_owned()).collect()
}

/// A field by its name, or by the one that it has in JSON.
pub(super) fn field(descriptor: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    descriptor
        .get_field_by_name(name)
        .or_else(|| descriptor.get_field_by_json_name(name))
}

/// What the values of a map are.
pub(super) fn value_kind(map: &FieldDescriptor) -> Kind {
    match map.kind() {
        Kind::Message(entry) => entry.map_entry_value_field().kind(),
        other => other,
    }
}

/// What a message of `google.protobuf` stands for, if that is one value.
pub(super) fn well_known_scalar(descriptor: &MessageDescriptor) -> Option<Scalar> {
    Some(
        match descriptor.full_name().strip_prefix("google.protobuf.")? {
            "Timestamp" => Scalar::Time,
            "Duration" => Scalar::Duration,
            "BoolValue" => Scalar::Bool,
            "StringValue" => Scalar::Text,
            "BytesValue" => Scalar::Opaque,
            "DoubleValue" | "FloatValue" => Scalar::Float,
            "Int32Value" | "Int64Value" | "UInt32Value" | "UInt64Value" => Scalar::Integer,
            _ => return None,
        },
    )
}
