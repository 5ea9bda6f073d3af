//! Sorted runs: an ordered map from numbers to values, for numbers that mostly grow.

use std::collections::BTreeMap;

use crate::query::plan::TimeRange;

/// The number of entries in one run.
pub(super) const RUN_LEN: usize = 256;

/// Entries by number, in sorted runs. New numbers are appended, so that runs are full except for gaps left by
/// removals. Each run knows the creation times of its entries, so that a time range is found without a look at each
/// of them.
#[derive(Debug)]
pub(super) struct SortedRuns<V>(BTreeMap<u64, Run<V>>);

#[derive(Debug)]
struct Run<V> {
    entries: Vec<(u64, V)>,
    /// The earliest and the latest creation time of the entries.
    created_range_ns: (i64, i64),
}

impl<V> Default for SortedRuns<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

// === impl SortedRuns ===

impl<V> SortedRuns<V> {
    /// Inserts a value, or replaces the one of the same number.
    pub(super) fn put(&mut self, number: u64, created_ns: i64, value: V) {
        let entry = (number, value);
        let Some((first, run)) = self.0.range_mut(..=number).next_back() else {
            self.put_lowest(entry, created_ns);
            return;
        };
        match run.search(*first, number) {
            Ok(at) => run.entries[at] = entry,
            Err(at) if run.entries.len() < RUN_LEN => run.insert(at, entry, created_ns),
            // A full last run stays full: a new one begins.
            Err(RUN_LEN) => {
                self.0.insert(number, Run::new(entry, created_ns));
            }
            Err(_) => {
                let tail = Run {
                    entries: run.entries.split_off(RUN_LEN / 2),
                    created_range_ns: run.created_range_ns,
                };
                self.0.insert(tail.entries[0].0, tail);
                self.put(number, created_ns, entry.1);
            }
        }
    }

    /// Inserts an entry whose number is the lowest.
    fn put_lowest(&mut self, entry: (u64, V), created_ns: i64) {
        match self.0.first_entry() {
            Some(first) if first.get().entries.len() < RUN_LEN => {
                let mut run = first.remove();
                let number = entry.0;
                run.insert(0, entry, created_ns);
                self.0.insert(number, run);
            }
            _ => {
                self.0.insert(entry.0, Run::new(entry, created_ns));
            }
        }
    }

    pub(super) fn remove(&mut self, number: u64) {
        let Some((&first, run)) = self.0.range_mut(..=number).next_back() else {
            return;
        };
        if let Ok(at) = run.search(first, number) {
            let entries = &mut run.entries;
            entries.remove(at);
            if entries.len() < entries.capacity() / 4 {
                entries.shrink_to(entries.len() * 2);
            }
            if entries.is_empty() {
                self.0.remove(&first);
            }
        }
    }

    pub(super) fn get(&self, number: u64) -> Option<&V> {
        let (first, run) = self.0.range(..=number).next_back()?;
        let at = run.search(*first, number).ok()?;
        Some(&run.entries[at].1)
    }

    /// Calls `visit` with the values from the highest number below `before` down, until it returns `false`. Returns
    /// `true` if it visited all of them.
    pub(super) fn scan(&self, before: u64, mut visit: impl FnMut(u64, &V) -> bool) -> bool {
        for (_, run) in self.0.range(..before).rev() {
            let end = run.entries.partition_point(|(number, _)| *number < before);
            for (number, value) in run.entries[..end].iter().rev() {
                if !visit(*number, value) {
                    return false;
                }
            }
        }
        true
    }

    /// Returns the highest number below `before`.
    pub(super) fn highest_below(&self, before: u64) -> Option<u64> {
        Some(self.entries_below(before).last()?.0)
    }

    /// Returns the entries below `before` of the run that has the highest of them, or an empty slice.
    pub(super) fn entries_below(&self, before: u64) -> &[(u64, V)] {
        // A run whose first entries were removed may have none below `before`.
        let runs = self.0.range(..before).rev();
        let mut remaining = runs.map(|(_, run)| {
            let mut entries = run.entries.as_slice();
            truncate_from(&mut entries, before, |(number, _)| *number);
            entries
        });
        remaining.find(|entries| !entries.is_empty()).unwrap_or(&[])
    }

    /// Returns the range of numbers, the end excluded, that contains all operations created in a time range.
    pub(super) fn number_range(&self, range: TimeRange) -> (u64, u64) {
        let (mut min_number, mut end_number) = (u64::MAX, 0);
        for (first, run) in &self.0 {
            let (oldest, newest) = run.created_range_ns;
            if range.from_ns <= newest.into() && i128::from(oldest) <= range.to_ns {
                min_number = min_number.min(*first);
                let last = run.entries.last();
                end_number = last.map_or(end_number, |(last, _)| end_number.max(last + 1));
            }
        }
        (min_number, end_number)
    }

    /// Returns an upper bound of the number of entries.
    pub(super) fn len_upper_bound(&self) -> usize {
        self.0.len() * RUN_LEN
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Truncates ascending entries at number `before`, and returns the highest number that is left. Mostly it is the last
/// one or the one before.
pub(super) fn truncate_from<T>(
    entries: &mut &[T],
    before: u64,
    number_of: impl Fn(&T) -> u64,
) -> Option<u64> {
    for _ in 0..2 {
        match entries.split_last() {
            Some((last, rest)) if before <= number_of(last) => *entries = rest,
            last => return last.map(|(last, _)| number_of(last)),
        }
    }
    let end = entries.partition_point(|entry| number_of(entry) < before);
    *entries = &entries[..end];
    entries.last().map(number_of)
}

// === impl Run ===

impl<V> Run<V> {
    fn new(entry: (u64, V), created_ns: i64) -> Self {
        Self {
            entries: vec![entry],
            created_range_ns: (created_ns, created_ns),
        }
    }

    /// Finds a number in this run, or the position where it would be; no number of the run is below `first_number`.
    /// Without gaps before it, the first probe finds it.
    fn search(&self, first_number: u64, number: u64) -> Result<usize, usize> {
        let distance = usize::try_from(number - first_number).unwrap_or(usize::MAX);
        let end = match self.entries.get(distance) {
            Some((found, _)) if *found == number => return Ok(distance),
            // Numbers ascend: all behind this position are higher.
            Some(_) => distance,
            None => self.entries.len(),
        };
        self.entries[..end].binary_search_by_key(&number, |(number, _)| *number)
    }

    fn insert(&mut self, at: usize, entry: (u64, V), created_ns: i64) {
        self.entries.insert(at, entry);
        let (oldest, newest) = self.created_range_ns;
        self.created_range_ns = (oldest.min(created_ns), newest.max(created_ns));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn removing_first_entries_of_run_keeps_lower_runs_visible() {
        let mut runs = SortedRuns::default();
        for number in 0..600 {
            runs.put(number, 0, ());
        }
        for number in 256..300 {
            runs.remove(number);
        }
        assert_eq!(runs.highest_below(300), Some(255));
        assert_eq!(runs.highest_below(301), Some(300));
    }

    proptest! {
        #[test]
        fn sorted_runs_match_btree_map_after_random_changes(
            changes in proptest::collection::vec((0u64..2000, any::<bool>(), -50i64..50), 0..1500),
            before in 0u64..2100,
            (low, high) in (-60i64..60, -60i64..60),
        ) {
            let (mut runs, mut model) = (SortedRuns::default(), BTreeMap::new());
            for (number, is_put, created) in changes {
                // An entry keeps its creation time.
                let created = model.get(&number).copied().unwrap_or(created);
                if is_put {
                    runs.put(number, created, number * 2);
                    model.insert(number, created);
                } else {
                    runs.remove(number);
                    model.remove(&number);
                }
            }
            let mut scanned = Vec::new();
            let is_exhausted = runs.scan(before, |number, value| {
                assert_eq!(*value, number * 2);
                scanned.push(number);
                true
            });
            prop_assert!(is_exhausted);
            let expected: Vec<_> = model.range(..before).rev().map(|(number, _)| *number).collect();
            prop_assert_eq!(&scanned, &expected);
            prop_assert_eq!(runs.highest_below(before), expected.first().copied());
            prop_assert_eq!(runs.get(before).is_some(), model.contains_key(&before));
            prop_assert!(model.len() <= runs.len_upper_bound());
            let (from, to) = runs.number_range(TimeRange { from_ns: low.into(), to_ns: high.into() });
            for (number, created) in model {
                let is_within = low <= created && created <= high;
                prop_assert!(!is_within || (from <= number && number < to));
            }
        }
    }
}
