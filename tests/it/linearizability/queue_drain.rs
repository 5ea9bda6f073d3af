//! A queue that workers at three servers empty, while two of these are killed and
//! the database loses its power: each operation has exactly one outcome, and it is
//! the one that was acknowledged.
//!
//! `DRAIN_OPERATIONS` sets how many there are.

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
    env_number, stored_rows,
};
use crate::support::{
    harness::{finish_request, lease_request, max_attempts, queued_request},
    persistent_server::RpcError,
    postgres::PostgresServer,
    rng::TestRng,
    string_value,
};

const QUEUE: &str = "jobs";

/// Who creates, and who works, at each server.
const CREATOR_COUNT: usize = 64;
const WORKERS_PER_SERVER: usize = 3;

/// How many leases a worker takes at once, and how many it ends at once.
const LEASE_BATCH_SIZE: i32 = 64;

/// How long a call may take until another server is asked.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// What workers know of what they did.
#[derive(Default)]
struct FinishLog {
    /// The outcomes that somebody tried to record, by the name of the operation.
    attempted: HashMap<String, HashSet<String>>,
    acknowledged: BTreeMap<String, String>,
}

struct DrainRun {
    cluster: Arc<ServerCluster>,
    finish_log: Mutex<FinishLog>,
    /// How many ends were acknowledged.
    acknowledged_count: watch::Sender<usize>,
}

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
    // Each comes when so much is done, whenever that is.
    for (quarter, fault) in [
        (1, ClusterFault::Kill(0)),
        (2, ClusterFault::CrashDatabase),
        (3, ClusterFault::Kill(1)),
    ] {
        let mut acknowledged = run.acknowledged_count.subscribe();
        acknowledged
            .wait_for(|count_so_far| count * quarter / 4 <= *count_so_far)
            .await
            .unwrap();
        cluster.inject(fault).await;
    }
    let unfinished_query = "SELECT count(*) FROM longrunning.operations WHERE NOT is_done";
    // Ends whose acknowledgement was lost are counted by nobody but the database.
    let all_done = async {
        while cluster.query(unfinished_query) != "0" {
            sleep(Duration::from_millis(200)).await;
        }
    };
    let all_done = timeout(Duration::from_secs(600), all_done).await;
    all_done.unwrap_or_else(|_| panic!("some are never done\n{}", cluster.event_log()));
    let drain_time = started_at.elapsed();
    workers.abort_all();
    while workers.join_next().await.is_some() {}
    let rows = stored_rows(&cluster).await;
    cluster.kill_all().await;
    let finish_log = run.finish_log.lock();
    assert_eq!(
        rows.len(),
        count,
        "each is there once\n{}",
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
            panic!("{name} has no response: {row:?}");
        };
        let outcome = String::decode(any.value.as_slice()).unwrap();
        let attempted = &finish_log.attempted[name];
        assert!(
            attempted.contains(&outcome),
            "{name}: {outcome} of {attempted:?}"
        );
        retried_count += usize::from(1 < row.attempt());
    }
    for (name, outcome) in &finish_log.acknowledged {
        let Some(operation::Result::Response(any)) = rows[name].to_proto().result else {
            panic!("{name} has no response");
        };
        assert_eq!(
            String::decode(any.value.as_slice()).unwrap(),
            *outcome,
            "{name}"
        );
    }
    eprintln!(
        "{count} operations made in {create_time:.1?}, done after {drain_time:.1?}; {} ends acknowledged, \
         {retried_count} tried again\n{}",
        finish_log.acknowledged.len(),
        cluster.event_log()
    );
}

/// Any server that can be asked.
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

/// A worker, which asks whatever server there is, for ever.
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

/// Ends an operation, and goes on until it is known how that went.
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
        match result.map(|ended| ended.map_err(RpcError::from)) {
            Ok(Ok(_)) => {
                let mut finish_log = run.finish_log.lock();
                let before = finish_log.acknowledged.insert(lease.name.clone(), outcome);
                assert_eq!(before, None, "{} ended twice", lease.name);
                run.acknowledged_count.send_modify(|done| *done += 1);
                return;
            }
            // Another worker has it, or had it.
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
