//! Measures the cost of durability: durable changes per second, compared with group commit
//! over plain SQLite, redb, fjall and a log with fdatasync; the latency of Get under writes;
//! and recovery after a restart. Rounds of the stores alternate, so that other load on the
//! machine affects all of them.
//!
//! ```text
//! durable [--seconds N] [--rounds N] [--records N] [--dir DIR]
//!         [--parts 'changes reads recovery'] [--only STORE] [--clients N]
//! ```
//!
//! Each client is a task that starts its next change when the last one is acknowledged. A
//! change writes a record of about 400 bytes under a known key.

mod longrunning;
mod peers;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use self::peers::Peer;

pub const RECORD_BYTES: usize = 400;

/// A store that acknowledges a change when it is durable.
pub trait DurableStore: Send + Sync + 'static {
    /// Makes one change and waits until it is durable.
    fn change(&self, client: u64, count: u64) -> impl Future<Output = ()> + Send;
}

struct LoadResult {
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

/// Runs `clients` tasks for `duration`.
async fn run_load(store: Arc<impl DurableStore>, clients: u64, duration: Duration) -> LoadResult {
    let (started, mut tasks) = (Instant::now(), JoinSet::new());
    for client in 0..clients {
        let store = store.clone();
        tasks.spawn(async move {
            let (mut count, mut latencies) = (0, Vec::new());
            while started.elapsed() < duration {
                let change_started = Instant::now();
                count += 1;
                store.change(client, count).await;
                latencies.push(change_started.elapsed());
            }
            latencies
        });
    }
    let mut latencies: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
    let elapsed_secs = started.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let quantile = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
    LoadResult {
        per_second: latencies.len() as f64 / elapsed_secs,
        p50: quantile(0.5),
        p99: quantile(0.99),
    }
}

/// Returns the median, the minimum and the maximum.
fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (
        values[values.len() / 2],
        values[0],
        values[values.len() - 1],
    )
}

struct Args {
    seconds: u64,
    rounds: usize,
    records: u64,
    directory: PathBuf,
    parts: String,
    only: String,
    clients: Vec<u64>,
}

impl Args {
    fn parse() -> Self {
        let mut args = Self {
            seconds: 3,
            rounds: 5,
            records: 1_000_000,
            directory: std::env::temp_dir(),
            only: String::new(),
            clients: vec![1, 64, 1024],
            parts: "changes reads recovery".to_owned(),
        };
        let mut words = std::env::args().skip(1);
        while let Some(flag) = words.next() {
            let value = words.next().expect("every flag needs a value");
            match flag.as_str() {
                "--seconds" => args.seconds = value.parse().expect("the value is a number"),
                "--rounds" => args.rounds = value.parse().expect("the value is a number"),
                "--records" => args.records = value.parse().expect("the value is a number"),
                "--clients" => args.clients = vec![value.parse().expect("the value is a number")],
                "--only" => args.only = value,
                "--parts" => args.parts = value,
                "--dir" => args.directory = value.into(),
                _ => panic!("unknown flag {flag}"),
            }
        }
        args
    }
}

const STORES: [&str; 5] = ["longrunning", "SQLite", "redb", "fjall", "log + fdatasync"];

/// Measures one store in a new directory.
async fn measure(store: usize, directory: &Path, clients: u64, duration: Duration) -> LoadResult {
    let directory = tempfile::tempdir_in(directory).expect("a temporary directory can be created");
    let path = directory.path();
    match store {
        0 => {
            let store = longrunning::LongrunningStore::open(path, clients).await;
            run_load(Arc::new(store), clients, duration).await
        }
        1 => run_load(Peer::new(peers::Sqlite::open(path)), clients, duration).await,
        2 => run_load(Peer::new(peers::Redb::open(path)), clients, duration).await,
        3 => run_load(Peer::new(peers::Fjall::open(path)), clients, duration).await,
        _ => run_load(Peer::new(peers::Log::open(path)), clients, duration).await,
    }
}

async fn measure_changes(args: &Args) {
    println!(
        "| changes per second, median (min–max); p50 / p99 | {} |",
        STORES.join(" | ")
    );
    println!("| --- | {} |", STORES.map(|_| "---").join(" | "));
    for clients in args.clients.clone() {
        let mut results: [Vec<LoadResult>; 5] = Default::default();
        for _ in 0..args.rounds {
            for (store, results) in results.iter_mut().enumerate() {
                if !STORES[store].contains(&args.only) {
                    continue;
                }
                let duration = Duration::from_secs(args.seconds);
                results.push(measure(store, &args.directory, clients, duration).await);
            }
        }
        let cells = results.map(|rounds| {
            if rounds.is_empty() {
                return String::new();
            }
            let (middle, low, high) = median(rounds.iter().map(|round| round.per_second).collect());
            let millis = |of: fn(&LoadResult) -> Duration| {
                median(
                    rounds
                        .iter()
                        .map(|round| of(round).as_secs_f64() * 1000.0)
                        .collect(),
                )
                .0
            };
            let (p50, p99) = (millis(|round| round.p50), millis(|round| round.p99));
            format!("{middle:.0} ({low:.0}–{high:.0}); {p50:.2} / {p99:.2} ms")
        });
        println!("| {clients} clients | {} |", cells.join(" | "));
    }
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let is_selected = |part| args.parts.contains(part);
    if is_selected("changes") {
        measure_changes(&args).await;
    }
    if is_selected("reads") {
        longrunning::measure_reads(&args.directory, args.rounds).await;
    }
    if is_selected("recovery") {
        longrunning::measure_recovery(&args.directory, args.records, args.rounds).await;
    }
}
