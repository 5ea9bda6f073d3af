//! What several servers of one PostgreSQL do: jobs per second, what the database
//! writes for one, claims beside `SKIP LOCKED`, renewals, how late other servers are,
//! and all of it again beside many rows. `LONGRUNNING_BENCH_POSTGRES` is the database,
//! in which the schema `longrunning_bench` is made and dropped;
//! `LONGRUNNING_BENCH_ROWS` is how many done operations are put into it (default
//! 1 000 000).
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

mod database;
mod jobs;
mod late;
mod leases;
mod rows;

use std::{env, time::Duration};

use longrunning::{
    Any, LeaseToken, NewOperation, OperationName, Operations, PostgresJournal, PostgresOptions,
};

use self::database::{Database, SCHEMA};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() {
    let Ok(url) = env::var("LONGRUNNING_BENCH_POSTGRES") else {
        println!("SKIPPED: LONGRUNNING_BENCH_POSTGRES names no database");
        return;
    };
    let rows = env::var("LONGRUNNING_BENCH_ROWS").map_or(1_000_000, |rows| {
        rows.parse().expect("LONGRUNNING_BENCH_ROWS is a number")
    });
    let database = Database::begin(&url).await;
    let mut options = PostgresOptions::new(&url);
    options.schema = SCHEMA.to_owned();
    options.view_limit = Some(100_000);
    let servers = [
        server(&options).await,
        server(&options).await,
        server(&options).await,
    ];
    // One that nobody tells anything.
    let deaf = PostgresOptions {
        listen_url: Some("postgres://127.0.0.1:1/nowhere".to_owned()),
        ..options.clone()
    };
    let deaf = server(&deaf).await;
    late::wakes("hints", &servers[0], &servers[1], 2000).await;
    late::wakes("polling alone", &servers[0], &deaf, 200).await;
    drop(deaf);
    jobs::all(&database, &servers).await;
    late::under_load(&servers).await;
    jobs::claims(&database, &url, &servers).await;
    leases::renewals(&database, &servers).await;
    rows::beside_many(&database, &options, rows).await;
    drop(servers);
    database.end().await;
}

async fn server(options: &PostgresOptions) -> Operations {
    let journal = PostgresJournal::open(options).await.expect("the database");
    let builder = Operations::builder().journal(journal);
    builder.start().await.expect("what is kept can be read")
}

/// Makes an operation that its maker executes.
async fn begun(operations: &Operations) -> (OperationName, LeaseToken) {
    let new = NewOperation::self_executed("bench");
    let made = operations.create(new).await.expect("it is kept").operation;
    (
        made.owned_name(),
        made.lease().expect("it has a holder").token,
    )
}

async fn end(operations: Operations, name: OperationName, token: LeaseToken) {
    operations
        .succeed(&name, token, empty())
        .await
        .expect("it is ours");
}

fn empty() -> Any {
    Any {
        type_url: "type.googleapis.com/google.protobuf.Empty".to_owned(),
        value: Vec::new(),
    }
}

/// The median and the 99th of a hundred.
fn middle_and_late(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}
