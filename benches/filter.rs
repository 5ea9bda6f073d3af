//! Measures filtered lists over 1 M operations of which 1 % are running: the time per page,
//! and the latency of reads on the same thread. Run with `cargo bench --bench filter`.

#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark spawns its own tasks"
)]

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use longrunning::{
    Any, Limits, NewOperation, Operations, proto::google::longrunning::ListOperationsRequest,
};

const OPERATION_COUNT: usize = 1_000_000;

/// Creates done operations, every hundredth still running. 1 % have the label
/// `batch=nightly`, each value of `user` is on 1000 operations, and each value of `order` on
/// one.
async fn populated_operations() -> Operations {
    let limits = Limits::default()
        .with_max_operations(2 * OPERATION_COUNT)
        .with_max_total_bytes(usize::MAX);
    let operations = Operations::builder().limits(limits).start().await;
    let operations = operations.expect("defaults are in range");
    for number in 0..OPERATION_COUNT {
        let mut new = NewOperation::self_executed("bench")
            .label("user", &format!("user-{}", number % 1000))
            .label("order", &format!("{number}"));
        if number % 100 == 7 {
            new = new.label("batch", "nightly");
        }
        if number % 10 == 3 {
            new = new.id(&format!("export-{number}"));
        }
        let created = operations
            .create(new)
            .await
            .expect("the store accepts it")
            .operation;
        if number % 100 != 0 {
            let token = created.lease().expect("it is self-executed").token;
            let name = created.name_owned();
            let done = operations.succeed(&name, token, Any::default()).await;
            done.expect("the lease is held");
        }
    }
    operations
}

fn bench_filters(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    let operations = runtime.block_on(populated_operations());
    let newest_create_time = runtime.block_on(async {
        let request = ListOperationsRequest {
            page_size: 1,
            page_token: String::new(),
            ..Default::default()
        };
        let page = operations
            .list(&request)
            .await
            .expect("the request is valid");
        prost_types::Timestamp::from(page.operations[0].create_time()).to_string()
    });
    let mut group = criterion.benchmark_group("page of 100 of 1 M");
    for (name, filter) in [
        ("no filter", String::new()),
        ("done = false", "done = false".into()),
        ("state = RUNNING", "state = RUNNING".into()),
        ("label of 1 %", "labels.batch = nightly".into()),
        ("label of 0.1 %", "labels.user = user-7".into()),
        ("label of one operation", "labels.order = 4711".into()),
        (
            "done = false AND label of 1 %, no match",
            "done = false AND labels.batch = nightly".into(),
        ),
        (
            "done = false AND label of 0.1 %",
            "done = false AND labels.user = user-100".into(),
        ),
        ("name", "name = operations/export-3".into()),
        (
            "name prefix of 1111",
            "name = \"operations/export-77*\"".into(),
        ),
        (
            "create_time of the newest",
            format!("create_time >= {newest_create_time}"),
        ),
        ("metadata, all match", "metadata.attempt = 1".into()),
        ("metadata, 1 % match", "metadata.state = RUNNING".into()),
        ("metadata, no match", "metadata.attempt = 7".into()),
        ("name, no match", "name = *x".into()),
        ("bare word, no match", "nowhere".into()),
    ] {
        let mut token = String::new();
        let (mut pages, mut operation_count) = (0, 0);
        group.bench_function(name, |bench| {
            bench.iter(|| {
                // Follows the page tokens, so that each page reads records that are not in the cache.
                let request = ListOperationsRequest {
                    filter: filter.clone(),
                    page_token: std::mem::take(&mut token),
                    ..Default::default()
                };
                let page = runtime.block_on(operations.list(&request));
                let page = page.expect("the request is valid");
                token.clone_from(&page.next_page_token);
                pages += 1;
                operation_count += page.operations.len();
                black_box(page)
            });
        });
        println!("{name}: {operation_count} operations in {pages} pages");
    }
    group.finish();
    runtime.block_on(measure_read_latency(&operations, None));
    runtime.block_on(measure_read_latency(
        &operations,
        Some("metadata.attempt = 7"),
    ));
    runtime.block_on(measure_read_latency(&operations, Some("name = *x")));
}

/// Measures the latency of a read on a thread on which filtered lists scan all operations in
/// a loop.
async fn measure_read_latency(operations: &Operations, filter: Option<&str>) {
    const READ_COUNT: usize = 20_000;
    let lists = filter.map(|filter| {
        let (operations, filter) = (operations.clone(), filter.to_owned());
        tokio::spawn(async move {
            let mut page_token = String::new();
            loop {
                let request = ListOperationsRequest {
                    filter: filter.clone(),
                    page_token,
                    ..Default::default()
                };
                let page = operations.list(&request).await;
                page_token = page.expect("the request is valid").next_page_token;
                tokio::task::yield_now().await;
            }
        })
    });
    let name = longrunning::OperationName::parse("operations/export-3").expect("the name is valid");
    let mut latencies = Vec::with_capacity(READ_COUNT);
    for _ in 0..READ_COUNT {
        let started = tokio::time::Instant::now();
        tokio::task::yield_now().await;
        black_box(operations.get_cached(&name).expect("it exists"));
        latencies.push(started.elapsed());
    }
    if let Some(lists) = lists {
        lists.abort();
    }
    latencies.sort_unstable();
    let quantile = |per_mille: usize| latencies[READ_COUNT * per_mille / 1000];
    let load = filter.unwrap_or("no load");
    println!(
        "yield and get, with {load}: p50 {:?}, p99 {:?}, p99.9 {:?}, max {:?}",
        quantile(500),
        quantile(990),
        quantile(999),
        latencies[READ_COUNT - 1]
    );
}

fn quick_config() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .measurement_time(Duration::from_secs(2))
        .warm_up_time(Duration::from_millis(500))
}

criterion_group! { name = benches; config = quick_config(); targets = bench_filters }
criterion_main!(benches);
