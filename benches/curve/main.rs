//! How cost grows: a get, a page, a change and memory with 1 k to 10 M
//! operations in the store, in time of the processor, which Linux tells. Prints a
//! table; with a path, draws it too: `cargo bench --bench curve -- docs/cost.svg`.
//! Gates nothing.

mod picture;

use std::{alloc::System, fs, hint::black_box, time::Duration};

use longrunning::{
    Any, LeaseToken, Limits, NewOperation, OperationName, Operations, Progress, Report,
    proto::google::longrunning::ListOperationsRequest,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use picture::{Panel, Series};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const SIZES: [usize; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];

/// What the process takes for each operation at most, while a map of them grows.
const ROOM: usize = 1_000;

/// So many operations are got and changed at most: more than a cache holds.
const SAMPLE: usize = 1_000_000;

/// A figure is the median of so many stretches.
const STRETCHES: usize = 5;

/// What was measured of one size; times are seconds of a processor.
struct Cost {
    operations: usize,
    get: f64,
    page: f64,
    report: f64,
    encoded: usize,
    bytes: usize,
}

/// An operation that is looked at, with its lease if it is running.
struct Known {
    name: OperationName,
    lease: Option<LeaseToken>,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    println!("| operations | get | page of 100 | report | encoded | held, in all |");
    println!("| --: | --: | --: | --: | --: | --: |");
    let mut costs = Vec::new();
    for operations in SIZES {
        let available = available();
        if operations * ROOM <= available {
            let cost = runtime.block_on(measure(operations));
            println!("{}", row(&cost));
            costs.push(cost);
        } else {
            println!(
                "\nLEFT OUT: {} operations may take {} MB, and {} MB are free",
                picture::count(operations),
                operations * ROOM / 1_000_000,
                available / 1_000_000
            );
        }
    }
    // cargo adds an option of its own.
    if let Some(path) = std::env::args().skip(1).find(|arg| !arg.starts_with('-')) {
        fs::write(&path, draw(&costs)).expect("the picture can be written");
        println!("\ndrawn to {path}");
    }
}

/// The bytes that can be had without swapping.
fn available() -> usize {
    let told = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = told.lines().find(|line| line.starts_with("MemAvailable:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    kibibytes.expect("the curve is measured on Linux") * 1024
}

fn row(cost: &Cost) -> String {
    format!(
        "| {} | {:.0} ns | {:.1} µs | {:.2} µs | {} B | {} B |",
        picture::count(cost.operations),
        cost.get * 1e9,
        cost.page * 1e6,
        cost.report * 1e6,
        cost.encoded,
        cost.bytes
    )
}

fn draw(costs: &[Cost]) -> String {
    let series = |name, of: fn(&Cost) -> f64| Series {
        name,
        points: costs
            .iter()
            .map(|cost| (picture::float(cost.operations), of(cost)))
            .collect(),
    };
    picture::draw(&[
        Panel {
            title: "time of one",
            label: |seconds| match seconds {
                _ if seconds < 0.9e-6 => format!("{:.0} ns", seconds * 1e9),
                _ => format!("{:.0} µs", seconds * 1e6),
            },
            series: vec![
                series("page of 100", |cost| cost.page),
                series("report", |cost| cost.report),
                series("get", |cost| cost.get),
            ],
        },
        Panel {
            title: "bytes of an operation",
            label: |bytes| format!("{bytes:.0} B"),
            series: vec![
                series("held, in all", |cost| picture::float(cost.bytes)),
                series("encoded", |cost| picture::float(cost.encoded)),
            ],
        },
    ])
}

// === what is measured ===

async fn measure(count: usize) -> Cost {
    let limits = Limits {
        max_operations: usize::MAX,
        max_bytes: usize::MAX,
        ..Limits::default()
    };
    let operations = Operations::builder().limits(limits).start().await;
    let operations = operations.expect("defaults are in range");
    let mut known = Vec::with_capacity(count.min(SAMPLE));
    let region = Region::new(ALLOCATOR);
    let encoded = fill(&operations, count, &mut known).await;
    let change = region.change();
    let ours: usize = known.iter().map(|known| known.name.as_str().len()).sum();
    let held = change.bytes_allocated - change.bytes_deallocated - ours;
    let cost = Cost {
        operations: count,
        get: get(&operations, &known),
        page: page(&operations).await,
        report: report(&operations, &known).await,
        encoded: encoded / count,
        bytes: held / count,
    };
    // What is freed later would count against the next size.
    operations.shutdown(Duration::ZERO).await;
    cost
}

/// Creates so many, of which every seventh goes on running; returns their bytes.
async fn fill(operations: &Operations, count: usize, known: &mut Vec<Known>) -> usize {
    let mut encoded = 0;
    for number in 0..count {
        let new = NewOperation::self_executed("bench").lease_duration(Duration::from_secs(86_400));
        let created = operations.create(new).await;
        let mut operation = created.expect("there is room").operation;
        let name = operation.owned_name();
        let mut lease = operation.lease().map(|lease| lease.token);
        if number % 7 != 0
            && let Some(token) = lease.take()
        {
            let done = operations.succeed(&name, token, Any::default()).await;
            operation = done.expect("the lease is held");
        }
        encoded += operation.bytes().len();
        if number % count.div_ceil(SAMPLE) == 0 {
            known.push(Known { name, lease });
        }
    }
    encoded
}

fn get(operations: &Operations, known: &[Known]) -> f64 {
    const GETS: u32 = 200_000;
    let mut turns = scattered(known);
    median(|| {
        let begun = spent();
        for known in turns.by_ref().take(GETS as usize) {
            black_box(operations.get(&known.name).expect("it exists"));
        }
        (spent() - begun) / f64::from(GETS)
    })
}

/// From page to page, so that the operations are not the ones just seen.
async fn page(operations: &Operations) -> f64 {
    const PAGES: u32 = 2_000;
    let mut token = String::new();
    let mut stretches = Vec::new();
    for _ in 0..STRETCHES {
        let begun = spent();
        for _ in 0..PAGES {
            let request = ListOperationsRequest {
                name: "operations".to_owned(),
                page_size: 100,
                page_token: token,
                ..Default::default()
            };
            let page = operations.list(&request).await;
            token = page.expect("the request is good").next_page_token;
        }
        stretches.push((spent() - begun) / f64::from(PAGES));
    }
    middle(stretches)
}

async fn report(operations: &Operations, known: &[Known]) -> f64 {
    const REPORTS: u32 = 20_000;
    let mut running = scattered(known).filter_map(|known| Some((&known.name, known.lease?)));
    let mut stretches = Vec::new();
    let mut done_units = 0;
    for _ in 0..STRETCHES {
        let begun = spent();
        for (name, token) in running.by_ref().take(REPORTS as usize) {
            // Never the same twice, because that would be no change.
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
        stretches.push((spent() - begun) / f64::from(REPORTS));
    }
    middle(stretches)
}

/// What this thread has had of its processor, in seconds: others on the machine
/// hardly change it, as they do the time on the wall. Linux tells.
fn spent() -> f64 {
    // The kernel counts when a thread gives way, or at its next tick.
    std::thread::yield_now();
    let told = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = told.split(' ').next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.expect("the curve is measured on Linux")).as_secs_f64()
}

/// All of them again and again, none near the one before.
fn scattered(known: &[Known]) -> impl Iterator<Item = &Known> {
    // A prime, and so in common with no number of operations.
    (0..).map(|turn: usize| &known[turn.wrapping_mul(7_919_777) % known.len()])
}

fn median(stretch: impl FnMut() -> f64) -> f64 {
    middle(std::iter::repeat_with(stretch).take(STRETCHES).collect())
}

fn middle(mut stretches: Vec<f64>) -> f64 {
    stretches.sort_by(f64::total_cmp);
    stretches[stretches.len() / 2]
}
