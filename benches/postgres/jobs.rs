//! Measures the throughput of jobs and of lease acquisition.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use longrunning::{NewOperation, Operations, QueueName, WorkerId};
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

use crate::{
    WAIT_TIMEOUT,
    database::{Database, SCHEMA},
    empty_any, finish_operation,
};

const JOB_COUNT: usize = 20_000;
const LEASE_COUNT: usize = 10_000;
const WORKER_COUNT: usize = 48;

pub(crate) async fn bench_jobs(database: &Database, servers: &[Operations]) {
    println!("create → lease → finish on 3 servers:");
    for (callers, batch_size) in [(1, 1), (64, 1), (1024, 1), (16, 100)] {
        run_jobs(database, servers, callers, batch_size).await;
    }
    println!("  then: {}", database.describe_bloat().await);
}

/// Runs `callers` tasks, each with its own queue, that create, lease and finish operations in
/// batches of at most `batch_size`.
pub(crate) async fn run_jobs(
    database: &Database,
    servers: &[Operations],
    callers: usize,
    batch_size: usize,
) {
    let count = if callers == 1 {
        JOB_COUNT / 20
    } else {
        JOB_COUNT
    };
    let jobs_per_caller = count / callers;
    let (before, started) = (database.read_stats().await, Instant::now());
    let mut tasks = JoinSet::new();
    for index in 0..callers {
        let operations = servers[index % servers.len()].clone();
        tasks.spawn(async move {
            let queue = QueueName::parse(&format!("bench-{index}")).expect("the name is valid");
            let worker = WorkerId::new("bench");
            for _ in 0..jobs_per_caller / batch_size {
                create_queued(&operations, &queue, batch_size).await;
                let mut remaining = batch_size;
                while remaining != 0 {
                    let leases = operations
                        .lease_batch(
                            std::slice::from_ref(&queue),
                            &worker,
                            remaining,
                            WAIT_TIMEOUT,
                        )
                        .await
                        .expect("the queue is not empty");
                    remaining -= leases.len();
                    let mut finishes = JoinSet::new();
                    for lease in leases {
                        let token = lease.lease().expect("it is leased").token;
                        finishes.spawn(finish_operation(
                            operations.clone(),
                            lease.name_owned(),
                            token,
                        ));
                    }
                    finishes.join_all().await;
                }
            }
        });
    }
    tasks.join_all().await;
    let finished_jobs = jobs_per_caller / batch_size * batch_size * callers;
    let elapsed_secs = started.elapsed().as_secs_f64();
    let per_job = database
        .read_stats()
        .await
        .per_item_since(before, finished_jobs);
    println!(
        "  {callers:5} callers, batches of {batch_size:3}: {:7.0} jobs/s, {:5.2} statements and {:5.0} bytes of WAL each",
        finished_jobs as f64 / elapsed_secs,
        per_job.statements,
        per_job.wal_bytes,
    );
}

pub(crate) async fn create_queued(operations: &Operations, queue: &QueueName, count: usize) {
    let mut creates = JoinSet::new();
    for _ in 0..count {
        let new = NewOperation::queued(queue.as_str()).input(empty_any());
        let operations = operations.clone();
        creates.spawn(async move { operations.create(new).await.expect("the store accepts it") });
    }
    creates.join_all().await;
}

/// Measures workers on three servers that lease from one queue by compare-and-set, and for
/// comparison by `SKIP LOCKED` on a table with the same columns, with one connection per
/// worker.
pub(crate) async fn bench_lease_acquisition(
    database: &Database,
    url: &str,
    servers: &[Operations],
) {
    println!("{LEASE_COUNT} leases of one queue by {WORKER_COUNT} workers on 3 servers:");
    for batch_size in [1, 50] {
        let queue = QueueName::parse(&format!("leases-{batch_size}")).expect("the name is valid");
        for _ in 0..LEASE_COUNT / 1000 {
            create_queued(&servers[0], &queue, 1000).await;
        }
        let (before, started) = (database.read_stats().await, Instant::now());
        let leased_count = Arc::new(AtomicUsize::new(0));
        let mut workers = JoinSet::new();
        for index in 0..WORKER_COUNT {
            let (operations, leased_count) =
                (servers[index % servers.len()].clone(), leased_count.clone());
            let queue = queue.clone();
            workers.spawn(async move {
                let worker = WorkerId::new(&format!("worker-{index}"));
                let queues = std::slice::from_ref(&queue);
                while leased_count.load(Ordering::Relaxed) < LEASE_COUNT {
                    let wait_timeout = std::time::Duration::from_millis(20);
                    let leases = operations.lease_batch(queues, &worker, batch_size, wait_timeout);
                    leased_count.fetch_add(
                        leases.await.expect("the call succeeds").len(),
                        Ordering::Relaxed,
                    );
                }
            });
        }
        workers.join_all().await;
        let elapsed_secs = started.elapsed().as_secs_f64();
        let per_lease = database
            .read_stats()
            .await
            .per_item_since(before, LEASE_COUNT);
        println!(
            "  compare-and-set, batches of {batch_size:2}: {:7.0}/s, {:.2} statements and {:.0} bytes of WAL each",
            LEASE_COUNT as f64 / elapsed_secs,
            per_lease.statements,
            per_lease.wal_bytes,
        );
        bench_skip_locked(database, url, &queue, batch_size).await;
    }
}

async fn bench_skip_locked(database: &Database, url: &str, queue: &QueueName, batch_size: usize) {
    // The same rows and indexes, with the columns and the index of a queue.
    let setup_sql = format!(
        "CREATE TABLE {SCHEMA}.jobs (LIKE {SCHEMA}.operations INCLUDING ALL);
         INSERT INTO {SCHEMA}.jobs SELECT * FROM {SCHEMA}.operations
         WHERE NOT is_done ORDER BY number DESC LIMIT {LEASE_COUNT};
         ALTER TABLE {SCHEMA}.jobs ADD COLUMN queue text NOT NULL DEFAULT '{queue}';
         ALTER TABLE {SCHEMA}.jobs ADD COLUMN holder text;
         CREATE INDEX ON {SCHEMA}.jobs (queue, number) WHERE holder IS NULL;
         ANALYZE {SCHEMA}.jobs",
        queue = queue.as_str()
    );
    database.execute(&setup_sql).await;
    let lease_sql = format!(
        "UPDATE {SCHEMA}.jobs SET holder = 'worker', revision = revision + 1
         WHERE number IN (
           SELECT number FROM {SCHEMA}.jobs WHERE holder IS NULL AND queue = '{queue}'
           ORDER BY number LIMIT {batch_size} FOR UPDATE SKIP LOCKED
         ) RETURNING number, record",
        queue = queue.as_str()
    );
    let mut workers = JoinSet::new();
    let mut clients = Vec::new();
    for _ in 0..WORKER_COUNT {
        let (client, connection) = tokio_postgres::connect(url, NoTls)
            .await
            .expect("the database is reachable");
        tokio::spawn(connection);
        let lease_statement = client
            .prepare(&lease_sql)
            .await
            .expect("the statement is valid");
        clients.push((client, lease_statement));
    }
    let (before, started) = (database.read_stats().await, Instant::now());
    for (client, lease_statement) in clients {
        workers.spawn(async move {
            while !client
                .query(&lease_statement, &[])
                .await
                .expect("the statement succeeds")
                .is_empty()
            {}
        });
    }
    workers.join_all().await;
    let elapsed_secs = started.elapsed().as_secs_f64();
    let per_lease = database
        .read_stats()
        .await
        .per_item_since(before, LEASE_COUNT);
    println!(
        "  SKIP LOCKED,     batches of {batch_size:2}: {:7.0}/s, {:.2} statements and {:.0} bytes of WAL each",
        LEASE_COUNT as f64 / elapsed_secs,
        per_lease.statements,
        per_lease.wal_bytes,
    );
    database.execute(&format!("DROP TABLE {SCHEMA}.jobs")).await;
}
