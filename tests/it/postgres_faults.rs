//! Servers of one PostgreSQL that fails, loses something or is taken care of: what is
//! asked of a real database. Without one on the machine these tests say so and do
//! nothing.

use std::{collections::BTreeSet, time::Duration};

use longrunning::{
    Context, Failure, NewOperation, OperationName, Operations, PostgresOptions, QueueName, Reads,
    WorkerId, proto::google::longrunning::ListOperationsRequest,
};
use tokio::{
    task::{JoinSet, yield_now},
    time::timeout,
};

use crate::{
    postgres::{MINUTE, client, finished, list, queued, server},
    support::{
        postgres::{Postgres, journal, schema},
        text,
    },
};

/// Waits until something is so.
pub(super) async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            yield_now().await;
        }
    };
    timeout(MINUTE, wait).await.expect("it is so in the end");
}

// A database that is gone for a while: what is written meanwhile is refused, what is
// read goes on, and all of it works again by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_database_costs_nothing_that_was_said_to_be_kept() {
    let Some(mut postgres) = Postgres::start(&[]) else {
        return;
    };
    let options = PostgresOptions::new(postgres.url());
    let (one, other) = (server(&options).await, server(&options).await);
    let fresh = Operations::builder()
        .reads(Reads::Fresh)
        .journal(journal(&options).await);
    let fresh = fresh.start().await.unwrap();
    let mut kept = BTreeSet::new();
    for round in 0..3 {
        let name = queued(&one).await;
        other.look(&name).await.unwrap();
        postgres.end(round % 2 == 0);
        let everything = ListOperationsRequest {
            return_partial_success: true,
            ..Default::default()
        };
        assert_eq!(fresh.list(&everything).await.unwrap().unreachable, ["-"]);
        let all = ListOperationsRequest::default();
        assert_eq!(
            fresh.list(&all).await.unwrap_err().reason(),
            "STORE_UNAVAILABLE"
        );
        let error = one.cancel(&name).await.unwrap_err();
        assert_eq!(error.reason(), "STORE_UNAVAILABLE");
        for server in [&one, &other] {
            assert!(!server.look(&name).await.unwrap().is_done());
            let page = server.list(&everything).await.unwrap();
            assert_eq!(page.operations[0].name(), name.as_str());
        }
        // The one that tried to write knows that there may be more.
        assert_eq!(one.list(&everything).await.unwrap().unreachable, ["-"]);
        let unknown = OperationName::parse("operations/unknown").unwrap();
        assert_eq!(
            other.look(&unknown).await.unwrap_err().reason(),
            "STORE_UNAVAILABLE"
        );
        postgres.begin();
        let again = async {
            while one.cancel(&name).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(MINUTE, again)
            .await
            .expect("it is cancelled in the end");
        assert!(other.wait(&name, MINUTE).await.unwrap().is_done());
        let whole = async {
            while !one.list(&everything).await.unwrap().unreachable.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(MINUTE, whole).await.expect("it reads again");
        kept.insert(name.to_string());
    }
    let third = server(&options).await;
    let listed: BTreeSet<String> = list(&third, ListOperationsRequest::default())
        .await
        .into_iter()
        .collect();
    assert_eq!(listed, kept);
}

// The numbers of its transactions begin anew, and those that the dump bears are yet to
// come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_restored_from_a_dump_is_followed_from_now_on() {
    let Some(options) = schema() else { return };
    let one = server(&options).await;
    let name = queued(&one).await;
    one.close().await;
    let client = client(&options).await;
    let schema = &options.schema;
    let restored = format!(
        "UPDATE {schema}.meta SET trimmed = '9000000000';
         UPDATE {schema}.changes SET tx = '9000000001'"
    );
    client.batch_execute(&restored).await.unwrap();
    let (one, other) = (server(&options).await, server(&options).await);
    let left = format!(
        "SELECT count(*) FROM {schema}.meta, {schema}.changes
         WHERE trimmed > '8000000000' OR tx > '8000000000'"
    );
    assert_eq!(
        client.query_one(&left, &[]).await.unwrap().get::<_, i64>(0),
        0
    );
    one.cancel(&name).await.unwrap();
    assert!(other.wait(&name, MINUTE).await.unwrap().is_done());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_outlasts_a_database_that_was_away_for_longer() {
    let Some(mut postgres) = Postgres::start(&[]) else {
        return;
    };
    let options = PostgresOptions::new(postgres.url());
    let (one, other) = (server(&options).await, server(&options).await);
    let short = NewOperation::queued("jobs").lease_duration(Duration::from_secs(5));
    let name = one.create(short).await.unwrap().operation.owned_name();
    let queue = QueueName::parse("jobs").unwrap();
    let lease = one.lease(&queue, &WorkerId::new("test")).await.unwrap();
    let lease = lease.lease().unwrap().clone();
    other.look(&name).await.unwrap();
    postgres.end(true);
    // It is the length of the outage that is tested here.
    let over = lease.until + Duration::from_secs(1);
    tokio::time::sleep_until(one.clock().instant(over)).await;
    let refused = other.renew(&name, lease.token).await.unwrap_err();
    assert_eq!(refused.reason(), "STORE_UNAVAILABLE");
    postgres.begin();
    until(async || match one.renew(&name, lease.token).await {
        Ok(renewed) => renewed.attempt() == 1,
        Err(error) => {
            assert_eq!(error.reason(), "STORE_UNAVAILABLE");
            false
        }
    })
    .await;
    until(async || other.trouble().is_none()).await;
    let ended = other.succeed(&name, lease.token, text("done")).await;
    assert!(ended.unwrap().is_done());
}

// A primary that has given its place to another one, and goes on to answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_only_reads_is_left_by_every_connection_until_one_writes() {
    let Some(postgres) = Postgres::start(&["fsync=off"]) else {
        return;
    };
    let options = PostgresOptions::new(postgres.url());
    let one = server(&options).await;
    let name = queued(&one).await;
    let ours = "FROM pg_stat_activity WHERE application_name = 'longrunning'";
    let pids = || -> BTreeSet<String> {
        let pids = postgres.ask(&format!("SELECT pid {ours}"));
        pids.lines().map(str::to_owned).collect()
    };
    until(async || pids().len() == 5).await;
    let before = pids();
    // The session of the writer begins anew, and reads only. The others stay as they are.
    postgres.ask("ALTER ROLE test SET default_transaction_read_only = on");
    let writer = format!("{ours} AND query LIKE 'WITH given AS%'");
    postgres.ask(&format!("SELECT pg_terminate_backend(pid) {writer}"));
    until(async || one.cancel(&name).await.is_err()).await;
    until(async || {
        one.trouble()
            .is_some_and(|trouble| trouble.contains("is it a standby"))
    })
    .await;
    postgres.ask("SET transaction_read_only = off; ALTER ROLE test RESET ALL");
    until(async || one.cancel(&name).await.is_ok()).await;
    until(async || pids().len() == 5 && pids().is_disjoint(&before)).await;
    assert!(one.trouble().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_server_drains_it_still_hears_of_others() {
    let Some(options) = schema() else { return };
    let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
    let (go, may_go) = tokio::sync::watch::channel(false);
    let slow = move |_: Context| {
        let (begun, mut may_go) = (begun.clone(), may_go.clone());
        async move {
            begun.send(()).unwrap();
            may_go.wait_for(|go| *go).await.unwrap();
            Ok::<_, Failure>(text("done"))
        }
    };
    let one = Operations::builder()
        .reads(Reads::Fresh)
        .handler("slow", 1, slow);
    let one = one.journal(journal(&options).await).start().await.unwrap();
    one.create(NewOperation::queued("slow")).await.unwrap();
    has_begun.recv().await.unwrap();
    let other = server(&options).await;
    let name = queued(&other).await;
    let draining = {
        let one = one.clone();
        tokio::spawn(async move { one.shutdown(MINUTE).await })
    };
    until(async || {
        let new = NewOperation::queued("jobs");
        one.create(new)
            .await
            .is_err_and(|error| error.reason() == "SHUTTING_DOWN")
    })
    .await;
    other.cancel(&name).await.unwrap();
    let looked = timeout(MINUTE, one.look(&name)).await.expect("it answers");
    assert!(looked.unwrap().is_done());
    go.send(true).unwrap();
    draining.await.unwrap();
    one.close().await;
    let late = timeout(MINUTE, one.look(&name)).await.expect("it answers");
    assert_eq!(late.unwrap_err().reason(), "STORE_UNAVAILABLE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_changes_at_once_none_is_missed() {
    let Some(options) = schema() else { return };
    let (one, other) = (server(&options).await, server(&options).await);
    let mut all = JoinSet::new();
    for _ in 0..3500 {
        let one = one.clone();
        all.spawn(async move { queued(&one).await });
    }
    all.join_all().await;
    let count =
        async |server: &Operations| list(server, ListOperationsRequest::default()).await.len();
    until(async || count(&other).await == 3500).await;
    let client = client(&options).await;
    let gone = format!(
        "WITH gone AS (DELETE FROM {0}.operations RETURNING number)
         INSERT INTO {0}.changes (number, is_renewal) SELECT number, false FROM gone",
        options.schema
    );
    client.batch_execute(&gone).await.unwrap();
    for server in [&one, &other] {
        until(async || count(server).await == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_database_has_lost_and_what_was_forgotten_unread_is_read_anew() {
    let Some(options) = schema() else { return };
    let one = server(&options).await;
    let (kept, lost, back) = (queued(&one).await, queued(&one).await, queued(&one).await);
    let client = client(&options).await;
    let schema = &options.schema;
    let save =
        format!("CREATE TABLE {schema}.saved AS SELECT * FROM {schema}.operations WHERE name = $1");
    client
        .execute(&save.replace("$1", &format!("'{back}'")), &[])
        .await
        .unwrap();
    one.cancel(&back).await.unwrap();
    assert!(one.get(&back).unwrap().is_done());
    let lose = format!(
        "BEGIN;
         DELETE FROM {schema}.operations WHERE name IN ('{lost}', '{back}');
         INSERT INTO {schema}.operations SELECT * FROM {schema}.saved;
         UPDATE {schema}.meta SET trimmed = pg_snapshot_xmax(pg_current_snapshot());
         COMMIT"
    );
    client.batch_execute(&lose).await.unwrap();
    until(async || one.get(&lost).is_err()).await;
    until(async || one.get(&back).is_ok_and(|shown| !shown.is_done())).await;
    assert!(one.get(&kept).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_expired_goes_from_the_database_and_old_changes_are_forgotten() {
    let Some(options) = schema() else { return };
    let one = server(&options).await;
    let (old, young) = (finished(&one).await, finished(&one).await);
    let client = client(&options).await;
    let schema = &options.schema;
    let age = format!(
        "UPDATE {schema}.operations SET expires = 1 WHERE name = '{old}';
         UPDATE {schema}.changes SET at = at - interval '1 hour'"
    );
    client.batch_execute(&age).await.unwrap();
    // One that begins looks at once.
    let other = server(&options).await;
    let count = async |question: String| {
        client
            .query_one(&question, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
    };
    let old_changes = format!(
        "SELECT count(*) FROM {schema}.changes WHERE at < clock_timestamp() - interval '30 minutes'"
    );
    until(async || count(old_changes.clone()).await == 0).await;
    let trimmed = format!("SELECT count(*) FROM {schema}.meta WHERE trimmed > '0'");
    assert_eq!(count(trimmed).await, 1);
    for server in [&one, &other] {
        until(async || server.look(&old).await.is_err()).await;
        assert!(server.look(&young).await.unwrap().is_done());
    }
    // They still follow each other.
    let name = queued(&one).await;
    other.cancel(&name).await.unwrap();
    assert!(one.wait(&name, MINUTE).await.unwrap().is_done());
}
