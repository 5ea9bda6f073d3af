//! Plans which indexes a filtered list reads. A plan contains every operation of which
//! the filter is true, and may contain others; the list evaluates the filter for each.

use std::fmt;

use super::{
    compile::CompiledFilter,
    eval::{Expr, compare_field},
    fields::{STATES, ScalarField},
    filter::Comparator,
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
        Self::from_expr(&filter.root, true)
    }

    /// Plans the operations for which an expression can evaluate to `polarity`.
    fn from_expr(expr: &Expr, polarity: bool) -> Self {
        let (candidates, creation_range) = match expr {
            Expr::And(nodes) | Expr::Or(nodes) => {
                let plans = nodes.iter().map(|node| Self::from_expr(node, polarity));
                let plans = plans.map(|plan| (plan.candidates, plan.creation_range));
                let (sets, ranges): (Vec<_>, Vec<_>) = plans.unzip();
                let ranges = ranges.into_iter();
                // By De Morgan: NOT (a AND b) is (NOT a) OR (NOT b).
                if matches!(expr, Expr::And(_)) == polarity {
                    let range = ranges.fold(TimeRange::ALL, TimeRange::intersect);
                    (Candidates::intersection(sets), range)
                } else {
                    let range = ranges.reduce(TimeRange::union);
                    (Candidates::union(sets), range.unwrap_or(TimeRange::ALL))
                }
            }
            Expr::Not(node) => return Self::from_expr(node, !polarity),
            Expr::Field { field, comparison } => (
                field_candidates(*field, comparison, polarity),
                time_range(*field, comparison, polarity),
            ),
            Expr::Label { key, comparison } => {
                let value = comparison.literal.pattern.exact();
                let candidates = match (key, value) {
                    (Some(key), Some(value)) if is_equality(comparison.comparator, polarity) => {
                        Candidates::Lookup(IndexLookup::Label {
                            key: key.clone(),
                            value: value.into(),
                        })
                    }
                    _ => Candidates::Everything,
                };
                (candidates, TimeRange::ALL)
            }
            Expr::Message { .. } | Expr::Text(_) => return Self::EVERYTHING,
        };
        Self {
            candidates,
            creation_range,
        }
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

    fn intersection(sets: Vec<Self>) -> Self {
        let operands = sets.into_iter().flat_map(|set| match set {
            Self::Everything => Vec::new(),
            Self::Intersection(inner) => inner,
            set => vec![set],
        });
        combine(operands, Self::Intersection).unwrap_or(Self::Everything)
    }

    fn union(sets: Vec<Self>) -> Self {
        if sets.contains(&Self::Everything) {
            return Self::Everything;
        }
        let operands = sets.into_iter().flat_map(|set| match set {
            Self::Union(inner) => inner,
            set => vec![set],
        });
        combine(operands, Self::Union).unwrap_or(Self::Union(Vec::new()))
    }
}

/// Combines sets without duplicates, because each costs a lookup. Returns `None` without sets.
fn combine(
    sets: impl Iterator<Item = Candidates>,
    wrap: fn(Vec<Candidates>) -> Candidates,
) -> Option<Candidates> {
    let mut unique = Vec::new();
    for set in sets {
        if !unique.contains(&set) {
            unique.push(set);
        }
    }
    match unique.len() {
        0 | 1 => unique.pop(),
        _ => Some(wrap(unique)),
    }
}

// === impl IndexLookup ===

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

/// Returns whether the comparison evaluates to `polarity` only if both sides are equal.
fn is_equality(comparator: Comparator, polarity: bool) -> bool {
    match comparator {
        Comparator::Equal => polarity,
        Comparator::NotEqual => !polarity,
        _ => false,
    }
}

/// Returns the operations for which a comparison of a field evaluates to `polarity`.
fn field_candidates(field: ScalarField, comparison: &Comparison, polarity: bool) -> Candidates {
    if let ScalarField::Done | ScalarField::State = field {
        let has_polarity = |state: &State| {
            let truth = compare_field(field.value_in_state(*state), comparison);
            truth == TruthValue::from(polarity)
        };
        if has_polarity(&State::Succeeded) {
            return Candidates::Everything;
        }
        let states = STATES.into_iter().filter(has_polarity);
        let lookups = states.map(|state| Candidates::Lookup(IndexLookup::State(state)));
        return Candidates::union(lookups.collect());
    }
    let pattern = &comparison.literal.pattern;
    Candidates::Lookup(match (field, pattern.exact()) {
        _ if !is_equality(comparison.comparator, polarity) => return Candidates::Everything,
        // Operations without a queue are not indexed.
        (ScalarField::Queue, Some(queue)) if !queue.is_empty() => IndexLookup::Queue(queue.into()),
        (ScalarField::Name, Some(name)) => IndexLookup::Name(name.into()),
        (ScalarField::Name, None) if !pattern.leading_wildcard => {
            IndexLookup::NamePrefix(pattern.body.clone())
        }
        _ => return Candidates::Everything,
    })
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

/// Returns the creation times of the operations for which a comparison evaluates to `polarity`.
fn time_range(field: ScalarField, comparison: &Comparison, polarity: bool) -> TimeRange {
    use Comparator::{Equal, Greater, GreaterEqual, Has, Less, LessEqual, NotEqual};
    let Some(time_ns) = comparison.literal.time_ns else {
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
        let plan = Plan::from_filter(&filter);
        let candidates = describe(&plan.candidates);
        match plan.creation_range {
            TimeRange::ALL => candidates,
            _ => format!("{candidates}, by creation time"),
        }
    }

    fn describe(candidates: &Candidates) -> String {
        let describe_all = |sets: &[Candidates], separator: &str| {
            let texts: Vec<_> = sets.iter().map(describe).collect();
            format!("({})", texts.join(separator))
        };
        match candidates {
            Candidates::Everything => "everything".to_owned(),
            Candidates::Lookup(lookup) => lookup.to_string(),
            Candidates::Intersection(sets) => describe_all(sets, " and "),
            Candidates::Union(sets) => describe_all(sets, " or "),
        }
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
