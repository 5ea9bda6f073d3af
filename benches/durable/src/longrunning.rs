//! Measures the longrunning store over SQLite, through its public API.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use longrunning::{
    Any, LeaseToken, Limits, NewOperation, OperationName, Operations, Progress, Report,
    SqliteStorage,
};

use crate::{DurableStore, RECORD_BYTES, median};

pub struct LongrunningStore {
    operations: Operations,
    leases: Vec<(OperationName, LeaseToken)>,
}

async fn start_operations(path: &Path) -> Operations {
    let limits = Limits::default()
        .with_max_operations(usize::MAX)
        .with_max_total_bytes(usize::MAX)
        .with_max_queue_length(usize::MAX);
    Operations::builder()
        .limits(limits)
        .storage(SqliteStorage::open(path).expect("the file can be opened"))
        .start()
        .await
        .expect("the store starts")
}

impl LongrunningStore {
    /// Opens a store with one self-executed operation for each client.
    pub async fn open(directory: &Path, clients: u64) -> Self {
        let operations = start_operations(&directory.join("longrunning.db")).await;
        Self::with_leases(operations, clients).await
    }

    async fn with_leases(operations: Operations, clients: u64) -> Self {
        let mut leases = Vec::new();
        for _ in 0..clients {
            let created = operations
                .create(NewOperation::self_executed("bench"))
                .await;
            let operation = created.expect("the store accepts it").operation;
            let token = operation.lease().expect("it is self-executed").token;
            leases.push((operation.name_owned(), token));
        }
        Self { operations, leases }
    }
}

impl DurableStore for LongrunningStore {
    async fn change(&self, client: u64, count: u64) {
        let (name, token) = &self.leases[client as usize];
        let report = Report {
            progress: Some(Progress {
                done_units: count as i64,
                // The stored record is then as large as those of the peers.
                message: "x".repeat(RECORD_BYTES / 5),
                ..Progress::default()
            }),
            ..Report::default()
        };
        let reported = self.operations.report(name, *token, report).await;
        reported.expect("the lease is held");
    }
}

/// Measures Get, idle and with 64 concurrent writers, in memory and over SQLite.
pub async fn measure_reads(directory: &Path, rounds: usize) {
    println!();
    println!("| in-process Get, one of 1024, median | idle | 64 writers |");
    println!("| --- | --- | --- |");
    for is_durable in [false, true] {
        let directory =
            tempfile::tempdir_in(directory).expect("a temporary directory can be created");
        let store = if is_durable {
            LongrunningStore::open(directory.path(), 1024).await
        } else {
            let operations = Operations::builder().start().await;
            let operations = operations.expect("the store starts");
            LongrunningStore::with_leases(operations, 1024).await
        };
        let store = Arc::new(store);
        let mut cells = Vec::new();
        for writers in [0, 64] {
            let is_stopped = Arc::new(AtomicBool::new(false));
            let mut tasks = tokio::task::JoinSet::new();
            for client in 0..writers {
                let (store, is_stopped) = (store.clone(), is_stopped.clone());
                tasks.spawn(async move {
                    let mut count = 0;
                    while !is_stopped.load(Ordering::Relaxed) {
                        count += 1;
                        store.change(client, count).await;
                        tokio::task::yield_now().await;
                    }
                });
            }
            let reader = store.clone();
            let latencies_ns = tokio::task::spawn_blocking(move || {
                let measure_round = || {
                    let started = Instant::now();
                    for (name, _) in &reader.leases {
                        std::hint::black_box(
                            reader.operations.get_cached(name).expect("it exists"),
                        );
                    }
                    started.elapsed().as_nanos() as f64 / reader.leases.len() as f64
                };
                (0..rounds * 200)
                    .map(|_| measure_round())
                    .collect::<Vec<_>>()
            });
            let (median_ns, _, _) = median(latencies_ns.await.expect("the reader does not panic"));
            is_stopped.store(true, Ordering::Relaxed);
            tasks.join_all().await;
            cells.push(format!("{median_ns:.0} ns"));
        }
        let storage = if is_durable { "sqlite" } else { "memory" };
        println!("| {storage} | {} |", cells.join(" | "));
    }
}

/// Returns the resident memory of this process in MiB.
fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// Measures the start of a server on existing operations, compared with reading the rows only.
pub async fn measure_recovery(directory: &Path, records: u64, rounds: usize) {
    let directory = tempfile::tempdir_in(directory).expect("a temporary directory can be created");
    let path = directory.path().join("longrunning.db");
    let operations = start_operations(&path).await;
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..1000 {
        let operations = operations.clone();
        tasks.spawn(async move {
            for number in 0..records / 1000 {
                let new = match number % 2 {
                    0 => NewOperation::queued("q").input(Any::default_input()),
                    _ => NewOperation::self_executed("bench"),
                };
                let new = new.label("client", &client.to_string());
                let operation = operations
                    .create(new)
                    .await
                    .expect("the store accepts it")
                    .operation;
                if let Some(lease) = operation.lease()
                    && number % 4 == 1
                {
                    let name = operation.name_owned();
                    let done = operations.succeed(&name, lease.token, Any::default_input());
                    done.await.expect("the lease is held");
                }
            }
        });
    }
    tasks.join_all().await;
    let created_in = started.elapsed();
    operations.shutdown(Duration::ZERO).await;
    operations.close().await;
    drop(operations);
    let file_mib = std::fs::metadata(&path).map_or(0, |file| file.len()) as f64 / 1048576.0;
    println!();
    println!(
        "{records} operations, created in {:.1} s, {file_mib:.0} MiB on disk:",
        created_in.as_secs_f64()
    );
    let (mut start_secs, mut scan_secs, mut memory_mib) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let started = Instant::now();
        std::hint::black_box(scan_rows(&path).expect("the rows can be read"));
        scan_secs.push(started.elapsed().as_secs_f64());
        let mib_before = resident_mib();
        let started = Instant::now();
        let operations = start_operations(&path).await;
        start_secs.push(started.elapsed().as_secs_f64());
        memory_mib.push(resident_mib() - mib_before);
        operations.shutdown(Duration::ZERO).await;
        operations.close().await;
    }
    println!(
        "ready after {:.2} s, reading the rows only {:.2} s, {:.0} MiB of memory",
        median(start_secs).0,
        median(scan_secs).0,
        memory_mib[0]
    );
}

/// Reads all records and returns their size in bytes.
fn scan_rows(path: &Path) -> Result<usize, rusqlite::Error> {
    let connection = rusqlite::Connection::open(path)?;
    let mut select = connection.prepare("SELECT number, record FROM operations")?;
    let mut rows = select.query([])?;
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        bytes += row.get_ref(1)?.as_blob()?.len();
    }
    Ok(bytes)
}

trait DefaultInput {
    fn default_input() -> Self;
}

impl DefaultInput for Any {
    fn default_input() -> Self {
        Self {
            type_url: "type.googleapis.com/acme.v1.Task".into(),
            value: vec![7; 100],
        }
    }
}
