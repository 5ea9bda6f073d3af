//! The right side of a comparison: what its text may stand for, and how that
//! compares with a value. Three-valued, because a value may not be known.

use std::cmp::Ordering;

use prost_types::{Duration, Timestamp};

use super::filter::{Comparator, Text};

/// What is known of a statement. The order makes "and" the least and "or" the
/// greatest of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Truth {
    False,
    Unknown,
    True,
}

/// A text, and every value that it may stand for; which of them is meant is
/// decided by the type of the field.
#[derive(Clone, Debug)]
pub(crate) struct Literal {
    pub(crate) text: Text,
    integer: Option<i128>,
    float: Option<f64>,
    time: Option<i128>,
    duration: Option<i128>,
}

/// A value of an operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Held<'a> {
    Text(&'a str),
    Bool(bool),
    Integer(i128),
    Float(f64),
    Single(f32),
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
pub(crate) enum Scalar {
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
pub(crate) enum Misfit {
    /// There is no such field; so many segments from the end of the path.
    NoField(usize),
    /// The literal cannot be compared with the field: this was expected.
    Value(String),
    /// This was expected in place of the comparator.
    Comparator(&'static str),
}

// === impl Truth ===

impl Truth {
    pub(crate) fn not(self) -> Self {
        match self {
            Self::False => Self::True,
            Self::Unknown => Self::Unknown,
            Self::True => Self::False,
        }
    }
}

impl From<bool> for Truth {
    fn from(is_true: bool) -> Self {
        if is_true { Self::True } else { Self::False }
    }
}

// === impl Literal ===

impl Literal {
    pub(crate) fn new(text: Text) -> Self {
        let exact = text.exact().unwrap_or("");
        Self {
            integer: integer(exact),
            float: float(exact),
            time: time(exact),
            duration: duration(exact),
            text,
        }
    }

    /// Whether it can be compared with values of a type.
    pub(crate) fn check(&self, comparator: Comparator, scalar: &Scalar) -> Result<(), Misfit> {
        let is_ordering = comparator.is_ordering();
        if comparator == Comparator::Has && self.text.is_star() {
            return Ok(());
        }
        let (fits, expected) = match scalar {
            Scalar::Text if is_ordering => (self.text.exact().is_some(), "a text without *"),
            Scalar::Text => (true, "a text"),
            Scalar::Bool | Scalar::Enum(_) if is_ordering => {
                return Err(Misfit::Comparator("= or !=, for it has no order"));
            }
            Scalar::Bool => (self.bool().is_some(), "true or false"),
            Scalar::Enum(names) => {
                let is_one = |exact| names.iter().any(|name| name == exact);
                if self.text.exact().is_some_and(is_one) {
                    return Ok(());
                }
                return Err(Misfit::Value(format!("one of {}", names.join(", "))));
            }
            Scalar::Integer => (self.integer.is_some(), "a whole number"),
            Scalar::Float => (self.float.is_some(), "a number"),
            Scalar::Time => (
                self.time.is_some(),
                "a time as RFC 3339 has it, such as 2026-11-21T15:04:05Z",
            ),
            Scalar::Duration => (
                self.duration.is_some(),
                "a duration in seconds, such as 90s or 1.5s",
            ),
            Scalar::Opaque => return Err(Misfit::Comparator("`:*`, for it is bytes")),
        };
        if fits {
            Ok(())
        } else {
            Err(Misfit::Value(expected.to_owned()))
        }
    }

    /// How a value compares; not known if the literal cannot mean such a value.
    pub(crate) fn test(&self, comparator: Comparator, held: Held<'_>) -> Truth {
        if held == Held::Null || self.text.exact() == Some("null") {
            return self.compare_null(comparator, held);
        }
        if let Held::Text(text) = held {
            return self.compare_text(comparator, text);
        }
        match self.order(held) {
            None => Truth::Unknown,
            Some(_) if comparator.is_ordering() && !held.has_order() => Truth::Unknown,
            // NaN is not equal to anything, itself included.
            Some(None) => (comparator == Comparator::NotEqual).into(),
            Some(Some(order)) => comparator.holds(order).into(),
        }
    }

    fn compare_text(&self, comparator: Comparator, text: &str) -> Truth {
        match comparator {
            Comparator::Equal => self.text.is(text).into(),
            Comparator::NotEqual => (!self.text.is(text)).into(),
            Comparator::Has => self.text.is_in(text).into(),
            _ => match self.text.exact() {
                Some(exact) => comparator.holds(text.cmp(exact)).into(),
                None => Truth::Unknown,
            },
        }
    }

    /// Null is equal to null, and to nothing else.
    fn compare_null(&self, comparator: Comparator, held: Held<'_>) -> Truth {
        let means_null = self.text.exact() == Some("null");
        match (held, comparator) {
            (Held::Text(text), _) => self.compare_text(comparator, text),
            (Held::Null, Comparator::Equal | Comparator::Has) if means_null => Truth::True,
            (Held::Null, Comparator::NotEqual) if means_null => Truth::False,
            (Held::Null, _) => Truth::Unknown,
            (_, Comparator::Equal | Comparator::Has) => Truth::False,
            (_, Comparator::NotEqual) => Truth::True,
            _ => Truth::Unknown,
        }
    }

    /// How a value stands to the literal; nothing if the literal cannot be such
    /// a value, and no order if one of them is not a number.
    fn order(&self, held: Held<'_>) -> Option<Option<Ordering>> {
        match held {
            Held::Bool(value) => Some(Some(value.cmp(&self.bool()?))),
            Held::Integer(value) => Some(Some(value.cmp(&self.integer?))),
            Held::Float(value) => Some(value.partial_cmp(&self.float?)),
            #[expect(
                clippy::cast_possible_truncation,
                reason = "0.1 must be equal to a float of 0.1"
            )]
            Held::Single(value) => Some(value.partial_cmp(&(self.float? as f32))),
            Held::Time(value) => Some(Some(value.cmp(&self.time?))),
            Held::Duration(value) => Some(Some(value.cmp(&self.duration?))),
            Held::Enum(name) => Some(Some(name.cmp(self.text.exact()?))),
            Held::Text(_) | Held::Null | Held::Opaque => None,
        }
    }

    fn bool(&self) -> Option<bool> {
        match self.text.exact()? {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    /// The time that it stands for, in nanoseconds since 1970.
    pub(crate) fn time(&self) -> Option<i128> {
        self.time
    }
}

// === impl Held ===

impl Held<'_> {
    fn has_order(self) -> bool {
        !matches!(self, Self::Bool(_) | Self::Enum(_))
    }
}

// === impl Comparator ===

impl Comparator {
    /// Whether a value that stands so to the literal is what was asked for.
    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Equal | Self::Has => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterEqual => order.is_ge(),
        }
    }
}

// === What a text may stand for ===

/// A whole number; also one with an exponent, if it is whole and exact.
fn integer(text: &str) -> Option<i128> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let number = float(text).filter(|_| text.contains(['e', 'E']))?;
    let is_exact = number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it is whole and below 2^53"
    )]
    is_exact.then_some(number as i128)
}

fn float(text: &str) -> Option<f64> {
    // Rust also reads `inf` and `nan`, which are words here.
    let is_number = |letter: char| letter.is_ascii_digit() || "+-.eE".contains(letter);
    let number: f64 = text.parse().ok().filter(|_| text.chars().all(is_number))?;
    number.is_finite().then_some(number)
}

fn time(text: &str) -> Option<i128> {
    let (date, rest) = text.split_at_checked(10)?;
    let is_date = date.bytes().enumerate().all(|(at, byte)| match at {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    });
    let has_zone = rest.ends_with(['Z', 'z']) || rest.contains(['+', '-']);
    if !is_date || !rest.starts_with(['T', 't']) || !has_zone {
        return None;
    }
    let Timestamp { seconds, nanos } = text.parse().ok()?;
    Some(nanoseconds(seconds, nanos))
}

fn duration(text: &str) -> Option<i128> {
    let number = text.strip_suffix('s')?;
    if !number.ends_with(|last: char| last.is_ascii_digit()) {
        return None;
    }
    let Duration { seconds, nanos } = text.parse().ok()?;
    Some(nanoseconds(seconds, nanos))
}

/// The nanoseconds of a protobuf timestamp or duration.
pub(crate) fn nanoseconds(seconds: i64, nanos: i32) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_literal_is_a_number_a_time_or_a_duration_if_it_looks_like_one() {
        assert_eq!(integer("18446744073709551615"), Some(u64::MAX.into()));
        assert_eq!(integer("-9223372036854775808"), Some(i64::MIN.into()));
        assert_eq!(integer("1e3"), Some(1000));
        for none in ["1.5", "1e-1", "1e300", "", "x", "0x10", "99e99", "inf"] {
            assert_eq!(integer(none), None, "{none}");
        }
        assert_eq!(float("-2.5e1"), Some(-25.0));
        for none in [
            "inf", "-inf", "nan", "NaN", "infinity", "1e999", "", "1.2.3",
        ] {
            assert_eq!(float(none), None, "{none}");
        }
        let noon = 1_522_238_400_000_000_000;
        assert_eq!(time("2018-03-28T12:00:00Z"), Some(noon));
        assert_eq!(time("2018-03-28T14:00:00+02:00"), Some(noon));
        assert_eq!(time("2018-03-28t12:00:00.5z"), Some(noon + 500_000_000));
        for none in [
            "yesterday",
            "2018-03-28",
            "2018-03-28T12:00:00",
            "2018-02-30T12:00:00Z",
            "é018-03-28T12:00:00Z",
        ] {
            assert_eq!(time(none), None, "{none}");
        }
        assert_eq!(duration("20s"), Some(20_000_000_000));
        assert_eq!(duration("-1.2s"), Some(-1_200_000_000));
        for none in ["s", "20", "1.s", "5m", "1e3s", "999999999999999999999s"] {
            assert_eq!(duration(none), None, "{none}");
        }
    }
}
