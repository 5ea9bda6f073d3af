//! Outages, data loss and maintenance of a real PostgreSQL. Skipped with a notice if
//! PostgreSQL is not installed.

use std::{collections::BTreeSet, time::Duration};

use longrunning::{
    Context, Failure, NewOperation, OperationName, Operations, PostgresConfig, QueueName,
    ReadConsistency, WorkerId, proto::google::longrunning::ListOperationsRequest,
};
use tokio::{task::JoinSet, time::timeout};

use super::{
    MINUTE, create_queued,
    postgres::{list_names, sql_client, start_server},
    wait_until,
};
use crate::support::{
    create_succeeded,
    postgres::{PostgresServer, open_storage, test_config},
    string_value,
};

// During an outage writes are rejected and reads work; afterwards servers recover.
// Rules: CLU-10, LIST-13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_restart_loses_no_acknowledged_write() {
    let Some(mut postgres) = PostgresServer::start(&[]) else {
        return;
    };
    let config = PostgresConfig::new(postgres.url());
    let (server_a, server_b) = (start_server(&config).await, start_server(&config).await);
    let linearizable = Operations::builder()
        .read_consistency(ReadConsistency::Linearizable)
        .storage(open_storage(&config).await);
    let linearizable = linearizable.start().await.unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 0..3 {
        let name = create_queued(&server_a).await;
        server_b.get(&name).await.unwrap();
        if round % 2 == 0 {
            postgres.crash();
        } else {
            postgres.stop();
        }
        let partial_request = ListOperationsRequest {
            return_partial_success: true,
            ..Default::default()
        };
        assert_eq!(
            linearizable
                .list(&partial_request)
                .await
                .unwrap()
                .unreachable,
            ["-"]
        );
        let strict_request = ListOperationsRequest::default();
        assert_eq!(
            linearizable
                .list(&strict_request)
                .await
                .unwrap_err()
                .reason(),
            "STORE_UNAVAILABLE"
        );
        let error = server_a.cancel(&name).await.unwrap_err();
        assert_eq!(error.reason(), "STORE_UNAVAILABLE");
        for server in [&server_a, &server_b] {
            assert!(!server.get(&name).await.unwrap().is_done());
            let page = server.list(&partial_request).await.unwrap();
            assert_eq!(page.operations[0].name(), name.as_str());
        }
        // A server whose write failed reports that its list may be incomplete.
        assert_eq!(
            server_a.list(&partial_request).await.unwrap().unreachable,
            ["-"]
        );
        let unknown = OperationName::parse("operations/unknown").unwrap();
        assert_eq!(
            server_b.get(&unknown).await.unwrap_err().reason(),
            "STORE_UNAVAILABLE"
        );
        postgres.start_process();
        wait_until(async || server_a.cancel(&name).await.is_ok()).await;
        assert!(server_b.wait(&name, MINUTE).await.unwrap().is_done());
        wait_until(async || {
            let page = server_a.list(&partial_request).await.unwrap();
            page.unreachable.is_empty()
        })
        .await;
        acknowledged.insert(name.to_string());
    }
    let late_server = start_server(&config).await;
    let listed: BTreeSet<String> = list_names(&late_server, ListOperationsRequest::default())
        .await
        .into_iter()
        .collect();
    assert_eq!(listed, acknowledged);
}

// Transaction ids restart after a restore, so those in the dump lie in the future.
// Rules: CLU-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_replicate_after_restore_from_dump() {
    let Some(config) = test_config() else { return };
    let server_a = start_server(&config).await;
    let name = create_queued(&server_a).await;
    server_a.close().await;
    let client = sql_client(&config).await;
    let schema = &config.schema;
    let restore = format!(
        "UPDATE {schema}.schema_meta SET pruned_before_xid = '9000000000';
         UPDATE {schema}.changes SET xid = '9000000001'"
    );
    client.batch_execute(&restore).await.unwrap();
    let (server_a, server_b) = (start_server(&config).await, start_server(&config).await);
    let stale_count = format!(
        "SELECT count(*) FROM {schema}.schema_meta, {schema}.changes
         WHERE pruned_before_xid > '8000000000' OR xid > '8000000000'"
    );
    assert_eq!(
        client
            .query_one(&stale_count, &[])
            .await
            .unwrap()
            .get::<_, i64>(0),
        0
    );
    server_a.cancel(&name).await.unwrap();
    assert!(server_b.wait(&name, MINUTE).await.unwrap().is_done());
}

// Rules: CLU-9
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lease_survives_longer_database_outage() {
    let Some(mut postgres) = PostgresServer::start(&[]) else {
        return;
    };
    let config = PostgresConfig::new(postgres.url());
    let (server_a, server_b) = (start_server(&config).await, start_server(&config).await);
    let short = NewOperation::queued("jobs").lease_duration(Duration::from_secs(5));
    let name = server_a.create(short).await.unwrap().operation.name_owned();
    let queue = QueueName::parse("jobs").unwrap();
    let lease = server_a
        .lease(&queue, &WorkerId::new("test"))
        .await
        .unwrap();
    let lease = lease.lease().unwrap().clone();
    server_b.get(&name).await.unwrap();
    postgres.crash();
    // The outage must last longer than the lease.
    let lease_end = lease.expires_at + Duration::from_secs(1);
    tokio::time::sleep_until(server_a.clock().instant_at(lease_end)).await;
    let error = server_b.renew(&name, lease.token).await.unwrap_err();
    assert_eq!(error.reason(), "STORE_UNAVAILABLE");
    postgres.start_process();
    wait_until(async || match server_a.renew(&name, lease.token).await {
        Ok(renewed) => renewed.attempt() == 1,
        Err(error) => {
            assert_eq!(error.reason(), "STORE_UNAVAILABLE");
            false
        }
    })
    .await;
    wait_until(async || server_b.write_error().is_none()).await;
    let result = server_b
        .succeed(&name, lease.token, string_value("done"))
        .await;
    assert!(result.unwrap().is_done());
}

// A demoted primary still accepts connections, but only reads.
// Rules: CLU-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_leave_read_only_host() {
    let Some(postgres) = PostgresServer::start(&["fsync=off"]) else {
        return;
    };
    let config = PostgresConfig::new(postgres.url());
    let server_a = start_server(&config).await;
    let name = create_queued(&server_a).await;
    let sessions_clause = "FROM pg_stat_activity WHERE application_name = 'longrunning'";
    let pids = || -> BTreeSet<String> {
        let pids = postgres.query(&format!("SELECT pid {sessions_clause}"));
        pids.lines().map(str::to_owned).collect()
    };
    wait_until(async || pids().len() == 5).await;
    let before = pids();
    // Only the writer gets a new session, which is read-only.
    postgres.query("ALTER ROLE test SET default_transaction_read_only = on");
    let writer = format!("{sessions_clause} AND query LIKE '-- Applies a batch%'");
    postgres.query(&format!("SELECT pg_terminate_backend(pid) {writer}"));
    wait_until(async || server_a.cancel(&name).await.is_err()).await;
    wait_until(async || {
        server_a
            .write_error()
            .is_some_and(|message| message.contains("read-only"))
    })
    .await;
    postgres.query("SET transaction_read_only = off; ALTER ROLE test RESET ALL");
    wait_until(async || server_a.cancel(&name).await.is_ok()).await;
    wait_until(async || pids().len() == 5 && pids().is_disjoint(&before)).await;
    assert!(server_a.write_error().is_none());
}

// Rules: CLU-12
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_server_still_applies_remote_changes() {
    let Some(config) = test_config() else { return };
    let (started_sender, mut started_receiver) = tokio::sync::mpsc::unbounded_channel();
    let (finish_sender, finish_receiver) = tokio::sync::watch::channel(false);
    let slow_handler = move |_: Context| {
        let (started_sender, mut finish_receiver) =
            (started_sender.clone(), finish_receiver.clone());
        async move {
            started_sender.send(()).unwrap();
            finish_receiver
                .wait_for(|may_finish| *may_finish)
                .await
                .unwrap();
            Ok::<_, Failure>(string_value("done"))
        }
    };
    let server_a = Operations::builder()
        .read_consistency(ReadConsistency::Linearizable)
        .handler("slow", 1, slow_handler);
    let server_a = server_a
        .storage(open_storage(&config).await)
        .start()
        .await
        .unwrap();
    server_a.create(NewOperation::queued("slow")).await.unwrap();
    started_receiver.recv().await.unwrap();
    let server_b = start_server(&config).await;
    let name = create_queued(&server_b).await;
    let draining = {
        let server_a = server_a.clone();
        tokio::spawn(async move { server_a.shutdown(MINUTE).await })
    };
    wait_until(async || {
        let new = NewOperation::queued("jobs");
        server_a
            .create(new)
            .await
            .is_err_and(|error| error.reason() == "SHUTTING_DOWN")
    })
    .await;
    server_b.cancel(&name).await.unwrap();
    let result = timeout(MINUTE, server_a.get(&name))
        .await
        .expect("expected a response");
    assert!(result.unwrap().is_done());
    finish_sender.send(true).unwrap();
    draining.await.unwrap();
    server_a.close().await;
    let result = timeout(MINUTE, server_a.get(&name))
        .await
        .expect("expected a response");
    assert_eq!(result.unwrap_err().reason(), "STORE_UNAVAILABLE");
}

// Rules: CLU-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_is_missed_in_burst_of_3500() {
    let Some(config) = test_config() else { return };
    let (server_a, server_b) = (start_server(&config).await, start_server(&config).await);
    let mut creates = JoinSet::new();
    for _ in 0..3500 {
        let server_a = server_a.clone();
        creates.spawn(async move { create_queued(&server_a).await });
    }
    creates.join_all().await;
    let count = async |server: &Operations| {
        list_names(server, ListOperationsRequest::default())
            .await
            .len()
    };
    wait_until(async || count(&server_b).await == 3500).await;
    let client = sql_client(&config).await;
    let delete_all = format!(
        "WITH gone AS (DELETE FROM {0}.operations RETURNING number)
         INSERT INTO {0}.changes (number, lease_only) SELECT number, false FROM gone",
        config.schema
    );
    client.batch_execute(&delete_all).await.unwrap();
    for server in [&server_a, &server_b] {
        wait_until(async || count(server).await == 0).await;
    }
}

// Rules: CLU-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_lost_by_database_and_trimmed_changes_are_reloaded() {
    let Some(config) = test_config() else { return };
    let server_a = start_server(&config).await;
    let (retained, lost, reverted) = (
        create_queued(&server_a).await,
        create_queued(&server_a).await,
        create_queued(&server_a).await,
    );
    let client = sql_client(&config).await;
    let schema = &config.schema;
    let save_row =
        format!("CREATE TABLE {schema}.saved AS SELECT * FROM {schema}.operations WHERE name = $1");
    client
        .execute(&save_row.replace("$1", &format!("'{reverted}'")), &[])
        .await
        .unwrap();
    server_a.cancel(&reverted).await.unwrap();
    assert!(server_a.get_cached(&reverted).unwrap().is_done());
    let lose_rows = format!(
        "BEGIN;
         DELETE FROM {schema}.operations WHERE name IN ('{lost}', '{reverted}');
         INSERT INTO {schema}.operations SELECT * FROM {schema}.saved;
         UPDATE {schema}.schema_meta SET pruned_before_xid = pg_snapshot_xmax(pg_current_snapshot());
         COMMIT"
    );
    client.batch_execute(&lose_rows).await.unwrap();
    wait_until(async || server_a.get_cached(&lost).is_err()).await;
    wait_until(async || {
        server_a
            .get_cached(&reverted)
            .is_ok_and(|operation| !operation.is_done())
    })
    .await;
    assert!(server_a.get_cached(&retained).is_ok());
}

// Rules: CLU-16
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_operations_and_old_change_rows_are_deleted() {
    let Some(config) = test_config() else { return };
    let server_a = start_server(&config).await;
    let (old, young) = (
        create_succeeded(&server_a).await,
        create_succeeded(&server_a).await,
    );
    let client = sql_client(&config).await;
    let schema = &config.schema;
    let age_rows = format!(
        "UPDATE {schema}.operations SET expires_at_us = 1 WHERE name = '{old}';
         UPDATE {schema}.changes SET changed_at = changed_at - interval '1 hour'"
    );
    client.batch_execute(&age_rows).await.unwrap();
    // Maintenance runs when a server starts.
    let server_b = start_server(&config).await;
    let count = async |query: String| {
        client
            .query_one(&query, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
    };
    let old_changes = format!(
        "SELECT count(*) FROM {schema}.changes WHERE changed_at < clock_timestamp() - interval '30 minutes'"
    );
    wait_until(async || count(old_changes.clone()).await == 0).await;
    let trimmed =
        format!("SELECT count(*) FROM {schema}.schema_meta WHERE pruned_before_xid > '0'");
    assert_eq!(count(trimmed).await, 1);
    for server in [&server_a, &server_b] {
        wait_until(async || server.get(&old).await.is_err()).await;
        assert!(server.get(&young).await.unwrap().is_done());
    }
    // Replication still works.
    let name = create_queued(&server_a).await;
    server_b.cancel(&name).await.unwrap();
    assert!(server_a.wait(&name, MINUTE).await.unwrap().is_done());
}
