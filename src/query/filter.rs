//! The syntax tree of filters (AIP-160), and its canonical text.

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
        flatten(filters, Self::And, |filter| match filter {
            Self::And(inner) => Ok(inner),
            other => Err(other),
        })
    }

    /// Combines filters with OR. A single filter is returned as it is, nested disjunctions
    /// are flattened.
    pub(crate) fn disjunction(filters: Vec<Self>) -> Self {
        flatten(filters, Self::Or, |filter| match filter {
            Self::Or(inner) => Ok(inner),
            other => Err(other),
        })
    }
}

fn flatten(
    filters: Vec<Filter>,
    combine: fn(Vec<Filter>) -> Filter,
    into_nested: fn(Filter) -> Result<Vec<Filter>, Filter>,
) -> Filter {
    let mut flat = Vec::with_capacity(filters.len());
    for filter in filters {
        match into_nested(filter) {
            Ok(inner) => flat.extend(inner),
            Err(filter) => flat.push(filter),
        }
    }
    match <[Filter; 1]>::try_from(flat) {
        Ok([single]) => single,
        Err(flat) => combine(flat),
    }
}

impl fmt::Display for Filter {
    /// Writes text that parses to the same filter, with parentheses only where the grammar
    /// needs them, so that the text is never nested deeper than the original.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::And(filters) => {
                for (index, filter) in filters.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { " AND " })?;
                    write!(f, "{filter}")?;
                }
                Ok(())
            }
            Self::Or(filters) => {
                for (index, filter) in filters.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { " OR " })?;
                    match filter {
                        Self::And(_) => write!(f, "({filter})")?,
                        _ => write!(f, "{filter}")?,
                    }
                }
                Ok(())
            }
            Self::Not(inner) => match &**inner {
                Self::Restriction(_) | Self::Global(_) => write!(f, "NOT {inner}"),
                _ => write!(f, "NOT ({inner})"),
            },
            Self::Restriction(Restriction {
                path,
                comparator,
                value,
            }) => {
                write!(f, "{path} {comparator} ")?;
                value.write_to(f, is_bare_value)
            }
            Self::Global(pattern) => pattern.write_to(f, is_bare_word),
        }
    }
}

// === impl Path ===

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Segment { name, .. }) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { "." })?;
            let is_bare = is_bare_word(name) && !name.contains(['*', '[', ']']);
            if is_bare {
                f.write_str(name)?;
            } else {
                write_quoted(name, false, false, f)?;
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

impl fmt::Display for Comparator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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
        let (leading, trailing) = (
            wildcard_str(self.leading_wildcard),
            wildcard_str(self.trailing_wildcard),
        );
        format!("{leading}{}{trailing}", self.body)
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

    fn write_to(&self, f: &mut fmt::Formatter<'_>, is_bare: fn(&str) -> bool) -> fmt::Result {
        let Self {
            body,
            leading_wildcard,
            trailing_wildcard,
            ..
        } = self;
        let source = self.to_source_text();
        if !body.contains('*') && is_bare(&source) {
            f.write_str(&source)
        } else {
            write_quoted(body, *leading_wildcard, *trailing_wildcard, f)
        }
    }
}

fn wildcard_str(is_wildcard: bool) -> &'static str {
    if is_wildcard { "*" } else { "" }
}

fn write_quoted(
    body: &str,
    leading_wildcard: bool,
    trailing_wildcard: bool,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    write!(f, "\"{}", wildcard_str(leading_wildcard))?;
    for character in body.chars() {
        match character {
            '"' | '\\' | '*' => write!(f, "\\{character}")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            character => write!(f, "{character}")?,
        }
    }
    write!(f, "{}\"", wildcard_str(trailing_wildcard))
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
        Self::new(
            column,
            format!("expected {expected}, found {}", excerpt(found)),
        )
    }
}

// === Quoting ===

/// Returns whether an unquoted word can contain the character.
pub(crate) fn is_word_char(character: char) -> bool {
    !character.is_whitespace() && !character.is_control() && !"(),.<>=!:\"'\\".contains(character)
}

pub(crate) fn is_keyword(word: &str) -> bool {
    matches!(word, "AND" | "OR" | "NOT")
}

/// Returns whether a text needs no quotes as a field or a global restriction.
fn is_bare_word(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(is_word_char)
        && !text.starts_with('-')
        && !is_keyword(text)
}

/// Returns whether a text needs no quotes after a comparator.
fn is_bare_value(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|character| is_word_char(character) || ".:".contains(character))
        && !text.starts_with(':')
        && !is_keyword(text)
}
