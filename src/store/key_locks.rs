//! Turns: at most one change of an operation is under way at a time. Those who
//! come while one is, stand in line and follow each other in that order.

use std::{collections::VecDeque, hash::BuildHasher, sync::Arc};

use dashmap::{DashMap, mapref::entry::Entry};
use foldhash::fast::{FixedState, RandomState};
use tokio::sync::oneshot;

/// Whose turn it is, by the hash of a name: two names of one hash merely wait
/// for each other.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyLocks(Arc<DashMap<u64, VecDeque<oneshot::Sender<KeyLockGuard>>, RandomState>>);

/// The right to change one operation, until dropped.
#[derive(Debug)]
pub(crate) struct KeyLockGuard {
    hash: u64,
    /// None once the turn was passed on.
    locks: Option<KeyLocks>,
}

// === impl Turns ===

impl KeyLocks {
    /// Waits for the turn of `name`.
    pub(crate) async fn lock(&self, key: &str) -> KeyLockGuard {
        let hash = FixedState::default().hash_one(key);
        let rx = match self.0.entry(hash) {
            Entry::Vacant(vacant) => {
                vacant.insert(VecDeque::new());
                None
            }
            Entry::Occupied(mut waiters) => {
                let (tx, rx) = oneshot::channel();
                waiters.get_mut().push_back(tx);
                Some(rx)
            }
        };
        let locks = Some(self.clone());
        match rx {
            None => KeyLockGuard { hash, locks },
            // Whoever has the turn passes it on when it is dropped.
            Some(rx) => rx.await.expect("a turn is passed on"),
        }
    }
}

impl Drop for KeyLockGuard {
    fn drop(&mut self) {
        let Some(locks) = self.locks.take() else {
            return;
        };
        let Entry::Occupied(mut waiters) = locks.0.entry(self.hash) else {
            return;
        };
        while let Some(waiter) = waiters.get_mut().pop_front() {
            let guard = Self {
                hash: self.hash,
                locks: Some(locks.clone()),
            };
            match waiter.send(guard) {
                Ok(()) => return,
                // That one has gone; here the turn must not be passed on twice.
                Err(mut guard) => guard.locks = None,
            }
        }
        waiters.remove();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn key_lock_is_acquired_in_fifo_order() {
        let locks = KeyLocks::default();
        let first = locks.lock("a").await;
        let (mut second, mut third) = (pin!(locks.lock("a")), pin!(locks.lock("a")));
        assert!(poll!(second.as_mut()).is_pending());
        assert!(poll!(third.as_mut()).is_pending());
        drop(locks.lock("b").await);
        drop(first);
        assert!(poll!(third.as_mut()).is_pending());
        drop(second.await);
        drop(third.await);
        assert!(locks.0.is_empty());
    }

    #[tokio::test]
    async fn dropped_waiter_does_not_block_key_lock() {
        let locks = KeyLocks::default();
        let first = locks.lock("a").await;
        let mut granted = Box::pin(locks.lock("a"));
        let mut cancelled = Box::pin(locks.lock("a"));
        let mut last = pin!(locks.lock("a"));
        assert!(poll!(granted.as_mut()).is_pending());
        assert!(poll!(cancelled.as_mut()).is_pending());
        assert!(poll!(last.as_mut()).is_pending());
        drop(cancelled);
        drop(first);
        // It was given the turn, and never looked.
        drop(granted);
        drop(last.await);
        assert!(locks.0.is_empty());
    }
}
