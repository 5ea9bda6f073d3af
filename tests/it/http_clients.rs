//! What Google's REST clients really send, byte for byte: the table in §4.1 of
//! the conformance checklist. The clients themselves run in `tests/clients`.

use longrunning::Operations;
use serde_json::{Value, json};

use crate::support::{
    http::{Answer, Site, error, named},
    pending,
};

const PYTHON: &str = "Host: 127.0.0.1:8470\r\n\
    User-Agent: python-requests/2.32.5\r\n\
    Accept-Encoding: gzip, deflate\r\n\
    Accept: */*\r\n\
    Connection: keep-alive\r\n\
    Content-Type: application/json\r\n\
    x-goog-api-client: gl-python/3.11.7 rest/2.32.5 gax/2.44.0\r\n";

const NODE: &str = "Content-Type: application/json\r\n\
    User-Agent: gl-node/20.20.2 gapic/1 gapic/0.7.1 gax/6.17.0 rest/\r\n\
    x-goog-api-client: gl-node/20.20.2 gapic/1 gapic/0.7.1 gax/6.17.0 rest/\r\n\
    Accept: */*\r\n\
    Accept-Encoding: gzip, deflate, br\r\n\
    Host: 127.0.0.1:8470\r\n\
    Connection: keep-alive\r\n";

const RUST: &str = "x-goog-api-client: gl-rust/1.95.0 gapic/1.14.0\r\n\
    accept: */*\r\n\
    host: 127.0.0.1:8470\r\n";

const JAVA: &str = "Accept-Encoding: gzip\r\n\
    User-Agent: Google-HTTP-Java-Client/2.0.2 (gzip)\r\n\
    x-goog-api-client: gl-java/17.0.12 gapic/ gax/2.63.0 rest/\r\n\
    Content-Type: application/json; charset=utf-8\r\n\
    Host: 127.0.0.1:8470\r\n\
    Connection: keep-alive\r\n";

const INT: &str = "%24alt=json%3Benum-encoding%3Dint";

/// Sends a request as a client does.
async fn sent(site: &Site, line: &str, headers: &str, rest: &str) -> Answer {
    site.send(format!("{line} HTTP/1.1\r\n{headers}{rest}"))
        .await
}

async fn operations(operations: &Operations, names: &[&str]) {
    for name in names {
        named(operations, name).await;
    }
}

fn names(listed: &Value) -> Vec<&str> {
    let operations = listed["operations"].as_array();
    let operations = operations.into_iter().flatten();
    operations
        .map(|one| one["name"].as_str().unwrap())
        .collect()
}

// HTTP-2, HTTP-9, HTTP-10
#[tokio::test]
async fn python_s_abstract_operations_client_by_its_default_bindings() {
    let site = Site::start().await;
    operations(
        &site.operations,
        &["projects/p/operations/x", "operations/y"],
    )
    .await;
    let get = sent(&site, "GET /v1/projects/p/operations/x", PYTHON, "\r\n").await;
    assert_eq!(get.ok()["name"], "projects/p/operations/x");
    let list = sent(
        &site,
        "GET /v1/projects/p/operations?pageSize=3",
        PYTHON,
        "\r\n",
    )
    .await;
    assert_eq!(names(&list.ok()), ["projects/p/operations/x"]);
    let root = sent(&site, "GET /v1/operations/operations", PYTHON, "\r\n").await;
    assert_eq!(names(&root.ok()), ["operations/y"]);
    let cancel = "POST /v1/projects/p/operations/x:cancel";
    let empty = "Content-Length: 0\r\n\r\n";
    assert_eq!(sent(&site, cancel, PYTHON, empty).await.ok(), json!({}));
    let delete = "DELETE /v1/projects/p/operations/x";
    assert_eq!(sent(&site, delete, PYTHON, empty).await.ok(), json!({}));
    let missing = sent(&site, "GET /v1/projects/p/operations/x", PYTHON, "\r\n").await;
    let expected = error(404, "NOT_FOUND", "OPERATION_NOT_FOUND");
    assert_eq!(missing.problem(), expected);
}

// HTTP-1, HTTP-4, HTTP-6
#[tokio::test]
async fn python_s_client_with_the_bindings_of_operations_proto() {
    let site = Site::start().await;
    operations(&site.operations, &["operations/x"]).await;
    let get = sent(&site, "GET /v1/operations/x", PYTHON, "\r\n").await;
    assert_eq!(get.ok()["name"], "operations/x");
    let odd = sent(&site, "GET /v1/operations/a/b%3Ac%20d%25", PYTHON, "\r\n").await;
    assert_eq!(odd.problem().2, "OPERATION_NOT_FOUND");
    assert!(
        odd.message().contains("\"operations/a/b:c d%\""),
        "{}",
        odd.message()
    );
    let deep = "POST /v1/operations/x/y:cancel";
    let missing = sent(&site, deep, PYTHON, "Content-Length: 0\r\n\r\n").await;
    assert!(missing.message().contains("\"operations/x/y\""));
    // The filter arrives whole: what is wrong with it is for the filter to say.
    let filter = "GET /v1/operations?filter=a+%3D+%22b%22&pageSize=3";
    let filtered = sent(&site, filter, PYTHON, "\r\n").await;
    assert!(filtered.code != 500 && filtered.json().is_object());
}

// HTTP-3
#[tokio::test]
async fn python_s_operations_mixin_of_a_generated_client() {
    let site = Site::start().await;
    let name = "projects/p/locations/l/operations/x";
    operations(&site.operations, &[name]).await;
    let get = sent(&site, &format!("GET /v2/{name}"), PYTHON, "\r\n").await;
    assert_eq!(get.ok()["name"], name);
    let list = "GET /v2/projects/p/locations/-/operations?returnPartialSuccess=true";
    assert_eq!(names(&sent(&site, list, PYTHON, "\r\n").await.ok()), [name]);
    let body = r#"{"timeout": "0.500s"}"#;
    let rest = format!("Content-Length: {}\r\n\r\n{body}", body.len());
    let wait = sent(&site, &format!("POST /v2/{name}:wait"), PYTHON, &rest).await;
    assert_eq!(wait.ok()["done"], false);
    let delete = sent(&site, &format!("DELETE /v2/{name}"), PYTHON, "\r\n").await;
    assert_eq!(delete.ok(), json!({}));
}

// HTTP-8, HTTP-11, HTTP-17
#[tokio::test]
async fn node_s_google_gax_in_fallback_mode() {
    let site = Site::start().await;
    operations(&site.operations, &["operations/x", "operations/y"]).await;
    let get = sent(&site, "GET /v1/operations/operations%2Fx?", NODE, "\r\n").await;
    assert_eq!(get.ok()["name"], "operations/x");
    let odd = "GET /v1/operations/projects%2Fp%2Foperations%2Fx%3Ay%20z?";
    let odd = sent(&site, odd, NODE, "\r\n").await;
    assert!(odd.message().contains("\"projects/p/operations/x:y z\""));
    let list = sent(&site, "GET /v1/operations?pageSize=1", NODE, "\r\n")
        .await
        .ok();
    assert_eq!(names(&list), ["operations/y"]);
    let token = list["nextPageToken"].as_str().unwrap();
    let next = format!("GET /v1/operations?pageSize=1&pageToken={token}");
    let next = sent(&site, &next, NODE, "\r\n").await.ok();
    assert_eq!(names(&next), ["operations/x"]);
    let cancel = "POST /v1/operations/x:cancel?";
    let cancelled = sent(&site, cancel, NODE, "Content-Length: 2\r\n\r\n{}").await;
    assert_eq!(cancelled.ok(), json!({}));
    let delete = sent(&site, "DELETE /v1/operations/x?", NODE, "\r\n").await;
    assert_eq!(delete.ok(), json!({}));
}

// HTTP-7, HTTP-8, LIST-12
#[tokio::test]
async fn rust_s_google_cloud_longrunning() {
    let site = Site::start().await;
    operations(&site.operations, &["operations/x"]).await;
    let get = sent(&site, &format!("GET /v1/operations/x?{INT}"), RUST, "\r\n").await;
    assert_eq!(get.ok()["name"], "operations/x");
    let list = format!(
        "GET /v1/operations?filter=&pageSize=0&pageToken=&returnPartialSuccess=false&{INT}"
    );
    let listed = sent(&site, &list, RUST, "\r\n").await.ok();
    assert_eq!(names(&listed), ["operations/x"]);
    let json_body = "content-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    let cancel = format!("POST /v1/operations/x:cancel?{INT}");
    assert_eq!(sent(&site, &cancel, RUST, json_body).await.ok(), json!({}));
    let delete = format!("DELETE /v1/operations/x?{INT}");
    assert_eq!(sent(&site, &delete, RUST, "\r\n").await.ok(), json!({}));
    // It leaves a percent sign and a colon as they are.
    let raw = format!("GET /v1/operations/50%?{INT}");
    let expected = error(400, "INVALID_ARGUMENT", "MALFORMED_REQUEST");
    assert_eq!(sent(&site, &raw, RUST, "\r\n").await.problem(), expected);
    let colon = format!("GET /v1/operations/a:b?{INT}");
    assert_eq!(sent(&site, &colon, RUST, "\r\n").await.problem().0, 404);
}

// HTTP-7, JSON-7
#[tokio::test]
async fn enums_are_numbers_inside_an_any_too_if_they_are_asked_for() {
    let site = Site::start().await;
    let name = pending(&site.operations).await;
    let get = |query: &str| {
        let target = format!("GET /v1/{name}{query}");
        let site = &site;
        async move { sent(site, &target, RUST, "\r\n").await.ok()["metadata"]["state"].clone() }
    };
    assert_eq!(get("").await, "PENDING");
    assert_eq!(get(&format!("?{INT}")).await, 1);
    let list = format!("GET /v1/operations?{INT}");
    let listed = sent(&site, &list, RUST, "\r\n").await.ok();
    assert_eq!(listed["operations"][0]["metadata"]["state"], 1);
}

// HTTP-2, HTTP-10
#[tokio::test]
async fn java_s_http_json_operations_stub() {
    let site = Site::start().await;
    operations(
        &site.operations,
        &["projects/p/operations/x", "operations/x"],
    )
    .await;
    for name in ["projects/p/operations/x", "operations/x"] {
        let get = format!("GET /v1/{name}?$alt=json;enum-encoding%3Dint");
        let got = sent(&site, &get, JAVA, "\r\n").await;
        assert_eq!(got.ok()["name"], name);
        // EmptyContent: a length of 0, and no type but that of all its requests.
        let cancel = format!("POST /v1/{name}:cancel?$alt=json;enum-encoding%3Dint");
        let cancelled = sent(&site, &cancel, JAVA, "Content-Length: 0\r\n\r\n").await;
        assert_eq!(cancelled.ok(), json!({}));
    }
    let list =
        "GET /v1/projects/p/operations?$alt=json;enum-encoding%3Dint&filter=&pageSize=0&pageToken=";
    assert_eq!(
        names(&sent(&site, list, JAVA, "\r\n").await.ok()),
        ["projects/p/operations/x"]
    );
}
