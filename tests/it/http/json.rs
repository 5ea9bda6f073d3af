//! The JSON encoding of operations over HTTP: rules JSON-1 to JSON-8 and NAME-1 to NAME-3.

use longrunning::{Any, NewOperation, Report};
use proptest::{prelude::*, test_runner::TestRunner};
use prost::{Message, Name};
use serde_json::{Value, json};

use crate::support::{
    create_leased, create_pending, create_running, custom_metadata,
    http_server::{HttpTestServer, create_named, error_parts},
    progress, string_value,
};

/// Packs a message into an `Any`.
fn pack<M: Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

/// Completes an operation with this response and returns its JSON.
async fn operation_json_with_response(server: &HttpTestServer, response: Any) -> Value {
    let (name, token) = create_running(&server.operations).await;
    server
        .operations
        .succeed(&name, token, response)
        .await
        .unwrap();
    server.get(&format!("/v1/{name}")).await.expect_ok_json()
}

// Rules: JSON-1, JSON-7
#[tokio::test]
async fn json_has_camel_case_keys_string_int64_and_enum_names() {
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
    let got = server.get(&format!("/v1/{name}")).await.expect_ok_json();
    let metadata = &got["metadata"];
    let url = "type.googleapis.com/longrunning.v1.OperationMetadata";
    assert_eq!(metadata["@type"], url);
    assert_eq!(metadata["state"], "RUNNING");
    assert_eq!(metadata["attempt"], 1);
    assert_eq!(metadata["progress"]["doneUnits"], "7");
    assert!(metadata["createTime"].as_str().unwrap().ends_with('Z'));
    assert!(metadata.get("create_time").is_none());
}

// Rules: JSON-2, JSON-3
#[tokio::test]
async fn unset_fields_are_omitted_and_never_null() {
    let server = HttpTestServer::start().await;
    assert_eq!(
        server.get("/v1/operations").await.expect_ok_json(),
        json!({})
    );
    let name = create_pending(&server.operations).await;
    let got = server.get(&format!("/v1/{name}")).await.expect_ok_json();
    let keys: Vec<_> = got.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["name", "metadata", "done"]);
    let listed = server.get("/v1/operations").await.expect_ok_json();
    let keys: Vec<_> = listed.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["operations"]);
}

// Rules: JSON-4
#[tokio::test]
async fn any_json_depends_on_its_message_type() {
    let server = HttpTestServer::start().await;
    let empty = operation_json_with_response(&server, pack(&())).await;
    assert_eq!(
        empty["response"],
        json!({ "@type": "type.googleapis.com/google.protobuf.Empty" })
    );
    let duration = prost_types::Duration {
        seconds: 5,
        nanos: 500_000_000,
    };
    let inner = pack(&duration);
    let cases = [
        (pack(&duration), json!("5.500s")),
        (string_value("hello"), json!("hello")),
        (pack(&7_i64), json!("7")),
        (pack(&true), json!(true)),
        (
            Any {
                type_url: "type.googleapis.com/google.protobuf.FieldMask".into(),
                value: prost_types::FieldMask {
                    paths: vec!["create_time".into(), "a.b_c".into()],
                }
                .encode_to_vec(),
            },
            json!("createTime,a.bC"),
        ),
        (
            pack(&inner),
            json!({ "@type": "type.googleapis.com/google.protobuf.Duration", "value": "5.500s" }),
        ),
    ];
    for (response, value) in cases {
        let url = response.type_url.clone();
        let got = operation_json_with_response(&server, response).await;
        assert_eq!(got["response"], json!({ "@type": url, "value": value }));
    }
}

// Rules: JSON-5
#[tokio::test]
async fn unknown_any_type_is_base64_without_error() {
    let server = HttpTestServer::start().await;
    let new = NewOperation::self_executed("test").metadata(custom_metadata(7));
    let (name, token) = create_leased(&server.operations, new).await;
    let response = Any {
        type_url: "example.com/x.v1.Picture".into(),
        value: vec![0xfb, 0xff],
    };
    server
        .operations
        .succeed(&name, token, response)
        .await
        .unwrap();
    let got = server.get(&format!("/v1/{name}")).await.expect_ok_json();
    assert_eq!(
        got["metadata"],
        json!({ "@type": "type.googleapis.com/acme.v1.RenderMetadata", "value": "/wcABw==" })
    );
    assert_eq!(
        got["response"],
        json!({ "@type": "example.com/x.v1.Picture", "value": "+/8=" })
    );
}

// Rules: JSON-6
#[tokio::test]
async fn timestamps_are_utc_with_0_3_6_or_9_fraction_digits() {
    let server = HttpTestServer::start().await;
    for (nanos, expected) in [
        (0, "2001-09-09T01:46:40Z"),
        (500_000_000, "2001-09-09T01:46:40.500Z"),
        (1_000, "2001-09-09T01:46:40.000001Z"),
        (1, "2001-09-09T01:46:40.000000001Z"),
    ] {
        let seconds = 1_000_000_000;
        let time = prost_types::Timestamp { seconds, nanos };
        let got = operation_json_with_response(&server, pack(&time)).await;
        assert_eq!(got["response"]["value"], expected);
    }
}

// Rules: JSON-8
#[tokio::test]
async fn invalid_json_body_is_rejected_and_message_names_cause() {
    let server = HttpTestServer::start().await;
    let name = create_named(&server.operations, "operations/x").await;
    let malformed = error_parts(400, "INVALID_ARGUMENT", "MALFORMED_REQUEST");
    for (body, expected_message) in [
        (r#"{"timeuot": "1s"}"#, "timeuot"),
        (r#"{"name": ["operations/x"]}"#, "WaitOperationRequest"),
        ("[]", "JSON object"),
        ("{", "not JSON"),
    ] {
        let rejected = server.post(&format!("/v1/{name}:wait"), body).await;
        assert_eq!(rejected.error_parts(), malformed, "{body}");
        assert!(
            rejected.error_message().contains(expected_message),
            "{}",
            rejected.error_message()
        );
    }
    for body in [
        r#"{"timeout": 1}"#,
        r#"{"timeout": "1m"}"#,
        r#"{"timeout": "999999999999s"}"#,
    ] {
        let rejected = server.post(&format!("/v1/{name}:wait"), body).await;
        let expected = error_parts(400, "INVALID_ARGUMENT", "INVALID_TIMEOUT");
        assert_eq!(rejected.error_parts(), expected, "{body}");
    }
    let null = r#"{"name": null, "timeout": "0s"}"#;
    server
        .post(&format!("/v1/{name}:wait"), null)
        .await
        .expect_ok_json();
}

// Rules: HTTP-6
#[tokio::test]
async fn pretty_print_indents_json() {
    let server = HttpTestServer::start().await;
    let name = create_pending(&server.operations).await;
    let plain = server.get(&format!("/v1/{name}")).await;
    assert!(!plain.text().contains('\n'));
    let pretty = server.get(&format!("/v1/{name}?prettyPrint=true")).await;
    assert!(pretty.text().starts_with("{\n  \"name\": "));
    assert_eq!(pretty.expect_ok_json(), plain.expect_ok_json());
}

// Rules: JSON-2, JSON-3, JSON-5
#[test]
fn arbitrary_worker_payloads_serialize_as_operation_json() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(HttpTestServer::start());
    let name = prop_oneof![
        Just("google.protobuf.Struct".to_owned()),
        Just("google.protobuf.Any".to_owned()),
        Just("google.protobuf.Timestamp".to_owned()),
        Just("google.rpc.Status".to_owned()),
        Just("longrunning.v1.OperationMetadata".to_owned()),
        "[a-z]{1,5}\\.[A-Z][a-z]{1,5}",
    ];
    let any = (name, proptest::collection::vec(any::<u8>(), 0..24)).prop_map(|(name, value)| Any {
        type_url: format!("type.googleapis.com/{name}"),
        value,
    });
    let config = ProptestConfig::with_cases(128);
    TestRunner::new(config)
        .run(&(any.clone(), any), |(metadata, response)| {
            let got = runtime.block_on(async {
                let new = NewOperation::self_executed("test").metadata(metadata.clone());
                let (name, token) = create_leased(&server.operations, new).await;
                let done = server
                    .operations
                    .succeed(&name, token, response.clone())
                    .await;
                done.unwrap();
                server.get(&format!("/v1/{name}")).await.expect_ok_json()
            });
            let keys: Vec<_> = got.as_object().unwrap().keys().collect();
            prop_assert_eq!(keys, ["name", "metadata", "done", "response"]);
            prop_assert_eq!(&got["metadata"]["@type"], &metadata.type_url);
            prop_assert_eq!(&got["response"]["@type"], &response.type_url);
            Ok(())
        })
        .unwrap();
}

// Rules: NAME-1
#[tokio::test]
async fn generated_name_needs_no_url_escaping() {
    let server = HttpTestServer::start().await;
    let name = create_pending(&server.operations).await;
    let is_unreserved =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-/".contains(&byte);
    assert!(name.as_str().bytes().all(is_unreserved), "{name}");
    let got = server.get(&format!("/v1/{name}")).await.expect_ok_json();
    assert_eq!(got["name"], name.as_str());
}

// Rules: NAME-2
#[tokio::test]
async fn all_supported_name_forms_are_served() {
    let server = HttpTestServer::start().await;
    for name in [
        "operations/x",
        "projects/p/operations/x",
        "projects/p/locations/eu-1/operations/x",
        "operations/ns/operations/x",
    ] {
        create_named(&server.operations, name).await;
        assert_eq!(
            server.get(&format!("/v1/{name}")).await.expect_ok_json()["name"],
            name
        );
    }
    let listed = server
        .get("/v1/operations/ns/operations")
        .await
        .expect_ok_json();
    assert_eq!(
        listed["operations"][0]["name"],
        "operations/ns/operations/x"
    );
}

// Rules: NAME-3
#[tokio::test]
async fn hostile_names_are_not_found() {
    let server = HttpTestServer::start().await;
    for id in [
        "google.showcase.v1beta1.Echo/Wait/CgwI/+7==",
        "google.showcase.v1beta1.Echo%2FWait%2FCgwI%2F%2B7%3D%3D",
        "..%2f..%2fetc%2fpasswd",
        "../../etc/passwd",
        ".",
        "%2e%2e",
        "%6Fperations",
        "x%00y",
        "%F0%9F%A6%80",
        "'%20OR%201=1",
        "%3Cscript%3E",
    ] {
        let missing = server.get(&format!("/v1/operations/{id}")).await;
        let expected = error_parts(404, "NOT_FOUND", "OPERATION_NOT_FOUND");
        assert_eq!(missing.error_parts(), expected, "{id}");
        assert_eq!(missing.header("x-content-type-options"), Some("nosniff"));
    }
}
