//! Servers that reach PostgreSQL through a pgbouncer in transaction mode. Without
//! these on the machine the tests say so and do nothing.

use longrunning::{
    Operations, PostgresOptions, QueueName, WorkerId,
    proto::google::longrunning::ListOperationsRequest,
};
use tokio::task::JoinSet;

use crate::{
    postgres::{MINUTE, finished, list, queued, server},
    postgres_faults::until,
    support::{
        pooler::{Pooler, SHARED},
        postgres::Postgres,
        text,
    },
};

/// Three servers through a pooler: one that hears of changes by a connection to
/// PostgreSQL itself, and two that can only poll.
async fn servers(pooler: &Pooler, postgres: &Postgres) -> [Operations; 3] {
    let polls = PostgresOptions {
        view_limit: Some(3),
        ..PostgresOptions::new(pooler.url())
    };
    let hears = PostgresOptions {
        listen_url: Some(postgres.url()),
        ..polls.clone()
    };
    [
        server(&hears).await,
        server(&polls).await,
        server(&polls).await,
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_a_pooler_that_lends_a_connection_for_a_transaction_all_goes_on() {
    let Some(postgres) = Postgres::start(&["fsync=off"]) else {
        return;
    };
    let Some(pooler) = Pooler::start(&postgres) else {
        return;
    };
    let servers = servers(&pooler, &postgres).await;
    let mut rounds = JoinSet::new();
    for at in 0..30 {
        let turn = |by: usize| servers[(at + by) % 3].clone();
        let (maker, waiter, worker) = (turn(0), turn(1), turn(2));
        rounds.spawn(async move {
            let name = queued(&maker).await;
            let waits = {
                let name = name.clone();
                tokio::spawn(async move { waiter.wait(&name, MINUTE).await.unwrap() })
            };
            let queue = QueueName::parse("jobs").unwrap();
            let lease = worker.lease(&queue, &WorkerId::new("w")).await.unwrap();
            let token = lease.lease().unwrap().token;
            let (other, report) = (lease.owned_name(), longrunning::Report::default());
            worker.report(&other, token, report).await.unwrap();
            worker.succeed(&other, token, text("done")).await.unwrap();
            assert!(waits.await.unwrap().is_done());
        });
    }
    rounds.join_all().await;
    // What no server shows is read through the pooler too.
    let mut old = Vec::new();
    for _ in 0..10 {
        old.push(finished(&servers[0]).await);
    }
    for name in &old {
        assert!(servers[1].wait(name, MINUTE).await.unwrap().is_done());
        assert!(servers[2].wait(name, MINUTE).await.unwrap().is_done());
    }
    let everything = ListOperationsRequest {
        page_size: 7,
        ..Default::default()
    };
    until(async || list(&servers[2], everything.clone()).await.len() == 40).await;
    assert!(servers.iter().all(|server| server.trouble().is_none()));
    // But for the one that listens, all connections were lent.
    let ours = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let connections: usize = postgres.ask(ours).parse().unwrap();
    assert!(connections <= SHARED + 1, "{connections} connections");
}
