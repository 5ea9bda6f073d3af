//! Names, parents, ids and labels: which are valid, and that lookup compares bytes.

use longrunning::{NewOperation, Parent, proto::google::rpc::Code};
use tonic::Code as GrpcCode;

use crate::support::{
    GrpcTestServer, create_pending,
    error_details::expect_status_error,
    get_request,
    operations::{page_request, start_operations},
};

/// Returns names of no operation that are NOT_FOUND, not invalid.
fn unmatched_names() -> Vec<String> {
    let listed = [
        "x",
        "/",
        "//",
        "operations",
        "operations/",
        "/operations/known",
        "operations/known/",
        "operations/known ",
        " operations/known",
        "operations//known",
        "OPERATIONS/known",
        "operations/KNOWN",
        "operations/known:cancel",
        "operations/a:b",
        "operations/a b",
        "operations/%6bnown",
        "operations%2Fknown",
        "operations/known\0",
        "operations/known\n",
        "operations/kn\u{f6}wn",
        "operations/-",
        "operations/*",
        "operations/..",
        "projects/operations/known",
        "projects/p",
        "projects/p/operations",
        "projects/-/operations/known",
        "-/operations/known",
        "projects/p/locations/operations/known",
        "Operations/known",
        "operations/known?x=1",
        "operations/known#x",
        "\u{feff}operations/known",
        "operations/操作",
        "operations/🚀",
        "operations/0190b3f4-7a2e-7000-8000-000000000000",
        "operations/a.b",
        "operations/a_b",
        "//longrunning.example.com/operations/known",
        "https://example.com/v1/operations/known",
    ];
    let long = [
        "operations/".to_owned() + &"a".repeat(64),
        "operations/".to_owned() + &"a".repeat(2000),
    ];
    listed
        .iter()
        .map(|name| (*name).to_owned())
        .chain(long)
        .collect()
}

// Rules: GET-3, GET-4
#[tokio::test]
async fn name_lookup_is_byte_exact_and_unmatched_names_are_not_found() {
    let server = GrpcTestServer::start().await;
    server
        .operations
        .create(NewOperation::queued("q").id("known"))
        .await
        .unwrap();
    let mut client = server.client().await;
    client
        .get_operation(get_request("operations/known"))
        .await
        .unwrap();
    let names = unmatched_names();
    assert!(names.len() >= 25);
    for name in names {
        let details = expect_status_error(client.get_operation(get_request(&name)).await);
        assert_eq!(
            details.code_and_reason(),
            (GrpcCode::NotFound, "OPERATION_NOT_FOUND"),
            "{name:?}"
        );
    }
}

// The error for a name of any length fits into the trailers.
// Rules: ERR-3
#[tokio::test]
async fn name_of_1_mb_is_not_found_with_short_message() {
    let server = GrpcTestServer::start().await;
    let name = "operations/".to_owned() + &"é".repeat(500_000);
    let details = expect_status_error(
        server
            .client()
            .await
            .get_operation(get_request(&name))
            .await,
    );
    assert_eq!(
        details.code_and_reason(),
        (GrpcCode::NotFound, "OPERATION_NOT_FOUND")
    );
    assert!(details.message.len() < 1000);
}

// Rules: NAME-2, NAME-3
#[tokio::test]
async fn operation_is_found_only_under_its_parent() {
    let server = GrpcTestServer::start().await;
    let mut client = server.client().await;
    for parent in [
        "",
        "projects/p",
        "projects/p/locations/eu-west1",
        "operations/ns",
        "a/b/c/d/e/f",
    ] {
        let new = NewOperation::queued("q").parent(parent).id("x");
        let name = server
            .operations
            .create(new)
            .await
            .unwrap()
            .operation
            .name_owned();
        let prefix = if parent.is_empty() {
            String::new()
        } else {
            format!("{parent}/")
        };
        assert_eq!(name.as_str(), format!("{prefix}operations/x"));
        let read = client
            .get_operation(get_request(name.as_str()))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(read.name, name.as_str());
    }
    let other = expect_status_error(
        client
            .get_operation(get_request("projects/q/operations/x"))
            .await,
    );
    assert_eq!(other.code, GrpcCode::NotFound);
}

// Rules: NAME-4
#[tokio::test]
async fn custom_operation_id_is_validated() {
    let operations = start_operations().await;
    let (short, long) = ("a".repeat(63), "a".repeat(64));
    for good in ["a", "0", "a-b", "0190b3f4-7a2e", "a--b", &short] {
        let created = operations
            .create(NewOperation::queued("q").id(good))
            .await
            .unwrap();
        assert_eq!(created.operation.name(), format!("operations/{good}"));
    }
    for bad in [
        "",
        "-",
        "a-",
        "-a",
        "A",
        "a_b",
        "a.b",
        "a/b",
        "a b",
        "é",
        "a\n",
        ".",
        "..",
        "operations",
        &long,
    ] {
        let rejected = operations
            .create(NewOperation::queued("q").id(bad))
            .await
            .unwrap_err();
        assert_eq!(
            (rejected.code(), rejected.reason()),
            (Code::InvalidArgument, "INVALID_NAME"),
            "{bad}"
        );
    }
}

// Rules: NAME-5
#[test]
fn parent_consists_of_collection_and_id_pairs() {
    for good in [
        "",
        "projects/p1",
        "projects/p1/locations/eu",
        "projects/my.company~x_1",
        "projects/..a/x/...",
        "tenants/T-1",
    ] {
        assert_eq!(Parent::parse(good).unwrap().as_str(), good);
    }
    let long = format!("projects/{}", "p".repeat(64));
    for bad in [
        "projects",
        "/projects/p",
        "projects/p/",
        "projects//",
        "projects/-",
        "projects/p/locations",
        "Projects/p",
        "projects/a b",
        "projects/é",
        "1/2",
        "projects/p:x",
        "projects/p%2F",
        "projects/.",
        "projects/..",
        "projects/p/locations/..",
        "../p",
        "./p",
        &long,
    ] {
        assert!(Parent::parse(bad).is_err(), "{bad}");
    }
}

// Rules: NAME-6
#[tokio::test]
async fn labels_are_limited_to_64_and_keys_and_values_are_validated() {
    let operations = start_operations().await;
    let with_labels = |count: usize| {
        (0..count).fold(NewOperation::queued("q"), |new, n| {
            new.label(&format!("k{n}"), "v")
        })
    };
    let created = operations.create(with_labels(64)).await.unwrap();
    assert_eq!(created.operation.labels().iter().count(), 64);
    let key = "k".repeat(63);
    let value = "v".repeat(255);
    operations
        .create(NewOperation::queued("q").label(&key, &value))
        .await
        .unwrap();
    operations
        .create(NewOperation::queued("q").label("k_-9", "ünï 🚀"))
        .await
        .unwrap();
    let longer = (format!("{key}k"), format!("{value}v"));
    for new in [
        with_labels(65),
        NewOperation::queued("q").label(&longer.0, "v"),
        NewOperation::queued("q").label("k", &longer.1),
        NewOperation::queued("q").label("", "v"),
        NewOperation::queued("q").label("K", "v"),
        NewOperation::queued("q").label("9k", "v"),
        NewOperation::queued("q").label("k.k", "v"),
    ] {
        let rejected = operations.create(new).await.unwrap_err();
        assert_eq!(
            (rejected.code(), rejected.reason()),
            (Code::InvalidArgument, "INVALID_LABELS")
        );
    }
}

// The ids of one millisecond have no order: that of a list comes from elsewhere.
// Rules: OP-7, LIST-8
#[tokio::test]
async fn list_keeps_creation_order_although_ids_are_random() {
    let server = GrpcTestServer::start().await;
    let mut names = Vec::new();
    for _ in 0..100 {
        let name = create_pending(&server.operations).await;
        names.insert(0, name.as_str().to_owned());
    }
    let request = page_request("operations", 1000, "");
    let list = server.client().await.list_operations(request).await;
    let listed = list.unwrap().into_inner().operations.into_iter();
    let listed: Vec<_> = listed.map(|operation| operation.name).collect();
    assert_eq!(listed, names);
}
