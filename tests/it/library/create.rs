//! `Operations::create`: idempotency by request id and by operation id.

use std::time::Duration;

use longrunning::{NewOperation, RetryPolicy, State, proto::google::rpc::Code};
use tokio::task::JoinSet;

use crate::support::{create_leased, custom_metadata, operations::start_operations, string_value};

fn queued() -> NewOperation {
    NewOperation::queued("q")
        .input(string_value("input"))
        .label("a", "b")
}

// Rules: CREATE-4
#[tokio::test]
async fn same_request_id_and_content_returns_same_operation() {
    let operations = start_operations().await;
    let first = operations.create(queued().request_id("r")).await.unwrap();
    assert!(!first.already_existed);
    for _ in 0..3 {
        let again = operations.create(queued().request_id("r")).await.unwrap();
        assert!(again.already_existed);
        assert_eq!(again.operation.name(), first.operation.name());
    }
    let other = operations.create(queued().request_id("R")).await.unwrap();
    assert!(
        !other.already_existed,
        "expected request ids to be case-sensitive"
    );
    assert_eq!(
        operations
            .list(&Default::default())
            .await
            .unwrap()
            .operations
            .len(),
        2
    );
}

// Rules: CREATE-4
#[tokio::test]
async fn retried_create_returns_current_operation_state() {
    let operations = start_operations().await;
    let new = || NewOperation::self_executed("w").request_id("r");
    let (name, token) = create_leased(&operations, new()).await;
    operations
        .succeed(&name, token, string_value("done"))
        .await
        .unwrap();
    let again = operations.create(new()).await.unwrap();
    assert!(again.already_existed);
    assert_eq!(again.operation.state(), State::Succeeded);
}

// Rules: CREATE-5
#[tokio::test]
async fn request_id_with_different_content_is_rejected() {
    let operations = start_operations().await;
    let seven_seconds = Duration::from_secs(7);
    operations.create(queued().request_id("r")).await.unwrap();
    let others = [
        NewOperation::queued("other")
            .input(string_value("input"))
            .label("a", "b"),
        NewOperation::self_executed("q").label("a", "b"),
        NewOperation::queued("q").label("a", "b"),
        queued().input(string_value("other")),
        queued().label("a", "c"),
        queued().label("c", "b"),
        NewOperation::queued("q").input(string_value("input")),
        queued().id("mine"),
        queued().metadata(custom_metadata(1)),
        queued().priority(1),
        queued().total_timeout(seven_seconds),
        queued().attempt_timeout(seven_seconds),
        queued().lease_duration(seven_seconds),
        queued().retention(seven_seconds),
        queued().cancel_grace_period(seven_seconds),
        queued().retry_policy(RetryPolicy::with_max_attempts(2)),
        queued().not_before(std::time::UNIX_EPOCH + seven_seconds),
    ];
    for other in others {
        let text = format!("{other:?}");
        let rejected = operations.create(other.request_id("r")).await.unwrap_err();
        assert_eq!(
            (rejected.code(), rejected.reason()),
            (Code::AlreadyExists, "REQUEST_ID_REUSED"),
            "{text}"
        );
    }
    assert_eq!(
        operations
            .list(&Default::default())
            .await
            .unwrap()
            .operations
            .len(),
        1
    );
}

// The kind of execution is part of the content, whatever its strings are.
// Rules: CREATE-5
#[tokio::test]
async fn queued_and_self_executed_requests_never_share_fingerprint() {
    let operations = start_operations().await;
    let queued_operation = NewOperation::queued("q").request_id("r");
    operations.create(queued_operation).await.unwrap();
    let self_executed = NewOperation::self_executed("\0\0\0\0\0\0\0\0")
        .label("q", "")
        .request_id("r");
    let rejected = operations.create(self_executed).await.unwrap_err();
    assert_eq!(rejected.reason(), "REQUEST_ID_REUSED");
}

// Rules: CREATE-6
#[tokio::test]
async fn request_id_is_scoped_to_parent() {
    let operations = start_operations().await;
    for parent in ["", "projects/p", "projects/q"] {
        let created = operations
            .create(queued().parent(parent).request_id("r"))
            .await
            .unwrap();
        assert!(!created.already_existed);
    }
}

// Rules: CREATE-6
#[tokio::test(start_paused = true)]
async fn request_id_is_reusable_after_delete_or_expiry() {
    let operations = start_operations().await;
    let new = || {
        NewOperation::self_executed("w")
            .retention(Duration::from_secs(60))
            .request_id("r")
    };
    let (first, _) = create_leased(&operations, new()).await;
    operations.delete(&first).await.unwrap();
    let (second, token) = create_leased(&operations, new()).await;
    assert_ne!(first, second);
    operations
        .succeed(&second, token, string_value(""))
        .await
        .unwrap();
    assert!(operations.create(new()).await.unwrap().already_existed);
    tokio::time::sleep(Duration::from_secs(62)).await;
    assert!(!operations.create(new()).await.unwrap().already_existed);
}

// Rules: CREATE-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_creates_with_one_request_id_make_one_operation() {
    let operations = start_operations().await;
    for round in 0..300 {
        let mut racers = JoinSet::new();
        for _ in 0..8 {
            let operations = operations.clone();
            racers.spawn(async move {
                operations
                    .create(queued().request_id(&format!("r{round}")))
                    .await
                    .unwrap()
            });
        }
        let created = racers.join_all().await;
        assert_eq!(
            created
                .iter()
                .filter(|created| !created.already_existed)
                .count(),
            1
        );
        assert!(
            created
                .iter()
                .all(|result| result.operation.name() == created[0].operation.name())
        );
    }
}

// Rules: CREATE-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_creates_with_one_operation_id_have_one_winner() {
    let operations = start_operations().await;
    for round in 0..300 {
        let mut racers = JoinSet::new();
        for _ in 0..8 {
            let operations = operations.clone();
            racers
                .spawn(async move { operations.create(queued().id(&format!("id{round}"))).await });
        }
        let created = racers.join_all().await;
        assert_eq!(created.iter().filter(|created| created.is_ok()).count(), 1);
        assert!(
            created
                .iter()
                .flat_map(|created| created.as_ref().err())
                .all(|error| error.reason() == "OPERATION_EXISTS")
        );
    }
}

// Rules: GET-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn created_operation_is_readable_by_other_tasks_when_create_returns() {
    let operations = start_operations().await;
    let (names_tx, mut names_rx) = tokio::sync::mpsc::channel(16);
    let reader = {
        let operations = operations.clone();
        tokio::spawn(async move {
            let mut read = 0;
            while let Some(name) = names_rx.recv().await {
                assert!(operations.get_cached(&name).is_ok());
                let list = operations.list(&Default::default()).await.unwrap();
                assert!(
                    list.operations
                        .iter()
                        .any(|operation| operation.name_owned() == name)
                );
                read += 1;
            }
            read
        })
    };
    for _ in 0..2000 {
        let created = operations.create(queued()).await.unwrap().operation;
        names_tx.send(created.name_owned()).await.unwrap();
    }
    drop(names_tx);
    assert_eq!(reader.await.unwrap(), 2000);
}
