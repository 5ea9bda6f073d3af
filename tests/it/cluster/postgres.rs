//! Several servers over one real PostgreSQL: replication, schema versions and ids.
//! Skipped with a notice if PostgreSQL is not installed.

use std::{collections::BTreeSet, future::poll_fn, process::Stdio};

use longrunning::{
    Any, NewOperation, OperationName, Operations, PostgresConfig, PostgresStorage, QueueName,
    ReadConsistency, WorkerId, proto::google::longrunning::ListOperationsRequest,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    task::JoinSet,
    time::timeout,
};
use tokio_postgres::{AsyncMessage, Client, NoTls};

use super::{MINUTE, create_queued};
use crate::support::{
    postgres::{open_storage, test_config},
    serve_process::longrunning_command,
    string_value,
};

/// Starts a server over PostgreSQL.
pub(super) async fn start_server(config: &PostgresConfig) -> Operations {
    let builder = Operations::builder().storage(open_storage(config).await);
    builder.start().await.unwrap()
}

/// Opens a separate connection for SQL statements of the test.
pub(super) async fn sql_client(config: &PostgresConfig) -> Client {
    let (client, connection) = tokio_postgres::connect(&config.url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Returns the names on all pages of a list.
pub(super) async fn list_names(
    operations: &Operations,
    request: ListOperationsRequest,
) -> Vec<String> {
    let (mut request, mut names) = (request, Vec::new());
    loop {
        let page = operations.list(&request).await.unwrap();
        names.extend(
            page.operations
                .iter()
                .map(|operation| operation.name().to_owned()),
        );
        if page.next_page_token.is_empty() {
            return names;
        }
        request.page_token = page.next_page_token;
    }
}

// Rules: CLU-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_ends_on_remote_finish_with_and_without_notify() {
    let Some(config) = test_config() else { return };
    // No server listens on port 1.
    let unnotified = config
        .clone()
        .with_notify_url("postgres://test@127.0.0.1:1/postgres");
    let (server_a, server_b, unnotified_server) = (
        start_server(&config).await,
        start_server(&config).await,
        start_server(&unnotified).await,
    );
    let name = create_queued(&server_a).await;
    let mut waits = JoinSet::new();
    for operations in [server_b, unnotified_server] {
        let name = name.clone();
        waits.spawn(async move { operations.wait(&name, MINUTE).await.unwrap() });
    }
    let queue = QueueName::parse("jobs").unwrap();
    let lease = server_a.lease(&queue, &WorkerId::new("w")).await.unwrap();
    let token = lease.lease().unwrap().token;
    let done = server_a
        .succeed(&name, token, string_value("done"))
        .await
        .unwrap();
    for waited in waits.join_all().await {
        assert_eq!(waited.bytes(), done.bytes());
    }
}

// Rules: CLU-5
#[tokio::test]
async fn server_sends_and_receives_notifications() {
    let Some(config) = test_config() else { return };
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let (client, mut connection) = tokio_postgres::connect(&config.url, NoTls).await.unwrap();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(notification) = message {
                sender.send(notification.payload().to_owned()).unwrap();
            }
        }
    });
    let listen = format!("LISTEN {}", config.schema);
    client.batch_execute(&listen).await.unwrap();
    let server_a = start_server(&config).await;
    let test_payload = receiver.recv().await.unwrap();
    create_queued(&server_a).await;
    let change_payload = timeout(MINUTE, receiver.recv())
        .await
        .expect("expected a notification of the change");
    assert_eq!(
        change_payload.unwrap(),
        test_payload,
        "expected both payloads to contain the id of the server"
    );
    let mut serve = longrunning_command(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--worker-listen",
        "none",
    ]);
    serve
        .args(["--admin-listen", "none", "--store", &config.url])
        .args(["--store-schema", &config.schema])
        .stderr(Stdio::piped());
    let mut serve_process = serve.spawn().unwrap();
    let mut log = BufReader::new(serve_process.stderr.take().unwrap()).lines();
    let notify_is_logged = async {
        while let Some(line) = log.next_line().await.unwrap() {
            if line.contains("LISTEN/NOTIFY is working") {
                return;
            }
        }
        panic!("the server exited");
    };
    timeout(MINUTE, notify_is_logged)
        .await
        .expect("expected the server to receive its own notification");
}

// Rules: CREATE-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_id_may_be_any_text_and_is_scoped_to_parent() {
    let Some(config) = test_config() else { return };
    let (server_a, server_b) = (start_server(&config).await, start_server(&config).await);
    let requests = [
        ("", "a\0b"),
        ("", "a"),
        ("projects/p", "locations/eu/a"),
        ("projects/p/locations/eu", "a"),
        ("projects/p", ":a"),
        ("projects/p", "\u{10ffff}\u{e000}"),
    ];
    let mut names = BTreeSet::new();
    for (parent, id) in requests {
        let new = || NewOperation::queued("jobs").parent(parent).request_id(id);
        let created = server_a.create(new()).await.unwrap();
        assert!(!created.already_existed);
        let repeated = server_b.create(new()).await.unwrap();
        assert!(repeated.already_existed);
        assert_eq!(repeated.operation.name(), created.operation.name());
        names.insert(created.operation.name().to_owned());
    }
    assert_eq!(names.len(), requests.len());
    assert!(server_a.write_error().is_none() && server_b.write_error().is_none());
}

// Rules: CLU-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn same_ids_created_in_opposite_orders_are_created_once() {
    let Some(config) = test_config() else { return };
    let (server_a, server_b) = (start_server(&config).await, start_server(&config).await);
    for round in 0..10 {
        let mut creates = JoinSet::new();
        for (index, server) in [&server_a, &server_b].into_iter().enumerate() {
            for number in 0..300 {
                let number = if index == 0 { number } else { 299 - number };
                let (server, id) = (server.clone(), format!("op-{round}-{number}"));
                let new = NewOperation::queued("jobs").id(&id);
                creates.spawn(async move { server.create(new).await });
            }
        }
        let mut created_count = 0;
        for outcome in creates.join_all().await {
            match outcome {
                Ok(_) => created_count += 1,
                Err(error) => assert_eq!(error.reason(), "OPERATION_EXISTS"),
            }
        }
        assert_eq!(created_count, 300);
    }
}

// Rules: CLU-15
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_first_starts_create_schema_once() {
    let Some(config) = test_config() else { return };
    let mut servers = JoinSet::new();
    for _ in 0..5 {
        let config = config.clone();
        servers.spawn(async move { start_server(&config).await });
    }
    let servers = servers.join_all().await;
    let name = create_queued(&servers[0]).await;
    for server in &servers {
        assert_eq!(server.get(&name).await.unwrap().name(), name.as_str());
    }
}

// Rules: CLU-4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn linearizable_reads_see_remote_changes_immediately() {
    let Some(config) = test_config() else { return };
    let server_a = start_server(&config).await;
    let linearizable = Operations::builder()
        .read_consistency(ReadConsistency::Linearizable)
        .storage(open_storage(&config).await);
    let server_b = linearizable.start().await.unwrap();
    for _ in 0..50 {
        let name = create_queued(&server_a).await;
        let listed = list_names(&server_b, ListOperationsRequest::default()).await;
        assert_eq!(listed[0], name.as_str());
        server_a.cancel(&name).await.unwrap();
        assert!(server_b.get(&name).await.unwrap().is_done());
        server_a.delete(&name).await.unwrap();
        assert!(server_b.get(&name).await.is_err());
    }
}

// A rolling upgrade: a newer version changes the schema while servers of this version run.
// Rules: CLU-15
#[tokio::test]
async fn newer_schema_is_used_while_it_supports_this_version() {
    let Some(config) = test_config() else { return };
    let old_server = start_server(&config).await;
    let name = create_queued(&old_server).await;
    let client = sql_client(&config).await;
    let schema = &config.schema;
    let upgrade = format!(
        "ALTER TABLE {schema}.operations ADD COLUMN news text NOT NULL DEFAULT 'none';
         ALTER TABLE {schema}.changes ADD COLUMN news text;
         ALTER TABLE {schema}.schema_meta ADD COLUMN news text;
         CREATE INDEX ON {schema}.operations (news, number);
         UPDATE {schema}.schema_meta SET schema_version = 8"
    );
    client.batch_execute(&upgrade).await.unwrap();
    let second_server = start_server(&config).await;
    second_server.cancel(&name).await.unwrap();
    assert!(old_server.wait(&name, MINUTE).await.unwrap().is_done());
    create_queued(&old_server).await;
    // From now on this version is too old.
    let require_newer = format!("UPDATE {schema}.schema_meta SET min_writer_version = 7");
    client.batch_execute(&require_newer).await.unwrap();
    let stats_query = format!("SELECT count(*), max(revision) FROM {schema}.operations");
    let stats_before = client.query_one(&stats_query, &[]).await.unwrap();
    let open_error = PostgresStorage::open(&config).await.unwrap_err();
    let error = old_server.cancel(&find_unfinished(&old_server).await).await;
    assert_eq!(error.unwrap_err().reason(), "STORE_UNAVAILABLE");
    for message in [open_error.to_string(), old_server.write_error().unwrap()] {
        assert!(
            message.contains("version 8") && message.contains("use a newer longrunning"),
            "{message}"
        );
    }
    let new = NewOperation::queued("jobs");
    let error = second_server.create(new).await.unwrap_err();
    assert_eq!(error.reason(), "STORE_UNAVAILABLE");
    let stats_after = client.query_one(&stats_query, &[]).await.unwrap();
    assert_eq!(stats_after.get::<_, i64>(0), stats_before.get::<_, i64>(0));
    assert_eq!(stats_after.get::<_, i32>(1), stats_before.get::<_, i32>(1));
}

/// Returns the name of an operation that is not done.
async fn find_unfinished(operations: &Operations) -> OperationName {
    let request = ListOperationsRequest {
        filter: "done = false".into(),
        ..Default::default()
    };
    let page = operations.list(&request).await.unwrap();
    page.operations[0].name_owned()
}

// Rules: CLU-8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lease_renewal_rewrites_no_record_or_index_and_replicates() {
    let Some(config) = test_config() else { return };
    let (server_a, server_b) = (start_server(&config).await, start_server(&config).await);
    let input = Any {
        type_url: "type.example.com/bytes".into(),
        // Random bytes, which PostgreSQL cannot compress.
        value: (0..8192)
            .flat_map(|_| *uuid::Uuid::new_v4().as_bytes())
            .collect(),
    };
    let new = NewOperation::queued("jobs").input(input.clone());
    let name = server_a.create(new).await.unwrap().operation.name_owned();
    let queue = QueueName::parse("jobs").unwrap();
    let lease = server_a
        .lease(&queue, &WorkerId::new("test"))
        .await
        .unwrap();
    let token = lease.lease().unwrap().token;
    let client = sql_client(&config).await;
    let size_query = format!(
        "SELECT pg_table_size('{0}.operations') + pg_indexes_size('{0}.operations')",
        config.schema
    );
    let table_size = async || {
        client
            .query_one(&size_query, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
    };
    let before = table_size().await;
    let mut renewed = lease;
    for _ in 0..100 {
        renewed = server_a.renew(&name, token).await.unwrap();
    }
    // Rewriting the record each time would add 13 MB.
    let growth = table_size().await - before;
    assert!(
        growth <= 64 * 1024,
        "expected at most 64 KiB more, got {growth} bytes"
    );
    let late_server = start_server(&config).await;
    for server in [&server_b, &late_server] {
        let replicated = async {
            while server.get_cached(&name).unwrap().revision() < renewed.revision() {
                tokio::task::yield_now().await;
            }
        };
        timeout(MINUTE, replicated)
            .await
            .expect("expected the renewal to be replicated");
        let operation = server.get_cached(&name).unwrap();
        assert_eq!(operation.lease(), renewed.lease());
        assert_eq!(operation.input().unwrap().any(), &input);
    }
    server_b
        .succeed(&name, token, string_value("done"))
        .await
        .unwrap();
    assert!(server_a.wait(&name, MINUTE).await.unwrap().is_done());
}

// Rules: TLS-4
#[tokio::test]
async fn unusable_database_error_does_not_contain_password() {
    let invalid_urls = [
        ("postgres://user:secret@127.0.0.1:1/db", "cannot be used"),
        (
            "postgres://user:secret@host:port/db",
            "invalid connection string",
        ),
    ];
    for (url, message) in invalid_urls {
        let config = PostgresConfig::new(url);
        let error = PostgresStorage::open(&config)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(message) && !error.contains("secret"),
            "{error}"
        );
        assert!(!format!("{config} {config:?}").contains("secret"));
    }
    let mut config = PostgresConfig::new("postgres://127.0.0.1/db");
    config.schema = "Bad-Name".into();
    let error = PostgresStorage::open(&config)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("Bad-Name"), "{error}");
}
