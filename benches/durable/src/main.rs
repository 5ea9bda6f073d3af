//! What durability costs: changes per second that are acknowledged once they
//! are on the disk, beside the same group commit over bare SQLite, redb, fjall
//! and a plain log with fdatasync; Get while that goes on; and the way back
//! after a restart. Rounds are interleaved, so that a busy machine is busy for
//! all. `durable [--seconds N] [--rounds N] [--records N] [--dir DIR]
//! [--parts 'changes reads recovery'] [--only STORE]
//! [--clients N]`
//!
//! Each client is a task that makes its next change when the last one was
//! acknowledged. A change is a record of about 400 bytes under a known key.

mod longrunning;
mod peers;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

pub const RECORD: usize = 400;

/// A store that acknowledges what it has made durable.
pub trait Durable: Send + Sync + 'static {
    fn change(&self, client: u64, count: u64) -> impl Future<Output = ()> + Send;
}

struct Figures {
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

/// So many clients for so long.
async fn load(store: Arc<impl Durable>, clients: u64, time: Duration) -> Figures {
    let (begun, mut tasks) = (Instant::now(), JoinSet::new());
    for client in 0..clients {
        let store = store.clone();
        tasks.spawn(async move {
            let (mut count, mut times) = (0, Vec::new());
            while begun.elapsed() < time {
                let asked = Instant::now();
                count += 1;
                store.change(client, count).await;
                times.push(asked.elapsed());
            }
            times
        });
    }
    let mut times: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
    let elapsed = begun.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    Figures {
        per_second: times.len() as f64 / elapsed,
        p50: at(0.5),
        p99: at(0.99),
    }
}

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
            let value = words.next().expect("each flag has a value");
            match flag.as_str() {
                "--seconds" => args.seconds = value.parse().expect("a number"),
                "--rounds" => args.rounds = value.parse().expect("a number"),
                "--records" => args.records = value.parse().expect("a number"),
                "--clients" => args.clients = vec![value.parse().expect("a number")],
                "--only" => args.only = value,
                "--parts" => args.parts = value,
                "--dir" => args.directory = value.into(),
                _ => panic!("{flag} is not a flag"),
            }
        }
        args
    }
}

const STORES: [&str; 5] = ["longrunning", "SQLite", "redb", "fjall", "log + fdatasync"];

async fn round(store: usize, directory: &Path, clients: u64, time: Duration) -> Figures {
    let place = tempfile::tempdir_in(directory).expect("a directory");
    match store {
        0 => {
            load(
                Arc::new(longrunning::Ours::open(place.path(), clients).await),
                clients,
                time,
            )
            .await
        }
        1 => {
            load(
                peers::Peer::new(peers::Sqlite::open(place.path())),
                clients,
                time,
            )
            .await
        }
        2 => {
            load(
                peers::Peer::new(peers::Redb::open(place.path())),
                clients,
                time,
            )
            .await
        }
        3 => {
            load(
                peers::Peer::new(peers::Fjall::open(place.path())),
                clients,
                time,
            )
            .await
        }
        _ => {
            load(
                peers::Peer::new(peers::Log::open(place.path())),
                clients,
                time,
            )
            .await
        }
    }
}

async fn changes(args: &Args) {
    println!(
        "| changes per second, median (lowest–highest); p50 / p99 | {} |",
        STORES.join(" | ")
    );
    println!("| --- | {} |", STORES.map(|_| "---").join(" | "));
    for clients in args.clients.clone() {
        let mut found: [Vec<Figures>; 5] = Default::default();
        for _ in 0..args.rounds {
            for (store, found) in found.iter_mut().enumerate() {
                if !STORES[store].contains(&args.only) {
                    continue;
                }
                let time = Duration::from_secs(args.seconds);
                found.push(round(store, &args.directory, clients, time).await);
            }
        }
        let cells = found.map(|rounds| {
            if rounds.is_empty() {
                return String::new();
            }
            let (middle, low, high) = median(rounds.iter().map(|round| round.per_second).collect());
            let millis = |of: fn(&Figures) -> Duration| {
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
    let wants = |part| args.parts.contains(part);
    if wants("changes") {
        changes(&args).await;
    }
    if wants("reads") {
        longrunning::reads(&args.directory, args.rounds).await;
    }
    if wants("recovery") {
        longrunning::recovery(&args.directory, args.records, args.rounds).await;
    }
}
