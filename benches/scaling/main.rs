//! Measures how the CPU time of a get, a page and a report and the memory per operation
//! scale from 1 k to 10 M operations. Prints a table; with a path it also draws a chart:
//! `cargo bench --bench scaling -- docs/cost.svg`. Requires Linux.

mod chart;

use std::{alloc::System, fs, hint::black_box, time::Duration};

use longrunning::{
    Any, LeaseToken, Limits, NewOperation, OperationName, Operations, Progress, Report,
    proto::google::longrunning::ListOperationsRequest,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use chart::{Panel, Series};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const OPERATION_COUNTS: [usize; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];

/// The peak memory per operation, while a hash map grows.
const MAX_BYTES_PER_OPERATION: usize = 1_000;

/// The maximum number of operations that are read and changed: more than fit into the CPU
/// cache.
const MAX_SAMPLED_OPERATIONS: usize = 1_000_000;

/// Each result is the median of this many rounds.
const ROUNDS: usize = 5;

/// The result for one number of operations. Times are CPU time.
struct MeasuredCost {
    operation_count: usize,
    get_secs: f64,
    page_secs: f64,
    report_secs: f64,
    encoded_bytes: usize,
    heap_bytes: usize,
}

/// An operation that is read, with its lease if it is running.
struct SampledOperation {
    name: OperationName,
    lease_token: Option<LeaseToken>,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    println!("| operations | get | page of 100 | report | encoded | total |");
    println!("| --: | --: | --: | --: | --: | --: |");
    let mut costs = Vec::new();
    for operations in OPERATION_COUNTS {
        let available_bytes = available_memory_bytes();
        if operations * MAX_BYTES_PER_OPERATION <= available_bytes {
            let cost = runtime.block_on(measure_cost(operations));
            println!("{}", table_row(&cost));
            costs.push(cost);
        } else {
            println!(
                "\nSKIPPED: {} operations may need {} MB, and {} MB are available",
                chart::format_count(operations),
                operations * MAX_BYTES_PER_OPERATION / 1_000_000,
                available_bytes / 1_000_000
            );
        }
    }
    // cargo adds the option --bench.
    if let Some(path) = std::env::args().skip(1).find(|arg| !arg.starts_with('-')) {
        fs::write(&path, draw_chart(&costs)).expect("the chart can be written");
        println!("\nchart written to {path}");
    }
}

/// Returns the memory that is available without swapping.
fn available_memory_bytes() -> usize {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo
        .lines()
        .find(|line| line.starts_with("MemAvailable:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    kibibytes.expect("this benchmark requires Linux") * 1024
}

fn table_row(cost: &MeasuredCost) -> String {
    format!(
        "| {} | {:.0} ns | {:.1} µs | {:.2} µs | {} B | {} B |",
        chart::format_count(cost.operation_count),
        cost.get_secs * 1e9,
        cost.page_secs * 1e6,
        cost.report_secs * 1e6,
        cost.encoded_bytes,
        cost.heap_bytes
    )
}

fn draw_chart(costs: &[MeasuredCost]) -> String {
    let series = |name, value: fn(&MeasuredCost) -> f64| Series {
        name,
        points: costs
            .iter()
            .map(|cost| (chart::to_f64(cost.operation_count), value(cost)))
            .collect(),
    };
    chart::draw_svg(&[
        Panel {
            title: "CPU time",
            format_value: |seconds| match seconds {
                _ if seconds < 0.9e-6 => format!("{:.0} ns", seconds * 1e9),
                _ => format!("{:.0} µs", seconds * 1e6),
            },
            series: vec![
                series("page of 100", |cost| cost.page_secs),
                series("report", |cost| cost.report_secs),
                series("get", |cost| cost.get_secs),
            ],
        },
        Panel {
            title: "bytes per operation",
            format_value: |bytes| format!("{bytes:.0} B"),
            series: vec![
                series("total", |cost| chart::to_f64(cost.heap_bytes)),
                series("encoded", |cost| chart::to_f64(cost.encoded_bytes)),
            ],
        },
    ])
}

// === Measurements ===

async fn measure_cost(count: usize) -> MeasuredCost {
    let limits = Limits::default()
        .with_max_operations(usize::MAX)
        .with_max_total_bytes(usize::MAX);
    let operations = Operations::builder().limits(limits).start().await;
    let operations = operations.expect("defaults are in range");
    let mut sampled = Vec::with_capacity(count.min(MAX_SAMPLED_OPERATIONS));
    let region = Region::new(ALLOCATOR);
    let encoded = populate(&operations, count, &mut sampled).await;
    let change = region.change();
    let sampled_name_bytes: usize = sampled
        .iter()
        .map(|sample| sample.name.as_str().len())
        .sum();
    let heap_bytes = change.bytes_allocated - change.bytes_deallocated - sampled_name_bytes;
    let cost = MeasuredCost {
        operation_count: count,
        get_secs: measure_get(&operations, &sampled),
        page_secs: measure_page(&operations).await,
        report_secs: measure_report(&operations, &sampled).await,
        encoded_bytes: encoded / count,
        heap_bytes: heap_bytes / count,
    };
    // Memory that is freed later would distort the next measurement.
    operations.shutdown(Duration::ZERO).await;
    cost
}

/// Creates operations, every seventh still running; returns their encoded bytes.
async fn populate(
    operations: &Operations,
    count: usize,
    sampled: &mut Vec<SampledOperation>,
) -> usize {
    let mut encoded = 0;
    for number in 0..count {
        let new = NewOperation::self_executed("bench").lease_duration(Duration::from_secs(86_400));
        let created = operations.create(new).await;
        let mut operation = created.expect("the store accepts it").operation;
        let name = operation.name_owned();
        let mut lease_token = operation.lease().map(|lease| lease.token);
        if number % 7 != 0
            && let Some(token) = lease_token.take()
        {
            let done = operations.succeed(&name, token, Any::default()).await;
            operation = done.expect("the lease is held");
        }
        encoded += operation.bytes().len();
        if number % count.div_ceil(MAX_SAMPLED_OPERATIONS) == 0 {
            sampled.push(SampledOperation { name, lease_token });
        }
    }
    encoded
}

fn measure_get(operations: &Operations, sampled: &[SampledOperation]) -> f64 {
    const GETS_PER_ROUND: u32 = 200_000;
    let mut samples = in_scattered_order(sampled);
    median_of_rounds(|| {
        let started = thread_cpu_secs();
        for sample in samples.by_ref().take(GETS_PER_ROUND as usize) {
            black_box(operations.get_cached(&sample.name).expect("it exists"));
        }
        (thread_cpu_secs() - started) / f64::from(GETS_PER_ROUND)
    })
}

/// Follows the page tokens, so that each page reads operations that are not in the cache.
async fn measure_page(operations: &Operations) -> f64 {
    const PAGES_PER_ROUND: u32 = 2_000;
    let mut token = String::new();
    let mut round_secs = Vec::new();
    for _ in 0..ROUNDS {
        let started = thread_cpu_secs();
        for _ in 0..PAGES_PER_ROUND {
            let request = ListOperationsRequest {
                name: "operations".to_owned(),
                page_size: 100,
                page_token: token,
                ..Default::default()
            };
            let page = operations.list(&request).await;
            token = page.expect("the request is valid").next_page_token;
        }
        round_secs.push((thread_cpu_secs() - started) / f64::from(PAGES_PER_ROUND));
    }
    median(round_secs)
}

async fn measure_report(operations: &Operations, sampled: &[SampledOperation]) -> f64 {
    const REPORTS_PER_ROUND: u32 = 20_000;
    let mut running =
        in_scattered_order(sampled).filter_map(|sample| Some((&sample.name, sample.lease_token?)));
    let mut round_secs = Vec::new();
    let mut done_units = 0;
    for _ in 0..ROUNDS {
        let started = thread_cpu_secs();
        for (name, token) in running.by_ref().take(REPORTS_PER_ROUND as usize) {
            // Each report differs, because an equal one changes nothing.
            done_units += 1;
            let progress = Progress {
                done_units,
                ..Default::default()
            };
            let report = Report {
                progress: Some(progress),
                ..Default::default()
            };
            let reported = operations.report(name, token, report).await;
            reported.expect("the lease is held");
        }
        round_secs.push((thread_cpu_secs() - started) / f64::from(REPORTS_PER_ROUND));
    }
    median(round_secs)
}

/// Returns the CPU time of this thread in seconds. Other processes affect it less than
/// the wall time.
fn thread_cpu_secs() -> f64 {
    // The kernel updates the counter when the thread yields or at the next tick.
    std::thread::yield_now();
    let schedstat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = schedstat
        .split(' ')
        .next()
        .and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.expect("this benchmark requires Linux")).as_secs_f64()
}

/// Cycles through all operations; neighbours in memory are never consecutive.
fn in_scattered_order(sampled: &[SampledOperation]) -> impl Iterator<Item = &SampledOperation> {
    // A prime is coprime with every number of operations.
    (0..).map(|index: usize| &sampled[index.wrapping_mul(7_919_777) % sampled.len()])
}

fn median_of_rounds(measure_round: impl FnMut() -> f64) -> f64 {
    median(std::iter::repeat_with(measure_round).take(ROUNDS).collect())
}

fn median(mut round_secs: Vec<f64>) -> f64 {
    round_secs.sort_by(f64::total_cmp);
    round_secs[round_secs.len() / 2]
}
