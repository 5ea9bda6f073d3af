//! Every error of docs/specification.md over gRPC. `ErrorDetails` checks that each has the
//! form of ERR-1 to ERR-4.

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
    GrpcTestServer, create_running, create_succeeded, custom_metadata,
    error_details::{ErrorDetails, expect_status_error},
    get_request,
    operations::start_operations,
    raw_requests::raw_unary_call,
    string_value,
    test_storage::{TestStorage, WriteMode},
};

const OPERATIONS_METHODS: [&str; 5] = [
    "/google.longrunning.Operations/GetOperation",
    "/google.longrunning.Operations/ListOperations",
    "/google.longrunning.Operations/CancelOperation",
    "/google.longrunning.Operations/DeleteOperation",
    "/google.longrunning.Operations/WaitOperation",
];

/// Returns an error of the library as gRPC clients receive it.
fn to_grpc_error(error: Error) -> ErrorDetails {
    ErrorDetails::from_status(&Status::from(error))
}

async fn expect_create_error(operations: &Operations, new: NewOperation) -> ErrorDetails {
    to_grpc_error(
        operations
            .create(new)
            .await
            .expect_err("expected create to be rejected"),
    )
}

// Rules: ERR-2, ERR-4, GET-3
#[tokio::test]
async fn empty_name_is_invalid_name_with_field_violation_on_every_method() {
    let server = GrpcTestServer::start().await;
    let mut client = server.client().await;
    let errors = [
        expect_status_error(client.get_operation(get_request("")).await),
        expect_status_error(
            client
                .cancel_operation(CancelOperationRequest::default())
                .await,
        ),
        expect_status_error(
            client
                .delete_operation(DeleteOperationRequest::default())
                .await,
        ),
        expect_status_error(client.wait_operation(WaitOperationRequest::default()).await),
        expect_status_error(
            server
                .watch_client()
                .await
                .watch_operation(WatchOperationRequest::default())
                .await,
        ),
    ];
    for details in errors {
        assert_eq!(
            details.code_and_reason(),
            (Code::InvalidArgument, "INVALID_NAME")
        );
        assert_eq!(
            details.field_violations,
            [("name".to_owned(), "INVALID_NAME".to_owned())]
        );
    }
}

// Rules: ERR-2, ERR-4
#[tokio::test]
async fn invalid_list_request_names_violated_field() {
    let server = GrpcTestServer::start().await;
    let mut client = server.client().await;
    let default_request = ListOperationsRequest::default;
    for (request, reason, field) in [
        (
            ListOperationsRequest {
                name: "projects".into(),
                ..default_request()
            },
            "INVALID_NAME",
            "name",
        ),
        (
            ListOperationsRequest {
                page_size: -1,
                ..default_request()
            },
            "INVALID_PAGE_SIZE",
            "page_size",
        ),
        (
            ListOperationsRequest {
                page_token: "x".into(),
                ..default_request()
            },
            "INVALID_PAGE_TOKEN",
            "page_token",
        ),
        (
            ListOperationsRequest {
                name: "projects/p".into(),
                return_partial_success: true,
                ..default_request()
            },
            "INVALID_PARTIAL_SUCCESS",
            "return_partial_success",
        ),
    ] {
        let details = expect_status_error(client.list_operations(request).await);
        assert_eq!(details.code_and_reason(), (Code::InvalidArgument, reason));
        assert_eq!(
            details.field_violations,
            [(field.to_owned(), reason.to_owned())]
        );
    }
}

// A protobuf string that is not UTF-8 fails to decode.
// Rules: ERR-9, GET-4
#[tokio::test]
async fn undecodable_request_is_invalid_argument_on_every_method() {
    let server = GrpcTestServer::start().await;
    let channel = server.channel().await;
    let not_utf8 = vec![0x0a, 2, 0xc3, 0x28];
    let not_utf8_list_name = vec![0x22, 2, 0xc3, 0x28];
    let cut_off = vec![0x0a, 200, 1, b'x'];
    let garbage = vec![0xff; 20];
    for path in OPERATIONS_METHODS {
        let name = if path.ends_with("ListOperations") {
            &not_utf8_list_name
        } else {
            &not_utf8
        };
        for bytes in [name, &cut_off, &garbage] {
            let details =
                expect_status_error(raw_unary_call(channel.clone(), path, bytes.clone()).await);
            assert_eq!(
                details.code_and_reason(),
                (Code::InvalidArgument, "MALFORMED_REQUEST"),
                "{path}"
            );
        }
    }
    let watch = "/longrunning.v1.OperationWatch/WatchOperation";
    let details = expect_status_error(raw_unary_call(channel, watch, not_utf8).await);
    assert_eq!(
        details.code_and_reason(),
        (Code::InvalidArgument, "MALFORMED_REQUEST")
    );
}

// Rules: LIMIT-1
#[tokio::test]
async fn message_above_4_mib_is_resource_exhausted_too_large() {
    let server = GrpcTestServer::start().await;
    let mut bytes = vec![0x0a, 0x80, 0x80, 0x80, 0x03];
    bytes.resize(5 + (6 << 20), b'a');
    for path in OPERATIONS_METHODS {
        let details =
            expect_status_error(raw_unary_call(server.channel().await, path, bytes.clone()).await);
        assert_eq!(
            details.code_and_reason(),
            (Code::ResourceExhausted, "TOO_LARGE"),
            "{path}"
        );
    }
}

// Rules: ERR-7
#[tokio::test]
async fn unknown_method_or_service_is_unimplemented_with_error_info() {
    let server = GrpcTestServer::start().await;
    for path in [
        "/google.longrunning.Operations/CreateOperation",
        "/google.longrunning.Operations/getOperation",
        "/google.longrunning.Operations/",
        "/acme.v1.Nothing/Nothing",
        "/longrunning.v1.OperationWatch/Nothing",
        "/",
    ] {
        let details =
            expect_status_error(raw_unary_call(server.channel().await, path, Vec::new()).await);
        assert_eq!(
            details.code_and_reason(),
            (Code::Unimplemented, "UNKNOWN_METHOD"),
            "{path}"
        );
    }
}

// Messages are percent-encoded on the wire and decoded without loss.
// Rules: ERR-3
#[tokio::test]
async fn unicode_name_round_trips_in_error_details() {
    let server = GrpcTestServer::start().await;
    let mut client = server.client().await;
    for name in [
        "operations/żółć 操作 🚀",
        "100%",
        "a\nb",
        "\"quoted\"\t\\",
        "%2F%00",
    ] {
        let details = expect_status_error(client.get_operation(get_request(name)).await);
        assert_eq!(
            details.code_and_reason(),
            (Code::NotFound, "OPERATION_NOT_FOUND")
        );
        assert_eq!(details.info.metadata["name"], name);
    }
}

// Rules: CREATE-8
#[tokio::test]
async fn invalid_create_request_names_violated_field() {
    let operations = start_operations().await;
    let queued = || NewOperation::queued("q");
    let zero = std::time::Duration::ZERO;
    let untyped_any = custom_metadata(1);
    let untyped_any = longrunning::Any {
        type_url: String::new(),
        ..untyped_any
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
            "INVALID_EXECUTION_OPTIONS",
        ),
        (
            queued().total_timeout(zero),
            "total_timeout",
            "INVALID_EXECUTION_OPTIONS",
        ),
        (
            queued().attempt_timeout(zero),
            "attempt_timeout",
            "INVALID_EXECUTION_OPTIONS",
        ),
        (
            queued().retry_policy(longrunning::RetryPolicy::with_max_attempts(0)),
            "retry_policy",
            "INVALID_EXECUTION_OPTIONS",
        ),
        (queued().input(untyped_any.clone()), "input", "INVALID_ANY"),
        (queued().metadata(untyped_any), "metadata", "INVALID_ANY"),
    ];
    for (new, field, reason) in table {
        let description = format!("{new:?}");
        let details = expect_create_error(&operations, new).await;
        assert_eq!(
            details.code_and_reason(),
            (Code::InvalidArgument, reason),
            "{description}"
        );
        assert_eq!(
            details.field_violations,
            [(field.to_owned(), reason.to_owned())],
            "{description}"
        );
    }
}

// Rules: CREATE-5, CREATE-7
#[tokio::test]
async fn duplicate_operation_id_or_request_id_already_exists() {
    let operations = start_operations().await;
    operations
        .create(NewOperation::queued("q").id("mine"))
        .await
        .unwrap();
    let duplicate = expect_create_error(&operations, NewOperation::queued("q").id("mine")).await;
    assert_eq!(
        duplicate.code_and_reason(),
        (Code::AlreadyExists, "OPERATION_EXISTS")
    );
    assert_eq!(duplicate.info.metadata["name"], "operations/mine");
    operations
        .create(NewOperation::queued("q").request_id("r1"))
        .await
        .unwrap();
    let other = NewOperation::queued("q").request_id("r1").priority(7);
    let reused = expect_create_error(&operations, other).await;
    assert_eq!(
        reused.code_and_reason(),
        (Code::AlreadyExists, "REQUEST_ID_REUSED")
    );
    assert_eq!(reused.info.metadata["requestId"], "r1");
}

// Rules: FINISH-5, LEASE-6
#[tokio::test]
async fn lost_lease_and_second_outcome_are_failed_precondition() {
    let operations = start_operations().await;
    let (name, token) = create_running(&operations).await;
    let unknown_token = longrunning::LeaseToken::random();
    let lost = to_grpc_error(operations.renew(&name, unknown_token).await.unwrap_err());
    assert_eq!(
        lost.code_and_reason(),
        (Code::FailedPrecondition, "LEASE_LOST")
    );
    assert_eq!(lost.info.metadata["name"], name.as_str());
    assert!(lost.retry_info.is_none());
    operations
        .succeed(&name, token, string_value("one"))
        .await
        .unwrap();
    operations
        .succeed(&name, token, string_value("one"))
        .await
        .expect("expected the same outcome to be accepted again");
    let other = to_grpc_error(
        operations
            .succeed(&name, token, string_value("two"))
            .await
            .unwrap_err(),
    );
    assert_eq!(
        other.code_and_reason(),
        (Code::FailedPrecondition, "OPERATION_ALREADY_DONE")
    );
    let failure = Failure::new(longrunning::proto::google::rpc::Code::Internal, "late");
    let other = to_grpc_error(operations.fail(&name, token, failure).await.unwrap_err());
    assert_eq!(
        other.code_and_reason(),
        (Code::FailedPrecondition, "OPERATION_ALREADY_DONE")
    );
}

// Rules: ERR-6, LIMIT-3, LIMIT-5
#[tokio::test]
async fn full_queue_and_full_store_errors_have_retry_delay() {
    let limits = Limits::default()
        .with_max_queue_length(1)
        .with_max_operations(2);
    let operations = crate::support::operations_builder()
        .limits(limits)
        .start()
        .await
        .unwrap();
    operations.submit("q", string_value("")).await.unwrap();
    let full = expect_create_error(&operations, NewOperation::queued("q")).await;
    assert_eq!(
        full.code_and_reason(),
        (Code::ResourceExhausted, "QUEUE_FULL")
    );
    assert_eq!(full.info.metadata["queue"], "q");
    assert!(
        full.retry_info
            .is_some_and(|retry| retry.retry_delay.is_some())
    );
    operations.submit("p", string_value("")).await.unwrap();
    let full = expect_create_error(&operations, NewOperation::queued("o")).await;
    assert_eq!(
        full.code_and_reason(),
        (Code::ResourceExhausted, "STORE_FULL")
    );
    assert!(
        full.retry_info
            .is_some_and(|retry| retry.retry_delay.is_some())
    );
}

// Rules: ERR-6, ERR-10
#[tokio::test]
async fn unwritable_store_is_unavailable_on_every_write_path() {
    let storage = TestStorage::new();
    let server =
        GrpcTestServer::start_with(crate::support::operations_builder().storage(storage.clone()))
            .await;
    let (name, token) = create_running(&server.operations).await;
    let done = create_succeeded(&server.operations).await;
    storage.set_write_mode(WriteMode::Fail);
    let mut client = server.client().await;
    let cancel = CancelOperationRequest {
        name: name.to_string(),
    };
    let delete = |name: &longrunning::OperationName| DeleteOperationRequest {
        name: name.to_string(),
    };
    let errors = [
        expect_status_error(client.cancel_operation(cancel).await),
        expect_status_error(client.delete_operation(delete(&name)).await),
        expect_status_error(client.delete_operation(delete(&done)).await),
        to_grpc_error(server.operations.renew(&name, token).await.unwrap_err()),
        to_grpc_error(
            server
                .operations
                .succeed(&name, token, string_value(""))
                .await
                .unwrap_err(),
        ),
        expect_create_error(&server.operations, NewOperation::queued("q")).await,
    ];
    for details in errors {
        assert_eq!(
            details.code_and_reason(),
            (Code::Unavailable, "STORE_UNAVAILABLE")
        );
        assert!(
            details
                .retry_info
                .is_some_and(|retry| retry.retry_delay.is_some())
        );
        assert!(
            !details.message.contains("failed by the test"),
            "expected no internal error text in the message"
        );
    }
    // Reads do not write to the storage.
    client
        .get_operation(get_request(name.as_str()))
        .await
        .unwrap();
}

// Rules: SHUTDOWN-2
#[tokio::test]
async fn create_during_shutdown_is_rejected_with_retry_info() {
    let operations = start_operations().await;
    operations.shutdown(std::time::Duration::ZERO).await;
    let details = expect_create_error(&operations, NewOperation::queued("q")).await;
    assert_eq!(
        details.code_and_reason(),
        (Code::Unavailable, "SHUTTING_DOWN")
    );
    assert!(details.retry_info.is_some());
}
