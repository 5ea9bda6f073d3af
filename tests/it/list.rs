//! ListOperations: whose operations, in which order. Pages are in `pages`.

use longrunning::{NewOperation, proto::google::longrunning::ListOperationsRequest};
use tonic::Code;

use crate::support::{
    Client, Server, get, hold, own_metadata, pending, problem::problem, running, succeeded, text,
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

/// A server with one operation, `x`, under each parent.
async fn peopled() -> Server {
    let server = Server::start().await;
    for parent in PARENTS {
        let new = NewOperation::queued("q").parent(parent).id("x");
        server.operations.create(new).await.unwrap();
    }
    server
}

fn of(name: &str) -> ListOperationsRequest {
    ListOperationsRequest {
        name: name.into(),
        ..Default::default()
    }
}

async fn names(client: &mut Client, name: &str) -> Vec<String> {
    let list = client.list_operations(of(name)).await.unwrap().into_inner();
    assert!(list.next_page_token.is_empty());
    assert!(list.unreachable.is_empty());
    list.operations
        .into_iter()
        .map(|operation| operation.name)
        .collect()
}

// LIST-9, LIST-10
#[tokio::test]
async fn every_form_of_a_scope_lists_whole_segments_and_no_deeper_parents() {
    let server = peopled().await;
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
        assert_eq!(names(&mut client, scope).await, expected, "{scope:?}");
    }
}

// LIST-9
#[tokio::test]
async fn a_scope_that_is_no_parent_is_an_invalid_name() {
    let server = peopled().await;
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
        let problem = problem(client.list_operations(of(scope)).await);
        assert_eq!(
            problem.key(),
            (Code::InvalidArgument, "INVALID_NAME"),
            "{scope:?}"
        );
        assert_eq!(problem.fields[0].0, "name");
    }
}

// LIST-14
#[tokio::test]
async fn a_list_holds_the_very_operations_that_get_serves_newest_first() {
    let server = Server::start().await;
    let mut expected = vec![
        pending(&server.operations).await,
        running(&server.operations).await.0,
        succeeded(&server.operations).await,
    ];
    let new = NewOperation::self_executed("w")
        .metadata(own_metadata(1))
        .label("a", "b");
    let (name, token) = hold(&server.operations, new).await;
    server
        .operations
        .succeed(&name, token, text("x"))
        .await
        .unwrap();
    expected.push(name);
    let mut client = server.client().await;
    let list = client.list_operations(of("")).await.unwrap().into_inner();
    assert_eq!(list.operations.len(), expected.len());
    for (operation, name) in list.operations.iter().zip(expected.iter().rev()) {
        let read = client
            .get_operation(get(name.as_str()))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(*operation, read);
    }
}

// LIST-8: a change does not move an operation within its list.
#[tokio::test]
async fn the_order_is_that_of_creation_whatever_happens_to_the_operations() {
    let server = Server::start().await;
    let (first, token) = running(&server.operations).await;
    let second = pending(&server.operations).await;
    server.operations.cancel(&second).await.unwrap();
    server
        .operations
        .succeed(&first, token, text(""))
        .await
        .unwrap();
    let listed = names(&mut server.client().await, "operations").await;
    assert_eq!(listed, [second.as_str(), first.as_str()]);
}

// LIST-11: what filters mean is in `filter`.
#[tokio::test]
async fn a_filter_that_is_none_is_refused_and_a_blank_one_matches_all() {
    let server = peopled().await;
    let mut client = server.client().await;
    for blank in ["", " ", "\n\t "] {
        let request = ListOperationsRequest {
            filter: blank.into(),
            ..of("")
        };
        let list = client.list_operations(request).await.unwrap().into_inner();
        assert_eq!(list.operations.len(), PARENTS.len());
    }
    let request = ListOperationsRequest {
        filter: "done = = true".into(),
        ..of("")
    };
    let refused = problem(client.list_operations(request).await);
    assert_eq!(refused.key(), (Code::InvalidArgument, "INVALID_FILTER"));
}

// LIST-12
#[tokio::test]
async fn partial_success_is_for_wildcards_and_whole_collections_only() {
    let server = peopled().await;
    let mut client = server.client().await;
    let partial = |name: &str| ListOperationsRequest {
        return_partial_success: true,
        ..of(name)
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
        let problem = problem(client.list_operations(partial(scope)).await);
        assert_eq!(
            problem.key(),
            (Code::InvalidArgument, "INVALID_PARTIAL_SUCCESS")
        );
        assert_eq!(problem.fields[0].0, "return_partial_success");
    }
}
