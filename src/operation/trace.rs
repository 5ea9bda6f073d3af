//! The trace context that an operation carries from its creator to its workers.

use std::{collections::BTreeMap, sync::Arc};

use super::name::excerpt;

/// The maximum number of entries.
const MAX_ENTRIES: usize = 8;
/// The maximum length of a value, in bytes.
const MAX_VALUE_BYTES: usize = 1024;

/// A validated trace context: at most 8 entries, such as `traceparent` and
/// `tracestate`. Clones share the entries.
///
/// Keys are 1 to 63 of a-z, 0-9, `_` and `-`. Values are at most 1024 visible ASCII
/// characters and spaces, so that each entry is a valid HTTP header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext(Option<Arc<BTreeMap<String, String>>>);

/// An invalid trace context.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidTraceContext {
    /// More than 8 entries.
    #[error("{0} trace context entries: at most 8 are allowed")]
    Count(usize),
    /// A malformed key.
    #[error("invalid trace context key {0:?}: use 1 to 63 of a-z, 0-9, _ and -")]
    Key(String),
    /// A value that is too long or not a header value; contains its key.
    #[error(
        "invalid value of trace context key {0:?}: use at most 1024 visible ASCII characters and spaces"
    )]
    Value(String),
}

// === impl TraceContext ===

impl TraceContext {
    /// Validates the entries.
    ///
    /// # Errors
    /// [`InvalidTraceContext`] for the first invalid entry.
    pub fn new(entries: BTreeMap<String, String>) -> Result<Self, InvalidTraceContext> {
        if entries.len() > MAX_ENTRIES {
            return Err(InvalidTraceContext::Count(entries.len()));
        }
        let is_key_byte =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
        for (key, value) in &entries {
            if !(1..=63).contains(&key.len()) || !key.bytes().all(is_key_byte) {
                return Err(InvalidTraceContext::Key(excerpt(key)));
            }
            if value.len() > MAX_VALUE_BYTES
                || !value.bytes().all(|byte| (b' '..=b'~').contains(&byte))
            {
                return Err(InvalidTraceContext::Value(key.clone()));
            }
        }
        Ok(Self((!entries.is_empty()).then(|| Arc::new(entries))))
    }

    /// Returns the entries in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let entries = self.0.iter().flat_map(|entries| entries.iter());
        entries.map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Returns the size of all keys and values in bytes.
    pub(crate) fn size(&self) -> usize {
        self.iter()
            .map(|(key, value)| key.len() + value.len())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace_context(entries: &[(&str, &str)]) -> Result<TraceContext, InvalidTraceContext> {
        let entries = entries
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        TraceContext::new(entries.collect())
    }

    // Rules: CREATE-9
    #[test]
    fn trace_context_rejects_invalid_keys_values_and_more_than_8_entries() {
        let valid = [("traceparent", "00-4bf92f-01"), ("tracestate", "a=b, c=d")];
        assert_eq!(
            trace_context(&valid).unwrap().iter().collect::<Vec<_>>(),
            valid
        );
        assert_eq!(trace_context(&[]), Ok(TraceContext::default()));
        for key in ["", "Traceparent", "a b", &"a".repeat(64)] {
            assert_eq!(
                trace_context(&[(key, "")]),
                Err(InvalidTraceContext::Key(key.into()))
            );
        }
        for value in ["é", "a\nb", &"v".repeat(1025)] {
            let expected = Err(InvalidTraceContext::Value("a".into()));
            assert_eq!(trace_context(&[("a", value)]), expected);
        }
        let many: Vec<String> = (0..9).map(|n| format!("k{n}")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|key| (key.as_str(), "")).collect();
        assert_eq!(trace_context(&many), Err(InvalidTraceContext::Count(9)));
    }
}
