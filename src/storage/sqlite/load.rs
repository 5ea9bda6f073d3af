//! Loads all operations: one thread reads rows, others decode them.

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
    schema::{compare_operation_count, read_operation_count},
};
use crate::{
    operation::{Operation, record::RecordDecoder},
    storage::error::StorageError,
};

const SELECT_ALL: &str = "SELECT o.number, o.record, i.input
    FROM operations AS o LEFT JOIN inputs AS i ON i.number = o.number";

/// How many rows are sent to a decoding thread together.
const BATCH_ROWS: usize = 512;

/// How many batches may be queued for the decoding threads.
const MAX_QUEUED_BATCHES: usize = 8;

/// The interval between two log lines about the progress.
const PROGRESS_LOG_INTERVAL: Duration = Duration::from_secs(2);

/// A row as it is stored.
#[derive(Debug)]
pub(super) struct StoredRow {
    pub(super) number: i64,
    pub(super) record: Vec<u8>,
    pub(super) input: Option<Vec<u8>>,
}

// === impl StoredRow ===

impl StoredRow {
    pub(super) fn decode(&self, decoder: &mut RecordDecoder) -> Result<Operation, String> {
        let number = u64::try_from(self.number).unwrap_or(0);
        decoder
            .decode(number, &self.record, self.input.as_deref())
            .map_err(|error| format!("operation number {number} is damaged: {error}"))
    }
}

/// Returns how many decoding threads are worthwhile.
pub(super) fn decode_thread_count() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get().clamp(1, 8))
}

/// Loads every operation of the file, decoding on `thread_count` threads.
///
/// # Errors
/// [`StorageError`] if one cannot be read, or there are not as many as were stored.
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
                    let operation = row
                        .decode(&mut decoder)
                        .map_err(|error| damaged_error(path, &error))?;
                    sink(operation);
                }
                decoded.fetch_add(batch.len() as u64, Ordering::Relaxed);
            }
        };
    let expected = read_operation_count(&connection).map_err(|error| sqlite_error(path, &error))?;
    let started = Instant::now();
    let span = info_span!("load");
    thread::scope(|scope| {
        // Only the workers hold the receiver, so that sending fails once the last of them has ended.
        let workers: Vec<_> = std::iter::repeat_n(receiver, thread_count)
            .map(|receiver| scope.spawn(|| span.in_scope(|| decode_batches(receiver))))
            .collect();
        let result = send_batches(&connection, sender, &decoded, expected);
        let result = result.map_err(|error| sqlite_error(path, &error));
        // A damaged record that a worker found explains why sending failed.
        for worker in workers {
            worker.join().expect("a decoding thread does not panic")?;
        }
        result
    })?;
    let loaded = decoded.into_inner();
    if let Some(error) = compare_operation_count(loaded, expected) {
        return Err(damaged_error(path, &error));
    }
    info!(
        operations = loaded,
        duration_secs = started.elapsed().as_secs_f64(),
        "loaded the file"
    );
    Ok(())
}

fn damaged_error(path: &Path, error: &str) -> StorageError {
    StorageError::corrupt(format!(
        "{}: {error}; {}; otherwise restore a backup, or recover readable operations with `longrunning backup --recover`",
        path.display(),
        restore_hint(path)
    ))
}

/// Sends all rows, until no thread receives them any more.
fn send_batches(
    connection: &Connection,
    sender: mpsc::SyncSender<Vec<StoredRow>>,
    decoded: &AtomicU64,
    total: u64,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(SELECT_ALL)?;
    let mut rows = statement.query([])?;
    let (mut batch, mut last_logged) = (Vec::with_capacity(BATCH_ROWS), Instant::now());
    while let Some(row) = rows.next()? {
        batch.push(StoredRow {
            number: row.get(0)?,
            record: row.get(1)?,
            input: row.get(2)?,
        });
        if batch.len() == BATCH_ROWS {
            let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH_ROWS));
            if sender.send(full).is_err() {
                return Ok(());
            }
            if last_logged.elapsed() >= PROGRESS_LOG_INTERVAL {
                last_logged = Instant::now();
                let decoded = decoded.load(Ordering::Relaxed);
                info!(decoded, total, "loading the file");
            }
        }
    }
    drop(sender.send(batch));
    Ok(())
}
