//! The JSON of operations over HTTP: the rules JSON-1 to JSON-8 and NAME-1 to
//! NAME-3 of the conformance checklist.

use longrunning::{Any, NewOperation, Report};
use proptest::{prelude::*, test_runner::TestRunner};
use prost::{Message, Name};
use serde_json::{Value, json};

use crate::support::{
    hold,
    http::{Site, error, named},
    own_metadata, pending, progress, running, text,
};

/// A packed message.
fn pack<M: Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

/// The JSON of an operation with this response.
async fn with_response(site: &Site, response: Any) -> Value {
    let (name, token) = running(&site.operations).await;
    site.operations
        .succeed(&name, token, response)
        .await
        .unwrap();
    site.get(&format!("/v1/{name}")).await.ok()
}

// JSON-1, JSON-7
#[tokio::test]
async fn keys_are_in_lower_camel_case_large_integers_are_strings_and_enums_have_names() {
    let site = Site::start().await;
    let (name, token) = running(&site.operations).await;
    let report = Report {
        progress: Some(progress(7)),
        ..Report::default()
    };
    site.operations.report(&name, token, report).await.unwrap();
    let got = site.get(&format!("/v1/{name}")).await.ok();
    let metadata = &got["metadata"];
    let url = "type.googleapis.com/longrunning.v1.OperationMetadata";
    assert_eq!(metadata["@type"], url);
    assert_eq!(metadata["state"], "RUNNING");
    assert_eq!(metadata["attempt"], 1);
    assert_eq!(metadata["progress"]["doneUnits"], "7");
    assert!(metadata["createTime"].as_str().unwrap().ends_with('Z'));
    assert!(metadata.get("create_time").is_none());
}

// JSON-2, JSON-3
#[tokio::test]
async fn what_is_unset_is_left_out_and_nothing_is_null() {
    let site = Site::start().await;
    assert_eq!(site.get("/v1/operations").await.ok(), json!({}));
    let name = pending(&site.operations).await;
    let got = site.get(&format!("/v1/{name}")).await.ok();
    let keys: Vec<_> = got.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["name", "metadata", "done"]);
    let listed = site.get("/v1/operations").await.ok();
    let keys: Vec<_> = listed.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["operations"]);
}

// JSON-4
#[tokio::test]
async fn an_any_is_written_as_its_type_wants_it() {
    let site = Site::start().await;
    let empty = with_response(&site, pack(&())).await;
    assert_eq!(
        empty["response"],
        json!({ "@type": "type.googleapis.com/google.protobuf.Empty" })
    );
    let duration = prost_types::Duration {
        seconds: 5,
        nanos: 500_000_000,
    };
    let inner = pack(&duration);
    let special = [
        (pack(&duration), json!("5.500s")),
        (text("hello"), json!("hello")),
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
    for (response, value) in special {
        let url = response.type_url.clone();
        let got = with_response(&site, response).await;
        assert_eq!(got["response"], json!({ "@type": url, "value": value }));
    }
}

// JSON-5
#[tokio::test]
async fn an_unknown_type_is_base64_and_never_an_error() {
    let site = Site::start().await;
    let new = NewOperation::self_executed("test").metadata(own_metadata(7));
    let (name, token) = hold(&site.operations, new).await;
    let response = Any {
        type_url: "example.com/x.v1.Picture".into(),
        value: vec![0xfb, 0xff],
    };
    site.operations
        .succeed(&name, token, response)
        .await
        .unwrap();
    let got = site.get(&format!("/v1/{name}")).await.ok();
    assert_eq!(
        got["metadata"],
        json!({ "@type": "type.googleapis.com/acme.v1.RenderMetadata", "value": "/wcABw==" })
    );
    assert_eq!(
        got["response"],
        json!({ "@type": "example.com/x.v1.Picture", "value": "+/8=" })
    );
}

// JSON-6
#[tokio::test]
async fn times_are_utc_with_0_3_6_or_9_digits() {
    let site = Site::start().await;
    for (nanos, written) in [
        (0, "2001-09-09T01:46:40Z"),
        (500_000_000, "2001-09-09T01:46:40.500Z"),
        (1_000, "2001-09-09T01:46:40.000001Z"),
        (1, "2001-09-09T01:46:40.000000001Z"),
    ] {
        let seconds = 1_000_000_000;
        let time = prost_types::Timestamp { seconds, nanos };
        let got = with_response(&site, pack(&time)).await;
        assert_eq!(got["response"]["value"], written);
    }
}

// JSON-8
#[tokio::test]
async fn what_a_body_must_not_have_is_refused_by_its_name() {
    let site = Site::start().await;
    let name = named(&site.operations, "operations/x").await;
    let malformed = error(400, "INVALID_ARGUMENT", "MALFORMED_REQUEST");
    for (body, said) in [
        (r#"{"timeuot": "1s"}"#, "timeuot"),
        (r#"{"name": ["operations/x"]}"#, "WaitOperationRequest"),
        ("[]", "JSON object"),
        ("{", "not JSON"),
    ] {
        let refused = site.post(&format!("/v1/{name}:wait"), body).await;
        assert_eq!(refused.problem(), malformed, "{body}");
        assert!(refused.message().contains(said), "{}", refused.message());
    }
    for body in [
        r#"{"timeout": 1}"#,
        r#"{"timeout": "1m"}"#,
        r#"{"timeout": "999999999999s"}"#,
    ] {
        let refused = site.post(&format!("/v1/{name}:wait"), body).await;
        let expected = error(400, "INVALID_ARGUMENT", "INVALID_TIMEOUT");
        assert_eq!(refused.problem(), expected, "{body}");
    }
    let null = r#"{"name": null, "timeout": "0s"}"#;
    site.post(&format!("/v1/{name}:wait"), null).await.ok();
}

// HTTP-6
#[tokio::test]
async fn pretty_print_is_for_people() {
    let site = Site::start().await;
    let name = pending(&site.operations).await;
    let plain = site.get(&format!("/v1/{name}")).await;
    assert!(!plain.text().contains('\n'));
    let pretty = site.get(&format!("/v1/{name}?prettyPrint=true")).await;
    assert!(pretty.text().starts_with("{\n  \"name\": "));
    assert_eq!(pretty.ok(), plain.ok());
}

// JSON-2, JSON-3, JSON-5
#[test]
fn whatever_workers_write_the_json_is_an_operation() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let site = runtime.block_on(Site::start());
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
                let (name, token) = hold(&site.operations, new).await;
                let done = site
                    .operations
                    .succeed(&name, token, response.clone())
                    .await;
                done.unwrap();
                site.get(&format!("/v1/{name}")).await.ok()
            });
            let keys: Vec<_> = got.as_object().unwrap().keys().collect();
            prop_assert_eq!(keys, ["name", "metadata", "done", "response"]);
            prop_assert_eq!(&got["metadata"]["@type"], &metadata.type_url);
            prop_assert_eq!(&got["response"]["@type"], &response.type_url);
            Ok(())
        })
        .unwrap();
}

// NAME-1
#[tokio::test]
async fn a_name_needs_no_escapes_in_a_path() {
    let site = Site::start().await;
    let name = pending(&site.operations).await;
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-/".contains(&byte);
    assert!(name.as_str().bytes().all(plain), "{name}");
    let got = site.get(&format!("/v1/{name}")).await.ok();
    assert_eq!(got["name"], name.as_str());
}

// NAME-2
#[tokio::test]
async fn names_of_both_kinds_and_those_that_please_every_client_are_served() {
    let site = Site::start().await;
    for name in [
        "operations/x",
        "projects/p/operations/x",
        "projects/p/locations/eu-1/operations/x",
        "operations/ns/operations/x",
    ] {
        named(&site.operations, name).await;
        assert_eq!(site.get(&format!("/v1/{name}")).await.ok()["name"], name);
    }
    let listed = site.get("/v1/operations/ns/operations").await.ok();
    assert_eq!(
        listed["operations"][0]["name"],
        "operations/ns/operations/x"
    );
}

// NAME-3
#[tokio::test]
async fn names_that_hold_secrets_of_others_are_only_not_found() {
    let site = Site::start().await;
    for id in [
        "google.showcase.v1beta1.Echo/Wait/CgwI/+7==",
        "google.showcase.v1beta1.Echo%2FWait%2FCgwI%2F%2B7%3D%3D",
        "..%2f..%2fetc%2fpasswd",
        "../../etc/passwd",
        "x%00y",
        "%F0%9F%A6%80",
        "'%20OR%201=1",
        "%3Cscript%3E",
    ] {
        let missing = site.get(&format!("/v1/operations/{id}")).await;
        let expected = error(404, "NOT_FOUND", "OPERATION_NOT_FOUND");
        assert_eq!(missing.problem(), expected, "{id}");
        assert_eq!(missing.header("x-content-type-options"), Some("nosniff"));
    }
}
