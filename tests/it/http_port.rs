//! HTTP/JSON beside gRPC on one port: clients that leave, shutdown, browsers and
//! metrics. Rules HTTP-15 and HTTP-16 of the conformance checklist. Hostile
//! requests are in `http_hostile`.

use std::time::Duration;

use longrunning::Report;

use crate::support::{
    http::{Site, Wire, error, named, request},
    pending, progress, running, succeeded,
};

// HTTP-15, WAIT-9
#[tokio::test]
async fn a_wait_ends_when_its_client_has_gone() {
    let site = Site::start().await;
    let (name, _) = running(&site.operations).await;
    let mut wires = Vec::new();
    for _ in 0..10 {
        let mut wire = site.wire().await;
        wire.send(request("POST", &format!("/v1/{name}:wait"), "", ""))
            .await;
        wires.push(wire);
    }
    while site.operations.waiters() < 10 {
        tokio::task::yield_now().await;
    }
    drop(wires);
    let gone = async {
        while 0 < site.operations.waiters() {
            tokio::task::yield_now().await;
        }
    };
    let guard = Duration::from_secs(10);
    tokio::time::timeout(guard, gone)
        .await
        .expect("nobody waits");
    let left = r#"longrunning_http_requests_total{method="WaitOperation",code="499"}"#;
    assert_eq!(site.metric(left).await, 10.0);
}

// HTTP-15, WAIT-10
#[tokio::test]
async fn a_wait_is_answered_when_the_server_shuts_down() {
    let site = Site::start().await;
    let (name, _) = running(&site.operations).await;
    let mut wire = site.wire().await;
    wire.send(request("POST", &format!("/v1/{name}:wait"), "", ""))
        .await;
    while site.operations.waiters() == 0 {
        tokio::task::yield_now().await;
    }
    site.stop();
    assert_eq!(wire.answer().await.ok()["done"], false);
    site.close().await;
}

// HTTP-16
#[tokio::test]
async fn head_is_get_without_a_body_and_options_tells_the_methods() {
    let site = Site::start().await;
    let name = succeeded(&site.operations).await;
    for target in [
        format!("/v1/{name}"),
        "/v1/operations".into(),
        "/v1/operations/missing".into(),
    ] {
        let got = site.get(&target).await;
        let mut wire = site.wire().await;
        wire.send(request("HEAD", &target, "", "")).await;
        let head = wire.answer_to("HEAD").await;
        assert_eq!(head.code, got.code, "{target}");
        for name in ["content-type", "content-length"] {
            assert_eq!(head.header(name), got.header(name), "{target}");
        }
        // There is no body: the next answer begins at once.
        wire.send(request("GET", &target, "", "")).await;
        assert_eq!(wire.answer().await.body, got.body);
    }
    let mut wire = site.wire().await;
    let options = request("OPTIONS", "/v1/operations/x:cancel", "", "");
    wire.send(options).await;
    let answer = wire.head().await;
    assert_eq!(answer.code, 204);
    assert_eq!(answer.header("allow"), Some("POST, OPTIONS"));
    assert_eq!(answer.header("access-control-allow-origin"), None);
}

// HTTP-16
#[tokio::test]
async fn pages_of_named_origins_may_call_and_by_default_none() {
    let origin = "origin: https://a.example\r\n";
    let ask = "access-control-request-method: DELETE\r\n";
    let preflight = request("OPTIONS", "/v1/operations/x", &format!("{origin}{ask}"), "");
    let get = request("GET", "/v1/operations", origin, "");
    let site = Site::start().await;
    for request in [&preflight, &get] {
        let answer = site.send(request).await;
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    let allow = "https://a.example,https://b.example";
    let site = Site::with(|config| config.http.cors_origins = allow.parse().unwrap()).await;
    for request in [&preflight, &get] {
        let answer = site.send(request).await;
        let allowed = answer.header("access-control-allow-origin");
        assert_eq!(allowed, Some("https://a.example"));
        assert_eq!(answer.header("vary"), Some("origin"));
    }
    let answer = site.send(&preflight).await;
    assert_eq!(answer.code, 204);
    let methods = answer.header("access-control-allow-methods").unwrap();
    assert!(methods.contains("DELETE"), "{methods}");
    // Errors can be read, too.
    let missing = site
        .send(request("GET", "/v1/operations/missing", origin, ""))
        .await;
    assert_eq!(missing.code, 404);
    assert!(missing.header("access-control-allow-origin").is_some());
    let other = site.send(get.replace("a.example", "evil.example")).await;
    assert_eq!(other.header("access-control-allow-origin"), None);
}

// HTTP-16
#[tokio::test]
async fn a_page_of_another_origin_changes_nothing() {
    let site = Site::start().await;
    let name = pending(&site.operations).await;
    let origin = "origin: https://evil.example\r\n";
    let cancel = request("POST", &format!("/v1/{name}:cancel"), origin, "");
    let refused = site.send(cancel).await;
    let expected = error(403, "PERMISSION_DENIED", "ORIGIN_NOT_ALLOWED");
    assert_eq!(refused.problem(), expected);
    let got = site.get(&format!("/v1/{name}")).await.ok();
    assert_eq!(got["done"], false);
    let own = format!("origin: http://{}\r\n", site.address);
    let own = request("POST", &format!("/v1/{name}:cancel"), &own, "");
    let own = own.replace("host: test", &format!("host: {}", site.address));
    site.send(own).await.ok();
}

// HTTP-16
#[tokio::test]
async fn a_header_does_not_make_another_method_of_a_call() {
    let site = Site::start().await;
    named(&site.operations, "operations/x").await;
    let header = "x-http-method-override: DELETE\r\n";
    let posted = site
        .send(request("POST", "/v1/operations/x", header, ""))
        .await;
    assert_eq!(posted.problem().0, 405);
    site.send(request("GET", "/v1/operations/x", header, ""))
        .await
        .ok();
    site.get("/v1/operations/x").await.ok();
}

// BEHAVIOUR §10
#[tokio::test]
async fn http_calls_are_counted_by_method_and_code_and_not_as_rpcs() {
    let site = Site::start().await;
    let name = pending(&site.operations).await;
    for _ in 0..3 {
        site.get(&format!("/v1/{name}")).await.ok();
    }
    site.get("/v1/operations/missing").await;
    site.get("/v1/operations").await;
    site.get("/").await;
    for (method, code, times) in [
        ("GetOperation", 200, 3.0),
        ("GetOperation", 404, 1.0),
        ("ListOperations", 200, 1.0),
        ("other", 404, 1.0),
    ] {
        let series =
            format!("longrunning_http_requests_total{{method=\"{method}\",code=\"{code}\"}}");
        assert_eq!(site.metric(&series).await, times, "{series}");
    }
    let rpcs = r#"longrunning_rpcs_total{method="other",code="OK"}"#;
    assert_eq!(site.metric(rpcs).await, 0.0);
}

// BEHAVIOUR §7
#[tokio::test]
async fn grpc_and_http_share_the_port_in_every_version() {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Empty};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let site = Site::start().await;
    let (name, token) = running(&site.operations).await;
    let report = Report {
        progress: Some(progress(7)),
        ..Report::default()
    };
    site.operations.report(&name, token, report).await.unwrap();
    let stream = tokio::net::TcpStream::connect(&site.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    let target = format!("http://{}/v1/{name}", site.address);
    for (method, code) in [("GET", 200), ("PUT", 405)] {
        let request = ::http::Request::builder()
            .method(method)
            .uri(&target)
            .body(Empty::<Bytes>::new())
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), code);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        if code == 200 {
            assert_eq!(json["metadata"]["progress"]["doneUnits"], "7");
        }
    }
    connection.abort();
    // The listener for workers has no HTTP.
    let mut wire = Wire::open(&site.workers).await;
    wire.send(request("GET", &format!("/v1/{name}"), "", ""))
        .await;
    assert_eq!(wire.answer().await.code, 404);
}
