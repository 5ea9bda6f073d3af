//! Measures the store without a transport: get, create, commit, list pages, waits. Run with
//! `cargo bench --bench store`.

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use longrunning::{
    Any, Builder, ExecutionOptions, Limits, NewOperation, OperationName, Operations, Progress,
    QueueName, Report, SqliteStorage, WorkerId, proto::google::longrunning::ListOperationsRequest,
};
use tokio::runtime::Runtime;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts")
}

fn builder() -> Builder {
    let limits = Limits::default()
        .with_max_operations(20_000_000)
        .with_max_total_bytes(usize::MAX)
        .with_max_queue_length(20_000_000);
    let day = Duration::from_secs(86_400);
    Operations::builder()
        .limits(limits)
        .default_options(ExecutionOptions::default().with_lease_duration(day))
}

async fn start_operations() -> Operations {
    let operations = builder().start().await;
    operations.expect("defaults are in range")
}

/// Creates done operations, every hundredth still running.
async fn populated_operations(count: usize) -> (Operations, Vec<OperationName>) {
    let operations = start_operations().await;
    let mut names = Vec::with_capacity(count);
    for number in 0..count {
        let created = operations
            .create(NewOperation::self_executed("bench"))
            .await
            .expect("the store accepts it")
            .operation;
        let name = created.name_owned();
        if number % 100 != 0 {
            let token = created.lease().expect("it is self-executed").token;
            operations
                .succeed(&name, token, Any::default())
                .await
                .expect("the lease is held");
        }
        names.push(name);
    }
    (operations, names)
}

fn bench_get(criterion: &mut Criterion) {
    let runtime = runtime();
    let (operations, names) = runtime.block_on(populated_operations(1_000_000));
    let mut index = 0;
    criterion.bench_function("get one of 1 M at random", |bench| {
        bench.iter(|| {
            index = (index + 7_919_777) % names.len();
            black_box(operations.get_cached(&names[index]).expect("it exists"))
        });
    });
    for size in [100, 1000] {
        let request = ListOperationsRequest {
            page_size: size,
            ..Default::default()
        };
        criterion.bench_function(&format!("page of {size}, of 1 M"), |bench| {
            bench.iter(|| {
                let page = runtime.block_on(operations.list(&request));
                black_box(page.expect("the request is valid"))
            });
        });
    }
}

fn bench_pages(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = criterion.benchmark_group("page of 100 of one parent");
    for count in [10_000, 100_000, 1_000_000] {
        let (operations, _) = runtime.block_on(populated_operations(count));
        let mut token = String::new();
        group.bench_function(BenchmarkId::from_parameter(count), |bench| {
            bench.iter(|| {
                // Follows the page tokens, so that each page reads records that are not in the cache.
                let request = ListOperationsRequest {
                    name: "operations".to_owned(),
                    page_token: std::mem::take(&mut token),
                    ..Default::default()
                };
                let page = runtime.block_on(operations.list(&request));
                let page = page.expect("the request is valid");
                token.clone_from(&page.next_page_token);
                black_box(page)
            });
        });
    }
    group.finish();
}

/// Measures the sequential changes of one client for each storage backend.
fn bench_changes(criterion: &mut Criterion) {
    let (runtime, files) = (
        runtime(),
        tempfile::tempdir().expect("a temporary directory can be created"),
    );
    bench_changes_in("memory", &runtime, builder(), criterion);
    let storage =
        SqliteStorage::open(files.path().join("bench.db")).expect("a new file can be opened");
    bench_changes_in("SQLite", &runtime, builder().storage(storage), criterion);
}

fn bench_changes_in(storage: &str, runtime: &Runtime, builder: Builder, criterion: &mut Criterion) {
    let operations = runtime.block_on(builder.start());
    let operations = operations.expect("defaults are in range");
    let queue = QueueName::parse("bench").expect("the name is valid");
    let worker = WorkerId::new("bench");
    let mut group = criterion.benchmark_group(format!("changes, {storage}"));
    group.throughput(Throughput::Elements(1));
    group.bench_function("create", |bench| {
        bench.iter(|| runtime.block_on(operations.create(NewOperation::self_executed("bench"))));
    });
    group.bench_function("create, lease, finish", |bench| {
        bench.iter(|| {
            runtime.block_on(async {
                operations
                    .create(NewOperation::queued("bench"))
                    .await
                    .expect("the store accepts it");
                let leased = operations
                    .lease(&queue, &worker)
                    .await
                    .expect("the queue is not empty");
                let token = leased.lease().expect("it is leased").token;
                operations
                    .succeed(&leased.name_owned(), token, Any::default())
                    .await
                    .expect("the lease is held")
            })
        });
    });
    // A report encodes all metadata, so its cost depends on the size of the metadata.
    for size in [0, 1 << 10, 64 << 10] {
        let created = runtime
            .block_on(operations.create(NewOperation::self_executed("bench")))
            .expect("the store accepts it");
        let (name, token) = (
            created.operation.name_owned(),
            created
                .operation
                .lease()
                .expect("it is self-executed")
                .token,
        );
        let mut done_units = 0;
        // Each report differs, because an equal one changes nothing.
        let mut report = || {
            done_units += 1;
            Report {
                progress: Some(Progress {
                    done_units,
                    message: "x".repeat(size),
                    ..Default::default()
                }),
                ..Default::default()
            }
        };
        group.bench_function(
            BenchmarkId::new("report, message of bytes", size),
            |bench| {
                bench.iter_batched(
                    &mut report,
                    |report| {
                        let reported = operations.report(&name, token, report);
                        runtime.block_on(reported).expect("the lease is held")
                    },
                    BatchSize::SmallInput,
                );
            },
        );
    }
    group.finish();
    runtime.block_on(operations.close());
}

fn bench_waits(criterion: &mut Criterion) {
    let runtime = runtime();
    let operations = runtime.block_on(start_operations());
    let mut group = criterion.benchmark_group("finish wakes all waiters");
    for count in [1, 10_000] {
        group.bench_function(BenchmarkId::from_parameter(count), |bench| {
            bench.iter_custom(|rounds| {
                runtime.block_on(measure_wake_up(&operations, count, rounds))
            });
        });
    }
    group.finish();
}

/// Returns the total time from finish to the last wake-up over `rounds` rounds.
async fn measure_wake_up(operations: &Operations, waiters: usize, rounds: u64) -> Duration {
    let mut elapsed = Duration::ZERO;
    for _ in 0..rounds {
        let created = operations
            .create(NewOperation::self_executed("bench"))
            .await
            .expect("the store accepts it")
            .operation;
        let name = Arc::new(created.name_owned());
        let mut waiter_tasks = tokio::task::JoinSet::new();
        for _ in 0..waiters {
            let (operations, name) = (operations.clone(), name.clone());
            waiter_tasks
                .spawn(async move { operations.wait(&name, Duration::from_secs(60)).await });
        }
        while operations.waiter_count() < waiters {
            tokio::task::yield_now().await;
        }
        let started = tokio::time::Instant::now();
        let token = created.lease().expect("it is self-executed").token;
        operations
            .succeed(&name, token, Any::default())
            .await
            .expect("the lease is held");
        while let Some(result) = waiter_tasks.join_next().await {
            assert!(
                result
                    .expect("no waiter panics")
                    .expect("it exists")
                    .is_done()
            );
        }
        elapsed += started.elapsed();
    }
    elapsed
}

fn quick_config() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .measurement_time(Duration::from_secs(3))
}

criterion_group! { name = benches; config = quick_config(); targets = bench_get, bench_pages, bench_changes, bench_waits }
criterion_main!(benches);
