//! What the store asks of a journal. What a journal does with it is its own affair.

use std::{future::Future, pin::Pin, sync::Arc};

use crate::operation::operation::Operation;

/// A future that a trait object can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Keeps changes, so that a restart does not lose them.
///
/// The store appends a change before it shows it, and never has two appends
/// for one operation under way.
pub trait Journal: Send + Sync + 'static {
    /// All operations that were kept, in any order. Called once, at the start.
    fn replay(&self) -> BoxFuture<'_, Result<Vec<Operation>, JournalError>>;

    /// Keeps a change; resolves when it cannot be lost any more.
    fn append(&self, entry: Entry) -> BoxFuture<'_, Result<(), JournalError>>;
}

/// One change.
#[derive(Clone, Debug)]
pub enum Entry {
    /// The operation is like this from now on.
    Put(Arc<Operation>),
    /// The operation, last seen like this, is gone.
    Forget(Arc<Operation>),
}

/// A change could not be kept.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the journal cannot keep a change: {0}")]
pub struct JournalError(pub String);
