//! Tombstones: which operations were removed, for as long as an older version may still arrive.
//!
//! 1. A task that removes an operation, or learns of its removal, inserts a tombstone into the current generation.
//! 2. A batch of the change feed, or a fetch, that was read before the removal may still deliver an older version.
//!    It finds the tombstone and is ignored.
//! 3. After the last batch of each read of the feed, `rotate` makes the current generation the previous one and drops
//!    the one before: all batches read earlier are applied, and later ones know of the removals.
//! 4. A fetch may take longer than a batch. It counts in the epoch in which it began, and `rotate` does nothing
//!    while a fetch of the epoch before is in flight.

use std::{collections::HashSet, mem};

use parking_lot::Mutex;

/// Two generations of tombstones, by operation number.
#[derive(Debug, Default)]
pub(super) struct Tombstones(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    current: HashSet<u64>,
    previous: HashSet<u64>,
    /// The number of fetches in flight, by the epoch in which they began.
    inflight_fetches: [usize; 2],
    /// The index of the current epoch.
    epoch: usize,
}

/// A fetch in flight. No tombstone is dropped that it may need.
#[derive(Debug)]
pub(super) struct FetchGuard<'a> {
    tombstones: &'a Tombstones,
    epoch: usize,
}

// === impl Tombstones ===

impl Tombstones {
    /// Records that an operation was removed.
    pub(super) fn insert(&self, number: u64) {
        self.0.lock().current.insert(number);
    }

    /// Returns `true` if an operation was removed. `rotate` drops tombstones that no batch or fetch can need any more.
    pub(super) fn contains(&self, number: u64) -> bool {
        let generations = self.0.lock();
        generations.current.contains(&number) || generations.previous.contains(&number)
    }

    /// Registers a fetch before it is sent to the storage.
    pub(super) fn begin_fetch(&self) -> FetchGuard<'_> {
        let mut generations = self.0.lock();
        let epoch = generations.epoch;
        generations.inflight_fetches[epoch] += 1;
        FetchGuard {
            tombstones: self,
            epoch,
        }
    }

    /// Drops the previous generation after a batch of the change feed was applied, unless an older fetch is in
    /// flight.
    pub(super) fn rotate(&self) {
        let mut generations = self.0.lock();
        let next_epoch = 1 - generations.epoch;
        if generations.inflight_fetches[next_epoch] == 0 {
            generations.previous = mem::take(&mut generations.current);
            generations.epoch = next_epoch;
        }
    }
}

// === impl FetchGuard ===

impl Drop for FetchGuard<'_> {
    fn drop(&mut self) {
        self.tombstones.0.lock().inflight_fetches[self.epoch] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tombstone_is_dropped_by_second_rotation() {
        let tombstones = Tombstones::default();
        tombstones.insert(1);
        assert!(tombstones.contains(1));
        tombstones.rotate();
        assert!(tombstones.contains(1), "the previous generation counts");
        tombstones.rotate();
        assert!(!tombstones.contains(1));
    }

    #[test]
    fn fetch_in_flight_keeps_tombstones_inserted_after_it_began() {
        let tombstones = Tombstones::default();
        let fetch = tombstones.begin_fetch();
        tombstones.insert(1);
        for _ in 0..4 {
            tombstones.rotate();
            assert!(
                tombstones.contains(1),
                "the fetch may return an older version"
            );
        }
        drop(fetch);
        tombstones.rotate();
        tombstones.rotate();
        assert!(!tombstones.contains(1));
    }

    #[test]
    fn later_fetches_do_not_keep_older_tombstones_forever() {
        let tombstones = Tombstones::default();
        tombstones.insert(1);
        tombstones.rotate();
        let mut fetch = tombstones.begin_fetch();
        for _ in 0..3 {
            let next_fetch = tombstones.begin_fetch();
            drop(std::mem::replace(&mut fetch, next_fetch));
            tombstones.rotate();
        }
        assert!(!tombstones.contains(1));
    }
}
