//! Faults of other servers in the fields, the names and the lifetime of operations.

use std::time::Duration;

use longrunning::{
    Any, Context, Failure, NewOperation, State,
    proto::google::{
        longrunning::{CancelOperationRequest, DeleteOperationRequest, ListOperationsRequest},
        rpc,
    },
};
use tonic::Code;

use crate::support::{
    GrpcTestServer,
    assertions::assert_error_code,
    create_leased, create_pending, create_running, create_succeeded, custom_metadata,
    decode_metadata,
    error_details::expect_status_error,
    expect_response, get_request,
    harness::queued_request,
    operations::{list_request, start_operations},
    operations_builder, string_value, wait_request,
};

// Fault: a failed operation has an error with code 0, which clients read as success.
// Rules: HANDLER-1, OP-4
#[tokio::test]
async fn failed_operation_always_has_error_code() {
    let server = GrpcTestServer::start().await;
    let (name, token) = create_running(&server.operations).await;
    let status_without_code = rpc::Status {
        message: "it failed".into(),
        ..Default::default()
    };
    server
        .operations
        .fail(&name, token, status_without_code.into())
        .await
        .unwrap_err();
    let failing_handler = |_: Context| async {
        let status_without_code = rpc::Status {
            message: "it failed".into(),
            ..Default::default()
        };
        Err::<Any, _>(Failure::from(status_without_code))
    };
    let operations = operations_builder()
        .handler("q", 1, failing_handler)
        .start()
        .await
        .unwrap();
    let name = operations
        .submit("q", string_value(""))
        .await
        .unwrap()
        .name_owned();
    let done = operations
        .wait(&name, Duration::from_secs(60))
        .await
        .unwrap();
    assert_error_code(&done.to_proto(), Code::Internal);
}

// Fault: a done operation has neither response nor error.
// Rules: OP-2
#[tokio::test]
async fn done_operation_has_exactly_one_of_response_and_error() {
    let handler = |_: Context| async { Ok::<Any, Failure>(Any::default()) };
    let server = GrpcTestServer::start_with(operations_builder().handler("q", 1, handler)).await;
    let name = server
        .operations
        .submit("q", string_value(""))
        .await
        .unwrap()
        .name_owned();
    let mut client = server.client().await;
    let done = client
        .wait_operation(wait_request(&name, 60_000))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        expect_response(&done).type_url,
        "type.googleapis.com/google.protobuf.Empty"
    );
}

// Fault: an unknown operation is an INTERNAL error or an empty response.
// Rules: GET-2
#[tokio::test]
async fn unknown_operation_is_not_found_on_every_method() {
    let server = GrpcTestServer::start().await;
    let mut client = server.client().await;
    let name = "operations/missing".to_owned();
    let codes = [
        expect_status_error(client.get_operation(get_request(&name)).await).code,
        expect_status_error(
            client
                .wait_operation(wait_request(&name.parse().unwrap(), 60_000))
                .await,
        )
        .code,
        expect_status_error(
            client
                .cancel_operation(CancelOperationRequest { name: name.clone() })
                .await,
        )
        .code,
        expect_status_error(
            client
                .delete_operation(DeleteOperationRequest { name })
                .await,
        )
        .code,
    ];
    assert_eq!(codes, [Code::NotFound; 4]);
}

// Fault: cancel of a done operation fails with UNKNOWN.
// Rules: CAN-3
#[tokio::test]
async fn cancel_of_done_operation_succeeds() {
    let server = GrpcTestServer::start().await;
    let name = create_succeeded(&server.operations).await;
    let request = CancelOperationRequest {
        name: name.to_string(),
    };
    server
        .client()
        .await
        .cancel_operation(request)
        .await
        .unwrap();
    assert_eq!(
        server.operations.get_cached(&name).unwrap().state(),
        State::Succeeded
    );
}

// Fault: delete cancels or fails a running operation, or has no effect.
// Rules: DEL-1
#[tokio::test]
async fn delete_hides_running_operation_without_cancelling_it() {
    let server = GrpcTestServer::start().await;
    let (name, token) = create_running(&server.operations).await;
    let request = DeleteOperationRequest {
        name: name.to_string(),
    };
    server
        .client()
        .await
        .delete_operation(request)
        .await
        .unwrap();
    assert!(server.operations.get_cached(&name).is_err());
    assert!(
        !server
            .operations
            .renew(&name, token)
            .await
            .unwrap()
            .cancel_requested()
    );
}

// Fault: `projects/..` is a parent, so that a client that normalizes URLs deletes `operations/victim`
// in place of `projects/../operations/victim`. cURL removes dot segments, escaped ones too.
// Rules: NAME-4, NAME-5
#[tokio::test]
async fn name_that_clients_normalize_to_another_is_rejected() {
    let server = GrpcTestServer::start().await;
    let mut worker = server.worker_client().await;
    for (parent, id, field) in [
        ("projects/..", "victim", "parent"),
        ("projects/.", "victim", "parent"),
        ("projects/p/locations/..", "victim", "parent"),
        ("projects/../locations/eu", "victim", "parent"),
        ("../p", "victim", "parent"),
        ("./p", "victim", "parent"),
        ("projects/p", "..", "operation_id"),
        ("projects/p", ".", "operation_id"),
        // The path of this name is a list once a client decodes `%6F`.
        ("projects/p", "operations", "operation_id"),
        ("", "operations", "operation_id"),
    ] {
        let mut request = queued_request("q");
        (request.parent, request.operation_id) = (parent.into(), id.into());
        let details = expect_status_error(worker.create_operation(request).await);
        assert_eq!(
            details.code_and_reason(),
            (Code::InvalidArgument, "INVALID_NAME"),
            "{parent} {id}"
        );
        assert_eq!(details.field_violations[0].0, field, "{parent} {id}");
    }
}

// Fault: names contain the request or count up, so that clients can guess them.
// Rules: OP-7
#[tokio::test]
async fn generated_names_are_random_and_independent_of_request() {
    let server = GrpcTestServer::start().await;
    let new = || NewOperation::queued("q").input(string_value("secret"));
    let first = server.operations.create(new()).await.unwrap().operation;
    let second = server.operations.create(new()).await.unwrap().operation;
    let random_bits = |name: &str| {
        let id: uuid::Uuid = name.strip_prefix("operations/").unwrap().parse().unwrap();
        id.as_u128() & ((1 << 32) - 1)
    };
    assert_ne!(random_bits(first.name()), random_bits(second.name()));
    assert!(random_bits(first.name()).abs_diff(random_bits(second.name())) > 1);
}

// Fault: retention starts at creation, so that slow operations expire when done.
// Rules: OP-10
#[tokio::test(start_paused = true)]
async fn retention_starts_at_completion_of_slow_operation() {
    let operations = start_operations().await;
    let day = Duration::from_secs(86_400);
    let new = NewOperation::self_executed("w").lease_duration(9 * day);
    let (name, token) = create_leased(&operations, new).await;
    tokio::time::sleep(3 * day).await;
    operations
        .succeed(&name, token, string_value("result"))
        .await
        .unwrap();
    tokio::time::sleep(day - Duration::from_secs(1)).await;
    assert_eq!(
        expect_response(&operations.get_cached(&name).unwrap().to_proto()),
        string_value("result")
    );
}

// Fault: completion drops the metadata.
// Rules: OP-14
#[tokio::test]
async fn metadata_survives_completion() {
    let server = GrpcTestServer::start().await;
    let done = create_succeeded(&server.operations).await;
    assert_eq!(
        decode_metadata(&server.operations.get_cached(&done).unwrap().to_proto()).attempt,
        1
    );
    let new = NewOperation::self_executed("w").metadata(custom_metadata(9));
    let (name, token) = create_leased(&server.operations, new).await;
    server
        .operations
        .succeed(&name, token, string_value(""))
        .await
        .unwrap();
    let final_metadata = server
        .operations
        .get_cached(&name)
        .unwrap()
        .to_proto()
        .metadata;
    assert_eq!(final_metadata, Some(custom_metadata(9)));
}

// Fault: return_partial_success is ignored.
// Rules: LIST-12
#[tokio::test]
async fn return_partial_success_is_honoured_or_rejected_never_ignored() {
    let server = GrpcTestServer::start().await;
    create_pending(&server.operations).await;
    let mut client = server.client().await;
    let partial = |name: &str| ListOperationsRequest {
        return_partial_success: true,
        ..list_request(name)
    };
    let all = client
        .list_operations(partial("operations"))
        .await
        .unwrap()
        .into_inner();
    assert!(all.unreachable.is_empty() && all.operations.len() == 1);
    let rejected = expect_status_error(client.list_operations(partial("projects/p")).await);
    assert_eq!(
        rejected.code_and_reason(),
        (Code::InvalidArgument, "INVALID_PARTIAL_SUCCESS")
    );
}
