//! ListOperations with an AIP-160 filter: the examples of `docs/filters.md`, errors,
//! pages and concurrent changes.

use std::collections::BTreeMap;

use longrunning::{
    NewOperation, Operations, Payload, Report,
    proto::{
        google::{
            longrunning::ListOperationsRequest,
            rpc::{Code as RpcCode, Status},
        },
        longrunning::v1::Progress,
    },
};
use prost::Message;
use tonic::Code;

use crate::support::{
    GrpcClient, GrpcTestServer, create_leased, create_pending, create_running, custom_metadata,
    error_details::expect_status_error, string_value,
};

fn filter_request(filter: &str) -> ListOperationsRequest {
    ListOperationsRequest {
        filter: filter.into(),
        ..Default::default()
    }
}

/// Returns the ids of all pages of a list.
async fn list_ids(client: &mut GrpcClient, filter: &str, page_size: i32) -> Vec<String> {
    let (mut ids, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListOperationsRequest {
            page_size,
            page_token,
            ..filter_request(filter)
        };
        let page = client.list_operations(request).await;
        let page = page
            .unwrap_or_else(|error| panic!("{filter}: {error}"))
            .into_inner();
        ids.extend(page.operations.iter().map(|operation| {
            let (_, id) = operation.name.rsplit_once('/').unwrap();
            id.to_owned()
        }));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return ids;
        }
    }
}

/// Creates the operations that the examples of `docs/filters.md` refer to.
async fn create_guide_operations(operations: &Operations) {
    let new = |new: NewOperation, id: &str| new.parent("projects/shop").id(id);
    let progress = |done_units, total_units| Report {
        progress: Some(Progress {
            done_units,
            total_units,
            stage: "hashing".into(),
            ..Progress::default()
        }),
        ..Report::default()
    };

    let queued_operation = new(NewOperation::queued("thumbs"), "thumb-1").label("env", "dev");
    operations.create(queued_operation).await.unwrap();

    let running_operation = new(NewOperation::self_executed("w"), "export-1").label("env", "prod");
    let (name, token) = create_leased(operations, running_operation.label("team", "blue")).await;
    operations
        .report(&name, token, progress(60, 100))
        .await
        .unwrap();

    let cancelling_operation =
        new(NewOperation::self_executed("w"), "export-2").label("env", "prod");
    let (name, token) = create_leased(operations, cancelling_operation).await;
    operations
        .report(&name, token, progress(10, 100))
        .await
        .unwrap();
    operations.cancel(&name).await.unwrap();

    let succeeding_operation =
        new(NewOperation::self_executed("w"), "import-1").label("env", "prod");
    let (name, token) = create_leased(operations, succeeding_operation).await;
    operations
        .succeed(&name, token, string_value("42 rows"))
        .await
        .unwrap();

    let failing_operation = new(NewOperation::self_executed("w"), "import-2").label("env", "dev");
    let (name, token) = create_leased(operations, failing_operation).await;
    let info = longrunning::proto::google::rpc::ErrorInfo {
        reason: "NO_SUCH_FILE".into(),
        domain: "shop.example".into(),
        ..Default::default()
    };
    let error = Status {
        code: RpcCode::NotFound.into(),
        message: "the file orders.csv is not there".into(),
        details: vec![Payload::pack(&info).any().clone()],
    };
    operations.fail(&name, token, error.into()).await.unwrap();

    let custom_metadata_operation = new(NewOperation::self_executed("w"), "render-1");
    let numbers = [("frames", 240.0)];
    let fields: BTreeMap<String, prost_types::Value> = numbers
        .into_iter()
        .map(|(key, number)| {
            let kind = prost_types::value::Kind::NumberValue(number);
            (key.to_owned(), prost_types::Value { kind: Some(kind) })
        })
        .collect();
    let struct_any = longrunning::Any {
        type_url: "type.googleapis.com/google.protobuf.Struct".into(),
        value: prost_types::Struct { fields }.encode_to_vec(),
    };
    let (name, token) =
        create_leased(operations, custom_metadata_operation.metadata(struct_any)).await;
    operations
        .succeed(&name, token, string_value("done"))
        .await
        .unwrap();
}

/// Returns the filters of the tables of `docs/filters.md`, each with the ids of the
/// operations in its last column, newest first.
fn guide_examples() -> Vec<(String, Vec<String>)> {
    let guide = include_str!("../../../docs/filters.md");
    let code = |cell: &str| -> Vec<String> {
        let parts = cell.split('`').skip(1).step_by(2);
        parts.map(str::to_owned).collect()
    };
    let (mut examples, mut in_table) = (Vec::new(), false);
    for line in guide.lines() {
        in_table = line.starts_with("| filter |") || (in_table && line.starts_with('|'));
        if in_table && line.starts_with("| `") {
            let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
            assert_eq!(cells.len(), 3, "{line}");
            examples.push((code(cells[0]).remove(0), code(cells[2])));
        }
    }
    examples
}

// Rules: FIL-18
#[tokio::test]
async fn guide_examples_match_documented_operations() {
    let server = GrpcTestServer::start().await;
    create_guide_operations(&server.operations).await;
    let mut client = server.client().await;
    let examples = guide_examples();
    assert!(
        examples.len() >= 30,
        "expected at least 30 examples, found {}",
        examples.len()
    );
    for (filter, expected) in examples {
        assert_eq!(
            list_ids(&mut client, &filter, 0).await,
            expected,
            "{filter}"
        );
        // The same, with one operation on each page.
        assert_eq!(
            list_ids(&mut client, &filter, 1).await,
            expected,
            "{filter}"
        );
    }
}

// Rules: FIL-18
#[tokio::test]
async fn guide_error_messages_match_server_errors() {
    let server = GrpcTestServer::start().await;
    let mut client = server.client().await;
    let guide = include_str!("../../../docs/filters.md");
    let rows = guide.lines().filter_map(|line| {
        let (filter, rest) = line.strip_prefix("    ")?.split_once("  →  ")?;
        Some((filter.trim(), rest.trim()))
    });
    let mut count = 0;
    for (filter, message) in rows {
        let details = expect_status_error(client.list_operations(filter_request(filter)).await);
        assert_eq!(
            details.code_and_reason(),
            (Code::InvalidArgument, "INVALID_FILTER"),
            "{filter}"
        );
        assert_eq!(details.message, format!("filter: {message}"), "{filter}");
        count += 1;
    }
    assert!(count >= 5, "expected at least 5 errors, found {count}");
}

// Rules: LIST-11, ERR-2, ERR-4, FIL-17
#[tokio::test]
async fn invalid_filter_error_has_column_and_expectation() {
    let server = GrpcTestServer::start().await;
    let mut client = server.client().await;
    for (filter, column, expected) in [
        ("done = = true", 8, "expected a value"),
        ("foo = 1", 1, "expected one of the fields name, done, error"),
        ("done < true", 1, "no order"),
        ("state = runing", 9, "one of PENDING, RUNNING"),
        ("regex(name, '.*')", 1, "functions are not supported"),
    ] {
        let details = expect_status_error(client.list_operations(filter_request(filter)).await);
        assert_eq!(
            details.code_and_reason(),
            (Code::InvalidArgument, "INVALID_FILTER"),
            "{filter}"
        );
        assert_eq!(details.field_violations[0].0, "filter");
        let prefix = format!("filter: column {column}: ");
        assert!(details.message.starts_with(&prefix), "{}", details.message);
        assert!(details.message.contains(expected), "{}", details.message);
    }
    for hostile in [
        "(".repeat(8000),
        "a ".repeat(4000),
        "x".repeat(100_000),
        "-".repeat(8000),
    ] {
        let details = expect_status_error(client.list_operations(filter_request(&hostile)).await);
        assert_eq!(
            details.code_and_reason(),
            (Code::InvalidArgument, "INVALID_FILTER")
        );
    }
}

// Rules: LIST-2, LIST-5
#[tokio::test]
async fn filtered_pages_are_complete_ordered_and_bound_to_filter() {
    let server = GrpcTestServer::start().await;
    let mut expected = Vec::new();
    for number in 0..300 {
        let name = create_pending(&server.operations).await;
        if number % 3 == 0 {
            server.operations.cancel(&name).await.unwrap();
            let (_, id) = name.as_str().rsplit_once('/').unwrap();
            expected.insert(0, id.to_owned());
        }
    }
    let mut client = server.client().await;
    for page_size in [1, 7, 100, 1000] {
        for filter in ["state = CANCELLED", "error.code = 1", "done = true"] {
            assert_eq!(
                list_ids(&mut client, filter, page_size).await,
                expected,
                "{filter}"
            );
        }
    }
    let first = ListOperationsRequest {
        page_size: 1,
        ..filter_request("done = true")
    };
    let first = client.list_operations(first).await.unwrap().into_inner();
    for other in ["done = false", "done=true", ""] {
        let other = ListOperationsRequest {
            page_token: first.next_page_token.clone(),
            ..filter_request(other)
        };
        let details = expect_status_error(client.list_operations(other).await);
        assert_eq!(
            details.code_and_reason(),
            (Code::InvalidArgument, "INVALID_PAGE_TOKEN")
        );
    }
}

// Rules: LIST-17
#[tokio::test]
async fn filtered_list_reflects_changes_immediately_and_omits_deleted() {
    let server = GrpcTestServer::start().await;
    let mut client = server.client().await;
    let (name, token) = create_running(&server.operations).await;
    let (_, id) = name.as_str().rsplit_once('/').unwrap();
    assert_eq!(list_ids(&mut client, "state = RUNNING", 0).await, [id]);
    server
        .operations
        .succeed(&name, token, string_value("x"))
        .await
        .unwrap();
    assert!(list_ids(&mut client, "state = RUNNING", 0).await.is_empty());
    assert_eq!(list_ids(&mut client, "state = SUCCEEDED", 0).await, [id]);
    let (hidden, _) = create_running(&server.operations).await;
    server.operations.delete(&hidden).await.unwrap();
    server.operations.delete(&name).await.unwrap();
    for filter in [
        "done = false",
        "done = true",
        "state = RUNNING",
        "name:operations",
    ] {
        assert!(
            list_ids(&mut client, filter, 0).await.is_empty(),
            "{filter}"
        );
    }
}

// Rules: FIL-8
#[tokio::test]
async fn unregistered_metadata_matches_only_by_type_url() {
    let server = GrpcTestServer::start().await;
    let new = NewOperation::self_executed("w")
        .id("a")
        .metadata(custom_metadata(1));
    server.operations.create(new).await.unwrap();
    let mut client = server.client().await;
    assert!(list_ids(&mut client, "metadata.x = 1", 0).await.is_empty());
    assert!(
        list_ids(&mut client, "NOT metadata.x = 1", 0)
            .await
            .is_empty()
    );
    let by_type = "metadata.@type = type.googleapis.com/acme.v1.RenderMetadata";
    assert_eq!(list_ids(&mut client, by_type, 0).await, ["a"]);
}
