//! Faults of other servers in waiting, cancelling, restarting and listing.

use std::time::Duration;

use longrunning::{
    Any, Context, Failure, NewOperation, QueueName, RetryPolicy, State, WorkerId,
    proto::google::{longrunning::CancelOperationRequest, rpc::Code},
};

use crate::support::{
    GrpcTestServer,
    assertions::assert_error_code,
    create_pending, create_running, expect_response,
    operations::{page_request, start_operations, wait_for_waiters, wait_request_without_timeout},
    operations_builder, string_value,
    test_storage::TestStorage,
    wait_request,
};

// Fault: a wait that times out returns DEADLINE_EXCEEDED, not the operation.
// Rules: WAIT-2
#[tokio::test]
async fn wait_timeout_returns_unfinished_operation_without_error() {
    let server = GrpcTestServer::start().await;
    let (name, _) = create_running(&server.operations).await;
    let response = server
        .client()
        .await
        .wait_operation(wait_request(&name, 30))
        .await
        .unwrap();
    assert!(!response.into_inner().done);
}

// Fault: a wait without a timeout has no limit and survives a disconnect
// of its client.
// Rules: WAIT-6, WAIT-9
#[tokio::test]
async fn wait_without_timeout_is_capped_and_disconnect_frees_its_waiter() {
    let wait_limits =
        longrunning::WaitLimits::default().with_default_timeout(Duration::from_millis(50));
    let server =
        GrpcTestServer::start_with_wait_limits(crate::support::operations_builder(), wait_limits)
            .await;
    let (name, _) = create_running(&server.operations).await;
    let mut client = server.client().await;
    assert!(
        !client
            .wait_operation(wait_request_without_timeout(&name))
            .await
            .unwrap()
            .into_inner()
            .done
    );
    let request = wait_request(&name, 600_000);
    let wait_task = tokio::spawn(async move { client.wait_operation(request).await });
    wait_for_waiters(&server.operations, 1).await;
    wait_task.abort();
    wait_for_waiters(&server.operations, 0).await;
}

// Fault: a watch subscribes after it has read the state and misses a change in
// between.
// Rules: WAIT-11, WATCH-1
#[tokio::test]
async fn watch_returns_change_made_between_subscription_and_first_read() {
    let operations = start_operations().await;
    let (name, token) = create_running(&operations).await;
    let mut watch = operations.watch(&name).await.unwrap();
    // Change the operation between the subscription and the first read.
    operations
        .succeed(&name, token, string_value("quick"))
        .await
        .unwrap();
    assert_eq!(
        expect_response(&watch.next().await.unwrap().unwrap().to_proto()),
        string_value("quick")
    );
    assert!(watch.next().await.is_none());
}

// Fault: waiters are local to one process or thread, and changes made elsewhere do not
// wake them.
// Rules: WAIT-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_is_woken_by_change_through_another_handle_and_thread() {
    let operations = start_operations().await;
    let (name, token) = create_running(&operations).await;
    let second_handle = operations.clone();
    let finish = {
        let name = name.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            while second_handle.waiter_count() == 0 {
                std::thread::yield_now();
            }
            runtime
                .block_on(second_handle.succeed(&name, token, string_value("there")))
                .unwrap();
        })
    };
    let done = operations
        .wait(&name, Duration::from_secs(60))
        .await
        .unwrap();
    assert_eq!(done.state(), State::Succeeded);
    finish.join().unwrap();
}

// Fault: a late result overwrites the outcome of a cancelled operation.
// Rules: OP-6
#[tokio::test]
async fn late_success_does_not_overwrite_cancellation() {
    let server = GrpcTestServer::start().await;
    let new = NewOperation::queued("q").retry_policy(RetryPolicy::with_max_attempts(9));
    let name = server
        .operations
        .create(new)
        .await
        .unwrap()
        .operation
        .name_owned();
    let queue = QueueName::parse("q").unwrap();
    let leased = server
        .operations
        .lease(&queue, &WorkerId::new("w"))
        .await
        .unwrap();
    let token = leased.lease().unwrap().token;
    server.operations.cancel(&name).await.unwrap();
    server
        .operations
        .fail(&name, token, Failure::cancelled())
        .await
        .unwrap();
    let before = server.operations.get_cached(&name).unwrap();
    server
        .operations
        .succeed(&name, token, string_value("late"))
        .await
        .unwrap_err();
    server
        .operations
        .fail(&name, token, Failure::new(Code::Internal, "late"))
        .await
        .unwrap_err();
    assert_eq!(
        server.operations.get_cached(&name).unwrap().bytes(),
        before.bytes()
    );
    assert_error_code(&before.to_proto(), Code::Cancelled);
}

// Fault: cancel changes the stored operation and does not reach running code.
// Rules: CAN-5
#[tokio::test]
async fn grpc_cancel_reaches_running_handler() {
    let handler = |context: Context| async move {
        context.cancelled().await;
        Err::<Any, _>(Failure::cancelled())
    };
    let server = GrpcTestServer::start_with(operations_builder().handler("q", 1, handler)).await;
    let name = server
        .operations
        .submit("q", string_value(""))
        .await
        .unwrap()
        .name_owned();
    while server.operations.get_cached(&name).unwrap().state() != State::Running {
        tokio::task::yield_now().await;
    }
    let mut client = server.client().await;
    let request = CancelOperationRequest {
        name: name.to_string(),
    };
    client.cancel_operation(request).await.unwrap();
    let done = client
        .wait_operation(wait_request(&name, 60_000))
        .await
        .unwrap()
        .into_inner();
    assert_error_code(&done, Code::Cancelled);
}

// Fault: a server that starts marks every unfinished operation as failed.
// Rules: DUR-6
#[tokio::test]
async fn server_restart_does_not_fail_self_executed_operations() {
    let storage = TestStorage::new();
    let operations = operations_builder()
        .storage(storage.clone())
        .start()
        .await
        .unwrap();
    let (name, token) = create_running(&operations).await;
    drop(operations);
    while !storage.is_released() {
        tokio::task::yield_now().await;
    }
    let storage = TestStorage::with_operations(storage.into_stored());
    let operations = operations_builder().storage(storage).start().await.unwrap();
    assert_eq!(
        operations.get_cached(&name).unwrap().state(),
        State::Running
    );
    operations
        .succeed(&name, token, string_value("done"))
        .await
        .unwrap();
}

// Fault: a large page_size is an error, lists have no page token,
// or the token is a readable id.
// Rules: LIST-1, LIST-2, LIST-3
#[tokio::test]
async fn page_size_is_clamped_and_opaque_tokens_continue_list() {
    let server = GrpcTestServer::start().await;
    for _ in 0..3 {
        create_pending(&server.operations).await;
    }
    let mut client = server.client().await;
    let all = client
        .list_operations(page_request("", i32::MAX, ""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (all.operations.len(), all.next_page_token.as_str()),
        (3, "")
    );
    let first = client
        .list_operations(page_request("", 2, ""))
        .await
        .unwrap()
        .into_inner();
    assert!(!first.next_page_token.contains("operations"));
    let rest = client
        .list_operations(page_request("", 2, &first.next_page_token))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(rest.operations, all.operations[2..]);
}
