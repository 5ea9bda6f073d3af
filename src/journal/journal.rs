//! What the store asks of a journal. What a journal does with it is its own affair.

use std::{
    fmt,
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
};

use crate::{clock::Timestamp, operation::operation::Operation};

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

    /// Keeps a change, and calls `then` when it cannot be lost any more, or
    /// when it cannot be kept. Does not block.
    fn append(&self, entry: Entry, then: Then);

    /// The latest time that a kept change bears; a clock that begins earlier has
    /// gone backwards.
    fn newest(&self) -> Option<Timestamp> {
        None
    }

    /// Why changes cannot be kept at present; none while they can.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Lets go of what the journal holds. Called at the end, as a rule when no
    /// append is under way; appends that come later are refused.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(ready(()))
    }
}

/// What the store does once a change is kept: it shows the change and tells
/// those who asked for it, wherever they are by then. It may be called on any
/// thread, at once or later; it is quick, but takes locks of the store. Dropped
/// uncalled, it is called with an error.
pub struct Then(Option<Box<Call>>);

type Call = dyn FnOnce(Result<(), JournalError>) + Send;

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

// === impl Then ===

impl Then {
    /// What `call` does.
    pub fn new(call: impl FnOnce(Result<(), JournalError>) + Send + 'static) -> Self {
        Self(Some(Box::new(call)))
    }

    /// Says that the change is kept, or why not.
    pub fn call(mut self, kept: Result<(), JournalError>) {
        if let Some(call) = self.0.take() {
            call(kept);
        }
    }
}

impl Drop for Then {
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            call(Err(JournalError(
                "the journal let go of a change".to_owned(),
            )));
        }
    }
}

impl fmt::Debug for Then {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Then")
    }
}

/// What was to be kept, or was kept, cannot be: a sentence that says why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct JournalError(pub String);
