//! Workers at three servers drain a queue while two servers are killed and the database
//! crashes: each operation gets exactly one outcome, the acknowledged one.
//!
//! `DRAIN_OPERATIONS` sets the number of operations.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use longrunning::{
    State,
    proto::{
        google::longrunning::operation,
        longrunning::v1::{
            CreateOperationRequest, Lease, create_operation_request::Execution,
            finish_operation_request::Outcome,
        },
    },
};
use parking_lot::Mutex;
use prost::Message;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::Code;

use super::{
    cluster::{ClusterFault, REPLICA_COUNT, ReplicaProcess, ServerCluster},
    stored_rows,
};
use crate::support::{
    env_number,
    harness::{finish_request, lease_request, max_attempts, queued_request},
    persistent_server::RpcError,
    postgres::PostgresServer,
    rng::TestRng,
    string_value,
};

const QUEUE: &str = "jobs";

const CREATOR_COUNT: usize = 64;
const WORKERS_PER_SERVER: usize = 3;

/// Number of operations that a worker leases and finishes concurrently.
const LEASE_BATCH_SIZE: i32 = 64;

/// Timeout of a call, after which another server is called.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The outcomes reported by workers, by operation name.
#[derive(Default)]
struct FinishLog {
    /// Every outcome that a worker tried to record.
    attempted: HashMap<String, HashSet<String>>,
    acknowledged: BTreeMap<String, String>,
}

struct DrainRun {
    cluster: Arc<ServerCluster>,
    finish_log: Mutex<FinishLog>,
    /// Number of acknowledged finishes.
    acknowledged_count: watch::Sender<usize>,
}

// Rules: CLU-10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queue_drains_through_server_kills_and_database_crash() {
    let count = usize::try_from(env_number("DRAIN_OPERATIONS").unwrap_or(2000)).unwrap();
    let Some(postgres) = PostgresServer::start(&[]) else {
        return;
    };
    let postgres = Arc::new(Mutex::new(postgres));
    let started_at = Instant::now();
    let arguments = ["--lease-duration", "10s", "--max-queue-length", "1000000"];
    let cluster = Arc::new(ServerCluster::start(started_at, &postgres, &arguments).await);
    let run = Arc::new(DrainRun {
        cluster: cluster.clone(),
        finish_log: Mutex::default(),
        acknowledged_count: watch::Sender::new(0),
    });
    create_all(&run, count).await;
    let create_time = started_at.elapsed();
    let mut workers: JoinSet<()> = (0..REPLICA_COUNT * WORKERS_PER_SERVER)
        .map(|number| run_worker(run.clone(), number))
        .collect();
    // Each fault comes when another quarter of the operations is done.
    for (quarter, fault) in [
        (1, ClusterFault::Kill(0)),
        (2, ClusterFault::CrashDatabase),
        (3, ClusterFault::Kill(1)),
    ] {
        let mut acknowledged = run.acknowledged_count.subscribe();
        acknowledged
            .wait_for(|acknowledged| *acknowledged >= count * quarter / 4)
            .await
            .unwrap();
        cluster.inject(fault).await;
    }
    let unfinished_query = "SELECT count(*) FROM longrunning.operations WHERE NOT is_done";
    // Only the database knows of finishes without a response.
    let all_done = async {
        while cluster.query(unfinished_query) != "0" {
            sleep(Duration::from_millis(200)).await;
        }
    };
    let all_done = timeout(Duration::from_secs(600), all_done).await;
    all_done.unwrap_or_else(|_| {
        panic!(
            "expected all operations to be done\n{}",
            cluster.event_log()
        )
    });
    let drain_time = started_at.elapsed();
    workers.abort_all();
    while workers.join_next().await.is_some() {}
    let rows = stored_rows(&cluster).await;
    cluster.kill_all().await;
    let finish_log = run.finish_log.lock();
    assert_eq!(
        rows.len(),
        count,
        "expected each operation once\n{}",
        cluster.event_log()
    );
    let mut retried_count = 0;
    for (name, row) in &rows {
        assert_eq!(
            row.state(),
            State::Succeeded,
            "{name}\n{}",
            cluster.event_log()
        );
        let Some(operation::Result::Response(any)) = row.to_proto().result else {
            panic!("expected a response of {name}: {row:?}");
        };
        let outcome = String::decode(any.value.as_slice()).unwrap();
        let attempted = &finish_log.attempted[name];
        assert!(
            attempted.contains(&outcome),
            "{name}: expected {outcome} to be one of {attempted:?}"
        );
        retried_count += usize::from(row.attempt() > 1);
    }
    for (name, outcome) in &finish_log.acknowledged {
        let Some(operation::Result::Response(any)) = rows[name].to_proto().result else {
            panic!("expected a response of {name}");
        };
        assert_eq!(
            String::decode(any.value.as_slice()).unwrap(),
            *outcome,
            "{name}"
        );
    }
    eprintln!(
        "{count} operations created in {create_time:.1?}, done after {drain_time:.1?}; {} acknowledged, \
         {retried_count} retried\n{}",
        finish_log.acknowledged.len(),
        cluster.event_log()
    );
}

/// Returns a random process, and waits until there is one.
async fn random_process(cluster: &ServerCluster, rng: &mut TestRng) -> ReplicaProcess {
    loop {
        if let Some(process) = rng.choose(&cluster.open_processes()) {
            return process.clone();
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn create_all(run: &Arc<DrainRun>, count: usize) {
    let mut creators = JoinSet::new();
    for creator in 0..CREATOR_COUNT {
        let run = run.clone();
        creators.spawn(async move {
            let mut rng = TestRng::new(creator as u64);
            for number in (creator..count).step_by(CREATOR_COUNT) {
                let request = CreateOperationRequest {
                    operation_id: format!("job-{number}"),
                    retry_policy: max_attempts(1_000_000),
                    ..queued_request(QUEUE)
                };
                assert!(matches!(request.execution, Some(Execution::Queued(_))));
                let mut process = random_process(&run.cluster, &mut rng).await;
                process
                    .worker_client
                    .create_operation(request)
                    .await
                    .unwrap();
            }
        });
    }
    while let Some(result) = creators.join_next().await {
        result.unwrap();
    }
}

/// Leases and finishes operations at random servers, forever.
async fn run_worker(run: Arc<DrainRun>, number: usize) {
    let mut rng = TestRng::new(1000 + number as u64);
    let worker = format!("w{number}");
    loop {
        let mut process = random_process(&run.cluster, &mut rng).await;
        let request = lease_request(&[QUEUE], &worker, LEASE_BATCH_SIZE);
        let result = timeout(
            CALL_TIMEOUT,
            process.worker_client.lease_operations(request),
        )
        .await;
        let leases = match result {
            Ok(Ok(leased)) => leased.into_inner().leases,
            Ok(Err(_)) | Err(_) => Vec::new(),
        };
        if leases.is_empty() {
            sleep(Duration::from_millis(50)).await;
            continue;
        }
        let finishes: Vec<_> = leases
            .into_iter()
            .map(|lease| finish_until_acknowledged(&run, rng.fork(), lease, &worker))
            .collect();
        futures_util::future::join_all(finishes).await;
    }
}

/// Finishes an operation, and retries until there is a response.
async fn finish_until_acknowledged(run: &DrainRun, mut rng: TestRng, lease: Lease, worker: &str) {
    let outcome = format!("{worker} in attempt {}", lease.attempt);
    {
        let mut finish_log = run.finish_log.lock();
        let attempted = finish_log.attempted.entry(lease.name.clone()).or_default();
        attempted.insert(outcome.clone());
    }
    loop {
        let mut process = random_process(&run.cluster, &mut rng).await;
        let request = finish_request(&lease, Outcome::Response(string_value(&outcome)));
        let result = timeout(
            CALL_TIMEOUT,
            process.worker_client.finish_operation(request),
        )
        .await;
        match result.map(|response| response.map_err(RpcError::from)) {
            Ok(Ok(_)) => {
                let mut finish_log = run.finish_log.lock();
                let before = finish_log.acknowledged.insert(lease.name.clone(), outcome);
                assert_eq!(before, None, "expected {} to be finished once", lease.name);
                run.acknowledged_count.send_modify(|count| *count += 1);
                return;
            }
            // Another worker has leased or finished it.
            Ok(Err(RpcError::Rejected(Code::FailedPrecondition, _))) => return,
            Ok(Err(RpcError::Rejected(Code::Unavailable, _) | RpcError::Unknown(_))) | Err(_) => {
                sleep(Duration::from_millis(rng.random_range(20..200))).await;
            }
            Ok(Err(RpcError::Rejected(code, reason))) => {
                panic!("{code:?} {reason} for {}", lease.name)
            }
        }
    }
}
