//! Which operations a filter can be true of, as far as the store keeps groups
//! of them: what a list looks at instead of everything. A plan may hold too
//! many, never too few; the filter itself is asked about each.

use std::fmt;

use super::{
    eval::{CompiledFilter, Expr},
    fields::{STATES, ScalarField},
    filter::{Comparator, Pattern},
    literal::{FieldValue, Literal, TruthValue},
};
use crate::proto::longrunning::v1::operation_metadata::State;

/// The operations that a filter can be true of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) candidates: Candidates,
    pub(crate) creation_range: TimeRange,
}

/// A set of operations, put together from groups.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Candidates {
    Everything,
    Lookup(IndexLookup),
    /// Those in all of them.
    Intersection(Vec<Candidates>),
    /// Those in any of them.
    Union(Vec<Candidates>),
}

/// Operations that the store keeps together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum IndexLookup {
    /// In this state, which is not SUCCEEDED: most operations are, and those
    /// are better looked at in their order.
    State(State),
    Queue(Box<str>),
    Label(Box<str>, Box<str>),
    /// The one with this name.
    Name(Box<str>),
    /// With a name that begins so.
    NamePrefix(Box<str>),
}

/// A range of creation times, in nanoseconds since 1970, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeRange {
    pub(crate) from_ns: i128,
    pub(crate) to_ns: i128,
}

// === impl Plan ===

impl Plan {
    /// The plan of a list without a filter.
    pub(crate) const EVERYTHING: Self = Self {
        candidates: Candidates::Everything,
        creation_range: TimeRange::ALL,
    };

    /// The plan for a filter.
    pub(crate) fn from_filter(filter: &CompiledFilter) -> Self {
        Self {
            candidates: candidates(&filter.root, true),
            creation_range: creation_range(&filter.root, true),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.candidates)?;
        if self.creation_range != TimeRange::ALL {
            f.write_str(", by creation time")?;
        }
        Ok(())
    }
}

// === impl Among ===

impl Candidates {
    /// Whether an operation that is done may be one of them.
    pub(crate) fn can_be_done(&self) -> bool {
        match self {
            Self::Lookup(IndexLookup::State(state)) => {
                !matches!(state, State::Pending | State::Running)
            }
            Self::Everything | Self::Lookup(_) => true,
            Self::Intersection(sets) => sets.iter().all(Self::can_be_done),
            Self::Union(sets) => sets.iter().any(Self::can_be_done),
        }
    }

    fn intersection(sets: impl Iterator<Item = Self>) -> Self {
        let mut operands = Vec::new();
        for set in sets {
            match set {
                Self::Everything => {}
                Self::Intersection(inner) => inner
                    .into_iter()
                    .for_each(|set| push_unique(&mut operands, set)),
                set => push_unique(&mut operands, set),
            }
        }
        match operands.len() {
            0 => Self::Everything,
            1 => operands.remove(0),
            _ => Self::Intersection(operands),
        }
    }

    fn union(sets: impl Iterator<Item = Self>) -> Self {
        let mut operands = Vec::new();
        for set in sets {
            match set {
                Self::Everything => return Self::Everything,
                Self::Union(inner) => inner
                    .into_iter()
                    .for_each(|set| push_unique(&mut operands, set)),
                set => push_unique(&mut operands, set),
            }
        }
        match operands.len() {
            1 => operands.remove(0),
            _ => Self::Union(operands),
        }
    }
}

/// Adds a set to others, unless it is one of them: each costs look-ups.
fn push_unique(sets: &mut Vec<Candidates>, set: Candidates) {
    if !sets.contains(&set) {
        sets.push(set);
    }
}

impl fmt::Display for Candidates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("everything"),
            Self::Lookup(lookup) => write!(f, "{lookup}"),
            Self::Intersection(sets) => write_joined(sets, " and ", f),
            Self::Union(sets) => write_joined(sets, " or ", f),
        }
    }
}

/// Writes sets with a word between them.
pub(crate) fn write_joined<T: fmt::Display>(
    sets: &[T],
    separator: &str,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    f.write_str("(")?;
    for (index, set) in sets.iter().enumerate() {
        f.write_str(if index == 0 { "" } else { separator })?;
        write!(f, "{set}")?;
    }
    f.write_str(")")
}

impl fmt::Display for IndexLookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(state) => write!(f, "state {}", state.as_str_name()),
            Self::Queue(queue) => write!(f, "queue {queue}"),
            Self::Label(key, value) => write!(f, "label {key}={value:?}"),
            Self::Name(name) => write!(f, "name {name:?}"),
            Self::NamePrefix(prefix) => write!(f, "names with {prefix:?}"),
        }
    }
}

/// The operations of which a part of a filter can be true, or, if that is not
/// `wanted`, can be false.
fn candidates(node: &Expr, polarity: bool) -> Candidates {
    match node {
        Expr::And(nodes) | Expr::Or(nodes) => {
            let sets = nodes.iter().map(|node| candidates(node, polarity));
            // That "all" is false means that any is.
            if matches!(node, Expr::And(_)) == polarity {
                Candidates::intersection(sets)
            } else {
                Candidates::union(sets)
            }
        }
        Expr::Not(node) => candidates(node, !polarity),
        Expr::Field(ScalarField::Done | ScalarField::State, ..) => state_candidates(node, polarity),
        Expr::Field(field, comparator, literal) if is_equality(*comparator, polarity) => {
            index_lookup(*field, &literal.pattern)
                .map_or(Candidates::Everything, Candidates::Lookup)
        }
        Expr::Label(path, comparator, literal) if is_equality(*comparator, polarity) => {
            match (&**path, literal.pattern.exact()) {
                ([key], Some(value)) => {
                    Candidates::Lookup(IndexLookup::Label(key.name.clone(), value.into()))
                }
                _ => Candidates::Everything,
            }
        }
        Expr::Field(..) | Expr::Label(..) | Expr::Message(..) | Expr::Text(_) => {
            Candidates::Everything
        }
    }
}

/// Whether the field has the value if the comparison comes out as wanted.
fn is_equality(comparator: Comparator, polarity: bool) -> bool {
    match comparator {
        Comparator::Equal => polarity,
        Comparator::NotEqual => !polarity,
        _ => false,
    }
}

fn index_lookup(field: ScalarField, pattern: &Pattern) -> Option<IndexLookup> {
    match (field, pattern.exact()) {
        // No queue is no group.
        (ScalarField::Queue, Some(queue)) if !queue.is_empty() => {
            Some(IndexLookup::Queue(queue.into()))
        }
        (ScalarField::Name, Some(name)) => Some(IndexLookup::Name(name.into())),
        (ScalarField::Name, None) if !pattern.leading_wildcard => {
            Some(IndexLookup::NamePrefix(pattern.body.clone()))
        }
        _ => None,
    }
}

/// The states in which a question about `done` or `state` comes out as wanted.
fn state_candidates(node: &Expr, polarity: bool) -> Candidates {
    let Expr::Field(field, comparator, literal) = node else {
        return Candidates::Everything;
    };
    let is_presence_test = *comparator == Comparator::Has && literal.pattern.is_wildcard();
    let has_polarity = |state: State| {
        let is_done = !matches!(state, State::Pending | State::Running);
        let truth = match field {
            ScalarField::Done if is_presence_test => is_done.into(),
            ScalarField::Done => literal.evaluate(*comparator, FieldValue::Bool(is_done)),
            _ if is_presence_test => TruthValue::True,
            _ => literal.evaluate(*comparator, FieldValue::Enum(state.as_str_name())),
        };
        truth == TruthValue::from(polarity)
    };
    if has_polarity(State::Succeeded) {
        return Candidates::Everything;
    }
    let states = STATES.into_iter().filter(|state| has_polarity(*state));
    Candidates::union(states.map(|state| Candidates::Lookup(IndexLookup::State(state))))
}

// === impl Times ===

impl TimeRange {
    pub(crate) const ALL: Self = Self {
        from_ns: i128::MIN,
        to_ns: i128::MAX,
    };

    fn intersect(self, other: Self) -> Self {
        Self {
            from_ns: self.from_ns.max(other.from_ns),
            to_ns: self.to_ns.min(other.to_ns),
        }
    }

    /// The range that holds both.
    fn union(self, other: Self) -> Self {
        Self {
            from_ns: self.from_ns.min(other.from_ns),
            to_ns: self.to_ns.max(other.to_ns),
        }
    }
}

/// When the operations were created of which a part of a filter can be true,
/// or, if that is not `wanted`, can be false.
fn creation_range(node: &Expr, polarity: bool) -> TimeRange {
    match node {
        Expr::And(nodes) | Expr::Or(nodes) => {
            let ranges = nodes.iter().map(|node| creation_range(node, polarity));
            if matches!(node, Expr::And(_)) == polarity {
                ranges.fold(TimeRange::ALL, TimeRange::intersect)
            } else {
                ranges.reduce(TimeRange::union).unwrap_or(TimeRange::ALL)
            }
        }
        Expr::Not(node) => creation_range(node, !polarity),
        Expr::Field(field, comparator, literal) => {
            time_range(*field, *comparator, literal, polarity)
        }
        Expr::Label(..) | Expr::Message(..) | Expr::Text(_) => TimeRange::ALL,
    }
}

fn time_range(
    field: ScalarField,
    comparator: Comparator,
    literal: &Literal,
    polarity: bool,
) -> TimeRange {
    let Some(time_ns) = literal.time_ns() else {
        return TimeRange::ALL;
    };
    let (from, to) = (TimeRange::ALL.from_ns, TimeRange::ALL.to_ns);
    use Comparator::{Equal, Greater, GreaterEqual, Has, Less, LessEqual, NotEqual};
    let (from, to) = match (comparator, polarity) {
        (Less, true) | (GreaterEqual, false) => (from, time_ns - 1),
        (LessEqual, true) | (Greater, false) => (from, time_ns),
        (Greater, true) | (LessEqual, false) => (time_ns + 1, to),
        (GreaterEqual, true) | (Less, false) => (time_ns, to),
        (Equal | Has, true) | (NotEqual, false) => (time_ns, time_ns),
        (Equal | Has, false) | (NotEqual, true) => (from, to),
    };
    match field {
        ScalarField::CreateTime => TimeRange {
            from_ns: from,
            to_ns: to,
        },
        // Nothing happens to an operation before it is created.
        ScalarField::StartTime
        | ScalarField::UpdateTime
        | ScalarField::EndTime
        | ScalarField::ExpireTime => TimeRange {
            from_ns: TimeRange::ALL.from_ns,
            to_ns: to,
        },
        _ => TimeRange::ALL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::samples::built_in_types;

    fn plan(filter: &str) -> String {
        let query = CompiledFilter::parse(filter, built_in_types()).unwrap();
        Plan::from_filter(&query).to_string()
    }

    #[test]
    fn indexed_filters_plan_index_lookups() {
        for (filter, expected) in [
            ("done = false", "(state PENDING or state RUNNING)"),
            ("NOT done = true", "(state PENDING or state RUNNING)"),
            ("NOT done:*", "(state PENDING or state RUNNING)"),
            ("done != true", "(state PENDING or state RUNNING)"),
            ("state = RUNNING", "state RUNNING"),
            ("state:FAILED", "state FAILED"),
            (
                "state = (FAILED OR CANCELLED)",
                "(state FAILED or state CANCELLED)",
            ),
            ("queue = thumbs", "queue thumbs"),
            ("labels.env = prod", "label env=\"prod\""),
            (
                "done = false AND labels.env = prod x",
                "((state PENDING or state RUNNING) and label env=\"prod\")",
            ),
            (
                "queue = a OR NOT labels.env != prod",
                "(queue a or label env=\"prod\")",
            ),
            (
                "done = false OR state = RUNNING OR NOT done = true OR state = FAILED",
                "(state PENDING or state RUNNING or state FAILED)",
            ),
            (
                "labels.a = b AND NOT (labels.a != b OR queue != c) AND labels.a = b",
                "(label a=\"b\" and queue c)",
            ),
            ("name = operations/a", "name \"operations/a\""),
            ("name = \"operations/a*\"", "names with \"operations/a\""),
            (
                "create_time > \"2026-01-01T00:00:00Z\"",
                "everything, by creation time",
            ),
            (
                "end_time < \"2026-01-01T00:00:00Z\"",
                "everything, by creation time",
            ),
        ] {
            assert_eq!(plan(filter), expected, "{filter}");
        }
    }

    #[test]
    fn unindexed_filters_plan_full_scan() {
        for filter in [
            "done = true",
            "state != RUNNING",
            "state = SUCCEEDED",
            "state:*",
            "queue = \"\"",
            "queue:thumbs",
            "labels.env != prod",
            "NOT labels.env = prod",
            "labels:env",
            "labels.env = \"pr*\"",
            "name = \"*a\"",
            "name = \"*a*\"",
            "done = false OR prod",
            "metadata.attempt = 1",
            "end_time > \"2026-01-01T00:00:00Z\"",
            "NOT create_time = \"2026-01-01T00:00:00Z\"",
        ] {
            assert_eq!(plan(filter), "everything", "{filter}");
        }
    }
}
