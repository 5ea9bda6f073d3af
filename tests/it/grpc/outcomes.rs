//! Validation and normalization of outcomes: error codes and type URLs.

use longrunning::{
    Failure, NewOperation, State,
    proto::google::rpc::{Code, Status},
};

use crate::support::{
    GrpcTestServer, assertions::assert_failed_with, create_leased, create_running, decode_metadata,
    expect_error, expect_response, operations::get_operation, string_value,
};

// Rules: OP-2
#[tokio::test]
async fn missing_response_is_served_as_empty() {
    let server = GrpcTestServer::start().await;
    let (name, token) = create_running(&server.operations).await;
    server
        .operations
        .succeed(&name, token, longrunning::Any::default())
        .await
        .unwrap();
    let operation = get_operation(&server, name.as_str()).await;
    let response = expect_response(&operation);
    assert_eq!(
        response.type_url,
        "type.googleapis.com/google.protobuf.Empty"
    );
    assert!(response.value.is_empty());
}

// Rules: OP-4
#[tokio::test]
async fn error_code_outside_1_to_16_is_rejected_without_change() {
    let server = GrpcTestServer::start().await;
    let (name, token) = create_running(&server.operations).await;
    let before = get_operation(&server, name.as_str()).await;
    for code in [0, 17, -1, 100] {
        let error = Status {
            code,
            ..Default::default()
        };
        for failure in [
            Failure::from(error.clone()),
            Failure::from(error).retryable(),
        ] {
            let rejected = server
                .operations
                .fail(&name, token, failure)
                .await
                .unwrap_err();
            assert_eq!(rejected.code(), Code::InvalidArgument, "{code}");
        }
    }
    assert_eq!(get_operation(&server, name.as_str()).await, before);
}

// Rules: OP-4
#[tokio::test]
async fn every_error_code_from_1_to_16_is_served_unchanged() {
    let server = GrpcTestServer::start().await;
    for code in 1..=16 {
        let (name, token) = create_running(&server.operations).await;
        let given = Status {
            code,
            message: "unchanged".into(),
            details: vec![string_value("detail")],
        };
        server
            .operations
            .fail(&name, token, given.clone().into())
            .await
            .unwrap();
        let operation = get_operation(&server, name.as_str()).await;
        assert_eq!(expect_error(&operation), given);
        let state = if code == Code::Cancelled as i32 {
            State::Cancelled
        } else {
            State::Failed
        };
        assert_eq!(decode_metadata(&operation).state(), state);
    }
}

// Rules: OP-5
#[tokio::test]
async fn bare_type_url_gets_google_prefix_and_other_prefixes_stay() {
    let server = GrpcTestServer::start().await;
    for (given, served) in [
        ("acme.v1.Thing", "type.googleapis.com/acme.v1.Thing"),
        (
            "type.googleapis.com/acme.v1.Thing",
            "type.googleapis.com/acme.v1.Thing",
        ),
        (
            "acme.example/types/acme.v1.Thing",
            "acme.example/types/acme.v1.Thing",
        ),
    ] {
        let any = longrunning::Any {
            type_url: given.into(),
            value: vec![8, 1],
        };
        let new = NewOperation::self_executed("test").metadata(any.clone());
        let (name, token) = create_leased(&server.operations, new).await;
        server.operations.succeed(&name, token, any).await.unwrap();
        let operation = get_operation(&server, name.as_str()).await;
        assert_eq!(expect_response(&operation).type_url, served);
        assert_eq!(operation.metadata.unwrap().type_url, served);
    }
}

// Rules: OP-5
#[tokio::test]
async fn any_with_invalid_type_url_is_rejected() {
    let server = GrpcTestServer::start().await;
    for bad in [
        "",
        "/",
        "type.googleapis.com/",
        "no dots or spaces allowed",
        "x/1digit",
    ] {
        let any = longrunning::Any {
            type_url: bad.into(),
            value: vec![1],
        };
        let (name, token) = create_running(&server.operations).await;
        let rejected = server
            .operations
            .succeed(&name, token, any.clone())
            .await
            .unwrap_err();
        assert_eq!(
            (rejected.code(), rejected.reason()),
            (Code::InvalidArgument, "INVALID_ANY")
        );
        for new in [
            NewOperation::queued("q").input(any.clone()),
            NewOperation::queued("q").metadata(any.clone()),
        ] {
            let rejected = server.operations.create(new).await.unwrap_err();
            assert_eq!(
                (rejected.code(), rejected.reason()),
                (Code::InvalidArgument, "INVALID_ANY")
            );
        }
        assert!(!get_operation(&server, name.as_str()).await.done);
    }
}

// The error of a failed operation has an ErrorInfo, too.
// Rules: ERR-2
#[tokio::test]
async fn failure_has_one_error_info_with_reason() {
    let server = GrpcTestServer::start().await;
    let (name, token) = create_running(&server.operations).await;
    let failure = Failure::new(Code::DataLoss, "half a file").with_reason("FILE_DAMAGED");
    server.operations.fail(&name, token, failure).await.unwrap();
    let failed = get_operation(&server, name.as_str()).await;
    assert_failed_with(&failed, Code::DataLoss, "FILE_DAMAGED");
    assert_eq!(expect_error(&failed).message, "half a file");
}
