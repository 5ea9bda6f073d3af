//! The one that writes: changes that come at the same time are one statement and
//! one commit.

use std::{
    collections::HashSet,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::OnceLock,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::sleep};
use tokio_postgres::{Client, Error, error::SqlState, types::Type};
use tracing::{error, info};

use super::{
    Inner,
    connection::Connection,
    rows::{self, WriteBatch},
    schema::{SCHEMA_VERSION, check_schema_version},
    statements::Statements,
};
use crate::storage::{
    Completion, Write, WriteError,
    error::{StorageError, StorageErrorKind},
};

/// So many changes, or so many bytes of them, are one commit.
const MAX_BATCH_WRITES: usize = 1024;
const MAX_BATCH_BYTES: usize = 8 << 20;

/// How often a batch is tried again that met another one in the database.
const MAX_RETRIES: usize = 8;

/// The pause before a database that could not be reached is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Changes that wait to be kept, and how they are.
#[derive(Debug)]
pub(super) struct Writer {
    connection: Connection,
    queue: Mutex<WriteQueue>,
    /// Somebody stands in line, or the line is closed.
    wakeup: Notify,
    write_error: Mutex<Option<String>>,
    /// Why nothing can be kept for good.
    fatal_error: OnceLock<&'static str>,
}

#[derive(Debug, Default)]
struct WriteQueue {
    pending: Vec<(Write, Completion)>,
    is_closed: bool,
}

// === impl Writer ===

impl Writer {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            queue: Mutex::default(),
            wakeup: Notify::new(),
            write_error: Mutex::default(),
            fatal_error: OnceLock::new(),
        }
    }

    /// Lets a change stand in line.
    pub(super) fn enqueue(&self, write: Write, completion: Completion) {
        let mut queue = self.queue.lock();
        if queue.is_closed {
            drop(queue);
            return completion.complete(Err(StorageError::closed().into()));
        }
        // While the database is out of reach, nobody waits for it.
        if let Some(error) = self.write_error() {
            drop(queue);
            return completion.complete(Err(StorageError::new(
                StorageErrorKind::Unavailable,
                error,
            )
            .into()));
        }
        queue.pending.push((write, completion));
        drop(queue);
        self.wakeup.notify_one();
    }

    /// Why changes cannot be kept at present.
    pub(super) fn write_error(&self) -> Option<String> {
        let fatal_error = self.fatal_error.get().map(ToString::to_string);
        fatal_error.or_else(|| self.write_error.lock().clone())
    }

    /// Nobody may stand in line any more.
    pub(super) fn close(&self) {
        self.queue.lock().is_closed = true;
        self.wakeup.notify_one();
    }

    /// Keeps nothing any more, for this reason.
    pub(super) fn set_fatal_error(&self, reason: &'static str) {
        self.fatal_error.get_or_init(|| reason);
        self.fail_pending(
            Vec::new(),
            &StorageError::new(StorageErrorKind::Unavailable, reason.to_owned()),
        );
    }

    /// Commits what stands in line, until the line is closed and empty.
    pub(super) async fn run(&self, inner: &Inner) {
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
            let mut completions: Vec<Option<Completion>> =
                completions.into_iter().map(Some).collect();
            let mut complete_at = |index: usize, result| {
                if let Some(completion) = completions[index].take() {
                    complete(completion, result);
                }
            };
            let result = self
                .commit_batch(&writes, &inner.statements, &mut complete_at)
                .await;
            // That a lease lasts longer, nobody waits for.
            if writes
                .iter()
                .any(|write| !matches!(write, Write::RenewLease(_)))
            {
                inner.notifier.mark_changed();
            }
            if let Err(error) = result {
                error!(%error, "changes cannot be kept");
                self.fail_pending(completions.into_iter().flatten().collect(), &error);
                self.wait_until_writable(inner).await;
            }
        }
    }

    /// Keeps changes, and says of each, by its place, whether it was kept; those that
    /// came too late hear what was there. Of the others nothing is known after an error.
    async fn commit_batch(
        &self,
        writes: &[Write],
        statements: &Statements,
        on_result: &mut impl FnMut(usize, Result<(), WriteError>),
    ) -> Result<(), StorageError> {
        let batch = WriteBatch::from_writes(writes);
        let execute = async |client: &Client| {
            let mut retries_left = MAX_RETRIES;
            loop {
                let result = client
                    .query_typed(&statements.commit, &batch.parameters())
                    .await;
                match result {
                    Err(error) if retries_left != 0 && is_retryable(&error) => retries_left -= 1,
                    result => return result,
                }
            }
        };
        let rows = self.connection.with_client(execute).await?;
        let applied: HashSet<i64> = rows.iter().map(|row| row.get(0)).collect();
        let not_applied = batch.not_applied(&applied);
        for index in (0..writes.len()).filter(|at| !not_applied.contains(at)) {
            on_result(index, Ok(()));
        }
        if not_applied.is_empty() {
            return Ok(());
        }
        // Nothing is kept in tables that a newer program has made its own.
        if applied.is_empty() {
            check_schema_version(&self.connection, statements).await?;
        }
        for (index, result) in batch
            .resolve_conflicts(&not_applied, &self.connection, statements)
            .await?
        {
            on_result(index, result);
        }
        Ok(())
    }

    /// Nothing can be kept: says so to these, to those who stand in line, and to those
    /// who come.
    fn fail_pending(&self, completions: Vec<Completion>, error: &StorageError) {
        *self.write_error.lock() = Some(error.to_string());
        let pending = mem::take(&mut self.queue.lock().pending);
        let pending = pending.into_iter().map(|(_, completion)| completion);
        for completion in completions.into_iter().chain(pending) {
            complete(completion, Err(error.clone().into()));
        }
    }

    /// Waits until the database can be reached again, or the journal is closed.
    async fn wait_until_writable(&self, inner: &Inner) {
        loop {
            let probe = async {
                sleep(RETRY_DELAY).await;
                self.check_writable(&inner.statements).await
            };
            let Some(result) = inner.tasks.stop_token().run_until_cancelled(probe).await else {
                return;
            };
            if self.queue.lock().is_closed {
                return;
            }
            if let Err(error) = result {
                *self.write_error.lock() = Some(error.to_string());
                // One that only reads has given its place to another, which a new
                // connection may find.
                self.connection.reset().await;
                continue;
            }
            inner.reconnect_all().await;
            inner.health.reset_available_since();
            *self.write_error.lock() = None;
            return info!("changes can be kept again");
        }
    }

    /// Looks whether the database takes our changes, and why it does not.
    async fn check_writable(&self, statements: &Statements) -> Result<(), StorageError> {
        let parameters = [(&SCHEMA_VERSION as _, Type::INT4)];
        let query = async |client: &Client| {
            client
                .query_typed_one(&statements.is_writable, &parameters)
                .await
        };
        if self.connection.with_client(query).await?.get(0) {
            return Ok(());
        }
        check_schema_version(&self.connection, statements).await?;
        let message =
            "the database is read-only: is it a standby, or has another one taken its place?";
        Err(StorageError::new(
            StorageErrorKind::Unavailable,
            message.to_owned(),
        ))
    }
}

/// Whether the database says that two batches waited for each other, or met in another
/// way that does not come again.
fn is_retryable(error: &Error) -> bool {
    let codes = [
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::T_R_SERIALIZATION_FAILURE,
    ];
    error.code().is_some_and(|code| codes.contains(code))
}

/// A bug that one of them meets must not keep the others waiting.
fn complete(completion: Completion, result: Result<(), WriteError>) {
    if catch_unwind(AssertUnwindSafe(|| completion.complete(result))).is_err() {
        error!("showing a change panicked");
    }
}

/// How many of the waiting changes fit in one commit, and at least one.
fn batch_len(pending: &[(Write, Completion)]) -> usize {
    let mut bytes = 0;
    let count = pending
        .iter()
        .take(MAX_BATCH_WRITES)
        .take_while(|(write, _)| {
            let has_room = bytes < MAX_BATCH_BYTES;
            bytes += rows::size_bytes(write);
            has_room
        });
    count.count()
}
