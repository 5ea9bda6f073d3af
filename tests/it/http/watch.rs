//! `GET …:watch`: a stream of the states of an operation as server-sent events.

use std::time::Duration;

use longrunning::{OperationName, Report};
use serde_json::Value;

use crate::support::{
    create_running, create_succeeded,
    http_server::{HttpConnection, HttpTestServer, error_parts, http_request},
    operations::wait_for_waiters,
    progress, string_value,
};

/// Time limit for one step of a test.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

async fn open_watch(
    server: &HttpTestServer,
    name: &OperationName,
    headers: &str,
) -> HttpConnection {
    let mut connection = server.connect().await;
    let target = format!("/v1/{name}:watch");
    connection
        .send(http_request("GET", &target, headers, ""))
        .await;
    connection
}

async fn open_event_stream(server: &HttpTestServer, name: &OperationName) -> HttpConnection {
    let mut connection = open_watch(server, name, "accept: text/event-stream\r\n").await;
    let head = connection.read_head().await;
    assert_eq!(head.code, 200);
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    assert_eq!(head.header("cache-control"), Some("no-store"));
    connection
}

/// Returns the JSON of the next event, or `None` if the stream ended.
async fn next_event(connection: &mut HttpConnection) -> Option<Value> {
    let line = connection.read_line_starting_with("data: ").await?;
    Some(serde_json::from_str(&line["data: ".len()..]).unwrap())
}

// Rules: WATCH-1, WATCH-5
#[tokio::test]
async fn http_watch_sends_current_state_each_change_and_ends_when_done() {
    let server = HttpTestServer::start().await;
    let (name, token) = create_running(&server.operations).await;
    let mut connection = open_event_stream(&server, &name).await;
    let first = next_event(&mut connection).await.unwrap();
    assert_eq!(
        (&first["name"], &first["done"]),
        (&name.as_str().into(), &false.into())
    );
    for done_units in 1..=3 {
        let report = Report {
            progress: Some(progress(done_units)),
            ..Report::default()
        };
        server
            .operations
            .report(&name, token, report)
            .await
            .unwrap();
        let change = next_event(&mut connection).await.unwrap();
        let units = &change["metadata"]["progress"]["doneUnits"];
        assert_eq!(units, &Value::from(done_units.to_string()));
    }
    let response = string_value("result");
    server
        .operations
        .succeed(&name, token, response)
        .await
        .unwrap();
    connection
        .read_line_starting_with("id: done")
        .await
        .expect("expected the last event to have an id");
    let last = next_event(&mut connection).await.unwrap();
    assert_eq!(last["response"]["value"], "result");
    // The last chunk ends the body, and the connection stays open.
    assert_eq!(
        connection.read_line_starting_with("0").await.as_deref(),
        Some("0")
    );
    assert_eq!(connection.read_line().await.as_deref(), Some(""));
    connection
        .send(http_request("GET", &format!("/v1/{name}"), "", ""))
        .await;
    assert_eq!(connection.read_response().await.expect_ok_json(), last);
}

// Rules: WATCH-5
#[tokio::test]
async fn reconnect_after_last_event_gets_204() {
    let server = HttpTestServer::start().await;
    let name = create_succeeded(&server.operations).await;
    let mut connection = open_watch(&server, &name, "last-event-id: done\r\n").await;
    assert_eq!(connection.read_head().await.code, 204);
}

// Rules: HTTP-12
#[tokio::test]
async fn http_watch_of_unknown_operation_is_json_error() {
    let server = HttpTestServer::start().await;
    let missing = server.get("/v1/operations/missing:watch").await;
    let expected = error_parts(404, "NOT_FOUND", "OPERATION_NOT_FOUND");
    assert_eq!(missing.error_parts(), expected);
}

// Rules: WATCH-3, WATCH-5
#[tokio::test]
async fn http_watch_ends_with_error_event_on_delete() {
    let server = HttpTestServer::start().await;
    let (name, _) = create_running(&server.operations).await;
    let mut connection = open_event_stream(&server, &name).await;
    next_event(&mut connection).await.unwrap();
    server.operations.delete(&name).await.unwrap();
    connection
        .read_line_starting_with("event: error")
        .await
        .expect("expected an error event");
    let error_event = next_event(&mut connection).await.unwrap();
    assert_eq!(error_event["error"]["code"], 404);
    assert_eq!(
        connection.read_line_starting_with("0").await.as_deref(),
        Some("0")
    );
}

// Rules: WATCH-3
#[tokio::test]
async fn http_watch_ends_with_unavailable_at_shutdown() {
    let server = HttpTestServer::start().await;
    let (name, _) = create_running(&server.operations).await;
    let mut connection = open_event_stream(&server, &name).await;
    next_event(&mut connection).await.unwrap();
    server.begin_shutdown();
    let error_event = next_event(&mut connection).await.unwrap();
    assert_eq!(error_event["error"]["status"], "UNAVAILABLE");
    server.shutdown().await;
}

// Rules: WATCH-5
#[tokio::test]
async fn idle_http_watch_sends_keepalive_comments() {
    let server = HttpTestServer::start_with(|config| {
        config.http.sse_keepalive_interval = Duration::from_millis(20);
    })
    .await;
    let (name, token) = create_running(&server.operations).await;
    let mut connection = open_event_stream(&server, &name).await;
    next_event(&mut connection).await.unwrap();
    for _ in 0..3 {
        assert_eq!(
            connection.read_line_starting_with(":").await.as_deref(),
            Some(":")
        );
    }
    let response = string_value("result");
    server
        .operations
        .succeed(&name, token, response)
        .await
        .unwrap();
    assert_eq!(next_event(&mut connection).await.unwrap()["done"], true);
}

// Rules: WATCH-4
#[tokio::test]
async fn http_disconnect_ends_watch() {
    let server = HttpTestServer::start_with(|config| {
        config.http.sse_keepalive_interval = Duration::from_millis(20);
    })
    .await;
    let (name, _) = create_running(&server.operations).await;
    let mut connection = open_event_stream(&server, &name).await;
    next_event(&mut connection).await.unwrap();
    assert_eq!(server.operations.waiter_count(), 1);
    drop(connection);
    tokio::time::timeout(STEP_TIMEOUT, wait_for_waiters(&server.operations, 0))
        .await
        .expect("expected the disconnect to end the watch");
}

// Rules: WATCH-4
#[tokio::test]
async fn http_watch_over_waiter_limit_is_429_with_retry_after() {
    let server = HttpTestServer::start_with(|config| config.limits.max_waiters = 1).await;
    let (name, _) = create_running(&server.operations).await;
    let mut first = open_event_stream(&server, &name).await;
    next_event(&mut first).await.unwrap();
    let rejected = server.get(&format!("/v1/{name}:watch")).await;
    let expected = error_parts(429, "RESOURCE_EXHAUSTED", "TOO_MANY_WAITERS");
    assert_eq!(rejected.error_parts(), expected);
    assert_eq!(rejected.header("retry-after"), Some("1"));
}
