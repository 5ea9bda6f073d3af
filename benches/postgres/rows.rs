//! The same beside many rows: what was done long ago, and what is not done yet.

use std::time::{Duration, Instant};

use longrunning::{
    NewOperation, OperationName, Operations, PostgresOptions, QueueName, WorkerId,
    proto::google::longrunning::ListOperationsRequest,
};
use tokio::task::JoinSet;

use crate::{
    MINUTE, begun,
    database::{Database, SCHEMA},
    end, jobs, middle_and_late, server,
};

const OLD: usize = 2_000;
const LIVE: usize = 100_000;
const TIMES: usize = 1_000;

pub(crate) async fn beside_many(database: &Database, options: &PostgresOptions, rows: usize) {
    // The same size of the view, so that what is older is read from the database.
    let options = PostgresOptions {
        view_limit: Some(OLD / 2),
        ..options.clone()
    };
    let small = server(&options).await;
    let mut old = Vec::new();
    for _ in 0..OLD {
        let (name, token) = begun(&small).await;
        end(small.clone(), name.clone(), token).await;
        old.push(name);
    }
    println!("with few rows:");
    measure(database, &options, &old).await;
    // Older than all others, so that nobody reads what they hold.
    let began = Instant::now();
    let fill = format!(
        "INSERT INTO {SCHEMA}.operations (number, name, parent, revision, is_done, expires, record)
         SELECT number, 'operations/' || gen_random_uuid(), '', 2, true, 9000000000000000 + number, record
         FROM generate_series(1, {rows}) AS number,
           (SELECT record FROM {SCHEMA}.operations WHERE is_done LIMIT 1) AS done"
    );
    database.run(&fill).await;
    database.run(&format!("ANALYZE {SCHEMA}.operations")).await;
    println!("{rows} done ones put in within {:.0?}", began.elapsed());
    let began = Instant::now();
    let queue = QueueName::parse("live").expect("a proper name");
    for _ in 0..LIVE / 1000 {
        jobs::make(&small, &queue, 1000).await;
    }
    println!("{LIVE} queued ones made within {:.0?}", began.elapsed());
    println!("with {rows} done ones, and {LIVE} that are not:");
    measure(database, &options, &old).await;
    println!("  {}", database.bloat().await);
}

async fn measure(database: &Database, options: &PostgresOptions, old: &[OperationName]) {
    let began = Instant::now();
    let operations = server(options).await;
    println!("  start of a server: {:.0?}", began.elapsed());
    let mut times = Vec::with_capacity(TIMES);
    for at in 0..TIMES {
        let began = Instant::now();
        let found = operations.look(&old[at % (OLD / 4)]).await;
        times.push(began.elapsed());
        assert!(found.expect("it is there").is_done());
    }
    tell("Get of an older one", times);
    let everything = ListOperationsRequest {
        filter: "done = true".to_owned(),
        page_size: 100,
        ..Default::default()
    };
    let first = pages(&operations, &everything, 1).await;
    let later = pages(&operations, &everything, 12).await.split_off(11);
    println!("  page: {:.1?}, of older ones {:.1?}", first[0], later[0]);
    claims(&operations).await;
    jobs::rounds(database, &[operations], 1024, 1).await;
}

/// How long each of so many pages takes.
async fn pages(
    operations: &Operations,
    request: &ListOperationsRequest,
    count: usize,
) -> Vec<Duration> {
    let (mut request, mut times) = (request.clone(), Vec::new());
    for _ in 0..count {
        let began = Instant::now();
        let page = operations.list(&request).await.expect("a page");
        times.push(began.elapsed());
        request.page_token = page.next_page_token;
    }
    times
}

async fn claims(operations: &Operations) {
    let queue = QueueName::parse("claimed").expect("a proper name");
    let mut made = JoinSet::new();
    for _ in 0..TIMES {
        let operations = operations.clone();
        made.spawn(async move {
            let new = NewOperation::queued("claimed");
            operations.create(new).await.expect("it is kept");
        });
    }
    made.join_all().await;
    let mut times = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        let began = Instant::now();
        let worker = WorkerId::new("bench");
        let lease = operations.lease_batch(std::slice::from_ref(&queue), &worker, 1, MINUTE);
        let lease = lease.await.expect("there is one").remove(0);
        times.push(began.elapsed());
        let token = lease.lease().expect("it is ours").token;
        end(operations.clone(), lease.owned_name(), token).await;
    }
    tell("claim", times);
}

fn tell(what: &str, times: Vec<Duration>) {
    let (middle, late) = middle_and_late(times);
    println!("  {what}: p50 {middle:.1?}, p99 {late:.1?}");
}
