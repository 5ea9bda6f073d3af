//! Eviction: with shared storage, the view has a limited number of done operations. Older ones are read from the
//! storage on demand.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

use crate::operation::Operation;

/// The done operations in the view, and below which number some are missing.
#[derive(Debug, Default)]
pub(crate) struct ViewEviction {
    /// The most done operations in the view; `None` for all.
    limit: Option<usize>,
    done_numbers: Mutex<BTreeSet<u64>>,
    evicted_below: AtomicU64,
}

// === impl ViewEviction ===

impl ViewEviction {
    pub(super) fn new(limit: Option<usize>) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    /// Counts a published operation, if it is done.
    pub(super) fn insert(&self, operation: &Operation) {
        if self.limit.is_some() && operation.is_done() {
            self.done_numbers.lock().insert(operation.number());
        }
    }

    /// Stops counting an operation that left the view.
    pub(super) fn remove(&self, operation: &Operation) {
        if self.limit.is_some() && operation.is_done() {
            self.done_numbers.lock().remove(&operation.number());
        }
    }

    /// Raises `evicted_below` after a load: the storage has loaded the newest done operations only, up to the limit.
    pub(super) fn mark_unloaded_as_evicted(&self) {
        let done_numbers = self.done_numbers.lock();
        if self.limit.is_some_and(|limit| done_numbers.len() >= limit) {
            let oldest = done_numbers.first().copied().unwrap_or(u64::MAX);
            self.evicted_below.fetch_max(oldest, Ordering::AcqRel);
        }
    }

    /// Returns the number below which done operations may be missing from the view. A list reads it after it has
    /// taken its operations from the view, so that none that was evicted meanwhile is missed.
    pub(crate) fn evicted_below(&self) -> u64 {
        self.evicted_below.load(Ordering::Acquire)
    }

    /// Takes the oldest done operation over the limit out of the count. Returns its number.
    pub(super) fn pop_over_capacity(&self) -> Option<u64> {
        let (limit, mut done_numbers) = (self.limit?, self.done_numbers.lock());
        let is_over = done_numbers.len() > limit;
        is_over.then(|| done_numbers.pop_first()).flatten()
    }

    /// Raises `evicted_below` before the operation with this number leaves the view.
    pub(super) fn mark_evicted(&self, number: u64) {
        self.evicted_below.fetch_max(number + 1, Ordering::AcqRel);
    }

    /// Returns `true` for a done operation that is old enough to be missing from the view.
    pub(super) fn may_be_evicted(&self, operation: &Operation) -> bool {
        operation.is_done() && operation.number() < self.evicted_below()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::testing::{SampleMetadata, SampleOperation, SampleState};

    fn operation(number: u64, state: SampleState) -> Operation {
        let sample = SampleOperation {
            parent: "",
            id: format!("op-{number}"),
            state,
            queue: Some("q"),
            env: None,
            team: None,
            created_after_secs: 0,
            metadata: SampleMetadata::Server(None),
        };
        sample.to_operation(number)
    }

    fn eviction_with_done(limit: Option<usize>, numbers: &[u64]) -> ViewEviction {
        let eviction = ViewEviction::new(limit);
        for number in numbers {
            eviction.insert(&operation(*number, SampleState::Succeeded));
        }
        eviction
    }

    #[test]
    fn oldest_done_operations_over_limit_are_popped_in_order() {
        let eviction = eviction_with_done(Some(2), &[7, 3, 9, 5]);
        eviction.insert(&operation(1, SampleState::Running));
        assert_eq!(eviction.pop_over_capacity(), Some(3));
        assert_eq!(eviction.pop_over_capacity(), Some(5));
        assert_eq!(eviction.pop_over_capacity(), None);
    }

    #[test]
    fn only_done_operations_below_the_raised_bound_may_be_evicted() {
        let eviction = eviction_with_done(Some(2), &[3, 5, 7]);
        eviction.mark_evicted(3);
        eviction.mark_evicted(2);
        assert_eq!(eviction.evicted_below(), 4, "the bound never goes back");
        assert!(eviction.may_be_evicted(&operation(3, SampleState::Succeeded)));
        assert!(!eviction.may_be_evicted(&operation(3, SampleState::Running)));
        assert!(!eviction.may_be_evicted(&operation(4, SampleState::Succeeded)));
    }

    #[test]
    fn full_load_marks_everything_below_oldest_loaded_as_evicted() {
        let full = eviction_with_done(Some(2), &[5, 7]);
        full.mark_unloaded_as_evicted();
        assert_eq!(full.evicted_below(), 5);
        let partial = eviction_with_done(Some(3), &[5, 7]);
        partial.mark_unloaded_as_evicted();
        assert_eq!(partial.evicted_below(), 0, "everything was loaded");
    }

    #[test]
    fn no_limit_evicts_nothing() {
        let eviction = eviction_with_done(None, &[3, 5, 7]);
        eviction.mark_unloaded_as_evicted();
        assert_eq!(eviction.pop_over_capacity(), None);
        assert_eq!(eviction.evicted_below(), 0);
    }

    #[test]
    fn removed_operations_are_not_popped() {
        let eviction = eviction_with_done(Some(1), &[3, 5]);
        eviction.remove(&operation(3, SampleState::Succeeded));
        assert_eq!(eviction.pop_over_capacity(), None);
    }
}
