//! Size limits of requests and operations: oversized input gets a short error and never
//! prevents an operation from completing.

use std::{sync::Arc, time::Duration};

use longrunning::{
    Any, Context, Failure, Limits, NewOperation, Operations, Payload, Report,
    proto::google::{
        longrunning::{
            CancelOperationRequest, DeleteOperationRequest, ListOperationsRequest,
            WaitOperationRequest,
        },
        rpc,
    },
};
use tokio::sync::{Notify, mpsc};
use tonic::{Code, Status};

use crate::support::{
    GrpcTestServer,
    assertions::assert_failed_with,
    create_running, create_succeeded,
    error_details::expect_status_error,
    expect_response, get_request,
    operations::{list_request, start_operations},
    string_value,
};

const MINUTE: Duration = Duration::from_secs(60);

// Rules: LIST-9, NAME-5
#[tokio::test]
async fn wildcard_name_is_limited_in_bytes_not_in_segments() {
    let server = GrpcTestServer::start().await;
    let parent = vec!["p/x"; 250].join("/");
    let new = NewOperation::queued("q").parent(&parent).id("x");
    server.operations.create(new).await.unwrap();
    let mut client = server.client().await;
    for (segments, expected_count) in [(250, 1), (249, 0), (251, 0)] {
        let scope = list_request(&vec!["p/-"; segments].join("/"));
        let list = client.list_operations(scope).await.unwrap().into_inner();
        assert_eq!(list.operations.len(), expected_count);
    }
    for segments in [257, 100_000] {
        let name = vec!["p/-"; segments].join("/");
        assert!(name.len() > 1024);
        let details = expect_status_error(client.list_operations(list_request(&name)).await);
        assert_eq!(
            details.code_and_reason(),
            (Code::InvalidArgument, "INVALID_NAME")
        );
    }
}

async fn start_with_limits(limits: Limits, handler: impl longrunning::Handler) -> Operations {
    let builder = crate::support::operations_builder().limits(limits);
    builder.handler("q", 1, handler).start().await.unwrap()
}

fn small_operation_limits() -> Limits {
    Limits::default().with_max_operation_bytes(5_000)
}

// Rules: LIMIT-6
#[tokio::test(start_paused = true)]
async fn oversized_result_fails_operation_filled_by_metadata() {
    let (report_channel, gate) = (mpsc::channel(1), Arc::new(Notify::new()));
    let (reported_tx, mut reported_rx) = report_channel;
    let operations = start_with_limits(small_operation_limits(), {
        let gate = gate.clone();
        move |context: Context| {
            let (reported_tx, gate) = (reported_tx.clone(), gate.clone());
            async move {
                let size: String = context.input_as().unwrap();
                let filler = string_value(&"m".repeat(size.parse().unwrap()));
                context.set_metadata(filler).unwrap();
                reported_tx.send(()).await.unwrap();
                gate.notified().await;
                Ok::<Any, Failure>(string_value(&"x".repeat(10_000)))
            }
        }
    })
    .await;
    let mut max_size = 0;
    for size in (4_500..5_000).step_by(10) {
        let operation = operations
            .submit("q", string_value(&size.to_string()))
            .await
            .unwrap();
        let name = operation.name_owned();
        reported_rx.recv().await.unwrap();
        // Longer than the minimum interval between two reports.
        tokio::time::sleep(Duration::from_secs(1)).await;
        max_size = max_size.max(operations.get_cached(&name).unwrap().bytes().len());
        gate.notify_one();
        let done = operations.wait(&name, 10 * MINUTE).await.unwrap();
        assert_failed_with(&done.to_proto(), Code::ResourceExhausted, "TOO_LARGE");
        assert_eq!(done.attempt(), 1, "{size}");
    }
    assert!(
        max_size > 4_900,
        "expected an operation close to the limit, the largest had {max_size} bytes"
    );
}

// Rules: LIMIT-6
#[tokio::test(start_paused = true)]
async fn oversized_final_report_does_not_fail_small_result() {
    let operations = start_with_limits(small_operation_limits(), |context: Context| async move {
        context
            .set_metadata(string_value(&"m".repeat(10_000)))
            .unwrap();
        Ok::<Any, Failure>(string_value("small"))
    })
    .await;
    let name = operations
        .submit("q", string_value(""))
        .await
        .unwrap()
        .name_owned();
    let done = operations.wait(&name, 10 * MINUTE).await.unwrap();
    assert_eq!(expect_response(&done.to_proto()), string_value("small"));
    assert_eq!(done.attempt(), 1);
}

// Rules: LIMIT-4
#[tokio::test]
async fn full_store_rejects_growing_reports_but_accepts_outcomes() {
    let limits = Limits::default().with_max_total_bytes(20_000);
    let operations = crate::support::operations_builder()
        .limits(limits)
        .start()
        .await
        .unwrap();
    let large = || string_value(&"x".repeat(15_000));
    operations.submit("idle", large()).await.unwrap();
    let first = create_running(&operations).await;
    let second = create_running(&operations).await;
    let payload = Payload::new(large()).unwrap();
    let reports = [
        Report {
            metadata: Some(payload.clone()),
            ..Report::default()
        },
        Report {
            detail: Some(payload.clone()),
            ..Report::default()
        },
        Report {
            checkpoint: Some(payload),
            ..Report::default()
        },
    ];
    for report in reports {
        let (name, token) = &first;
        let before = operations.get_cached(name).unwrap().revision();
        let rejected = operations.report(name, *token, report).await.unwrap_err();
        assert_eq!(rejected.reason(), "STORE_FULL");
        assert_eq!(operations.get_cached(name).unwrap().revision(), before);
    }
    let (name, token) = first;
    let done = operations.succeed(&name, token, large()).await.unwrap();
    assert_eq!(expect_response(&done.to_proto()), large());
    let (name, token) = second;
    let failure = Failure::new(rpc::Code::Internal, "f".repeat(3_000));
    let done = operations.fail(&name, token, failure).await.unwrap();
    assert!(done.is_done());
}

/// Asserts that an error fits into the header sizes that clients accept.
fn assert_fits_in_headers(status: &Status) {
    let (message, details) = (status.message().len(), status.details().len());
    assert!(
        message <= 1024,
        "expected a short message, got {message} bytes"
    );
    assert!(
        details <= 4096,
        "expected short details, got {details} bytes"
    );
}

// Rules: ERR-1
#[tokio::test]
async fn error_for_1_mib_input_is_short_and_connection_stays_open() {
    let server = GrpcTestServer::start().await;
    let name = create_succeeded(&server.operations).await;
    // All calls share one connection.
    let mut client = server.client().await;
    for piece in ["a", "/", "\u{1f980}", "projects/"] {
        let long = piece.repeat((1 << 20) / piece.len());
        for name in [
            long.clone(),
            format!("operations/{long}"),
            format!("{long}/operations/x"),
        ] {
            let wait = WaitOperationRequest {
                name: name.clone(),
                timeout: None,
            };
            let token = ListOperationsRequest {
                page_token: long.clone(),
                ..Default::default()
            };
            let filter = ListOperationsRequest {
                filter: long.clone(),
                ..Default::default()
            };
            let delete = DeleteOperationRequest { name: name.clone() };
            let cancel = CancelOperationRequest { name: name.clone() };
            for status in [
                client.get_operation(get_request(&name)).await.unwrap_err(),
                client.wait_operation(wait).await.unwrap_err(),
                client.delete_operation(delete).await.unwrap_err(),
                client.cancel_operation(cancel).await.unwrap_err(),
                client
                    .list_operations(list_request(&name))
                    .await
                    .unwrap_err(),
                client.list_operations(token).await.unwrap_err(),
                client.list_operations(filter).await.unwrap_err(),
            ] {
                assert_fits_in_headers(&status);
                expect_status_error::<()>(Err(status));
            }
        }
    }
    client
        .get_operation(get_request(name.as_str()))
        .await
        .unwrap();
}

// Rules: ERR-1
#[tokio::test]
async fn create_error_does_not_echo_1_mib_input() {
    let operations = start_operations().await;
    let long = "a".repeat(1 << 20);
    let queued = || NewOperation::queued("q");
    for new in [
        NewOperation::queued(&long),
        queued().id(&long),
        queued().parent(&long),
        queued().parent(&format!("projects/{long}")),
        queued().request_id(&long),
        queued().label(&long, "x"),
        queued().label("x", &long),
        queued().label("X", &long),
    ] {
        let rejected = operations.create(new).await.unwrap_err();
        assert_fits_in_headers(&Status::from(rejected));
    }
}
