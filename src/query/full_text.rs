//! Searches a text in an operation: the global restriction of AIP-160.

use prost_reflect::{DynamicMessage, FieldDescriptor, ReflectMessage, Value};

use super::{
    decoded::{DecodedOperation, MessageField},
    filter::Pattern,
    message_eval::{ANY_TYPE_NAME, MAX_ANY_DEPTH},
};

/// The name of `google.rpc.Status`, of which only the message is searched: its details have fixed texts, such as the
/// domain of an ErrorInfo, which would match in every failure.
const STATUS_TYPE_NAME: &str = "google.rpc.Status";

/// Returns whether the pattern matches in the name, queue, method, a label value, the
/// error message or a string of the metadata.
pub(super) fn matches_any_text(pattern: &Pattern, decoded: &DecodedOperation<'_>) -> bool {
    let operation = decoded.operation;
    let queue = operation.queue().map_or("", |queue| queue.as_str());
    let fields = [operation.name(), queue, operation.method()];
    let labels = operation.labels().iter().map(|(_, value)| value);
    if fields
        .into_iter()
        .chain(labels)
        .any(|text| pattern.is_found_in(text))
    {
        return true;
    }
    let messages = [MessageField::Error, MessageField::Metadata];
    let mut messages = messages
        .into_iter()
        .filter_map(|field| decoded.message(field));
    messages.any(|message| message_contains(decoded, message, pattern, MAX_ANY_DEPTH))
}

/// Returns whether the pattern matches in a string of a message. Opens at most
/// `remaining_any_depth` nested `Any`s.
fn message_contains(
    decoded: &DecodedOperation<'_>,
    message: &DynamicMessage,
    pattern: &Pattern,
    remaining_any_depth: usize,
) -> bool {
    if message.descriptor().full_name() == ANY_TYPE_NAME {
        let Some(remaining_any_depth) = remaining_any_depth.checked_sub(1) else {
            return false;
        };
        return decoded
            .decode_any(message)
            .is_some_and(|inner| message_contains(decoded, &inner, pattern, remaining_any_depth));
    }
    let is_status = message.descriptor().full_name() == STATUS_TYPE_NAME;
    let is_searched = |field: &FieldDescriptor| !is_status || field.name() == "message";
    message.fields().any(|(field, value)| {
        is_searched(&field) && value_contains(decoded, value, pattern, remaining_any_depth)
    })
}

fn value_contains(
    decoded: &DecodedOperation<'_>,
    value: &Value,
    pattern: &Pattern,
    remaining_any_depth: usize,
) -> bool {
    let mut contains = |value: &Value| value_contains(decoded, value, pattern, remaining_any_depth);
    match value {
        Value::String(value) => pattern.is_found_in(value),
        Value::Message(message) => message_contains(decoded, message, pattern, remaining_any_depth),
        Value::List(values) => values.iter().any(contains),
        Value::Map(values) => values.values().any(&mut contains),
        _ => false,
    }
}
