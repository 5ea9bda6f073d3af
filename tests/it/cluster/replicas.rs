//! Several servers over one in-memory shared storage: each serves every operation,
//! and all agree on the outcome.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use longrunning::{
    NewOperation, OperationName, Operations, QueueName, State, WorkerId,
    proto::google::longrunning::ListOperationsRequest,
};
use tokio::task::JoinSet;

use super::{MINUTE, create_queued};
use crate::support::{
    fake_shared_storage::{FakeSharedStorage, TestReplica},
    string_value,
};

async fn start_two_replicas() -> (FakeSharedStorage, TestReplica, TestReplica) {
    let storage = FakeSharedStorage::default();
    let (replica_a, replica_b) = (storage.start_replica().await, storage.start_replica().await);
    (storage, replica_a, replica_b)
}

fn jobs_queue() -> QueueName {
    QueueName::parse("jobs").unwrap()
}

fn worker_id(name: &str) -> WorkerId {
    WorkerId::new(name)
}

// Rules: CLU-1
#[tokio::test]
async fn operation_created_at_one_server_is_readable_at_another() {
    let (storage, replica_a, replica_b) = start_two_replicas().await;
    replica_b.pause_replication();
    let name = create_queued(&replica_a.operations).await;
    assert!(replica_b.operations.get_cached(&name).is_err());
    let fetched = replica_b.operations.get(&name).await.unwrap();
    assert_eq!(
        fetched.bytes(),
        replica_a.operations.get_cached(&name).unwrap().bytes()
    );
    // The fetched operation is cached.
    let fetch_count = storage.fetch_count();
    replica_b.operations.get(&name).await.unwrap();
    assert_eq!(storage.fetch_count(), fetch_count);
}

// Rules: CLU-5
#[tokio::test]
async fn wait_returns_when_operation_completes_at_another_server() {
    let (_storage, replica_a, replica_b) = start_two_replicas().await;
    let name = create_queued(&replica_a.operations).await;
    let wait = {
        let (operations, name) = (replica_b.operations.clone(), name.clone());
        tokio::spawn(async move { operations.wait(&name, MINUTE).await.unwrap() })
    };
    while replica_b.operations.waiter_count() == 0 {
        tokio::task::yield_now().await;
    }
    let lease = replica_a
        .operations
        .lease(&jobs_queue(), &worker_id("w"))
        .await
        .unwrap();
    let token = lease.lease().unwrap().token;
    let done = replica_a
        .operations
        .succeed(&name, token, string_value("done"))
        .await
        .unwrap();
    assert_eq!(wait.await.unwrap().bytes(), done.bytes());
}

// Rules: CLU-1
#[tokio::test]
async fn lease_from_one_server_can_be_finished_at_lagging_server() {
    let (_storage, replica_a, replica_b) = start_two_replicas().await;
    replica_b.pause_replication();
    let name = create_queued(&replica_a.operations).await;
    let lease = replica_a
        .operations
        .lease(&jobs_queue(), &worker_id("w"))
        .await
        .unwrap();
    let token = lease.lease().unwrap().token;
    replica_b.operations.renew(&name, token).await.unwrap();
    let done = replica_b
        .operations
        .succeed(&name, token, string_value("done"))
        .await
        .unwrap();
    assert!(done.is_done());
    assert!(replica_a.operations.cancel(&name).await.unwrap().is_done());
}

// Rules: CLU-3
#[tokio::test]
async fn same_request_id_at_two_servers_creates_one_operation() {
    let (storage, replica_a, replica_b) = start_two_replicas().await;
    replica_a.pause_replication();
    replica_b.pause_replication();
    let new = || NewOperation::queued("jobs").request_id("4f2d7e1a-2c0b-4a8e-9a44-3d1f0c5b6e77");
    let first = replica_a.operations.create(new()).await.unwrap();
    let again = replica_b.operations.create(new()).await.unwrap();
    assert!(!first.already_existed && again.already_existed);
    assert_eq!(first.operation.name(), again.operation.name());
    assert_eq!(storage.rows().len(), 1);
}

// Rules: CLU-3
#[tokio::test]
async fn id_created_at_another_server_is_rejected_as_existing() {
    let (_storage, replica_a, replica_b) = start_two_replicas().await;
    replica_b.pause_replication();
    let new = || NewOperation::queued("jobs").id("mine");
    replica_a.operations.create(new()).await.unwrap();
    let error = replica_b.operations.create(new()).await.unwrap_err();
    assert_eq!(error.reason(), "OPERATION_EXISTS");
}

// Rules: CLU-7
#[tokio::test]
async fn operation_deleted_at_one_server_does_not_reappear_at_another() {
    let (_storage, replica_a, mut replica_b) = start_two_replicas().await;
    let name = create_queued(&replica_a.operations).await;
    replica_b.wait_until_caught_up().await;
    replica_a.operations.cancel(&name).await.unwrap();
    replica_a.operations.delete(&name).await.unwrap();
    assert_eq!(
        replica_b
            .operations
            .delete(&name)
            .await
            .unwrap_err()
            .reason(),
        "OPERATION_NOT_FOUND"
    );
    replica_b.wait_until_caught_up().await;
    assert!(replica_b.operations.get(&name).await.is_err());
}

// Rules: CLU-9
#[tokio::test(start_paused = true)]
async fn lease_expiry_at_three_servers_counts_as_one_lost_attempt() {
    let storage = FakeSharedStorage::default();
    let mut replicas = [
        storage.start_replica().await,
        storage.start_replica().await,
        storage.start_replica().await,
    ];
    let new =
        NewOperation::queued("jobs").retry_policy(longrunning::RetryPolicy::with_max_attempts(5));
    let created = replicas[0].operations.create(new).await.unwrap().operation;
    let name = created.name_owned();
    replicas[1].wait_until_caught_up().await;
    replicas[1]
        .operations
        .lease(&jobs_queue(), &worker_id("dies"))
        .await
        .unwrap();
    tokio::time::sleep(2 * MINUTE).await;
    for replica in &mut replicas {
        replica.wait_until_caught_up().await;
        let operation = replica.operations.get(&name).await.unwrap();
        assert_eq!(operation.state(), State::Pending);
        assert_eq!(operation.attempt(), 1);
    }
    let lease = replicas[2]
        .operations
        .lease(&jobs_queue(), &worker_id("next"))
        .await
        .unwrap();
    assert_eq!(lease.attempt(), 2);
}

// Rules: CLU-8
#[tokio::test(start_paused = true)]
async fn lease_renewed_at_one_server_is_extended_at_another() {
    let (_storage, replica_a, mut replica_b) = start_two_replicas().await;
    let name = create_queued(&replica_a.operations).await;
    let lease = replica_a
        .operations
        .lease(&jobs_queue(), &worker_id("w"))
        .await
        .unwrap();
    let token = lease.lease().unwrap().token;
    replica_b.wait_until_caught_up().await;
    for _ in 0..10 {
        tokio::time::sleep(MINUTE / 6).await;
        let renewed = replica_a.operations.renew(&name, token).await.unwrap();
        replica_b.wait_until_caught_up().await;
        let replicated = replica_b.operations.get_cached(&name).unwrap();
        assert_eq!(replicated.revision(), renewed.revision());
        assert_eq!(replicated.lease(), renewed.lease());
        assert_eq!(replicated.bytes(), renewed.bytes());
    }
    // The other server has not expired the lease meanwhile.
    replica_b
        .operations
        .succeed(&name, token, string_value("done"))
        .await
        .unwrap();
}

// Rules: CLU-9
#[tokio::test(start_paused = true)]
async fn lease_gets_full_duration_after_storage_outage() {
    let (storage, replica_a, mut replica_b) = start_two_replicas().await;
    let name = create_queued(&replica_a.operations).await;
    let lease = replica_a
        .operations
        .lease(&jobs_queue(), &worker_id("w"))
        .await
        .unwrap();
    let lease = lease.lease().unwrap().clone();
    let lease_duration = lease.expires_at.since(replica_a.operations.clock().now());
    replica_b.wait_until_caught_up().await;
    storage.go_offline();
    tokio::time::sleep(5 * lease_duration).await;
    let error = replica_a
        .operations
        .renew(&name, lease.token)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "STORE_UNAVAILABLE");
    storage.go_online();
    tokio::time::sleep(lease_duration / 2).await;
    let renewed = replica_b
        .operations
        .renew(&name, lease.token)
        .await
        .unwrap();
    assert_eq!(renewed.attempt(), 1);
    // Without another renewal the lease expires.
    tokio::time::sleep(2 * lease_duration).await;
    replica_b.wait_until_caught_up().await;
    let expired = replica_b.operations.get_cached(&name).unwrap();
    assert_eq!(expired.state(), State::Pending);
}

// Rules: STATE-13
#[tokio::test(start_paused = true)]
async fn overdue_timers_ask_nothing_of_storage_that_is_offline() {
    let (storage, replica_a, mut replica_b) = start_two_replicas().await;
    let mut names = Vec::new();
    for index in 0..100 {
        let new =
            NewOperation::self_executed("w").lease_duration(Duration::from_secs(1 + index % 5));
        let created = replica_a.operations.create(new).await.unwrap();
        names.push(created.operation.name_owned());
    }
    replica_b.wait_until_caught_up().await;
    storage.go_offline();
    let before = storage.request_count();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(storage.request_count(), before);
    storage.go_online();
    tokio::time::sleep(Duration::from_secs(8)).await;
    for name in &names {
        let lost = replica_a.operations.get(name).await.unwrap();
        assert_eq!(lost.state(), State::Failed);
    }
}

// Rules: CLU-9, STATE-13
#[tokio::test(start_paused = true)]
async fn lease_renewed_while_timers_wait_for_storage_is_kept_and_expires_later() {
    let (storage, replica_a, mut replica_b) = start_two_replicas().await;
    let new = NewOperation::self_executed("w").lease_duration(Duration::from_secs(5));
    let created = replica_a.operations.create(new).await.unwrap().operation;
    let (name, token) = (created.name_owned(), created.lease().unwrap().token);
    replica_b.wait_until_caught_up().await;
    storage.go_offline();
    tokio::time::sleep(Duration::from_secs(30)).await;
    storage.go_online();
    replica_a.operations.renew(&name, token).await.unwrap();
    replica_b.wait_until_caught_up().await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    for replica in [&replica_a, &replica_b] {
        let renewed = replica.operations.get(&name).await.unwrap();
        assert_eq!(renewed.state(), State::Running);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let lost = replica_a.operations.get(&name).await.unwrap();
    assert_eq!(lost.state(), State::Failed);
}

// Rules: CLU-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_servers_drain_queue_with_one_outcome_per_operation() {
    const OPERATION_COUNT: usize = 3000;
    let storage = FakeSharedStorage::default();
    let mut replicas = [
        storage.start_replica().await,
        storage.start_replica().await,
        storage.start_replica().await,
    ];
    let mut workers = JoinSet::new();
    for index in 0..9 {
        let operations = replicas[index % 3].operations.clone();
        let finisher = replicas[(index + 1) % 3].operations.clone();
        workers.spawn(async move {
            let mut done = Vec::new();
            loop {
                let leased = operations
                    .lease(&jobs_queue(), &worker_id(&format!("w{index}")))
                    .await
                    .unwrap();
                let (name, token) = (leased.name_owned(), leased.lease().unwrap().token);
                if leased.labels().get("last").is_some() {
                    finisher
                        .succeed(&name, token, string_value("last"))
                        .await
                        .unwrap();
                    return done;
                }
                finisher
                    .succeed(&name, token, string_value("done"))
                    .await
                    .unwrap();
                done.push(name);
            }
        });
    }
    for number in 0..OPERATION_COUNT {
        create_queued(&replicas[number % 3].operations).await;
    }
    for number in 0..9 {
        let last = NewOperation::queued("jobs")
            .label("last", "true")
            .priority(-1);
        replicas[number % 3].operations.create(last).await.unwrap();
    }
    let mut completions: BTreeMap<OperationName, usize> = BTreeMap::new();
    for done in workers.join_all().await {
        for name in done {
            *completions.entry(name).or_default() += 1;
        }
    }
    assert_eq!(completions.len(), OPERATION_COUNT);
    assert!(completions.values().all(|count| *count == 1));
    let rows = storage.rows();
    assert!(
        rows.iter()
            .all(|row| row.state() == State::Succeeded && row.attempt() == 1)
    );
    for replica in &mut replicas {
        replica.wait_until_caught_up().await;
        for row in &rows {
            let replicated = replica.operations.get_cached(&row.name_owned()).unwrap();
            assert_eq!(replicated.bytes(), row.bytes());
        }
    }
}

// Random calls at random servers with delayed replication: a deleted operation does not
// reappear, and all servers converge.
// Rules: CLU-2, CLU-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_with_replication_delay_converge() {
    for round in 0..200_u64 {
        let storage = FakeSharedStorage::default();
        let mut replicas = [
            storage.start_replica().await,
            storage.start_replica().await,
            storage.start_replica().await,
        ];
        let mut callers = JoinSet::new();
        for caller in 0..4_u64 {
            let servers: Vec<Operations> = replicas
                .iter()
                .map(|replica| replica.operations.clone())
                .collect();
            callers.spawn(async move {
                let mut seed = round * 4 + caller + 1;
                let mut random_below = |bound: u64| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (seed >> 33) % bound
                };
                for _ in 0..40 {
                    let server = &servers[usize::try_from(random_below(3)).unwrap()];
                    let id = format!("op-{}", random_below(4));
                    let name = OperationName::parse(format!("operations/{id}")).unwrap();
                    // Each may be rejected because of the calls of others.
                    match random_below(5) {
                        0 | 1 => drop(server.create(NewOperation::queued("jobs").id(&id)).await),
                        2 => drop(server.cancel(&name).await),
                        3 => {
                            if server.delete(&name).await.is_ok()
                                && let Ok(recreated) = server.get_cached(&name)
                            {
                                // Another caller has created it again.
                                assert!(recreated.revision() < 3, "{recreated:?}");
                            }
                        }
                        _ => drop(server.get(&name).await),
                    }
                }
            });
        }
        for step in 0..30 {
            if step % 2 == 0 {
                replicas[step % 3].resume_replication();
            } else {
                replicas[step % 3].pause_replication();
            }
            tokio::task::yield_now().await;
        }
        callers.join_all().await;
        let stored: Vec<Arc<_>> = storage
            .rows()
            .into_iter()
            .filter(|row| !row.is_deleted())
            .collect();
        for replica in &mut replicas {
            replica.resume_replication();
            replica.wait_until_caught_up().await;
            let request = ListOperationsRequest::default();
            let mut listed = replica.operations.list(&request).await.unwrap().operations;
            listed.reverse();
            let bytes = |operations: &[Arc<longrunning::Operation>]| {
                operations
                    .iter()
                    .map(|operation| operation.bytes().to_vec())
                    .collect::<Vec<_>>()
            };
            assert_eq!(bytes(&listed), bytes(&stored), "round {round}");
        }
    }
}
