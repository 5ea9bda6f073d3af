//! Groups of operations, so that a list with a filter need not look at all:
//! by state, by queue, by label, and by name. They hold numbers only, and
//! nothing for an operation that has succeeded without queue and labels under
//! a name of the server's making. Which groups a filter needs is decided in
//! `query::plan`.

use std::{
    collections::{BTreeSet, HashMap},
    hash::BuildHasher,
};

use foldhash::fast::RandomState;
use parking_lot::{RwLock, RwLockReadGuard};

use super::runs::{RUN, Runs};
use crate::{
    operation::{name::segments, operation::Operation},
    proto::longrunning::v1::operation_metadata::State,
    query::plan::{Among, Group},
};

/// How many names a prefix may have to be worth a look into the names.
const MAX_NAMES: usize = 4096;

/// How many bytes of an id stand in the book of names.
const ID: usize = 16;

/// The groups of all operations.
#[derive(Debug, Default)]
pub(super) struct Groups {
    states: RwLock<States>,
    /// Queues and labels, by the hash of what they are. That two share one is
    /// rare and does no harm, because the filter itself is asked in the end.
    others: RwLock<HashMap<u64, Members, RandomState>>,
    hasher: RandomState,
    /// Ids that callers made, by their first bytes.
    names: RwLock<BTreeSet<([u8; ID], u64)>>,
}

/// The operations of each state but SUCCEEDED.
#[derive(Debug, Default)]
struct States {
    pending: Runs<()>,
    running: Runs<()>,
    failed: Runs<()>,
    cancelled: Runs<()>,
}

/// The operations of one queue or label; most labels are on a few only.
#[derive(Debug)]
enum Members {
    One(u64),
    #[expect(
        clippy::box_collection,
        reason = "most groups have one member, and pay for this one's size"
    )]
    Few(Box<Vec<u64>>),
    Many(Box<Runs<()>>),
}

/// A set of operations as it is looked up.
#[derive(Debug)]
pub(super) enum Set {
    Everything,
    State(State),
    Other(u64),
    /// These, in ascending order.
    These(Vec<u64>),
    All(Vec<Set>),
    Any(Vec<Set>),
}

/// The next operation of a set, going down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Found(u64),
    /// None was found yet; there is none at this number or above.
    Paused(u64),
    /// There is none.
    End,
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
        if let Some(id) = made_id(subject.name()) {
            let entry = (beginning(id), number);
            if is_new {
                self.names.write().insert(entry);
            } else {
                self.names.write().remove(&entry);
            }
        }
    }

    /// What is to be looked up for a plan. A name is found by `named`.
    pub(super) fn set(&self, among: &Among, named: &dyn Fn(&str) -> Option<u64>) -> Set {
        let sets = |all: &[Among]| all.iter().map(|among| self.set(among, named)).collect();
        match among {
            Among::Everything => Set::Everything,
            Among::All(all) => {
                let mut sets: Vec<Set> = sets(all);
                sets.retain(|set| !matches!(set, Set::Everything));
                if sets.is_empty() {
                    return Set::Everything;
                }
                Set::All(sets)
            }
            Among::Any(any) => {
                let sets: Vec<Set> = sets(any);
                if sets.iter().any(|set| matches!(set, Set::Everything)) {
                    return Set::Everything;
                }
                Set::Any(sets)
            }
            Among::Group(Group::State(State::Succeeded | State::Unspecified)) => Set::Everything,
            Among::Group(Group::State(state)) => Set::State(*state),
            Among::Group(Group::Queue(queue)) => Set::Other(self.queue(queue)),
            Among::Group(Group::Label(key, value)) => Set::Other(self.label(key, value)),
            Among::Group(Group::Named(name)) => Set::These(named(name).into_iter().collect()),
            Among::Group(Group::Prefix(prefix)) => {
                self.with_prefix(prefix).map_or(Set::Everything, Set::These)
            }
        }
    }

    /// The operations whose names may begin so; none if they are too many, or
    /// if the server itself may have made such names.
    fn with_prefix(&self, prefix: &str) -> Option<Vec<u64>> {
        let id = id_of(prefix).filter(|id| !begins_made_by_server(id))?;
        let wanted = &id.as_bytes()[..id.len().min(ID)];
        let mut first = [0; ID];
        first[..wanted.len()].copy_from_slice(wanted);
        let names = self.names.read();
        let found = names
            .range((first, 0)..)
            .take_while(|(id, _)| id.starts_with(wanted));
        let mut numbers: Vec<u64> = found
            .take(MAX_NAMES + 1)
            .map(|(_, number)| *number)
            .collect();
        numbers.sort_unstable();
        (numbers.len() <= MAX_NAMES).then_some(numbers)
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
    /// The highest number of a set below `before`, found in so many steps.
    pub(super) fn below(&self, set: &Set, before: u64, steps: &mut usize) -> Next {
        let found = match set {
            Set::Everything => before.checked_sub(1),
            Set::State(state) => self.states.of(*state).and_then(|runs| runs.below(before)),
            Set::Other(group) => self.others.get(group).and_then(|m| m.below(before)),
            Set::These(numbers) => highest_below(numbers, before),
            Set::All(sets) => return self.below_all(sets, before, steps),
            Set::Any(sets) => return self.below_any(sets, before, steps),
        };
        found.map_or(Next::End, Next::Found)
    }

    /// The sets take turns to lower the bound, until they agree.
    fn below_all(&self, sets: &[Set], mut before: u64, steps: &mut usize) -> Next {
        loop {
            let (mut lowest, mut is_common) = (None, true);
            for set in sets {
                let bound = lowest.map_or(before, |lowest| lowest + 1);
                match self.below(set, bound, steps) {
                    Next::Found(number) => {
                        is_common &= lowest.is_none_or(|lowest| lowest == number);
                        lowest = Some(number);
                    }
                    other => return other,
                }
            }
            let Some(number) = lowest else {
                return Next::End;
            };
            if is_common {
                return Next::Found(number);
            }
            before = number + 1;
            *steps = steps.saturating_sub(1);
            if *steps == 0 {
                return Next::Paused(before);
            }
        }
    }

    fn below_any(&self, sets: &[Set], before: u64, steps: &mut usize) -> Next {
        let (mut found, mut paused) = (None, None);
        for set in sets {
            match self.below(set, before, steps) {
                Next::Found(number) => found = found.max(Some(number)),
                Next::Paused(bound) => paused = paused.max(Some(bound)),
                Next::End => {}
            }
        }
        match (found, paused) {
            // What is above the bound of a pause is known.
            (Some(number), Some(bound)) if number < bound => Next::Paused(bound),
            (Some(number), _) => Next::Found(number),
            (None, Some(bound)) => Next::Paused(bound),
            (None, None) => Next::End,
        }
    }

    /// About how many operations a set has, at most.
    pub(super) fn about(&self, set: &Set) -> usize {
        match set {
            Set::Everything => usize::MAX,
            Set::State(state) => self.states.of(*state).map_or(0, Runs::about),
            Set::Other(group) => self.others.get(group).map_or(0, Members::about),
            Set::These(numbers) => numbers.len(),
            Set::All(sets) => sets.iter().map(|set| self.about(set)).min().unwrap_or(0),
            Set::Any(sets) => {
                let sizes = sets.iter().map(|set| self.about(set));
                sizes.fold(0, usize::saturating_add)
            }
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

// === impl Members ===

impl Members {
    fn put(&mut self, number: u64, created: i64) {
        match self {
            Self::One(one) => {
                let mut few = vec![*one, number];
                few.sort_unstable();
                *self = Self::Few(Box::new(few));
            }
            Self::Few(few) if few.len() < RUN => {
                let at = few.partition_point(|other| *other < number);
                few.insert(at, number);
            }
            Self::Few(few) => {
                let mut runs = Runs::default();
                for number in few.drain(..) {
                    runs.put(number, created, ());
                }
                runs.put(number, created, ());
                *self = Self::Many(Box::new(runs));
            }
            Self::Many(runs) => runs.put(number, created, ()),
        }
    }

    /// Takes a member away; tells whether that was the last one.
    fn remove(&mut self, number: u64) -> bool {
        match self {
            Self::One(one) => *one == number,
            Self::Few(few) => {
                if let Ok(at) = few.binary_search(&number) {
                    few.remove(at);
                }
                few.is_empty()
            }
            Self::Many(runs) => {
                runs.remove(number);
                runs.is_empty()
            }
        }
    }

    fn below(&self, before: u64) -> Option<u64> {
        match self {
            Self::One(one) => (*one < before).then_some(*one),
            Self::Few(few) => highest_below(few, before),
            Self::Many(runs) => runs.below(before),
        }
    }

    fn about(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Few(few) => few.len(),
            Self::Many(runs) => runs.about(),
        }
    }
}

fn highest_below(numbers: &[u64], before: u64) -> Option<u64> {
    let end = numbers.partition_point(|number| *number < before);
    Some(numbers[end.checked_sub(1)?])
}

// === Names ===

/// The id of a name, or the beginning of one: what follows the first
/// `operations/` that stands in the place of a collection.
fn id_of(name: &str) -> Option<&str> {
    let mut at = 0;
    for (collection, id) in segments(name) {
        at += collection.len() + 1;
        if collection == "operations" {
            return name.get(at..);
        }
        at += id.len() + 1;
    }
    None
}

/// The id of a name, if the server did not make it.
fn made_id(name: &str) -> Option<&str> {
    id_of(name).filter(|id| !is_made_by_server(id))
}

fn is_made_by_server(id: &str) -> bool {
    id.len() == 36 && begins_made_by_server(id)
}

/// Whether the server may make ids that begin so.
fn begins_made_by_server(id: &str) -> bool {
    id.len() <= 36
        && id.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        })
}

fn beginning(id: &str) -> [u8; ID] {
    let mut beginning = [0; ID];
    let length = id.len().min(ID);
    beginning[..length].copy_from_slice(&id.as_bytes()[..length]);
    beginning
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_name_follows_its_first_collection_of_operations() {
        for (name, id) in [
            ("operations/a", Some("a")),
            ("operations/", Some("")),
            ("projects/p/operations/ab", Some("ab")),
            ("operations/ns/operations/x", Some("ns/operations/x")),
            ("projects/operations/operations/x", Some("x")),
            ("operations", Some("")),
            ("projects/p", None),
            ("oper", None),
            ("", None),
        ] {
            assert_eq!(
                id_of(name).unwrap_or_default(),
                id.unwrap_or_default(),
                "{name}"
            );
        }
    }

    #[test]
    fn a_prefix_that_the_server_may_have_made_is_not_looked_up() {
        for made in ["", "0", "01a1fd8a", "01a1fd8a-1bcf-7087-a3e3-f00827894941"] {
            assert!(begins_made_by_server(made), "{made}");
        }
        for made in [
            "export",
            "01a1fd8a1",
            "A",
            "01a1fd8a-1bcf-7087-a3e3-f00827894941-",
        ] {
            assert!(!begins_made_by_server(made), "{made}");
        }
        assert!(!is_made_by_server("01a1fd8a"));
    }
}
