//! Groups of operations, so that a list with a filter need not look at all:
//! by state, by queue, by label, and by name (see `names`). They hold numbers
//! only, and nothing for an operation that has succeeded without queue and
//! labels under a name of the server's making. Which groups a filter needs is
//! decided in `query::plan`.

use std::{collections::HashMap, fmt, hash::BuildHasher};

use foldhash::fast::RandomState;
use parking_lot::{RwLock, RwLockReadGuard};

use super::{
    descent::{Descent, DownRuns},
    members::Members,
    names::{MAX_NAMES, Names},
    runs::Runs,
};
use crate::{
    operation::operation::Operation,
    proto::longrunning::v1::operation_metadata::State,
    query::plan::{Among, Group, join},
};

/// The groups of all operations.
#[derive(Debug, Default)]
pub(super) struct Groups {
    states: RwLock<States>,
    /// Queues and labels, by the hash of what they are. That two share one is
    /// rare and does no harm, because the filter itself is asked in the end.
    others: RwLock<HashMap<u64, Members, RandomState>>,
    hasher: RandomState,
    names: Names,
}

/// The operations of each state but SUCCEEDED.
#[derive(Debug, Default)]
struct States {
    pending: Runs<()>,
    running: Runs<()>,
    failed: Runs<()>,
    cancelled: Runs<()>,
}

/// A set of operations as it is looked up, for a plan that lives so long.
#[derive(Debug)]
pub(super) enum Set<'p> {
    Everything,
    State(State),
    /// A queue or a label, by its hash.
    Other(u64, &'p Group),
    /// These, in ascending order, found by name.
    These(Vec<u64>, &'p Group),
    All(Vec<Set<'p>>),
    Any(Vec<Set<'p>>),
}

/// The groups, while they cannot change.
pub(super) struct Reading<'a> {
    states: RwLockReadGuard<'a, States>,
    others: RwLockReadGuard<'a, HashMap<u64, Members, RandomState>>,
}

// === impl Groups ===

impl Groups {
    /// Takes note of a change: of a new operation if there was none before, of
    /// one that goes away if there is none now.
    pub(super) fn note(&self, previous: Option<&Operation>, operation: Option<&Operation>) {
        let (before, now) = (
            previous.map(Operation::state),
            operation.map(Operation::state),
        );
        let Some(subject) = operation.or(previous) else {
            return;
        };
        if before != now {
            self.states.write().change(before, now, subject);
        }
        if previous.is_none() == operation.is_none() {
            return;
        }
        let is_new = previous.is_none();
        let (number, created) = (subject.number(), subject.create_time().nanos());
        if subject.queue().is_some() || subject.labels().iter().next().is_some() {
            let mut others = self.others.write();
            let queue = subject.queue().map(|queue| self.queue(queue.as_str()));
            let labels = subject.labels().iter();
            let labels = labels.map(|(key, value)| self.label(key, value));
            for group in queue.into_iter().chain(labels) {
                if is_new {
                    others
                        .entry(group)
                        .and_modify(|members| members.put(number, created))
                        .or_insert(Members::One(number));
                } else if others.get_mut(&group).is_some_and(|m| m.remove(number)) {
                    others.remove(&group);
                }
            }
        }
        self.names.note(subject, is_new);
    }

    /// What is to be looked up for a plan. A name is found by `named`.
    pub(super) fn set<'p>(&self, among: &'p Among, named: &dyn Fn(&str) -> Option<u64>) -> Set<'p> {
        self.part(among, named, &mut { MAX_NAMES })
    }

    /// The same for a part of a plan, whose prefixes may still have so many names.
    fn part<'p>(
        &self,
        among: &'p Among,
        named: &dyn Fn(&str) -> Option<u64>,
        names: &mut usize,
    ) -> Set<'p> {
        let group = match among {
            Among::Everything => return Set::Everything,
            Among::Group(group) => group,
            Among::All(all) => {
                let sets = all.iter().map(|among| self.part(among, named, names));
                let mut sets: Vec<_> = sets.filter(|set| !matches!(set, Set::Everything)).collect();
                return if sets.len() < 2 {
                    sets.pop().unwrap_or(Set::Everything)
                } else {
                    Set::All(sets)
                };
            }
            Among::Any(any) => {
                let mut sets = Vec::with_capacity(any.len());
                for among in any {
                    match self.part(among, named, names) {
                        Set::Everything => return Set::Everything,
                        set => sets.push(set),
                    }
                }
                return Set::Any(sets);
            }
        };
        match group {
            Group::State(State::Succeeded | State::Unspecified) => Set::Everything,
            Group::State(state) => Set::State(*state),
            Group::Queue(queue) => Set::Other(self.queue(queue), group),
            Group::Label(key, value) => Set::Other(self.label(key, value), group),
            Group::Named(name) => Set::These(named(name).into_iter().collect(), group),
            Group::Prefix(prefix) => match self.names.with_prefix(prefix, names) {
                Some(numbers) => Set::These(numbers, group),
                None => Set::Everything,
            },
        }
    }

    pub(super) fn read(&self) -> Reading<'_> {
        Reading {
            states: self.states.read(),
            others: self.others.read(),
        }
    }

    fn queue(&self, name: &str) -> u64 {
        self.hasher.hash_one((0u8, name))
    }

    fn label(&self, key: &str, value: &str) -> u64 {
        self.hasher.hash_one((1u8, key, value))
    }
}

// === impl Reading ===

impl Reading<'_> {
    /// The way down through a set.
    pub(super) fn descend<'a>(&'a self, set: &'a Set<'_>) -> Descent<'a> {
        let all = |sets: &'a [Set<'_>]| sets.iter().map(|set| self.descend(set)).collect();
        match set {
            Set::Everything => Descent::Everything,
            Set::State(state) => self.states.of(*state).map_or(Descent::These(&[]), |runs| {
                Descent::Runs(DownRuns::new(runs))
            }),
            Set::Other(group, _) => self
                .others
                .get(group)
                .map_or(Descent::These(&[]), Members::descend),
            Set::These(numbers, _) => Descent::These(numbers),
            Set::All(sets) => Descent::All(all(sets)),
            Set::Any(sets) => Descent::Any(all(sets)),
        }
    }

    /// About how many operations a set has, at most.
    pub(super) fn about(&self, set: &Set<'_>) -> usize {
        match set {
            Set::Everything => usize::MAX,
            Set::State(state) => self.states.of(*state).map_or(0, Runs::about),
            Set::Other(group, _) => self.others.get(group).map_or(0, Members::about),
            Set::These(numbers, _) => numbers.len(),
            Set::All(sets) => sets.iter().map(|set| self.about(set)).min().unwrap_or(0),
            Set::Any(sets) => {
                let sizes = sets.iter().map(|set| self.about(set));
                sizes.fold(0, usize::saturating_add)
            }
        }
    }
}

// === impl Set ===

impl fmt::Display for Set<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("everything"),
            Self::State(state) => write!(f, "{}", Group::State(*state)),
            Self::Other(_, group) | Self::These(_, group) => write!(f, "{group}"),
            Self::All(sets) => join(sets, " and ", f),
            Self::Any(sets) => join(sets, " or ", f),
        }
    }
}

// === impl States ===

impl States {
    fn change(&mut self, before: Option<State>, now: Option<State>, subject: &Operation) {
        if let Some(runs) = before.and_then(|state| self.of_mut(state)) {
            runs.remove(subject.number());
        }
        if let Some(runs) = now.and_then(|state| self.of_mut(state)) {
            runs.put(subject.number(), subject.create_time().nanos(), ());
        }
    }

    fn of(&self, state: State) -> Option<&Runs<()>> {
        match state {
            State::Pending => Some(&self.pending),
            State::Running => Some(&self.running),
            State::Failed => Some(&self.failed),
            State::Cancelled => Some(&self.cancelled),
            State::Succeeded | State::Unspecified => None,
        }
    }

    fn of_mut(&mut self, state: State) -> Option<&mut Runs<()>> {
        match state {
            State::Pending => Some(&mut self.pending),
            State::Running => Some(&mut self.running),
            State::Failed => Some(&mut self.failed),
            State::Cancelled => Some(&mut self.cancelled),
            State::Succeeded | State::Unspecified => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::descent::Next, *};
    use crate::query::samples::{End, Facts, Metadata};

    /// Every second operation is running, the others have a label: none is both.
    fn disjoint(count: u64) -> Groups {
        let groups = Groups::default();
        for number in 1..=count {
            let is_running = number % 2 == 0;
            let facts = Facts {
                parent: "",
                id: format!("a-{number}"),
                end: if is_running {
                    End::Running
                } else {
                    End::Succeeded
                },
                queue: None,
                env: (!is_running).then_some("prod"),
                team: None,
                created: 0,
                metadata: Metadata::Unknown,
            };
            groups.note(None, Some(&facts.operation(number)));
        }
        groups
    }

    fn wide<'p>(width: usize, set: impl Fn() -> Set<'p>) -> Set<'p> {
        Set::Any((0..width).map(|_| set()).collect())
    }

    #[test]
    fn the_steps_to_the_next_operation_are_bounded_however_wide_a_plan_is() {
        let groups = disjoint(1000);
        let group = Group::Label("env".into(), "prod".into());
        let label = groups.label("env", "prod");
        let both = Set::All(vec![
            wide(120, || Set::State(State::Running)),
            wide(120, || Set::Other(label, &group)),
        ]);
        let reading = groups.read();
        let Next::Paused(bound) = reading.descend(&both).below(1001, &mut 1024) else {
            panic!("none is in both, and not all have been looked at");
        };
        assert!(980 < bound && bound < 1001, "{bound}");
        // Even a single step leads on.
        let (mut before, mut turns) = (1001, 0);
        let mut descent = reading.descend(&both);
        while let Next::Paused(bound) = descent.below(before, &mut 1) {
            assert!(bound < before, "{bound}");
            (before, turns) = (bound, turns + 1);
        }
        assert!(turns <= 1000, "{turns}");
    }
}
