//! PostgreSQL failover: a standby is promoted, or a host does not respond. Skipped with
//! a notice if PostgreSQL is not installed.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use longrunning::{NewOperation, OperationName, Operations, PostgresConfig, State};
use tokio::{task::JoinSet, time::sleep};

use super::{MINUTE, create_queued, postgres::start_server, wait_until};
use crate::support::{
    postgres::{PostgresServer, test_config},
    string_value,
};

/// Delay of a client after a rejected write.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// Creates and completes operations until `stop` is set. Counts those whose completion was
/// acknowledged, and returns their names.
async fn complete_until_stopped(
    operations: Operations,
    acknowledged: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
) -> Vec<OperationName> {
    let mut completed = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let new = NewOperation::self_executed("test");
        let Ok(created) = operations.create(new).await else {
            sleep(RETRY_DELAY).await;
            continue;
        };
        let token = created.operation.lease().unwrap().token;
        let name = created.operation.name_owned();
        if operations
            .succeed(&name, token, string_value("done"))
            .await
            .is_ok()
        {
            acknowledged.fetch_add(1, Ordering::Relaxed);
            completed.push(name);
        }
    }
    completed
}

// Rules: CLU-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promoted_standby_has_every_acknowledged_write() {
    let Some(mut primary) = PostgresServer::start(&["fsync=off"]) else {
        return;
    };
    let standby = primary.start_standby();
    let url = format!(
        "postgres://test@127.0.0.1:{},127.0.0.1:{}/postgres?target_session_attrs=read-write",
        primary.port(),
        standby.port()
    );
    let config = PostgresConfig::new(url);
    let servers = [start_server(&config).await, start_server(&config).await];
    let (acknowledged, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let mut workers = JoinSet::new();
    for index in 0..8 {
        let operations = servers[index % 2].clone();
        workers.spawn(complete_until_stopped(
            operations,
            acknowledged.clone(),
            stop.clone(),
        ));
    }
    let awaited = create_queued(&servers[0]).await;
    let wait = {
        let (operations, name) = (servers[1].clone(), awaited.clone());
        tokio::spawn(async move { operations.wait(&name, 10 * MINUTE).await.unwrap() })
    };
    let wait_for_acknowledged = async |additional: usize| {
        let target = acknowledged.load(Ordering::Relaxed) + additional;
        wait_until(async || acknowledged.load(Ordering::Relaxed) > target).await;
    };
    wait_for_acknowledged(100).await;
    primary.crash();
    wait_until(async || servers.iter().all(|server| server.write_error().is_some())).await;
    standby.query("SELECT pg_promote()");
    wait_for_acknowledged(100).await;
    stop.store(true, Ordering::Relaxed);
    let completed = workers.join_all().await.concat();
    wait_until(async || servers.iter().all(|server| server.write_error().is_none())).await;
    // A wait survives the failover.
    servers[0].cancel(&awaited).await.unwrap();
    assert!(wait.await.unwrap().is_done());
    let late_server = start_server(&config).await;
    for name in &completed {
        for server in servers.iter().chain([&late_server]) {
            let operation = server.wait(name, MINUTE).await.unwrap();
            assert_eq!(operation.state(), State::Succeeded, "{name}");
        }
    }
}

// Rules: CLU-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_host_does_not_block_connecting_to_next_host() {
    let Some(config) = test_config() else { return };
    let silent_host = TcpListener::bind("127.0.0.1:0").unwrap();
    let (start, rest) = config.url.split_once('@').unwrap();
    let url = format!(
        "{start}@{},{rest}?connect_timeout=1",
        silent_host.local_addr().unwrap()
    );
    let config = PostgresConfig::new(url).with_schema(&config.schema);
    let server = start_server(&config).await;
    let name = create_queued(&server).await;
    assert!(server.cancel(&name).await.unwrap().is_done());
}
