//! Servers of a PostgreSQL that dies, and whose standby takes its place. Without one on
//! the machine these tests say so and do nothing.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use longrunning::{NewOperation, OperationName, Operations, PostgresOptions, State};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    postgres::{MINUTE, queued, server},
    postgres_faults::until,
    support::{
        postgres::{Postgres, schema},
        text,
    },
};

/// How long a client waits that was told that nothing can be kept.
const RETRY: Duration = Duration::from_millis(50);

/// Ends operations, and counts those whose end was acknowledged, until it is told to
/// stop; returns their names.
async fn work(
    operations: Operations,
    acknowledged: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
) -> Vec<OperationName> {
    let mut ended = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let new = NewOperation::self_executed("test");
        let Ok(created) = operations.create(new).await else {
            sleep(RETRY).await;
            continue;
        };
        let token = created.operation.lease().unwrap().token;
        let name = created.operation.owned_name();
        if operations.succeed(&name, token, text("done")).await.is_ok() {
            acknowledged.fetch_add(1, Ordering::Relaxed);
            ended.push(name);
        }
    }
    ended
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_takes_over_has_all_that_was_acknowledged() {
    let Some(mut first) = Postgres::start(&["fsync=off"]) else {
        return;
    };
    let second = first.standby();
    let url = format!(
        "postgres://test@127.0.0.1:{},127.0.0.1:{}/postgres?target_session_attrs=read-write",
        first.port(),
        second.port()
    );
    let options = PostgresOptions::new(url);
    let servers = [server(&options).await, server(&options).await];
    let (acknowledged, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let mut workers = JoinSet::new();
    for at in 0..8 {
        let operations = servers[at % 2].clone();
        workers.spawn(work(operations, acknowledged.clone(), stop.clone()));
    }
    let waited_for = queued(&servers[0]).await;
    let wait = {
        let (operations, name) = (servers[1].clone(), waited_for.clone());
        tokio::spawn(async move { operations.wait(&name, 10 * MINUTE).await.unwrap() })
    };
    let more = async |by: usize| {
        let enough = acknowledged.load(Ordering::Relaxed) + by;
        until(async || enough < acknowledged.load(Ordering::Relaxed)).await;
    };
    more(100).await;
    first.end(true);
    until(async || servers.iter().all(|server| server.trouble().is_some())).await;
    second.ask("SELECT pg_promote()");
    more(100).await;
    stop.store(true, Ordering::Relaxed);
    let ended = workers.join_all().await.concat();
    until(async || servers.iter().all(|server| server.trouble().is_none())).await;
    // A wait that began before goes on.
    servers[0].cancel(&waited_for).await.unwrap();
    assert!(wait.await.unwrap().is_done());
    let late = server(&options).await;
    for name in &ended {
        for server in servers.iter().chain([&late]) {
            let ended = server.wait(name, MINUTE).await.unwrap();
            assert_eq!(ended.state(), State::Succeeded, "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_takes_connections_and_says_nothing_keeps_nobody_from_the_next() {
    let Some(options) = schema() else { return };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (start, rest) = options.url.split_once('@').unwrap();
    let options = PostgresOptions {
        url: format!(
            "{start}@{},{rest}?connect_timeout=1",
            silent.local_addr().unwrap()
        ),
        ..options
    };
    let server = server(&options).await;
    let name = queued(&server).await;
    assert!(server.cancel(&name).await.unwrap().is_done());
}
