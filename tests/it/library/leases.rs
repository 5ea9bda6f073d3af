//! Leases through the library API: tokens, contents, order and release.

use longrunning::{
    Failure, LeaseToken, NewOperation, Payload, QueueName, Report, RetryPolicy, State, WorkerId,
    proto::google::rpc::Code,
};

use crate::support::{
    assertions::assert_failed_with, create_pending, create_running, create_succeeded,
    custom_metadata, decode_metadata, operations::start_operations, progress, string_value,
};

fn queue_name() -> QueueName {
    QueueName::parse("idle").unwrap()
}

// Rules: STATE-2
#[tokio::test]
async fn stale_or_unknown_lease_token_changes_nothing() {
    let operations = start_operations().await;
    let retry = RetryPolicy::with_max_attempts(3).with_initial_backoff(std::time::Duration::ZERO);
    let new = NewOperation::queued("idle").retry_policy(retry);
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
                "expected a new token for each lease"
            );
        }
        let before = operations.get_cached(&name).unwrap();
        for token in [
            stale,
            LeaseToken::random(),
            LeaseToken::from_bytes(&[0; 16]).unwrap(),
        ] {
            let rejected = [
                operations.renew(&name, token).await,
                operations.report(&name, token, Report::default()).await,
                operations.release(&name, token).await,
                operations.fail(&name, token, failure.clone()).await,
                operations
                    .fail(&name, token, Failure::new(Code::Internal, "no"))
                    .await,
                operations.succeed(&name, token, string_value("")).await,
            ];
            for rejected in rejected {
                let rejected = rejected.unwrap_err();
                assert_eq!(
                    (rejected.code(), rejected.reason()),
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

// Rules: STATE-3
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
    for rejected in [
        operations.renew(&name, token).await,
        operations.report(&name, token, Report::default()).await,
        operations.release(&name, token).await,
        operations.fail(&name, token, failure.clone()).await,
        operations
            .fail(&name, token, failure.clone().retryable())
            .await,
        operations.succeed(&name, token, string_value("two")).await,
    ] {
        let rejected = rejected.unwrap_err();
        assert_eq!(
            (rejected.code(), rejected.reason()),
            (Code::FailedPrecondition, "OPERATION_ALREADY_DONE")
        );
    }
    let (name, token) = create_running(&operations).await;
    for failure in [failure.clone(), failure.clone(), failure.retryable()] {
        operations
            .fail(&name, token, failure)
            .await
            .expect("expected the same error to be accepted again");
    }
    assert_eq!(operations.get_cached(&name).unwrap().revision(), 1);
}

// Rules: LEASE-4
#[tokio::test]
async fn lease_contains_input_checkpoint_and_labels() {
    let operations = start_operations().await;
    let retry = RetryPolicy::with_max_attempts(2).with_initial_backoff(std::time::Duration::ZERO);
    let new = NewOperation::queued("idle")
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
    // A later report without checkpoint and progress keeps them.
    let detail = Report {
        detail: Some(Payload::new(string_value("half")).unwrap()),
        ..Report::default()
    };
    let reported = operations.report(&name, token, detail).await.unwrap();
    assert_eq!(reported.progress().unwrap().done_units, 7);
    assert_eq!(
        decode_metadata(&reported.to_proto()).detail,
        Some(string_value("half"))
    );
    let failure = Failure::new(Code::Unavailable, "again").retryable();
    operations.fail(&name, token, failure).await.unwrap();
    let again = operations.lease(&queue_name(), &worker).await.unwrap();
    assert_eq!(again.checkpoint().unwrap().any(), &custom_metadata(7));
    assert_eq!(again.input().unwrap().any(), &string_value("input"));
    assert_eq!(again.attempt(), 2);
}

// Rules: QUEUE-1
#[tokio::test]
async fn leases_are_ordered_by_priority_then_age_also_after_release() {
    let operations = start_operations().await;
    let mut names = Vec::new();
    for priority in [0, 5, 0, -1, 5] {
        let new = NewOperation::queued("idle").priority(priority);
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

// Rules: QUEUE-2
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

// A self-executed operation has no queue to return to.
// Rules: STATE-7
#[tokio::test]
async fn released_self_executed_operation_fails_with_worker_lost() {
    let operations = start_operations().await;
    let (name, token) = create_running(&operations).await;
    let done = operations.release(&name, token).await.unwrap();
    assert_failed_with(&done.to_proto(), Code::Unavailable, "WORKER_LOST");
}
