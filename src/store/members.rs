//! The members of one group, in as little room as their count allows. Which
//! groups there are is known in `groups`.

use super::runs::{RUN, Runs};

/// The operations of one queue or label; most labels are on a few only.
#[derive(Debug)]
pub(super) enum Members {
    One(u64),
    #[expect(
        clippy::box_collection,
        reason = "most groups have one member, and pay for this one's size"
    )]
    Few(Box<Vec<u64>>),
    Many(Box<Runs<()>>),
}

// === impl Members ===

impl Members {
    pub(super) fn put(&mut self, number: u64, created: i64) {
        match self {
            Self::One(one) => {
                let mut few = vec![*one, number];
                few.sort_unstable();
                *self = Self::Few(Box::new(few));
            }
            Self::Few(few) if few.len() < RUN => {
                let at = few.partition_point(|other| *other < number);
                few.insert(at, number);
            }
            Self::Few(few) => {
                let mut runs = Runs::default();
                for number in few.drain(..) {
                    runs.put(number, created, ());
                }
                runs.put(number, created, ());
                *self = Self::Many(Box::new(runs));
            }
            Self::Many(runs) => runs.put(number, created, ()),
        }
    }

    /// Takes a member away; tells whether that was the last one.
    pub(super) fn remove(&mut self, number: u64) -> bool {
        match self {
            Self::One(one) => *one == number,
            Self::Few(few) => {
                if let Ok(at) = few.binary_search(&number) {
                    few.remove(at);
                }
                few.is_empty()
            }
            Self::Many(runs) => {
                runs.remove(number);
                runs.is_empty()
            }
        }
    }

    pub(super) fn below(&self, before: u64) -> Option<u64> {
        match self {
            Self::One(one) => (*one < before).then_some(*one),
            Self::Few(few) => highest_below(few, before),
            Self::Many(runs) => runs.below(before),
        }
    }

    pub(super) fn about(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Few(few) => few.len(),
            Self::Many(runs) => runs.about(),
        }
    }
}

/// The highest of these numbers, which ascend, below `before`.
pub(super) fn highest_below(numbers: &[u64], before: u64) -> Option<u64> {
    let end = numbers.partition_point(|number| *number < before);
    Some(numbers[end.checked_sub(1)?])
}
