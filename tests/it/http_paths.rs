//! HTTP/JSON: which call a path and a method are, over raw sockets. Rules HTTP-1,
//! HTTP-2, HTTP-4, HTTP-5, HTTP-14 and HTTP-17 of the conformance checklist. What
//! a call says is in `http_calls`, what official clients send in `http_clients`.

use serde_json::json;

use crate::support::{
    http::{Site, error, named},
    pending,
};

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

// LIST-9
#[tokio::test]
async fn a_doubled_slash_does_not_list_the_operations_of_all_parents() {
    let site = Site::start().await;
    named(&site.operations, "projects/p/operations/b").await;
    for target in ["/v1//operations", "/v1//operations?pageSize=5"] {
        let refused = site.get(target).await;
        let expected = error(404, "NOT_FOUND", "PATH_UNKNOWN");
        assert_eq!(refused.problem(), expected, "{target}");
    }
    let root: longrunning::HttpPrefix = "/".parse().unwrap();
    let site = Site::with(|config| config.http.prefix = root).await;
    named(&site.operations, "projects/p/operations/b").await;
    assert_eq!(site.get("//operations").await.problem().0, 404);
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
