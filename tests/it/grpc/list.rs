//! ListOperations: which operations it returns, and their order.

use longrunning::{NewOperation, proto::google::longrunning::ListOperationsRequest};
use tonic::Code;

use crate::support::{
    GrpcClient, GrpcTestServer, create_leased, create_pending, create_running, create_succeeded,
    custom_metadata, error_details::expect_status_error, get_request, operations::list_request,
    string_value,
};

const PARENTS: [&str; 7] = [
    "",
    "projects/p",
    "projects/p2",
    "projects/p/locations/eu",
    "projects/p2/locations/eu",
    "projects/p/locations/us",
    "tenants/p",
];

/// Starts a server that has one operation, `x`, under each parent.
async fn server_with_operation_per_parent() -> GrpcTestServer {
    let server = GrpcTestServer::start().await;
    for parent in PARENTS {
        let new = NewOperation::queued("q").parent(parent).id("x");
        server.operations.create(new).await.unwrap();
    }
    server
}

async fn listed_names(client: &mut GrpcClient, name: &str) -> Vec<String> {
    let list = client
        .list_operations(list_request(name))
        .await
        .unwrap()
        .into_inner();
    assert!(list.next_page_token.is_empty());
    assert!(list.unreachable.is_empty());
    list.operations
        .into_iter()
        .map(|operation| operation.name)
        .collect()
}

// Rules: LIST-9, LIST-10
#[tokio::test]
async fn list_parent_matches_whole_segments_and_not_deeper_parents() {
    let server = server_with_operation_per_parent().await;
    let mut client = server.client().await;
    let everything: Vec<_> = PARENTS.iter().rev().copied().collect();
    let table: [(&str, &[&str]); 16] = [
        ("", &everything),
        ("-", &everything),
        ("operations", &[""]),
        ("projects/p", &["projects/p"]),
        ("projects/p/operations", &["projects/p"]),
        ("projects/p2", &["projects/p2"]),
        ("projects/p/locations/eu", &["projects/p/locations/eu"]),
        (
            "projects/p/locations/eu/operations",
            &["projects/p/locations/eu"],
        ),
        ("projects/unknown", &[]),
        ("projects/-", &["projects/p2", "projects/p"]),
        ("projects/-/operations", &["projects/p2", "projects/p"]),
        (
            "projects/p/locations/-",
            &["projects/p/locations/us", "projects/p/locations/eu"],
        ),
        (
            "projects/-/locations/eu",
            &["projects/p2/locations/eu", "projects/p/locations/eu"],
        ),
        (
            "projects/-/locations/-/operations",
            &[
                "projects/p/locations/us",
                "projects/p2/locations/eu",
                "projects/p/locations/eu",
            ],
        ),
        ("tenants/-", &["tenants/p"]),
        ("nothing/-", &[]),
    ];
    for (scope, parents) in table {
        let expected: Vec<_> = parents
            .iter()
            .map(|parent| match *parent {
                "" => "operations/x".to_owned(),
                parent => format!("{parent}/operations/x"),
            })
            .collect();
        assert_eq!(
            listed_names(&mut client, scope).await,
            expected,
            "{scope:?}"
        );
    }
}

// Rules: LIST-9
#[tokio::test]
async fn list_of_invalid_parent_is_invalid_name() {
    let server = server_with_operation_per_parent().await;
    let mut client = server.client().await;
    for scope in [
        "/",
        "projects",
        "projects/",
        "/projects/p",
        "projects/p/",
        "projects/p/locations",
        "projects/a b",
        "Projects/p",
        "-/-",
        "projects/p/operations/x/y",
        "projects/é",
        "operations/operations/",
    ] {
        let details = expect_status_error(client.list_operations(list_request(scope)).await);
        assert_eq!(
            details.code_and_reason(),
            (Code::InvalidArgument, "INVALID_NAME"),
            "{scope:?}"
        );
        assert_eq!(details.field_violations[0].0, "name");
    }
}

// Rules: LIST-8, LIST-14
#[tokio::test]
async fn list_returns_same_operations_as_get_newest_first() {
    let server = GrpcTestServer::start().await;
    let mut expected = vec![
        create_pending(&server.operations).await,
        create_running(&server.operations).await.0,
        create_succeeded(&server.operations).await,
    ];
    let new = NewOperation::self_executed("w")
        .metadata(custom_metadata(1))
        .label("a", "b");
    let (name, token) = create_leased(&server.operations, new).await;
    server
        .operations
        .succeed(&name, token, string_value("x"))
        .await
        .unwrap();
    expected.push(name);
    let mut client = server.client().await;
    let list = client
        .list_operations(list_request(""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(list.operations.len(), expected.len());
    for (operation, name) in list.operations.iter().zip(expected.iter().rev()) {
        let read = client
            .get_operation(get_request(name.as_str()))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(*operation, read);
    }
}

// A change does not move an operation within its list.
// Rules: LIST-8
#[tokio::test]
async fn list_order_is_creation_order_despite_changes() {
    let server = GrpcTestServer::start().await;
    let (first, token) = create_running(&server.operations).await;
    let second = create_pending(&server.operations).await;
    server.operations.cancel(&second).await.unwrap();
    server
        .operations
        .succeed(&first, token, string_value(""))
        .await
        .unwrap();
    let listed = listed_names(&mut server.client().await, "operations").await;
    assert_eq!(listed, [second.as_str(), first.as_str()]);
}

// Rules: LIST-11
#[tokio::test]
async fn invalid_filter_is_rejected_and_blank_filter_matches_all() {
    let server = server_with_operation_per_parent().await;
    let mut client = server.client().await;
    for blank in ["", " ", "\n\t "] {
        let request = ListOperationsRequest {
            filter: blank.into(),
            ..list_request("")
        };
        let list = client.list_operations(request).await.unwrap().into_inner();
        assert_eq!(list.operations.len(), PARENTS.len());
    }
    let request = ListOperationsRequest {
        filter: "done = = true".into(),
        ..list_request("")
    };
    let rejected = expect_status_error(client.list_operations(request).await);
    assert_eq!(
        rejected.code_and_reason(),
        (Code::InvalidArgument, "INVALID_FILTER")
    );
}

// Rules: LIST-12
#[tokio::test]
async fn partial_success_is_allowed_only_for_wildcards_and_collections() {
    let server = server_with_operation_per_parent().await;
    let mut client = server.client().await;
    let partial = |name: &str| ListOperationsRequest {
        return_partial_success: true,
        ..list_request(name)
    };
    for scope in [
        "",
        "-",
        "operations",
        "projects/-",
        "projects/p/locations/-",
    ] {
        let list = client
            .list_operations(partial(scope))
            .await
            .unwrap()
            .into_inner();
        assert!(
            !list.operations.is_empty() && list.unreachable.is_empty(),
            "{scope:?}"
        );
    }
    for scope in ["projects/p", "projects/p/operations", "projects/unknown"] {
        let details = expect_status_error(client.list_operations(partial(scope)).await);
        assert_eq!(
            details.code_and_reason(),
            (Code::InvalidArgument, "INVALID_PARTIAL_SUCCESS")
        );
        assert_eq!(details.field_violations[0].0, "return_partial_success");
    }
}
