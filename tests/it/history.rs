//! What clients of three servers over one PostgreSQL are told, while servers are
//! killed and stopped, ways to the database are cut and frozen, and the database
//! loses its power: for each operation there is an order of all calls that
//! explains every answer. Reads at a server that need not be fresh may be late,
//! but never go back, and never before what was done through that server.
//!
//! `HISTORY_RUNS` sets how many runs of each kind there are, `HISTORY_SEED` the
//! seed of the first; without it seeds come from a list, and then count on. What
//! the clients and the faults do comes of the seed; when, of the machine too, so
//! that a seed may have to be tried several times.

mod calls;
mod checker;
mod clients;
mod drained;
mod found;
mod judged;
mod proxy;
mod replicas;
mod spec;
mod world;

use std::{collections::BTreeMap, env, sync::Arc, time::Duration};

use longrunning::{Journal, Operation, PostgresJournal};
use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use calls::{Reads, Time};
use checker::{check, explain};
use clients::Client;
use replicas::{Fault, Replicas};
use spec::Rules;
use world::World;

use crate::support::{dice::Dice, get, postgres::Postgres, stored::Fail};

/// Seeds that once showed something, then any.
const SEEDS: [u64; 3] = [1, 2, 3];

/// How many call at once.
const CLIENTS: usize = 8;

/// How long leases last in these runs: the least that is allowed.
const LEASE: Time = 1_000_000_000;

/// By how much two servers may disagree on what time it is. Each takes the time of
/// the database when it begins, all of one machine, and is wrong by at most half of
/// what the quickest of its questions took: a few milliseconds, and on a machine
/// that is busy not much more. After that their clocks are that of the machine.
const SLACK: Time = 200_000_000;
/// How long after the end of a fault the last server may reach the database again.
const RECOVERY: Time = 3_000_000_000;

/// Longer than servers take to agree once nothing disturbs them any more.
const PATIENCE: Duration = Duration::from_secs(60);

fn setting(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().expect(name))
}

fn seeds() -> Vec<u64> {
    let runs = setting("HISTORY_RUNS").unwrap_or(3);
    let seeds: Vec<u64> = match setting("HISTORY_SEED") {
        Some(seed) => (seed..).take(usize::try_from(runs).unwrap()).collect(),
        None => SEEDS
            .into_iter()
            .chain(1000..)
            .take(usize::try_from(runs).unwrap())
            .collect(),
    };
    seeds
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_history_of_three_servers_is_linearizable_but_for_reads_that_may_be_late() {
    run_all(Reads::MayBeLate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_history_of_three_servers_with_fresh_reads_is_linearizable() {
    run_all(Reads::Fresh).await;
}

async fn run_all(reads: Reads) {
    let Some(postgres) = Postgres::start(&[]) else {
        return;
    };
    let postgres = Arc::new(Mutex::new(postgres));
    for seed in seeds() {
        run(&postgres, seed, reads).await;
    }
}

async fn run(postgres: &Arc<Mutex<Postgres>>, seed: u64, reads: Reads) {
    let mut dice = Dice::new(seed);
    let how = match reads {
        Reads::Fresh => "fresh",
        Reads::MayBeLate => "view",
    };
    let begun = Instant::now();
    let arguments = ["--lease-duration", "1s", "--read", how];
    let replicas = Arc::new(Replicas::start(begun, postgres, &arguments).await);
    let world = Arc::new(World::new(replicas.clone(), reads, LEASE));
    let mut clients: JoinSet<()> = (0..CLIENTS)
        .map(|number| Client::new(&world, dice.fork(), number).run())
        .collect();
    // The dice choose when and what; the clients do not wait for it.
    let with_database = dice.once_in(3);
    for number in 0..dice.within(2..5) {
        sleep(Duration::from_millis(dice.within(50..500))).await;
        let fault = match (number, with_database) {
            (1, true) => Fault::Database,
            _ => Fault::any(&mut dice),
        };
        if dice.once_in(3) {
            let other = Fault::any(&mut dice);
            tokio::join!(replicas.suffer(fault), replicas.suffer(other));
        } else {
            replicas.suffer(fault).await;
        }
    }
    sleep(Duration::from_millis(dice.within(200..600))).await;
    world.end();
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    replicas.note("clients are done");
    if timeout(PATIENCE, settle(&world)).await.is_err() {
        panic!(
            "HISTORY_SEED={seed} ({reads:?}): they do not agree\n{}",
            replicas.faults()
        );
    }
    replicas.end().await;
    let histories = world.histories();
    let served = replicas.faults();
    let count: usize = histories.iter().map(|(_, calls)| calls.len()).sum();
    let played = begun.elapsed();
    // It is the processor that is busy here, and nobody else has anything to do.
    tokio::task::block_in_place(|| {
        for (key, calls) in histories {
            let rules = Rules {
                is_named: key.is_named(),
                attempts: key.attempts(),
                lease: LEASE,
                slack: SLACK,
                outage: replicas
                    .outage()
                    .map(|(begun, ended)| (begun, ended + RECOVERY)),
            };
            if let Err(why) = check(&rules, &calls) {
                panic!(
                    "HISTORY_SEED={seed} ({reads:?}): no order explains {key:?}\n{served}\n{}",
                    explain(&rules, &calls, &why)
                );
            }
        }
    });
    let judged = begun.elapsed() - played;
    eprintln!(
        "HISTORY_SEED={seed} {reads:?}: {count} calls in {played:.1?}, judged in {judged:.1?}"
    );
}

/// Waits until no lease is held and all servers show what the database holds, and
/// reads that.
async fn settle(world: &World) {
    let replicas = &world.replicas;
    loop {
        let begun = replicas.now();
        if let Some(rows) = agreed(world).await {
            for row in rows.values() {
                world.meet(row);
            }
            for name in world.names() {
                let row = rows.get(&name).map(longrunning::Operation::to_proto);
                world.read(&name, begun, row.as_ref());
            }
            return;
        }
        // Each look asks all of them, which takes its time.
        tokio::task::yield_now().await;
    }
}

/// What the database holds, if it is at rest and all servers show the same.
async fn agreed(world: &World) -> Option<BTreeMap<String, Operation>> {
    let rows = rows(&world.replicas).await;
    if rows.values().any(|row| row.lease().is_some()) {
        return None;
    }
    let rows: BTreeMap<_, _> = rows
        .into_iter()
        .filter(|(_, row)| !row.is_hidden())
        .collect();
    let open = world.replicas.open();
    for name in world.names() {
        for process in &open {
            let answer = process.client.clone().get_operation(get(&name)).await;
            let is_same = match (answer.map_err(Fail::from), rows.get(&name)) {
                (Ok(shown), Some(row)) => *shown.get_ref() == row.to_proto(),
                (Err(Fail::Refused(_, reason)), None) => reason == "OPERATION_NOT_FOUND",
                _ => false,
            };
            if !is_same {
                return None;
            }
        }
    }
    (open.len() == replicas::REPLICAS).then_some(rows)
}

/// All that the database holds.
async fn rows(replicas: &Replicas) -> BTreeMap<String, Operation> {
    let journal = PostgresJournal::open(replicas.options()).await.unwrap();
    let rows = Arc::new(Mutex::new(BTreeMap::new()));
    let show = {
        let rows = rows.clone();
        move |operation: Operation| {
            rows.lock().insert(operation.name().to_owned(), operation);
        }
    };
    journal.replay(Arc::new(show)).await.unwrap();
    journal.close().await;
    std::mem::take(&mut *rows.lock())
}
