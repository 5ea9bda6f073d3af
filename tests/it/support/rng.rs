//! Chance that can be had again: the same seed throws the same numbers.

use std::ops::Range;

/// SplitMix64, which is good enough to choose what a test does next.
#[derive(Clone, Debug)]
pub(crate) struct TestRng(u64);

// === impl Dice ===

impl TestRng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Other dice, for a task of its own.
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

    /// Whether something happens that happens once in `n` throws.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.random_range(0..n) == 0
    }

    pub(crate) fn choose<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        let count = u64::try_from(items.len())
            .ok()
            .filter(|count| *count != 0)?;
        items.get(usize::try_from(self.random_range(0..count)).ok()?)
    }
}
