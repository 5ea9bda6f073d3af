//! The syntax tree of filters (AIP-160).

use std::{fmt, sync::Arc};

use crate::operation::name::excerpt;

/// A parsed filter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Filter {
    /// True if all are true; an empty conjunction is always true.
    And(Vec<Filter>),
    /// True if any is true.
    Or(Vec<Filter>),
    Not(Box<Filter>),
    Restriction(Restriction),
    /// True if a text of the operation contains the pattern.
    Global(Pattern),
}

/// A field, a comparator and a value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Restriction {
    pub(crate) path: Path,
    pub(crate) comparator: Comparator,
    pub(crate) value: Pattern,
}

/// A field and the nested fields that lead to the value. Clones share the segments.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Path(pub(crate) Arc<[Segment]>);

/// One segment of a path: a field name or a map key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Segment {
    pub(crate) name: Box<str>,
    pub(crate) column: Column,
}

/// A comparison operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparator {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Has,
}

/// The text of a value, with an optional wildcard at either end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pattern {
    pub(crate) body: Box<str>,
    pub(crate) leading_wildcard: bool,
    pub(crate) trailing_wildcard: bool,
    pub(crate) column: Column,
}

/// A position in the text of a filter, in characters from 1. All columns are equal, so
/// that filters compare by their content.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column(pub(crate) usize);

/// A filter with a syntax error, an unknown field, or a value of the wrong type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {problem}")]
pub struct InvalidFilter {
    /// The position of the error, in characters from 1.
    pub column: usize,
    /// A description of the expected and the found text.
    pub problem: String,
}

// === impl Filter ===

impl Filter {
    /// Combines filters with AND. A single filter is returned as it is, nested conjunctions
    /// are flattened.
    pub(crate) fn conjunction(filters: Vec<Self>) -> Self {
        let to_operands = |filter| match filter {
            Self::And(inner) => inner,
            other => vec![other],
        };
        combine_flat(filters, to_operands, Self::And)
    }

    /// Combines filters with OR. A single filter is returned as it is, nested disjunctions
    /// are flattened.
    pub(crate) fn disjunction(filters: Vec<Self>) -> Self {
        let to_operands = |filter| match filter {
            Self::Or(inner) => inner,
            other => vec![other],
        };
        combine_flat(filters, to_operands, Self::Or)
    }
}

/// Combines the operands of all filters, or returns a single operand as it is.
fn combine_flat(
    filters: Vec<Filter>,
    to_operands: fn(Filter) -> Vec<Filter>,
    combine: fn(Vec<Filter>) -> Filter,
) -> Filter {
    let operands: Vec<_> = filters.into_iter().flat_map(to_operands).collect();
    match <[Filter; 1]>::try_from(operands) {
        Ok([single]) => single,
        Err(operands) => combine(operands),
    }
}

// === impl Path ===

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Segment { name, .. }) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { "." })?;
            if is_bare_word(name) && !name.contains(['*', '[', ']']) {
                f.write_str(name)?;
            } else {
                write!(f, "\"{}\"", escape(name))?;
            }
        }
        Ok(())
    }
}

// === impl Comparator ===

impl Comparator {
    /// Returns whether the comparator needs values with an order.
    pub(crate) fn is_ordering(self) -> bool {
        matches!(
            self,
            Self::Less | Self::LessEqual | Self::Greater | Self::GreaterEqual
        )
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessEqual => "<=",
            Self::Greater => ">",
            Self::GreaterEqual => ">=",
            Self::Has => ":",
        }
    }
}

// === impl Pattern ===

impl Pattern {
    /// Returns `true` for `*` alone; with `:` it tests whether a field is set.
    pub(crate) fn is_wildcard(&self) -> bool {
        (self.leading_wildcard || self.trailing_wildcard) && self.body.is_empty()
    }

    /// Returns the text, or `None` if it has a wildcard.
    pub(crate) fn exact(&self) -> Option<&str> {
        (!self.leading_wildcard && !self.trailing_wildcard).then_some(&*self.body)
    }

    /// Returns the text with its wildcards.
    pub(crate) fn to_source_text(&self) -> String {
        let wildcard = |is_wildcard| if is_wildcard { "*" } else { "" };
        let (leading, trailing) = (self.leading_wildcard, self.trailing_wildcard);
        format!("{}{}{}", wildcard(leading), self.body, wildcard(trailing))
    }

    /// Returns whether the pattern matches all of `other`.
    pub(crate) fn is_match(&self, other: &str) -> bool {
        match (self.leading_wildcard, self.trailing_wildcard) {
            (false, false) => *self.body == *other,
            (false, true) => other.starts_with(&*self.body),
            (true, false) => other.ends_with(&*self.body),
            (true, true) => other.contains(&*self.body),
        }
    }

    /// Returns whether `other` contains the text. A pattern with a wildcard must match all
    /// of `other`.
    pub(crate) fn is_found_in(&self, other: &str) -> bool {
        match self.exact() {
            Some(body) => other.contains(body),
            None => self.is_match(other),
        }
    }
}

// === impl Column ===

impl PartialEq for Column {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

// === impl InvalidFilter ===

impl InvalidFilter {
    pub(crate) fn new(column: Column, problem: impl Into<String>) -> Self {
        Self {
            column: column.0,
            problem: problem.into(),
        }
    }

    /// Creates the error for an unexpected text; shortens a long `found`.
    pub(crate) fn expected(column: Column, expected: &str, found: &str) -> Self {
        let found = excerpt(found);
        Self::new(column, format!("expected {expected}, found {found}"))
    }
}

// === Quoting ===

/// Returns whether an unquoted word can contain the character.
pub(crate) fn is_word_char(character: char) -> bool {
    !character.is_whitespace() && !character.is_control() && !"(),.<>=!:\"'\\".contains(character)
}

pub(crate) const KEYWORDS: [&str; 3] = ["AND", "OR", "NOT"];

pub(crate) fn is_keyword(word: &str) -> bool {
    KEYWORDS.contains(&word)
}

/// Returns the text as it is written between quotes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '"' | '\\' | '*' => escaped.extend(['\\', character]),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            character => escaped.push(character),
        }
    }
    escaped
}

/// Returns whether a text needs no quotes as a field or a global restriction.
pub(super) fn is_bare_word(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(is_word_char)
        && !text.starts_with('-')
        && !text.contains("&&")
        && !text.contains("||")
        && !is_keyword(text)
}
