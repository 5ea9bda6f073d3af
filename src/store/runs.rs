//! Numbers in order, each with a value: what the index and its groups are made
//! of. What the numbers stand for is not known here.

use std::collections::BTreeMap;

use crate::query::plan::Times;

/// How many entries stand in one run.
pub(super) const RUN: usize = 256;

/// Entries by number, in sorted runs. New numbers come at the end, so that runs
/// are full but for gaps that removal left. A run knows when its entries were
/// created, so that a range of time is found without looking at each of them.
#[derive(Debug)]
pub(super) struct Runs<V>(BTreeMap<u64, Run<V>>);

#[derive(Debug)]
struct Run<V> {
    entries: Vec<(u64, V)>,
    /// No entry is older than the first, none newer than the second.
    created: (i64, i64),
}

impl<V> Default for Runs<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

// === impl Runs ===

impl<V> Runs<V> {
    /// Takes in a value, in place of the one with the same number.
    pub(super) fn put(&mut self, number: u64, created: i64, value: V) {
        let entry = (number, value);
        let Some((first, run)) = self.0.range_mut(..=number).next_back() else {
            self.put_first(entry, created);
            return;
        };
        match run.find(*first, number) {
            Ok(at) => run.entries[at] = entry,
            Err(at) if run.entries.len() < RUN => run.insert(at, entry, created),
            // A full run that is the last one stays full: a new one begins.
            Err(at) if at == RUN => {
                self.0.insert(number, Run::new(entry, created));
            }
            Err(at) => {
                let tail = Run {
                    entries: run.entries.split_off(RUN / 2),
                    created: run.created,
                };
                let first = tail.entries[0].0;
                self.0.insert(first, tail);
                let run = if at <= RUN / 2 {
                    self.0.range_mut(..first).next_back()
                } else {
                    self.0.range_mut(..=first).next_back()
                };
                let (_, run) = run.expect("both halves are there");
                let at = run.entries.partition_point(|(other, _)| *other < number);
                run.insert(at, entry, created);
            }
        }
    }

    /// Puts an entry whose number is lower than all others.
    fn put_first(&mut self, entry: (u64, V), created: i64) {
        match self.0.first_entry() {
            Some(first) if first.get().entries.len() < RUN => {
                let mut run = first.remove();
                let number = entry.0;
                run.insert(0, entry, created);
                self.0.insert(number, run);
            }
            _ => {
                self.0.insert(entry.0, Run::new(entry, created));
            }
        }
    }

    pub(super) fn remove(&mut self, number: u64) {
        let Some((&first, run)) = self.0.range_mut(..=number).next_back() else {
            return;
        };
        if let Ok(at) = run.find(first, number) {
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
        let at = run.find(*first, number).ok()?;
        Some(&run.entries[at].1)
    }

    /// Shows `visit` the values, highest number first, beginning below
    /// `before`, until it says `false`. Tells whether it was shown all of them.
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

    /// The highest number below `before`.
    pub(super) fn below(&self, before: u64) -> Option<u64> {
        Some(self.entries_below(before).last()?.0)
    }

    /// The entries below `before` of the run that has the highest of them; none
    /// if there are none.
    pub(super) fn entries_below(&self, before: u64) -> &[(u64, V)] {
        // A run whose first entries were removed may have none below it.
        let runs = self.0.range(..before).rev();
        let mut below = runs.map(|(_, run)| {
            let mut entries = run.entries.as_slice();
            pass(&mut entries, before, |(number, _)| *number);
            entries
        });
        below.find(|entries| !entries.is_empty()).unwrap_or(&[])
    }

    /// Numbers between which all are that were created in this time: the lowest
    /// one, and the one behind the highest.
    pub(super) fn within(&self, times: Times) -> (u64, u64) {
        let (mut from, mut to) = (u64::MAX, 0);
        for (first, run) in &self.0 {
            let (oldest, newest) = run.created;
            if times.from <= newest.into() && i128::from(oldest) <= times.to {
                from = from.min(*first);
                to = run.entries.last().map_or(to, |(last, _)| to.max(last + 1));
            }
        }
        (from, to)
    }

    /// About how many there are, and not fewer.
    pub(super) fn about(&self) -> usize {
        self.0.len() * RUN
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Cuts off the end of entries whose numbers ascend, from number `before` on;
/// the highest number that is left. Mostly that is the last or the one before.
pub(super) fn pass<T>(entries: &mut &[T], before: u64, number: impl Fn(&T) -> u64) -> Option<u64> {
    for _ in 0..2 {
        match entries.split_last() {
            Some((last, rest)) if before <= number(last) => *entries = rest,
            last => return last.map(|(last, _)| number(last)),
        }
    }
    let end = entries.partition_point(|entry| number(entry) < before);
    *entries = &entries[..end];
    entries.last().map(number)
}

// === impl Run ===

impl<V> Run<V> {
    fn new(entry: (u64, V), created: i64) -> Self {
        Self {
            entries: vec![entry],
            created: (created, created),
        }
    }

    /// Where a number is, or would be, in this run, none of whose numbers is
    /// below `first`. Where no number is missing before it, one look finds it.
    fn find(&self, first: u64, number: u64) -> Result<usize, usize> {
        let distance = usize::try_from(number - first).unwrap_or(usize::MAX);
        let end = match self.entries.get(distance) {
            Some((found, _)) if *found == number => return Ok(distance),
            // The numbers ascend: behind this place all are higher.
            Some(_) => distance,
            None => self.entries.len(),
        };
        self.entries[..end].binary_search_by_key(&number, |(number, _)| *number)
    }

    fn insert(&mut self, at: usize, entry: (u64, V), created: i64) {
        self.entries.insert(at, entry);
        let (oldest, newest) = self.created;
        self.created = (oldest.min(created), newest.max(created));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_run_whose_first_entries_went_hides_nothing_below_it() {
        let mut runs = Runs::default();
        for number in 0..600 {
            runs.put(number, 0, ());
        }
        for number in 256..300 {
            runs.remove(number);
        }
        assert_eq!(runs.below(300), Some(255));
        assert_eq!(runs.below(301), Some(300));
    }

    proptest! {
        #[test]
        fn numbers_come_in_order_whatever_comes_and_goes(
            changes in proptest::collection::vec((0u64..2000, any::<bool>(), -50i64..50), 0..1500),
            before in 0u64..2100,
            (low, high) in (-60i64..60, -60i64..60),
        ) {
            let (mut runs, mut plain) = (Runs::default(), BTreeMap::new());
            for (number, is_put, created) in changes {
                // An entry keeps the time of its creation for as long as it is there.
                let created = plain.get(&number).copied().unwrap_or(created);
                if is_put {
                    runs.put(number, created, number * 2);
                    plain.insert(number, created);
                } else {
                    runs.remove(number);
                    plain.remove(&number);
                }
            }
            let mut seen = Vec::new();
            let is_over = runs.scan(before, |number, value| {
                assert_eq!(*value, number * 2);
                seen.push(number);
                true
            });
            prop_assert!(is_over);
            let expected: Vec<_> = plain.range(..before).rev().map(|(number, _)| *number).collect();
            prop_assert_eq!(&seen, &expected);
            prop_assert_eq!(runs.below(before), expected.first().copied());
            prop_assert_eq!(runs.get(before).is_some(), plain.contains_key(&before));
            prop_assert!(plain.len() <= runs.about());
            let (from, to) = runs.within(Times { from: low.into(), to: high.into() });
            for (number, created) in plain {
                let is_within = low <= created && created <= high;
                prop_assert!(!is_within || (from <= number && number < to));
            }
        }
    }
}
