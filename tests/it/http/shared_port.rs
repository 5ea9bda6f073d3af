//! HTTP/JSON and gRPC on one port: disconnects, shutdown, browsers and metrics. Rules
//! HTTP-15 and HTTP-16.

use std::time::Duration;

use longrunning::Report;

use crate::support::{
    create_pending, create_running, create_succeeded,
    http_server::{HttpConnection, HttpTestServer, create_named, error_parts, http_request},
    operations::wait_for_waiters,
    progress,
};

/// Time limit for one step of a test.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

// Rules: HTTP-15, WAIT-9
#[tokio::test]
async fn http_disconnect_ends_wait() {
    let server = HttpTestServer::start().await;
    let (name, _) = create_running(&server.operations).await;
    let mut connections = Vec::new();
    for _ in 0..10 {
        let mut connection = server.connect().await;
        connection
            .send(http_request("POST", &format!("/v1/{name}:wait"), "", ""))
            .await;
        connections.push(connection);
    }
    wait_for_waiters(&server.operations, 10).await;
    drop(connections);
    tokio::time::timeout(STEP_TIMEOUT, wait_for_waiters(&server.operations, 0))
        .await
        .expect("expected disconnects to end the waits");
    let series = r#"longrunning_http_requests_total{method="WaitOperation",code="499"}"#;
    assert_eq!(server.metric(series).await, 10.0);
}

// Rules: HTTP-15, WAIT-10
#[tokio::test]
async fn http_wait_is_answered_at_shutdown() {
    let server = HttpTestServer::start().await;
    let (name, _) = create_running(&server.operations).await;
    let mut connection = server.connect().await;
    connection
        .send(http_request("POST", &format!("/v1/{name}:wait"), "", ""))
        .await;
    wait_for_waiters(&server.operations, 1).await;
    server.begin_shutdown();
    assert_eq!(
        connection.read_response().await.expect_ok_json()["done"],
        false
    );
    server.shutdown().await;
}

// Rules: HTTP-16
#[tokio::test]
async fn head_is_get_without_body_and_options_lists_methods() {
    let server = HttpTestServer::start().await;
    let name = create_succeeded(&server.operations).await;
    for target in [
        format!("/v1/{name}"),
        "/v1/operations".into(),
        "/v1/operations/missing".into(),
    ] {
        let got = server.get(&target).await;
        let mut connection = server.connect().await;
        connection.send(http_request("HEAD", &target, "", "")).await;
        let head = connection.read_response_to("HEAD").await;
        assert_eq!(head.code, got.code, "{target}");
        for name in ["content-type", "content-length"] {
            assert_eq!(head.header(name), got.header(name), "{target}");
        }
        // Without a body, the next response follows immediately.
        connection.send(http_request("GET", &target, "", "")).await;
        assert_eq!(connection.read_response().await.body, got.body);
    }
    let mut connection = server.connect().await;
    let options = http_request("OPTIONS", "/v1/operations/x:cancel", "", "");
    connection.send(options).await;
    let response = connection.read_head().await;
    assert_eq!(response.code, 204);
    assert_eq!(response.header("allow"), Some("POST, OPTIONS"));
    assert_eq!(response.header("access-control-allow-origin"), None);
}

// Rules: HTTP-16
#[tokio::test]
async fn cors_allows_configured_origins_and_none_by_default() {
    let origin = "origin: https://a.example\r\n";
    let request_method_header = "access-control-request-method: DELETE\r\n";
    let preflight = http_request(
        "OPTIONS",
        "/v1/operations/x",
        &format!("{origin}{request_method_header}"),
        "",
    );
    let get = http_request("GET", "/v1/operations", origin, "");
    let server = HttpTestServer::start().await;
    for request in [&preflight, &get] {
        let response = server.send(request).await;
        assert_eq!(response.header("access-control-allow-origin"), None);
    }
    let allow = "https://a.example,https://b.example";
    let server =
        HttpTestServer::start_with(|config| config.http.cors_origins = allow.parse().unwrap())
            .await;
    for request in [&preflight, &get] {
        let response = server.send(request).await;
        let allowed = response.header("access-control-allow-origin");
        assert_eq!(allowed, Some("https://a.example"));
        assert_eq!(response.header("vary"), Some("origin"));
    }
    let response = server.send(&preflight).await;
    assert_eq!(response.code, 204);
    let methods = response.header("access-control-allow-methods").unwrap();
    assert!(methods.contains("DELETE"), "{methods}");
    // Errors have the CORS headers, too.
    let missing = server
        .send(http_request("GET", "/v1/operations/missing", origin, ""))
        .await;
    assert_eq!(missing.code, 404);
    assert!(missing.header("access-control-allow-origin").is_some());
    let other = server.send(get.replace("a.example", "evil.example")).await;
    assert_eq!(other.header("access-control-allow-origin"), None);
}

// Rules: HTTP-16
#[tokio::test]
async fn cross_origin_post_is_rejected_without_effect() {
    let server = HttpTestServer::start().await;
    let name = create_pending(&server.operations).await;
    let origin = "origin: https://evil.example\r\n";
    let cancel = http_request("POST", &format!("/v1/{name}:cancel"), origin, "");
    let rejected = server.send(cancel).await;
    let expected = error_parts(403, "PERMISSION_DENIED", "ORIGIN_NOT_ALLOWED");
    assert_eq!(rejected.error_parts(), expected);
    let got = server.get(&format!("/v1/{name}")).await.expect_ok_json();
    assert_eq!(got["done"], false);
    let same_origin = format!("origin: http://{}\r\n", server.client_address);
    let same_origin = http_request("POST", &format!("/v1/{name}:cancel"), &same_origin, "");
    let same_origin =
        same_origin.replace("host: test", &format!("host: {}", server.client_address));
    server.send(same_origin).await.expect_ok_json();
}

// Rules: HTTP-16
#[tokio::test]
async fn method_override_header_is_ignored() {
    let server = HttpTestServer::start().await;
    create_named(&server.operations, "operations/x").await;
    let header = "x-http-method-override: DELETE\r\n";
    let posted = server
        .send(http_request("POST", "/v1/operations/x", header, ""))
        .await;
    assert_eq!(posted.error_parts().0, 405);
    server
        .send(http_request("GET", "/v1/operations/x", header, ""))
        .await
        .expect_ok_json();
    server.get("/v1/operations/x").await.expect_ok_json();
}

// Rules: MET-1
#[tokio::test]
async fn http_requests_are_counted_by_method_and_code_not_as_rpcs() {
    let server = HttpTestServer::start().await;
    let name = create_pending(&server.operations).await;
    for _ in 0..3 {
        server.get(&format!("/v1/{name}")).await.expect_ok_json();
    }
    server.get("/v1/operations/missing").await;
    server.get("/v1/operations").await;
    server.get("/").await;
    for (method, code, expected_count) in [
        ("GetOperation", 200, 3.0),
        ("GetOperation", 404, 1.0),
        ("ListOperations", 200, 1.0),
        ("other", 404, 1.0),
    ] {
        let series =
            format!("longrunning_http_requests_total{{method=\"{method}\",code=\"{code}\"}}");
        assert_eq!(server.metric(&series).await, expected_count, "{series}");
    }
    let rpc_series = r#"longrunning_grpc_requests_total{method="other",code="OK"}"#;
    assert_eq!(server.metric(rpc_series).await, 0.0);
}

// Rules: HTTP-18
#[tokio::test]
async fn grpc_http1_and_http2_share_one_port() {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Empty};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let server = HttpTestServer::start().await;
    let (name, token) = create_running(&server.operations).await;
    let report = Report {
        progress: Some(progress(7)),
        ..Report::default()
    };
    server
        .operations
        .report(&name, token, report)
        .await
        .unwrap();
    let stream = tokio::net::TcpStream::connect(&server.client_address)
        .await
        .unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    let target = format!("http://{}/v1/{name}", server.client_address);
    for (method, code) in [("GET", 200), ("PUT", 405)] {
        let request = ::http::Request::builder()
            .method(method)
            .uri(&target)
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), code);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        if code == 200 {
            assert_eq!(json["metadata"]["progress"]["doneUnits"], "7");
        }
    }
    connection.abort();
    // The worker listener does not serve HTTP/JSON.
    let mut connection = HttpConnection::connect(&server.worker_address).await;
    connection
        .send(http_request("GET", &format!("/v1/{name}"), "", ""))
        .await;
    assert_eq!(connection.read_response().await.code, 404);
}
