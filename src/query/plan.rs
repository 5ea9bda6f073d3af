//! Plans which indexes a filtered list reads. A plan contains every operation of which
//! the filter is true, and may contain others; the list evaluates the filter for each.

use std::fmt;

use super::{
    compile::CompiledFilter,
    eval::{Expr, compare_field},
    fields::{STATES, ScalarField},
    filter::{Comparator, Pattern},
    literal::{Comparison, TruthValue},
};
use crate::proto::longrunning::v1::operation_metadata::State;

/// The operations of which a filter can be true.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) candidates: Candidates,
    pub(crate) creation_range: TimeRange,
}

/// A set of operations, composed of index lookups.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Candidates {
    Everything,
    Lookup(IndexLookup),
    Intersection(Vec<Candidates>),
    Union(Vec<Candidates>),
}

/// Operations that one index lookup finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum IndexLookup {
    /// Operations in this state. Never SUCCEEDED: most operations are, so that a scan in
    /// list order is cheaper.
    State(State),
    Queue(Box<str>),
    Label {
        key: Box<str>,
        value: Box<str>,
    },
    Name(Box<str>),
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
    /// The plan of an unfiltered list.
    pub(crate) const EVERYTHING: Self = Self {
        candidates: Candidates::Everything,
        creation_range: TimeRange::ALL,
    };

    /// Plans a filtered list.
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

// === impl Candidates ===

impl Candidates {
    /// Returns whether the set can contain done operations.
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

/// Adds a set unless it is there already, because each costs a lookup.
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

/// Writes sets in parentheses, with a separator between them.
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
            Self::Label { key, value } => write!(f, "label {key}={value:?}"),
            Self::Name(name) => write!(f, "name {name:?}"),
            Self::NamePrefix(prefix) => write!(f, "names with {prefix:?}"),
        }
    }
}

/// Returns the operations for which an expression can evaluate to `polarity`.
fn candidates(node: &Expr, polarity: bool) -> Candidates {
    match node {
        Expr::And(nodes) | Expr::Or(nodes) => {
            let sets = nodes.iter().map(|node| candidates(node, polarity));
            // By De Morgan: NOT (a AND b) is (NOT a) OR (NOT b).
            if matches!(node, Expr::And(_)) == polarity {
                Candidates::intersection(sets)
            } else {
                Candidates::union(sets)
            }
        }
        Expr::Not(node) => candidates(node, !polarity),
        Expr::Field {
            field: field @ (ScalarField::Done | ScalarField::State),
            comparison,
        } => state_candidates(*field, comparison, polarity),
        Expr::Field { field, comparison } if is_equality(comparison.comparator, polarity) => {
            index_lookup(*field, &comparison.literal.pattern)
                .map_or(Candidates::Everything, Candidates::Lookup)
        }
        Expr::Label { key, comparison } if is_equality(comparison.comparator, polarity) => {
            match (key, comparison.literal.pattern.exact()) {
                (Some(key), Some(value)) => Candidates::Lookup(IndexLookup::Label {
                    key: key.clone(),
                    value: value.into(),
                }),
                _ => Candidates::Everything,
            }
        }
        Expr::Field { .. } | Expr::Label { .. } | Expr::Message { .. } | Expr::Text(_) => {
            Candidates::Everything
        }
    }
}

/// Returns whether the comparison evaluates to `polarity` only if both sides are equal.
fn is_equality(comparator: Comparator, polarity: bool) -> bool {
    match comparator {
        Comparator::Equal => polarity,
        Comparator::NotEqual => !polarity,
        _ => false,
    }
}

fn index_lookup(field: ScalarField, pattern: &Pattern) -> Option<IndexLookup> {
    match (field, pattern.exact()) {
        // Operations without a queue are not indexed.
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

/// Returns the states in which a comparison of `done` or `state` evaluates to `polarity`.
fn state_candidates(field: ScalarField, comparison: &Comparison, polarity: bool) -> Candidates {
    let has_polarity = |state: &State| {
        let truth = compare_field(field.value_in_state(*state), comparison);
        truth == TruthValue::from(polarity)
    };
    if has_polarity(&State::Succeeded) {
        return Candidates::Everything;
    }
    let states = STATES.into_iter().filter(has_polarity);
    Candidates::union(states.map(|state| Candidates::Lookup(IndexLookup::State(state))))
}

// === impl TimeRange ===

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

    /// Returns the smallest range that contains both.
    fn union(self, other: Self) -> Self {
        Self {
            from_ns: self.from_ns.min(other.from_ns),
            to_ns: self.to_ns.max(other.to_ns),
        }
    }
}

/// Returns the creation times of the operations for which an expression can evaluate to
/// `polarity`.
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
        Expr::Field { field, comparison } => time_range(*field, comparison, polarity),
        Expr::Label { .. } | Expr::Message { .. } | Expr::Text(_) => TimeRange::ALL,
    }
}

fn time_range(field: ScalarField, comparison: &Comparison, polarity: bool) -> TimeRange {
    use Comparator::{Equal, Greater, GreaterEqual, Has, Less, LessEqual, NotEqual};
    let Some(time_ns) = comparison.literal.time_ns() else {
        return TimeRange::ALL;
    };
    let TimeRange { from_ns, to_ns } = TimeRange::ALL;
    let (from_ns, to_ns) = match (comparison.comparator, polarity) {
        (Less, true) | (GreaterEqual, false) => (from_ns, time_ns - 1),
        (LessEqual, true) | (Greater, false) => (from_ns, time_ns),
        (Greater, true) | (LessEqual, false) => (time_ns + 1, to_ns),
        (GreaterEqual, true) | (Less, false) => (time_ns, to_ns),
        (Equal | Has, true) | (NotEqual, false) => (time_ns, time_ns),
        (Equal | Has, false) | (NotEqual, true) => (from_ns, to_ns),
    };
    match field {
        ScalarField::CreateTime => TimeRange { from_ns, to_ns },
        // These times are never before the creation, so only the upper bound holds.
        ScalarField::StartTime
        | ScalarField::UpdateTime
        | ScalarField::EndTime
        | ScalarField::ExpireTime => TimeRange {
            from_ns: TimeRange::ALL.from_ns,
            to_ns,
        },
        _ => TimeRange::ALL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::testing::built_in_types;

    fn plan(filter: &str) -> String {
        let filter = CompiledFilter::parse(filter, built_in_types()).unwrap();
        Plan::from_filter(&filter).to_string()
    }

    // Rules: LIST-17
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
