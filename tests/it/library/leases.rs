//! Leases, through the library: the truth that remote workers will get over
//! `longrunning.v1.OperationWorker`, which does not exist yet.

use longrunning::{
    Failure, LeaseToken, NewOperation, Operations, Payload, QueueName, Report, RetryPolicy, State,
    WorkerId, proto::google::rpc::Code,
};

use crate::support::{
    create_pending, create_running, create_succeeded, custom_metadata, progress, string_value,
};

async fn start_operations() -> Operations {
    crate::support::operations_builder().start().await.unwrap()
}

fn queue_name() -> QueueName {
    QueueName::parse("nobody").unwrap()
}

// BEHAVIOUR §4
#[tokio::test]
async fn stale_or_unknown_lease_token_changes_nothing() {
    let operations = start_operations().await;
    let retry = RetryPolicy::with_max_attempts(3).with_initial_backoff(std::time::Duration::ZERO);
    let new = NewOperation::queued("nobody").retry_policy(retry);
    let name = operations.create(new).await.unwrap().operation.name_owned();
    let worker = WorkerId::new("w");
    let stale = operations
        .lease(&queue_name(), &worker)
        .await
        .unwrap()
        .lease()
        .unwrap()
        .token;
    let failure = Failure::new(Code::Internal, "again").retryable();
    operations
        .fail(&name, stale, failure.clone())
        .await
        .unwrap();
    for is_leased in [false, true] {
        if is_leased {
            let token = operations
                .lease(&queue_name(), &worker)
                .await
                .unwrap()
                .lease()
                .unwrap()
                .token;
            assert_ne!(
                token.as_bytes(),
                stale.as_bytes(),
                "tokens are new at every acquisition"
            );
        }
        let before = operations.get_cached(&name).unwrap();
        for token in [
            stale,
            LeaseToken::random(),
            LeaseToken::from_bytes(&[0; 16]).unwrap(),
        ] {
            let refused = [
                operations.renew(&name, token).await,
                operations.report(&name, token, Report::default()).await,
                operations.release(&name, token).await,
                operations.fail(&name, token, failure.clone()).await,
                operations
                    .fail(&name, token, Failure::new(Code::Internal, "no"))
                    .await,
                operations.succeed(&name, token, string_value("")).await,
            ];
            for refused in refused {
                let refused = refused.unwrap_err();
                assert_eq!(
                    (refused.code(), refused.reason()),
                    (Code::FailedPrecondition, "LEASE_LOST")
                );
            }
        }
        let after = operations.get_cached(&name).unwrap();
        assert_eq!(
            (after.revision(), after.bytes()),
            (before.revision(), before.bytes())
        );
    }
}

// BEHAVIOUR §4
#[tokio::test]
async fn done_operation_accepts_only_same_outcome_again() {
    let operations = start_operations().await;
    let (name, token) = create_running(&operations).await;
    operations
        .succeed(&name, token, string_value("one"))
        .await
        .unwrap();
    let before = operations.get_cached(&name).unwrap();
    let same = operations
        .succeed(&name, token, string_value("one"))
        .await
        .unwrap();
    assert_eq!(same.bytes(), before.bytes());
    let failure = Failure::new(Code::Internal, "no");
    for refused in [
        operations.renew(&name, token).await,
        operations.report(&name, token, Report::default()).await,
        operations.release(&name, token).await,
        operations.fail(&name, token, failure.clone()).await,
        operations
            .fail(&name, token, failure.clone().retryable())
            .await,
        operations.succeed(&name, token, string_value("two")).await,
    ] {
        let refused = refused.unwrap_err();
        assert_eq!(
            (refused.code(), refused.reason()),
            (Code::FailedPrecondition, "OPERATION_ALREADY_DONE")
        );
    }
    let (name, token) = create_running(&operations).await;
    for failure in [failure.clone(), failure.clone(), failure.retryable()] {
        operations
            .fail(&name, token, failure)
            .await
            .expect("the same error, all three times");
    }
    assert_eq!(operations.get_cached(&name).unwrap().revision(), 1);
}

// BEHAVIOUR §5
#[tokio::test]
async fn lease_contains_input_checkpoint_and_labels() {
    let operations = start_operations().await;
    let retry = RetryPolicy::with_max_attempts(2).with_initial_backoff(std::time::Duration::ZERO);
    let new = NewOperation::queued("nobody")
        .input(string_value("input"))
        .label("team", "blue")
        .retry_policy(retry);
    let name = operations.create(new).await.unwrap().operation.name_owned();
    let worker = WorkerId::new("worker 7");
    let leased = operations.lease(&queue_name(), &worker).await.unwrap();
    assert_eq!(leased.input().unwrap().any(), &string_value("input"));
    assert!(leased.checkpoint().is_none());
    assert_eq!(leased.labels().get("team"), Some("blue"));
    assert_eq!(leased.lease().unwrap().holder.as_str(), "worker 7");
    let token = leased.lease().unwrap().token;
    let report = Report {
        checkpoint: Some(Payload::new(custom_metadata(7)).unwrap()),
        progress: Some(progress(7)),
        ..Report::default()
    };
    operations.report(&name, token, report).await.unwrap();
    // A later report that leaves them out keeps them.
    let detail = Report {
        detail: Some(Payload::new(string_value("half")).unwrap()),
        ..Report::default()
    };
    let reported = operations.report(&name, token, detail).await.unwrap();
    assert_eq!(reported.progress().unwrap().done_units, 7);
    assert_eq!(
        crate::support::decode_metadata(&reported.to_proto()).detail,
        Some(string_value("half"))
    );
    let failure = Failure::new(Code::Unavailable, "again").retryable();
    operations.fail(&name, token, failure).await.unwrap();
    let again = operations.lease(&queue_name(), &worker).await.unwrap();
    assert_eq!(again.checkpoint().unwrap().any(), &custom_metadata(7));
    assert_eq!(again.input().unwrap().any(), &string_value("input"));
    assert_eq!(again.attempt(), 2);
}

// BEHAVIOUR §5
#[tokio::test]
async fn leases_are_ordered_by_priority_then_age_also_after_release() {
    let operations = start_operations().await;
    let mut names = Vec::new();
    for priority in [0, 5, 0, -1, 5] {
        let new = NewOperation::queued("nobody").priority(priority);
        names.push(operations.create(new).await.unwrap().operation.name_owned());
    }
    let worker = WorkerId::new("w");
    let first = operations.lease(&queue_name(), &worker).await.unwrap();
    assert_eq!(first.name_owned(), names[1]);
    operations
        .release(&names[1], first.lease().unwrap().token)
        .await
        .unwrap();
    for index in [1, 4, 0, 2, 3] {
        let leased = operations.lease(&queue_name(), &worker).await.unwrap();
        assert_eq!(leased.name_owned(), names[index]);
    }
}

// BEHAVIOUR §4
#[tokio::test]
async fn only_pending_operations_are_leased() {
    let operations = start_operations().await;
    let cancelled = create_pending(&operations).await;
    operations.cancel(&cancelled).await.unwrap();
    create_succeeded(&operations).await;
    create_running(&operations).await;
    let (queue, worker) = (queue_name(), WorkerId::new("w"));
    let mut lease = Box::pin(operations.lease(&queue, &worker));
    assert!(futures_util::poll!(lease.as_mut()).is_pending());
    let name = create_pending(&operations).await;
    let leased = lease.await.unwrap();
    assert_eq!(
        (leased.name_owned(), leased.state()),
        (name, State::Running)
    );
}

// BEHAVIOUR §4: an operation that its creator executes has no queue to go back to.
#[tokio::test]
async fn released_self_executed_operation_fails_with_worker_lost() {
    let operations = start_operations().await;
    let (name, token) = create_running(&operations).await;
    let done = operations.release(&name, token).await.unwrap();
    let error = crate::support::expect_error(&done.to_proto());
    assert_eq!(
        (error.code, crate::support::error_reason(&error).as_str()),
        (14, "WORKER_LOST")
    );
}
