//! Measures a server on tables with many done and many queued operations.

use std::time::{Duration, Instant};

use longrunning::{
    NewOperation, OperationName, Operations, PostgresConfig, QueueName, WorkerId,
    proto::google::longrunning::ListOperationsRequest,
};
use tokio::task::JoinSet;

use crate::{
    WAIT_TIMEOUT, create_operation,
    database::{Database, SCHEMA},
    finish_operation, jobs, median_and_p99, start_server,
};

const OLD_OPERATION_COUNT: usize = 2_000;
const QUEUED_OPERATION_COUNT: usize = 100_000;
const SAMPLE_COUNT: usize = 1_000;

pub(crate) async fn bench_large_tables(
    database: &Database,
    options: &PostgresConfig,
    done_row_count: usize,
) {
    // A small cache, so that older operations are read from the database.
    let options = options.clone().with_cache_limit(OLD_OPERATION_COUNT / 2);
    let small_cache_server = start_server(&options).await;
    let mut old_names = Vec::new();
    for _ in 0..OLD_OPERATION_COUNT {
        let (name, token) = create_operation(&small_cache_server).await;
        finish_operation(small_cache_server.clone(), name.clone(), token).await;
        old_names.push(name);
    }
    println!("with few rows:");
    measure_server(database, &options, &old_names).await;
    // Numbers below all others, so that list pages do not reach these rows.
    let started = Instant::now();
    let fill_sql = format!(
        "INSERT INTO {SCHEMA}.operations (number, name, parent, revision, is_done, expires_at_us, record)
         SELECT number, 'operations/' || gen_random_uuid(), '', 2, true, 9000000000000000 + number, record
         FROM generate_series(1, {done_row_count}) AS number,
           (SELECT record FROM {SCHEMA}.operations WHERE is_done LIMIT 1) AS done"
    );
    database.execute(&fill_sql).await;
    database
        .execute(&format!("ANALYZE {SCHEMA}.operations"))
        .await;
    println!(
        "{done_row_count} done operations inserted in {:.0?}",
        started.elapsed()
    );
    let started = Instant::now();
    let queue = QueueName::parse("live").expect("the name is valid");
    for _ in 0..QUEUED_OPERATION_COUNT / 1000 {
        jobs::create_queued(&small_cache_server, &queue, 1000).await;
    }
    println!(
        "{QUEUED_OPERATION_COUNT} queued operations created in {:.0?}",
        started.elapsed()
    );
    println!("with {done_row_count} done and {QUEUED_OPERATION_COUNT} queued operations:");
    measure_server(database, &options, &old_names).await;
    println!("  {}", database.describe_bloat().await);
}

async fn measure_server(
    database: &Database,
    options: &PostgresConfig,
    old_names: &[OperationName],
) {
    let started = Instant::now();
    let operations = start_server(options).await;
    println!("  server start: {:.0?}", started.elapsed());
    let mut latencies = Vec::with_capacity(SAMPLE_COUNT);
    for index in 0..SAMPLE_COUNT {
        let started = Instant::now();
        let found = operations
            .get(&old_names[index % (OLD_OPERATION_COUNT / 4)])
            .await;
        latencies.push(started.elapsed());
        assert!(found.expect("it exists").is_done());
    }
    print_percentiles("get of an evicted operation", latencies);
    let done_request = ListOperationsRequest {
        filter: "done = true".to_owned(),
        page_size: 100,
        ..Default::default()
    };
    let first_page = page_latencies(&operations, &done_request, 1).await;
    let later_pages = page_latencies(&operations, &done_request, 12)
        .await
        .split_off(11);
    println!(
        "  page: {:.1?}, of evicted operations {:.1?}",
        first_page[0], later_pages[0]
    );
    measure_lease_acquisition(&operations).await;
    jobs::run_jobs(database, &[operations], 1024, 1).await;
}

/// Returns the latencies of `count` successive pages.
async fn page_latencies(
    operations: &Operations,
    request: &ListOperationsRequest,
    count: usize,
) -> Vec<Duration> {
    let (mut request, mut latencies) = (request.clone(), Vec::new());
    for _ in 0..count {
        let started = Instant::now();
        let page = operations
            .list(&request)
            .await
            .expect("the request is valid");
        latencies.push(started.elapsed());
        request.page_token = page.next_page_token;
    }
    latencies
}

async fn measure_lease_acquisition(operations: &Operations) {
    let queue = QueueName::parse("leased").expect("the name is valid");
    let mut creates = JoinSet::new();
    for _ in 0..SAMPLE_COUNT {
        let operations = operations.clone();
        creates.spawn(async move {
            let new = NewOperation::queued("leased");
            operations.create(new).await.expect("the store accepts it");
        });
    }
    creates.join_all().await;
    let mut latencies = Vec::with_capacity(SAMPLE_COUNT);
    for _ in 0..SAMPLE_COUNT {
        let started = Instant::now();
        let worker = WorkerId::new("bench");
        let lease = operations.lease_batch(std::slice::from_ref(&queue), &worker, 1, WAIT_TIMEOUT);
        let lease = lease.await.expect("the queue is not empty").remove(0);
        latencies.push(started.elapsed());
        let token = lease.lease().expect("it is leased").token;
        finish_operation(operations.clone(), lease.name_owned(), token).await;
    }
    print_percentiles("lease", latencies);
}

fn print_percentiles(name: &str, latencies: Vec<Duration>) {
    let (median, p99) = median_and_p99(latencies);
    println!("  {name}: p50 {median:.1?}, p99 {p99:.1?}");
}
