//! What goes into an operation on its way in: error codes and type URLs.

use longrunning::{
    Failure, NewOperation, State,
    proto::google::{longrunning::Operation, rpc::Code},
};

use crate::support::{
    GrpcTestServer, create_leased, create_running, decode_metadata, error_reason, expect_error,
    expect_response, get_request, string_value,
};

/// The operation as Get serves it now.
async fn get_operation(server: &GrpcTestServer, name: &str) -> Operation {
    let mut client = server.client().await;
    client
        .get_operation(get_request(name))
        .await
        .unwrap()
        .into_inner()
}

// OP-2
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

// OP-4
#[tokio::test]
async fn error_code_outside_1_to_16_is_rejected_without_change() {
    let server = GrpcTestServer::start().await;
    let (name, token) = create_running(&server.operations).await;
    let before = get_operation(&server, name.as_str()).await;
    for code in [0, 17, -1, 100] {
        let error = longrunning::proto::google::rpc::Status {
            code,
            ..Default::default()
        };
        for failure in [
            Failure::from(error.clone()),
            Failure::from(error).retryable(),
        ] {
            let refused = server
                .operations
                .fail(&name, token, failure)
                .await
                .unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{code}");
        }
    }
    assert_eq!(get_operation(&server, name.as_str()).await, before);
}

// OP-4
#[tokio::test]
async fn every_error_code_from_1_to_16_is_served_unchanged() {
    let server = GrpcTestServer::start().await;
    for code in 1..=16 {
        let (name, token) = create_running(&server.operations).await;
        let given = longrunning::proto::google::rpc::Status {
            code,
            message: "as it was".into(),
            details: vec![string_value("detail")],
        };
        server
            .operations
            .fail(&name, token, given.clone().into())
            .await
            .unwrap();
        let operation = get_operation(&server, name.as_str()).await;
        assert_eq!(expect_error(&operation), given);
        let state = if code == 1 {
            State::Cancelled
        } else {
            State::Failed
        };
        assert_eq!(decode_metadata(&operation).state(), state);
    }
}

// OP-5
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

// OP-5
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
        let refused = server
            .operations
            .succeed(&name, token, any.clone())
            .await
            .unwrap_err();
        assert_eq!(
            (refused.code(), refused.reason()),
            (Code::InvalidArgument, "INVALID_ANY")
        );
        for new in [
            NewOperation::queued("q").input(any.clone()),
            NewOperation::queued("q").metadata(any.clone()),
        ] {
            let refused = server.operations.create(new).await.unwrap_err();
            assert_eq!(
                (refused.code(), refused.reason()),
                (Code::InvalidArgument, "INVALID_ANY")
            );
        }
        assert!(!get_operation(&server, name.as_str()).await.done);
    }
}

// ERR-2: an error that the server records has an ErrorInfo as well.
#[tokio::test]
async fn failure_has_one_error_info_with_reason() {
    let server = GrpcTestServer::start().await;
    let (name, token) = create_running(&server.operations).await;
    let failure = Failure::new(Code::DataLoss, "half a file").with_reason("FILE_DAMAGED");
    server.operations.fail(&name, token, failure).await.unwrap();
    let error = expect_error(&get_operation(&server, name.as_str()).await);
    assert_eq!(
        (error.code, error.message.as_str()),
        (Code::DataLoss as i32, "half a file")
    );
    assert_eq!(error_reason(&error), "FILE_DAMAGED");
}
