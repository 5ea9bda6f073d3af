//! The exact requests of Google's REST clients, as captured from the wire.

use longrunning::{Operations, State};
use serde_json::{Value, json};

use crate::support::{
    create_pending,
    http_server::{HttpResponse, HttpTestServer, create_named, error_parts},
};

const PYTHON_HEADERS: &str = "Host: 127.0.0.1:8470\r\n\
    User-Agent: python-requests/2.32.5\r\n\
    Accept-Encoding: gzip, deflate\r\n\
    Accept: */*\r\n\
    Connection: keep-alive\r\n\
    Content-Type: application/json\r\n\
    x-goog-api-client: gl-python/3.11.7 rest/2.32.5 gax/2.44.0\r\n";

const NODE_HEADERS: &str = "Content-Type: application/json\r\n\
    User-Agent: gl-node/20.20.2 gapic/1 gapic/0.7.1 gax/6.17.0 rest/\r\n\
    x-goog-api-client: gl-node/20.20.2 gapic/1 gapic/0.7.1 gax/6.17.0 rest/\r\n\
    Accept: */*\r\n\
    Accept-Encoding: gzip, deflate, br\r\n\
    Host: 127.0.0.1:8470\r\n\
    Connection: keep-alive\r\n";

const RUST_HEADERS: &str = "x-goog-api-client: gl-rust/1.95.0 gapic/1.14.0\r\n\
    accept: */*\r\n\
    host: 127.0.0.1:8470\r\n";

const JAVA_HEADERS: &str = "Accept-Encoding: gzip\r\n\
    User-Agent: Google-HTTP-Java-Client/2.0.2 (gzip)\r\n\
    x-goog-api-client: gl-java/17.0.12 gapic/ gax/2.63.0 rest/\r\n\
    Content-Type: application/json; charset=utf-8\r\n\
    Host: 127.0.0.1:8470\r\n\
    Connection: keep-alive\r\n";

const INT_ENUMS_QUERY: &str = "%24alt=json%3Benum-encoding%3Dint";

/// Sends a request with the headers of a client.
async fn send_request(
    server: &HttpTestServer,
    request_line: &str,
    headers: &str,
    headers_and_body: &str,
) -> HttpResponse {
    server
        .send(format!(
            "{request_line} HTTP/1.1\r\n{headers}{headers_and_body}"
        ))
        .await
}

async fn create_operations(operations: &Operations, names: &[&str]) {
    for name in names {
        create_named(operations, name).await;
    }
}

fn listed_names(listed: &Value) -> Vec<&str> {
    let operations = listed["operations"].as_array();
    let operations = operations.into_iter().flatten();
    operations
        .map(|operation| operation["name"].as_str().unwrap())
        .collect()
}

// Rules: HTTP-2, HTTP-9, HTTP-10
#[tokio::test]
async fn python_abstract_operations_client_default_bindings_work() {
    let server = HttpTestServer::start().await;
    create_operations(
        &server.operations,
        &["projects/p/operations/x", "operations/y"],
    )
    .await;
    let get = send_request(
        &server,
        "GET /v1/projects/p/operations/x",
        PYTHON_HEADERS,
        "\r\n",
    )
    .await;
    assert_eq!(get.expect_ok_json()["name"], "projects/p/operations/x");
    let list = send_request(
        &server,
        "GET /v1/projects/p/operations?pageSize=3",
        PYTHON_HEADERS,
        "\r\n",
    )
    .await;
    assert_eq!(
        listed_names(&list.expect_ok_json()),
        ["projects/p/operations/x"]
    );
    let root = send_request(
        &server,
        "GET /v1/operations/operations",
        PYTHON_HEADERS,
        "\r\n",
    )
    .await;
    assert_eq!(listed_names(&root.expect_ok_json()), ["operations/y"]);
    let cancel = "POST /v1/projects/p/operations/x:cancel";
    let empty = "Content-Length: 0\r\n\r\n";
    assert_eq!(
        send_request(&server, cancel, PYTHON_HEADERS, empty)
            .await
            .expect_ok_json(),
        json!({})
    );
    let delete = "DELETE /v1/projects/p/operations/x";
    assert_eq!(
        send_request(&server, delete, PYTHON_HEADERS, empty)
            .await
            .expect_ok_json(),
        json!({})
    );
    let missing = send_request(
        &server,
        "GET /v1/projects/p/operations/x",
        PYTHON_HEADERS,
        "\r\n",
    )
    .await;
    let expected = error_parts(404, "NOT_FOUND", "OPERATION_NOT_FOUND");
    assert_eq!(missing.error_parts(), expected);
}

// Rules: HTTP-1, HTTP-4, HTTP-6
#[tokio::test]
async fn python_client_works_with_operations_proto_bindings() {
    let server = HttpTestServer::start().await;
    create_operations(&server.operations, &["operations/x"]).await;
    let get = send_request(&server, "GET /v1/operations/x", PYTHON_HEADERS, "\r\n").await;
    assert_eq!(get.expect_ok_json()["name"], "operations/x");
    let escaped = send_request(
        &server,
        "GET /v1/operations/a/b%3Ac%20d%25",
        PYTHON_HEADERS,
        "\r\n",
    )
    .await;
    assert_eq!(escaped.error_parts().2, "OPERATION_NOT_FOUND");
    assert!(
        escaped.error_message().contains("\"operations/a/b:c d%\""),
        "{}",
        escaped.error_message()
    );
    let deep = "POST /v1/operations/x/y:cancel";
    let missing = send_request(&server, deep, PYTHON_HEADERS, "Content-Length: 0\r\n\r\n").await;
    assert!(missing.error_message().contains("\"operations/x/y\""));
    // The filter is decoded; it is unknown, so the error comes from the filter parser.
    let filter = "GET /v1/operations?filter=a+%3D+%22b%22&pageSize=3";
    let filtered = send_request(&server, filter, PYTHON_HEADERS, "\r\n").await;
    assert!(filtered.code != 500 && filtered.json().is_object());
}

// Rules: HTTP-3
#[tokio::test]
async fn python_generated_client_operations_mixin_works() {
    let server = HttpTestServer::start().await;
    let name = "projects/p/locations/l/operations/x";
    create_operations(&server.operations, &[name]).await;
    let get = send_request(&server, &format!("GET /v2/{name}"), PYTHON_HEADERS, "\r\n").await;
    assert_eq!(get.expect_ok_json()["name"], name);
    let list = "GET /v2/projects/p/locations/-/operations?returnPartialSuccess=true";
    assert_eq!(
        listed_names(
            &send_request(&server, list, PYTHON_HEADERS, "\r\n")
                .await
                .expect_ok_json()
        ),
        [name]
    );
    let body = r#"{"timeout": "0.500s"}"#;
    let headers_and_body = format!("Content-Length: {}\r\n\r\n{body}", body.len());
    let wait = send_request(
        &server,
        &format!("POST /v2/{name}:wait"),
        PYTHON_HEADERS,
        &headers_and_body,
    )
    .await;
    assert_eq!(wait.expect_ok_json()["done"], false);
    let delete = send_request(
        &server,
        &format!("DELETE /v2/{name}"),
        PYTHON_HEADERS,
        "\r\n",
    )
    .await;
    assert_eq!(delete.expect_ok_json(), json!({}));
}

// Rules: HTTP-8, HTTP-11, HTTP-17
#[tokio::test]
async fn node_google_gax_fallback_mode_works() {
    let server = HttpTestServer::start().await;
    create_operations(&server.operations, &["operations/x", "operations/y"]).await;
    let get = send_request(
        &server,
        "GET /v1/operations/operations%2Fx?",
        NODE_HEADERS,
        "\r\n",
    )
    .await;
    assert_eq!(get.expect_ok_json()["name"], "operations/x");
    let escaped = "GET /v1/operations/projects%2Fp%2Foperations%2Fx%3Ay%20z?";
    let escaped = send_request(&server, escaped, NODE_HEADERS, "\r\n").await;
    assert!(
        escaped
            .error_message()
            .contains("\"projects/p/operations/x:y z\"")
    );
    let list = send_request(
        &server,
        "GET /v1/operations?pageSize=1",
        NODE_HEADERS,
        "\r\n",
    )
    .await
    .expect_ok_json();
    assert_eq!(listed_names(&list), ["operations/y"]);
    let token = list["nextPageToken"].as_str().unwrap();
    let next = format!("GET /v1/operations?pageSize=1&pageToken={token}");
    let next = send_request(&server, &next, NODE_HEADERS, "\r\n")
        .await
        .expect_ok_json();
    assert_eq!(listed_names(&next), ["operations/x"]);
    let cancel = "POST /v1/operations/x:cancel?";
    let cancelled =
        send_request(&server, cancel, NODE_HEADERS, "Content-Length: 2\r\n\r\n{}").await;
    assert_eq!(cancelled.expect_ok_json(), json!({}));
    let delete = send_request(&server, "DELETE /v1/operations/x?", NODE_HEADERS, "\r\n").await;
    assert_eq!(delete.expect_ok_json(), json!({}));
}

// Rules: HTTP-7, HTTP-8, LIST-12
#[tokio::test]
async fn rust_google_cloud_longrunning_client_works() {
    let server = HttpTestServer::start().await;
    create_operations(&server.operations, &["operations/x"]).await;
    let get = send_request(
        &server,
        &format!("GET /v1/operations/x?{INT_ENUMS_QUERY}"),
        RUST_HEADERS,
        "\r\n",
    )
    .await;
    assert_eq!(get.expect_ok_json()["name"], "operations/x");
    let list = format!(
        "GET /v1/operations?filter=&pageSize=0&pageToken=&returnPartialSuccess=false&{INT_ENUMS_QUERY}"
    );
    let listed = send_request(&server, &list, RUST_HEADERS, "\r\n")
        .await
        .expect_ok_json();
    assert_eq!(listed_names(&listed), ["operations/x"]);
    let json_body = "content-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    let cancel = format!("POST /v1/operations/x:cancel?{INT_ENUMS_QUERY}");
    assert_eq!(
        send_request(&server, &cancel, RUST_HEADERS, json_body)
            .await
            .expect_ok_json(),
        json!({})
    );
    let delete = format!("DELETE /v1/operations/x?{INT_ENUMS_QUERY}");
    assert_eq!(
        send_request(&server, &delete, RUST_HEADERS, "\r\n")
            .await
            .expect_ok_json(),
        json!({})
    );
    // This client does not escape a percent sign or a colon.
    let raw = format!("GET /v1/operations/50%?{INT_ENUMS_QUERY}");
    let expected = error_parts(400, "INVALID_ARGUMENT", "MALFORMED_REQUEST");
    assert_eq!(
        send_request(&server, &raw, RUST_HEADERS, "\r\n")
            .await
            .error_parts(),
        expected
    );
    let colon = format!("GET /v1/operations/a:b?{INT_ENUMS_QUERY}");
    assert_eq!(
        send_request(&server, &colon, RUST_HEADERS, "\r\n")
            .await
            .error_parts()
            .0,
        404
    );
}

// Rules: HTTP-7, JSON-7
#[tokio::test]
async fn requested_numeric_enums_apply_inside_any() {
    let server = HttpTestServer::start().await;
    let name = create_pending(&server.operations).await;
    let get = |query: &str| {
        let target = format!("GET /v1/{name}{query}");
        let server = &server;
        async move {
            send_request(server, &target, RUST_HEADERS, "\r\n")
                .await
                .expect_ok_json()["metadata"]["state"]
                .clone()
        }
    };
    assert_eq!(get("").await, "PENDING");
    assert_eq!(
        get(&format!("?{INT_ENUMS_QUERY}")).await,
        State::Pending as i32
    );
    let list = format!("GET /v1/operations?{INT_ENUMS_QUERY}");
    let listed = send_request(&server, &list, RUST_HEADERS, "\r\n")
        .await
        .expect_ok_json();
    assert_eq!(
        listed["operations"][0]["metadata"]["state"],
        State::Pending as i32
    );
}

// Rules: HTTP-2, HTTP-10
#[tokio::test]
async fn java_http_json_operations_stub_works() {
    let server = HttpTestServer::start().await;
    create_operations(
        &server.operations,
        &["projects/p/operations/x", "operations/x"],
    )
    .await;
    for name in ["projects/p/operations/x", "operations/x"] {
        let get = format!("GET /v1/{name}?$alt=json;enum-encoding%3Dint");
        let got = send_request(&server, &get, JAVA_HEADERS, "\r\n").await;
        assert_eq!(got.expect_ok_json()["name"], name);
        // EmptyContent sends content-length 0 and the content type of every request.
        let cancel = format!("POST /v1/{name}:cancel?$alt=json;enum-encoding%3Dint");
        let cancelled =
            send_request(&server, &cancel, JAVA_HEADERS, "Content-Length: 0\r\n\r\n").await;
        assert_eq!(cancelled.expect_ok_json(), json!({}));
    }
    let list =
        "GET /v1/projects/p/operations?$alt=json;enum-encoding%3Dint&filter=&pageSize=0&pageToken=";
    assert_eq!(
        listed_names(
            &send_request(&server, list, JAVA_HEADERS, "\r\n")
                .await
                .expect_ok_json()
        ),
        ["projects/p/operations/x"]
    );
}
