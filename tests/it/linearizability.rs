//! Linearizability of three servers over one PostgreSQL, under faults: servers are
//! killed and paused, their database connections are closed and frozen, and the
//! database crashes. For each operation an order of all calls must explain every
//! response. Local reads may be stale, but are monotonic per server and include the
//! writes made through that server.
//!
//! `HISTORY_RUNS` sets the number of runs of each kind, and `HISTORY_SEED` the first
//! seed; by default a list of seeds is used first. The seed determines the choices of
//! clients and faults; their timing also depends on the machine, so that a seed may
//! have to be repeated.

mod checker;
mod checker_tests;
mod clients;
mod cluster;
mod events;
mod proxy;
mod queue_drain;
mod recorder;
mod regressions;
mod sequential_spec;
mod spec_state;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use longrunning::{Operation, PostgresStorage, Storage};
use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use checker::{check, explain};
use clients::RandomClient;
use cluster::{ClusterFault, ServerCluster};
use events::{Nanos, Outage, ReadMode};
use recorder::Recorder;
use sequential_spec::SequentialSpec;

use crate::support::{
    env_number, get_request, persistent_server::RpcError, postgres::PostgresServer, rng::TestRng,
};

/// Seeds that once found a defect. They run first.
const REGRESSION_SEEDS: [u64; 3] = [1, 2, 3];

const CLIENT_COUNT: usize = 8;

/// The lease duration of these runs, the minimum allowed.
const LEASE_DURATION_NS: Nanos = 1_000_000_000;

/// Upper bound for the difference of two servers' clocks. Each server reads the time of
/// the database at its start, with an error of at most half of the fastest round trip: a
/// few milliseconds, and little more on a busy machine. After that all follow the clock of
/// the same machine.
const MAX_CLOCK_SKEW_NS: Nanos = 200_000_000;
/// Upper bound for the time that servers take to reconnect to the database after a fault.
const RECOVERY_TIMEOUT_NS: Nanos = 3_000_000_000;

/// Longer than servers take to converge after the last fault.
const CONVERGENCE_TIMEOUT: Duration = Duration::from_secs(60);

fn seeds() -> Vec<u64> {
    let runs = usize::try_from(env_number("HISTORY_RUNS").unwrap_or(3)).unwrap();
    match env_number("HISTORY_SEED") {
        Some(seed) => (seed..).take(runs).collect(),
        None => (REGRESSION_SEEDS.into_iter().chain(1000..))
            .take(runs)
            .collect(),
    }
}

// Rules: CLU-2, CLU-4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_with_local_reads_are_linearizable_except_stale_reads() {
    run_all_seeds(ReadMode::Local).await;
}

// Rules: CLU-2, CLU-4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_with_linearizable_reads_are_linearizable() {
    run_all_seeds(ReadMode::Linearizable).await;
}

async fn run_all_seeds(read_mode: ReadMode) {
    let Some(postgres) = PostgresServer::start(&[]) else {
        return;
    };
    let postgres = Arc::new(Mutex::new(postgres));
    for seed in seeds() {
        run_seed(&postgres, seed, read_mode).await;
    }
}

async fn run_seed(postgres: &Arc<Mutex<PostgresServer>>, seed: u64, read_mode: ReadMode) {
    let mut rng = TestRng::new(seed);
    let consistency = match read_mode {
        ReadMode::Linearizable => "linearizable",
        ReadMode::Local => "local",
    };
    let started_at = Instant::now();
    let arguments = ["--lease-duration", "1s", "--read-consistency", consistency];
    let cluster = Arc::new(ServerCluster::start(started_at, postgres, &arguments).await);
    let recorder = Arc::new(Recorder::new(cluster.clone(), read_mode, LEASE_DURATION_NS));
    let mut clients: JoinSet<()> = (0..CLIENT_COUNT)
        .map(|number| RandomClient::new(&recorder, rng.fork(), number).run())
        .collect();
    // Faults are independent of the progress of the clients.
    let crashes_database = rng.one_in(3);
    for number in 0..rng.random_range(2..5) {
        sleep(Duration::from_millis(rng.random_range(50..500))).await;
        let fault = match (number, crashes_database) {
            (1, true) => ClusterFault::CrashDatabase,
            _ => ClusterFault::random(&mut rng),
        };
        if rng.one_in(3) {
            let other = ClusterFault::random(&mut rng);
            tokio::join!(cluster.inject(fault), cluster.inject(other));
        } else {
            cluster.inject(fault).await;
        }
    }
    sleep(Duration::from_millis(rng.random_range(200..600))).await;
    recorder.stop_clients();
    while let Some(result) = clients.join_next().await {
        result.unwrap();
    }
    cluster.log_event("clients have stopped");
    if timeout(CONVERGENCE_TIMEOUT, wait_for_convergence(&recorder))
        .await
        .is_err()
    {
        panic!(
            "HISTORY_SEED={seed} ({read_mode:?}): servers do not converge\n{}",
            cluster.event_log()
        );
    }
    cluster.kill_all().await;
    let histories = recorder.histories();
    let event_log = cluster.event_log();
    let count: usize = histories.iter().map(|(_, calls)| calls.len()).sum();
    let run_time = started_at.elapsed();
    // The check is CPU-bound, and no other task is active.
    tokio::task::block_in_place(|| {
        for (key, calls) in histories {
            let spec = SequentialSpec {
                has_client_id: key.has_client_id(),
                max_attempts: key.max_attempts(),
                max_worker_losses: key.max_worker_losses(),
                lease_duration: LEASE_DURATION_NS,
                max_clock_skew: MAX_CLOCK_SKEW_NS,
                outage: cluster.outage().map(|outage| Outage {
                    end: outage.end + RECOVERY_TIMEOUT_NS,
                    ..outage
                }),
            };
            if let Err(counterexample) = check(&spec, &calls) {
                panic!(
                    "HISTORY_SEED={seed} ({read_mode:?}): no order explains {key:?}\n{event_log}\n{}",
                    explain(&spec, &calls, &counterexample)
                );
            }
        }
    });
    let check_time = started_at.elapsed() - run_time;
    eprintln!(
        "HISTORY_SEED={seed} {read_mode:?}: {count} calls in {run_time:.1?}, checked in {check_time:.1?}"
    );
}

/// Waits until no lease is held and all servers show the stored state, then records that
/// state as a final read.
async fn wait_for_convergence(recorder: &Recorder) {
    let cluster = &recorder.cluster;
    loop {
        let invoked_at = cluster.now();
        if let Some(rows) = converged_rows(recorder).await {
            for row in rows.values() {
                recorder.record_operation(row);
            }
            for name in recorder.names() {
                let row = rows.get(&name).map(longrunning::Operation::to_proto);
                recorder.record_final_read(&name, invoked_at, row.as_ref());
            }
            return;
        }
        // No delay, because each attempt already calls all servers.
        tokio::task::yield_now().await;
    }
}

/// Returns the stored operations, or `None` if a lease is held or a server shows another
/// state.
async fn converged_rows(recorder: &Recorder) -> Option<BTreeMap<String, Operation>> {
    let rows = stored_rows(&recorder.cluster).await;
    if rows.values().any(|row| row.lease().is_some()) {
        return None;
    }
    let rows: BTreeMap<_, _> = rows
        .into_iter()
        .filter(|(_, row)| !row.is_deleted())
        .collect();
    let processes = recorder.cluster.open_processes();
    for name in recorder.names() {
        for process in &processes {
            let response = process
                .client
                .clone()
                .get_operation(get_request(&name))
                .await;
            let is_same = match (response.map_err(RpcError::from), rows.get(&name)) {
                (Ok(operation), Some(row)) => *operation.get_ref() == row.to_proto(),
                (Err(RpcError::Rejected(_, reason)), None) => reason == "OPERATION_NOT_FOUND",
                _ => false,
            };
            if !is_same {
                return None;
            }
        }
    }
    (processes.len() == cluster::REPLICA_COUNT).then_some(rows)
}

/// Loads all operations from the database.
async fn stored_rows(cluster: &ServerCluster) -> BTreeMap<String, Operation> {
    let storage = PostgresStorage::open(cluster.config()).await.unwrap();
    let rows = Arc::new(Mutex::new(BTreeMap::new()));
    let sink = {
        let rows = rows.clone();
        move |operation: Operation| {
            rows.lock().insert(operation.name().to_owned(), operation);
        }
    };
    storage.load(Arc::new(sink)).await.unwrap();
    storage.close().await;
    std::mem::take(&mut *rows.lock())
}
