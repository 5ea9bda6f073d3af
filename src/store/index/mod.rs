//! The index: operations in the order of their creation, all together and by parent, for lists; and secondary
//! indexes, for filters.

mod id_prefix;
mod posting_list;
mod secondary_index;
mod set_cursor;
mod sorted_runs;

use std::{fmt, sync::Arc};

use dashmap::DashMap;
use foldhash::fast::RandomState;
use parking_lot::RwLock;

use self::{
    id_prefix::MAX_PREFIX_MATCHES,
    secondary_index::{IndexSet, SecondaryIndexes},
    set_cursor::CursorStep,
    sorted_runs::SortedRuns,
};
use crate::{
    operation::{Operation, name::parent_of},
    query::{
        plan::{Plan, TimeRange},
        scope::Scope,
    },
};

/// How many set lookups one batch of a scan makes. They take some 100 µs, during which commits wait for the lock.
const MAX_STEPS_PER_BATCH: usize = 1024;

/// All operations by number, by parent and number, and by indexed fields.
#[derive(Debug, Default)]
pub(crate) struct Index {
    by_number: RwLock<OperationsByNumber>,
    by_parent: DashMap<Box<str>, OperationsByNumber, RandomState>,
    secondary: SecondaryIndexes,
}

/// Operations by number, 16 bytes an entry.
type OperationsByNumber = SortedRuns<Arc<Operation>>;

/// A scan through the operations of a list, newest first.
#[derive(Debug)]
pub(crate) struct Scan<'a> {
    scope: &'a Scope,
    set: IndexSet<'a>,
    /// The lowest number that the list may contain.
    min_number: u64,
    /// The number behind the highest that the list may contain.
    end_number: u64,
}

/// One batch of a scan.
#[derive(Debug, Default)]
pub(crate) struct ScanBatch {
    /// Operations that may belong to the list, newest first.
    pub(crate) operations: Vec<Arc<Operation>>,
    /// The scan continues below this number; `None` after the last batch.
    pub(crate) resume_before: Option<u64>,
}

// === impl Index ===

impl Index {
    /// Inserts an operation, or replaces its previous version.
    pub(crate) fn put(&self, previous: Option<&Operation>, operation: &Arc<Operation>) {
        let number = operation.number();
        let created_ns = operation.create_time().nanos();
        let put = |sequence: &mut OperationsByNumber| {
            sequence.put(number, created_ns, operation.clone());
        };
        put(&mut self.by_number.write());
        let parent = parent_of(operation.name());
        match self.by_parent.get_mut(parent) {
            Some(mut sequence) => put(&mut sequence),
            None => put(&mut self.by_parent.entry(parent.into()).or_default()),
        }
        self.secondary.update(previous, Some(operation));
    }

    /// Removes an operation.
    pub(crate) fn remove(&self, operation: &Operation) {
        self.secondary.update(Some(operation), None);
        self.by_number.write().remove(operation.number());
        let parent = parent_of(operation.name());
        if let Some(mut sequence) = self.by_parent.get_mut(parent) {
            sequence.remove(operation.number());
        }
        self.by_parent
            .remove_if(parent, |_, sequence| sequence.is_empty());
    }

    /// Returns the operation with this number.
    pub(crate) fn get(&self, number: u64) -> Option<Arc<Operation>> {
        self.by_number.read().get(number).cloned()
    }

    /// Returns the numbers of all operations.
    pub(super) fn numbers(&self) -> Vec<u64> {
        let mut numbers = Vec::new();
        self.by_number.read().scan(u64::MAX, |number, _| {
            numbers.push(number);
            true
        });
        numbers
    }

    /// Returns a scan of the operations of a scope that the plan selects. `number_of` looks up a name.
    pub(crate) fn scan<'a>(
        &self,
        scope: &'a Scope,
        plan: &'a Plan,
        number_of_name: impl Fn(&str) -> Option<u64>,
    ) -> Scan<'a> {
        let (min_number, end_number) = match plan.creation_range {
            TimeRange::ALL => (0, u64::MAX),
            range => self.read_sequence(scope, |sequence| sequence.number_range(range)),
        };
        let (candidates, mut prefix_budget) = (&plan.candidates, MAX_PREFIX_MATCHES);
        let mut set = (self.secondary).resolve(candidates, &number_of_name, &mut prefix_budget);
        // A scan of a small parent is faster than that of a large set.
        if matches!(scope, Scope::Parent(_)) && !matches!(set, IndexSet::All) {
            let size = self.read_sequence(scope, SortedRuns::len_upper_bound);
            if size < self.secondary.read().len_upper_bound(&set) {
                set = IndexSet::All;
            }
        }
        Scan {
            scope,
            set,
            min_number,
            end_number,
        }
    }

    /// Returns the next batch below number `before`: at most `limit` operations, fewer if more would take long.
    pub(crate) fn scan_batch(&self, scan: &Scan<'_>, before: u64, limit: usize) -> ScanBatch {
        let before = before.min(scan.end_number);
        self.read_sequence(scan.scope, |sequence| match scan.set {
            IndexSet::All => scan.scan_sequence(sequence, before, limit),
            _ => self.scan_set(scan, sequence, before, limit),
        })
    }

    /// Reads the sequence that contains the operations of a scope. Returns the default if it has none.
    fn read_sequence<T: Default>(
        &self,
        scope: &Scope,
        read: impl FnOnce(&OperationsByNumber) -> T,
    ) -> T {
        match scope {
            Scope::Parent(parent) => {
                let sequence = self.by_parent.get(parent.as_str());
                sequence.map_or_else(T::default, |sequence| read(&sequence))
            }
            Scope::Everything | Scope::ParentPattern(_) => read(&self.by_number.read()),
        }
    }

    /// Scans the set, as far as its operations are in this sequence.
    fn scan_set(
        &self,
        scan: &Scan<'_>,
        sequence: &OperationsByNumber,
        mut before: u64,
        limit: usize,
    ) -> ScanBatch {
        let indexes = self.secondary.read();
        let mut cursor = indexes.cursor(&scan.set);
        let mut operations = Vec::with_capacity(limit.min(64));
        let (mut steps_left, mut is_exhausted) = (MAX_STEPS_PER_BATCH, false);
        while operations.len() < limit && steps_left > 0 && !is_exhausted {
            match cursor.next_below(before, &mut steps_left) {
                CursorStep::Found(number) if scan.min_number <= number => {
                    before = match sequence.get(number) {
                        Some(operation) => {
                            operations.push(operation.clone());
                            number
                        }
                        None => {
                            steps_left = steps_left.saturating_sub(1);
                            sequence.highest_below(number).map_or(0, |next| next + 1)
                        }
                    };
                }
                CursorStep::Yielded(bound) => before = bound,
                CursorStep::Found(_) | CursorStep::Exhausted => is_exhausted = true,
            }
        }
        ScanBatch {
            operations,
            resume_before: (!is_exhausted).then_some(before),
        }
    }
}

// === impl Scan ===

impl fmt::Display for Scan<'_> {
    /// Formats which part of the scope is scanned, for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.set)?;
        if (self.min_number, self.end_number) != (0, u64::MAX) {
            f.write_str(", by creation time")?;
        }
        Ok(())
    }
}

impl Scan<'_> {
    /// Scans the whole sequence.
    fn scan_sequence(&self, sequence: &OperationsByNumber, before: u64, limit: usize) -> ScanBatch {
        let (mut operations, mut resume_before) = (Vec::with_capacity(limit.min(256)), before);
        let is_exhausted = sequence.scan(before, |number, operation| {
            if number < self.min_number {
                resume_before = 0;
                return false;
            }
            if operations.len() == limit {
                return false;
            }
            operations.push(operation.clone());
            resume_before = number;
            true
        });
        ScanBatch {
            operations,
            resume_before: (!is_exhausted && resume_before != 0).then_some(resume_before),
        }
    }
}
