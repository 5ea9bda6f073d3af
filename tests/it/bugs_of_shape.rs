//! Bugs 9 to 17 of `research/peers.md` §1.3: what an operation looks like and
//! how long it lives. The others are in `bugs`.

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
    Server, error, get, hold, metadata, own_metadata, pending, problem::problem, response, running,
    succeeded, text, wait,
};

// 9, OP-4
#[tokio::test]
async fn a_failed_operation_always_has_a_code() {
    let server = Server::start().await;
    let (name, token) = running(&server.operations).await;
    let without = rpc::Status {
        message: "it failed".into(),
        ..Default::default()
    };
    server
        .operations
        .fail(&name, token, without.into())
        .await
        .unwrap_err();
    let failing = |_: Context| async {
        let without = rpc::Status {
            message: "it failed".into(),
            ..Default::default()
        };
        Err::<Any, _>(Failure::from(without))
    };
    let operations = crate::support::operations()
        .handler("q", 1, failing)
        .start()
        .await
        .unwrap();
    let name = operations.submit("q", text("")).await.unwrap().owned_name();
    let done = operations
        .wait(&name, Duration::from_secs(60))
        .await
        .unwrap();
    assert_eq!(error(&done.to_proto()).code, 13);
}

// 10, OP-2
#[tokio::test]
async fn a_done_operation_has_exactly_one_of_response_and_error() {
    let handler = |_: Context| async { Ok::<Any, Failure>(Any::default()) };
    let server = Server::with(crate::support::operations().handler("q", 1, handler)).await;
    let name = server
        .operations
        .submit("q", text(""))
        .await
        .unwrap()
        .owned_name();
    let mut client = server.client().await;
    let done = client
        .wait_operation(wait(&name, 60_000))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        response(&done).type_url,
        "type.googleapis.com/google.protobuf.Empty"
    );
}

// 11, GET-2
#[tokio::test]
async fn a_missing_operation_is_not_found_on_every_method() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let name = "operations/missing".to_owned();
    let codes = [
        problem(client.get_operation(get(&name)).await).code,
        problem(
            client
                .wait_operation(wait(&name.parse().unwrap(), 60_000))
                .await,
        )
        .code,
        problem(
            client
                .cancel_operation(CancelOperationRequest { name: name.clone() })
                .await,
        )
        .code,
        problem(
            client
                .delete_operation(DeleteOperationRequest { name })
                .await,
        )
        .code,
    ];
    assert_eq!(codes, [Code::NotFound; 4]);
}

// 12, CAN-3
#[tokio::test]
async fn cancelling_a_finished_operation_is_ok() {
    let server = Server::start().await;
    let name = succeeded(&server.operations).await;
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
        server.operations.get(&name).unwrap().state(),
        State::Succeeded
    );
}

// 13, DEL-1
#[tokio::test]
async fn deleting_a_running_operation_hides_it_and_does_not_cancel_it() {
    let server = Server::start().await;
    let (name, token) = running(&server.operations).await;
    let request = DeleteOperationRequest {
        name: name.to_string(),
    };
    server
        .client()
        .await
        .delete_operation(request)
        .await
        .unwrap();
    assert!(server.operations.get(&name).is_err());
    assert!(
        !server
            .operations
            .renew(&name, token)
            .await
            .unwrap()
            .cancel_requested()
    );
}

// 14, OP-7
#[tokio::test]
async fn names_are_random_and_tell_nothing_of_the_request() {
    let server = Server::start().await;
    let new = || NewOperation::queued("q").input(text("secret"));
    let first = server.operations.create(new()).await.unwrap().operation;
    let second = server.operations.create(new()).await.unwrap().operation;
    let random = |name: &str| {
        let id: uuid::Uuid = name.strip_prefix("operations/").unwrap().parse().unwrap();
        id.as_u128() & ((1 << 32) - 1)
    };
    assert_ne!(random(first.name()), random(second.name()));
    assert!(1 < random(first.name()).abs_diff(random(second.name())));
}

// 15, OP-10
#[tokio::test(start_paused = true)]
async fn a_slow_operation_can_be_read_for_its_whole_retention_after_it_is_done() {
    let operations = crate::support::operations().start().await.unwrap();
    let day = Duration::from_secs(86_400);
    let new = NewOperation::self_executed("w").lease_duration(9 * day);
    let (name, token) = hold(&operations, new).await;
    tokio::time::sleep(3 * day).await;
    operations
        .succeed(&name, token, text("kept"))
        .await
        .unwrap();
    tokio::time::sleep(day - Duration::from_secs(1)).await;
    assert_eq!(
        response(&operations.get(&name).unwrap().to_proto()),
        text("kept")
    );
}

// 16, OP-14
#[tokio::test]
async fn metadata_is_not_lost_on_completion() {
    let server = Server::start().await;
    let done = succeeded(&server.operations).await;
    assert_eq!(
        metadata(&server.operations.get(&done).unwrap().to_proto()).attempt,
        1
    );
    let new = NewOperation::self_executed("w").metadata(own_metadata(9));
    let (name, token) = hold(&server.operations, new).await;
    server
        .operations
        .succeed(&name, token, text(""))
        .await
        .unwrap();
    let kept = server.operations.get(&name).unwrap().to_proto().metadata;
    assert_eq!(kept, Some(own_metadata(9)));
}

// 17, LIST-12
#[tokio::test]
async fn return_partial_success_is_honoured_or_refused_but_never_ignored() {
    let server = Server::start().await;
    pending(&server.operations).await;
    let mut client = server.client().await;
    let partial = |name: &str| ListOperationsRequest {
        name: name.into(),
        return_partial_success: true,
        ..Default::default()
    };
    let all = client
        .list_operations(partial("operations"))
        .await
        .unwrap()
        .into_inner();
    assert!(all.unreachable.is_empty() && all.operations.len() == 1);
    let one = problem(client.list_operations(partial("projects/p")).await);
    assert_eq!(
        one.key(),
        (Code::InvalidArgument, "INVALID_PARTIAL_SUCCESS")
    );
}
