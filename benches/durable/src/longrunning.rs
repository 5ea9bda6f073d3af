//! Our store, through the same door as its servers.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use longrunning::{
    Any, LeaseToken, Limits, NewOperation, OperationName, Operations, Progress, Report,
    SqliteStorage,
};

use crate::{Durable, RECORD, median};

pub struct Ours {
    operations: Operations,
    held: Vec<(OperationName, LeaseToken)>,
}

async fn start(path: &Path) -> Operations {
    let limits = Limits {
        max_operations: usize::MAX,
        max_total_bytes: usize::MAX,
        max_queue_length: usize::MAX,
        ..Limits::default()
    };
    Operations::builder()
        .limits(limits)
        .storage(SqliteStorage::open(path).expect("a file"))
        .start()
        .await
        .expect("it starts")
}

impl Ours {
    /// Operations that their clients execute themselves.
    pub async fn open(directory: &Path, clients: u64) -> Self {
        let operations = start(&directory.join("ours.db")).await;
        let mut held = Vec::new();
        for _ in 0..clients {
            let created = operations
                .create(NewOperation::self_executed("bench"))
                .await;
            let operation = created.expect("it is created").operation;
            let token = operation.lease().expect("its creator holds it").token;
            held.push((operation.name_owned(), token));
        }
        Self { operations, held }
    }
}

impl Durable for Ours {
    async fn change(&self, client: u64, count: u64) {
        let (name, token) = &self.held[client as usize];
        let report = Report {
            progress: Some(Progress {
                done_units: count as i64,
                // The record has as many bytes as those of the peers.
                message: "x".repeat(RECORD / 5),
                ..Progress::default()
            }),
            ..Report::default()
        };
        let reported = self.operations.report(name, *token, report).await;
        reported.expect("it is kept");
    }
}

/// Get alone, and beside a writer that never rests; in memory and in a file.
pub async fn reads(directory: &Path, rounds: usize) {
    println!();
    println!("| one Get in the process, of 1024, median | alone | beside 64 writers |");
    println!("| --- | --- | --- |");
    for durable in [false, true] {
        let place = tempfile::tempdir_in(directory).expect("a directory");
        let ours = if durable {
            Ours::open(place.path(), 1024).await
        } else {
            let operations = Operations::builder().start().await.expect("it starts");
            let mut held = Vec::new();
            for _ in 0..1024 {
                let created = operations
                    .create(NewOperation::self_executed("bench"))
                    .await;
                let operation = created.expect("it is created").operation;
                let token = operation.lease().expect("its creator holds it").token;
                held.push((operation.name_owned(), token));
            }
            Ours { operations, held }
        };
        let ours = std::sync::Arc::new(ours);
        let mut cells = Vec::new();
        for writers in [0, 64] {
            let stop = std::sync::Arc::new(AtomicBool::new(false));
            let mut tasks = tokio::task::JoinSet::new();
            for client in 0..writers {
                let (ours, stop) = (ours.clone(), stop.clone());
                tasks.spawn(async move {
                    let mut count = 0;
                    while !stop.load(Ordering::Relaxed) {
                        count += 1;
                        ours.change(client, count).await;
                        tokio::task::yield_now().await;
                    }
                });
            }
            let reader = ours.clone();
            let times = tokio::task::spawn_blocking(move || {
                let one = || {
                    let begun = Instant::now();
                    for (name, _) in &reader.held {
                        std::hint::black_box(
                            reader.operations.get_cached(name).expect("it is there"),
                        );
                    }
                    begun.elapsed().as_nanos() as f64 / reader.held.len() as f64
                };
                (0..rounds * 200).map(|_| one()).collect::<Vec<_>>()
            });
            let (middle, _, _) = median(times.await.expect("it ends"));
            stop.store(true, Ordering::Relaxed);
            tasks.join_all().await;
            cells.push(format!("{middle:.0} ns"));
        }
        let store = if durable { "sqlite" } else { "memory" };
        println!("| {store} | {} |", cells.join(" | "));
    }
}

fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// The way back, beside reading the rows alone.
pub async fn recovery(directory: &Path, records: u64, rounds: usize) {
    let place = tempfile::tempdir_in(directory).expect("a directory");
    let path = place.path().join("ours.db");
    let operations = start(&path).await;
    let begun = Instant::now();
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
                    .expect("it is created")
                    .operation;
                if let Some(lease) = operation.lease()
                    && number % 4 == 1
                {
                    let name = operation.name_owned();
                    let end = operations.succeed(&name, lease.token, Any::default_input());
                    end.await.expect("it ends");
                }
            }
        });
    }
    tasks.join_all().await;
    let made = begun.elapsed();
    operations.shutdown(Duration::ZERO).await;
    operations.close().await;
    drop(operations);
    let size = std::fs::metadata(&path).map_or(0, |file| file.len()) as f64 / 1048576.0;
    println!();
    println!(
        "{records} operations, made in {:.1} s, {size:.0} MiB on the disk:",
        made.as_secs_f64()
    );
    let (mut starts, mut scans, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let begun = Instant::now();
        let connection = rusqlite::Connection::open(&path).expect("the file");
        let mut all = connection
            .prepare("SELECT number, record FROM operations")
            .expect("proper SQL");
        let mut rows = all.query([]).expect("rows");
        let mut bytes = 0;
        while let Some(row) = rows.next().expect("a row") {
            bytes += row
                .get_ref(1)
                .expect("a blob")
                .as_blob()
                .expect("a blob")
                .len();
        }
        std::hint::black_box(bytes);
        drop(rows);
        drop(all);
        drop(connection);
        scans.push(begun.elapsed().as_secs_f64());
        let before = resident();
        let begun = Instant::now();
        let operations = start(&path).await;
        starts.push(begun.elapsed().as_secs_f64());
        memory.push(resident() - before);
        operations.shutdown(Duration::ZERO).await;
        operations.close().await;
    }
    println!(
        "ready after {:.2} s, reading the rows alone {:.2} s, {:.0} MiB of memory",
        median(starts).0,
        median(scans).0,
        memory[0]
    );
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
