//! Which operations a list asks for: the `name` of a ListOperationsRequest in
//! every form that is in use. Walking them is the index's affair.

use std::sync::Arc;

use crate::operation::name::{
    COLLECTION, InvalidName, MAX_NAME, Parent, excerpt, is_collection, is_parent_id, parent_of,
    segments,
};

/// Which operations a list asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All of them, whatever their parent.
    Everything,
    /// Those directly under one parent.
    Under(Parent),
    /// Those under any parent that fits: `-` stands for any id.
    Matching(Arc<str>),
}

// === impl Scope ===

impl Scope {
    /// Parses the `name` of a ListOperationsRequest in every form that is in
    /// use: `""`, `-`, `operations`, `{parent}` and `{parent}/operations`.
    ///
    /// # Errors
    /// [`InvalidName::Parent`] for anything else.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidName> {
        if MAX_NAME < text.len() {
            return Err(InvalidName::Parent(excerpt(text)));
        }
        if matches!(text, "" | "-" | "-/operations") {
            return Ok(Self::Everything);
        }
        if text == COLLECTION {
            return Ok(Self::Under(Parent::ROOT));
        }
        // An odd number of segments ends with the collection of the operations.
        let odd = text.bytes().filter(|byte| *byte == b'/').count() % 2 == 0;
        let parent = if odd {
            text.strip_suffix("/operations")
        } else {
            Some(text)
        };
        let Some(parent) = parent else {
            return Err(InvalidName::Parent(excerpt(text)));
        };
        if !segments(parent).any(|(_, id)| id == "-") {
            return Parent::parse(parent).map(Self::Under);
        }
        if !segments(parent)
            .all(|(collection, id)| is_collection(collection) && (id == "-" || is_parent_id(id)))
        {
            return Err(InvalidName::Parent(excerpt(text)));
        }
        Ok(Self::Matching(parent.into()))
    }

    /// Whether an operation with this name belongs to the list.
    pub(crate) fn holds(&self, name: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Under(parent) => parent_of(name) == parent.as_str(),
            Self::Matching(pattern) => fits(pattern, parent_of(name)),
        }
    }
}

/// Whether a parent has the segments of a pattern, in which `-` is any id.
fn fits(pattern: &str, parent: &str) -> bool {
    let (mut wanted, mut found) = (segments(pattern), segments(parent));
    loop {
        match (wanted.next(), found.next()) {
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
    fn every_form_of_a_list_name_is_understood() {
        let parent = |text| Scope::Under(Parent::parse(text).unwrap());
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
            Ok(Scope::Matching("projects/-".into()))
        );
        for bad in [
            "projects",
            "projects/",
            "/",
            "projects/p/",
            "projects/p/locations",
            "a b/c",
        ] {
            assert!(Scope::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_scope_matches_whole_segments_and_no_deeper_parents() {
        let holds = |scope: &str, name| Scope::parse(scope).unwrap().holds(name);
        assert!(holds("projects/p", "projects/p/operations/x"));
        assert!(!holds("projects/p", "projects/p2/operations/x"));
        assert!(!holds("projects/p", "projects/p/locations/l/operations/x"));
        assert!(!holds("operations", "projects/p/operations/x"));
        assert!(holds("projects/-", "projects/p2/operations/x"));
        assert!(!holds("projects/-", "operations/x"));
        assert!(!holds("projects/-", "projects/p/locations/l/operations/x"));
        assert!(holds(
            "projects/-/locations/eu",
            "projects/p/locations/eu/operations/x"
        ));
        assert!(holds("", "projects/p/operations/x"));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_panic(text in "\\PC{0,80}") {
            let _ = Scope::parse(&text);
        }
    }
}
