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
    file::connect,
    refusal::{describe, restored},
};
use crate::{
    journal::journal::JournalError,
    operation::{operation::Operation, record::Reader},
};

const ALL: &str = "SELECT o.number, o.record, i.input
    FROM operations AS o LEFT JOIN inputs AS i ON i.number = o.number";

/// How many rows are handed over together.
const BATCH: usize = 512;

/// How many batches may wait for a thread.
const BATCHES: usize = 8;

/// How often the log tells how far it is.
const NEWS: Duration = Duration::from_secs(2);

/// A row as it stands in the file.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) number: i64,
    pub(super) record: Vec<u8>,
    pub(super) input: Option<Vec<u8>>,
}

// === impl Row ===

impl Row {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            number: row.get(0)?,
            record: row.get(1)?,
            input: row.get(2)?,
        })
    }

    pub(super) fn decode(&self, reader: &mut Reader) -> Result<Operation, String> {
        let number = u64::try_from(self.number).unwrap_or(0);
        reader
            .decode(number, &self.record, self.input.as_deref())
            .map_err(|damage| format!("operation number {number} is damaged: {damage}"))
    }
}

/// How many threads are worth it.
pub(super) fn threads() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get().clamp(1, 8))
}

/// Shows every operation in the file, with so many threads.
///
/// # Errors
/// [`JournalError`] if one cannot be read.
pub(super) fn all(
    path: &Path,
    threads: usize,
    show: &(dyn Fn(Operation) + Send + Sync),
) -> Result<(), JournalError> {
    let connection = connect(path)?;
    let (batches, rest) = mpsc::sync_channel::<Vec<Row>>(BATCHES);
    let (rest, shown) = (Arc::new(Mutex::new(rest)), AtomicU64::new(0));
    let work = |rest: Arc<Mutex<mpsc::Receiver<Vec<Row>>>>| -> Result<(), JournalError> {
        let mut reader = Reader::default();
        loop {
            let next = rest.lock().recv();
            let Ok(batch) = next else { return Ok(()) };
            for row in &batch {
                let operation = row.decode(&mut reader).map_err(|damage| {
                    JournalError(format!("{}: {damage}; {}; else restore a backup, or save what can be read with `longrunning backup --salvage`", path.display(), restored(path)))
                })?;
                show(operation);
            }
            shown.fetch_add(batch.len() as u64, Ordering::Relaxed);
        }
    };
    let begun = Instant::now();
    let span = info_span!("replay");
    thread::scope(|scope| {
        // Only the workers hold the other end, so that the walk ends with the
        // last of them and does not wait for nobody.
        let workers: Vec<_> = std::iter::repeat_n(rest, threads)
            .map(|rest| scope.spawn(|| span.in_scope(|| work(rest))))
            .collect();
        let read = walk(&connection, batches, &shown);
        let read = read.map_err(|error| describe(path, &error));
        // A worker that met a damaged record is why the walk ended early.
        for worker in workers {
            worker.join().expect("a reader does not panic")?;
        }
        read
    })?;
    info!(
        operations = shown.into_inner(),
        seconds = begun.elapsed().as_secs_f64(),
        "the file was read"
    );
    Ok(())
}

/// Hands all rows over, until nobody takes them any more.
fn walk(
    connection: &Connection,
    batches: mpsc::SyncSender<Vec<Row>>,
    shown: &AtomicU64,
) -> rusqlite::Result<()> {
    let total: i64 =
        connection.query_row("SELECT count(*) FROM operations", [], |row| row.get(0))?;
    let mut statement = connection.prepare(ALL)?;
    let mut rows = statement.query([])?;
    let (mut batch, mut told) = (Vec::with_capacity(BATCH), Instant::now());
    while let Some(row) = rows.next()? {
        batch.push(Row::read(row)?);
        if batch.len() == BATCH {
            let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
            if batches.send(full).is_err() {
                return Ok(());
            }
            if NEWS <= told.elapsed() {
                told = Instant::now();
                let shown = shown.load(Ordering::Relaxed);
                info!(shown, total, "reading the file");
            }
        }
    }
    drop(batches.send(batch));
    Ok(())
}
