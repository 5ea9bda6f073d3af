//! Resource names of operations and their parents (AIP-122).

use std::{fmt, sync::Arc};

use uuid::{NoContext, Timestamp, Uuid};

/// The collection of every operation: `{parent}/operations/{id}`.
pub(crate) const OPERATIONS_COLLECTION: &str = "operations";

/// The maximum length of a parent, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 1024;

/// The full name of an operation: `operations/{id}` or `{parent}/operations/{id}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OperationName(Box<str>);

/// The last segment of a name: `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`, but not `operations`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OperationId(Box<str>);

/// The parent of operations: `collection/id` pairs such as
/// `projects/p1/locations/eu`, or the root. No id is `.` or `..`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Parent(Option<Arc<str>>);

/// A malformed name, parent or id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidName {
    /// An empty name.
    #[error("the name is empty; use the full name, such as operations/0190b3f4")]
    Empty,
    /// A malformed operation name.
    #[error("invalid operation name {0:?}: use operations/ID or PARENT/operations/ID")]
    Malformed(String),
    /// A malformed parent.
    #[error(
        "invalid parent {0:?}: use COLLECTION/ID pairs such as projects/p1, of letters, digits and . _ ~ - (ids at most 63, and not . or ..)"
    )]
    Parent(String),
    /// A malformed operation id.
    #[error(
        "invalid operation id {0:?}: use 1 to 63 of a-z, 0-9 and -, starting and ending with a letter or digit, and not \"operations\""
    )]
    Id(String),
}

// === impl OperationName ===

impl OperationName {
    /// Parses a full name, without trimming or case folding.
    ///
    /// # Errors
    /// [`InvalidName::Empty`] for `""`, else [`InvalidName::Malformed`].
    pub fn parse(text: impl Into<Box<str>>) -> Result<Self, InvalidName> {
        let text = text.into();
        if text.is_empty() {
            return Err(InvalidName::Empty);
        }
        if split_name(&text).is_some_and(|(parent, id)| is_parent(parent) && is_id(id)) {
            return Ok(Self(text));
        }
        Err(InvalidName::Malformed(excerpt(&text)))
    }

    /// Builds the name of the operation `id` under `parent`.
    pub fn new(parent: &Parent, id: &OperationId) -> Self {
        let id = &id.0;
        Self(match parent.as_str() {
            "" => format!("{OPERATIONS_COLLECTION}/{id}").into(),
            parent => format!("{parent}/{OPERATIONS_COLLECTION}/{id}").into(),
        })
    }

    /// Returns the full name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OperationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for OperationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::str::FromStr for OperationName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::parse(text)
    }
}

/// Returns the parent of a well-formed name; `""` is the root.
pub(crate) fn parent_of(name: &str) -> &str {
    split_name(name).map_or("", |(parent, _)| parent)
}

// === impl OperationId ===

impl OperationId {
    /// Parses a user-chosen id.
    ///
    /// # Errors
    /// [`InvalidName::Id`] if it is malformed.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        if is_id(text) {
            return Ok(Self(text.into()));
        }
        Err(InvalidName::Id(excerpt(text)))
    }

    /// Makes a unique id that cannot be guessed: a UUIDv7 with 74 random bits.
    pub fn random() -> Self {
        // `Uuid::now_v7` counts within a millisecond, so that one id tells much of the next.
        let now = Timestamp::now(NoContext);
        Self(Uuid::new_v7(now).to_string().into())
    }
}

// === impl Parent ===

impl Parent {
    /// The root. Its operations are named `operations/{id}`.
    pub const ROOT: Self = Self(None);

    /// Parses a parent; `""` is the root.
    ///
    /// # Errors
    /// [`InvalidName::Parent`] unless it is `collection/id` pairs.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        if !is_parent(text) {
            return Err(InvalidName::Parent(excerpt(text)));
        }
        Ok(Self((!text.is_empty()).then(|| text.into())))
    }

    /// Returns the prefix of its operations' names, or `""` for the root.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or("")
    }
}

/// Splits a name into its parent and its id, or returns `None` if it has no id
/// in a collection `operations`.
fn split_name(name: &str) -> Option<(&str, &str)> {
    let (prefix, id) = name.rsplit_once('/')?;
    if prefix == OPERATIONS_COLLECTION {
        return Some(("", id));
    }
    let parent = prefix
        .strip_suffix(OPERATIONS_COLLECTION)?
        .strip_suffix('/')?;
    (!parent.is_empty()).then_some((parent, id))
}

/// Returns the `(collection, id)` pairs of a parent; a missing last id is `""`.
pub(crate) fn segments(parent: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut segments = parent.split('/').filter(|_| !parent.is_empty());
    std::iter::from_fn(move || Some((segments.next()?, segments.next().unwrap_or(""))))
}

fn is_parent(text: &str) -> bool {
    text.len() <= MAX_NAME_BYTES
        && segments(text).all(|(collection, id)| is_collection(collection) && is_parent_id(id))
}

pub(crate) fn is_collection(text: &str) -> bool {
    text.starts_with(|letter: char| letter.is_ascii_lowercase())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

pub(crate) fn is_parent_id(text: &str) -> bool {
    // Clients remove the segments `.` and `..` from URLs (RFC 3986, 5.2.4): the rest of the
    // path would be the name of another operation. `-` is the wildcard of lists.
    (1..=63).contains(&text.len())
        && !matches!(text, "-" | "." | "..")
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
}

fn is_id(text: &str) -> bool {
    let is_allowed_byte =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    // The path `…/operations/operations` is a list, and clients decode any escape that would
    // tell a name from it (RFC 3986, 6.2.2.2).
    (1..=63).contains(&text.len())
        && text != OPERATIONS_COLLECTION
        && text.bytes().all(is_allowed_byte)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Truncates a text to 100 characters, to quote it in an error.
pub(crate) fn excerpt(text: &str) -> String {
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Rules: NAME-2
    #[test]
    fn operation_name_parses_with_and_without_parent() {
        for text in [
            "operations/a",
            "operations/0190b3f4-7a2e",
            "projects/p1/operations/x",
            "projects/p1/locations/eu/operations/x-1",
            "operations/ns/operations/x",
        ] {
            assert_eq!(OperationName::parse(text).unwrap().as_str(), text);
        }
        assert_eq!(parent_of("operations/a"), "");
        assert_eq!(parent_of("projects/p/operations/a"), "projects/p");
        assert_eq!(parent_of("operations/ns/operations/x"), "operations/ns");
    }

    // Rules: NAME-3, NAME-5
    #[test]
    fn malformed_operation_name_is_rejected() {
        assert_eq!(OperationName::parse(""), Err(InvalidName::Empty));
        for text in [
            "BOGUS",
            "operations",
            "operations/",
            "/operations/a",
            "operations/A",
            "operations/-a",
            "operations/a-",
            " operations/a",
            "operations/a ",
            "projects/operations/a",
            "operations/a/b",
            "projects//operations/a",
            "xoperations/a",
            "projects/-/operations/a",
            "projects/./operations/a",
            "projects/../operations/a",
            "operations/.",
            "operations/..",
            "operations/operations",
            "projects/p/operations/operations",
            "operations/é",
        ] {
            assert!(
                matches!(OperationName::parse(text), Err(InvalidName::Malformed(_))),
                "{text}"
            );
        }
    }

    // Rules: NAME-4
    #[test]
    fn operation_id_has_1_to_63_letters_digits_and_inner_dashes() {
        for valid in ["a", "0", "a-b", &"a".repeat(63)] {
            assert!(OperationId::parse(valid).is_ok(), "{valid}");
        }
        for invalid in [
            "",
            "-",
            "a-",
            "-a",
            "A",
            "a_b",
            "a.b",
            "a/b",
            ".",
            "..",
            "operations",
            "é",
            &"a".repeat(64),
        ] {
            assert!(
                matches!(OperationId::parse(invalid), Err(InvalidName::Id(_))),
                "{invalid}"
            );
        }
    }

    // Rules: OP-7
    #[test]
    fn generated_operation_id_is_unique_lowercase_uuid_v7() {
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| OperationId::random()).collect();
        assert_eq!(ids.len(), 1000);
        for OperationId(id) in ids {
            let uuid = Uuid::parse_str(&id).unwrap();
            assert_eq!(uuid.get_version_num(), 7);
            assert_eq!(uuid.to_string(), *id);
        }
    }

    // Rules: OP-7
    #[test]
    fn generated_operation_ids_have_74_random_bits_and_no_counter() {
        const RANDOM_BITS: u128 = (0xfff << 64) | (u128::MAX >> 66);
        let parse = |OperationId(id)| Uuid::parse_str(&id).unwrap().as_u128();
        let ids: Vec<_> = (0..1000).map(|_| parse(OperationId::random())).collect();
        let ever_set = ids.iter().fold(0, |bits, id| bits | id);
        let always_set = ids.iter().fold(u128::MAX, |bits, id| bits & id);
        assert_eq!(ever_set & !always_set & RANDOM_BITS, RANDOM_BITS);
        // Many of the ids are of one millisecond, within which a counter would sort them.
        assert!(!ids.is_sorted());
    }

    /// Removes dot segments as RFC 3986, 5.2.4 does.
    fn remove_dot_segments(path: &str) -> String {
        let mut segments = Vec::new();
        for segment in path.split('/') {
            match segment {
                "." => {}
                ".." => {
                    segments.pop();
                }
                other => segments.push(other),
            }
        }
        segments.join("/")
    }

    proptest! {
        // Rules: NAME-3
        #[test]
        fn any_name_text_parses_without_panic_and_valid_names_round_trip(text in "\\PC{0,80}") {
            if let Ok(name) = OperationName::parse(text.as_str()) {
                prop_assert_eq!(name.as_str(), text.as_str());
            }
            let _ = Parent::parse(&text);
        }

        // Rules: NAME-4, NAME-5
        #[test]
        fn valid_name_survives_removal_of_dot_segments(
            parent in "([a-z.]{1,2}/[a.]{1,3}/){0,2}", id in "[a.]{1,3}",
        ) {
            let name = format!("{parent}operations/{id}");
            if OperationName::parse(name.as_str()).is_ok() {
                prop_assert_eq!(remove_dot_segments(&name), name);
            }
        }

        #[test]
        fn parent_of_returns_parent_that_name_was_built_from(parent in "([a-z]{1,9}/[a-z0-9]{1,9}(/[a-z]{1,9}/[a-z0-9]{1,9})?)?", id in "[a-z0-9]{1,63}") {
            let parent = Parent::parse(&parent).unwrap();
            let name = OperationName::new(&parent, &OperationId::parse(&id).unwrap());
            prop_assert_eq!(parent_of(name.as_str()), parent.as_str());
            prop_assert!(OperationName::parse(name.as_str()).is_ok());
        }
    }
}
