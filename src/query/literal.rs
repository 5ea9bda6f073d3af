//! The right side of a comparison: what its text may stand for, and how that
//! compares with a value. Three-valued, because a value may not be known.

use std::cmp::Ordering;

use prost_types::{Duration, Timestamp};

use super::filter::{Comparator, Pattern};

/// What is known of a statement. The order makes "and" the least and "or" the
/// greatest of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TruthValue {
    False,
    Unknown,
    True,
}

/// A text, and every value that it may stand for; which of them is meant is
/// decided by the type of the field.
#[derive(Clone, Debug)]
pub(crate) struct Literal {
    pub(crate) pattern: Pattern,
    integer: Option<i128>,
    float: Option<f64>,
    time_ns: Option<i128>,
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
    /// The name of an enum's value.
    Enum(&'a str),
    Null,
    /// Bytes, and what else cannot be compared.
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

/// Why a comparison makes no sense.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TypeError {
    /// There is no such field; so many segments from the end of the path.
    UnknownField(usize),
    /// The literal cannot be compared with the field: this was expected.
    ExpectedValue(String),
    /// This was expected in place of the comparator.
    ExpectedComparator(&'static str),
}

// === impl Truth ===

impl TruthValue {
    pub(crate) fn not(self) -> Self {
        match self {
            Self::False => Self::True,
            Self::Unknown => Self::Unknown,
            Self::True => Self::False,
        }
    }
}

impl From<bool> for TruthValue {
    fn from(is_true: bool) -> Self {
        if is_true { Self::True } else { Self::False }
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

    /// Whether it can be compared with values of a type.
    pub(crate) fn check_type(
        &self,
        comparator: Comparator,
        scalar_type: &ScalarType,
    ) -> Result<(), TypeError> {
        let is_ordering = comparator.is_ordering();
        if comparator == Comparator::Has && self.pattern.is_wildcard() {
            return Ok(());
        }
        let (is_valid, expected) = match scalar_type {
            ScalarType::Text if is_ordering => (self.pattern.exact().is_some(), "a text without *"),
            ScalarType::Text => (true, "a text"),
            ScalarType::Bool | ScalarType::Enum(_) if is_ordering => {
                return Err(TypeError::ExpectedComparator(
                    "= or !=, for it has no order",
                ));
            }
            ScalarType::Bool => (self.as_bool().is_some(), "true or false"),
            ScalarType::Enum(names) => {
                let is_enum_value = |exact| names.iter().any(|name| name == exact);
                if self.pattern.exact().is_some_and(is_enum_value) {
                    return Ok(());
                }
                return Err(TypeError::ExpectedValue(format!(
                    "one of {}",
                    names.join(", ")
                )));
            }
            ScalarType::Integer => (self.integer.is_some(), "a whole number"),
            ScalarType::Float => (self.float.is_some(), "a number"),
            ScalarType::Time => (
                self.time_ns.is_some(),
                "a time as RFC 3339 has it, such as 2026-11-21T15:04:05Z",
            ),
            ScalarType::Duration => (
                self.duration_ns.is_some(),
                "a duration in seconds, such as 90s or 1.5s",
            ),
            ScalarType::Opaque => {
                return Err(TypeError::ExpectedComparator("`:*`, for it is bytes"));
            }
        };
        if is_valid {
            Ok(())
        } else {
            Err(TypeError::ExpectedValue(expected.to_owned()))
        }
    }

    /// How a value compares; not known if the literal cannot mean such a value.
    pub(crate) fn evaluate(&self, comparator: Comparator, value: FieldValue<'_>) -> TruthValue {
        if value == FieldValue::Null || self.pattern.exact() == Some("null") {
            return self.evaluate_null(comparator, value);
        }
        if let FieldValue::Text(text) = value {
            return self.evaluate_text(comparator, text);
        }
        match self.compare(value) {
            None => TruthValue::Unknown,
            Some(_) if comparator.is_ordering() && !value.is_ordered() => TruthValue::Unknown,
            // NaN is not equal to anything, itself included.
            Some(None) => (comparator == Comparator::NotEqual).into(),
            Some(Some(order)) => comparator.is_satisfied_by(order).into(),
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

    /// Null is equal to null, and to nothing else.
    fn evaluate_null(&self, comparator: Comparator, value: FieldValue<'_>) -> TruthValue {
        let is_null_literal = self.pattern.exact() == Some("null");
        match (value, comparator) {
            (FieldValue::Text(text), _) => self.evaluate_text(comparator, text),
            (FieldValue::Null, Comparator::Equal | Comparator::Has) if is_null_literal => {
                TruthValue::True
            }
            (FieldValue::Null, Comparator::NotEqual) if is_null_literal => TruthValue::False,
            (FieldValue::Null, _) => TruthValue::Unknown,
            (_, Comparator::Equal | Comparator::Has) => TruthValue::False,
            (_, Comparator::NotEqual) => TruthValue::True,
            _ => TruthValue::Unknown,
        }
    }

    /// How a value stands to the literal; nothing if the literal cannot be such
    /// a value, and no order if one of them is not a number.
    fn compare(&self, field_value: FieldValue<'_>) -> Option<Option<Ordering>> {
        match field_value {
            FieldValue::Bool(value) => Some(Some(value.cmp(&self.as_bool()?))),
            FieldValue::Integer(value) => Some(Some(value.cmp(&self.integer?))),
            FieldValue::Float64(value) => Some(value.partial_cmp(&self.float?)),
            #[expect(
                clippy::cast_possible_truncation,
                reason = "0.1 must be equal to a float of 0.1"
            )]
            FieldValue::Float32(value) => Some(value.partial_cmp(&(self.float? as f32))),
            FieldValue::Time(value) => Some(Some(value.cmp(&self.time_ns?))),
            FieldValue::Duration(value) => Some(Some(value.cmp(&self.duration_ns?))),
            FieldValue::Enum(name) => Some(Some(name.cmp(self.pattern.exact()?))),
            FieldValue::Text(_) | FieldValue::Null | FieldValue::Opaque => None,
        }
    }

    fn as_bool(&self) -> Option<bool> {
        match self.pattern.exact()? {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    /// The time that it stands for, in nanoseconds since 1970.
    pub(crate) fn time_ns(&self) -> Option<i128> {
        self.time_ns
    }
}

// === impl Held ===

impl FieldValue<'_> {
    fn is_ordered(self) -> bool {
        !matches!(self, Self::Bool(_) | Self::Enum(_))
    }
}

// === impl Comparator ===

impl Comparator {
    /// Whether a value that stands so to the literal is what was asked for.
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

// === What a text may stand for ===

/// A whole number; also one with an exponent, if it is whole and exact.
fn parse_integer(text: &str) -> Option<i128> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let number = parse_float(text).filter(|_| text.contains(['e', 'E']))?;
    let is_exact = number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it is whole and below 2^53"
    )]
    is_exact.then_some(number as i128)
}

fn parse_float(text: &str) -> Option<f64> {
    // Rust also reads `inf` and `nan`, which are words here.
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

/// The nanoseconds of a protobuf timestamp or duration.
pub(crate) fn total_nanoseconds(seconds: i64, nanos: i32) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_text_is_parsed_as_number_time_or_duration() {
        assert_eq!(parse_integer("18446744073709551615"), Some(u64::MAX.into()));
        assert_eq!(parse_integer("-9223372036854775808"), Some(i64::MIN.into()));
        assert_eq!(parse_integer("1e3"), Some(1000));
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
