//! The trace that an operation belongs to: carried from its creator to its
//! workers, checked once at the border, and otherwise nobody's business here.

use std::{collections::BTreeMap, sync::Arc};

use super::name::excerpt;

/// At most 8 entries, such as `traceparent` and `tracestate`; keys of 1 to 63
/// of a-z, 0-9, `_` and `-`, values of at most 1024 visible ASCII characters and
/// spaces, so that all of them can stand in headers. Clones share the entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext(Option<Arc<BTreeMap<String, String>>>);

/// Why a trace context is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTraceContext {
    /// There are too many entries.
    #[error("{0} entries are too many: at most 8 are allowed")]
    Count(usize),
    /// A key has another form.
    #[error("{0:?} is not a key of a trace context: use 1 to 63 of a-z, 0-9, _ and -")]
    Key(String),
    /// A value is too long, or cannot stand in a header.
    #[error("the value of {0:?} must be at most 1024 visible ASCII characters and spaces")]
    Value(String),
}

// === impl TraceContext ===

impl TraceContext {
    /// No trace.
    pub(crate) const NONE: Self = Self(None);

    /// Checks the entries.
    ///
    /// # Errors
    /// [`InvalidTrace`] that names the entry at fault.
    pub fn new(entries: BTreeMap<String, String>) -> Result<Self, InvalidTraceContext> {
        if 8 < entries.len() {
            return Err(InvalidTraceContext::Count(entries.len()));
        }
        let is_key_byte =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
        for (key, value) in &entries {
            if !(1..=63).contains(&key.len()) || !key.bytes().all(is_key_byte) {
                return Err(InvalidTraceContext::Key(excerpt(key)));
            }
            if 1024 < value.len() || !value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
                return Err(InvalidTraceContext::Value(key.clone()));
            }
        }
        Ok(Self((!entries.is_empty()).then(|| Arc::new(entries))))
    }

    /// The entries, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let entries = self.0.iter().flat_map(|entries| entries.iter());
        entries.map(|(key, value)| (key.as_str(), value.as_str()))
    }

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

    #[test]
    fn trace_context_rejects_invalid_keys_values_and_more_than_8_entries() {
        let good = [("traceparent", "00-4bf92f-01"), ("tracestate", "a=b, c=d")];
        assert_eq!(
            trace_context(&good).unwrap().iter().collect::<Vec<_>>(),
            good
        );
        assert_eq!(trace_context(&[]), Ok(TraceContext::NONE));
        for key in ["", "Traceparent", "a b", &"a".repeat(64)] {
            assert_eq!(
                trace_context(&[(key, "")]),
                Err(InvalidTraceContext::Key(key.into()))
            );
        }
        for value in ["é", "a\nb", &"v".repeat(1025)] {
            let refused = Err(InvalidTraceContext::Value("a".into()));
            assert_eq!(trace_context(&[("a", value)]), refused);
        }
        let many: Vec<String> = (0..9).map(|n| format!("k{n}")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|key| (key.as_str(), "")).collect();
        assert_eq!(trace_context(&many), Err(InvalidTraceContext::Count(9)));
    }
}
