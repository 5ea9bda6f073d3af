//! Malformed and hostile HTTP/1.1 requests: each gets a JSON error or a closed
//! connection, never a 500, and other clients are not affected.

use std::time::Duration;

use longrunning::server::ConnectionOptions;
use tokio::time::timeout;

use crate::support::{
    create_running,
    http_server::{HttpConnection, HttpTestServer, create_named, error_parts, http_request},
    operations::wait_for_waiters,
};

/// Time limit for one step of a test.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

async fn assert_still_serving(server: &HttpTestServer) {
    let get = timeout(STEP_TIMEOUT, server.get("/v1/operations"));
    get.await
        .expect("expected other clients to be served")
        .expect_ok_json();
}

// Rules: HTTP-5
#[tokio::test]
async fn invalid_bytes_in_url_get_json_error() {
    let server = HttpTestServer::start().await;
    let malformed = error_parts(400, "INVALID_ARGUMENT", "MALFORMED_REQUEST");
    for target in [
        &b"/v1/operations/\xff"[..],
        b"/v1/operations/%",
        b"/v1/operations/%f",
        b"/v1/operations/%c3%28",
        b"/v1/operations?filter=%e0%80",
        b"/v1/operations?filter=\xc3(",
        b"/v1/operations/a b",
        b"/v1/operations/\x01",
        b"",
    ] {
        let request = [b"GET ", target, b" HTTP/1.1\r\nhost: x\r\n\r\n"].concat();
        let response = timeout(STEP_TIMEOUT, server.send(&request)).await.unwrap();
        let target_text = String::from_utf8_lossy(target);
        assert_eq!(
            response.error_parts(),
            malformed,
            "{target_text}: {}",
            response.text()
        );
    }
    // UTF-8 needs no escaping.
    let missing = server.get("/v1/operations/\u{e9}").await;
    assert_eq!(missing.error_parts().0, 404);
    assert_still_serving(&server).await;
}

// Rules: HTTP-19
#[tokio::test]
async fn malformed_http_gets_json_error_and_connection_close() {
    let server = HttpTestServer::start().await;
    for bytes in [
        "hello\r\n\r\n",
        "GET /v1/operations\r\n\r\n",
        "GET /v1/operations HTTP/9.9\r\n\r\n",
        "GET /v1/operations HTTP/1.1\r\nbad header\r\n\r\n",
        "GET /v1/operations HTTP/1.1\r\nhost: a\r\n folded\r\n\r\n",
        "G@T /v1/operations HTTP/1.1\r\n\r\n",
        "POST /v1/operations/x:cancel HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        "POST /v1/operations/x:cancel HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    ] {
        let mut connection = server.connect().await;
        connection.send(bytes).await;
        let response = timeout(STEP_TIMEOUT, connection.read_response())
            .await
            .unwrap();
        let expected = error_parts(400, "INVALID_ARGUMENT", "MALFORMED_REQUEST");
        assert_eq!(response.error_parts(), expected, "{bytes:?}");
        assert_eq!(response.header("connection"), Some("close"), "{bytes:?}");
        assert!(
            timeout(STEP_TIMEOUT, connection.is_closed()).await.unwrap(),
            "{bytes:?}"
        );
    }
    assert_still_serving(&server).await;
}

// Rules: HTTP-19
#[tokio::test]
async fn oversized_url_or_headers_get_json_error() {
    let server = HttpTestServer::start().await;
    for (length, expected) in [
        (60_000, error_parts(404, "NOT_FOUND", "OPERATION_NOT_FOUND")),
        (70_000, error_parts(414, "INVALID_ARGUMENT", "URL_TOO_LONG")),
        (
            1 << 20,
            error_parts(431, "INVALID_ARGUMENT", "HEADERS_TOO_LARGE"),
        ),
    ] {
        let target = format!("/v1/operations/{}", "a".repeat(length));
        let mut connection = server.connect().await;
        // The server may respond and close before it has read everything.
        let _ = connection
            .try_send(http_request("GET", &target, "", ""))
            .await;
        let response = timeout(STEP_TIMEOUT, connection.read_response())
            .await
            .unwrap();
        assert_eq!(response.error_parts(), expected, "{length}");
        assert!(response.text().len() < 4096, "{length}");
    }
    let header = format!("x: {}\r\n", "a".repeat(1 << 20));
    let many_headers = "a: b\r\n".repeat(200);
    for headers in [header, many_headers] {
        let mut connection = server.connect().await;
        let _ = connection
            .try_send(http_request("GET", "/v1/operations", &headers, ""))
            .await;
        let response = timeout(STEP_TIMEOUT, connection.read_response())
            .await
            .unwrap();
        let expected = error_parts(431, "INVALID_ARGUMENT", "HEADERS_TOO_LARGE");
        assert_eq!(response.error_parts(), expected);
    }
    assert_still_serving(&server).await;
}

// Rules: HTTP-19
#[tokio::test]
async fn query_with_10000_parameters_is_parsed_quickly() {
    let server = HttpTestServer::start().await;
    let keys = "key=a&".repeat(10_000);
    server
        .get(&format!("/v1/operations?{keys}"))
        .await
        .expect_ok_json();
    let filter = "%28".repeat(15_000);
    let filtered = format!("/v1/operations?filter={filter}");
    let response = timeout(STEP_TIMEOUT, server.get(&filtered)).await;
    assert_ne!(response.unwrap().code, 500);
    let page = format!("/v1/operations?pageToken={}", "a".repeat(50_000));
    let expected = error_parts(400, "INVALID_ARGUMENT", "INVALID_PAGE_TOKEN");
    assert_eq!(server.get(&page).await.error_parts(), expected);
}

// Rules: HTTP-19
#[tokio::test]
async fn slow_request_head_times_out_without_affecting_others() {
    let mut connection_options = ConnectionOptions::default();
    connection_options.handshake_timeout = Duration::from_millis(300);
    connection_options.http1_idle_timeout = Duration::from_millis(300);
    let server = HttpTestServer::start_with(|config| config.connections = connection_options).await;
    let mut slow = Vec::new();
    for prefix in ["", "G", "GET /v1/operations HTTP/1.1\r\nhost: a\r\nx: "] {
        let mut connection = server.connect().await;
        connection.send(prefix).await;
        slow.push(connection);
    }
    // One that has been served and then sends its next request slowly.
    let mut connection = server.connect().await;
    connection
        .send(http_request("GET", "/v1/operations", "", ""))
        .await;
    connection.read_response().await.expect_ok_json();
    connection.send("GET /v1/oper").await;
    slow.push(connection);
    assert_still_serving(&server).await;
    for mut connection in slow {
        assert!(timeout(STEP_TIMEOUT, connection.is_closed()).await.unwrap());
    }
}

// Rules: HTTP-19
#[tokio::test]
async fn missing_body_times_out_with_408() {
    let server = HttpTestServer::start_with(|config| {
        config.http.body_read_timeout = Duration::from_millis(100);
    })
    .await;
    create_named(&server.operations, "operations/x").await;
    let head = "POST /v1/operations/x:cancel HTTP/1.1\r\nhost: x\r\n";
    for headers in [
        "content-length: 10\r\n\r\n{",
        "transfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
    ] {
        let response = timeout(STEP_TIMEOUT, server.send(format!("{head}{headers}")))
            .await
            .unwrap();
        let expected = error_parts(408, "DEADLINE_EXCEEDED", "REQUEST_BODY_TIMEOUT");
        assert_eq!(response.error_parts(), expected);
    }
    let got = server.get("/v1/operations/x").await.expect_ok_json();
    assert_eq!(got["metadata"].get("cancelRequested"), None);
}

// Rules: HTTP-19
#[tokio::test]
async fn oversized_body_is_rejected_before_it_is_read() {
    let server = HttpTestServer::start_with(|config| config.max_message_bytes = 1024).await;
    let head = "POST /v1/operations/x:cancel HTTP/1.1\r\nhost: x\r\n";
    let large = "content-length: 999999999999\r\nexpect: 100-continue\r\n\r\n".to_owned();
    let chunked = format!(
        "transfer-encoding: chunked\r\n\r\n800\r\n{}\r\n",
        "a".repeat(2048)
    );
    for headers_and_body in [large, chunked] {
        let response = timeout(
            STEP_TIMEOUT,
            server.send(format!("{head}{headers_and_body}")),
        )
        .await
        .unwrap();
        let expected = error_parts(413, "RESOURCE_EXHAUSTED", "TOO_LARGE");
        assert_eq!(response.error_parts(), expected);
    }
    assert_still_serving(&server).await;
}

// Rules: HTTP-19
#[tokio::test]
async fn body_above_64_kib_is_rejected_despite_larger_message_limit() {
    let server = HttpTestServer::start().await;
    create_named(&server.operations, "operations/x").await;
    // Many small values, which take about twenty times their size once parsed.
    let hostile = |size: usize| format!("{{\"a\":[{}[]]}}", "[],".repeat(size / 3));
    for verb in ["cancel", "wait"] {
        let target = format!("/v1/operations/x:{verb}");
        let unknown = server.post(&target, &hostile(60_000)).await;
        assert_eq!(unknown.error_parts().0, 400, "{verb}");
        for size in [70_000, 1 << 20, 3 << 20] {
            let body = hostile(size);
            let content_type = "content-type: application/json\r\n";
            let whole = http_request("POST", &target, content_type, &body);
            let chunked = format!(
                "POST {target} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n\
                 {:x}\r\n{body}\r\n0\r\n\r\n",
                body.len()
            );
            for request in [whole, chunked] {
                let response = timeout(STEP_TIMEOUT, server.send(request)).await.unwrap();
                let expected = error_parts(413, "RESOURCE_EXHAUSTED", "TOO_LARGE");
                assert_eq!(response.error_parts(), expected, "{verb} {size}");
                assert!(
                    response.error_message().contains("65536 bytes"),
                    "{verb} {size}"
                );
            }
        }
    }
    let got = server.get("/v1/operations/x").await.expect_ok_json();
    assert_eq!(got["metadata"].get("cancelRequested"), None);
}

// Rules: HTTP-11
#[tokio::test]
async fn grpc_content_type_has_no_effect_over_http1() {
    let server = HttpTestServer::start().await;
    create_named(&server.operations, "operations/x").await;
    for content_type in [
        "application/grpc",
        "application/grpc-web",
        "application/grpc+json",
        "application/grpc+proto",
    ] {
        let header = format!("content-type: {content_type}\r\n");
        let got = server
            .send(http_request("GET", "/v1/operations/x", &header, ""))
            .await;
        assert_eq!(
            got.expect_ok_json()["name"],
            "operations/x",
            "{content_type}"
        );
        let post = |target: &str, body: &str| http_request("POST", target, &header, body);
        let rejected = server.send(post("/v1/operations/x:cancel", "{}")).await;
        let expected = error_parts(415, "INVALID_ARGUMENT", "INVALID_CONTENT_TYPE");
        assert_eq!(rejected.error_parts(), expected, "{content_type}");
        let unknown = server.send(post("/shop.v1.Shop/Buy", "{}")).await;
        let expected = error_parts(404, "NOT_FOUND", "UNKNOWN_PATH");
        assert_eq!(unknown.error_parts(), expected, "{content_type}");
    }
    let got = server.get("/v1/operations/x").await.expect_ok_json();
    assert_eq!(got["metadata"].get("cancelRequested"), None);
}

// Rules: HTTP-20
#[tokio::test]
async fn non_json_content_type_is_rejected_and_missing_one_means_json() {
    let server = HttpTestServer::start().await;
    create_named(&server.operations, "operations/x").await;
    let post = |content_type: &str| {
        let content_type = format!("content-type: {content_type}\r\n");
        http_request(
            "POST",
            "/v1/operations/x:wait",
            &content_type,
            r#"{"timeout":"0s"}"#,
        )
    };
    for content_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "\u{e9}",
    ] {
        let rejected = server.send(post(content_type)).await;
        let expected = error_parts(415, "INVALID_ARGUMENT", "INVALID_CONTENT_TYPE");
        assert_eq!(rejected.error_parts(), expected, "{content_type}");
    }
    let untyped = http_request("POST", "/v1/operations/x:wait", "", r#"{"timeout":"0s"}"#);
    server.send(untyped).await.expect_ok_json();
    for body in [
        "\u{0}",
        "{\"timeout\": \"\u{0}\"}",
        "nul",
        "{\"a\":",
        "\u{feff}{}",
    ] {
        let rejected = server.post("/v1/operations/x:wait", body).await;
        assert_eq!(rejected.error_parts().0, 400, "{body:?}");
    }
    let deep = format!("{}{}", r#"{"name":"#.repeat(7000), "}".repeat(7000));
    let rejected = timeout(STEP_TIMEOUT, server.post("/v1/operations/x:wait", &deep)).await;
    assert_eq!(rejected.unwrap().error_parts().0, 400);
}

// Rules: HTTP-20
#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = HttpTestServer::start().await;
    for id in 0..50 {
        create_named(&server.operations, &format!("operations/x{id}")).await;
    }
    let mut connection = server.connect().await;
    let mut pipeline = String::new();
    for id in 0..50 {
        pipeline += &http_request("GET", &format!("/v1/operations/x{id}"), "", "");
        pipeline += &http_request("GET", "/v1/operations/%", "", "");
        pipeline += &http_request(
            "POST",
            &format!("/v1/operations/x{id}:wait"),
            "",
            r#"{"timeout":"0s"}"#,
        );
    }
    connection.send(pipeline + "nonsense\r\n\r\n").await;
    for id in 0..50 {
        let name = format!("operations/x{id}");
        assert_eq!(
            connection.read_response().await.expect_ok_json()["name"],
            name.as_str()
        );
        assert_eq!(connection.read_response().await.error_parts().0, 400);
        assert_eq!(
            connection.read_response().await.expect_ok_json()["name"],
            name.as_str()
        );
    }
    // The malformed request ends the connection, after all other responses.
    let expected = error_parts(400, "INVALID_ARGUMENT", "MALFORMED_REQUEST");
    assert_eq!(connection.read_response().await.error_parts(), expected);
    assert!(timeout(STEP_TIMEOUT, connection.is_closed()).await.unwrap());
}

// Rules: WAIT-12
#[tokio::test]
async fn open_waits_on_500_connections_do_not_block_others() {
    let server = HttpTestServer::start().await;
    let (name, _) = create_running(&server.operations).await;
    let mut connections: Vec<HttpConnection> = Vec::new();
    for _ in 0..500 {
        let mut connection = server.connect().await;
        connection
            .send(http_request("POST", &format!("/v1/{name}:wait"), "", ""))
            .await;
        connections.push(connection);
    }
    timeout(
        STEP_TIMEOUT,
        wait_for_waiters(&server.operations, connections.len()),
    )
    .await
    .expect("expected all waits to be open");
    assert_still_serving(&server).await;
    server.operations.cancel(&name).await.unwrap();
    server.operations.delete(&name).await.unwrap();
    for connection in &mut connections {
        let response = timeout(STEP_TIMEOUT, connection.read_response())
            .await
            .unwrap();
        assert_eq!(response.error_parts().0, 404);
    }
}
