//! Servers of one PostgreSQL: what is asked of a real database. Without one on the
//! machine these tests say so and do nothing.

use std::{collections::BTreeSet, future::poll_fn, process::Stdio, time::Duration};

use longrunning::{
    Any, NewOperation, OperationName, Operations, PostgresJournal, PostgresOptions, QueueName,
    Reads, WorkerId, proto::google::longrunning::ListOperationsRequest,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    task::JoinSet,
    time::timeout,
};
use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::support::{
    postgres::{journal, schema},
    program::command,
    text,
};

pub(super) const MINUTE: Duration = Duration::from_secs(60);

pub(super) async fn server(options: &PostgresOptions) -> Operations {
    let builder = Operations::builder().journal(journal(options).await);
    builder.start().await.unwrap()
}

/// A connection of the test's own.
pub(super) async fn client(options: &PostgresOptions) -> Client {
    let (client, connection) = tokio_postgres::connect(&options.url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(super) async fn queued(operations: &Operations) -> OperationName {
    let new = NewOperation::queued("jobs");
    operations.create(new).await.unwrap().operation.owned_name()
}

pub(super) async fn finished(operations: &Operations) -> OperationName {
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
pub(super) async fn list(operations: &Operations, request: ListOperationsRequest) -> Vec<String> {
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

#[tokio::test]
async fn notifications_arrive_at_a_server_and_go_out_from_it() {
    let Some(options) = schema() else { return };
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let (client, mut connection) = tokio_postgres::connect(&options.url, NoTls).await.unwrap();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(said) = message {
                tell.send(said.payload().to_owned()).unwrap();
            }
        }
    });
    let listen = format!("LISTEN {}", options.schema);
    client.batch_execute(&listen).await.unwrap();
    let one = server(&options).await;
    let trial = told.recv().await.unwrap();
    queued(&one).await;
    let hint = timeout(MINUTE, told.recv())
        .await
        .expect("others hear of a change");
    assert_eq!(hint.unwrap(), trial, "both are signed by the server");
    let mut serve = command(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--worker-listen",
        "none",
    ]);
    serve
        .args(["--admin-listen", "none", "--store", &options.url])
        .args(["--store-schema", &options.schema])
        .stderr(Stdio::piped());
    let mut program = serve.spawn().unwrap();
    let mut log = BufReader::new(program.stderr.take().unwrap()).lines();
    let hears = async {
        while let Some(line) = log.next_line().await.unwrap() {
            if line.contains("hears at once what other servers change") {
                return;
            }
        }
        panic!("it ended");
    };
    timeout(MINUTE, hears)
        .await
        .expect("its own words come back to it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_id_may_hold_anything_and_belongs_to_its_parent() {
    let Some(options) = schema() else { return };
    let (one, other) = (server(&options).await, server(&options).await);
    let requests = [
        ("", "a\0b"),
        ("", "a"),
        ("projects/p", "locations/eu/a"),
        ("projects/p/locations/eu", "a"),
        ("projects/p", ":a"),
        ("projects/p", "\u{10ffff}\u{e000}"),
    ];
    let mut names = BTreeSet::new();
    for (under, id) in requests {
        let new = || NewOperation::queued("jobs").parent(under).request_id(id);
        let made = one.create(new()).await.unwrap();
        assert!(!made.reused);
        let again = other.create(new()).await.unwrap();
        assert!(again.reused);
        assert_eq!(again.operation.name(), made.operation.name());
        names.insert(made.operation.name().to_owned());
    }
    assert_eq!(names.len(), requests.len());
    assert!(one.trouble().is_none() && other.trouble().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_names_that_come_to_two_servers_in_another_order_are_made_once() {
    let Some(options) = schema() else { return };
    let (one, other) = (server(&options).await, server(&options).await);
    for round in 0..10 {
        let mut all = JoinSet::new();
        for (at, server) in [&one, &other].into_iter().enumerate() {
            for number in 0..300 {
                let number = if at == 0 { number } else { 299 - number };
                let (server, id) = (server.clone(), format!("op-{round}-{number}"));
                let new = NewOperation::queued("jobs").id(&id);
                all.spawn(async move { server.create(new).await });
            }
        }
        let mut made = 0;
        for outcome in all.join_all().await {
            match outcome {
                Ok(_) => made += 1,
                Err(error) => assert_eq!(error.reason(), "OPERATION_EXISTS"),
            }
        }
        assert_eq!(made, 300);
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
