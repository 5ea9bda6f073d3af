//! A seeded random number generator, so that a test run can be repeated.

use std::ops::Range;

/// SplitMix64, whose quality suffices to choose test steps.
#[derive(Clone, Debug)]
pub(crate) struct TestRng(u64);

// === impl TestRng ===

impl TestRng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a new generator, seeded from this one, for another task.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next_u64())
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn random_range(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next_u64() % (range.end - range.start)
    }

    /// Returns `true` with probability 1/`n`.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.random_range(0..n) == 0
    }

    /// Returns a random item, or `None` if there is none.
    pub(crate) fn choose<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        let count = u64::try_from(items.len())
            .ok()
            .filter(|count| *count != 0)?;
        items.get(usize::try_from(self.random_range(0..count)).ok()?)
    }
}
