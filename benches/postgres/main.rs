//! Measures three servers on one PostgreSQL: job throughput and WAL per job, lease
//! acquisition compared with `SKIP LOCKED`, lease renewals, replication lag, and large tables.
//!
//! `LONGRUNNING_BENCH_POSTGRES` is the URL of the database, in which the schema
//! `longrunning_bench` is created and dropped. `LONGRUNNING_BENCH_ROWS` is the number of done
//! operations for the large tables (default 1 000 000).
//!
//! ```text
//! LONGRUNNING_BENCH_POSTGRES=postgres://… cargo bench --bench postgres
//! ```

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::cast_precision_loss,
    reason = "a benchmark reads the environment and the wall clock, and prints rounded numbers"
)]

mod database;
mod jobs;
mod large_tables;
mod leases;
mod replication_lag;

use std::{env, time::Duration};

use longrunning::{
    Any, LeaseToken, NewOperation, OperationName, Operations, PostgresConfig, PostgresStorage,
};

use self::database::{Database, SCHEMA};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() {
    let Ok(url) = env::var("LONGRUNNING_BENCH_POSTGRES") else {
        println!("SKIPPED: LONGRUNNING_BENCH_POSTGRES is not set");
        return;
    };
    let done_row_count = env::var("LONGRUNNING_BENCH_ROWS").map_or(1_000_000, |rows| {
        rows.parse().expect("LONGRUNNING_BENCH_ROWS is a number")
    });
    let database = Database::connect(&url).await;
    let mut options = PostgresConfig::new(&url);
    options.schema = SCHEMA.to_owned();
    options.cache_limit = Some(100_000);
    let servers = [
        start_server(&options).await,
        start_server(&options).await,
        start_server(&options).await,
    ];
    // Receives no notifications, because its LISTEN connection fails.
    let polling_options = options
        .clone()
        .with_notify_url("postgres://127.0.0.1:1/nowhere");
    let polling_server = start_server(&polling_options).await;
    replication_lag::bench_wake_up("LISTEN/NOTIFY", &servers[0], &servers[1], 2000).await;
    replication_lag::bench_wake_up("polling only", &servers[0], &polling_server, 200).await;
    drop(polling_server);
    jobs::bench_jobs(&database, &servers).await;
    replication_lag::bench_visibility_under_load(&servers).await;
    jobs::bench_lease_acquisition(&database, &url, &servers).await;
    leases::bench_renewals(&database, &servers).await;
    large_tables::bench_large_tables(&database, &options, done_row_count).await;
    drop(servers);
    database.cleanup().await;
}

async fn start_server(options: &PostgresConfig) -> Operations {
    let storage = PostgresStorage::open(options)
        .await
        .expect("the database is reachable");
    let builder = Operations::builder().storage(storage);
    builder.start().await.expect("the storage can be loaded")
}

/// Creates a self-executed operation.
async fn create_operation(operations: &Operations) -> (OperationName, LeaseToken) {
    let new = NewOperation::self_executed("bench");
    let created = operations
        .create(new)
        .await
        .expect("the store accepts it")
        .operation;
    (
        created.name_owned(),
        created.lease().expect("it is self-executed").token,
    )
}

async fn finish_operation(operations: Operations, name: OperationName, token: LeaseToken) {
    operations
        .succeed(&name, token, empty_any())
        .await
        .expect("the lease is held");
}

fn empty_any() -> Any {
    Any {
        type_url: "type.googleapis.com/google.protobuf.Empty".to_owned(),
        value: Vec::new(),
    }
}

/// Returns the median and the 99th percentile.
fn median_and_p99(mut latencies: Vec<Duration>) -> (Duration, Duration) {
    latencies.sort();
    (
        latencies[latencies.len() / 2],
        latencies[latencies.len() * 99 / 100],
    )
}
