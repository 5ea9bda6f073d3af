//! Parses the `name` of a ListOperationsRequest, which selects the operations of a list.

use std::sync::Arc;

use crate::operation::name::{
    InvalidName, MAX_NAME_BYTES, OPERATIONS_COLLECTION, Parent, excerpt, is_collection,
    is_parent_id, parent_of, segments,
};

/// The operations that a list selects by their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Everything,
    /// The direct children of one parent.
    Parent(Parent),
    /// The direct children of every parent that matches; `-` matches any id.
    ParentPattern(Arc<str>),
}

// === impl Scope ===

impl Scope {
    /// Parses the `name` of a ListOperationsRequest: `""`, `-`, `operations`, `{parent}` or
    /// `{parent}/operations`.
    ///
    /// # Errors
    /// [`InvalidName::Parent`] for anything else.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName::Parent(excerpt(text));
        if text.len() > MAX_NAME_BYTES {
            return Err(invalid());
        }
        if matches!(text, "" | "-" | "-/operations") {
            return Ok(Self::Everything);
        }
        if text == OPERATIONS_COLLECTION {
            return Ok(Self::Parent(Parent::ROOT));
        }
        // A parent has an even number of segments: pairs of collection and id.
        let is_odd = text.bytes().filter(|byte| *byte == b'/').count() % 2 == 0;
        let parent = if is_odd {
            text.strip_suffix("/operations")
        } else {
            Some(text)
        };
        let parent = parent.ok_or_else(invalid)?;
        if !segments(parent).any(|(_, id)| id == "-") {
            return Parent::parse(parent).map(Self::Parent);
        }
        let is_valid = segments(parent)
            .all(|(collection, id)| is_collection(collection) && (id == "-" || is_parent_id(id)));
        is_valid
            .then(|| Self::ParentPattern(parent.into()))
            .ok_or_else(invalid)
    }

    /// Returns whether the scope contains the operation with this name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Parent(parent) => parent_of(name) == parent.as_str(),
            Self::ParentPattern(pattern) => is_pattern_match(pattern, parent_of(name)),
        }
    }
}

/// Returns whether a parent matches a pattern in which `-` is any id.
fn is_pattern_match(pattern: &str, parent: &str) -> bool {
    let (mut expected, mut actual) = (segments(pattern), segments(parent));
    loop {
        match (expected.next(), actual.next()) {
            (None, None) => return true,
            (Some((collection, id)), Some((actual_collection, actual_id)))
                if collection == actual_collection && (id == "-" || id == actual_id) => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Rules: LIST-9
    #[test]
    fn every_list_name_form_is_parsed() {
        let parent = |text| Scope::Parent(Parent::parse(text).unwrap());
        assert_eq!(Scope::parse(""), Ok(Scope::Everything));
        assert_eq!(Scope::parse("-"), Ok(Scope::Everything));
        assert_eq!(Scope::parse("operations"), Ok(parent("")));
        assert_eq!(Scope::parse("projects/p"), Ok(parent("projects/p")));
        assert_eq!(
            Scope::parse("projects/p/operations"),
            Ok(parent("projects/p"))
        );
        assert_eq!(
            Scope::parse("projects/-/operations"),
            Ok(Scope::ParentPattern("projects/-".into()))
        );
        for invalid in [
            "projects",
            "projects/",
            "/",
            "projects/p/",
            "projects/p/locations",
            "a b/c",
        ] {
            assert!(Scope::parse(invalid).is_err(), "{invalid}");
        }
    }

    // Rules: LIST-9, LIST-10
    #[test]
    fn scope_matches_whole_segments_and_no_deeper_parents() {
        let contains = |scope: &str, name| Scope::parse(scope).unwrap().contains(name);
        assert!(contains("projects/p", "projects/p/operations/x"));
        assert!(!contains("projects/p", "projects/p2/operations/x"));
        assert!(!contains(
            "projects/p",
            "projects/p/locations/l/operations/x"
        ));
        assert!(!contains("operations", "projects/p/operations/x"));
        assert!(contains("projects/-", "projects/p2/operations/x"));
        assert!(!contains("projects/-", "operations/x"));
        assert!(!contains(
            "projects/-",
            "projects/p/locations/l/operations/x"
        ));
        assert!(contains(
            "projects/-/locations/eu",
            "projects/p/locations/eu/operations/x"
        ));
        assert!(contains("", "projects/p/operations/x"));
    }

    proptest! {
        #[test]
        fn scope_parser_never_panics(text in "\\PC{0,80}") {
            let _ = Scope::parse(&text);
        }
    }
}
