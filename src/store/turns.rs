//! Turns: at most one change of an operation is under way at a time. Those who
//! come while one is, stand in line and follow each other in that order.

use std::{collections::VecDeque, hash::BuildHasher, sync::Arc};

use dashmap::{DashMap, mapref::entry::Entry};
use foldhash::fast::{FixedState, RandomState};
use tokio::sync::oneshot;

/// Whose turn it is, by the hash of a name: two names of one hash merely wait
/// for each other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Arc<DashMap<u64, VecDeque<oneshot::Sender<Turn>>, RandomState>>);

/// The right to change one operation, until dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    hash: u64,
    /// None once the turn was passed on.
    turns: Option<Turns>,
}

// === impl Turns ===

impl Turns {
    /// Waits for the turn of `name`.
    pub(crate) async fn of(&self, name: &str) -> Turn {
        let hash = FixedState::default().hash_one(name);
        let given = match self.0.entry(hash) {
            Entry::Vacant(free) => {
                free.insert(VecDeque::new());
                None
            }
            Entry::Occupied(mut line) => {
                let (give, given) = oneshot::channel();
                line.get_mut().push_back(give);
                Some(given)
            }
        };
        let turns = Some(self.clone());
        match given {
            None => Turn { hash, turns },
            // Whoever has the turn passes it on when it is dropped.
            Some(given) => given.await.expect("a turn is passed on"),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turns) = self.turns.take() else {
            return;
        };
        let Entry::Occupied(mut line) = turns.0.entry(self.hash) else {
            return;
        };
        while let Some(next) = line.get_mut().pop_front() {
            let turn = Self {
                hash: self.hash,
                turns: Some(turns.clone()),
            };
            match next.send(turn) {
                Ok(()) => return,
                // That one has gone; here the turn must not be passed on twice.
                Err(mut turn) => turn.turns = None,
            }
        }
        line.remove();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn turns_of_a_name_follow_each_other_in_the_order_of_asking() {
        let turns = Turns::default();
        let first = turns.of("a").await;
        let (mut second, mut third) = (pin!(turns.of("a")), pin!(turns.of("a")));
        assert!(poll!(second.as_mut()).is_pending());
        assert!(poll!(third.as_mut()).is_pending());
        drop(turns.of("b").await);
        drop(first);
        assert!(poll!(third.as_mut()).is_pending());
        drop(second.await);
        drop(third.await);
        assert!(turns.0.is_empty());
    }

    #[tokio::test]
    async fn who_leaves_the_line_or_does_not_take_its_turn_holds_up_nobody() {
        let turns = Turns::default();
        let first = turns.of("a").await;
        let mut given = Box::pin(turns.of("a"));
        let mut left = Box::pin(turns.of("a"));
        let mut last = pin!(turns.of("a"));
        assert!(poll!(given.as_mut()).is_pending());
        assert!(poll!(left.as_mut()).is_pending());
        assert!(poll!(last.as_mut()).is_pending());
        drop(left);
        drop(first);
        // It was given the turn, and never looked.
        drop(given);
        drop(last.await);
        assert!(turns.0.is_empty());
    }
}
