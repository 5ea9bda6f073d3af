//! Kills a server over SQLite repeatedly while random clients call it: after each
//! restart every acknowledged or observed change is present, and every change has a
//! cause.
//!
//! `KILL_ROUNDS` sets the number of rounds, and `KILL_SEED` the random choices. The time
//! of a kill also depends on the machine.

mod clients;
mod readers;
mod shared_state;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use longrunning::proto::{
    google::longrunning::{Operation, WaitOperationRequest},
    longrunning::v1::{CreateOperationRequest, operation_metadata::State},
};
use tokio::{task::JoinSet, time::sleep};
use tonic::Code;

use clients::{ClientRole, CrashTestClient, ORDER_QUEUE};
use shared_state::{CrashTestState, CreatedRequest, WorkerLease, priority};

use crate::support::{
    decode_metadata, env_number, error_reason, expect_error,
    expected_state::{Effect, KEY_LABEL, has_standard_metadata},
    get_request,
    harness::{Kind, lease_request, proto_seconds, self_executed_request},
    persistent_server::{RpcError, check_integrity, spawn, start},
    rng::TestRng,
};

/// The roles of the clients of each server, by client number.
const CLIENT_ROLES: [ClientRole; 11] = [
    ClientRole::Execute,
    ClientRole::Execute,
    ClientRole::CreateWork,
    ClientRole::Work,
    ClientRole::Work,
    ClientRole::CreateOrdered,
    ClientRole::CancelOrDelete,
    ClientRole::Read,
    ClientRole::Execute,
    ClientRole::Work,
    ClientRole::Read,
];

/// The number of the client that checks the state after a start.
const CHECKER_NUMBER: usize = CLIENT_ROLES.len();

// Acknowledged means durable.
// Rules: DUR-1, DUR-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn randomly_killed_server_loses_no_acknowledged_or_observed_change() {
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let random_seed = u64::from(clock.unwrap().subsec_nanos());
    let seed = env_number("KILL_SEED").unwrap_or(random_seed);
    let rounds = env_number("KILL_ROUNDS").unwrap_or(20);
    eprintln!("KILL_SEED={seed} KILL_ROUNDS={rounds}");
    let mut rng = TestRng::new(seed);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("operations.db");
    let state = Arc::new(CrashTestState::default());
    let (mut kill_count, mut response_count) = (0, 0);
    for round in 0..rounds {
        while rng.one_in(4) {
            let starting = spawn(&file, &[]);
            // A random point of the start.
            sleep(Duration::from_micros(rng.random_range(0..200_000))).await;
            starting.kill().await;
            kill_count += 1;
        }
        let server = start(&file, &[]).await.expect_serving();
        let mut client = CrashTestClient::new(CHECKER_NUMBER, &state, rng.fork(), &server);
        check_after_start(&mut client).await;
        let mut tasks = JoinSet::new();
        for (number, role) in CLIENT_ROLES.into_iter().enumerate() {
            let client = CrashTestClient::new(number, &state, rng.fork(), &server);
            tasks.spawn(client.run(role));
        }
        let target = *state.response_count.borrow() + rng.random_range(5..300);
        let mut responses = state.response_count.subscribe();
        tokio::select! {
            _ = responses.wait_for(|count| *count >= target) => {}
            Some(result) = tasks.join_next() => {
                result.unwrap();
                panic!("a call failed before the kill of round {round}: {:?}", server.log_lines());
            }
        }
        if rng.one_in(8) {
            let exit = server.stop().await;
            assert_eq!(exit.status.code(), Some(0), "{exit:?}");
        } else {
            server.kill().await;
            kill_count += 1;
        }
        while let Some(result) = tasks.join_next().await {
            result.unwrap();
        }
        response_count = *state.response_count.borrow();
    }
    let server = start(&file, &[]).await.expect_serving();
    let mut client = CrashTestClient::new(CHECKER_NUMBER, &state, rng.fork(), &server);
    check_after_start(&mut client).await;
    let operations = client.list().await.unwrap().len();
    server.kill().await;
    check_lease_extension(&file).await;
    check_integrity(&file);
    eprintln!("{kill_count} kills, {response_count} responses, {operations} operations at the end");
}

/// Checks the state after a start, and that work continues from it.
async fn check_after_start(client: &mut CrashTestClient) {
    let listed = client.list().await.unwrap();
    let state = client.state.clone();
    let existing: BTreeMap<String, Operation> = listed
        .iter()
        .map(|operation| (operation.name.clone(), operation.clone()))
        .collect();
    assert_eq!(existing.len(), listed.len(), "expected each operation once");
    state.expected.lock().reconcile(&existing);
    check_list_order(&state, &listed);
    check_gets(client, &existing).await;
    check_repeated_requests(client, &existing).await;
    let leases: Vec<WorkerLease> = state.leases.lock().clone();
    for lease in &leases {
        let kind = client.heartbeat(lease).await;
        let is_held = matches!(
            kind,
            Kind::Continue | Kind::CancelRequested | Kind::OperationDeleted
        );
        assert!(
            is_held,
            "expected a valid lease, got {kind:?} for {lease:?}"
        );
    }
    retry_finishes(client).await;
    retry_creates(client, &existing).await;
    check_lease_order(client).await;
}

/// Checks that newer operations are listed first.
fn check_list_order(state: &CrashTestState, operations: &[Operation]) {
    let position_of =
        |(position, operation): (usize, &Operation)| (operation.name.clone(), position);
    let positions: BTreeMap<_, _> = operations.iter().enumerate().map(position_of).collect();
    for names in state.creation_order.lock().values() {
        let positions: Vec<_> = names
            .iter()
            .filter_map(|name| positions.get(name))
            .collect();
        assert!(
            positions.is_sorted_by(|older, newer| newer < older),
            "{names:?}"
        );
    }
}

/// Checks that gets agree with the list.
async fn check_gets(client: &mut CrashTestClient, existing: &BTreeMap<String, Operation>) {
    let known_states = client.state.expected.lock().known_operations();
    let names: Vec<&String> = known_states.keys().collect();
    for _ in 0..40 {
        let Some(name) = client.rng.choose(&names) else {
            return;
        };
        let result = client.client.get_operation(get_request(name)).await;
        match (result.map_err(RpcError::from), existing.get(*name)) {
            (Ok(response), Some(operation)) => assert_eq!(response.get_ref(), operation),
            (Err(RpcError::Rejected(Code::NotFound, _)), None) => {}
            (result, listed) => panic!("{name}: {result:?}, but listed: {listed:?}"),
        }
    }
}

/// Checks that a repeated request returns the same operation and lease.
async fn check_repeated_requests(
    client: &mut CrashTestClient,
    existing: &BTreeMap<String, Operation>,
) {
    let mut requests = client.state.created_requests.lock().clone();
    requests.retain(|requested| existing.contains_key(&requested.name));
    for _ in 0..20 {
        let Some(CreatedRequest {
            request,
            name,
            lease_token,
        }) = client.rng.choose(&requests).cloned()
        else {
            return;
        };
        let repeated = client
            .worker_client
            .create_operation(request)
            .await
            .unwrap();
        let repeated = repeated.into_inner();
        assert!(repeated.already_existed, "{name}");
        assert_eq!(repeated.operation.as_ref(), Some(&existing[&name]));
        if let (Some(lease), Some(token)) = (repeated.lease, lease_token) {
            assert_eq!(lease.lease_token, token, "{name}");
        }
    }
}

/// Repeats finishes without a response, which are idempotent.
async fn retry_finishes(client: &mut CrashTestClient) {
    let finishes = std::mem::take(&mut *client.state.unanswered_finishes.lock());
    for (request, effect) in finishes {
        let state = client.state.clone();
        let before = state.known_state(&request.name);
        let response = client.worker_client.finish_operation(request.clone());
        match state.call(&request.name, effect.clone(), response).await {
            Ok(operation) if !before.is_deleted => state.observe(&before, &operation),
            Ok(_) => {}
            Err(RpcError::Rejected(Code::NotFound, _)) if before.is_deleted => {}
            // The first call has already returned it to its queue.
            Err(RpcError::Rejected(Code::FailedPrecondition, _)) if effect == Effect::Requeue => {}
            Err(other) => panic!("{other:?} for {request:?}"),
        }
    }
}

/// Repeats creations without a response, which are idempotent if they have an id.
async fn retry_creates(client: &mut CrashTestClient, existing: &BTreeMap<String, Operation>) {
    let creates = std::mem::take(&mut *client.state.unanswered_creates.lock());
    for (request, name) in creates {
        let is_deleted =
            (name.as_ref()).is_some_and(|name| client.state.known_state(name).is_deleted);
        if is_deleted || (request.request_id.is_empty() && name.is_none()) {
            continue;
        }
        let key = request.labels[KEY_LABEL].clone();
        let before = existing.values().find(|operation| match &name {
            Some(name) => operation.name == *name,
            None => {
                has_standard_metadata(operation)
                    && decode_metadata(operation).labels.get(KEY_LABEL) == Some(&key)
            }
        });
        let result = client.try_create(request.clone(), name.as_deref()).await;
        match (result, before) {
            (Ok(created), before) => {
                assert_eq!(created.already_existed, before.is_some(), "{request:?}");
                let has_id = !request.request_id.is_empty();
                assert!(has_id || before.is_none(), "{request:?}");
                let lease = created.lease.map(|lease| WorkerLease {
                    has_custom_metadata: request.metadata.is_some(),
                    ..WorkerLease::from(lease)
                });
                client.state.leases.lock().extend(lease);
            }
            (Err(RpcError::Rejected(Code::AlreadyExists, _)), Some(_)) => {
                assert_eq!(request.request_id, "");
            }
            (Err(other), _) => panic!("{other:?} for {request:?}"),
        }
    }
}

/// Checks that pending operations are leased by priority, then age.
async fn check_lease_order(client: &mut CrashTestClient) {
    let operations = client.list().await.unwrap();
    let standard = operations
        .iter()
        .filter(|operation| has_standard_metadata(operation));
    let mut pending: Vec<_> = standard
        .map(|operation| (operation, decode_metadata(operation)))
        .filter(|(_, metadata)| metadata.state() == State::Pending && metadata.queue == ORDER_QUEUE)
        .collect();
    pending.reverse();
    pending.sort_by_key(|(_, metadata)| -priority(&metadata.labels[KEY_LABEL]));
    let expected: Vec<_> = pending
        .iter()
        .map(|(operation, _)| operation.name.clone())
        .collect();
    let listed: BTreeSet<_> = operations.iter().map(|operation| &operation.name).collect();
    let (mut leased, mut work) = (Vec::new(), Vec::new());
    loop {
        let request = lease_request(&[ORDER_QUEUE], "w", 1000);
        let leases = client
            .worker_client
            .lease_operations(request)
            .await
            .unwrap();
        let leases = leases.into_inner().leases;
        if leases.is_empty() {
            break;
        }
        work.extend(leases.iter().map(|lease| client.state.check_lease(lease)));
        leased.extend(leases.into_iter().map(|lease| lease.name));
    }
    // Deleted operations are leased too, but not listed.
    leased.retain(|name| listed.contains(name));
    assert_eq!(leased, expected);
    for lease in work {
        client.work_on_lease(lease).await.unwrap();
    }
}

/// Checks that a lease gets its full duration after a restart.
async fn check_lease_extension(file: &Path) {
    // On a slow machine the lease may expire before the kill; then the check is repeated.
    while !has_extended_lease(file).await {}
}

/// Returns `false` if the lease expired before the kill.
async fn has_extended_lease(file: &Path) -> bool {
    let server = start(file, &[]).await.expect_serving();
    let request = CreateOperationRequest {
        lease_duration: proto_seconds(1),
        ..self_executed_request("w")
    };
    let created = server
        .worker_client()
        .create_operation(request)
        .await
        .unwrap();
    let name = created.into_inner().operation.unwrap().name;
    server.kill().await;
    let killed_at = SystemTime::now();
    let server = start(file, &[]).await.expect_serving();
    let request = WaitOperationRequest {
        name,
        timeout: proto_seconds(60),
    };
    let done = server.client().wait_operation(request).await.unwrap();
    let done = done.into_inner();
    assert_eq!(error_reason(&expect_error(&done)), "WORKER_LOST");
    let end_time: SystemTime = decode_metadata(&done).end_time.unwrap().try_into().unwrap();
    server.kill().await;
    assert!(end_time < killed_at || end_time >= killed_at + Duration::from_secs(1));
    end_time >= killed_at
}
