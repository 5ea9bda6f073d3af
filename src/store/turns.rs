//! Turns: at most one change of an operation is under way at a time.

use std::{hash::BuildHasher, sync::Arc};

use foldhash::fast::FixedState;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// How many operations can change at once. Two names that fall on one stripe
/// merely wait for each other.
const STRIPES: usize = 1024;

/// Striped locks by name. A turn may be held over an append.
#[derive(Debug)]
pub(crate) struct Turns(Box<[Arc<Mutex<()>>]>);

/// The right to change one operation, until dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _guard: OwnedMutexGuard<()>,
}

impl Default for Turns {
    fn default() -> Self {
        Self((0..STRIPES).map(|_| Arc::default()).collect())
    }
}

impl Turns {
    /// Waits for the turn of `name`.
    pub(crate) async fn of(&self, name: &str) -> Turn {
        let hash = FixedState::default().hash_one(name);
        let stripe = usize::try_from(hash % STRIPES as u64).unwrap_or(0);
        Turn {
            _guard: self.0[stripe].clone().lock_owned().await,
        }
    }
}
