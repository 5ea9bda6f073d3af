//! Executes one hot part for a number of rounds, so that `benches/instructions/run` can count
//! its instructions.

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

/// The number of stored operations; every tenth is running.
const OPERATION_COUNT: usize = 2_000;

/// The parts with their rounds: enough for their cost to exceed the variance of the setup.
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
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["parts"] => {
            for (part, rounds) in PARTS {
                println!("{part} {rounds}");
            }
            ExitCode::SUCCESS
        }
        [part, rounds] if let Ok(rounds) = rounds.parse() => run(part, rounds),
        _ => {
            eprintln!("usage: instructions parts | PART ROUNDS; see benches/instructions/run");
            ExitCode::from(2)
        }
    }
}

fn run(part: &str, rounds: usize) -> ExitCode {
    // Paused time, so that the timers that fire do not depend on the speed of the machine.
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
                eprintln!("unknown part {unknown}");
                return ExitCode::FAILURE;
            }
        }
        ExitCode::SUCCESS
    })
}

// === Parts ===

async fn get(rounds: usize) {
    let (operations, names) = populated().await;
    for name in names.iter().cycle().take(rounds) {
        black_box(operations.get_cached(name).expect("it exists"));
    }
}

/// A Get through the gRPC service, without HTTP/2 framing.
async fn get_grpc(rounds: usize) {
    let (operations, names) = populated().await;
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
            .expect("the request is valid");
        let response = service.call(request).await.expect("errors are responses");
        let body = response
            .into_body()
            .collect()
            .await
            .expect("the body is in memory");
        let trailers = body.trailers().expect("gRPC responses have trailers");
        assert_eq!(trailers["grpc-status"], "0");
    }
}

/// A Get through the HTTP gateway, with its JSON.
async fn get_http(rounds: usize) {
    let (operations, names) = populated().await;
    let mut service = gateway(&operations, HttpOptions::default());
    for name in names.iter().cycle().take(rounds) {
        let request = http::Request::get(format!("/v1/{name}"))
            .body(Full::<Bytes>::default())
            .expect("the request is valid");
        let response = service.call(request).await.expect("errors are responses");
        assert_eq!(response.status(), 200);
        black_box(response.into_body().collect().await).expect("the body is in memory");
    }
}

/// Lists pages of 100 operations, and starts again after the last page.
async fn page(rounds: usize, filter: &str) {
    let (operations, _) = populated().await;
    let mut page_token = String::new();
    for _ in 0..rounds {
        let request = ListOperationsRequest {
            filter: filter.to_owned(),
            page_size: 100,
            page_token,
            ..Default::default()
        };
        let page = operations.list(&request).await;
        let page = page.expect("the request is valid");
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
    let queue = QueueName::parse("bench").expect("the name is valid");
    let worker = WorkerId::new("bench");
    for _ in 0..rounds {
        let created = operations.create(NewOperation::queued("bench")).await;
        created.expect("the store accepts it");
        let leased = operations
            .lease(&queue, &worker)
            .await
            .expect("the queue is not empty");
        finish(&operations, &leased).await;
    }
}

async fn create_wait_finish(rounds: usize) {
    let operations = start().await;
    for _ in 0..rounds {
        let created = self_executed(&operations).await;
        let name = created.name_owned();
        // The wait is polled first, so that the finish wakes it.
        let wait = operations.wait(&name, Duration::from_secs(60));
        let (waited, ()) = tokio::join!(wait, finish(&operations, &created));
        assert!(waited.expect("it exists").is_done());
    }
}

async fn report(rounds: usize, operations: Operations) {
    let created = self_executed(&operations).await;
    let name = created.name_owned();
    let token = created.lease().expect("it is self-executed").token;
    // Each report differs, because an equal one changes nothing; their sizes are equal.
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
    let directory = tempfile::tempdir().expect("the store accepts it");
    let storage =
        SqliteStorage::open(directory.path().join("storage")).expect("a new file can be opened");
    let operations = Operations::builder().storage(storage).start().await;
    let operations = operations.expect("defaults are in range");
    report(rounds, operations.clone()).await;
    operations.close().await;
}

// === Helpers ===

async fn start() -> Operations {
    let limits = Limits::default().with_max_queue_length(usize::MAX);
    let operations = Operations::builder().limits(limits).start().await;
    operations.expect("defaults are in range")
}

async fn populated() -> (Operations, Vec<OperationName>) {
    let operations = start().await;
    let mut names = Vec::with_capacity(OPERATION_COUNT);
    for number in 0..OPERATION_COUNT {
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
    created.expect("the store accepts it").operation
}

async fn finish(operations: &Operations, leased: &Operation) {
    let token = leased.lease().expect("it is leased").token;
    let done = operations
        .succeed(&leased.name_owned(), token, Any::default())
        .await;
    done.expect("the lease is held");
}
