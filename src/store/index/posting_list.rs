//! Posting lists: the operations of one index entry, in a form as small as their number allows.

use std::slice;

use super::{
    set_cursor::{RunCursor, SetCursor},
    sorted_runs::{RUN_LEN, SortedRuns},
};

/// The numbers of the operations of one queue or label. Most labels belong to few operations.
#[derive(Debug)]
pub(super) enum PostingList {
    One(u64),
    #[expect(
        clippy::box_collection,
        reason = "most groups have one member, and pay for this one's size"
    )]
    Small(Box<Vec<u64>>),
    Runs(Box<SortedRuns<()>>),
}

// === impl PostingList ===

impl PostingList {
    pub(super) fn put(&mut self, number: u64, created_ns: i64) {
        match self {
            Self::One(one) => {
                let mut numbers = vec![*one, number];
                numbers.sort_unstable();
                *self = Self::Small(Box::new(numbers));
            }
            Self::Small(numbers) if numbers.len() < RUN_LEN => {
                let at = numbers.partition_point(|other| *other < number);
                numbers.insert(at, number);
            }
            Self::Small(numbers) => {
                let mut runs = SortedRuns::default();
                for number in numbers.drain(..).chain([number]) {
                    runs.put(number, created_ns, ());
                }
                *self = Self::Runs(Box::new(runs));
            }
            Self::Runs(runs) => runs.put(number, created_ns, ()),
        }
    }

    /// Removes a number. Returns `true` if the list is empty now.
    pub(super) fn remove(&mut self, number: u64) -> bool {
        match self {
            Self::One(one) => *one == number,
            Self::Small(numbers) => {
                if let Ok(at) = numbers.binary_search(&number) {
                    numbers.remove(at);
                }
                numbers.is_empty()
            }
            Self::Runs(runs) => {
                runs.remove(number);
                runs.is_empty()
            }
        }
    }

    /// Returns a cursor, from the highest number down.
    pub(super) fn cursor(&self) -> SetCursor<'_> {
        match self {
            Self::One(one) => SetCursor::Numbers(slice::from_ref(one)),
            Self::Small(numbers) => SetCursor::Numbers(numbers),
            Self::Runs(runs) => SetCursor::Runs(RunCursor::new(runs)),
        }
    }

    pub(super) fn len_upper_bound(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Small(numbers) => numbers.len(),
            Self::Runs(runs) => runs.len_upper_bound(),
        }
    }
}
