//! HTTP/JSON: the rules HTTP-1 to HTTP-17 of the conformance checklist, over
//! raw sockets. What official clients send is replayed in `http_clients`, the
//! JSON itself is in `http_json`, and hostile requests are in `http_hostile`.

use std::time::Duration;

use longrunning::{NewOperation, OperationName, Operations, Report};
use serde_json::json;

use crate::support::{
    hold,
    http::{Site, error, request},
    pending, progress, running, succeeded, text,
};

/// An operation with this name, which its creator executes.
pub(crate) async fn named(operations: &Operations, name: &str) -> OperationName {
    let (parent, id) = match name.rsplit_once("/operations/") {
        Some((parent, id)) => (parent, id),
        None => ("", name.strip_prefix("operations/").unwrap()),
    };
    let new = NewOperation::self_executed("test").parent(parent).id(id);
    hold(operations, new).await.0
}

// HTTP-1
#[tokio::test]
async fn the_bindings_of_operations_proto_list_get_cancel_and_delete() {
    let site = Site::start().await;
    let name = pending(&site.operations).await;
    let got = site.get(&format!("/v1/{name}")).await.ok();
    assert_eq!(got["name"], name.as_str());
    let listed = site.get("/v1/operations").await.ok();
    assert_eq!(listed["operations"], json!([got]));
    let cancelled = site.post(&format!("/v1/{name}:cancel"), "{}").await;
    assert_eq!((cancelled.code, cancelled.text()), (200, "{}"));
    let got = site.get(&format!("/v1/{name}")).await.ok();
    assert_eq!(got["error"]["code"], 1);
    let deleted = site.ask("DELETE", &format!("/v1/{name}")).await;
    assert_eq!((deleted.code, deleted.text()), (200, "{}"));
    let missing = site.get(&format!("/v1/{name}")).await;
    let expected = error(404, "NOT_FOUND", "OPERATION_NOT_FOUND");
    assert_eq!(missing.problem(), expected);
}

// HTTP-1, LIST-9
#[tokio::test]
async fn every_parent_of_a_list_has_its_path() {
    let site = Site::start().await;
    for name in [
        "operations/a",
        "projects/p/operations/b",
        "projects/q/operations/c",
    ] {
        named(&site.operations, name).await;
    }
    for (target, names) in [
        ("/v1/operations", vec!["operations/a"]),
        ("/v1/operations/operations", vec!["operations/a"]),
        ("/v1/projects/p/operations", vec!["projects/p/operations/b"]),
        (
            "/v1/projects/-/operations",
            vec!["projects/q/operations/c", "projects/p/operations/b"],
        ),
        (
            "/v1/-/operations",
            vec![
                "projects/q/operations/c",
                "projects/p/operations/b",
                "operations/a",
            ],
        ),
        ("/v1/projects/r/operations", vec![]),
    ] {
        let listed = site.get(target).await.ok();
        let found = listed["operations"].as_array().cloned().unwrap_or_default();
        let found: Vec<_> = found.iter().map(|one| one["name"].clone()).collect();
        assert_eq!(found, names, "{target}");
    }
    let bad = site.get("/v1/projects/operations").await;
    assert_eq!(
        bad.problem(),
        error(400, "INVALID_ARGUMENT", "INVALID_NAME")
    );
}

// HTTP-2
#[tokio::test]
async fn the_bindings_that_python_and_java_have_built_in_are_served() {
    let site = Site::start().await;
    let name = "projects/p/locations/l/operations/x";
    named(&site.operations, name).await;
    for version in ["v1", "v1beta1", "v2"] {
        let path = format!("/{version}/{name}");
        assert_eq!(site.get(&path).await.ok()["name"], name);
        let cancelled = site.post(&format!("{path}:cancel"), "").await;
        assert_eq!(cancelled.text(), "{}");
    }
    let list = "/v2/projects/p/locations/l/operations";
    assert_eq!(site.get(list).await.ok()["operations"][0]["name"], name);
    let deleted = site.ask("DELETE", &format!("/v1/{name}")).await;
    assert_eq!(deleted.text(), "{}");
}

// HTTP-2
#[tokio::test]
async fn a_chosen_prefix_is_the_only_one() {
    let site = Site::with(|config| config.http.prefix = "/api/v9".parse().unwrap()).await;
    let name = pending(&site.operations).await;
    assert_eq!(site.get(&format!("/api/v9/{name}")).await.code, 200);
    let other = site.get(&format!("/v1/{name}")).await;
    assert_eq!(other.problem(), error(404, "NOT_FOUND", "PATH_UNKNOWN"));
    assert!(other.message().contains("GET /api/v9/operations"));
}

// HTTP-3
#[tokio::test]
async fn a_wait_answers_with_the_latest_state_when_its_timeout_is_over() {
    let site = Site::start().await;
    let (name, _) = running(&site.operations).await;
    for body in [r#"{"timeout": "0.050s"}"#, r#"{"timeout":"0s"}"#] {
        let waited = site.post(&format!("/v1/{name}:wait"), body).await.ok();
        assert_eq!(waited["done"], false, "{body}");
    }
    let negative = r#"{"timeout": "-1s"}"#;
    let refused = site.post(&format!("/v1/{name}:wait"), negative).await;
    let expected = error(400, "INVALID_ARGUMENT", "INVALID_TIMEOUT");
    assert_eq!(refused.problem(), expected);
}

// HTTP-3
#[tokio::test]
async fn a_wait_ends_with_the_operation() {
    let site = Site::start().await;
    let (name, token) = running(&site.operations).await;
    let mut wire = site.wire().await;
    let wait = request("POST", &format!("/v1/{name}:wait"), "", "");
    wire.send(wait).await;
    while site.operations.waiters() == 0 {
        tokio::task::yield_now().await;
    }
    let response = text("result");
    site.operations
        .succeed(&name, token, response)
        .await
        .unwrap();
    let waited = wire.answer().await.ok();
    assert_eq!(waited["done"], true);
    assert_eq!(waited["response"]["value"], "result");
    // The connection is good for more.
    wire.send(request("GET", &format!("/v1/{name}"), "", ""))
        .await;
    assert_eq!(wire.answer().await.ok(), waited);
}

// HTTP-4
#[tokio::test]
async fn a_colon_in_an_id_may_be_raw_or_escaped() {
    let site = Site::start().await;
    named(&site.operations, "operations/x").await;
    for target in [
        "/v1/operations/a:b",
        "/v1/operations/a%3Ab",
        "/v1/operations/x%3Acancel",
        "/v1/operations/x:frobnicate",
    ] {
        let missing = site.get(target).await;
        let expected = error(404, "NOT_FOUND", "OPERATION_NOT_FOUND");
        assert_eq!(missing.problem(), expected, "{target}");
    }
    // An escaped verb is none.
    let posted = site.post("/v1/operations/x%3Acancel", "").await;
    assert_eq!(posted.problem().0, 405);
    assert_eq!(site.get("/v1/operations/x").await.ok()["done"], false);
}

// HTTP-5
#[tokio::test]
async fn an_escaped_slash_is_no_border_and_a_bad_escape_is_the_callers_fault() {
    let site = Site::start().await;
    named(&site.operations, "projects/p/operations/x").await;
    let missing = site.get("/v1/projects%2Fp/operations/x").await;
    assert_eq!(missing.problem().2, "OPERATION_NOT_FOUND");
    assert!(missing.message().contains("projects%2Fp/operations/x"));
    let escaped = site.get("/v1/%70rojects/%70/operations/%78").await.ok();
    assert_eq!(escaped["name"], "projects/p/operations/x");
    for target in [
        "/v1/operations/50%",
        "/v1/operations/%zz",
        "/v1/operations/%ff",
    ] {
        let refused = site.get(target).await;
        let expected = error(400, "INVALID_ARGUMENT", "MALFORMED_REQUEST");
        assert_eq!(refused.problem(), expected, "{target}");
    }
    // No slash is folded.
    for target in [
        "/v1//operations/x",
        "/v1/operations//x",
        "/v1/operations/x/",
    ] {
        assert_eq!(site.get(target).await.problem().0, 404, "{target}");
    }
}

// HTTP-6
#[tokio::test]
async fn parameters_have_json_and_proto_names_and_unknown_ones_are_refused() {
    let site = Site::start().await;
    for id in ["a", "b", "c"] {
        named(&site.operations, &format!("operations/{id}")).await;
    }
    for (size, token) in [("pageSize", "pageToken"), ("page_size", "page_token")] {
        let first = site.get(&format!("/v1/operations?{size}=2")).await.ok();
        assert_eq!(first["operations"].as_array().unwrap().len(), 2);
        let next = first["nextPageToken"].as_str().unwrap();
        let second = format!("/v1/operations?{size}=2&{token}={next}");
        let second = site.get(&second).await.ok();
        assert_eq!(second["operations"][0]["name"], "operations/a");
        assert!(second.get("nextPageToken").is_none());
    }
    for (query, reason) in [
        ("fliter=done", "INVALID_PARAMETER"),
        ("name=operations", "INVALID_PARAMETER"),
        ("pageSize=x", "INVALID_PAGE_SIZE"),
        ("pageSize=-1", "INVALID_PAGE_SIZE"),
        ("pageToken=x", "INVALID_PAGE_TOKEN"),
        ("returnPartialSuccess=1", "INVALID_PARAMETER"),
        ("returnPartialSuccess=true&filter=%zz", "MALFORMED_REQUEST"),
        ("alt=proto", "INVALID_PARAMETER"),
    ] {
        let refused = site.get(&format!("/v1/operations?{query}")).await;
        let expected = error(400, "INVALID_ARGUMENT", reason);
        assert_eq!(refused.problem(), expected, "{query}");
    }
    let system = "$alt=json&prettyPrint=false&$fields=name&fields=name&key=k&access_token=t\
        &quotaUser=u&%24.xgafv=2&$apiVersion=1&userProject=p&upload_protocol=raw";
    for target in ["/v1/operations", "/v1/operations/a"] {
        site.get(&format!("{target}?{system}")).await.ok();
    }
}

// LIST-12
#[tokio::test]
async fn partial_success_is_for_wildcards_and_whole_collections() {
    let site = Site::start().await;
    for (target, code) in [
        ("/v1/operations?returnPartialSuccess=true", 200),
        ("/v1/projects/-/operations?return_partial_success=true", 200),
        ("/v1/projects/p/operations?returnPartialSuccess=true", 400),
        ("/v1/projects/p/operations?returnPartialSuccess=false", 200),
    ] {
        assert_eq!(site.get(target).await.code, code, "{target}");
    }
}

// HTTP-8
#[tokio::test]
async fn empty_values_and_a_trailing_question_mark_are_nothing() {
    let site = Site::start().await;
    named(&site.operations, "operations/x").await;
    let query = "filter=&pageSize=0&pageToken=&returnPartialSuccess=false";
    for target in [
        &format!("/v1/operations?{query}"),
        "/v1/operations?",
        "/v1/operations?pageSize=&",
        "/v1/operations?&&",
    ] {
        let listed = site.get(target).await.ok();
        assert_eq!(listed["operations"][0]["name"], "operations/x", "{target}");
    }
    site.get("/v1/operations/x?").await.ok();
}

// HTTP-9
#[tokio::test]
async fn a_get_may_say_that_its_missing_body_is_json_but_has_none() {
    let site = Site::start().await;
    named(&site.operations, "operations/x").await;
    let kind = "content-type: application/json\r\n";
    let empty = "content-type: application/json\r\ncontent-length: 0\r\n";
    let chunked = "transfer-encoding: chunked\r\n";
    for headers in [kind, empty] {
        let get = request("GET", "/v1/operations/x", headers, "");
        assert_eq!(site.send(get).await.code, 200, "{headers}");
    }
    let get = format!(
        "{}0\r\n\r\n",
        request("GET", "/v1/operations/x", chunked, "")
    );
    assert_eq!(site.send(get).await.code, 200);
    for method in ["GET", "DELETE"] {
        let full = request(method, "/v1/operations/x", kind, "{}");
        let refused = site.send(full).await;
        assert!(refused.message().contains("takes no body"), "{method}");
    }
    site.send(request("DELETE", "/v1/operations/x", empty, ""))
        .await
        .ok();
}

// HTTP-10
#[tokio::test]
async fn an_empty_body_is_an_empty_message_and_the_path_has_the_name() {
    let site = Site::start().await;
    named(&site.operations, "operations/x").await;
    let cancel = "/v1/operations/x:cancel";
    for body in [
        "",
        "{}",
        " ",
        r#"{"name": "operations/x"}"#,
        r#"{"name": null}"#,
    ] {
        assert_eq!(site.post(cancel, body).await.text(), "{}", "{body}");
    }
    let other = site.post(cancel, r#"{"name": "operations/y"}"#).await;
    let expected = error(400, "INVALID_ARGUMENT", "INVALID_NAME");
    assert_eq!(other.problem(), expected);
    let query = site
        .post("/v1/operations/x:cancel?name=operations/x", "")
        .await;
    let expected = error(400, "INVALID_ARGUMENT", "INVALID_PARAMETER");
    assert_eq!(query.problem(), expected);
}

// HTTP-11
#[tokio::test]
async fn cancel_and_delete_answer_200_with_an_empty_object() {
    let site = Site::start().await;
    named(&site.operations, "operations/x").await;
    for answer in [
        site.post("/v1/operations/x:cancel", "").await,
        site.ask("DELETE", "/v1/operations/x").await,
    ] {
        assert_eq!((answer.code, answer.text()), (200, "{}"));
        assert_eq!(answer.header("content-length"), Some("2"));
    }
    let again = site.ask("DELETE", "/v1/operations/x").await;
    assert_eq!(again.problem().0, 404);
}

// HTTP-12
#[tokio::test]
async fn an_error_has_the_envelope_of_aip_193() {
    let site = Site::start().await;
    let missing = site.get("/v1/operations/missing").await;
    assert_eq!(
        missing.json(),
        json!({ "error": {
            "code": 404,
            "message": "operation \"operations/missing\" not found: it never existed, was deleted, or has expired",
            "status": "NOT_FOUND",
            "details": [{
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "OPERATION_NOT_FOUND",
                "domain": "longrunning.v1",
                "metadata": { "name": "operations/missing" },
            }],
        }})
    );
    let negative = site.get("/v1/operations?pageSize=-1").await.json();
    let details = &negative["error"]["details"];
    assert_eq!(details[1]["fieldViolations"][0]["field"], "page_size");
    assert_eq!(
        details[1]["fieldViolations"][0]["reason"],
        "INVALID_PAGE_SIZE"
    );
}

// HTTP-13
#[tokio::test]
async fn a_failed_operation_is_no_failed_call() {
    let site = Site::start().await;
    let name = pending(&site.operations).await;
    site.operations.cancel(&name).await.unwrap();
    let got = site.get(&format!("/v1/{name}")).await.ok();
    assert_eq!(got["done"], true);
    assert_eq!(got["error"]["code"], 1);
    assert!(got["error"].get("status").is_none());
}

// HTTP-14
#[tokio::test]
async fn a_wrong_path_is_404_and_a_wrong_method_405_with_the_right_ones() {
    let site = Site::start().await;
    for target in [
        "/",
        "/v1",
        "/v1/projects/p",
        "/favicon.ico",
        "/google.longrunning.Operations/GetOperation",
    ] {
        let unknown = site.get(target).await;
        let expected = error(404, "NOT_FOUND", "PATH_UNKNOWN");
        assert_eq!(unknown.problem(), expected, "{target}");
    }
    let verb = site.post("/v1/operations/x:frobnicate", "").await;
    assert_eq!(verb.problem().2, "PATH_UNKNOWN");
    for (method, target, allowed) in [
        ("POST", "/v1/operations", "GET, HEAD, OPTIONS"),
        ("PUT", "/v1/operations/x", "GET, HEAD, DELETE, OPTIONS"),
        ("BREW", "/v1/operations/x", "GET, HEAD, DELETE, OPTIONS"),
        ("GET", "/v1/operations/x:cancel", "POST, OPTIONS"),
        ("GET", "/v1/operations/x:wait", "POST, OPTIONS"),
        ("DELETE", "/v1/operations/x:watch", "GET, OPTIONS"),
    ] {
        let refused = site.ask(method, target).await;
        let expected = error(405, "UNIMPLEMENTED", "METHOD_NOT_ALLOWED");
        assert_eq!(refused.problem(), expected, "{method} {target}");
        assert_eq!(refused.header("allow"), Some(allowed));
    }
}

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

// HTTP-17
#[tokio::test]
async fn a_whole_name_in_one_segment_is_found() {
    let site = Site::start().await;
    for name in ["operations/x", "projects/p/operations/x"] {
        named(&site.operations, name).await;
        let escaped = name.replace('/', "%2F");
        let got = site.get(&format!("/v1/operations/{escaped}?")).await.ok();
        assert_eq!(got["name"], name);
    }
}

// ERR-1, BEHAVIOUR §9
#[tokio::test]
async fn an_error_says_the_same_over_http_as_over_grpc() {
    use longrunning::proto::google::longrunning::{
        ListOperationsRequest, operations_client::OperationsClient,
    };
    use tonic::transport::Endpoint;

    let site = Site::start().await;
    let endpoint = Endpoint::from_shared(format!("http://{}", site.address)).unwrap();
    let mut grpc = OperationsClient::new(endpoint.connect().await.unwrap());
    for (target, request) in [
        (
            "/v1/operations?pageSize=-1",
            ListOperationsRequest {
                name: "operations".into(),
                page_size: -1,
                ..ListOperationsRequest::default()
            },
        ),
        (
            "/v1/operations?pageToken=x",
            ListOperationsRequest {
                name: "operations".into(),
                page_token: "x".into(),
                ..ListOperationsRequest::default()
            },
        ),
        (
            "/v1/projects/operations",
            ListOperationsRequest {
                name: "projects".into(),
                ..ListOperationsRequest::default()
            },
        ),
    ] {
        let http = site.get(target).await;
        let other = crate::support::problem::problem(grpc.list_operations(request).await);
        let (_, status, reason) = http.problem();
        let code = longrunning::proto::google::rpc::Code::from_str_name(&status).unwrap();
        assert_eq!(
            (code as i32, reason),
            (other.code as i32, other.reason.clone())
        );
        assert_eq!(http.message(), other.message);
    }
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
    let mut wire = crate::support::http::Wire::open(&site.workers).await;
    wire.send(request("GET", &format!("/v1/{name}"), "", ""))
        .await;
    assert_eq!(wire.answer().await.code, 404);
}
