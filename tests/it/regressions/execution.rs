//! The seventeen bugs that reading other servers brought to light
//! (`research/peers.md` §1.3), each as the rule that keeps it out of this one:
//! 1 to 8, about waiting, cancelling and starting. 9 to 17 are in `bugs_of_shape`.

use std::time::Duration;

use longrunning::{
    Any, Context, Failure, NewOperation, RetryPolicy, State,
    proto::google::{
        longrunning::{CancelOperationRequest, ListOperationsRequest, WaitOperationRequest},
        rpc,
    },
};

use crate::support::{
    GrpcTestServer, create_pending, create_running, expect_error, expect_response, string_value,
    wait_request,
};

fn list_request(page_size: i32, page_token: &str) -> ListOperationsRequest {
    ListOperationsRequest {
        page_size,
        page_token: page_token.into(),
        ..Default::default()
    }
}

// 1, WAIT-2
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

// 2, WAIT-6, WAIT-9
#[tokio::test]
async fn wait_without_timeout_is_capped_and_disconnect_frees_its_waiter() {
    let wait_limits =
        longrunning::WaitLimits::default().with_default_timeout(Duration::from_millis(50));
    let server =
        GrpcTestServer::start_with_wait_limits(crate::support::operations_builder(), wait_limits)
            .await;
    let (name, _) = create_running(&server.operations).await;
    let mut client = server.client().await;
    let no_timeout = WaitOperationRequest {
        name: name.to_string(),
        timeout: None,
    };
    assert!(
        !client
            .wait_operation(no_timeout)
            .await
            .unwrap()
            .into_inner()
            .done
    );
    let request = wait_request(&name, 600_000);
    let wait_task = tokio::spawn(async move { client.wait_operation(request).await });
    while server.operations.waiter_count() == 0 {
        tokio::task::yield_now().await;
    }
    wait_task.abort();
    while server.operations.waiter_count() != 0 {
        tokio::task::yield_now().await;
    }
}

// 3, WAIT-11: the races themselves are in `races`; here the watch's first word.
#[tokio::test]
async fn watch_returns_change_made_between_subscription_and_first_read() {
    let operations = crate::support::operations_builder().start().await.unwrap();
    let (name, token) = create_running(&operations).await;
    let mut watch = operations.watch(&name).await.unwrap();
    // The change falls between entering and the first look.
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

// 4: replicas come later; the nearest form is another handle on another thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_is_woken_by_change_through_another_handle_and_thread() {
    let operations = crate::support::operations_builder().start().await.unwrap();
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

// 5, OP-6
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
    let queue = longrunning::QueueName::parse("q").unwrap();
    let leased = server
        .operations
        .lease(&queue, &longrunning::WorkerId::new("w"))
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
        .fail(&name, token, Failure::new(rpc::Code::Internal, "late"))
        .await
        .unwrap_err();
    assert_eq!(
        server.operations.get_cached(&name).unwrap().bytes(),
        before.bytes()
    );
    assert_eq!(expect_error(&before.to_proto()).code, 1);
}

// 6, CAN-5
#[tokio::test]
async fn grpc_cancel_reaches_running_handler() {
    let handler = |context: Context| async move {
        context.cancelled().await;
        Err::<Any, _>(Failure::cancelled())
    };
    let server =
        GrpcTestServer::start_with(crate::support::operations_builder().handler("q", 1, handler))
            .await;
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
    assert_eq!(expect_error(&done).code, 1);
}

// 7: see `recovery` for the leases; the nearest form without replicas.
#[tokio::test]
async fn server_restart_does_not_fail_self_executed_operations() {
    let storage = crate::support::test_storage::TestStorage::new();
    let operations = crate::support::operations_builder()
        .storage(storage.clone())
        .start()
        .await
        .unwrap();
    let (name, token) = create_running(&operations).await;
    drop(operations);
    while !storage.is_released() {
        tokio::task::yield_now().await;
    }
    let storage = crate::support::test_storage::TestStorage::with_operations(storage.into_stored());
    let operations = crate::support::operations_builder()
        .storage(storage)
        .start()
        .await
        .unwrap();
    assert_eq!(
        operations.get_cached(&name).unwrap().state(),
        State::Running
    );
    operations
        .succeed(&name, token, string_value("it went on"))
        .await
        .unwrap();
}

// 8, LIST-1, LIST-2, LIST-3
#[tokio::test]
async fn page_size_is_clamped_and_opaque_tokens_continue_list() {
    let server = GrpcTestServer::start().await;
    for _ in 0..3 {
        create_pending(&server.operations).await;
    }
    let mut client = server.client().await;
    let all = client
        .list_operations(list_request(i32::MAX, ""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (all.operations.len(), all.next_page_token.as_str()),
        (3, "")
    );
    let first = client
        .list_operations(list_request(2, ""))
        .await
        .unwrap()
        .into_inner();
    assert!(!first.next_page_token.contains("operations"));
    let rest = client
        .list_operations(list_request(2, &first.next_page_token))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(rest.operations, all.operations[2..]);
}
