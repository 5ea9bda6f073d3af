//! The way down through a set of operations, from the highest number to the
//! lowest. Each group is searched once and then followed, because the next
//! number is mostly the one below. What the groups are is known in `groups`.

use super::runs::{Runs, pass};

/// A way down, of which each part remembers how far it has come.
#[derive(Debug)]
pub(super) enum Descent<'a> {
    Everything,
    Runs(DownRuns<'a>),
    /// Those of these numbers, which ascend, that were not passed.
    These(&'a [u64]),
    /// What is in all of them.
    All(Vec<Descent<'a>>),
    /// What is in any of them.
    Any(Vec<Descent<'a>>),
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

/// A way down through runs.
#[derive(Debug)]
pub(super) struct DownRuns<'a> {
    runs: &'a Runs<()>,
    /// What was not passed of the run that it has come to.
    entries: &'a [(u64, ())],
}

// === impl Descent ===

impl Descent<'_> {
    /// The highest number below `before`. Whoever asks goes on below what was found
    /// last; a part of a set may be asked again about numbers that it has passed,
    /// because another part was not that far, and none of them was in the set.
    ///
    /// Each look into a group is a step. When none is left, it only goes on until
    /// each group was looked into once, so that there is some progress however
    /// wide the set is.
    pub(super) fn below(&mut self, before: u64, steps: &mut usize) -> Next {
        let found = match self {
            Self::Everything => before.checked_sub(1),
            Self::Runs(runs) => runs.below(before),
            Self::These(numbers) => pass(numbers, before, |number| *number),
            Self::All(all) => return below_all(all, before, steps),
            Self::Any(any) => return below_any(any, before, steps),
        };
        *steps = steps.saturating_sub(1);
        found.map_or(Next::End, Next::Found)
    }
}

/// The sets take turns to lower the bound, until they agree.
fn below_all(all: &mut [Descent<'_>], mut before: u64, steps: &mut usize) -> Next {
    loop {
        let (mut lowest, mut is_common) = (None, true);
        for set in all.iter_mut() {
            let bound = lowest.map_or(before, |lowest| lowest + 1);
            match set.below(bound, steps) {
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
        if *steps == 0 {
            return Next::Paused(before);
        }
    }
}

fn below_any(any: &mut [Descent<'_>], before: u64, steps: &mut usize) -> Next {
    let (mut found, mut paused) = (None, None);
    for set in any {
        match set.below(before, steps) {
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

// === impl DownRuns ===

impl<'a> DownRuns<'a> {
    pub(super) fn new(runs: &'a Runs<()>) -> Self {
        Self { runs, entries: &[] }
    }

    fn below(&mut self, before: u64) -> Option<u64> {
        let number = |(number, ()): &(u64, ())| *number;
        if let Some(found) = pass(&mut self.entries, before, number) {
            return Some(found);
        }
        self.entries = self.runs.entries_below(before);
        self.entries.last().map(number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const END: u64 = 2000;

    /// A set, and what it is made of.
    #[derive(Debug)]
    enum Whole {
        Everything,
        Runs(Runs<()>),
        These(Vec<u64>),
        All(Vec<Whole>),
        Any(Vec<Whole>),
    }

    impl Whole {
        fn descend(&self) -> Descent<'_> {
            match self {
                Self::Everything => Descent::Everything,
                Self::Runs(runs) => Descent::Runs(DownRuns::new(runs)),
                Self::These(numbers) => Descent::These(numbers),
                Self::All(wholes) => Descent::All(wholes.iter().map(Self::descend).collect()),
                Self::Any(wholes) => Descent::Any(wholes.iter().map(Self::descend).collect()),
            }
        }

        fn has(&self, number: u64) -> bool {
            match self {
                Self::Everything => true,
                Self::Runs(runs) => runs.get(number).is_some(),
                Self::These(numbers) => numbers.binary_search(&number).is_ok(),
                Self::All(wholes) => wholes.iter().all(|whole| whole.has(number)),
                Self::Any(wholes) => wholes.iter().any(|whole| whole.has(number)),
            }
        }
    }

    /// Numbers at even distances, in several runs, some of which went.
    fn runs() -> impl Strategy<Value = Whole> {
        (0..END, 1..5usize, 0..900usize, 2..9u64).prop_map(|(first, step, count, gone)| {
            let mut runs = Runs::default();
            let numbers = (first..END).step_by(step).take(count);
            for number in numbers.clone() {
                runs.put(number, 0, ());
            }
            for number in numbers.filter(|number| number / 40 % gone == 0) {
                runs.remove(number);
            }
            Whole::Runs(runs)
        })
    }

    fn these() -> impl Strategy<Value = Whole> {
        proptest::collection::btree_set(0..END, 0..60)
            .prop_map(|numbers| Whole::These(numbers.into_iter().collect()))
    }

    fn sets() -> impl Strategy<Value = Whole> {
        let leaf = || prop_oneof![1 => Just(()).prop_map(|()| Whole::Everything), 6 => runs(), 3 => these()];
        let pair = move || {
            prop_oneof![
                vec(leaf(), 1..4).prop_map(Whole::All),
                vec(leaf(), 1..4).prop_map(Whole::Any),
                leaf(),
            ]
        };
        prop_oneof![
            vec(pair(), 1..4).prop_map(Whole::All),
            vec(pair(), 1..4).prop_map(Whole::Any),
            pair(),
        ]
    }

    proptest! {
        #[test]
        fn the_way_down_leads_to_each_number_of_the_set_whatever_the_steps(
            whole in sets(),
            steps in 1..40usize,
            begins_anew in any::<bool>(),
        ) {
            let (mut descent, mut before, mut found) = (whole.descend(), END, Vec::new());
            loop {
                match descent.below(before, &mut { steps }) {
                    Next::Found(number) => {
                        prop_assert!(number < before);
                        found.push(number);
                        before = number;
                    }
                    Next::Paused(bound) => {
                        prop_assert!(bound < before);
                        before = bound;
                        if begins_anew {
                            descent = whole.descend();
                        }
                    }
                    Next::End => break,
                }
            }
            let expected: Vec<u64> = (0..END).rev().filter(|number| whole.has(*number)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
