//! Servers that connect to PostgreSQL through pgbouncer in transaction mode. Skipped
//! with a notice if either is not installed.

use longrunning::{
    Operations, PostgresConfig, QueueName, WorkerId,
    proto::google::longrunning::ListOperationsRequest,
};
use tokio::task::JoinSet;

use super::{
    MINUTE, create_queued,
    postgres::{list_names, start_server},
    wait_until,
};
use crate::support::{
    create_succeeded,
    pgbouncer::{POOL_SIZE, PgBouncer},
    postgres::PostgresServer,
    string_value,
};

/// Starts three servers through a pooler: one with a direct connection for notifications,
/// and two that poll.
async fn start_servers(pooler: &PgBouncer, postgres: &PostgresServer) -> [Operations; 3] {
    let polling = PostgresConfig::new(pooler.url()).with_cache_limit(3);
    let notified = polling.clone().with_notify_url(postgres.url());
    [
        start_server(&notified).await,
        start_server(&polling).await,
        start_server(&polling).await,
    ]
}

// Rules: CLU-14
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_work_through_transaction_pooler() {
    let Some(postgres) = PostgresServer::start(&["fsync=off"]) else {
        return;
    };
    let Some(pooler) = PgBouncer::start(&postgres) else {
        return;
    };
    let servers = start_servers(&pooler, &postgres).await;
    let mut rounds = JoinSet::new();
    for index in 0..30 {
        let server_at = |offset: usize| servers[(index + offset) % 3].clone();
        let (creator, waiter, worker) = (server_at(0), server_at(1), server_at(2));
        rounds.spawn(async move {
            let name = create_queued(&creator).await;
            let wait = {
                let name = name.clone();
                tokio::spawn(async move { waiter.wait(&name, MINUTE).await.unwrap() })
            };
            let queue = QueueName::parse("jobs").unwrap();
            let lease = worker.lease(&queue, &WorkerId::new("w")).await.unwrap();
            let token = lease.lease().unwrap().token;
            let (leased_name, report) = (lease.name_owned(), longrunning::Report::default());
            worker.report(&leased_name, token, report).await.unwrap();
            worker
                .succeed(&leased_name, token, string_value("done"))
                .await
                .unwrap();
            assert!(wait.await.unwrap().is_done());
        });
    }
    rounds.join_all().await;
    // Evicted operations are read through the pooler too.
    let mut evicted = Vec::new();
    for _ in 0..10 {
        evicted.push(create_succeeded(&servers[0]).await);
    }
    for name in &evicted {
        assert!(servers[1].wait(name, MINUTE).await.unwrap().is_done());
        assert!(servers[2].wait(name, MINUTE).await.unwrap().is_done());
    }
    let list_request = ListOperationsRequest {
        page_size: 7,
        ..Default::default()
    };
    wait_until(async || list_names(&servers[2], list_request.clone()).await.len() == 40).await;
    assert!(servers.iter().all(|server| server.write_error().is_none()));
    // All connections but the one for notifications belong to the pool.
    let session_count_query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let connections: usize = postgres.query(session_count_query).parse().unwrap();
    assert!(connections <= POOL_SIZE + 1, "{connections} connections");
}
