//! What several servers of one PostgreSQL do: changes per second, the time from
//! an end at one server to the answer of a wait at another, and what the database
//! writes for an operation. `LONGRUNNING_BENCH_POSTGRES` is the database, which
//! gets a schema that is dropped at the end.
//!
//! ```text
//! LONGRUNNING_BENCH_POSTGRES=postgres://… cargo bench --bench postgres
//! ```

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::cast_precision_loss,
    reason = "a bench reads its environment and the real time, and prints rough figures"
)]

use std::{
    env,
    time::{Duration, Instant},
};

use longrunning::{
    Any, LeaseToken, NewOperation, OperationName, Operations, PostgresJournal, PostgresOptions,
    QueueName, WorkerId,
};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

const OPERATIONS: usize = 20_000;
const WAITS: usize = 2_000;
const MINUTE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() {
    let Ok(url) = env::var("LONGRUNNING_BENCH_POSTGRES") else {
        println!("SKIPPED: LONGRUNNING_BENCH_POSTGRES names no database");
        return;
    };
    let mut options = PostgresOptions::new(&url);
    options.schema = "longrunning_bench".to_owned();
    let (client, connection) = tokio_postgres::connect(&url, NoTls)
        .await
        .expect("the database");
    tokio::spawn(connection);
    let drop_it = "DROP SCHEMA IF EXISTS longrunning_bench CASCADE";
    client
        .batch_execute(drop_it)
        .await
        .expect("the schema is ours");
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(server(&options).await);
    }
    println!("create → lease → finish, {OPERATIONS} operations on 3 servers:");
    for (callers, most) in [(1, 1), (64, 1), (1024, 1), (16, 100)] {
        rounds(&client, &servers, callers, most).await;
    }
    // Two that hear of each other, and a third that only asks now and then.
    options.listen_url = Some("postgres://127.0.0.1:1/nowhere".to_owned());
    let deaf = server(&options).await;
    wake("hints", &servers[0], &servers[1]).await;
    wake("polling alone", &servers[0], &deaf).await;
    drop((servers, deaf));
    client
        .batch_execute(drop_it)
        .await
        .expect("the schema is ours");
}

async fn server(options: &PostgresOptions) -> Operations {
    let journal = PostgresJournal::open(options).await.expect("the database");
    let builder = Operations::builder().journal(journal);
    builder.start().await.expect("what is kept can be read")
}

/// So many callers, each of which makes operations, leases at most so many at
/// once, whosever they are, and finishes them.
async fn rounds(client: &Client, servers: &[Operations], callers: usize, most: usize) {
    let count = if callers == 1 {
        OPERATIONS / 20
    } else {
        OPERATIONS
    };
    let each = count / callers;
    let (wal, began) = (written(client).await, Instant::now());
    let mut tasks = JoinSet::new();
    for at in 0..callers {
        let operations = servers[at % servers.len()].clone();
        tasks.spawn(async move {
            let queue = QueueName::parse(&format!("bench-{at}")).expect("a proper name");
            let worker = WorkerId::new("bench");
            for _ in 0..each / most {
                let mut made = JoinSet::new();
                for _ in 0..most {
                    let new = NewOperation::queued(queue.as_str()).input(Any::default());
                    let operations = operations.clone();
                    made.spawn(async move { operations.create(new).await.expect("it is kept") });
                }
                made.join_all().await;
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
    let bytes = written(client).await - wal;
    println!(
        "  {callers:5} callers, {most:3} at once: {:8.0} per s, {:6.0} bytes of WAL each",
        done as f64 / took,
        bytes / done as f64,
    );
}

async fn end(operations: Operations, name: OperationName, token: LeaseToken) {
    let response = Any {
        type_url: "type.googleapis.com/google.protobuf.Empty".to_owned(),
        value: Vec::new(),
    };
    operations
        .succeed(&name, token, response)
        .await
        .expect("it is ours");
}

/// From an end at one server to the answer of a wait at another.
async fn wake(how: &str, one: &Operations, other: &Operations) {
    let mut times = Vec::with_capacity(WAITS);
    let count = if how == "hints" { WAITS } else { WAITS / 20 };
    for _ in 0..count {
        let new = NewOperation::self_executed("bench");
        let made = one.create(new).await.expect("it is kept").operation;
        let (name, token) = (made.owned_name(), made.lease().expect("it is ours").token);
        other.look(&name).await.expect("it is there");
        let waits = {
            let (operations, name) = (other.clone(), name.clone());
            tokio::spawn(async move {
                operations.wait(&name, MINUTE).await.expect("it ends");
                Instant::now()
            })
        };
        while other.waiters() == 0 {
            tokio::task::yield_now().await;
        }
        end(one.clone(), name, token).await;
        let ended = Instant::now();
        times.push(
            waits
                .await
                .expect("it is awake")
                .saturating_duration_since(ended),
        );
    }
    times.sort();
    println!(
        "finish → wake at another server, {how}: p50 {:?}, p99 {:?}",
        times[count / 2],
        times[count * 99 / 100],
    );
}

/// Bytes of write-ahead log since the beginning.
async fn written(client: &Client) -> f64 {
    let question = "SELECT (pg_current_wal_insert_lsn() - '0/0')::float8";
    client
        .query_one(question, &[])
        .await
        .expect("an answer")
        .get(0)
}
