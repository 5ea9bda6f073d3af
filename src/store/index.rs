//! The index: operations in the order of their creation, all together and by
//! parent, for lists, and groups of them for filters. Which of them a list
//! shows is decided by the caller.

use std::{fmt, sync::Arc};

use dashmap::DashMap;
use foldhash::fast::RandomState;
use parking_lot::RwLock;

use super::{
    descent::Next,
    groups::{Groups, Set},
    runs::Runs,
};
use crate::{
    operation::{name::parent_of, operation::Operation},
    query::{
        plan::{Among, Plan, Times},
        scope::Scope,
    },
};

/// How often one stretch looks into groups, so that it takes no more than some
/// 100 µs, for which those that create and finish operations may have to wait.
const STEPS: usize = 1024;

/// Every operation, by number, by parent and number, and by what filters ask for.
#[derive(Debug, Default)]
pub(crate) struct Index {
    all: RwLock<Sequence>,
    by_parent: DashMap<Box<str>, Sequence, RandomState>,
    groups: Groups,
}

/// Operations by number, 16 bytes an entry.
type Sequence = Runs<Arc<Operation>>;

/// A way through the operations of a list, newest first.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    scope: &'a Scope,
    set: Set<'a>,
    /// No operation of the list has a lower number.
    from: u64,
    /// Nor this one, or a higher one.
    to: u64,
}

/// A stretch of a walk.
#[derive(Debug, Default)]
pub(crate) struct Stretch {
    /// Operations that may belong to the list, newest first.
    pub(crate) operations: Vec<Arc<Operation>>,
    /// The walk goes on below this number; none if this was the last stretch.
    pub(crate) rest: Option<u64>,
}

// === impl Index ===

impl Index {
    /// Takes in an operation, in place of its older record if there is one.
    pub(crate) fn put(&self, previous: Option<&Operation>, operation: &Arc<Operation>) {
        let number = operation.number();
        let created = operation.create_time().nanos();
        self.all.write().put(number, created, operation.clone());
        let parent = parent_of(operation.name());
        if let Some(mut sequence) = self.by_parent.get_mut(parent) {
            sequence.put(number, created, operation.clone());
        } else {
            self.by_parent.entry(parent.into()).or_default().put(
                number,
                created,
                operation.clone(),
            );
        }
        self.groups.note(previous, Some(operation));
    }

    /// Forgets an operation.
    pub(crate) fn remove(&self, operation: &Operation) {
        self.groups.note(Some(operation), None);
        self.all.write().remove(operation.number());
        let parent = parent_of(operation.name());
        if let Some(mut sequence) = self.by_parent.get_mut(parent) {
            sequence.remove(operation.number());
        }
        self.by_parent
            .remove_if(parent, |_, sequence| sequence.is_empty());
    }

    /// The operation with this number.
    pub(crate) fn get(&self, number: u64) -> Option<Arc<Operation>> {
        self.all.read().get(number).cloned()
    }

    /// The numbers of all operations.
    pub(super) fn numbers(&self) -> Vec<u64> {
        let mut numbers = Vec::new();
        self.all.read().scan(u64::MAX, |number, _| {
            numbers.push(number);
            true
        });
        numbers
    }

    /// The way through the operations of a scope that a plan leaves. `named`
    /// finds the number of a name.
    pub(crate) fn walk<'a>(
        &self,
        scope: &'a Scope,
        plan: &'a Plan,
        named: impl Fn(&str) -> Option<u64>,
    ) -> Walk<'a> {
        let (from, to) = match plan.created {
            Times::EVER => (0, u64::MAX),
            times => match scope {
                Scope::Under(parent) => self
                    .by_parent
                    .get(parent.as_str())
                    .map_or((0, 0), |sequence| sequence.within(times)),
                Scope::Everything | Scope::Matching(_) => self.all.read().within(times),
            },
        };
        let mut set = match &plan.among {
            Among::Everything => Set::Everything,
            among => self.groups.set(among, &named),
        };
        // A parent with few operations is looked through faster than a large group.
        if let Scope::Under(parent) = scope
            && !matches!(set, Set::Everything)
        {
            let sequence = self.by_parent.get(parent.as_str());
            let size = sequence.map_or(0, |sequence| sequence.about());
            if size < self.groups.read().about(&set) {
                set = Set::Everything;
            }
        }
        Walk {
            scope,
            set,
            from,
            to,
        }
    }

    /// The next stretch of a walk, below number `before`: at most `limit`
    /// operations, fewer if that would take long.
    pub(crate) fn stretch(&self, walk: &Walk<'_>, before: u64, limit: usize) -> Stretch {
        let before = before.min(walk.to);
        match walk.scope {
            Scope::Everything | Scope::Matching(_) if matches!(walk.set, Set::Everything) => {
                walk.along(&self.all.read(), before, limit)
            }
            Scope::Everything | Scope::Matching(_) => self.pick(walk, before, limit),
            Scope::Under(parent) => {
                let Some(sequence) = self.by_parent.get(parent.as_str()) else {
                    return Stretch::default();
                };
                if matches!(walk.set, Set::Everything) {
                    walk.along(&sequence, before, limit)
                } else {
                    self.pick_of(walk, &sequence, before, limit)
                }
            }
        }
    }

    fn pick(&self, walk: &Walk<'_>, before: u64, limit: usize) -> Stretch {
        self.pick_of(walk, &self.all.read(), before, limit)
    }

    /// Goes from one operation of the walk's set to the next, as far as they
    /// are in this sequence.
    fn pick_of(
        &self,
        walk: &Walk<'_>,
        sequence: &Sequence,
        mut before: u64,
        limit: usize,
    ) -> Stretch {
        let groups = self.groups.read();
        let mut descent = groups.descend(&walk.set);
        let (mut operations, mut steps) = (Vec::with_capacity(limit.min(64)), STEPS);
        while operations.len() < limit && 0 < steps {
            match descent.below(before, &mut steps) {
                Next::Found(number) if walk.from <= number => {
                    before = match sequence.get(number) {
                        Some(operation) => {
                            operations.push(operation.clone());
                            number
                        }
                        None => {
                            steps = steps.saturating_sub(1);
                            sequence.below(number).map_or(0, |next| next + 1)
                        }
                    };
                }
                Next::Paused(bound) => before = bound,
                Next::Found(_) | Next::End => {
                    return Stretch {
                        operations,
                        rest: None,
                    };
                }
            }
        }
        Stretch {
            operations,
            rest: Some(before),
        }
    }
}

// === impl Walk ===

impl fmt::Display for Walk<'_> {
    /// Says what of the scope is looked at.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.set)?;
        if (self.from, self.to) != (0, u64::MAX) {
            f.write_str(", by creation time")?;
        }
        Ok(())
    }
}

impl Walk<'_> {
    /// Goes from one operation of a sequence to the next.
    fn along(&self, sequence: &Sequence, before: u64, limit: usize) -> Stretch {
        let (mut operations, mut rest) = (Vec::with_capacity(limit.min(256)), before);
        let is_over = sequence.scan(before, |number, operation| {
            if number < self.from {
                rest = 0;
                return false;
            }
            if operations.len() == limit {
                return false;
            }
            operations.push(operation.clone());
            rest = number;
            true
        });
        Stretch {
            operations,
            rest: (!is_over && rest != 0).then_some(rest),
        }
    }
}
