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

use crate::support::{Server, error, pending, response, running, text, wait};

fn list(page_size: i32, page_token: &str) -> ListOperationsRequest {
    ListOperationsRequest {
        page_size,
        page_token: page_token.into(),
        ..Default::default()
    }
}

// 1, WAIT-2
#[tokio::test]
async fn a_wait_that_runs_out_is_no_error() {
    let server = Server::start().await;
    let (name, _) = running(&server.operations).await;
    let answer = server
        .client()
        .await
        .wait_operation(wait(&name, 30))
        .await
        .unwrap();
    assert!(!answer.into_inner().done);
}

// 2, WAIT-6, WAIT-9
#[tokio::test]
async fn a_wait_ends_with_its_client_and_has_a_cap_without_a_timeout() {
    let waits = longrunning::WaitLimits {
        default: Duration::from_millis(50),
        ..Default::default()
    };
    let server = Server::with_waits(crate::support::operations(), waits).await;
    let (name, _) = running(&server.operations).await;
    let mut client = server.client().await;
    let endless = WaitOperationRequest {
        name: name.to_string(),
        timeout: None,
    };
    assert!(
        !client
            .wait_operation(endless)
            .await
            .unwrap()
            .into_inner()
            .done
    );
    let request = wait(&name, 600_000);
    let open = tokio::spawn(async move { client.wait_operation(request).await });
    while server.operations.waiters() == 0 {
        tokio::task::yield_now().await;
    }
    open.abort();
    while server.operations.waiters() != 0 {
        tokio::task::yield_now().await;
    }
}

// 3, WAIT-11: the races themselves are in `races`; here the watch's first word.
#[tokio::test]
async fn a_watch_begins_with_the_present_state_and_misses_no_change_after_it() {
    let operations = crate::support::operations().start().await.unwrap();
    let (name, token) = running(&operations).await;
    let mut watch = operations.watch(&name).await.unwrap();
    // The change falls between entering and the first look.
    operations
        .succeed(&name, token, text("quick"))
        .await
        .unwrap();
    assert_eq!(
        response(&watch.next().await.unwrap().unwrap().to_proto()),
        text("quick")
    );
    assert!(watch.next().await.is_none());
}

// 4: replicas come later; the nearest form is another handle on another thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_wakes_whichever_handle_and_thread_the_change_comes_from() {
    let operations = crate::support::operations().start().await.unwrap();
    let (name, token) = running(&operations).await;
    let other = operations.clone();
    let finish = {
        let name = name.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            while other.waiters() == 0 {
                std::thread::yield_now();
            }
            runtime
                .block_on(other.succeed(&name, token, text("there")))
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
async fn a_late_success_does_not_replace_a_cancellation() {
    let server = Server::start().await;
    let new = NewOperation::queued("q").retry(RetryPolicy::attempts(9));
    let name = server
        .operations
        .create(new)
        .await
        .unwrap()
        .operation
        .owned_name();
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
    let before = server.operations.get(&name).unwrap();
    server
        .operations
        .succeed(&name, token, text("late"))
        .await
        .unwrap_err();
    server
        .operations
        .fail(&name, token, Failure::new(rpc::Code::Internal, "late"))
        .await
        .unwrap_err();
    assert_eq!(
        server.operations.get(&name).unwrap().bytes(),
        before.bytes()
    );
    assert_eq!(error(&before.to_proto()).code, 1);
}

// 6, CAN-5
#[tokio::test]
async fn a_cancellation_over_grpc_reaches_the_code_that_runs() {
    let handler = |context: Context| async move {
        context.cancelled().await;
        Err::<Any, _>(Failure::cancelled())
    };
    let server = Server::with(crate::support::operations().handler("q", 1, handler)).await;
    let name = server
        .operations
        .submit("q", text(""))
        .await
        .unwrap()
        .owned_name();
    while server.operations.get(&name).unwrap().state() != State::Running {
        tokio::task::yield_now().await;
    }
    let mut client = server.client().await;
    let request = CancelOperationRequest {
        name: name.to_string(),
    };
    client.cancel_operation(request).await.unwrap();
    let done = client
        .wait_operation(wait(&name, 60_000))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(error(&done).code, 1);
}

// 7: see `recovery` for the leases; the nearest form without replicas.
#[tokio::test]
async fn a_start_fails_nothing_that_somebody_else_executes() {
    let journal = crate::support::journal::TestJournal::new();
    let operations = crate::support::operations()
        .journal(journal.clone())
        .start()
        .await
        .unwrap();
    let (name, token) = running(&operations).await;
    drop(operations);
    while !journal.is_alone() {
        tokio::task::yield_now().await;
    }
    let journal = crate::support::journal::TestJournal::with(journal.into_kept());
    let operations = crate::support::operations()
        .journal(journal)
        .start()
        .await
        .unwrap();
    assert_eq!(operations.get(&name).unwrap().state(), State::Running);
    operations
        .succeed(&name, token, text("it went on"))
        .await
        .unwrap();
}

// 8, LIST-1, LIST-2, LIST-3
#[tokio::test]
async fn a_page_size_above_the_maximum_is_coerced_and_pages_lead_on_by_opaque_tokens() {
    let server = Server::start().await;
    for _ in 0..3 {
        pending(&server.operations).await;
    }
    let mut client = server.client().await;
    let all = client
        .list_operations(list(i32::MAX, ""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (all.operations.len(), all.next_page_token.as_str()),
        (3, "")
    );
    let first = client
        .list_operations(list(2, ""))
        .await
        .unwrap()
        .into_inner();
    assert!(!first.next_page_token.contains("operations"));
    let rest = client
        .list_operations(list(2, &first.next_page_token))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(rest.operations, all.operations[2..]);
}
