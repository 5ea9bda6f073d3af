//! Filters (AIP-160): what one says, and how it prints. The parser lives in
//! `parse`; what a filter means for an operation, in `eval`.

use std::{fmt, sync::Arc};

use crate::operation::name::excerpt;

/// What a filter says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Filter {
    /// All of them hold; of nothing, that is everything.
    And(Vec<Filter>),
    /// One of them holds, or more.
    Or(Vec<Filter>),
    /// It does not hold.
    Not(Box<Filter>),
    /// A field is compared with a value.
    Restriction(Restriction),
    /// The text stands somewhere in the operation.
    Global(Pattern),
}

/// A field, a comparator and a value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Restriction {
    pub(crate) path: Path,
    pub(crate) comparator: Comparator,
    pub(crate) value: Pattern,
}

/// A field, and those inside it. Clones share the segments.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Path(pub(crate) Arc<[Segment]>);

/// One part of a path: a field or the key of a map.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Segment {
    pub(crate) name: Box<str>,
    pub(crate) column: Column,
}

/// How a field is compared.
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

/// A text of a filter, which a `*` can leave open at either end. What it stands
/// for is decided by what it is compared with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pattern {
    pub(crate) body: Box<str>,
    /// Anything may stand in front of the body.
    pub(crate) leading_wildcard: bool,
    /// Anything may follow the body.
    pub(crate) trailing_wildcard: bool,
    pub(crate) column: Column,
}

/// Where something stands in the text of a filter: its character, from 1. Two
/// filters that differ in nothing else are the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column(pub(crate) usize);

/// Why a text is no filter, or not one of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {problem}")]
pub struct InvalidFilter {
    /// The character at which it goes wrong, from 1.
    pub column: usize,
    /// What was expected, and what was found.
    pub problem: String,
}

// === impl Filter ===

impl Filter {
    /// All of these; a single one stands for itself, nested ones are opened.
    pub(crate) fn conjunction(filters: Vec<Self>) -> Self {
        flatten(filters, Self::And, |filter| match filter {
            Self::And(inner) => Ok(inner),
            other => Err(other),
        })
    }

    /// One of these; a single one stands for itself, nested ones are opened.
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
    /// Prints what parses to the same filter. Parentheses stand where the
    /// grammar needs them, so that no filter prints deeper than it was written.
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
    /// Whether values must have an order for it.
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

// === impl Text ===

impl Pattern {
    /// Whether it is `*` alone: with `:`, the question whether there is anything.
    pub(crate) fn is_wildcard(&self) -> bool {
        (self.leading_wildcard || self.trailing_wildcard) && self.body.is_empty()
    }

    /// The text if no `*` leaves it open.
    pub(crate) fn exact(&self) -> Option<&str> {
        (!self.leading_wildcard && !self.trailing_wildcard).then_some(&*self.body)
    }

    /// The text with its stars.
    pub(crate) fn to_source_text(&self) -> String {
        let (leading, trailing) = (
            wildcard_str(self.leading_wildcard),
            wildcard_str(self.trailing_wildcard),
        );
        format!("{leading}{}{trailing}", self.body)
    }

    /// Whether this is the other text, but for what is left open.
    pub(crate) fn is_match(&self, other: &str) -> bool {
        match (self.leading_wildcard, self.trailing_wildcard) {
            (false, false) => *self.body == *other,
            (false, true) => other.starts_with(&*self.body),
            (true, false) => other.ends_with(&*self.body),
            (true, true) => other.contains(&*self.body),
        }
    }

    /// Whether this stands somewhere in the other text; one with a `*` is the
    /// whole of it.
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

    /// Something else was expected than what was found.
    pub(crate) fn expected(column: Column, expected: &str, found: &str) -> Self {
        Self::new(
            column,
            format!("expected {expected}, found {}", excerpt(found)),
        )
    }
}

// === What needs no quotes ===

/// Whether a character can stand in a word without quotes.
pub(crate) fn is_word_char(character: char) -> bool {
    !character.is_whitespace() && !character.is_control() && !"(),.<>=!:\"'\\".contains(character)
}

/// Whether a word means something to the grammar.
pub(crate) fn is_keyword(word: &str) -> bool {
    matches!(word, "AND" | "OR" | "NOT")
}

/// Whether a text is read back without quotes where a field or a bare word may
/// stand.
fn is_bare_word(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(is_word_char)
        && !text.starts_with('-')
        && !is_keyword(text)
}

/// Whether a text is read back without quotes behind a comparator.
fn is_bare_value(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|character| is_word_char(character) || ".:".contains(character))
        && !text.starts_with(':')
        && !is_keyword(text)
}
