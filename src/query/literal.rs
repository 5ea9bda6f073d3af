//! The right-hand side of a restriction: the values its text can stand for, and their
//! comparison with field values in three-valued (Kleene) logic.

use std::cmp::Ordering;

use prost_types::{Duration, Timestamp};

use super::filter::{Comparator, Pattern};

/// A truth value of Kleene logic. The order makes AND the minimum and OR the maximum of
/// two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TruthValue {
    False,
    Unknown,
    True,
}

/// A comparator with its right-hand side.
#[derive(Clone, Debug)]
pub(crate) struct Comparison {
    pub(crate) comparator: Comparator,
    pub(crate) literal: Literal,
}

/// A text with every value that it can stand for; the type of the field decides which
/// one applies.
#[derive(Clone, Debug)]
pub(crate) struct Literal {
    pub(crate) pattern: Pattern,
    integer: Option<i128>,
    float: Option<f64>,
    /// Nanoseconds since 1970.
    pub(super) time_ns: Option<i128>,
    duration_ns: Option<i128>,
}

/// A value of an operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum FieldValue<'a> {
    Text(&'a str),
    Bool(bool),
    Integer(i128),
    Float64(f64),
    Float32(f32),
    /// Nanoseconds since 1970.
    Time(i128),
    /// Nanoseconds.
    Duration(i128),
    /// The name of an enum value.
    Enum(&'a str),
    Null,
    /// Bytes and other values that cannot be compared.
    Opaque,
}

/// The types of values that can be compared.
#[derive(Clone, Debug)]
pub(crate) enum ScalarType {
    Text,
    Bool,
    Integer,
    Float,
    Time,
    Duration,
    /// One of these names.
    Enum(Vec<String>),
    Opaque,
}

/// Why a restriction does not fit the type of its field.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TypeError {
    /// A segment of the path is no field.
    UnknownField {
        /// How many segments of the path are left, with the unknown one.
        remaining_segments: usize,
    },
    /// The literal is no value of the field; holds a description of the expected value.
    ExpectedValue(String),
    /// The comparator cannot be used; holds a description of the expected comparator.
    ExpectedComparator(&'static str),
}

// === impl TruthValue ===

impl TruthValue {
    /// Returns the negation; `Unknown` stays `Unknown`.
    pub(crate) fn not(self) -> Self {
        match self {
            Self::False => Self::True,
            Self::Unknown => Self::Unknown,
            Self::True => Self::False,
        }
    }

    /// Returns the disjunction of truth values; takes no more of them than needed.
    pub(crate) fn any(values: impl IntoIterator<Item = Self>) -> Self {
        let mut any = Self::False;
        for value in values {
            any = any.max(value);
            if any == Self::True {
                break;
            }
        }
        any
    }
}

impl From<bool> for TruthValue {
    fn from(is_true: bool) -> Self {
        if is_true { Self::True } else { Self::False }
    }
}

// === impl Comparison ===

impl Comparison {
    /// Returns `true` for `:*`, which tests whether a field is set.
    pub(crate) fn is_presence_test(&self) -> bool {
        self.comparator == Comparator::Has && self.literal.pattern.is_wildcard()
    }

    /// Checks that values of this type can be compared in this way.
    pub(crate) fn check_type(&self, scalar_type: &ScalarType) -> Result<(), TypeError> {
        if self.is_presence_test() {
            return Ok(());
        }
        let is_ordering = self.comparator.is_ordering();
        let literal = &self.literal;
        let exact = literal.pattern.exact();
        let (is_valid, expected) = match scalar_type {
            ScalarType::Text => (!is_ordering || exact.is_some(), "a text without *"),
            ScalarType::Bool | ScalarType::Enum(_) if is_ordering => {
                return Err(TypeError::ExpectedComparator(
                    "= or !=, because it has no order",
                ));
            }
            ScalarType::Bool => (literal.as_bool().is_some(), "true or false"),
            ScalarType::Enum(names) => {
                if exact.is_some_and(|exact| names.iter().any(|name| name == exact)) {
                    return Ok(());
                }
                let expected = format!("one of {}", names.join(", "));
                return Err(TypeError::ExpectedValue(expected));
            }
            ScalarType::Integer => (literal.integer.is_some(), "an integer"),
            ScalarType::Float => (literal.float.is_some(), "a number"),
            ScalarType::Time => (
                literal.time_ns.is_some(),
                "an RFC 3339 time, such as 2026-11-21T15:04:05Z",
            ),
            ScalarType::Duration => (
                literal.duration_ns.is_some(),
                "a duration in seconds, such as 90s or 1.5s",
            ),
            ScalarType::Opaque => {
                return Err(TypeError::ExpectedComparator("`:*`, because it is bytes"));
            }
        };
        if is_valid {
            Ok(())
        } else {
            Err(TypeError::ExpectedValue(expected.to_owned()))
        }
    }

    /// Compares a value; see [`Literal::evaluate`].
    pub(crate) fn evaluate(&self, value: FieldValue<'_>) -> TruthValue {
        self.literal.evaluate(self.comparator, value)
    }
}

// === impl Literal ===

impl Literal {
    pub(crate) fn new(pattern: Pattern) -> Self {
        let exact = pattern.exact().unwrap_or("");
        Self {
            integer: parse_integer(exact),
            float: parse_float(exact),
            time_ns: parse_time_ns(exact),
            duration_ns: parse_duration_ns(exact),
            pattern,
        }
    }

    /// Compares a value with the literal. The result is `Unknown` if the literal is no
    /// value of that type, or if the type has no order and the comparator needs one.
    pub(crate) fn evaluate(&self, comparator: Comparator, value: FieldValue<'_>) -> TruthValue {
        if let FieldValue::Text(text) = value {
            return self.evaluate_text(comparator, text);
        }
        if value == FieldValue::Null || self.is_null() {
            return self.evaluate_null(comparator, value);
        }
        match self.compare(value) {
            Some(_) if comparator.is_ordering() && !value.is_ordered() => TruthValue::Unknown,
            Some(order) => comparator.is_satisfied_by(order).into(),
            // NaN is not equal to anything, itself included.
            None if value.is_nan() && self.float.is_some() => {
                (comparator == Comparator::NotEqual).into()
            }
            None => TruthValue::Unknown,
        }
    }

    fn evaluate_text(&self, comparator: Comparator, text: &str) -> TruthValue {
        match comparator {
            Comparator::Equal => self.pattern.is_match(text).into(),
            Comparator::NotEqual => (!self.pattern.is_match(text)).into(),
            Comparator::Has => self.pattern.is_found_in(text).into(),
            _ => match self.pattern.exact() {
                Some(exact) => comparator.is_satisfied_by(text.cmp(exact)).into(),
                None => TruthValue::Unknown,
            },
        }
    }

    /// Compares a value if it or the literal is `null`, which is equal to `null` only.
    fn evaluate_null(&self, comparator: Comparator, value: FieldValue<'_>) -> TruthValue {
        match (value, comparator) {
            (FieldValue::Null, Comparator::Equal | Comparator::Has) if self.is_null() => {
                TruthValue::True
            }
            (FieldValue::Null, Comparator::NotEqual) if self.is_null() => TruthValue::False,
            (FieldValue::Null, _) => TruthValue::Unknown,
            (_, Comparator::Equal | Comparator::Has) => TruthValue::False,
            (_, Comparator::NotEqual) => TruthValue::True,
            _ => TruthValue::Unknown,
        }
    }

    /// Returns the order of a value relative to the literal, or `None` if the literal is
    /// no value of that type or the value is NaN.
    fn compare(&self, field_value: FieldValue<'_>) -> Option<Ordering> {
        match field_value {
            FieldValue::Bool(value) => Some(value.cmp(&self.as_bool()?)),
            FieldValue::Integer(value) => Some(value.cmp(&self.integer?)),
            FieldValue::Float64(value) => value.partial_cmp(&self.float?),
            #[expect(
                clippy::cast_possible_truncation,
                reason = "0.1 must be equal to a float of 0.1"
            )]
            FieldValue::Float32(value) => value.partial_cmp(&(self.float? as f32)),
            FieldValue::Time(value) => Some(value.cmp(&self.time_ns?)),
            FieldValue::Duration(value) => Some(value.cmp(&self.duration_ns?)),
            FieldValue::Enum(name) => Some(name.cmp(self.pattern.exact()?)),
            FieldValue::Text(_) | FieldValue::Null | FieldValue::Opaque => None,
        }
    }

    fn is_null(&self) -> bool {
        self.pattern.exact() == Some("null")
    }

    fn as_bool(&self) -> Option<bool> {
        match self.pattern.exact()? {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }
}

// === impl FieldValue ===

impl FieldValue<'_> {
    fn is_ordered(self) -> bool {
        !matches!(self, Self::Bool(_) | Self::Enum(_))
    }

    fn is_nan(self) -> bool {
        match self {
            Self::Float64(value) => value.is_nan(),
            Self::Float32(value) => value.is_nan(),
            _ => false,
        }
    }
}

// === impl Comparator ===

impl Comparator {
    /// Returns whether a value with this order relative to the literal satisfies the
    /// comparator.
    fn is_satisfied_by(self, ordering: Ordering) -> bool {
        match self {
            Self::Equal | Self::Has => ordering.is_eq(),
            Self::NotEqual => ordering.is_ne(),
            Self::Less => ordering.is_lt(),
            Self::LessEqual => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterEqual => ordering.is_ge(),
        }
    }
}

// === Parsing ===

/// Parses an integer, also one with an exponent or a fraction of zero, if a double holds it
/// exactly.
fn parse_integer(text: &str) -> Option<i128> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let number = parse_float(text).filter(|_| text.contains(['e', 'E', '.']))?;
    let is_exact = number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the value is an integer below 2^53"
    )]
    is_exact.then_some(number as i128)
}

fn parse_float(text: &str) -> Option<f64> {
    // `f64::from_str` also accepts `inf` and `nan`, which are words in a filter.
    let is_number = |character: char| character.is_ascii_digit() || "+-.eE".contains(character);
    let number: f64 = text.parse().ok().filter(|_| text.chars().all(is_number))?;
    number.is_finite().then_some(number)
}

fn parse_time_ns(text: &str) -> Option<i128> {
    let (date, rest) = text.split_at_checked(10)?;
    let is_date = date.bytes().enumerate().all(|(index, byte)| match index {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    });
    let has_zone = rest.ends_with(['Z', 'z']) || rest.contains(['+', '-']);
    if !is_date || !rest.starts_with(['T', 't']) || !has_zone {
        return None;
    }
    let Timestamp { seconds, nanos } = text.parse().ok()?;
    Some(total_nanoseconds(seconds, nanos))
}

fn parse_duration_ns(text: &str) -> Option<i128> {
    let number = text.strip_suffix('s')?;
    if !number.ends_with(|last: char| last.is_ascii_digit()) {
        return None;
    }
    let Duration { seconds, nanos } = text.parse().ok()?;
    Some(total_nanoseconds(seconds, nanos))
}

/// Returns the nanoseconds of a protobuf timestamp or duration.
pub(crate) fn total_nanoseconds(seconds: i64, nanos: i32) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Rules: FIL-9
    #[test]
    fn literal_text_is_parsed_as_number_time_or_duration() {
        assert_eq!(parse_integer("18446744073709551615"), Some(u64::MAX.into()));
        assert_eq!(parse_integer("-9223372036854775808"), Some(i64::MIN.into()));
        assert_eq!(parse_integer("1e3"), Some(1000));
        assert_eq!(parse_integer("-5.0"), Some(-5));
        for invalid in ["1.5", "1e-1", "1e300", "", "x", "0x10", "99e99", "inf"] {
            assert_eq!(parse_integer(invalid), None, "{invalid}");
        }
        assert_eq!(parse_float("-2.5e1"), Some(-25.0));
        for invalid in [
            "inf", "-inf", "nan", "NaN", "infinity", "1e999", "", "1.2.3",
        ] {
            assert_eq!(parse_float(invalid), None, "{invalid}");
        }
        let noon_ns = 1_522_238_400_000_000_000;
        assert_eq!(parse_time_ns("2018-03-28T12:00:00Z"), Some(noon_ns));
        assert_eq!(parse_time_ns("2018-03-28T14:00:00+02:00"), Some(noon_ns));
        assert_eq!(
            parse_time_ns("2018-03-28t12:00:00.5z"),
            Some(noon_ns + 500_000_000)
        );
        for invalid in [
            "yesterday",
            "2018-03-28",
            "2018-03-28T12:00:00",
            "2018-02-30T12:00:00Z",
            "é018-03-28T12:00:00Z",
        ] {
            assert_eq!(parse_time_ns(invalid), None, "{invalid}");
        }
        assert_eq!(parse_duration_ns("20s"), Some(20_000_000_000));
        assert_eq!(parse_duration_ns("-1.2s"), Some(-1_200_000_000));
        for invalid in ["s", "20", "1.s", "5m", "1e3s", "999999999999999999999s"] {
            assert_eq!(parse_duration_ns(invalid), None, "{invalid}");
        }
    }
}
