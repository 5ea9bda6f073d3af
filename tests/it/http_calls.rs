//! HTTP/JSON: what calls and answers say, over raw sockets. Rules HTTP-3 and HTTP-6
//! to HTTP-13 of the conformance checklist; the JSON itself is in `http_json`.

use serde_json::json;

use crate::support::{
    http::{Site, error, named, request},
    pending, running, text,
};

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
