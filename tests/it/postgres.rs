//! Servers of one PostgreSQL: what is asked of a real database. Without one on the
//! machine these tests say so and do nothing.

use std::{collections::BTreeSet, time::Duration};

use longrunning::{
    Any, NewOperation, OperationName, Operations, PostgresJournal, PostgresOptions, QueueName,
    Reads, WorkerId, proto::google::longrunning::ListOperationsRequest,
};
use tokio::{task::JoinSet, time::timeout};
use tokio_postgres::{Client, NoTls};

use crate::support::{
    postgres::{Postgres, journal, schema},
    text,
};

const MINUTE: Duration = Duration::from_secs(60);

async fn server(options: &PostgresOptions) -> Operations {
    let builder = Operations::builder().journal(journal(options).await);
    builder.start().await.unwrap()
}

/// A connection of the test's own.
async fn client(options: &PostgresOptions) -> Client {
    let (client, connection) = tokio_postgres::connect(&options.url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn queued(operations: &Operations) -> OperationName {
    let new = NewOperation::queued("jobs");
    operations.create(new).await.unwrap().operation.owned_name()
}

async fn finished(operations: &Operations) -> OperationName {
    let new = NewOperation::self_executed("test");
    let operation = operations.create(new).await.unwrap().operation;
    let (name, token) = (operation.owned_name(), operation.lease().unwrap().token);
    operations
        .succeed(&name, token, text("done"))
        .await
        .unwrap();
    name
}

/// The names on all pages of a list.
async fn list(operations: &Operations, request: ListOperationsRequest) -> Vec<String> {
    let (mut request, mut names) = (request, Vec::new());
    loop {
        let page = operations.list(&request).await.unwrap();
        names.extend(page.operations.iter().map(|one| one.name().to_owned()));
        if page.next_page_token.is_empty() {
            return names;
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_at_one_server_ends_when_another_finishes_with_hints_and_without() {
    let Some(options) = schema() else { return };
    let deaf = PostgresOptions {
        // Nobody listens there.
        listen_url: Some("postgres://test@127.0.0.1:1/postgres".into()),
        ..options.clone()
    };
    let (one, other, third) = (
        server(&options).await,
        server(&options).await,
        server(&deaf).await,
    );
    let name = queued(&one).await;
    let mut waits = JoinSet::new();
    for operations in [other, third] {
        let name = name.clone();
        waits.spawn(async move { operations.wait(&name, MINUTE).await.unwrap() });
    }
    let queue = QueueName::parse("jobs").unwrap();
    let lease = one.lease(&queue, &WorkerId::new("w")).await.unwrap();
    let token = lease.lease().unwrap().token;
    let done = one.succeed(&name, token, text("done")).await.unwrap();
    for waited in waits.join_all().await {
        assert_eq!(waited.bytes(), done.bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_begin_together_on_an_empty_database_make_its_tables_once() {
    let Some(options) = schema() else { return };
    let mut servers = JoinSet::new();
    for _ in 0..5 {
        let options = options.clone();
        servers.spawn(async move { server(&options).await });
    }
    let servers = servers.join_all().await;
    let name = queued(&servers[0]).await;
    for server in &servers {
        assert_eq!(server.look(&name).await.unwrap().name(), name.as_str());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_beyond_the_limit_of_the_view_is_read_from_the_database() {
    let Some(options) = schema() else { return };
    let options = PostgresOptions {
        view_limit: Some(7),
        ..options
    };
    let one = server(&options).await;
    let mut names = Vec::new();
    for at in 0..60 {
        names.push(if at % 5 == 0 {
            queued(&one).await
        } else {
            finished(&one).await
        });
    }
    names.reverse();
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    // One that begins now shows no more than the limit from the first moment on.
    let other = server(&options).await;
    for operations in [&one, &other] {
        for page_size in [1, 7, 60, 0] {
            let request = ListOperationsRequest {
                page_size,
                ..Default::default()
            };
            assert_eq!(
                list(operations, request).await,
                names,
                "pages of {page_size}"
            );
        }
        let filtered = |filter: &str| ListOperationsRequest {
            name: "operations".into(),
            filter: filter.into(),
            page_size: 3,
            ..Default::default()
        };
        assert_eq!(list(operations, filtered("done=true")).await.len(), 48);
        assert_eq!(list(operations, filtered("done=false")).await.len(), 12);
        let elsewhere = ListOperationsRequest {
            name: "projects/p".into(),
            ..Default::default()
        };
        assert!(list(operations, elsewhere).await.is_empty());
    }
    let shown = names.iter().filter(|name| {
        other
            .get(&OperationName::parse(name.as_str()).unwrap())
            .is_ok()
    });
    assert_eq!(shown.count(), 7 + 12);
    for name in &names {
        let name = OperationName::parse(name.as_str()).unwrap();
        let (here, there) = (
            one.look(&name).await.unwrap(),
            other.look(&name).await.unwrap(),
        );
        assert_eq!(here.bytes(), there.bytes());
        if here.is_done() {
            assert_eq!(
                other.wait(&name, MINUTE).await.unwrap().bytes(),
                here.bytes()
            );
            assert!(other.cancel(&name).await.unwrap().is_done());
            other.delete(&name).await.unwrap();
            assert_eq!(
                other.look(&name).await.unwrap_err().reason(),
                "OPERATION_NOT_FOUND"
            );
        }
    }
    assert_eq!(
        list(&other, ListOperationsRequest::default()).await.len(),
        12
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fresh_reads_see_at_once_what_another_server_did() {
    let Some(options) = schema() else { return };
    let one = server(&options).await;
    let fresh = Operations::builder()
        .reads(Reads::Fresh)
        .journal(journal(&options).await);
    let other = fresh.start().await.unwrap();
    for _ in 0..50 {
        let name = queued(&one).await;
        let listed = list(&other, ListOperationsRequest::default()).await;
        assert_eq!(listed[0], name.as_str());
        one.cancel(&name).await.unwrap();
        assert!(other.look(&name).await.unwrap().is_done());
        one.delete(&name).await.unwrap();
        assert!(other.look(&name).await.is_err());
    }
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

// A rolling restart: a newer program changes the tables while servers of this one go on.
#[tokio::test]
async fn tables_of_a_newer_program_are_used_as_long_as_it_knows_how_this_one_writes() {
    let Some(options) = schema() else { return };
    let running = server(&options).await;
    let name = queued(&running).await;
    let client = client(&options).await;
    let schema = &options.schema;
    let more = format!(
        "ALTER TABLE {schema}.operations ADD COLUMN news text NOT NULL DEFAULT 'none';
         ALTER TABLE {schema}.changes ADD COLUMN news text;
         ALTER TABLE {schema}.meta ADD COLUMN news text;
         CREATE INDEX ON {schema}.operations (news, number);
         UPDATE {schema}.meta SET version = 8"
    );
    client.batch_execute(&more).await.unwrap();
    let another = server(&options).await;
    another.cancel(&name).await.unwrap();
    assert!(running.wait(&name, MINUTE).await.unwrap().is_done());
    queued(&running).await;
    // The last servers of this program should have gone by now.
    let all = format!("UPDATE {schema}.meta SET least = 7");
    client.batch_execute(&all).await.unwrap();
    let before = format!("SELECT count(*), max(revision) FROM {schema}.operations");
    let rows = client.query_one(&before, &[]).await.unwrap();
    let refused = PostgresJournal::open(&options).await.unwrap_err();
    let error = running.cancel(&queued_before(&running).await).await;
    assert_eq!(error.unwrap_err().reason(), "STORE_UNAVAILABLE");
    for words in [refused.to_string(), running.trouble().unwrap()] {
        assert!(
            words.contains("version 8") && words.contains("use a newer longrunning"),
            "{words}"
        );
    }
    let new = NewOperation::queued("jobs");
    let error = another.create(new).await.unwrap_err();
    assert_eq!(error.reason(), "STORE_UNAVAILABLE");
    let after = client.query_one(&before, &[]).await.unwrap();
    assert_eq!(after.get::<_, i64>(0), rows.get::<_, i64>(0));
    assert_eq!(after.get::<_, i32>(1), rows.get::<_, i32>(1));
}

/// One that is not done.
async fn queued_before(operations: &Operations) -> OperationName {
    let request = ListOperationsRequest {
        filter: "NOT done".into(),
        ..Default::default()
    };
    let page = operations.list(&request).await.unwrap();
    page.operations[0].owned_name()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_writes_neither_the_record_nor_an_index_and_is_known_everywhere() {
    let Some(options) = schema() else { return };
    let (one, other) = (server(&options).await, server(&options).await);
    let input = Any {
        type_url: "type.example.com/bytes".into(),
        // Nothing that PostgreSQL could press together.
        value: (0..8192)
            .flat_map(|_| *uuid::Uuid::new_v4().as_bytes())
            .collect(),
    };
    let new = NewOperation::queued("jobs").input(input.clone());
    let name = one.create(new).await.unwrap().operation.owned_name();
    let queue = QueueName::parse("jobs").unwrap();
    let lease = one.lease(&queue, &WorkerId::new("test")).await.unwrap();
    let token = lease.lease().unwrap().token;
    let client = client(&options).await;
    let size = format!(
        "SELECT pg_table_size('{0}.operations') + pg_indexes_size('{0}.operations')",
        options.schema
    );
    let size = async || client.query_one(&size, &[]).await.unwrap().get::<_, i64>(0);
    let before = size().await;
    let mut renewed = lease;
    for _ in 0..100 {
        renewed = one.renew(&name, token).await.unwrap();
    }
    // As records they would be 13 MB.
    let more = size().await - before;
    assert!(more <= 64 * 1024, "{more} bytes more");
    let third = server(&options).await;
    for server in [&other, &third] {
        let heard = async {
            while server.get(&name).unwrap().revision() < renewed.revision() {
                tokio::task::yield_now().await;
            }
        };
        timeout(MINUTE, heard).await.expect("it is heard of");
        let shown = server.get(&name).unwrap();
        assert_eq!(shown.lease(), renewed.lease());
        assert_eq!(shown.input().unwrap().any(), &input);
    }
    other.succeed(&name, token, text("done")).await.unwrap();
    assert!(one.wait(&name, MINUTE).await.unwrap().is_done());
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
    let renewed = async {
        loop {
            match one.renew(&name, lease.token).await {
                Ok(renewed) => return renewed,
                Err(error) => assert_eq!(error.reason(), "STORE_UNAVAILABLE"),
            }
            tokio::task::yield_now().await;
        }
    };
    let renewed = timeout(MINUTE, renewed).await.expect("it is back");
    assert_eq!(renewed.attempt(), 1);
    let ended = other.succeed(&name, lease.token, text("done")).await;
    assert!(ended.unwrap().is_done());
}

#[tokio::test]
async fn a_database_that_cannot_be_used_is_refused_in_words_without_the_password() {
    let wrong = [
        ("postgres://user:secret@127.0.0.1:1/db", "cannot be used"),
        (
            "postgres://user:secret@host:port/db",
            "invalid connection string",
        ),
    ];
    for (url, words) in wrong {
        let options = PostgresOptions::new(url);
        let error = PostgresJournal::open(&options)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(words) && !error.contains("secret"),
            "{error}"
        );
        assert!(!format!("{options} {options:?}").contains("secret"));
    }
    let mut options = PostgresOptions::new("postgres://127.0.0.1/db");
    options.schema = "Bad-Name".into();
    let error = PostgresJournal::open(&options)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("Bad-Name"), "{error}");
}
