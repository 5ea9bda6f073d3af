//! Errors, as BEHAVIOUR §9 lists them. `support::problem` checks the form of
//! each (ERR-1 to ERR-4); here each path is gone once.

use longrunning::{
    Error, Failure, Limits, NewOperation, Operations,
    proto::{
        google::longrunning::{
            CancelOperationRequest, DeleteOperationRequest, ListOperationsRequest,
            WaitOperationRequest,
        },
        longrunning::v1::WatchOperationRequest,
    },
};
use tonic::{Code, Status};

use crate::support::{
    Server, get,
    journal::{Gate, TestJournal},
    own_metadata,
    problem::{Problem, problem},
    raw::call,
    running, succeeded, text,
};

const OPERATIONS: [&str; 5] = [
    "/google.longrunning.Operations/GetOperation",
    "/google.longrunning.Operations/ListOperations",
    "/google.longrunning.Operations/CancelOperation",
    "/google.longrunning.Operations/DeleteOperation",
    "/google.longrunning.Operations/WaitOperation",
];

/// An error of the library, as it goes over gRPC.
fn over_grpc(error: Error) -> Problem {
    Problem::of(&Status::from(error))
}

async fn refused(operations: &Operations, new: NewOperation) -> Problem {
    over_grpc(
        operations
            .create(new)
            .await
            .expect_err("it had to be refused"),
    )
}

// ERR-2, ERR-4
#[tokio::test]
async fn every_method_says_invalid_name_for_an_empty_name_and_which_field_it_is() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let problems = [
        problem(client.get_operation(get("")).await),
        problem(
            client
                .cancel_operation(CancelOperationRequest::default())
                .await,
        ),
        problem(
            client
                .delete_operation(DeleteOperationRequest::default())
                .await,
        ),
        problem(client.wait_operation(WaitOperationRequest::default()).await),
        problem(
            server
                .watcher()
                .await
                .watch_operation(WatchOperationRequest::default())
                .await,
        ),
    ];
    for problem in problems {
        assert_eq!(problem.key(), (Code::InvalidArgument, "INVALID_NAME"));
        assert_eq!(
            problem.fields,
            [("name".to_owned(), "INVALID_NAME".to_owned())]
        );
    }
}

// ERR-2, ERR-4
#[tokio::test]
async fn a_bad_list_names_the_field_at_fault() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let list = ListOperationsRequest::default;
    for (request, reason, field) in [
        (
            ListOperationsRequest {
                name: "projects".into(),
                ..list()
            },
            "INVALID_NAME",
            "name",
        ),
        (
            ListOperationsRequest {
                page_size: -1,
                ..list()
            },
            "INVALID_PAGE_SIZE",
            "page_size",
        ),
        (
            ListOperationsRequest {
                page_token: "x".into(),
                ..list()
            },
            "INVALID_PAGE_TOKEN",
            "page_token",
        ),
        (
            ListOperationsRequest {
                name: "projects/p".into(),
                return_partial_success: true,
                ..list()
            },
            "INVALID_PARTIAL_SUCCESS",
            "return_partial_success",
        ),
    ] {
        let problem = problem(client.list_operations(request).await);
        assert_eq!(problem.key(), (Code::InvalidArgument, reason));
        assert_eq!(problem.fields, [(field.to_owned(), reason.to_owned())]);
    }
}

// GET-4: what is not UTF-8 is no protobuf string at all.
#[tokio::test]
async fn a_request_that_cannot_be_decoded_is_an_invalid_argument_on_every_method() {
    let server = Server::start().await;
    let channel = server.channel().await;
    let not_utf8 = vec![0x0a, 2, 0xc3, 0x28];
    let not_utf8_name_of_list = vec![0x22, 2, 0xc3, 0x28];
    let cut_off = vec![0x0a, 200, 1, b'x'];
    let no_message = vec![0xff; 20];
    for path in OPERATIONS {
        let name = if path.ends_with("ListOperations") {
            &not_utf8_name_of_list
        } else {
            &not_utf8
        };
        for bytes in [name, &cut_off, &no_message] {
            let problem = problem(call(channel.clone(), path, bytes.clone()).await);
            assert_eq!(
                problem.key(),
                (Code::InvalidArgument, "MALFORMED_REQUEST"),
                "{path}"
            );
        }
    }
    let watch = "/longrunning.v1.OperationWatch/WatchOperation";
    let problem = problem(call(channel, watch, not_utf8).await);
    assert_eq!(problem.key(), (Code::InvalidArgument, "MALFORMED_REQUEST"));
}

// BEHAVIOUR §9
#[tokio::test]
async fn a_message_above_4_mib_is_resource_exhausted_and_too_large() {
    let server = Server::start().await;
    let mut bytes = vec![0x0a, 0x80, 0x80, 0x80, 0x03];
    bytes.resize(5 + (6 << 20), b'a');
    for path in OPERATIONS {
        let problem = problem(call(server.channel().await, path, bytes.clone()).await);
        assert_eq!(
            problem.key(),
            (Code::ResourceExhausted, "TOO_LARGE"),
            "{path}"
        );
    }
}

// ERR-7
#[tokio::test]
async fn an_unknown_method_or_service_is_unimplemented_with_an_error_info() {
    let server = Server::start().await;
    for path in [
        "/google.longrunning.Operations/CreateOperation",
        "/google.longrunning.Operations/getOperation",
        "/google.longrunning.Operations/",
        "/acme.v1.Nothing/Nothing",
        "/longrunning.v1.OperationWatch/Nothing",
        "/",
    ] {
        let problem = problem(call(server.channel().await, path, Vec::new()).await);
        assert_eq!(
            problem.key(),
            (Code::Unimplemented, "METHOD_UNKNOWN"),
            "{path}"
        );
    }
}

// ERR-3: what stands in a message is percent-encoded on the wire and comes back whole.
#[tokio::test]
async fn a_name_of_any_script_comes_back_whole_in_the_error() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for name in [
        "operations/żółć 操作 🚀",
        "100%",
        "a\nb",
        "\"quoted\"\t\\",
        "%2F%00",
    ] {
        let problem = problem(client.get_operation(get(name)).await);
        assert_eq!(problem.key(), (Code::NotFound, "OPERATION_NOT_FOUND"));
        assert_eq!(problem.info.metadata["name"], name);
    }
}

// BEHAVIOUR §9
#[tokio::test]
async fn what_a_creator_asks_for_is_checked_and_the_field_is_named() {
    let operations = crate::support::operations().start().await.unwrap();
    let queued = || NewOperation::queued("q");
    let zero = std::time::Duration::ZERO;
    let bad = own_metadata(1);
    let bad = longrunning::Any {
        type_url: String::new(),
        ..bad
    };
    let table = [
        (queued().parent("projects"), "parent", "INVALID_NAME"),
        (queued().parent("projects/-"), "parent", "INVALID_NAME"),
        (queued().id("UPPER"), "operation_id", "INVALID_NAME"),
        (queued().id(""), "operation_id", "INVALID_NAME"),
        (NewOperation::queued("no good"), "queue", "INVALID_QUEUE"),
        (NewOperation::queued(""), "queue", "INVALID_QUEUE"),
        (queued().request_id(""), "request_id", "INVALID_REQUEST_ID"),
        (
            queued().request_id(&"r".repeat(256)),
            "request_id",
            "INVALID_REQUEST_ID",
        ),
        (queued().label("Bad", "x"), "labels", "INVALID_LABELS"),
        (
            queued().label("good", &"x".repeat(256)),
            "labels",
            "INVALID_LABELS",
        ),
        (
            queued().lease_duration(zero),
            "lease_duration",
            "INVALID_TERMS",
        ),
        (
            queued().total_timeout(zero),
            "total_timeout",
            "INVALID_TERMS",
        ),
        (
            queued().attempt_timeout(zero),
            "attempt_timeout",
            "INVALID_TERMS",
        ),
        (
            queued().retry(longrunning::RetryPolicy::attempts(0)),
            "retry_policy",
            "INVALID_TERMS",
        ),
        (queued().input(bad.clone()), "input", "INVALID_ANY"),
        (queued().metadata(bad), "metadata", "INVALID_ANY"),
    ];
    for (new, field, reason) in table {
        let text = format!("{new:?}");
        let problem = refused(&operations, new).await;
        assert_eq!(problem.key(), (Code::InvalidArgument, reason), "{text}");
        assert_eq!(
            problem.fields,
            [(field.to_owned(), reason.to_owned())],
            "{text}"
        );
    }
}

// BEHAVIOUR §9
#[tokio::test]
async fn what_is_taken_already_exists() {
    let operations = crate::support::operations().start().await.unwrap();
    operations
        .create(NewOperation::queued("q").id("mine"))
        .await
        .unwrap();
    let taken = refused(&operations, NewOperation::queued("q").id("mine")).await;
    assert_eq!(taken.key(), (Code::AlreadyExists, "OPERATION_EXISTS"));
    assert_eq!(taken.info.metadata["name"], "operations/mine");
    operations
        .create(NewOperation::queued("q").request_id("r1"))
        .await
        .unwrap();
    let other = NewOperation::queued("q").request_id("r1").priority(7);
    let reused = refused(&operations, other).await;
    assert_eq!(reused.key(), (Code::AlreadyExists, "REQUEST_ID_REUSED"));
    assert_eq!(reused.info.metadata["requestId"], "r1");
}

// BEHAVIOUR §9
#[tokio::test]
async fn a_lost_lease_and_another_outcome_are_failed_preconditions() {
    let operations = crate::support::operations().start().await.unwrap();
    let (name, token) = running(&operations).await;
    let foreign = longrunning::LeaseToken::random();
    let lost = over_grpc(operations.renew(&name, foreign).await.unwrap_err());
    assert_eq!(lost.key(), (Code::FailedPrecondition, "LEASE_LOST"));
    assert_eq!(lost.info.metadata["name"], name.as_str());
    assert!(lost.retry.is_none());
    operations.succeed(&name, token, text("one")).await.unwrap();
    operations
        .succeed(&name, token, text("one"))
        .await
        .expect("the same outcome is fine");
    let other = over_grpc(
        operations
            .succeed(&name, token, text("two"))
            .await
            .unwrap_err(),
    );
    assert_eq!(other.key(), (Code::FailedPrecondition, "OPERATION_DONE"));
    let failure = Failure::new(longrunning::proto::google::rpc::Code::Internal, "late");
    let other = over_grpc(operations.fail(&name, token, failure).await.unwrap_err());
    assert_eq!(other.key(), (Code::FailedPrecondition, "OPERATION_DONE"));
}

// BEHAVIOUR §9, ERR-6
#[tokio::test]
async fn a_full_queue_and_a_full_store_say_when_to_come_back() {
    let limits = Limits {
        max_queue: 1,
        max_operations: 2,
        ..Limits::default()
    };
    let operations = crate::support::operations()
        .limits(limits)
        .start()
        .await
        .unwrap();
    operations.submit("q", text("")).await.unwrap();
    let full = refused(&operations, NewOperation::queued("q")).await;
    assert_eq!(full.key(), (Code::ResourceExhausted, "QUEUE_FULL"));
    assert_eq!(full.info.metadata["queue"], "q");
    assert!(full.retry.is_some_and(|retry| retry.retry_delay.is_some()));
    operations.submit("p", text("")).await.unwrap();
    let full = refused(&operations, NewOperation::queued("o")).await;
    assert_eq!(full.key(), (Code::ResourceExhausted, "STORE_FULL"));
    assert!(full.retry.is_some_and(|retry| retry.retry_delay.is_some()));
}

// BEHAVIOUR §9, ERR-6
#[tokio::test]
async fn a_store_that_cannot_write_is_unavailable_on_every_path_that_writes() {
    let journal = TestJournal::new();
    let server = Server::with(crate::support::operations().journal(journal.clone())).await;
    let (name, token) = running(&server.operations).await;
    let done = succeeded(&server.operations).await;
    journal.set(Gate::Broken);
    let mut client = server.client().await;
    let cancel = CancelOperationRequest {
        name: name.to_string(),
    };
    let delete = |name: &longrunning::OperationName| DeleteOperationRequest {
        name: name.to_string(),
    };
    let problems = [
        problem(client.cancel_operation(cancel).await),
        problem(client.delete_operation(delete(&name)).await),
        problem(client.delete_operation(delete(&done)).await),
        over_grpc(server.operations.renew(&name, token).await.unwrap_err()),
        over_grpc(
            server
                .operations
                .succeed(&name, token, text(""))
                .await
                .unwrap_err(),
        ),
        refused(&server.operations, NewOperation::queued("q")).await,
    ];
    for problem in problems {
        assert_eq!(problem.key(), (Code::Unavailable, "STORE_UNAVAILABLE"));
        assert!(
            problem
                .retry
                .is_some_and(|retry| retry.retry_delay.is_some())
        );
        assert!(
            !problem.message.contains("the test broke it"),
            "no inner matters in messages"
        );
    }
    // Reading needs no journal.
    client.get_operation(get(name.as_str())).await.unwrap();
}

// BEHAVIOUR §9
#[tokio::test]
async fn a_server_that_shuts_down_takes_nothing_new_and_says_so() {
    let operations = crate::support::operations().start().await.unwrap();
    operations.shutdown(std::time::Duration::ZERO).await;
    let problem = refused(&operations, NewOperation::queued("q")).await;
    assert_eq!(problem.key(), (Code::Unavailable, "SHUTTING_DOWN"));
    assert!(problem.retry.is_some());
}
