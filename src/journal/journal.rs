//! What the store asks of a journal. What a journal does with it is its own affair.

use std::{
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
};

use crate::operation::operation::Operation;

/// A future that a trait object can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Takes in an operation that was kept. It may be called from several threads
/// at once.
pub type Show = Arc<dyn Fn(Operation) + Send + Sync>;

/// Keeps changes, so that a restart does not lose them.
///
/// The store appends a change before it shows it, and never has two appends
/// for one operation under way.
pub trait Journal: Send + Sync + 'static {
    /// Shows all operations that were kept, in any order. Called once, at the
    /// start.
    fn replay(&self, show: Show) -> BoxFuture<'_, Result<(), JournalError>>;

    /// Keeps a change; resolves when it cannot be lost any more.
    fn append(&self, entry: Entry) -> BoxFuture<'_, Result<(), JournalError>>;

    /// Why changes cannot be kept at present; none while they can.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Lets go of what the journal holds. Called once, at the end, when no
    /// append is under way.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(ready(()))
    }
}

/// One change.
#[derive(Clone, Debug)]
pub enum Entry {
    /// The operation is like this from now on.
    Put(Arc<Operation>),
    /// The lease of the operation lasts longer; nothing else is new. A journal
    /// that is read only by the server's next start need not keep it, because
    /// a lease gets its full time again after a restart.
    Renew(Arc<Operation>),
    /// The operation, last seen like this, is gone.
    Forget(Arc<Operation>),
}

/// What was to be kept, or was kept, cannot be: a sentence that says why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct JournalError(pub String);
