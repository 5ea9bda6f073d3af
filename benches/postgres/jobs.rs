//! Jobs from their creation to their end, and claims alone.

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
    MINUTE,
    database::{Database, SCHEMA},
    empty, end,
};

const JOBS: usize = 20_000;
/// Claims of one queue, by so many workers.
const CLAIMS: usize = 10_000;
const WORKERS: usize = 48;

pub(crate) async fn all(database: &Database, servers: &[Operations]) {
    println!("create → lease → finish on 3 servers:");
    for (callers, most) in [(1, 1), (64, 1), (1024, 1), (16, 100)] {
        rounds(database, servers, callers, most).await;
    }
    println!("  then: {}", database.bloat().await);
}

/// So many callers, each of which makes operations, leases at most so many at
/// once, whosever they are, and finishes them.
pub(crate) async fn rounds(
    database: &Database,
    servers: &[Operations],
    callers: usize,
    most: usize,
) {
    let count = if callers == 1 { JOBS / 20 } else { JOBS };
    let each = count / callers;
    let (before, began) = (database.done().await, Instant::now());
    let mut tasks = JoinSet::new();
    for at in 0..callers {
        let operations = servers[at % servers.len()].clone();
        tasks.spawn(async move {
            let queue = QueueName::parse(&format!("bench-{at}")).expect("a proper name");
            let worker = WorkerId::new("bench");
            for _ in 0..each / most {
                make(&operations, &queue, most).await;
                let mut left = most;
                while left != 0 {
                    let leases = operations
                        .lease_batch(std::slice::from_ref(&queue), &worker, left, MINUTE)
                        .await
                        .expect("there are some");
                    left -= leases.len();
                    let mut ends = JoinSet::new();
                    for lease in leases {
                        let token = lease.lease().expect("it is ours").token;
                        ends.spawn(end(operations.clone(), lease.owned_name(), token));
                    }
                    ends.join_all().await;
                }
            }
        });
    }
    tasks.join_all().await;
    let done = each / most * most * callers;
    let took = began.elapsed().as_secs_f64();
    let each = database.done().await.each(before, done);
    println!(
        "  {callers:5} callers, {most:3} at once: {:7.0} jobs/s, {:5.2} statements and {:5.0} bytes of WAL each",
        done as f64 / took,
        each.statements,
        each.wal,
    );
}

pub(crate) async fn make(operations: &Operations, queue: &QueueName, count: usize) {
    let mut made = JoinSet::new();
    for _ in 0..count {
        let new = NewOperation::queued(queue.as_str()).input(empty());
        let operations = operations.clone();
        made.spawn(async move { operations.create(new).await.expect("it is kept") });
    }
    made.join_all().await;
}

/// Workers at three servers claim from one queue: by compare-and-set on what their
/// server shows, and, beside it, by SKIP LOCKED on a table of the same shape, with one
/// connection for each worker.
pub(crate) async fn claims(database: &Database, url: &str, servers: &[Operations]) {
    println!("{CLAIMS} claims of one queue by {WORKERS} workers on 3 servers:");
    for most in [1, 50] {
        let queue = QueueName::parse(&format!("claims-{most}")).expect("a proper name");
        for _ in 0..CLAIMS / 1000 {
            make(&servers[0], &queue, 1000).await;
        }
        let (before, began) = (database.done().await, Instant::now());
        let claimed = Arc::new(AtomicUsize::new(0));
        let mut workers = JoinSet::new();
        for at in 0..WORKERS {
            let (operations, claimed) = (servers[at % servers.len()].clone(), claimed.clone());
            let queue = queue.clone();
            workers.spawn(async move {
                let worker = WorkerId::new(&format!("worker-{at}"));
                let queues = std::slice::from_ref(&queue);
                while claimed.load(Ordering::Relaxed) < CLAIMS {
                    let wait = std::time::Duration::from_millis(20);
                    let leases = operations.lease_batch(queues, &worker, most, wait);
                    claimed.fetch_add(leases.await.expect("an answer").len(), Ordering::Relaxed);
                }
            });
        }
        workers.join_all().await;
        let took = began.elapsed().as_secs_f64();
        let each = database.done().await.each(before, CLAIMS);
        println!(
            "  compare-and-set, {most:2} at once: {:7.0}/s, {:.2} statements and {:.0} bytes of WAL each",
            CLAIMS as f64 / took,
            each.statements,
            each.wal,
        );
        skip_locked(database, url, &queue, most).await;
    }
}

async fn skip_locked(database: &Database, url: &str, queue: &QueueName, most: usize) {
    // The same rows with the same indexes, and what a queue needs to be searched.
    let table = format!(
        "CREATE TABLE {SCHEMA}.jobs (LIKE {SCHEMA}.operations INCLUDING ALL);
         INSERT INTO {SCHEMA}.jobs SELECT * FROM {SCHEMA}.operations
         WHERE NOT is_done ORDER BY number DESC LIMIT {CLAIMS};
         ALTER TABLE {SCHEMA}.jobs ADD COLUMN queue text NOT NULL DEFAULT '{queue}';
         ALTER TABLE {SCHEMA}.jobs ADD COLUMN holder text;
         CREATE INDEX ON {SCHEMA}.jobs (queue, number) WHERE holder IS NULL;
         ANALYZE {SCHEMA}.jobs",
        queue = queue.as_str()
    );
    database.run(&table).await;
    let claim = format!(
        "UPDATE {SCHEMA}.jobs SET holder = 'worker', revision = revision + 1
         WHERE number IN (
           SELECT number FROM {SCHEMA}.jobs WHERE holder IS NULL AND queue = '{queue}'
           ORDER BY number LIMIT {most} FOR UPDATE SKIP LOCKED
         ) RETURNING number, record",
        queue = queue.as_str()
    );
    let mut workers = JoinSet::new();
    let mut clients = Vec::new();
    for _ in 0..WORKERS {
        let (client, connection) = tokio_postgres::connect(url, NoTls)
            .await
            .expect("the database");
        tokio::spawn(connection);
        let claim = client.prepare(&claim).await.expect("a statement");
        clients.push((client, claim));
    }
    let (before, began) = (database.done().await, Instant::now());
    for (client, claim) in clients {
        workers.spawn(async move {
            while !client
                .query(&claim, &[])
                .await
                .expect("an answer")
                .is_empty()
            {}
        });
    }
    workers.join_all().await;
    let took = began.elapsed().as_secs_f64();
    let each = database.done().await.each(before, CLAIMS);
    println!(
        "  SKIP LOCKED,     {most:2} at once: {:7.0}/s, {:.2} statements and {:.0} bytes of WAL each",
        CLAIMS as f64 / took,
        each.statements,
        each.wal,
    );
    database.run(&format!("DROP TABLE {SCHEMA}.jobs")).await;
}
