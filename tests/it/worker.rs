//! Leases, through the library: the truth that remote workers will get over
//! `longrunning.v1.OperationWorker`, which does not exist yet.

use longrunning::{
    Failure, LeaseToken, NewOperation, Operations, Payload, QueueName, Report, RetryPolicy, State,
    WorkerId, proto::google::rpc::Code,
};

use crate::support::{own_metadata, pending, progress, running, succeeded, text};

async fn start() -> Operations {
    crate::support::operations().start().await.unwrap()
}

fn queue() -> QueueName {
    QueueName::parse("nobody").unwrap()
}

// BEHAVIOUR §4
#[tokio::test]
async fn a_stale_or_foreign_lease_never_changes_anything() {
    let operations = start().await;
    let retry = RetryPolicy {
        initial_backoff: std::time::Duration::ZERO,
        ..RetryPolicy::attempts(3)
    };
    let new = NewOperation::queued("nobody").retry(retry);
    let name = operations.create(new).await.unwrap().operation.owned_name();
    let worker = WorkerId::new("w");
    let stale = operations
        .lease(&queue(), &worker)
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
    for held in [false, true] {
        if held {
            let token = operations
                .lease(&queue(), &worker)
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
        let before = operations.get(&name).unwrap();
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
                operations.succeed(&name, token, text("")).await,
            ];
            for refused in refused {
                let refused = refused.unwrap_err();
                assert_eq!(
                    (refused.code(), refused.reason()),
                    (Code::FailedPrecondition, "LEASE_LOST")
                );
            }
        }
        let after = operations.get(&name).unwrap();
        assert_eq!(
            (after.revision(), after.bytes()),
            (before.revision(), before.bytes())
        );
    }
}

// BEHAVIOUR §4
#[tokio::test]
async fn on_a_done_operation_a_worker_is_refused_all_but_the_same_outcome_again() {
    let operations = start().await;
    let (name, token) = running(&operations).await;
    operations.succeed(&name, token, text("one")).await.unwrap();
    let before = operations.get(&name).unwrap();
    let same = operations.succeed(&name, token, text("one")).await.unwrap();
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
        operations.succeed(&name, token, text("two")).await,
    ] {
        let refused = refused.unwrap_err();
        assert_eq!(
            (refused.code(), refused.reason()),
            (Code::FailedPrecondition, "OPERATION_DONE")
        );
    }
    let (name, token) = running(&operations).await;
    for failure in [failure.clone(), failure.clone(), failure.retryable()] {
        operations
            .fail(&name, token, failure)
            .await
            .expect("the same error, all three times");
    }
    assert_eq!(operations.get(&name).unwrap().revision(), 1);
}

// BEHAVIOUR §5
#[tokio::test]
async fn a_lease_brings_the_input_the_checkpoint_and_the_labels() {
    let operations = start().await;
    let retry = RetryPolicy {
        initial_backoff: std::time::Duration::ZERO,
        ..RetryPolicy::attempts(2)
    };
    let new = NewOperation::queued("nobody")
        .input(text("input"))
        .label("team", "blue")
        .retry(retry);
    let name = operations.create(new).await.unwrap().operation.owned_name();
    let worker = WorkerId::new("worker 7");
    let leased = operations.lease(&queue(), &worker).await.unwrap();
    assert_eq!(leased.input().unwrap().any(), &text("input"));
    assert!(leased.checkpoint().is_none());
    assert_eq!(leased.labels().get("team"), Some("blue"));
    assert_eq!(leased.lease().unwrap().holder.as_str(), "worker 7");
    let token = leased.lease().unwrap().token;
    let report = Report {
        checkpoint: Some(Payload::new(own_metadata(7)).unwrap()),
        progress: Some(progress(7)),
        ..Report::default()
    };
    operations.report(&name, token, report).await.unwrap();
    // A later report that leaves them out keeps them.
    let detail = Report {
        detail: Some(Payload::new(text("half")).unwrap()),
        ..Report::default()
    };
    let reported = operations.report(&name, token, detail).await.unwrap();
    assert_eq!(reported.progress().unwrap().done_units, 7);
    assert_eq!(
        crate::support::metadata(&reported.to_proto()).detail,
        Some(text("half"))
    );
    let failure = Failure::new(Code::Unavailable, "again").retryable();
    operations.fail(&name, token, failure).await.unwrap();
    let again = operations.lease(&queue(), &worker).await.unwrap();
    assert_eq!(again.checkpoint().unwrap().any(), &own_metadata(7));
    assert_eq!(again.input().unwrap().any(), &text("input"));
    assert_eq!(again.attempt(), 2);
}

// BEHAVIOUR §5
#[tokio::test]
async fn leases_come_by_priority_then_age_and_keep_their_place_when_released() {
    let operations = start().await;
    let mut names = Vec::new();
    for priority in [0, 5, 0, -1, 5] {
        let new = NewOperation::queued("nobody").priority(priority);
        names.push(operations.create(new).await.unwrap().operation.owned_name());
    }
    let worker = WorkerId::new("w");
    let first = operations.lease(&queue(), &worker).await.unwrap();
    assert_eq!(first.owned_name(), names[1]);
    operations
        .release(&names[1], first.lease().unwrap().token)
        .await
        .unwrap();
    for at in [1, 4, 0, 2, 3] {
        let leased = operations.lease(&queue(), &worker).await.unwrap();
        assert_eq!(leased.owned_name(), names[at]);
    }
}

// BEHAVIOUR §4
#[tokio::test]
async fn what_is_not_pending_is_not_leased() {
    let operations = start().await;
    let cancelled = pending(&operations).await;
    operations.cancel(&cancelled).await.unwrap();
    succeeded(&operations).await;
    running(&operations).await;
    let (queue, worker) = (queue(), WorkerId::new("w"));
    let mut lease = Box::pin(operations.lease(&queue, &worker));
    assert!(futures_util::poll!(lease.as_mut()).is_pending());
    let name = pending(&operations).await;
    let leased = lease.await.unwrap();
    assert_eq!(
        (leased.owned_name(), leased.state()),
        (name, State::Running)
    );
}

// BEHAVIOUR §4: an operation that its creator executes has no queue to go back to.
#[tokio::test]
async fn a_creator_that_gives_its_operation_up_has_lost_it() {
    let operations = start().await;
    let (name, token) = running(&operations).await;
    let done = operations.release(&name, token).await.unwrap();
    let error = crate::support::error(&done.to_proto());
    assert_eq!(
        (error.code, crate::support::reason(&error).as_str()),
        (14, "WORKER_LOST")
    );
}
