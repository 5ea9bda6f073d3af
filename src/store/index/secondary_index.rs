//! Secondary indexes, so that a list with a filter does not scan all operations: by state, queue, label and prefix of
//! the id. They hold numbers only, and nothing for an operation that succeeded without a queue, labels and an id of
//! the caller.

use std::{collections::HashMap, fmt, hash::BuildHasher};

use foldhash::fast::RandomState;
use parking_lot::{RwLock, RwLockReadGuard};

use super::{
    id_prefix::IdPrefixIndex,
    posting_list::PostingList,
    set_cursor::{RunCursor, SetCursor},
    sorted_runs::SortedRuns,
};
use crate::{
    operation::Operation,
    proto::longrunning::v1::operation_metadata::State,
    query::plan::{Candidates, IndexLookup},
};

/// The secondary indexes of all operations.
#[derive(Debug, Default)]
pub(super) struct SecondaryIndexes {
    states: RwLock<StateIndexes>,
    /// Queues and labels, by the hash of the lookup. Two that share a hash do no harm, because the filter is
    /// evaluated in the end.
    by_hash: RwLock<HashMap<u64, PostingList, RandomState>>,
    hasher: RandomState,
    id_prefixes: IdPrefixIndex,
}

/// All states except SUCCEEDED.
const INDEXED_STATES: [State; 4] = [
    State::Pending,
    State::Running,
    State::Failed,
    State::Cancelled,
];

/// The operations of each of the indexed states.
type StateIndexes = [SortedRuns<()>; INDEXED_STATES.len()];

/// A set of operations, resolved for a plan.
#[derive(Debug)]
pub(super) enum IndexSet<'p> {
    All,
    /// A state, by its position in `INDEXED_STATES`.
    State(usize),
    /// A queue or label, by its hash.
    Hashed(u64, &'p IndexLookup),
    /// Operations found by name, in ascending order.
    Numbers(Vec<u64>, &'p IndexLookup),
    And(Vec<IndexSet<'p>>),
    Or(Vec<IndexSet<'p>>),
}

/// Read access to the indexes; no operation changes them meanwhile.
pub(super) struct IndexReadGuard<'a> {
    states: RwLockReadGuard<'a, StateIndexes>,
    by_hash: RwLockReadGuard<'a, HashMap<u64, PostingList, RandomState>>,
}

// === impl SecondaryIndexes ===

impl SecondaryIndexes {
    /// Updates the indexes for a change: `previous` is `None` for a new operation, `operation` for one that is
    /// removed.
    pub(super) fn update(&self, previous: Option<&Operation>, operation: Option<&Operation>) {
        let position = |operation: &Operation| indexed_position(operation.state());
        let (before, now) = (previous.and_then(position), operation.and_then(position));
        let Some(subject) = operation.or(previous) else {
            return;
        };
        let (number, created_ns) = (subject.number(), subject.create_time().nanos());
        if before != now {
            let mut states = self.states.write();
            if let Some(before) = before {
                states[before].remove(number);
            }
            if let Some(now) = now {
                states[now].put(number, created_ns, ());
            }
        }
        if previous.is_none() == operation.is_none() {
            return;
        }
        let is_new = previous.is_none();
        if subject.queue().is_some() || subject.labels().iter().next().is_some() {
            let mut by_hash = self.by_hash.write();
            let queue = subject.queue().map(|queue| self.queue_hash(queue.as_str()));
            let labels = subject.labels().iter();
            let labels = labels.map(|(key, value)| self.label_hash(key, value));
            for hash in queue.into_iter().chain(labels) {
                if is_new {
                    by_hash
                        .entry(hash)
                        .and_modify(|postings| postings.put(number, created_ns))
                        .or_insert(PostingList::One(number));
                } else if by_hash
                    .get_mut(&hash)
                    .is_some_and(|postings| postings.remove(number))
                {
                    by_hash.remove(&hash);
                }
            }
        }
        self.id_prefixes.update(subject, is_new);
    }

    /// Resolves the index lookups of a plan, or of a part of it, whose prefixes may match `prefix_budget` names.
    pub(super) fn resolve<'p>(
        &self,
        candidates: &'p Candidates,
        number_of_name: &dyn Fn(&str) -> Option<u64>,
        prefix_budget: &mut usize,
    ) -> IndexSet<'p> {
        let resolve = |part| match self.resolve(part, number_of_name, prefix_budget) {
            IndexSet::All => None,
            set => Some(set),
        };
        match candidates {
            Candidates::Everything => IndexSet::All,
            Candidates::Intersection(parts) => {
                let mut sets: Vec<_> = parts.iter().filter_map(resolve).collect();
                if sets.len() < 2 {
                    sets.pop().unwrap_or(IndexSet::All)
                } else {
                    IndexSet::And(sets)
                }
            }
            Candidates::Union(parts) => {
                let sets: Option<Vec<_>> = parts.iter().map(resolve).collect();
                sets.map_or(IndexSet::All, IndexSet::Or)
            }
            Candidates::Lookup(IndexLookup::State(state)) => {
                indexed_position(*state).map_or(IndexSet::All, IndexSet::State)
            }
            Candidates::Lookup(lookup @ IndexLookup::Queue(queue)) => {
                IndexSet::Hashed(self.queue_hash(queue), lookup)
            }
            Candidates::Lookup(lookup @ IndexLookup::Label { key, value }) => {
                IndexSet::Hashed(self.label_hash(key, value), lookup)
            }
            Candidates::Lookup(lookup @ IndexLookup::Name(name)) => {
                IndexSet::Numbers(number_of_name(name).into_iter().collect(), lookup)
            }
            Candidates::Lookup(lookup @ IndexLookup::NamePrefix(prefix)) => {
                let numbers = self.id_prefixes.find_by_prefix(prefix, prefix_budget);
                numbers.map_or(IndexSet::All, |numbers| IndexSet::Numbers(numbers, lookup))
            }
        }
    }

    pub(super) fn read(&self) -> IndexReadGuard<'_> {
        IndexReadGuard {
            states: self.states.read(),
            by_hash: self.by_hash.read(),
        }
    }

    fn queue_hash(&self, name: &str) -> u64 {
        self.hasher.hash_one((0u8, name))
    }

    fn label_hash(&self, key: &str, value: &str) -> u64 {
        self.hasher.hash_one((1u8, key, value))
    }
}

fn indexed_position(state: State) -> Option<usize> {
    INDEXED_STATES.iter().position(|indexed| *indexed == state)
}

// === impl IndexReadGuard ===

impl IndexReadGuard<'_> {
    /// Returns a cursor through a set, from the highest number down.
    pub(super) fn cursor<'a>(&'a self, set: &'a IndexSet<'_>) -> SetCursor<'a> {
        let cursors = |sets: &'a [IndexSet<'_>]| sets.iter().map(|set| self.cursor(set)).collect();
        match set {
            IndexSet::All => SetCursor::All,
            IndexSet::State(position) => SetCursor::Runs(RunCursor::new(&self.states[*position])),
            IndexSet::Hashed(hash, _) => self
                .by_hash
                .get(hash)
                .map_or(SetCursor::Numbers(&[]), PostingList::cursor),
            IndexSet::Numbers(numbers, _) => SetCursor::Numbers(numbers),
            IndexSet::And(sets) => SetCursor::And(cursors(sets)),
            IndexSet::Or(sets) => SetCursor::Or(cursors(sets)),
        }
    }

    /// Returns an upper bound of the size of a set.
    pub(super) fn len_upper_bound(&self, set: &IndexSet<'_>) -> usize {
        match set {
            IndexSet::All => usize::MAX,
            IndexSet::State(position) => self.states[*position].len_upper_bound(),
            IndexSet::Hashed(hash, _) => self
                .by_hash
                .get(hash)
                .map_or(0, PostingList::len_upper_bound),
            IndexSet::Numbers(numbers, _) => numbers.len(),
            IndexSet::And(sets) => sets
                .iter()
                .map(|set| self.len_upper_bound(set))
                .min()
                .unwrap_or(0),
            IndexSet::Or(sets) => {
                let sizes = sets.iter().map(|set| self.len_upper_bound(set));
                sizes.fold(0, usize::saturating_add)
            }
        }
    }
}

// === impl IndexSet ===

impl fmt::Display for IndexSet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("everything"),
            Self::State(position) => write!(f, "{}", IndexLookup::State(INDEXED_STATES[*position])),
            Self::Hashed(_, group) | Self::Numbers(_, group) => write!(f, "{group}"),
            Self::And(sets) => write_joined(sets, " and ", f),
            Self::Or(sets) => write_joined(sets, " or ", f),
        }
    }
}

fn write_joined(sets: &[IndexSet<'_>], separator: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("(")?;
    for (index, set) in sets.iter().enumerate() {
        write!(f, "{}{set}", if index == 0 { "" } else { separator })?;
    }
    f.write_str(")")
}

#[cfg(test)]
mod tests {
    use super::{super::set_cursor::CursorStep, *};
    use crate::query::testing::{SampleMetadata, SampleOperation, SampleState};

    /// Every second operation is running and the others have a label: none has both.
    fn disjoint_indexes(count: u64) -> SecondaryIndexes {
        let indexes = SecondaryIndexes::default();
        for number in 1..=count {
            let is_running = number % 2 == 0;
            let facts = SampleOperation {
                parent: "",
                id: format!("a-{number}"),
                state: if is_running {
                    SampleState::Running
                } else {
                    SampleState::Succeeded
                },
                queue: None,
                env: (!is_running).then_some("prod"),
                team: None,
                created_after_secs: 0,
                metadata: SampleMetadata::UnknownType,
            };
            indexes.update(None, Some(&facts.to_operation(number)));
        }
        indexes
    }

    fn wide_union<'p>(width: usize, set: impl Fn() -> IndexSet<'p>) -> IndexSet<'p> {
        IndexSet::Or((0..width).map(|_| set()).collect())
    }

    #[test]
    fn steps_to_next_operation_are_bounded_for_any_plan_width() {
        let indexes = disjoint_indexes(1000);
        let lookup = IndexLookup::Label {
            key: "env".into(),
            value: "prod".into(),
        };
        let hash = indexes.label_hash("env", "prod");
        let running = indexed_position(State::Running).unwrap();
        let both = IndexSet::And(vec![
            wide_union(120, || IndexSet::State(running)),
            wide_union(120, || IndexSet::Hashed(hash, &lookup)),
        ]);
        let guard = indexes.read();
        let CursorStep::Yielded(bound) = guard.cursor(&both).next_below(1001, &mut 1024) else {
            panic!("none is in both, and not all have been looked at");
        };
        assert!(980 < bound && bound < 1001, "{bound}");
        // Even a single step makes progress.
        let (mut before, mut yields) = (1001, 0);
        let mut cursor = guard.cursor(&both);
        while let CursorStep::Yielded(bound) = cursor.next_below(before, &mut 1) {
            assert!(bound < before, "{bound}");
            (before, yields) = (bound, yields + 1);
        }
        assert!(yields <= 1000, "{yields}");
    }
}
