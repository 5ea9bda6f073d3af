//! Which operations a list asks for: the `name` of a ListOperationsRequest in
//! every form that is in use. Walking them is the index's affair.

use std::sync::Arc;

use crate::operation::name::{
    InvalidName, MAX_NAME_BYTES, OPERATIONS_COLLECTION, Parent, excerpt, is_collection,
    is_parent_id, parent_of, segments,
};

/// Which operations a list asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All of them, whatever their parent.
    Everything,
    /// Those directly under one parent.
    Parent(Parent),
    /// Those under any parent that fits: `-` stands for any id.
    ParentPattern(Arc<str>),
}

// === impl Scope ===

impl Scope {
    /// Parses the `name` of a ListOperationsRequest in every form that is in
    /// use: `""`, `-`, `operations`, `{parent}` and `{parent}/operations`.
    ///
    /// # Errors
    /// [`InvalidName::Parent`] for anything else.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidName> {
        if MAX_NAME_BYTES < text.len() {
            return Err(InvalidName::Parent(excerpt(text)));
        }
        if matches!(text, "" | "-" | "-/operations") {
            return Ok(Self::Everything);
        }
        if text == OPERATIONS_COLLECTION {
            return Ok(Self::Parent(Parent::ROOT));
        }
        // An odd number of segments ends with the collection of the operations.
        let is_odd = text.bytes().filter(|byte| *byte == b'/').count() % 2 == 0;
        let parent = if is_odd {
            text.strip_suffix("/operations")
        } else {
            Some(text)
        };
        let Some(parent) = parent else {
            return Err(InvalidName::Parent(excerpt(text)));
        };
        if !segments(parent).any(|(_, id)| id == "-") {
            return Parent::parse(parent).map(Self::Parent);
        }
        if !segments(parent)
            .all(|(collection, id)| is_collection(collection) && (id == "-" || is_parent_id(id)))
        {
            return Err(InvalidName::Parent(excerpt(text)));
        }
        Ok(Self::ParentPattern(parent.into()))
    }

    /// Whether an operation with this name belongs to the list.
    pub(crate) fn contains(&self, name: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Parent(parent) => parent_of(name) == parent.as_str(),
            Self::ParentPattern(pattern) => is_pattern_match(pattern, parent_of(name)),
        }
    }
}

/// Whether a parent has the segments of a pattern, in which `-` is any id.
fn is_pattern_match(pattern: &str, parent: &str) -> bool {
    let (mut expected, mut actual) = (segments(pattern), segments(parent));
    loop {
        match (expected.next(), actual.next()) {
            (None, None) => return true,
            (Some(wanted), Some(found))
                if wanted.0 == found.0 && (wanted.1 == "-" || wanted.1 == found.1) => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
