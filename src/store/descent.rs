//! The way down through a set of operations, from the highest number to the
//! lowest. Each group is searched once and then followed, because the next
//! number is mostly the one below. What the groups are is known in `groups`.

use super::runs::{Runs, pass};

/// A way down. Whoever goes it asks for numbers below ever lower ones.
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
    /// The highest number below `before`, which is no higher than the last time.
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
