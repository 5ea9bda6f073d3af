//! User-defined labels of an operation.

use std::{collections::BTreeMap, sync::Arc};

use super::name::excerpt;

/// The maximum number of labels.
const MAX_LABELS: usize = 64;
/// The maximum length of a value, in bytes.
const MAX_VALUE_BYTES: usize = 255;

/// Validated labels: at most 64 pairs, keys `[a-z][a-z0-9_-]{0,62}`, values of at
/// most 255 bytes. Clones share the pairs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Option<Arc<[Label]>>);

/// A key and its value. The pairs are sorted by key.
type Label = (Box<str>, Box<str>);

/// Invalid labels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidLabels {
    /// More than 64 labels.
    #[error("{0} labels: at most 64 are allowed")]
    Count(usize),
    /// A malformed key.
    #[error("invalid label key {0:?}: use 1 to 63 of a-z, 0-9, _ and -, starting with a letter")]
    Key(String),
    /// A value of more than 255 bytes; contains its key.
    #[error("the value of label {0:?} is too long: at most 255 bytes are allowed")]
    Value(String),
}

// === impl Labels ===

impl Labels {
    /// Validates the pairs.
    ///
    /// # Errors
    /// [`InvalidLabels`] for the first invalid pair.
    pub fn new(pairs: BTreeMap<String, String>) -> Result<Self, InvalidLabels> {
        if pairs.len() > MAX_LABELS {
            return Err(InvalidLabels::Count(pairs.len()));
        }
        for (key, value) in &pairs {
            if !is_key(key) {
                return Err(InvalidLabels::Key(excerpt(key)));
            }
            if value.len() > MAX_VALUE_BYTES {
                return Err(InvalidLabels::Value(key.clone()));
            }
        }
        let pairs = pairs
            .into_iter()
            .map(|(key, value)| (key.into(), value.into()));
        let pairs: Arc<[Label]> = pairs.collect();
        Ok(Self((!pairs.is_empty()).then_some(pairs)))
    }

    /// Returns the pairs in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs().iter().map(|(key, value)| (&**key, &**value))
    }

    /// Returns the value of `key`, or `None` if there is no such label.
    pub fn get(&self, key: &str) -> Option<&str> {
        let index = self
            .pairs()
            .binary_search_by(|(other, _)| (**other).cmp(key))
            .ok()?;
        Some(&self.pairs()[index].1)
    }

    fn pairs(&self) -> &[Label] {
        self.0.as_deref().unwrap_or_default()
    }

    /// Returns the size of all keys and values in bytes.
    pub(crate) fn size(&self) -> usize {
        self.iter()
            .map(|(key, value)| key.len() + value.len())
            .sum()
    }
}

fn is_key(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.starts_with(|letter: char| letter.is_ascii_lowercase())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Result<Labels, InvalidLabels> {
        Labels::new(
            pairs
                .iter()
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect(),
        )
    }

    // Rules: NAME-6
    #[test]
    fn labels_reject_over_64_pairs_invalid_keys_and_values_over_255_bytes() {
        assert!(labels(&[("team", "é".repeat(127).as_str()), ("a-b_9", "")]).is_ok());
        for key in ["", "A", "9a", "-a", "a.b", "é", &"a".repeat(64)] {
            assert_eq!(labels(&[(key, "")]), Err(InvalidLabels::Key(key.into())));
        }
        assert_eq!(
            labels(&[("a", &"v".repeat(256))]),
            Err(InvalidLabels::Value("a".into()))
        );
        let many: BTreeMap<_, _> = (0..65).map(|n| (format!("k{n}"), String::new())).collect();
        assert_eq!(Labels::new(many), Err(InvalidLabels::Count(65)));
    }
}
