//! What a creator asks for, and that asking twice is not asking for two.

use std::time::Duration;

use longrunning::{NewOperation, Operations, RetryPolicy, State, proto::google::rpc::Code};
use tokio::task::JoinSet;

use crate::support::{hold, own_metadata, text};

async fn start() -> Operations {
    crate::support::operations().start().await.unwrap()
}

fn queued() -> NewOperation {
    NewOperation::queued("q")
        .input(text("input"))
        .label("a", "b")
}

// AIP-155
#[tokio::test]
async fn the_same_request_id_and_content_is_the_same_operation() {
    let operations = start().await;
    let first = operations.create(queued().request_id("r")).await.unwrap();
    assert!(!first.reused);
    for _ in 0..3 {
        let again = operations.create(queued().request_id("r")).await.unwrap();
        assert!(again.reused);
        assert_eq!(again.operation.name(), first.operation.name());
    }
    let other = operations.create(queued().request_id("R")).await.unwrap();
    assert!(!other.reused, "ids are compared byte by byte");
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

// AIP-155
#[tokio::test]
async fn a_request_that_comes_again_gets_the_operation_as_it_is_now() {
    let operations = start().await;
    let new = || NewOperation::self_executed("w").request_id("r");
    let (name, token) = hold(&operations, new()).await;
    operations
        .succeed(&name, token, text("done"))
        .await
        .unwrap();
    let again = operations.create(new()).await.unwrap();
    assert!(again.reused);
    assert_eq!(again.operation.state(), State::Succeeded);
}

// BEHAVIOUR §5
#[tokio::test]
async fn the_same_request_id_with_any_other_content_is_refused() {
    let operations = start().await;
    let second = Duration::from_secs(7);
    operations.create(queued().request_id("r")).await.unwrap();
    let others = [
        NewOperation::queued("other")
            .input(text("input"))
            .label("a", "b"),
        NewOperation::self_executed("q").label("a", "b"),
        NewOperation::queued("q").label("a", "b"),
        queued().input(text("other")),
        queued().label("a", "c"),
        queued().label("c", "b"),
        NewOperation::queued("q").input(text("input")),
        queued().id("mine"),
        queued().metadata(own_metadata(1)),
        queued().priority(1),
        queued().total_timeout(second),
        queued().attempt_timeout(second),
        queued().lease_duration(second),
        queued().retention(second),
        queued().cancel_grace(second),
        queued().retry(RetryPolicy::attempts(2)),
        queued().not_before(std::time::UNIX_EPOCH + second),
    ];
    for other in others {
        let text = format!("{other:?}");
        let refused = operations.create(other.request_id("r")).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.reason()),
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

// BEHAVIOUR §5: what executes it is content too, whatever its texts are.
#[tokio::test]
async fn a_request_for_a_queue_is_never_taken_for_one_by_its_creator() {
    let operations = start().await;
    let queue = NewOperation::queued("q").request_id("r");
    operations.create(queue).await.unwrap();
    let creator = NewOperation::self_executed("\0\0\0\0\0\0\0\0")
        .label("q", "")
        .request_id("r");
    let refused = operations.create(creator).await.unwrap_err();
    assert_eq!(refused.reason(), "REQUEST_ID_REUSED");
}

#[tokio::test]
async fn a_request_id_belongs_to_its_parent() {
    let operations = start().await;
    for parent in ["", "projects/p", "projects/q"] {
        let created = operations
            .create(queued().parent(parent).request_id("r"))
            .await
            .unwrap();
        assert!(!created.reused);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_id_is_free_again_when_its_operation_is_deleted_or_has_expired() {
    let operations = start().await;
    let new = || {
        NewOperation::self_executed("w")
            .retention(Duration::from_secs(60))
            .request_id("r")
    };
    let (first, _) = hold(&operations, new()).await;
    operations.delete(&first).await.unwrap();
    let (second, token) = hold(&operations, new()).await;
    assert_ne!(first, second);
    operations.succeed(&second, token, text("")).await.unwrap();
    assert!(operations.create(new()).await.unwrap().reused);
    tokio::time::sleep(Duration::from_secs(62)).await;
    assert!(!operations.create(new()).await.unwrap().reused);
}

// AIP-155
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_race_make_one_operation() {
    let operations = start().await;
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
        let made = racers.join_all().await;
        assert_eq!(made.iter().filter(|made| !made.reused).count(), 1);
        assert!(
            made.iter()
                .all(|one| one.operation.name() == made[0].operation.name())
        );
    }
}

// BEHAVIOUR §1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_creators_that_race_for_one_id_one_wins() {
    let operations = start().await;
    for round in 0..300 {
        let mut racers = JoinSet::new();
        for _ in 0..8 {
            let operations = operations.clone();
            racers
                .spawn(async move { operations.create(queued().id(&format!("id{round}"))).await });
        }
        let made = racers.join_all().await;
        assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1);
        assert!(
            made.iter()
                .flat_map(|made| made.as_ref().err())
                .all(|error| error.reason() == "OPERATION_EXISTS")
        );
    }
}

// GET-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_created_can_be_read_by_other_tasks_when_create_returns() {
    let operations = start().await;
    let (tell, mut told) = tokio::sync::mpsc::channel(16);
    let reader = {
        let operations = operations.clone();
        tokio::spawn(async move {
            let mut read = 0;
            while let Some(name) = told.recv().await {
                assert!(operations.get(&name).is_ok());
                let list = operations.list(&Default::default()).await.unwrap();
                assert!(
                    list.operations
                        .iter()
                        .any(|operation| operation.owned_name() == name)
                );
                read += 1;
            }
            read
        })
    };
    for _ in 0..2000 {
        let created = operations.create(queued()).await.unwrap().operation;
        tell.send(created.owned_name()).await.unwrap();
    }
    drop(tell);
    assert_eq!(reader.await.unwrap(), 2000);
}
