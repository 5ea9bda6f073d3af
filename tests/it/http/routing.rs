//! Mapping of HTTP methods and paths to calls, over raw sockets: rules HTTP-1, HTTP-2,
//! HTTP-4, HTTP-5, HTTP-14 and HTTP-17.

use longrunning::proto::google::rpc::Code;
use serde_json::json;

use crate::support::{
    create_pending,
    http_server::{HttpTestServer, create_named, error_parts},
};

// Rules: HTTP-1
#[tokio::test]
async fn operations_proto_bindings_get_list_cancel_and_delete() {
    let server = HttpTestServer::start().await;
    let name = create_pending(&server.operations).await;
    let got = server.get(&format!("/v1/{name}")).await.expect_ok_json();
    assert_eq!(got["name"], name.as_str());
    let listed = server.get("/v1/operations").await.expect_ok_json();
    assert_eq!(listed["operations"], json!([got]));
    let cancelled = server.post(&format!("/v1/{name}:cancel"), "{}").await;
    assert_eq!((cancelled.code, cancelled.text()), (200, "{}"));
    let got = server.get(&format!("/v1/{name}")).await.expect_ok_json();
    assert_eq!(got["error"]["code"], Code::Cancelled as i32);
    let deleted = server.request("DELETE", &format!("/v1/{name}")).await;
    assert_eq!((deleted.code, deleted.text()), (200, "{}"));
    let missing = server.get(&format!("/v1/{name}")).await;
    let expected = error_parts(404, "NOT_FOUND", "OPERATION_NOT_FOUND");
    assert_eq!(missing.error_parts(), expected);
}

// Rules: LIST-9
#[tokio::test]
async fn double_slash_does_not_list_all_parents() {
    let server = HttpTestServer::start().await;
    create_named(&server.operations, "projects/p/operations/b").await;
    for target in ["/v1//operations", "/v1//operations?pageSize=5"] {
        let rejected = server.get(target).await;
        let expected = error_parts(404, "NOT_FOUND", "UNKNOWN_PATH");
        assert_eq!(rejected.error_parts(), expected, "{target}");
    }
    let root: longrunning::HttpPrefix = "/".parse().unwrap();
    let server = HttpTestServer::start_with(|config| config.http.prefix = root).await;
    create_named(&server.operations, "projects/p/operations/b").await;
    assert_eq!(server.get("//operations").await.error_parts().0, 404);
}

// Rules: HTTP-1, LIST-9
#[tokio::test]
async fn list_path_selects_parent() {
    let server = HttpTestServer::start().await;
    for name in [
        "operations/a",
        "projects/p/operations/b",
        "projects/q/operations/c",
    ] {
        create_named(&server.operations, name).await;
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
        let listed = server.get(target).await.expect_ok_json();
        let found = listed["operations"].as_array().cloned().unwrap_or_default();
        let found: Vec<_> = found
            .iter()
            .map(|operation| operation["name"].clone())
            .collect();
        assert_eq!(found, names, "{target}");
    }
    let bad = server.get("/v1/projects/operations").await;
    assert_eq!(
        bad.error_parts(),
        error_parts(400, "INVALID_ARGUMENT", "INVALID_NAME")
    );
}

// Rules: HTTP-2
#[tokio::test]
async fn python_and_java_default_bindings_are_served() {
    let server = HttpTestServer::start().await;
    let name = "projects/p/locations/l/operations/x";
    create_named(&server.operations, name).await;
    for version in ["v1", "v1beta1", "v2"] {
        let path = format!("/{version}/{name}");
        assert_eq!(server.get(&path).await.expect_ok_json()["name"], name);
        let cancelled = server.post(&format!("{path}:cancel"), "").await;
        assert_eq!(cancelled.text(), "{}");
    }
    let list = "/v2/projects/p/locations/l/operations";
    assert_eq!(
        server.get(list).await.expect_ok_json()["operations"][0]["name"],
        name
    );
    let deleted = server.request("DELETE", &format!("/v1/{name}")).await;
    assert_eq!(deleted.text(), "{}");
}

// Rules: HTTP-2
#[tokio::test]
async fn configured_prefix_replaces_default_prefixes() {
    let server =
        HttpTestServer::start_with(|config| config.http.prefix = "/api/v9".parse().unwrap()).await;
    let name = create_pending(&server.operations).await;
    assert_eq!(server.get(&format!("/api/v9/{name}")).await.code, 200);
    let other = server.get(&format!("/v1/{name}")).await;
    assert_eq!(
        other.error_parts(),
        error_parts(404, "NOT_FOUND", "UNKNOWN_PATH")
    );
    assert!(other.error_message().contains("GET /api/v9/operations"));
}

// Rules: HTTP-4
#[tokio::test]
async fn colon_in_id_may_be_raw_or_escaped() {
    let server = HttpTestServer::start().await;
    create_named(&server.operations, "operations/x").await;
    for target in [
        "/v1/operations/a:b",
        "/v1/operations/a%3Ab",
        "/v1/operations/x%3Acancel",
        "/v1/operations/x:frobnicate",
    ] {
        let missing = server.get(target).await;
        let expected = error_parts(404, "NOT_FOUND", "OPERATION_NOT_FOUND");
        assert_eq!(missing.error_parts(), expected, "{target}");
    }
    // An escaped colon does not start a verb.
    let posted = server.post("/v1/operations/x%3Acancel", "").await;
    assert_eq!(posted.error_parts().0, 405);
    assert_eq!(
        server.get("/v1/operations/x").await.expect_ok_json()["done"],
        false
    );
}

// Rules: HTTP-5
#[tokio::test]
async fn escaped_slash_is_no_separator_and_bad_escape_is_invalid() {
    let server = HttpTestServer::start().await;
    create_named(&server.operations, "projects/p/operations/x").await;
    let missing = server.get("/v1/projects%2Fp/operations/x").await;
    assert_eq!(missing.error_parts().2, "OPERATION_NOT_FOUND");
    assert!(
        missing
            .error_message()
            .contains("projects%2Fp/operations/x")
    );
    let escaped = server
        .get("/v1/%70rojects/%70/operations/%78")
        .await
        .expect_ok_json();
    assert_eq!(escaped["name"], "projects/p/operations/x");
    for target in [
        "/v1/operations/50%",
        "/v1/operations/%zz",
        "/v1/operations/%ff",
    ] {
        let rejected = server.get(target).await;
        let expected = error_parts(400, "INVALID_ARGUMENT", "MALFORMED_REQUEST");
        assert_eq!(rejected.error_parts(), expected, "{target}");
    }
    // Repeated and trailing slashes are not removed.
    for target in [
        "/v1//operations/x",
        "/v1/operations//x",
        "/v1/operations/x/",
    ] {
        assert_eq!(server.get(target).await.error_parts().0, 404, "{target}");
    }
}

// Rules: HTTP-14
#[tokio::test]
async fn unknown_path_is_404_and_wrong_method_405_with_allow_header() {
    let server = HttpTestServer::start().await;
    for target in [
        "/",
        "/v1",
        "/v1/projects/p",
        "/favicon.ico",
        "/google.longrunning.Operations/GetOperation",
    ] {
        let unknown = server.get(target).await;
        let expected = error_parts(404, "NOT_FOUND", "UNKNOWN_PATH");
        assert_eq!(unknown.error_parts(), expected, "{target}");
    }
    let verb = server.post("/v1/operations/x:frobnicate", "").await;
    assert_eq!(verb.error_parts().2, "UNKNOWN_PATH");
    for (method, target, allowed) in [
        ("POST", "/v1/operations", "GET, HEAD, OPTIONS"),
        ("PUT", "/v1/operations/x", "GET, HEAD, DELETE, OPTIONS"),
        ("BREW", "/v1/operations/x", "GET, HEAD, DELETE, OPTIONS"),
        ("GET", "/v1/operations/x:cancel", "POST, OPTIONS"),
        ("GET", "/v1/operations/x:wait", "POST, OPTIONS"),
        ("DELETE", "/v1/operations/x:watch", "GET, OPTIONS"),
    ] {
        let rejected = server.request(method, target).await;
        let expected = error_parts(405, "UNIMPLEMENTED", "METHOD_NOT_ALLOWED");
        assert_eq!(rejected.error_parts(), expected, "{method} {target}");
        assert_eq!(rejected.header("allow"), Some(allowed));
    }
}

// Rules: HTTP-17
#[tokio::test]
async fn name_escaped_into_one_segment_is_found() {
    let server = HttpTestServer::start().await;
    for name in ["operations/x", "projects/p/operations/x"] {
        create_named(&server.operations, name).await;
        let escaped = name.replace('/', "%2F");
        let got = server
            .get(&format!("/v1/operations/{escaped}?"))
            .await
            .expect_ok_json();
        assert_eq!(got["name"], name);
    }
}
