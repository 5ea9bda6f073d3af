//! The members of one group, in as little room as their count allows. Which
//! groups there are is known in `groups`.

use std::slice;

use super::{
    descent::{Descent, DownRuns},
    runs::{RUN, Runs},
};

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

    /// The way down through them.
    pub(super) fn descend(&self) -> Descent<'_> {
        match self {
            Self::One(one) => Descent::These(slice::from_ref(one)),
            Self::Few(few) => Descent::These(few),
            Self::Many(runs) => Descent::Runs(DownRuns::new(runs)),
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
