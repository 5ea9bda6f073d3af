//! Key locks: at most one change of an operation is in progress at a time. Waiters acquire the lock in FIFO order.

use std::{collections::VecDeque, hash::BuildHasher, sync::Arc};

use dashmap::{DashMap, mapref::entry::Entry};
use foldhash::fast::{FixedState, RandomState};
use tokio::sync::oneshot;

/// Locks keyed by the hash of a name. Two names of one hash share a lock, which is harmless.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyLocks(Arc<DashMap<u64, VecDeque<oneshot::Sender<KeyLockGuard>>, RandomState>>);

/// A held lock. On drop it goes to the next waiter.
#[derive(Debug)]
pub(crate) struct KeyLockGuard {
    hash: u64,
    /// `None` once the lock was passed on.
    locks: Option<KeyLocks>,
}

// === impl KeyLocks ===

impl KeyLocks {
    /// Returns the lock of a key, or `None` if it is held.
    pub(crate) fn try_lock(&self, key: &str) -> Option<KeyLockGuard> {
        let hash = FixedState::default().hash_one(key);
        let Entry::Vacant(vacant) = self.0.entry(hash) else {
            return None;
        };
        vacant.insert(VecDeque::new());
        Some(self.guard(hash))
    }

    /// Waits for the lock of a key. A waiter that is dropped leaves the queue.
    pub(crate) async fn lock(&self, key: &str) -> KeyLockGuard {
        let hash = FixedState::default().hash_one(key);
        let rx = match self.0.entry(hash) {
            Entry::Vacant(vacant) => {
                vacant.insert(VecDeque::new());
                return self.guard(hash);
            }
            Entry::Occupied(mut waiters) => {
                let (tx, rx) = oneshot::channel();
                waiters.get_mut().push_back(tx);
                rx
            }
        };
        rx.await.expect("the holder sends its guard on drop")
    }

    fn guard(&self, hash: u64) -> KeyLockGuard {
        let locks = Some(self.clone());
        KeyLockGuard { hash, locks }
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
            match waiter.send(locks.guard(self.hash)) {
                Ok(()) => return,
                // The waiter has gone. This copy of its guard must not pass the lock on a second time.
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

    // Rules: DUR-4
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
        // It was granted the lock, and was never polled.
        drop(granted);
        drop(last.await);
        assert!(locks.0.is_empty());
    }
}
