//! Storage: makes changes durable before they become visible. The store calls these traits; a backend implements them.

pub(crate) mod error;
pub(crate) mod memory;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

use std::{collections::BTreeMap, fmt, future::ready, sync::Arc};

use futures_util::future::BoxFuture;

use self::error::StorageError;
use crate::{
    clock::{Clock, Timestamp},
    operation::{
        Operation, OperationVersion,
        name::{OperationName, Parent},
    },
};

/// Receives the operations that a backend loads. May be called on several threads at once.
pub type LoadSink = Arc<dyn Fn(Operation) + Send + Sync>;

/// Durable storage for operations.
///
/// A backend outside of this crate can wrap another one or hold operations in memory; the storage format is private, so
/// that it cannot decode stored operations.
///
/// The store writes a change before it publishes it, and never has two writes of one operation in flight.
pub trait Storage: fmt::Debug + Send + Sync + 'static {
    /// Loads all stored operations, in any order. With a cache limit, loads all that are not done and the newest of
    /// those that are. Called once, before any write.
    ///
    /// # Errors
    /// [`StorageError`] if not every operation could be read.
    fn load(&self, sink: LoadSink) -> BoxFuture<'_, Result<(), StorageError>>;

    /// Stores a change, and calls `completion` once it is durable or has failed. Does not block.
    fn write(&self, write: Write, completion: Completion);

    /// Returns the latest time in a stored change, or `None` if there is none. A system clock that is earlier has
    /// gone backwards.
    fn last_timestamp(&self) -> Option<Timestamp> {
        None
    }

    /// Returns why the storage counts as unavailable, or `None` while it is available: writes fail, or (PostgreSQL) the
    /// change log cannot be read. Single writes may still succeed. Timers wait while it returns an error: a backend
    /// that recovers must return `None` again by itself, not only after a write that succeeds.
    fn write_error(&self) -> Option<String> {
        None
    }

    /// Returns the interface to storage that several servers share, or `None` if this server is its only user.
    fn shared(&self) -> Option<&dyn SharedStorage> {
        None
    }

    /// Releases all resources. The store calls it last, as a rule without writes in flight; later writes fail.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(ready(()))
    }
}

/// Storage that several servers share.
///
/// A write succeeds only if the stored operation still has the revision that the write was made from, or does not
/// exist if it is new. Otherwise it fails with [`WriteError::Conflict`].
pub trait SharedStorage: Send + Sync + 'static {
    /// Returns an operation as it is stored, or `None` if there is none of that name.
    ///
    /// # Errors
    /// [`StorageError`] if it could not be read.
    fn fetch<'a>(
        &'a self,
        name: &'a OperationName,
    ) -> BoxFuture<'a, Result<Option<Arc<Operation>>, StorageError>>;

    /// Returns a number for a new operation: unique over all servers, and roughly increasing with time.
    fn next_number(&self) -> u64;

    /// Returns the clock that all servers of the storage share, or `None` if each uses its own.
    fn clock(&self) -> Option<Clock> {
        None
    }

    /// Returns the availability of the storage, or `None` if it is always available.
    fn status(&self) -> Option<StorageStatus> {
        None
    }

    /// Returns how many done operations a server has in memory at most, or `None` for all. Older ones are read from
    /// the storage on demand.
    fn cache_limit(&self) -> Option<usize> {
        None
    }

    /// Returns operations with numbers below `before`, newest first, at most `limit`; with `parent`, only those of it.
    /// The list may be shorter if operations are large, but is empty only if there are none.
    ///
    /// # Errors
    /// [`StorageError`] if they could not be read.
    fn list_before<'a>(
        &'a self,
        parent: Option<&'a Parent>,
        before: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Arc<Operation>>, StorageError>> {
        let (_, _, _) = (parent, before, limit);
        Box::pin(ready(Ok(Vec::new())))
    }

    /// Waits until every change that was durable before this call was delivered by the change feed and acknowledged.
    ///
    /// # Errors
    /// [`StorageError`] if the changes could not be read.
    fn sync(&self) -> BoxFuture<'_, Result<(), StorageError>>;

    /// Opens the change feed, which begins with the changes since the load. Called once, after the load.
    fn changes(&self) -> Box<dyn ChangeFeed>;
}

/// The changes of all servers of shared storage, this one included, in an order that never goes back for one
/// operation. Of several changes of one operation, the last may stand for all.
pub trait ChangeFeed: Send {
    /// Waits for the next batch. A batch that was not acknowledged is delivered again. After an error, the next call
    /// waits before it reads again. Not cancellation safe: once the future was dropped, drop the feed too.
    ///
    /// # Errors
    /// [`StorageError`] if the changes could not be read.
    fn next(&mut self) -> BoxFuture<'_, Result<ChangeBatch, StorageError>>;

    /// Acknowledges the last batch: it is applied.
    fn ack(&mut self);
}

/// Changes that were read together.
#[derive(Clone, Debug, Default)]
pub struct ChangeBatch {
    /// The changes, at most one for each operation.
    pub changes: Vec<Change>,
    /// The time of the earliest change, or `None` if it is unknown.
    pub first_changed_at: Option<Timestamp>,
    /// `true` if more batches follow that were read together with this one, such as those of a snapshot. They may hold
    /// an operation that was removed since.
    pub is_partial: bool,
}

/// A change of one operation, or the end of a snapshot of all.
#[derive(Clone, Debug)]
pub enum Change {
    /// The operation was created or updated.
    Upserted(Arc<Operation>),
    /// The lease was renewed, and nothing else has changed up to this revision.
    LeaseRenewed {
        /// The number of the operation.
        number: u64,
        /// Its revision now.
        revision: u32,
        /// When the lease expires.
        expires_at: Timestamp,
    },
    /// The operation with this number was removed.
    Removed(u64),
    /// All operations were delivered, because single changes were missed. Operations that are not in this map are
    /// gone; the versions are those of the snapshot.
    SnapshotEnd(BTreeMap<u64, OperationVersion>),
}

/// The availability of shared storage, as one server sees it.
#[derive(Clone, Copy, Debug)]
pub struct StorageStatus {
    /// Since when writes have been accepted without interruption; now, while they are not. A lease that could not be
    /// renewed during an outage lasts its full duration from then on.
    pub available_since: Timestamp,
    /// The time up to which all changes were read and applied.
    pub applied_through: Timestamp,
}

/// One change to be stored.
#[derive(Clone, Debug)]
pub enum Write {
    /// Creates the operation, or replaces the version before it.
    Put(Arc<Operation>),
    /// Replaces a version that differs in its lease only. A backend that is read only at the start of a server need
    /// not store it, because leases restart then.
    RenewLease(Arc<Operation>),
    /// Removes the operation, whose last version this is.
    Remove(Arc<Operation>),
}

/// The completion of one write: publishes the change and answers the caller. It may be called on any thread, is
/// quick, and takes locks of the store. Dropping it without a call reports an error.
pub struct Completion(Option<Box<CompletionFn>>);

type CompletionFn = dyn FnOnce(Result<(), WriteError>) + Send;

/// Why a write was not acknowledged.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// The storage failed. The write may be durable all the same, for example if the connection was lost during the
    /// commit.
    #[error(transparent)]
    Unavailable(#[from] StorageError),
    /// Another server changed the operation first.
    #[error("another server changed the operation first")]
    Conflict {
        /// The conflicting stored operation, or `None` if the operation is gone.
        current: Option<Arc<Operation>>,
    },
}

// === impl Completion ===

impl Completion {
    /// Returns a completion that calls `complete` once.
    pub fn new(complete: impl FnOnce(Result<(), WriteError>) + Send + 'static) -> Self {
        Self(Some(Box::new(complete)))
    }

    /// Reports that the write is durable, or why it is not.
    pub fn complete(mut self, result: Result<(), WriteError>) {
        if let Some(complete) = self.0.take() {
            complete(result);
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(complete) = self.0.take() {
            let error = StorageError::internal("the storage backend dropped a write");
            complete(Err(error.into()));
        }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completion")
    }
}
