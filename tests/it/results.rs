//! What goes into an operation on its way in: error codes and type URLs.

use longrunning::{
    Failure, NewOperation, State,
    proto::google::{longrunning::Operation, rpc::Code},
};

use crate::support::{Server, error, get, hold, metadata, reason, response, running, text};

/// The operation as Get serves it now.
async fn now(server: &Server, name: &str) -> Operation {
    let mut client = server.client().await;
    client.get_operation(get(name)).await.unwrap().into_inner()
}

// OP-2
#[tokio::test]
async fn work_that_finishes_with_nothing_gets_an_empty_response() {
    let server = Server::start().await;
    let (name, token) = running(&server.operations).await;
    server
        .operations
        .succeed(&name, token, longrunning::Any::default())
        .await
        .unwrap();
    let operation = now(&server, name.as_str()).await;
    let response = response(&operation);
    assert_eq!(
        response.type_url,
        "type.googleapis.com/google.protobuf.Empty"
    );
    assert!(response.value.is_empty());
}

// OP-4
#[tokio::test]
async fn an_error_code_outside_1_to_16_is_refused_and_nothing_changes() {
    let server = Server::start().await;
    let (name, token) = running(&server.operations).await;
    let before = now(&server, name.as_str()).await;
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
    assert_eq!(now(&server, name.as_str()).await, before);
}

// OP-4
#[tokio::test]
async fn every_code_from_1_to_16_is_served_as_it_was_given() {
    let server = Server::start().await;
    for code in 1..=16 {
        let (name, token) = running(&server.operations).await;
        let given = longrunning::proto::google::rpc::Status {
            code,
            message: "as it was".into(),
            details: vec![text("detail")],
        };
        server
            .operations
            .fail(&name, token, given.clone().into())
            .await
            .unwrap();
        let operation = now(&server, name.as_str()).await;
        assert_eq!(error(&operation), given);
        let state = if code == 1 {
            State::Cancelled
        } else {
            State::Failed
        };
        assert_eq!(metadata(&operation).state(), state);
    }
}

// OP-5
#[tokio::test]
async fn a_bare_type_url_gets_googles_prefix_and_a_foreign_prefix_is_kept() {
    let server = Server::start().await;
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
        let (name, token) = hold(&server.operations, new).await;
        server.operations.succeed(&name, token, any).await.unwrap();
        let operation = now(&server, name.as_str()).await;
        assert_eq!(response(&operation).type_url, served);
        assert_eq!(operation.metadata.unwrap().type_url, served);
    }
}

// OP-5
#[tokio::test]
async fn an_any_without_a_proper_type_url_is_refused_on_the_way_in() {
    let server = Server::start().await;
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
        let (name, token) = running(&server.operations).await;
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
        assert!(!now(&server, name.as_str()).await.done);
    }
}

// ERR-2: an error that the server records has an ErrorInfo as well.
#[tokio::test]
async fn a_failure_of_a_handler_carries_one_error_info_with_its_reason() {
    let server = Server::start().await;
    let (name, token) = running(&server.operations).await;
    let failure = Failure::new(Code::DataLoss, "half a file").with_reason("FILE_DAMAGED");
    server.operations.fail(&name, token, failure).await.unwrap();
    let error = error(&now(&server, name.as_str()).await);
    assert_eq!(
        (error.code, error.message.as_str()),
        (Code::DataLoss as i32, "half a file")
    );
    assert_eq!(reason(&error), "FILE_DAMAGED");
}
