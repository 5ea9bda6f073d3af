//! Hostile HTTP: each request gets a JSON error or a closed connection, never a
//! 500, and nobody else notices.

use std::time::Duration;

use longrunning::server::Connections;
use tokio::time::timeout;

use crate::support::{
    http::{Site, Wire, error, named, request},
    running,
};

/// So long a step may take before the test has failed.
const GUARD: Duration = Duration::from_secs(30);

async fn is_well(site: &Site) {
    let get = timeout(GUARD, site.get("/v1/operations"));
    get.await.expect("others are served").ok();
}

// HTTP-5
#[tokio::test]
async fn raw_bytes_in_a_url_are_a_json_error() {
    let site = Site::start().await;
    let malformed = error(400, "INVALID_ARGUMENT", "MALFORMED_REQUEST");
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
        let answer = timeout(GUARD, site.send(&request)).await.unwrap();
        let shown = String::from_utf8_lossy(target);
        assert_eq!(answer.problem(), malformed, "{shown}: {}", answer.text());
    }
    // UTF-8 may stand unescaped.
    let missing = site.get("/v1/operations/\u{e9}").await;
    assert_eq!(missing.problem().0, 404);
    is_well(&site).await;
}

#[tokio::test]
async fn what_is_not_http_is_a_json_error_and_the_end_of_the_connection() {
    let site = Site::start().await;
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
        let mut wire = site.wire().await;
        wire.send(bytes).await;
        let answer = timeout(GUARD, wire.answer()).await.unwrap();
        let expected = error(400, "INVALID_ARGUMENT", "MALFORMED_REQUEST");
        assert_eq!(answer.problem(), expected, "{bytes:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{bytes:?}");
        assert!(timeout(GUARD, wire.is_closed()).await.unwrap(), "{bytes:?}");
    }
    is_well(&site).await;
}

#[tokio::test]
async fn a_url_or_a_head_that_is_too_long_is_a_json_error() {
    let site = Site::start().await;
    for (length, expected) in [
        (60_000, error(404, "NOT_FOUND", "OPERATION_NOT_FOUND")),
        (70_000, error(414, "INVALID_ARGUMENT", "URL_TOO_LONG")),
        (1 << 20, error(431, "INVALID_ARGUMENT", "HEADERS_TOO_LARGE")),
    ] {
        let target = format!("/v1/operations/{}", "a".repeat(length));
        let mut wire = site.wire().await;
        // The server may have had enough before the end.
        let _ = wire.try_send(request("GET", &target, "", "")).await;
        let answer = timeout(GUARD, wire.answer()).await.unwrap();
        assert_eq!(answer.problem(), expected, "{length}");
        assert!(answer.text().len() < 4096, "{length}");
    }
    let header = format!("x: {}\r\n", "a".repeat(1 << 20));
    let many = "a: b\r\n".repeat(200);
    for headers in [header, many] {
        let mut wire = site.wire().await;
        let _ = wire
            .try_send(request("GET", "/v1/operations", &headers, ""))
            .await;
        let answer = timeout(GUARD, wire.answer()).await.unwrap();
        let expected = error(431, "INVALID_ARGUMENT", "HEADERS_TOO_LARGE");
        assert_eq!(answer.problem(), expected);
    }
    is_well(&site).await;
}

#[tokio::test]
async fn a_query_of_many_parameters_is_read_without_a_stall() {
    let site = Site::start().await;
    let keys = "key=a&".repeat(10_000);
    site.get(&format!("/v1/operations?{keys}")).await.ok();
    let filter = "%28".repeat(15_000);
    let filtered = format!("/v1/operations?filter={filter}");
    let answer = timeout(GUARD, site.get(&filtered)).await;
    assert_ne!(answer.unwrap().code, 500);
    let page = format!("/v1/operations?pageToken={}", "a".repeat(50_000));
    let expected = error(400, "INVALID_ARGUMENT", "INVALID_PAGE_TOKEN");
    assert_eq!(site.get(&page).await.problem(), expected);
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_is_given_up_and_disturbs_nobody() {
    let connections = Connections {
        opening: Duration::from_millis(300),
        idle: Duration::from_millis(300),
        ..Connections::default()
    };
    let site = Site::with(|config| config.connections = connections).await;
    let mut slow = Vec::new();
    for begin in ["", "G", "GET /v1/operations HTTP/1.1\r\nhost: a\r\nx: "] {
        let mut wire = site.wire().await;
        wire.send(begin).await;
        slow.push(wire);
    }
    // One that has had an answer, and then begins to dawdle.
    let mut wire = site.wire().await;
    wire.send(request("GET", "/v1/operations", "", "")).await;
    wire.answer().await.ok();
    wire.send("GET /v1/oper").await;
    slow.push(wire);
    is_well(&site).await;
    for mut wire in slow {
        assert!(timeout(GUARD, wire.is_closed()).await.unwrap());
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    let site = Site::with(|config| config.http.body_time = Duration::from_millis(100)).await;
    named(&site.operations, "operations/x").await;
    let head = "POST /v1/operations/x:cancel HTTP/1.1\r\nhost: x\r\n";
    for headers in [
        "content-length: 10\r\n\r\n{",
        "transfer-encoding: chunked\r\n\r\n1\r\n{\r\n",
    ] {
        let answer = timeout(GUARD, site.send(format!("{head}{headers}")))
            .await
            .unwrap();
        let expected = error(408, "DEADLINE_EXCEEDED", "BODY_TOO_SLOW");
        assert_eq!(answer.problem(), expected);
    }
    let got = site.get("/v1/operations/x").await.ok();
    assert_eq!(got["metadata"].get("cancelRequested"), None);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_before_it_is_read() {
    let site = Site::with(|config| config.max_message_bytes = 1024).await;
    let head = "POST /v1/operations/x:cancel HTTP/1.1\r\nhost: x\r\n";
    let large = "content-length: 999999999999\r\nexpect: 100-continue\r\n\r\n".to_owned();
    let chunked = format!(
        "transfer-encoding: chunked\r\n\r\n800\r\n{}\r\n",
        "a".repeat(2048)
    );
    for rest in [large, chunked] {
        let answer = timeout(GUARD, site.send(format!("{head}{rest}")))
            .await
            .unwrap();
        let expected = error(413, "RESOURCE_EXHAUSTED", "TOO_LARGE");
        assert_eq!(answer.problem(), expected);
    }
    is_well(&site).await;
}

#[tokio::test]
async fn a_body_of_more_than_64_kib_is_refused_whatever_else_the_server_takes() {
    let site = Site::start().await;
    named(&site.operations, "operations/x").await;
    // Many small values, of which a tree would take twenty times the room.
    let hostile = |size: usize| format!("{{\"a\":[{}[]]}}", "[],".repeat(size / 3));
    for verb in ["cancel", "wait"] {
        let target = format!("/v1/operations/x:{verb}");
        let unknown = site.post(&target, &hostile(60_000)).await;
        assert_eq!(unknown.problem().0, 400, "{verb}");
        for size in [70_000, 1 << 20, 3 << 20] {
            let body = hostile(size);
            let kind = "content-type: application/json\r\n";
            let whole = request("POST", &target, kind, &body);
            let chunked = format!(
                "POST {target} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n\
                 {:x}\r\n{body}\r\n0\r\n\r\n",
                body.len()
            );
            for request in [whole, chunked] {
                let answer = timeout(GUARD, site.send(request)).await.unwrap();
                let expected = error(413, "RESOURCE_EXHAUSTED", "TOO_LARGE");
                assert_eq!(answer.problem(), expected, "{verb} {size}");
                assert!(answer.message().contains("65536 bytes"), "{verb} {size}");
            }
        }
    }
    let got = site.get("/v1/operations/x").await.ok();
    assert_eq!(got["metadata"].get("cancelRequested"), None);
}

// HTTP-11
#[tokio::test]
async fn a_content_type_of_grpc_changes_nothing_over_http1() {
    let site = Site::start().await;
    named(&site.operations, "operations/x").await;
    for kind in [
        "application/grpc",
        "application/grpc-web",
        "application/grpc+json",
        "application/grpc+proto",
    ] {
        let header = format!("content-type: {kind}\r\n");
        let got = site
            .send(request("GET", "/v1/operations/x", &header, ""))
            .await;
        assert_eq!(got.ok()["name"], "operations/x", "{kind}");
        let post = |target: &str, body: &str| request("POST", target, &header, body);
        let refused = site.send(post("/v1/operations/x:cancel", "{}")).await;
        let expected = error(415, "INVALID_ARGUMENT", "INVALID_CONTENT_TYPE");
        assert_eq!(refused.problem(), expected, "{kind}");
        let unknown = site.send(post("/shop.v1.Shop/Buy", "{}")).await;
        let expected = error(404, "NOT_FOUND", "PATH_UNKNOWN");
        assert_eq!(unknown.problem(), expected, "{kind}");
    }
    let got = site.get("/v1/operations/x").await.ok();
    assert_eq!(got["metadata"].get("cancelRequested"), None);
}

#[tokio::test]
async fn a_body_of_another_type_is_refused_and_one_without_a_type_is_json() {
    let site = Site::start().await;
    named(&site.operations, "operations/x").await;
    let post = |kind: &str| {
        let kind = format!("content-type: {kind}\r\n");
        request(
            "POST",
            "/v1/operations/x:wait",
            &kind,
            r#"{"timeout":"0s"}"#,
        )
    };
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "\u{e9}",
    ] {
        let refused = site.send(post(kind)).await;
        let expected = error(415, "INVALID_ARGUMENT", "INVALID_CONTENT_TYPE");
        assert_eq!(refused.problem(), expected, "{kind}");
    }
    let untyped = request("POST", "/v1/operations/x:wait", "", r#"{"timeout":"0s"}"#);
    site.send(untyped).await.ok();
    for body in [
        "\u{0}",
        "{\"timeout\": \"\u{0}\"}",
        "nul",
        "{\"a\":",
        "\u{feff}{}",
    ] {
        let refused = site.post("/v1/operations/x:wait", body).await;
        assert_eq!(refused.problem().0, 400, "{body:?}");
    }
    let deep = format!("{}{}", r#"{"name":"#.repeat(7000), "}".repeat(7000));
    let refused = timeout(GUARD, site.post("/v1/operations/x:wait", &deep)).await;
    assert_eq!(refused.unwrap().problem().0, 400);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let site = Site::start().await;
    for id in 0..50 {
        named(&site.operations, &format!("operations/x{id}")).await;
    }
    let mut wire = site.wire().await;
    let mut all = String::new();
    for id in 0..50 {
        all += &request("GET", &format!("/v1/operations/x{id}"), "", "");
        all += &request("GET", "/v1/operations/%", "", "");
        all += &request(
            "POST",
            &format!("/v1/operations/x{id}:wait"),
            "",
            r#"{"timeout":"0s"}"#,
        );
    }
    wire.send(all + "nonsense\r\n\r\n").await;
    for id in 0..50 {
        let name = format!("operations/x{id}");
        assert_eq!(wire.answer().await.ok()["name"], name.as_str());
        assert_eq!(wire.answer().await.problem().0, 400);
        assert_eq!(wire.answer().await.ok()["name"], name.as_str());
    }
    // What cannot be read ends the connection, behind all other answers.
    let expected = error(400, "INVALID_ARGUMENT", "MALFORMED_REQUEST");
    assert_eq!(wire.answer().await.problem(), expected);
    assert!(timeout(GUARD, wire.is_closed()).await.unwrap());
}

#[tokio::test]
async fn five_hundred_waits_on_as_many_connections_hold_up_nobody() {
    let site = Site::start().await;
    let (name, _) = running(&site.operations).await;
    let mut wires: Vec<Wire> = Vec::new();
    for _ in 0..500 {
        let mut wire = site.wire().await;
        wire.send(request("POST", &format!("/v1/{name}:wait"), "", ""))
            .await;
        wires.push(wire);
    }
    let all = async {
        while site.operations.waiters() < wires.len() {
            tokio::task::yield_now().await;
        }
    };
    timeout(GUARD, all).await.expect("all of them wait");
    is_well(&site).await;
    site.operations.cancel(&name).await.unwrap();
    site.operations.delete(&name).await.unwrap();
    for wire in &mut wires {
        let answer = timeout(GUARD, wire.answer()).await.unwrap();
        assert_eq!(answer.problem().0, 404);
    }
}
