//! The hot parts, each so many rounds in this process, to have their
//! instructions counted: `run` beside this file does that, and compares them with
//! `figures`. Nothing is timed here.

use std::{hint::black_box, process::ExitCode, time::Duration};

use bytes::{BufMut, Bytes};
use http_body_util::{BodyExt, Full};
use longrunning::{
    Any, GrpcMetrics, HttpOptions, Limits, NewOperation, Operation, OperationName, Operations,
    Progress, QueueName, Report, SqliteStorage, WorkerId, gateway, operations_server,
    proto::google::longrunning::{GetOperationRequest, ListOperationsRequest},
};
use prost::Message;
use tower::Service;

/// What there is to get and to list; every tenth of them is running.
const OPERATIONS: usize = 2_000;

/// The parts, with rounds enough for their own work to stand out of the noise of
/// what was prepared for them.
const PARTS: [(&str, usize); 10] = [
    ("get", 100_000),
    ("get-grpc", 10_000),
    ("get-http", 2_000),
    ("page", 4_000),
    ("page-running", 2_000),
    ("create", 5_000),
    ("create-lease-finish", 5_000),
    ("create-wait-finish", 5_000),
    ("report", 10_000),
    ("report-sqlite", 1_000),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let asked: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match asked[..] {
        ["parts"] => {
            for (part, rounds) in PARTS {
                println!("{part} {rounds}");
            }
            ExitCode::SUCCESS
        }
        [part, rounds] if let Ok(rounds) = rounds.parse() => count(part, rounds),
        _ => {
            eprintln!("benches/instructions/run counts the instructions of the hot parts");
            ExitCode::from(2)
        }
    }
}

fn count(part: &str, rounds: usize) -> ExitCode {
    // Time stands still, or the slower a machine is, the more would be done in it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime starts");
    runtime.block_on(async {
        match part {
            "get" => get(rounds).await,
            "get-grpc" => get_grpc(rounds).await,
            "get-http" => get_http(rounds).await,
            "page" => page(rounds, "").await,
            "page-running" => page(rounds, "state = RUNNING").await,
            "create" => create(rounds).await,
            "create-lease-finish" => create_lease_finish(rounds).await,
            "create-wait-finish" => create_wait_finish(rounds).await,
            "report" => report(rounds, start().await).await,
            "report-sqlite" => report_sqlite(rounds).await,
            unknown => {
                eprintln!("there is no part {unknown}");
                return ExitCode::FAILURE;
            }
        }
        ExitCode::SUCCESS
    })
}

// === the parts ===

async fn get(rounds: usize) {
    let (operations, names) = filled().await;
    for name in names.iter().cycle().take(rounds) {
        black_box(operations.get_cached(name).expect("it exists"));
    }
}

/// With all that lies between the frames of HTTP/2 and the store.
async fn get_grpc(rounds: usize) {
    let (operations, names) = filled().await;
    let mut service = GrpcMetrics::new(operations_server(&operations), operations.metrics());
    for name in names.iter().cycle().take(rounds) {
        let name = name.to_string();
        let message = GetOperationRequest { name }.encode_to_vec();
        let mut framed = vec![0];
        framed.put_u32(message.len().try_into().expect("it is short"));
        framed.extend(message);
        let request = http::Request::post("/google.longrunning.Operations/GetOperation")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from(framed)))
            .expect("the request is good");
        let answer = service.call(request).await.expect("errors are answers");
        let body = answer.into_body().collect().await.expect("it is in memory");
        let trailers = body.trailers().expect("gRPC ends with them");
        assert_eq!(trailers["grpc-status"], "0");
    }
}

/// With the rendering as JSON, between the frames and the store.
async fn get_http(rounds: usize) {
    let (operations, names) = filled().await;
    let mut service = gateway(&operations, HttpOptions::default());
    for name in names.iter().cycle().take(rounds) {
        let request = http::Request::get(format!("/v1/{name}"))
            .body(Full::<Bytes>::default())
            .expect("the request is good");
        let answer = service.call(request).await.expect("errors are answers");
        assert_eq!(answer.status(), 200);
        black_box(answer.into_body().collect().await).expect("it is in memory");
    }
}

/// Pages of 100, from the first to the last and again.
async fn page(rounds: usize, filter: &str) {
    let (operations, _) = filled().await;
    let mut page_token = String::new();
    for _ in 0..rounds {
        let request = ListOperationsRequest {
            filter: filter.to_owned(),
            page_size: 100,
            page_token,
            ..Default::default()
        };
        let page = operations.list(&request).await;
        let page = page.expect("the request is good");
        assert_eq!(page.operations.len(), 100);
        page_token = page.next_page_token;
    }
}

async fn create(rounds: usize) {
    let operations = start().await;
    for _ in 0..rounds {
        black_box(self_executed(&operations).await);
    }
}

async fn create_lease_finish(rounds: usize) {
    let operations = start().await;
    let queue = QueueName::parse("bench").expect("the name is good");
    let worker = WorkerId::new("bench");
    for _ in 0..rounds {
        let created = operations.create(NewOperation::queued("bench")).await;
        created.expect("there is room");
        let leased = operations.lease(&queue, &worker).await.expect("one waits");
        finish(&operations, &leased).await;
    }
}

async fn create_wait_finish(rounds: usize) {
    let operations = start().await;
    for _ in 0..rounds {
        let created = self_executed(&operations).await;
        let name = created.name_owned();
        // The wait looks first, and sleeps when the end comes.
        let wait = operations.wait(&name, Duration::from_secs(60));
        let (waited, ()) = tokio::join!(wait, finish(&operations, &created));
        assert!(waited.expect("it exists").is_done());
    }
}

async fn report(rounds: usize, operations: Operations) {
    let created = self_executed(&operations).await;
    let name = created.name_owned();
    let token = created.lease().expect("it is self-executed").token;
    // Never the same twice, and of the same length.
    for done_units in (1..=100).cycle().take(rounds) {
        let progress = Progress {
            done_units,
            ..Default::default()
        };
        let report = Report {
            progress: Some(progress),
            ..Default::default()
        };
        let reported = operations.report(&name, token, report).await;
        reported.expect("the lease is held");
    }
}

async fn report_sqlite(rounds: usize) {
    let directory = tempfile::tempdir().expect("there is room");
    let journal = SqliteStorage::open(directory.path().join("journal")).expect("it is new");
    let operations = Operations::builder().storage(journal).start().await;
    let operations = operations.expect("defaults are in range");
    report(rounds, operations.clone()).await;
    operations.close().await;
}

// === what they need ===

async fn start() -> Operations {
    let limits = Limits {
        max_queue_length: usize::MAX,
        ..Limits::default()
    };
    let operations = Operations::builder().limits(limits).start().await;
    operations.expect("defaults are in range")
}

async fn filled() -> (Operations, Vec<OperationName>) {
    let operations = start().await;
    let mut names = Vec::with_capacity(OPERATIONS);
    for number in 0..OPERATIONS {
        let created = self_executed(&operations).await;
        if number % 10 != 0 {
            finish(&operations, &created).await;
        }
        names.push(created.name_owned());
    }
    (operations, names)
}

async fn self_executed(operations: &Operations) -> std::sync::Arc<Operation> {
    let new = NewOperation::self_executed("bench").label("user", "ann");
    let created = operations.create(new).await;
    created.expect("there is room").operation
}

async fn finish(operations: &Operations, held: &Operation) {
    let token = held.lease().expect("it is held").token;
    let done = operations
        .succeed(&held.name_owned(), token, Any::default())
        .await;
    done.expect("the lease is held");
}
