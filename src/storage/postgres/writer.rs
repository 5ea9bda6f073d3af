//! Writes changes: those that arrive at the same time are one statement and one commit.

use std::{
    collections::HashSet,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::sleep};
use tokio_postgres::{Client, Error, error::SqlState, types::Type};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::{
    connection::Connection,
    health::DatabaseHealth,
    notify::Notifier,
    rows::{self, WriteBatch, WriteOutcome},
    schema::{SCHEMA_VERSION, check_schema_version},
    statements::Statements,
};
use crate::storage::{Completion, Write, error::StorageError};

/// The most writes in one commit.
const MAX_BATCH_WRITES: usize = 1024;
/// A write begins no commit that has reached this size.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// How often a batch is retried after a deadlock or a serialization failure.
const MAX_RETRIES: usize = 8;

/// The delay before the database is tried again after a failure.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// The queue of writes, and the task that commits them.
#[derive(Debug)]
pub(super) struct Writer {
    connection: Connection,
    /// Reset after an outage, because their host may have been replaced and still answer.
    other_connections: Vec<Arc<Connection>>,
    statements: Arc<Statements>,
    notifier: Arc<Notifier>,
    health: Arc<DatabaseHealth>,
    stop_token: CancellationToken,
    queue: Mutex<WriteQueue>,
    /// Notified when a write is queued, and when the queue is closed.
    wakeup: Notify,
    /// Why writes are rejected at present.
    write_error: Mutex<Option<StorageError>>,
    /// Why writes are rejected until this server is restarted.
    fatal_error: OnceLock<StorageError>,
}

#[derive(Debug, Default)]
struct WriteQueue {
    pending: Vec<(Write, Completion)>,
    is_closed: bool,
}

// === impl Writer ===

impl Writer {
    pub(super) fn new(
        connection: Connection,
        other_connections: Vec<Arc<Connection>>,
        statements: Arc<Statements>,
        notifier: Arc<Notifier>,
        health: Arc<DatabaseHealth>,
        stop_token: CancellationToken,
    ) -> Self {
        Self {
            connection,
            other_connections,
            statements,
            notifier,
            health,
            stop_token,
            queue: Mutex::default(),
            wakeup: Notify::new(),
            write_error: Mutex::default(),
            fatal_error: OnceLock::new(),
        }
    }

    /// Queues a write. Rejects it at once if the queue is closed or writes are failing.
    pub(super) fn enqueue(&self, write: Write, completion: Completion) {
        let mut queue = self.queue.lock();
        let error = if queue.is_closed {
            Some(StorageError::closed())
        } else {
            self.write_error()
        };
        if let Some(error) = error {
            drop(queue);
            return completion.complete(Err(error.into()));
        }
        queue.pending.push((write, completion));
        drop(queue);
        self.wakeup.notify_one();
    }

    /// Returns why writes are rejected at present, or `None` while they are accepted.
    pub(super) fn write_error(&self) -> Option<StorageError> {
        let fatal_error = self.fatal_error.get().cloned();
        fatal_error.or_else(|| self.write_error.lock().clone())
    }

    /// Rejects further writes. [`run`](Self::run) returns when those in the queue are committed.
    pub(super) fn close(&self) {
        self.queue.lock().is_closed = true;
        self.wakeup.notify_one();
    }

    /// Rejects all writes from now on, those in the queue included.
    pub(super) fn set_fatal_error(&self, error: &StorageError) {
        self.fatal_error.get_or_init(|| error.clone());
        self.fail_pending(Vec::new(), error);
    }

    /// Commits queued writes until the queue is closed and empty.
    pub(super) async fn run(&self) {
        // The probe cannot tell whether the disk is full: only a commit ends an outage in the log.
        let mut is_failing = false;
        loop {
            let batch = {
                let mut queue = self.queue.lock();
                if queue.pending.is_empty() && queue.is_closed {
                    return;
                }
                let count = batch_len(&queue.pending);
                let rest = queue.pending.split_off(count);
                mem::replace(&mut queue.pending, rest)
            };
            if batch.is_empty() {
                self.wakeup.notified().await;
                continue;
            }
            let (writes, completions): (Vec<Write>, Vec<Completion>) = batch.into_iter().unzip();
            let batch = WriteBatch::from_writes(&writes);
            let committed = self.commit(&batch).await;
            // No server waits for a renewal.
            let is_renewal = |write: &Write| matches!(write, Write::RenewLease(_));
            if !writes.iter().all(is_renewal) {
                self.notifier.mark_changed();
            }
            let (unresolved, outcomes) = match committed {
                // Durable writes are acknowledged before the conflicts of the others are read.
                Ok(not_applied) => {
                    let unresolved = complete_applied(completions, &not_applied);
                    (unresolved, self.resolve(&batch, &not_applied).await)
                }
                Err(error) => (completions, Err(error)),
            };
            match outcomes {
                Ok(outcomes) => {
                    if mem::take(&mut is_failing) {
                        info!("writes recovered");
                    }
                    for (completion, outcome) in unresolved.into_iter().zip(outcomes) {
                        complete(completion, outcome);
                    }
                }
                Err(error) => {
                    if mem::replace(&mut is_failing, true) {
                        debug!(%error, "writes are still failing");
                    } else {
                        error!(%error, "writes are failing; rejecting writes, still serving reads");
                    }
                    self.fail_pending(unresolved, &error);
                    self.wait_until_writable().await;
                }
            }
        }
    }

    /// Commits a batch, and returns the indices of the writes that were not applied, in ascending order.
    ///
    /// # Errors
    /// [`StorageError`] if no outcome is known: any of the writes may be durable.
    async fn commit(&self, batch: &WriteBatch) -> Result<Vec<usize>, StorageError> {
        let execute = async |client: &Client| {
            let mut retries_left = MAX_RETRIES;
            loop {
                let result = client
                    .query_typed(&self.statements.commit, &batch.parameters())
                    .await;
                match result {
                    Err(error) if retries_left > 0 && is_retryable(&error) => retries_left -= 1,
                    result => return result,
                }
            }
        };
        let rows = self.connection.with_client(execute).await?;
        let applied: HashSet<i64> = rows.iter().map(|row| row.get("number")).collect();
        Ok(batch.not_applied(&applied))
    }

    /// Returns the outcomes of the writes that were not applied, in the order of their indices.
    async fn resolve(
        &self,
        batch: &WriteBatch,
        not_applied: &[usize],
    ) -> Result<Vec<WriteOutcome>, StorageError> {
        if not_applied.is_empty() {
            return Ok(Vec::new());
        }
        // Nothing is applied to tables that a newer program has upgraded.
        if not_applied.len() == batch.len() {
            check_schema_version(&self.connection, &self.statements).await?;
        }
        batch
            .resolve_conflicts(not_applied, &self.connection, &self.statements)
            .await
    }

    /// Rejects these writes and those in the queue, and further ones until `write_error` is cleared.
    fn fail_pending(&self, completions: Vec<Completion>, error: &StorageError) {
        *self.write_error.lock() = Some(error.clone());
        let pending = mem::take(&mut self.queue.lock().pending);
        let pending = pending.into_iter().map(|(_, completion)| completion);
        for completion in completions.into_iter().chain(pending) {
            complete(completion, Err(error.clone().into()));
        }
    }

    /// Waits until the database accepts writes, or the storage is closed. Then accepts writes again.
    async fn wait_until_writable(&self) {
        loop {
            let probe = async {
                sleep(RETRY_DELAY).await;
                self.check_writable().await
            };
            let Some(result) = self.stop_token.run_until_cancelled(probe).await else {
                return;
            };
            if self.queue.lock().is_closed {
                return;
            }
            if let Err(error) = result {
                *self.write_error.lock() = Some(error);
                // A read-only host may have been replaced; a new connection may find the other one.
                self.connection.reset().await;
                continue;
            }
            join_all(self.other_connections.iter().map(|other| other.reset())).await;
            self.health.reset_available_since();
            *self.write_error.lock() = None;
            return;
        }
    }

    /// Checks that the database accepts writes of this program.
    async fn check_writable(&self) -> Result<(), StorageError> {
        let statement = &self.statements.is_writable;
        let parameters = [(&SCHEMA_VERSION as _, Type::INT4)];
        let row = self.connection.query_opt(statement, &parameters).await?;
        if row.is_some_and(|row| row.get("is_writable")) {
            return Ok(());
        }
        check_schema_version(&self.connection, &self.statements).await?;
        Err(StorageError::unavailable(
            "the database is read-only: it is a standby, or another host has replaced it; name all hosts in the URL, \
             with target_session_attrs=read-write",
        ))
    }
}

/// Returns `true` for deadlocks and serialization failures, after which the transaction can be retried.
fn is_retryable(error: &Error) -> bool {
    let codes = [
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::T_R_SERIALIZATION_FAILURE,
    ];
    error.code().is_some_and(|code| codes.contains(code))
}

/// Completes the writes that were applied, and returns the completions of the others.
fn complete_applied(completions: Vec<Completion>, not_applied: &[usize]) -> Vec<Completion> {
    let mut unresolved = Vec::with_capacity(not_applied.len());
    for (index, completion) in completions.into_iter().enumerate() {
        if not_applied.binary_search(&index).is_ok() {
            unresolved.push(completion);
        } else {
            complete(completion, Ok(()));
        }
    }
    unresolved
}

/// Completes a write. A panic in one completion does not prevent the others.
fn complete(completion: Completion, outcome: WriteOutcome) {
    if catch_unwind(AssertUnwindSafe(|| completion.complete(outcome))).is_err() {
        error!("publishing a committed change panicked");
    }
}

/// Returns how many of the pending writes fit in one commit: at least one, unless there are none.
fn batch_len(pending: &[(Write, Completion)]) -> usize {
    let mut bytes = 0;
    let batch = pending
        .iter()
        .take(MAX_BATCH_WRITES)
        .take_while(|(write, _)| {
            let has_room = bytes < MAX_BATCH_BYTES;
            bytes += rows::size_bytes(write);
            has_room
        });
    batch.count()
}
