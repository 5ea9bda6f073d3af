//! Sizes at the border and in the store: what is too large is refused in few
//! words, and never keeps an operation from ending.

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
    Server, error, get, problem::problem, reason, response, running, succeeded, text,
};

const MINUTE: Duration = Duration::from_secs(60);

fn of(name: String) -> ListOperationsRequest {
    ListOperationsRequest {
        name,
        ..Default::default()
    }
}

// LIST-9, NAME-1
#[tokio::test]
async fn a_wildcard_may_have_many_segments_but_not_more_bytes_than_a_name() {
    let server = Server::start().await;
    let parent = vec!["p/x"; 250].join("/");
    let new = NewOperation::queued("q").parent(&parent).id("x");
    server.operations.create(new).await.unwrap();
    let mut client = server.client().await;
    for (scope, found) in [(250, 1), (249, 0), (251, 0)] {
        let scope = of(vec!["p/-"; scope].join("/"));
        let list = client.list_operations(scope).await.unwrap().into_inner();
        assert_eq!(list.operations.len(), found);
    }
    for segments in [257, 100_000] {
        let name = vec!["p/-"; segments].join("/");
        assert!(1024 < name.len());
        let problem = problem(client.list_operations(of(name)).await);
        assert_eq!(problem.key(), (Code::InvalidArgument, "INVALID_NAME"));
    }
}

async fn with(limits: Limits, handler: impl longrunning::Handler) -> Operations {
    let builder = crate::support::operations().limits(limits);
    builder.handler("q", 1, handler).start().await.unwrap()
}

fn small_operations() -> Limits {
    Limits {
        max_operation_bytes: 5_000,
        ..Limits::default()
    }
}

// BEHAVIOUR §9
#[tokio::test(start_paused = true)]
async fn a_result_that_is_too_large_ends_an_operation_that_its_progress_has_filled() {
    let (reported, gate) = (mpsc::channel(1), Arc::new(Notify::new()));
    let (tell, mut told) = reported;
    let operations = with(small_operations(), {
        let gate = gate.clone();
        move |context: Context| {
            let (tell, gate) = (tell.clone(), gate.clone());
            async move {
                let size: String = context.input_as().unwrap();
                let fill = text(&"m".repeat(size.parse().unwrap()));
                context.metadata(fill).unwrap();
                tell.send(()).await.unwrap();
                gate.notified().await;
                Ok::<Any, Failure>(text(&"x".repeat(10_000)))
            }
        }
    })
    .await;
    let mut fullest = 0;
    for size in (4_500..5_000).step_by(10) {
        let operation = operations
            .submit("q", text(&size.to_string()))
            .await
            .unwrap();
        let name = operation.owned_name();
        told.recv().await.unwrap();
        // Past the pause between two reports.
        tokio::time::sleep(Duration::from_secs(1)).await;
        fullest = fullest.max(operations.get(&name).unwrap().bytes().len());
        gate.notify_one();
        let done = operations.wait(&name, 10 * MINUTE).await.unwrap();
        let error = error(&done.to_proto());
        assert_eq!(
            (error.code, reason(&error).as_str()),
            (8, "TOO_LARGE"),
            "{size}"
        );
        assert_eq!(done.attempt(), 1, "{size}");
    }
    assert!(4_900 < fullest, "the fullest had {fullest} bytes");
}

// BEHAVIOUR §9
#[tokio::test(start_paused = true)]
async fn a_last_report_that_is_too_large_does_not_spoil_a_small_success() {
    let operations = with(small_operations(), |context: Context| async move {
        context.metadata(text(&"m".repeat(10_000))).unwrap();
        Ok::<Any, Failure>(text("small"))
    })
    .await;
    let name = operations.submit("q", text("")).await.unwrap().owned_name();
    let done = operations.wait(&name, 10 * MINUTE).await.unwrap();
    assert_eq!(response(&done.to_proto()), text("small"));
    assert_eq!(done.attempt(), 1);
}

// BEHAVIOUR §9
#[tokio::test]
async fn a_full_store_refuses_reports_that_grow_it_but_never_an_outcome() {
    let limits = Limits {
        max_bytes: 20_000,
        ..Limits::default()
    };
    let operations = crate::support::operations()
        .limits(limits)
        .start()
        .await
        .unwrap();
    let large = || text(&"x".repeat(15_000));
    operations.submit("nobody", large()).await.unwrap();
    let first = running(&operations).await;
    let second = running(&operations).await;
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
        let before = operations.get(name).unwrap().revision();
        let refused = operations.report(name, *token, report).await.unwrap_err();
        assert_eq!(refused.reason(), "STORE_FULL");
        assert_eq!(operations.get(name).unwrap().revision(), before);
    }
    let (name, token) = first;
    let done = operations.succeed(&name, token, large()).await.unwrap();
    assert_eq!(response(&done.to_proto()), large());
    let (name, token) = second;
    let failure = Failure::new(rpc::Code::Internal, "f".repeat(3_000));
    let done = operations.fail(&name, token, failure).await.unwrap();
    assert!(done.is_done());
}

/// What fits into the headers that a client takes, whatever was sent.
fn assert_short(status: &Status) {
    let (message, details) = (status.message().len(), status.details().len());
    assert!(message <= 1024, "a message of {message} bytes");
    assert!(details <= 4096, "details of {details} bytes");
}

// ERR-1
#[tokio::test]
async fn an_error_about_a_megabyte_is_short_and_its_connection_lives_on() {
    let server = Server::start().await;
    let name = succeeded(&server.operations).await;
    // One connection for all of them.
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
                client.get_operation(get(&name)).await.unwrap_err(),
                client.wait_operation(wait).await.unwrap_err(),
                client.delete_operation(delete).await.unwrap_err(),
                client.cancel_operation(cancel).await.unwrap_err(),
                client.list_operations(of(name)).await.unwrap_err(),
                client.list_operations(token).await.unwrap_err(),
                client.list_operations(filter).await.unwrap_err(),
            ] {
                assert_short(&status);
                problem::<()>(Err(status));
            }
        }
    }
    client.get_operation(get(name.as_str())).await.unwrap();
}

// ERR-1
#[tokio::test]
async fn a_refused_creation_does_not_repeat_a_megabyte() {
    let operations = crate::support::operations().start().await.unwrap();
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
        let refused = operations.create(new).await.unwrap_err();
        assert_short(&Status::from(refused));
    }
}
