//! Several servers over one table: each serves every operation, whoever made it,
//! and there is one outcome, whoever is asked.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use longrunning::{
    NewOperation, OperationName, Operations, QueueName, Stage, State, WorkerId,
    proto::google::longrunning::ListOperationsRequest,
};
use tokio::task::JoinSet;

use crate::support::{
    table::{Replica, Table},
    text,
};

const MINUTE: Duration = Duration::from_secs(60);

async fn two() -> (Table, Replica, Replica) {
    let table = Table::default();
    let (one, other) = (table.replica().await, table.replica().await);
    (table, one, other)
}

async fn queued(operations: &Operations) -> OperationName {
    let new = NewOperation::queued("jobs");
    operations.create(new).await.unwrap().operation.owned_name()
}

fn jobs() -> QueueName {
    QueueName::parse("jobs").unwrap()
}

fn worker(name: &str) -> WorkerId {
    WorkerId::new(name)
}

#[tokio::test]
async fn what_one_server_makes_is_got_from_another_at_once() {
    let (table, one, other) = two().await;
    other.reads(false);
    let name = queued(&one.operations).await;
    assert!(other.operations.get(&name).is_err());
    let looked = other.operations.look(&name).await.unwrap();
    assert_eq!(looked.bytes(), one.operations.get(&name).unwrap().bytes());
    // It is shown from then on, and need not be asked for again.
    let asked = table.asked();
    other.operations.look(&name).await.unwrap();
    assert_eq!(table.asked(), asked);
}

#[tokio::test]
async fn a_wait_at_one_server_ends_when_the_work_ends_at_another() {
    let (_table, one, other) = two().await;
    let name = queued(&one.operations).await;
    let waits = {
        let (operations, name) = (other.operations.clone(), name.clone());
        tokio::spawn(async move { operations.wait(&name, MINUTE).await.unwrap() })
    };
    while other.operations.waiters() == 0 {
        tokio::task::yield_now().await;
    }
    let lease = one.operations.lease(&jobs(), &worker("w")).await.unwrap();
    let token = lease.lease().unwrap().token;
    let done = one
        .operations
        .succeed(&name, token, text("done"))
        .await
        .unwrap();
    assert_eq!(waits.await.unwrap().bytes(), done.bytes());
}

#[tokio::test]
async fn work_begun_through_one_server_ends_through_another_that_has_not_heard_of_it() {
    let (_table, one, other) = two().await;
    other.reads(false);
    let name = queued(&one.operations).await;
    let lease = one.operations.lease(&jobs(), &worker("w")).await.unwrap();
    let token = lease.lease().unwrap().token;
    other.operations.renew(&name, token).await.unwrap();
    let done = other
        .operations
        .succeed(&name, token, text("done"))
        .await
        .unwrap();
    assert!(done.is_done());
    assert!(one.operations.cancel(&name).await.unwrap().is_done());
}

#[tokio::test]
async fn a_request_that_comes_to_two_servers_makes_one_operation() {
    let (table, one, other) = two().await;
    one.reads(false);
    other.reads(false);
    let new = || NewOperation::queued("jobs").request_id("4f2d7e1a-2c0b-4a8e-9a44-3d1f0c5b6e77");
    let first = one.operations.create(new()).await.unwrap();
    let again = other.operations.create(new()).await.unwrap();
    assert!(!first.reused && again.reused);
    assert_eq!(first.operation.name(), again.operation.name());
    assert_eq!(table.rows().len(), 1);
}

#[tokio::test]
async fn a_name_that_another_server_gave_is_taken() {
    let (_table, one, other) = two().await;
    other.reads(false);
    let new = || NewOperation::queued("jobs").id("mine");
    one.operations.create(new()).await.unwrap();
    let error = other.operations.create(new()).await.unwrap_err();
    assert_eq!(error.reason(), "OPERATION_EXISTS");
}

#[tokio::test]
async fn what_was_deleted_at_one_server_does_not_come_back_at_another() {
    let (_table, one, mut other) = two().await;
    let name = queued(&one.operations).await;
    other.catch_up().await;
    one.operations.cancel(&name).await.unwrap();
    one.operations.delete(&name).await.unwrap();
    assert_eq!(
        other.operations.delete(&name).await.unwrap_err().reason(),
        "OPERATION_NOT_FOUND"
    );
    other.catch_up().await;
    assert!(other.operations.look(&name).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_runs_out_at_three_servers_is_one_lost_attempt() {
    let table = Table::default();
    let mut replicas = [
        table.replica().await,
        table.replica().await,
        table.replica().await,
    ];
    let new = NewOperation::queued("jobs").retry(longrunning::RetryPolicy {
        max_attempts: 5,
        ..Default::default()
    });
    let made = replicas[0].operations.create(new).await.unwrap().operation;
    let name = made.owned_name();
    replicas[1].catch_up().await;
    replicas[1]
        .operations
        .lease(&jobs(), &worker("dies"))
        .await
        .unwrap();
    tokio::time::sleep(2 * MINUTE).await;
    for replica in &mut replicas {
        replica.catch_up().await;
        let operation = replica.operations.look(&name).await.unwrap();
        assert!(matches!(operation.stage(), Stage::Pending { .. }));
        assert_eq!(operation.attempt(), 1);
    }
    let lease = replicas[2]
        .operations
        .lease(&jobs(), &worker("next"))
        .await
        .unwrap();
    assert_eq!(lease.attempt(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_renewed_at_one_server_lasts_as_long_at_another() {
    let (_table, one, mut other) = two().await;
    let name = queued(&one.operations).await;
    let lease = one.operations.lease(&jobs(), &worker("w")).await.unwrap();
    let token = lease.lease().unwrap().token;
    other.catch_up().await;
    for _ in 0..10 {
        tokio::time::sleep(MINUTE / 6).await;
        let renewed = one.operations.renew(&name, token).await.unwrap();
        other.catch_up().await;
        let shown = other.operations.get(&name).unwrap();
        assert_eq!(shown.revision(), renewed.revision());
        assert_eq!(shown.lease(), renewed.lease());
        assert_eq!(shown.bytes(), renewed.bytes());
    }
    // Nor has the other one taken it away in all that time.
    other
        .operations
        .succeed(&name, token, text("done"))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_nobody_could_renew_lasts_its_full_time_once_the_journal_is_back() {
    let (table, one, mut other) = two().await;
    let name = queued(&one.operations).await;
    let lease = one.operations.lease(&jobs(), &worker("w")).await.unwrap();
    let lease = lease.lease().unwrap().clone();
    let length = lease.until.since(one.operations.clock().now());
    other.catch_up().await;
    table.leave();
    tokio::time::sleep(5 * length).await;
    let refused = one.operations.renew(&name, lease.token).await.unwrap_err();
    assert_eq!(refused.reason(), "STORE_UNAVAILABLE");
    table.come_back();
    tokio::time::sleep(length / 2).await;
    let renewed = other.operations.renew(&name, lease.token).await.unwrap();
    assert_eq!(renewed.attempt(), 1);
    // Whoever then says nothing has lost it.
    tokio::time::sleep(2 * length).await;
    other.catch_up().await;
    let lost = other.operations.get(&name).unwrap();
    assert_eq!(lost.state(), State::Failed);
}

// Whoever takes an operation from the queues of three servers, has it alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_of_three_servers_are_drained_with_one_outcome_for_each_operation() {
    const COUNT: usize = 3000;
    let table = Table::default();
    let mut replicas = [
        table.replica().await,
        table.replica().await,
        table.replica().await,
    ];
    let mut workers = JoinSet::new();
    for at in 0..9 {
        let operations = replicas[at % 3].operations.clone();
        let finishes = replicas[(at + 1) % 3].operations.clone();
        workers.spawn(async move {
            let mut done = Vec::new();
            loop {
                let leased = operations
                    .lease(&jobs(), &worker(&format!("w{at}")))
                    .await
                    .unwrap();
                let (name, token) = (leased.owned_name(), leased.lease().unwrap().token);
                if leased.labels().get("last").is_some() {
                    finishes.succeed(&name, token, text("last")).await.unwrap();
                    return done;
                }
                finishes.succeed(&name, token, text("done")).await.unwrap();
                done.push(name);
            }
        });
    }
    for number in 0..COUNT {
        queued(&replicas[number % 3].operations).await;
    }
    for number in 0..9 {
        let last = NewOperation::queued("jobs")
            .label("last", "true")
            .priority(-1);
        replicas[number % 3].operations.create(last).await.unwrap();
    }
    let mut times: BTreeMap<OperationName, usize> = BTreeMap::new();
    for done in workers.join_all().await {
        for name in done {
            *times.entry(name).or_default() += 1;
        }
    }
    assert_eq!(times.len(), COUNT);
    assert!(times.values().all(|times| *times == 1));
    let rows = table.rows();
    assert!(
        rows.iter()
            .all(|row| row.state() == State::Succeeded && row.attempt() == 1)
    );
    for replica in &mut replicas {
        replica.catch_up().await;
        for row in &rows {
            let shown = replica.operations.get(&row.owned_name()).unwrap();
            assert_eq!(shown.bytes(), row.bytes());
        }
    }
}

// Creates, cancels, deletes and looks at random servers, of which each reads the
// others' changes late: what is gone stays gone, and in the end all agree.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_hear_of_each_other_late_agree_in_the_end() {
    for round in 0..200_u64 {
        let table = Table::default();
        let mut replicas = [
            table.replica().await,
            table.replica().await,
            table.replica().await,
        ];
        let mut callers = JoinSet::new();
        for caller in 0..4_u64 {
            let servers: Vec<Operations> = replicas
                .iter()
                .map(|replica| replica.operations.clone())
                .collect();
            callers.spawn(async move {
                let mut dice = round * 4 + caller + 1;
                let mut roll = |sides: u64| {
                    dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (dice >> 33) % sides
                };
                for _ in 0..40 {
                    let server = &servers[usize::try_from(roll(3)).unwrap()];
                    let id = format!("op-{}", roll(4));
                    let name = OperationName::parse(format!("operations/{id}")).unwrap();
                    // Each may be refused, because others were there before.
                    match roll(5) {
                        0 | 1 => drop(server.create(NewOperation::queued("jobs").id(&id)).await),
                        2 => drop(server.cancel(&name).await),
                        3 => {
                            if server.delete(&name).await.is_ok()
                                && let Ok(shown) = server.get(&name)
                            {
                                // Somebody made it anew.
                                assert!(shown.revision() < 3, "{shown:?}");
                            }
                        }
                        _ => drop(server.look(&name).await),
                    }
                }
            });
        }
        for at in 0..30 {
            replicas[at % 3].reads(at % 2 == 0);
            tokio::task::yield_now().await;
        }
        callers.join_all().await;
        let kept: Vec<Arc<_>> = table
            .rows()
            .into_iter()
            .filter(|row| !row.is_hidden())
            .collect();
        for replica in &mut replicas {
            replica.reads(true);
            replica.catch_up().await;
            let request = ListOperationsRequest::default();
            let mut shown = replica.operations.list(&request).await.unwrap().operations;
            shown.reverse();
            let bytes = |operations: &[Arc<longrunning::Operation>]| {
                operations
                    .iter()
                    .map(|each| each.bytes().to_vec())
                    .collect::<Vec<_>>()
            };
            assert_eq!(bytes(&shown), bytes(&kept), "round {round}");
        }
    }
}
