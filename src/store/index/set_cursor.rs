//! Cursors through sets of operation numbers, from the highest to the lowest: leapfrog intersection and union. Each
//! cursor remembers its position, because the next number is mostly the one below.

use super::sorted_runs::{SortedRuns, truncate_from};

/// A cursor; its parts remember their positions.
#[derive(Debug)]
pub(super) enum SetCursor<'a> {
    All,
    Runs(RunCursor<'a>),
    /// These numbers, in ascending order, as far as they were not passed.
    Numbers(&'a [u64]),
    /// The intersection.
    And(Vec<SetCursor<'a>>),
    /// The union.
    Or(Vec<SetCursor<'a>>),
}

/// One step of a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CursorStep {
    Found(u64),
    /// No number was found yet, and there is none at or above this one.
    Yielded(u64),
    /// There are no more numbers.
    Exhausted,
}

/// A cursor through sorted runs.
#[derive(Debug)]
pub(super) struct RunCursor<'a> {
    runs: &'a SortedRuns<()>,
    /// The entries of the current run that were not passed.
    remaining: &'a [(u64, ())],
}

// === impl SetCursor ===

impl SetCursor<'_> {
    /// Returns the highest number below `before`. The caller continues below the number that was found. A part of a
    /// set may be asked again about numbers it has passed, because another part was not as far; none of them is in
    /// the set.
    ///
    /// Each lookup is a step. When no step is left, each part is still looked up once, so that every call makes
    /// progress however wide the set is.
    pub(super) fn next_below(&mut self, before: u64, steps_left: &mut usize) -> CursorStep {
        let found = match self {
            Self::All => before.checked_sub(1),
            Self::Runs(runs) => runs.next_below(before),
            Self::Numbers(numbers) => truncate_from(numbers, before, |number| *number),
            Self::And(all) => return intersection_below(all, before, steps_left),
            Self::Or(any) => return union_below(any, before, steps_left),
        };
        *steps_left = steps_left.saturating_sub(1);
        found.map_or(CursorStep::Exhausted, CursorStep::Found)
    }
}

/// Lowers the bound set by set, until all of them agree.
fn intersection_below(
    cursors: &mut [SetCursor<'_>],
    mut before: u64,
    steps_left: &mut usize,
) -> CursorStep {
    loop {
        let (mut candidate, mut is_common) = (None, true);
        for cursor in cursors.iter_mut() {
            let bound = candidate.map_or(before, |candidate| candidate + 1);
            match cursor.next_below(bound, steps_left) {
                CursorStep::Found(number) => {
                    is_common &= candidate.is_none_or(|candidate| candidate == number);
                    candidate = Some(number);
                }
                step => return step,
            }
        }
        let Some(number) = candidate else {
            return CursorStep::Exhausted;
        };
        if is_common {
            return CursorStep::Found(number);
        }
        before = number + 1;
        if *steps_left == 0 {
            return CursorStep::Yielded(before);
        }
    }
}

fn union_below(cursors: &mut [SetCursor<'_>], before: u64, steps_left: &mut usize) -> CursorStep {
    let (mut found, mut yielded) = (None, None);
    for cursor in cursors {
        match cursor.next_below(before, steps_left) {
            CursorStep::Found(number) => found = found.max(Some(number)),
            CursorStep::Yielded(bound) => yielded = yielded.max(Some(bound)),
            CursorStep::Exhausted => {}
        }
    }
    match (found, yielded) {
        // Numbers above the bound of a set that has yielded are known.
        (Some(number), Some(bound)) if number < bound => CursorStep::Yielded(bound),
        (Some(number), _) => CursorStep::Found(number),
        (None, Some(bound)) => CursorStep::Yielded(bound),
        (None, None) => CursorStep::Exhausted,
    }
}

// === impl RunCursor ===

impl<'a> RunCursor<'a> {
    pub(super) fn new(runs: &'a SortedRuns<()>) -> Self {
        Self {
            runs,
            remaining: &[],
        }
    }

    fn next_below(&mut self, before: u64) -> Option<u64> {
        let number_of = |(number, ()): &(u64, ())| *number;
        if let Some(found) = truncate_from(&mut self.remaining, before, number_of) {
            return Some(found);
        }
        self.remaining = self.runs.entries_below(before);
        self.remaining.last().map(number_of)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const NUMBER_COUNT: u64 = 2000;

    /// A set, and the sets that it is made of.
    #[derive(Debug)]
    enum TestSet {
        All,
        Runs(SortedRuns<()>),
        Numbers(Vec<u64>),
        And(Vec<TestSet>),
        Or(Vec<TestSet>),
    }

    impl TestSet {
        fn cursor(&self) -> SetCursor<'_> {
            match self {
                Self::All => SetCursor::All,
                Self::Runs(runs) => SetCursor::Runs(RunCursor::new(runs)),
                Self::Numbers(numbers) => SetCursor::Numbers(numbers),
                Self::And(sets) => SetCursor::And(sets.iter().map(Self::cursor).collect()),
                Self::Or(sets) => SetCursor::Or(sets.iter().map(Self::cursor).collect()),
            }
        }

        fn contains(&self, number: u64) -> bool {
            match self {
                Self::All => true,
                Self::Runs(runs) => runs.get(number).is_some(),
                Self::Numbers(numbers) => numbers.binary_search(&number).is_ok(),
                Self::And(sets) => sets.iter().all(|set| set.contains(number)),
                Self::Or(sets) => sets.iter().any(|set| set.contains(number)),
            }
        }
    }

    /// Numbers at even distances in several runs, some of them removed.
    fn runs() -> impl Strategy<Value = TestSet> {
        (0..NUMBER_COUNT, 1..5usize, 0..900usize, 2..9u64).prop_map(
            |(first, step, count, removal_stride)| {
                let mut runs = SortedRuns::default();
                let numbers = (first..NUMBER_COUNT).step_by(step).take(count);
                for number in numbers.clone() {
                    runs.put(number, 0, ());
                }
                for number in numbers.filter(|number| number / 40 % removal_stride == 0) {
                    runs.remove(number);
                }
                TestSet::Runs(runs)
            },
        )
    }

    fn numbers() -> impl Strategy<Value = TestSet> {
        proptest::collection::btree_set(0..NUMBER_COUNT, 0..60)
            .prop_map(|numbers| TestSet::Numbers(numbers.into_iter().collect()))
    }

    fn sets() -> impl Strategy<Value = TestSet> {
        let leaf =
            || prop_oneof![1 => Just(()).prop_map(|()| TestSet::All), 6 => runs(), 3 => numbers()];
        let pair = move || {
            prop_oneof![
                vec(leaf(), 1..4).prop_map(TestSet::And),
                vec(leaf(), 1..4).prop_map(TestSet::Or),
                leaf(),
            ]
        };
        prop_oneof![
            vec(pair(), 1..4).prop_map(TestSet::And),
            vec(pair(), 1..4).prop_map(TestSet::Or),
            pair(),
        ]
    }

    proptest! {
        #[test]
        fn cursor_visits_every_number_of_set_for_any_step_budget(
            set in sets(),
            steps in 1..40usize,
            restarts in any::<bool>(),
        ) {
            let (mut cursor, mut before, mut found) = (set.cursor(), NUMBER_COUNT, Vec::new());
            loop {
                match cursor.next_below(before, &mut { steps }) {
                    CursorStep::Found(number) => {
                        prop_assert!(number < before);
                        found.push(number);
                        before = number;
                    }
                    CursorStep::Yielded(bound) => {
                        prop_assert!(bound < before);
                        before = bound;
                        if restarts {
                            cursor = set.cursor();
                        }
                    }
                    CursorStep::Exhausted => break,
                }
            }
            let expected: Vec<u64> = (0..NUMBER_COUNT).rev().filter(|number| set.contains(*number)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
