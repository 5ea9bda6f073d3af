//! HTTP/JSON requests and responses over raw sockets: rules HTTP-3 and HTTP-6 to HTTP-13.

use longrunning::proto::google::rpc::Code;
use serde_json::json;

use crate::support::{
    create_pending, create_running,
    error_details::expect_status_error,
    http_server::{HttpTestServer, create_named, error_parts, http_request},
    operations::{list_request, page_request, wait_for_waiters},
    string_value,
};

// Rules: HTTP-3
#[tokio::test]
async fn http_wait_timeout_returns_latest_state() {
    let server = HttpTestServer::start().await;
    let (name, _) = create_running(&server.operations).await;
    for body in [r#"{"timeout": "0.050s"}"#, r#"{"timeout":"0s"}"#] {
        let waited = server
            .post(&format!("/v1/{name}:wait"), body)
            .await
            .expect_ok_json();
        assert_eq!(waited["done"], false, "{body}");
    }
    let negative = r#"{"timeout": "-1s"}"#;
    let rejected = server.post(&format!("/v1/{name}:wait"), negative).await;
    let expected = error_parts(400, "INVALID_ARGUMENT", "INVALID_TIMEOUT");
    assert_eq!(rejected.error_parts(), expected);
}

// Rules: HTTP-3
#[tokio::test]
async fn http_wait_returns_when_operation_completes() {
    let server = HttpTestServer::start().await;
    let (name, token) = create_running(&server.operations).await;
    let mut connection = server.connect().await;
    let wait = http_request("POST", &format!("/v1/{name}:wait"), "", "");
    connection.send(wait).await;
    wait_for_waiters(&server.operations, 1).await;
    let response = string_value("result");
    server
        .operations
        .succeed(&name, token, response)
        .await
        .unwrap();
    let waited = connection.read_response().await.expect_ok_json();
    assert_eq!(waited["done"], true);
    assert_eq!(waited["response"]["value"], "result");
    // The connection stays open.
    connection
        .send(http_request("GET", &format!("/v1/{name}"), "", ""))
        .await;
    assert_eq!(connection.read_response().await.expect_ok_json(), waited);
}

// Rules: HTTP-6
#[tokio::test]
async fn query_parameters_accept_json_and_proto_names_and_reject_unknown() {
    let server = HttpTestServer::start().await;
    for id in ["a", "b", "c"] {
        create_named(&server.operations, &format!("operations/{id}")).await;
    }
    for (size, token) in [("pageSize", "pageToken"), ("page_size", "page_token")] {
        let first = server
            .get(&format!("/v1/operations?{size}=2"))
            .await
            .expect_ok_json();
        assert_eq!(first["operations"].as_array().unwrap().len(), 2);
        let next = first["nextPageToken"].as_str().unwrap();
        let second = format!("/v1/operations?{size}=2&{token}={next}");
        let second = server.get(&second).await.expect_ok_json();
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
        let rejected = server.get(&format!("/v1/operations?{query}")).await;
        let expected = error_parts(400, "INVALID_ARGUMENT", reason);
        assert_eq!(rejected.error_parts(), expected, "{query}");
    }
    let system_parameters = "$alt=json&prettyPrint=false&$fields=name&fields=name&key=k&access_token=t\
        &quotaUser=u&%24.xgafv=2&$apiVersion=1&userProject=p&upload_protocol=raw";
    for target in ["/v1/operations", "/v1/operations/a"] {
        server
            .get(&format!("{target}?{system_parameters}"))
            .await
            .expect_ok_json();
    }
}

// Rules: LIST-12
#[tokio::test]
async fn http_partial_success_is_allowed_for_wildcards_and_collections() {
    let server = HttpTestServer::start().await;
    for (target, code) in [
        ("/v1/operations?returnPartialSuccess=true", 200),
        ("/v1/projects/-/operations?return_partial_success=true", 200),
        ("/v1/projects/p/operations?returnPartialSuccess=true", 400),
        ("/v1/projects/p/operations?returnPartialSuccess=false", 200),
    ] {
        assert_eq!(server.get(target).await.code, code, "{target}");
    }
}

// Rules: HTTP-8
#[tokio::test]
async fn empty_query_values_and_trailing_question_mark_are_ignored() {
    let server = HttpTestServer::start().await;
    create_named(&server.operations, "operations/x").await;
    let query = "filter=&pageSize=0&pageToken=&returnPartialSuccess=false";
    for target in [
        &format!("/v1/operations?{query}"),
        "/v1/operations?",
        "/v1/operations?pageSize=&",
        "/v1/operations?&&",
    ] {
        let listed = server.get(target).await.expect_ok_json();
        assert_eq!(listed["operations"][0]["name"], "operations/x", "{target}");
    }
    server.get("/v1/operations/x?").await.expect_ok_json();
}

// Rules: HTTP-9
#[tokio::test]
async fn get_allows_json_content_type_but_rejects_body() {
    let server = HttpTestServer::start().await;
    create_named(&server.operations, "operations/x").await;
    let json_header = "content-type: application/json\r\n";
    let empty = "content-type: application/json\r\ncontent-length: 0\r\n";
    let chunked = "transfer-encoding: chunked\r\n";
    for headers in [json_header, empty] {
        let get = http_request("GET", "/v1/operations/x", headers, "");
        assert_eq!(server.send(get).await.code, 200, "{headers}");
    }
    let get = format!(
        "{}0\r\n\r\n",
        http_request("GET", "/v1/operations/x", chunked, "")
    );
    assert_eq!(server.send(get).await.code, 200);
    for method in ["GET", "DELETE"] {
        let full = http_request(method, "/v1/operations/x", json_header, "{}");
        let rejected = server.send(full).await;
        assert!(
            rejected.error_message().contains("takes no body"),
            "{method}"
        );
    }
    server
        .send(http_request("DELETE", "/v1/operations/x", empty, ""))
        .await
        .expect_ok_json();
}

// Rules: HTTP-10
#[tokio::test]
async fn empty_body_is_empty_message_and_name_comes_from_path() {
    let server = HttpTestServer::start().await;
    create_named(&server.operations, "operations/x").await;
    let cancel = "/v1/operations/x:cancel";
    for body in [
        "",
        "{}",
        " ",
        r#"{"name": "operations/x"}"#,
        r#"{"name": null}"#,
    ] {
        assert_eq!(server.post(cancel, body).await.text(), "{}", "{body}");
    }
    let other = server.post(cancel, r#"{"name": "operations/y"}"#).await;
    let expected = error_parts(400, "INVALID_ARGUMENT", "INVALID_NAME");
    assert_eq!(other.error_parts(), expected);
    let query = server
        .post("/v1/operations/x:cancel?name=operations/x", "")
        .await;
    let expected = error_parts(400, "INVALID_ARGUMENT", "INVALID_PARAMETER");
    assert_eq!(query.error_parts(), expected);
}

// Rules: HTTP-11
#[tokio::test]
async fn cancel_and_delete_return_200_with_empty_object() {
    let server = HttpTestServer::start().await;
    create_named(&server.operations, "operations/x").await;
    for response in [
        server.post("/v1/operations/x:cancel", "").await,
        server.request("DELETE", "/v1/operations/x").await,
    ] {
        assert_eq!((response.code, response.text()), (200, "{}"));
        assert_eq!(response.header("content-length"), Some("2"));
    }
    let again = server.request("DELETE", "/v1/operations/x").await;
    assert_eq!(again.error_parts().0, 404);
}

// Rules: HTTP-12
#[tokio::test]
async fn http_error_has_aip_193_envelope() {
    let server = HttpTestServer::start().await;
    let missing = server.get("/v1/operations/missing").await;
    assert_eq!(
        missing.json(),
        json!({ "error": {
            "code": 404,
            "message": "operation \"operations/missing\" not found: it never existed, was deleted, or has expired",
            "status": "NOT_FOUND",
            "details": [{
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "OPERATION_NOT_FOUND",
                "domain": "longrunning.dev",
                "metadata": { "name": "operations/missing" },
            }],
        }})
    );
    let negative = server.get("/v1/operations?pageSize=-1").await.json();
    let details = &negative["error"]["details"];
    assert_eq!(details[1]["fieldViolations"][0]["field"], "page_size");
    assert_eq!(
        details[1]["fieldViolations"][0]["reason"],
        "INVALID_PAGE_SIZE"
    );
}

// Rules: HTTP-13
#[tokio::test]
async fn failed_operation_is_returned_with_200() {
    let server = HttpTestServer::start().await;
    let name = create_pending(&server.operations).await;
    server.operations.cancel(&name).await.unwrap();
    let got = server.get(&format!("/v1/{name}")).await.expect_ok_json();
    assert_eq!(got["done"], true);
    assert_eq!(got["error"]["code"], Code::Cancelled as i32);
    assert!(got["error"].get("status").is_none());
}

// Rules: ERR-1, HTTP-12
#[tokio::test]
async fn http_and_grpc_errors_are_identical() {
    use longrunning::proto::google::longrunning::operations_client::OperationsClient;
    use tonic::transport::Endpoint;

    let server = HttpTestServer::start().await;
    let endpoint = Endpoint::from_shared(format!("http://{}", server.client_address)).unwrap();
    let mut grpc = OperationsClient::new(endpoint.connect().await.unwrap());
    for (target, request) in [
        (
            "/v1/operations?pageSize=-1",
            page_request("operations", -1, ""),
        ),
        (
            "/v1/operations?pageToken=x",
            page_request("operations", 0, "x"),
        ),
        ("/v1/projects/operations", list_request("projects")),
    ] {
        let http_error = server.get(target).await;
        let grpc_error = expect_status_error(grpc.list_operations(request).await);
        let (_, status, reason) = http_error.error_parts();
        let code = Code::from_str_name(&status).unwrap();
        assert_eq!(
            (code as i32, reason),
            (grpc_error.code as i32, grpc_error.reason.clone())
        );
        assert_eq!(http_error.error_message(), grpc_error.message);
    }
}
