//! Pages of filtered lists among 1 M operations of which 1 % are running: time
//! per page, beside an unfiltered one, and what reads notice of it. Run with `cargo bench --bench filter`.

#![expect(clippy::disallowed_methods, reason = "a bench owns its tasks")]

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use longrunning::{
    Any, Limits, NewOperation, Operations, proto::google::longrunning::ListOperationsRequest,
};

const OPERATION_COUNT: usize = 1_000_000;

/// Operations that are done, but for every hundredth; every hundredth has the
/// label `batch=nightly`, each `user` has a thousand, and each its own `order`.
async fn populated_operations() -> Operations {
    let limits = Limits {
        max_operations: 2 * OPERATION_COUNT,
        max_total_bytes: usize::MAX,
        ..Limits::default()
    };
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
            .expect("there is room")
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
            .expect("the request is good");
        prost_types::Timestamp::from(page.operations[0].create_time()).to_string()
    });
    let mut group = criterion.benchmark_group("page of 100 of 1 M");
    for (name, filter) in [
        ("no filter", String::new()),
        ("done = false", "done = false".into()),
        ("state = RUNNING", "state = RUNNING".into()),
        ("a label of 1 %", "labels.batch = nightly".into()),
        ("a label of 0.1 %", "labels.user = user-7".into()),
        ("a label of one", "labels.order = 4711".into()),
        (
            "done = false AND a label of 1 %, none in common",
            "done = false AND labels.batch = nightly".into(),
        ),
        (
            "done = false AND a label of 0.1 %",
            "done = false AND labels.user = user-100".into(),
        ),
        ("a name", "name = operations/export-3".into()),
        (
            "names with a prefix, 1111 of them",
            "name = \"operations/export-77*\"".into(),
        ),
        (
            "newer than the newest but one",
            format!("create_time >= {newest_create_time}"),
        ),
        ("metadata, all match", "metadata.attempt = 1".into()),
        ("metadata, 1 % match", "metadata.state = RUNNING".into()),
        ("metadata, none matches", "metadata.attempt = 7".into()),
        ("name, none matches", "name = *x".into()),
        ("a word, none matches", "nowhere".into()),
    ] {
        let mut token = String::new();
        let (mut pages, mut operation_count) = (0, 0);
        group.bench_function(name, |bench| {
            bench.iter(|| {
                // From page to page, so that the records are not the ones just seen.
                let request = ListOperationsRequest {
                    filter: filter.clone(),
                    page_token: std::mem::take(&mut token),
                    ..Default::default()
                };
                let page = runtime.block_on(operations.list(&request));
                let page = page.expect("the request is good");
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

/// How long a read waits for its turn on a thread on which lists with a filter
/// look at everything, again and again.
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
                page_token = page.expect("the request is good").next_page_token;
                tokio::task::yield_now().await;
            }
        })
    });
    let name = longrunning::OperationName::parse("operations/export-3").expect("it is a name");
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
    let load = filter.unwrap_or("nothing");
    println!(
        "a turn and a get, beside {load}: p50 {:?}, p99 {:?}, p99.9 {:?}, longest {:?}",
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
