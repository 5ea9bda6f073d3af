//! Which operations a filter can be true of, as far as the store keeps groups
//! of them: what a list looks at instead of everything. A plan may hold too
//! many, never too few; the filter itself is asked about each.

use std::fmt;

use super::{
    eval::{Node, Query},
    fields::{Own, STATES},
    filter::{Comparator, Text},
    literal::{Held, Literal, Truth},
};
use crate::proto::longrunning::v1::operation_metadata::State;

/// The operations that a filter can be true of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) among: Among,
    pub(crate) created: Times,
}

/// A set of operations, put together from groups.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Among {
    Everything,
    Group(Group),
    /// Those in all of them.
    All(Vec<Among>),
    /// Those in any of them.
    Any(Vec<Among>),
}

/// Operations that the store keeps together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// In this state, which is not SUCCEEDED: most operations are, and those
    /// are better looked at in their order.
    State(State),
    Queue(Box<str>),
    Label(Box<str>, Box<str>),
    /// The one with this name.
    Named(Box<str>),
    /// With a name that begins so.
    Prefix(Box<str>),
}

/// A range of creation times, in nanoseconds since 1970, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) from: i128,
    pub(crate) to: i128,
}

// === impl Plan ===

impl Plan {
    /// The plan of a list without a filter.
    pub(crate) const EVERYTHING: Self = Self {
        among: Among::Everything,
        created: Times::EVER,
    };

    /// The plan for a filter.
    pub(crate) fn of(query: &Query) -> Self {
        Self {
            among: among(&query.root, true),
            created: created(&query.root, true),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.among)?;
        if self.created != Times::EVER {
            f.write_str(", by creation time")?;
        }
        Ok(())
    }
}

// === impl Among ===

impl Among {
    /// Whether an operation that is done may be one of them.
    pub(crate) fn may_be_done(&self) -> bool {
        match self {
            Self::Group(Group::State(state)) => !matches!(state, State::Pending | State::Running),
            Self::Everything | Self::Group(_) => true,
            Self::All(sets) => sets.iter().all(Self::may_be_done),
            Self::Any(sets) => sets.iter().any(Self::may_be_done),
        }
    }

    fn all(sets: impl Iterator<Item = Self>) -> Self {
        let mut all = Vec::new();
        for set in sets {
            match set {
                Self::Everything => {}
                Self::All(inner) => inner.into_iter().for_each(|set| put(&mut all, set)),
                set => put(&mut all, set),
            }
        }
        match all.len() {
            0 => Self::Everything,
            1 => all.remove(0),
            _ => Self::All(all),
        }
    }

    fn any(sets: impl Iterator<Item = Self>) -> Self {
        let mut any = Vec::new();
        for set in sets {
            match set {
                Self::Everything => return Self::Everything,
                Self::Any(inner) => inner.into_iter().for_each(|set| put(&mut any, set)),
                set => put(&mut any, set),
            }
        }
        match any.len() {
            1 => any.remove(0),
            _ => Self::Any(any),
        }
    }
}

/// Adds a set to others, unless it is one of them: each costs look-ups.
fn put(sets: &mut Vec<Among>, set: Among) {
    if !sets.contains(&set) {
        sets.push(set);
    }
}

impl fmt::Display for Among {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("everything"),
            Self::Group(group) => write!(f, "{group}"),
            Self::All(sets) => join(sets, " and ", f),
            Self::Any(sets) => join(sets, " or ", f),
        }
    }
}

/// Writes sets with a word between them.
pub(crate) fn join<T: fmt::Display>(
    sets: &[T],
    word: &str,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    f.write_str("(")?;
    for (at, set) in sets.iter().enumerate() {
        f.write_str(if at == 0 { "" } else { word })?;
        write!(f, "{set}")?;
    }
    f.write_str(")")
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(state) => write!(f, "state {}", state.as_str_name()),
            Self::Queue(queue) => write!(f, "queue {queue}"),
            Self::Label(key, value) => write!(f, "label {key}={value:?}"),
            Self::Named(name) => write!(f, "name {name:?}"),
            Self::Prefix(prefix) => write!(f, "names with {prefix:?}"),
        }
    }
}

/// The operations of which a part of a filter can be true, or, if that is not
/// `wanted`, can be false.
fn among(node: &Node, wanted: bool) -> Among {
    match node {
        Node::All(nodes) | Node::Any(nodes) => {
            let sets = nodes.iter().map(|node| among(node, wanted));
            // That "all" is false means that any is.
            if matches!(node, Node::All(_)) == wanted {
                Among::all(sets)
            } else {
                Among::any(sets)
            }
        }
        Node::Not(node) => among(node, !wanted),
        Node::Own(Own::Done | Own::State, ..) => by_state(node, wanted),
        Node::Own(own, comparator, literal) if is_equal(*comparator, wanted) => {
            group(*own, &literal.text).map_or(Among::Everything, Among::Group)
        }
        Node::Labels(path, comparator, literal) if is_equal(*comparator, wanted) => {
            match (&**path, literal.text.exact()) {
                ([key], Some(value)) => Among::Group(Group::Label(key.name.clone(), value.into())),
                _ => Among::Everything,
            }
        }
        Node::Own(..) | Node::Labels(..) | Node::Inside(..) | Node::Anywhere(_) => {
            Among::Everything
        }
    }
}

/// Whether the field has the value if the comparison comes out as wanted.
fn is_equal(comparator: Comparator, wanted: bool) -> bool {
    match comparator {
        Comparator::Equal => wanted,
        Comparator::NotEqual => !wanted,
        _ => false,
    }
}

fn group(own: Own, text: &Text) -> Option<Group> {
    match (own, text.exact()) {
        // No queue is no group.
        (Own::Queue, Some(queue)) if !queue.is_empty() => Some(Group::Queue(queue.into())),
        (Own::Name, Some(name)) => Some(Group::Named(name.into())),
        (Own::Name, None) if !text.open_start => Some(Group::Prefix(text.body.clone())),
        _ => None,
    }
}

/// The states in which a question about `done` or `state` comes out as wanted.
fn by_state(node: &Node, wanted: bool) -> Among {
    let Node::Own(own, comparator, literal) = node else {
        return Among::Everything;
    };
    let asks_presence = *comparator == Comparator::Has && literal.text.is_star();
    let holds = |state: State| {
        let is_done = !matches!(state, State::Pending | State::Running);
        let truth = match own {
            Own::Done if asks_presence => is_done.into(),
            Own::Done => literal.test(*comparator, Held::Bool(is_done)),
            _ if asks_presence => Truth::True,
            _ => literal.test(*comparator, Held::Enum(state.as_str_name())),
        };
        truth == Truth::from(wanted)
    };
    if holds(State::Succeeded) {
        return Among::Everything;
    }
    let states = STATES.into_iter().filter(|state| holds(*state));
    Among::any(states.map(|state| Among::Group(Group::State(state))))
}

// === impl Times ===

impl Times {
    pub(crate) const EVER: Self = Self {
        from: i128::MIN,
        to: i128::MAX,
    };

    fn both(self, other: Self) -> Self {
        Self {
            from: self.from.max(other.from),
            to: self.to.min(other.to),
        }
    }

    /// The range that holds both.
    fn around(self, other: Self) -> Self {
        Self {
            from: self.from.min(other.from),
            to: self.to.max(other.to),
        }
    }
}

/// When the operations were created of which a part of a filter can be true,
/// or, if that is not `wanted`, can be false.
fn created(node: &Node, wanted: bool) -> Times {
    match node {
        Node::All(nodes) | Node::Any(nodes) => {
            let times = nodes.iter().map(|node| created(node, wanted));
            if matches!(node, Node::All(_)) == wanted {
                times.fold(Times::EVER, Times::both)
            } else {
                times.reduce(Times::around).unwrap_or(Times::EVER)
            }
        }
        Node::Not(node) => created(node, !wanted),
        Node::Own(own, comparator, literal) => range(*own, *comparator, literal, wanted),
        Node::Labels(..) | Node::Inside(..) | Node::Anywhere(_) => Times::EVER,
    }
}

fn range(own: Own, comparator: Comparator, literal: &Literal, wanted: bool) -> Times {
    let Some(time) = literal.time() else {
        return Times::EVER;
    };
    let (from, to) = (Times::EVER.from, Times::EVER.to);
    use Comparator::{Equal, Greater, GreaterEqual, Has, Less, LessEqual, NotEqual};
    let (from, to) = match (comparator, wanted) {
        (Less, true) | (GreaterEqual, false) => (from, time - 1),
        (LessEqual, true) | (Greater, false) => (from, time),
        (Greater, true) | (LessEqual, false) => (time + 1, to),
        (GreaterEqual, true) | (Less, false) => (time, to),
        (Equal | Has, true) | (NotEqual, false) => (time, time),
        (Equal | Has, false) | (NotEqual, true) => (from, to),
    };
    match own {
        Own::CreateTime => Times { from, to },
        // Nothing happens to an operation before it is created.
        Own::StartTime | Own::UpdateTime | Own::EndTime | Own::ExpireTime => Times {
            from: Times::EVER.from,
            to,
        },
        _ => Times::EVER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::samples::types;

    fn plan(filter: &str) -> String {
        let query = Query::parse(filter, types()).unwrap();
        Plan::of(&query).to_string()
    }

    #[test]
    fn common_questions_have_a_plan() {
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
    fn other_questions_are_asked_about_everything() {
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
