//! The index: operations in the order of their creation, all together and by
//! parent, for lists. Which of them a list shows is decided by the caller.

use std::{collections::BTreeMap, sync::Arc};

use dashmap::DashMap;
use foldhash::fast::RandomState;
use parking_lot::RwLock;

use crate::{
    operation::{name::parent_of, operation::Operation},
    query::scope::Scope,
};

/// How many operations stand in one run of a sequence.
const RUN: usize = 256;

/// Every operation, by number and by parent and number.
#[derive(Debug, Default)]
pub(crate) struct Index {
    all: RwLock<Sequence>,
    by_parent: DashMap<Box<str>, Sequence, RandomState>,
}

/// Operations by number, in sorted runs of 16 bytes an entry. New operations
/// come at the end, so that runs are full but for gaps that deletion left.
#[derive(Debug, Default)]
struct Sequence(BTreeMap<u64, Vec<(u64, Arc<Operation>)>>);

// === impl Index ===

impl Index {
    /// Takes in an operation, in place of its older record if there is one.
    pub(crate) fn put(&self, operation: &Arc<Operation>) {
        self.all.write().put(operation);
        let parent = parent_of(operation.name());
        if let Some(mut sequence) = self.by_parent.get_mut(parent) {
            sequence.put(operation);
            return;
        }
        self.by_parent
            .entry(parent.into())
            .or_default()
            .put(operation);
    }

    /// Forgets an operation.
    pub(crate) fn remove(&self, operation: &Operation) {
        self.all.write().remove(operation.number());
        let parent = parent_of(operation.name());
        if let Some(mut sequence) = self.by_parent.get_mut(parent) {
            sequence.remove(operation.number());
        }
        self.by_parent
            .remove_if(parent, |_, sequence| sequence.0.is_empty());
    }

    /// The operation with this number.
    pub(crate) fn get(&self, number: u64) -> Option<Arc<Operation>> {
        self.all.read().get(number).cloned()
    }

    /// Shows `visit` the operations among which those of `scope` are, newest
    /// first, beginning before number `before`, until it says `false`. Tells
    /// whether it was shown all of them.
    pub(crate) fn scan(
        &self,
        scope: &Scope,
        before: u64,
        visit: impl FnMut(&Arc<Operation>) -> bool,
    ) -> bool {
        match scope {
            Scope::Everything | Scope::Matching(_) => self.all.read().scan(before, visit),
            Scope::Under(parent) => self
                .by_parent
                .get(parent.as_str())
                .is_none_or(|sequence| sequence.scan(before, visit)),
        }
    }
}

// === impl Sequence ===

impl Sequence {
    fn put(&mut self, operation: &Arc<Operation>) {
        let number = operation.number();
        let entry = (number, operation.clone());
        let Some((_, run)) = self.0.range_mut(..=number).next_back() else {
            self.put_first(entry);
            return;
        };
        match run.binary_search_by_key(&number, |(number, _)| *number) {
            Ok(at) => run[at] = entry,
            Err(at) if run.len() < RUN => run.insert(at, entry),
            // A full run that is the last one stays full: a new one begins.
            Err(at) if at == RUN => {
                self.0.insert(number, vec![entry]);
            }
            Err(at) => {
                let tail = run.split_off(RUN / 2);
                let first = tail[0].0;
                self.0.insert(first, tail);
                let run = if at <= RUN / 2 {
                    self.0.range_mut(..first).next_back()
                } else {
                    self.0.range_mut(..=first).next_back()
                };
                let (_, run) = run.expect("both halves are there");
                let at = run.partition_point(|(other, _)| *other < number);
                run.insert(at, entry);
            }
        }
    }

    /// Puts an entry that is older than all others.
    fn put_first(&mut self, entry: (u64, Arc<Operation>)) {
        match self.0.first_entry() {
            Some(first) if first.get().len() < RUN => {
                let mut run = first.remove();
                let number = entry.0;
                run.insert(0, entry);
                self.0.insert(number, run);
            }
            _ => {
                self.0.insert(entry.0, vec![entry]);
            }
        }
    }

    fn remove(&mut self, number: u64) {
        let Some((&first, run)) = self.0.range_mut(..=number).next_back() else {
            return;
        };
        if let Ok(at) = run.binary_search_by_key(&number, |(number, _)| *number) {
            run.remove(at);
            if run.len() < run.capacity() / 4 {
                run.shrink_to(run.len() * 2);
            }
            if run.is_empty() {
                self.0.remove(&first);
            }
        }
    }

    fn get(&self, number: u64) -> Option<&Arc<Operation>> {
        let (_, run) = self.0.range(..=number).next_back()?;
        let at = run
            .binary_search_by_key(&number, |(number, _)| *number)
            .ok()?;
        Some(&run[at].1)
    }

    fn scan(&self, before: u64, mut visit: impl FnMut(&Arc<Operation>) -> bool) -> bool {
        for (_, run) in self.0.range(..before).rev() {
            let end = run.partition_point(|(number, _)| *number < before);
            for (_, operation) in run[..end].iter().rev() {
                if !visit(operation) {
                    return false;
                }
            }
        }
        true
    }
}
