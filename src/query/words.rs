//! A word alone: whether its text stands anywhere in an operation.

use prost_reflect::{DynamicMessage, ReflectMessage, Value};

use super::{
    fields::Own,
    filter::Text,
    inside::{ANY, MAX_NESTED},
    literal::Held,
    subject::{Part, Subject},
};

/// Whether a text stands in the name, the queue, the method, a label, the
/// message of the error or a text of the metadata.
pub(super) fn is_anywhere(text: &Text, subject: &Subject<'_>) -> bool {
    let operation = subject.operation;
    let own = [Own::Name, Own::Queue, Own::Method];
    let in_own = own.iter().any(|own| match own.held(operation) {
        Some(Held::Text(held)) => text.is_in(held),
        _ => false,
    });
    let mut labels = operation.labels().iter();
    if in_own || labels.any(|(_, value)| text.is_in(value)) {
        return true;
    }
    let has_error = operation.wire().error().is_some();
    let error = has_error.then(|| subject.error()).flatten();
    let error = error.and_then(|error| error.get_field_by_name("message"));
    if error.is_some_and(|message| text.is_in(message.as_str().unwrap_or_default())) {
        return true;
    }
    let metadata = subject.message(Part::Metadata);
    metadata.is_some_and(|metadata| says(subject, metadata, text, MAX_NESTED))
}

/// Whether a text stands in any of the texts of a message, and of those in so
/// many `Any`s inside each other.
fn says(subject: &Subject<'_>, message: &DynamicMessage, text: &Text, nested: usize) -> bool {
    if message.descriptor().full_name() == ANY {
        let Some(nested) = nested.checked_sub(1) else {
            return false;
        };
        let inner = subject.open(message);
        return inner.is_some_and(|inner| says(subject, &inner, text, nested));
    }
    let mut fields = message.fields();
    fields.any(|(_, value)| value_says(subject, value, text, nested))
}

fn value_says(subject: &Subject<'_>, value: &Value, text: &Text, nested: usize) -> bool {
    let mut is_said = |value: &Value| value_says(subject, value, text, nested);
    match value {
        Value::String(value) => text.is_in(value),
        Value::Message(message) => says(subject, message, text, nested),
        Value::List(values) => values.iter().any(is_said),
        Value::Map(values) => values.values().any(&mut is_said),
        _ => false,
    }
}
