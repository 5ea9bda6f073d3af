//! Reading back: one thread walks through the file, the others make operations
//! of what it finds and show them.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::time::Instant;
use tracing::{info, info_span};

use super::{
    database::open_additional,
    errors::{restore_hint, sqlite_error},
};
use crate::{
    operation::{Operation, record::RecordDecoder},
    storage::error::{StorageError, StorageErrorKind},
};

const SELECT_ALL: &str = "SELECT o.number, o.record, i.input
    FROM operations AS o LEFT JOIN inputs AS i ON i.number = o.number";

/// How many rows are handed over together.
const BATCH_ROWS: usize = 512;

/// How many batches may wait for a thread.
const MAX_QUEUED_BATCHES: usize = 8;

/// How often the log tells how far it is.
const PROGRESS_LOG_INTERVAL: Duration = Duration::from_secs(2);

/// A row as it stands in the file.
#[derive(Debug)]
pub(super) struct StoredRow {
    pub(super) number: i64,
    pub(super) record: Vec<u8>,
    pub(super) input: Option<Vec<u8>>,
}

// === impl Row ===

impl StoredRow {
    fn from_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            number: row.get(0)?,
            record: row.get(1)?,
            input: row.get(2)?,
        })
    }

    pub(super) fn decode(&self, decoder: &mut RecordDecoder) -> Result<Operation, String> {
        let number = u64::try_from(self.number).unwrap_or(0);
        decoder
            .decode(number, &self.record, self.input.as_deref())
            .map_err(|error| format!("operation number {number} is damaged: {error}"))
    }
}

/// How many threads are worth it.
pub(super) fn decode_thread_count() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get().clamp(1, 8))
}

/// Shows every operation in the file, with so many threads.
///
/// # Errors
/// [`JournalError`] if one cannot be read.
pub(super) fn load_all(
    path: &Path,
    thread_count: usize,
    sink: &(dyn Fn(Operation) + Send + Sync),
) -> Result<(), StorageError> {
    let connection = open_additional(path)?;
    let (sender, receiver) = mpsc::sync_channel::<Vec<StoredRow>>(MAX_QUEUED_BATCHES);
    let (receiver, decoded) = (Arc::new(Mutex::new(receiver)), AtomicU64::new(0));
    let decode_batches =
        |receiver: Arc<Mutex<mpsc::Receiver<Vec<StoredRow>>>>| -> Result<(), StorageError> {
            let mut decoder = RecordDecoder::default();
            loop {
                let received = receiver.lock().recv();
                let Ok(batch) = received else { return Ok(()) };
                for row in &batch {
                    let operation = row.decode(&mut decoder).map_err(|error| {
                    StorageError::new(StorageErrorKind::Corrupt, format!("{}: {error}; {}; else restore a backup, or save what can be read with `longrunning backup --recover`", path.display(), restore_hint(path)))
                })?;
                    sink(operation);
                }
                decoded.fetch_add(batch.len() as u64, Ordering::Relaxed);
            }
        };
    let started = Instant::now();
    let span = info_span!("replay");
    thread::scope(|scope| {
        // Only the workers hold the other end, so that the walk ends with the
        // last of them and does not wait for nobody.
        let workers: Vec<_> = std::iter::repeat_n(receiver, thread_count)
            .map(|receiver| scope.spawn(|| span.in_scope(|| decode_batches(receiver))))
            .collect();
        let result = send_batches(&connection, sender, &decoded);
        let result = result.map_err(|error| sqlite_error(path, &error));
        // A worker that met a damaged record is why the walk ended early.
        for worker in workers {
            worker.join().expect("a reader does not panic")?;
        }
        result
    })?;
    info!(
        operations = decoded.into_inner(),
        seconds = started.elapsed().as_secs_f64(),
        "the file was read"
    );
    Ok(())
}

/// Hands all rows over, until nobody takes them any more.
fn send_batches(
    connection: &Connection,
    sender: mpsc::SyncSender<Vec<StoredRow>>,
    decoded: &AtomicU64,
) -> rusqlite::Result<()> {
    let total: i64 =
        connection.query_row("SELECT count(*) FROM operations", [], |row| row.get(0))?;
    let mut statement = connection.prepare(SELECT_ALL)?;
    let mut rows = statement.query([])?;
    let (mut batch, mut last_logged) = (Vec::with_capacity(BATCH_ROWS), Instant::now());
    while let Some(row) = rows.next()? {
        batch.push(StoredRow::from_row(row)?);
        if batch.len() == BATCH_ROWS {
            let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH_ROWS));
            if sender.send(full).is_err() {
                return Ok(());
            }
            if PROGRESS_LOG_INTERVAL <= last_logged.elapsed() {
                last_logged = Instant::now();
                let decoded = decoded.load(Ordering::Relaxed);
                info!(decoded, total, "reading the file");
            }
        }
    }
    drop(sender.send(batch));
    Ok(())
}
