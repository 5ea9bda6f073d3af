//! What the store asks of a journal. What a journal does with it is its own affair.

pub(crate) mod memory;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

use std::{
    collections::BTreeMap,
    fmt,
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
};

use crate::{
    clock::{Clock, Timestamp},
    operation::{
        Operation, OperationVersion,
        name::{OperationName, Parent},
    },
};

/// A future that a trait object can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Takes in an operation that was kept. It may be called from several threads
/// at once.
pub type LoadSink = Arc<dyn Fn(Operation) + Send + Sync>;

/// Keeps changes, so that a restart does not lose them.
///
/// The store appends a change before it shows it, and never has two appends
/// for one operation under way.
pub trait Storage: Send + Sync + 'static {
    /// Shows all operations that were kept, in any order; if the view has a limit,
    /// all that are not done and the newest of the others. Called once, at the
    /// start.
    fn load(&self, sink: LoadSink) -> BoxFuture<'_, Result<(), StorageError>>;

    /// Keeps a change, and calls `then` when it cannot be lost any more, or
    /// when it cannot be kept. Does not block.
    fn write(&self, write: Write, completion: Completion);

    /// The latest time that a kept change bears; a clock that begins earlier has
    /// gone backwards.
    fn last_timestamp(&self) -> Option<Timestamp> {
        None
    }

    /// Why changes cannot be kept at present; none while they can.
    fn write_error(&self) -> Option<String> {
        None
    }

    /// What there is beside, if several servers share the journal.
    fn shared(&self) -> Option<&dyn SharedStorage> {
        None
    }

    /// Lets go of what the journal holds. Called at the end, as a rule when no
    /// append is under way; appends that come later are refused.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(ready(()))
    }
}

/// What a journal that several servers share can do besides.
///
/// A change is kept only if the operation is still what it was made from: of the
/// revision before, or not there if it is new. Else the append ends with
/// [`Unkept::Stale`].
pub trait SharedStorage: Send + Sync + 'static {
    /// The operation as it is kept; none if it is not there.
    fn fetch<'a>(
        &'a self,
        name: &'a OperationName,
    ) -> BoxFuture<'a, Result<Option<Arc<Operation>>, StorageError>>;

    /// A number for a new operation, which no server of the journal has got or
    /// gets, and above those that were handed out long before.
    fn next_number(&self) -> u64;

    /// The clock that the servers of the journal go by; without one, each goes by
    /// its own.
    fn clock(&self) -> Option<Clock> {
        None
    }

    /// How the journal has been within reach; without it, it always was.
    fn status(&self) -> Option<StorageStatus> {
        None
    }

    /// How many done operations a server shows at the most; it reads the older ones
    /// from the journal when they are asked for. Without it, it shows all.
    fn cache_limit(&self) -> Option<usize> {
        None
    }

    /// Operations with a lower number than `before`, of one parent if it is given,
    /// the newest first and at most `limit`; fewer if they are large, but none only
    /// if there are none.
    fn list_before<'a>(
        &'a self,
        parent: Option<&'a Parent>,
        before: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Arc<Operation>>, StorageError>> {
        let (_, _, _) = (parent, before, limit);
        Box::pin(ready(Ok(Vec::new())))
    }

    /// Returns when `apply` has taken in all that was changed before this call.
    fn sync(&self) -> BoxFuture<'_, Result<(), StorageError>>;

    /// Reads what became of operations since the replay and hands it to `apply`,
    /// until the journal is closed. Every change is read, those of this server
    /// too; of several changes of one operation the last may stand for all. What
    /// is read after `apply` has ended is no older than what was read before.
    fn watch(&self, sink: ChangeSink) -> BoxFuture<'_, ()>;
}

/// How a journal that several servers share has been within reach of one.
#[derive(Clone, Copy, Debug)]
pub struct StorageStatus {
    /// Since when changes could be kept without a break; now, while they cannot. A
    /// lease that could not be renewed before lasts its full time from then on.
    pub available_since: Timestamp,
    /// Up to when all that was changed has been read.
    pub applied_through: Timestamp,
}

/// Takes in what became of operations, and since when the first of them could be
/// known, if that is known. What could not be taken in is to be read again.
pub type ChangeSink = Arc<
    dyn Fn(Vec<Change>, Option<Timestamp>) -> BoxFuture<'static, Result<(), StorageError>>
        + Send
        + Sync,
>;

/// What became of an operation.
#[derive(Clone, Debug)]
pub enum Change {
    /// It is like this.
    Upserted(Arc<Operation>),
    /// The lease of the one with this number was renewed, which is its revision now.
    LeaseRenewed {
        /// Which operation.
        number: u64,
        /// How often it has changed.
        revision: u32,
        /// When the lease is over.
        expires_at: Timestamp,
    },
    /// The one with this number is gone.
    Removed(u64),
    /// Only those with these numbers are left, and they are of these versions: so
    /// much was missed that each change cannot be told any more.
    SnapshotEnd(BTreeMap<u64, OperationVersion>),
}

/// What the store does once a change is kept: it shows the change and tells
/// those who asked for it, wherever they are by then. It may be called on any
/// thread, at once or later; it is quick, but takes locks of the store. Dropped
/// uncalled, it is called with an error.
pub struct Completion(Option<Box<CompletionFn>>);

type CompletionFn = dyn FnOnce(Result<(), WriteError>) + Send;

/// One change.
#[derive(Clone, Debug)]
pub enum Write {
    /// The operation is like this from now on.
    Put(Arc<Operation>),
    /// The lease of the operation lasts longer; nothing else is new. A journal
    /// that is read only by the server's next start need not keep it, because
    /// a lease gets its full time again after a restart.
    RenewLease(Arc<Operation>),
    /// The operation, last seen like this, is gone.
    Delete(Arc<Operation>),
}

// === impl Then ===

impl Completion {
    /// What `call` does.
    pub fn new(callback: impl FnOnce(Result<(), WriteError>) + Send + 'static) -> Self {
        Self(Some(Box::new(callback)))
    }

    /// Says that the change is kept, or why not.
    pub fn complete(mut self, result: Result<(), WriteError>) {
        if let Some(callback) = self.0.take() {
            callback(result);
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(callback) = self.0.take() {
            let error = StorageError("the journal let go of a change".to_owned());
            callback(Err(error.into()));
        }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Then")
    }
}

/// Why a change is not kept.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// It cannot be.
    #[error(transparent)]
    Unavailable(#[from] StorageError),
    /// Another server was first. This is what stands in the way; none if the
    /// operation is gone.
    #[error("another server changed the operation first")]
    Conflict(Option<Arc<Operation>>),
}

/// What was to be kept, or was kept, cannot be: a sentence that says why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct StorageError(pub String);
