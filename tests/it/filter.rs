//! ListOperations with a filter (AIP-160), over the wire: the examples of the
//! guide as they are written, errors, pages and what changes meanwhile. The
//! language itself is tested beside its parser and its evaluation.

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
    Client, Server, hold, own_metadata, pending, problem::problem, running, text,
};

fn request(filter: &str) -> ListOperationsRequest {
    ListOperationsRequest {
        filter: filter.into(),
        ..Default::default()
    }
}

/// The ids of a whole list, page by page.
async fn ids(client: &mut Client, filter: &str, page_size: i32) -> Vec<String> {
    let (mut ids, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListOperationsRequest {
            page_size,
            page_token,
            ..request(filter)
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

/// The operations that `docs/filters.md` speaks of.
async fn of_the_guide(operations: &Operations) {
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

    let waits = new(NewOperation::queued("thumbs"), "thumb-1").label("env", "dev");
    operations.create(waits).await.unwrap();

    let runs = new(NewOperation::self_executed("w"), "export-1").label("env", "prod");
    let (name, token) = hold(operations, runs.label("team", "blue")).await;
    operations
        .report(&name, token, progress(60, 100))
        .await
        .unwrap();

    let stops = new(NewOperation::self_executed("w"), "export-2").label("env", "prod");
    let (name, token) = hold(operations, stops).await;
    operations
        .report(&name, token, progress(10, 100))
        .await
        .unwrap();
    operations.cancel(&name).await.unwrap();

    let good = new(NewOperation::self_executed("w"), "import-1").label("env", "prod");
    let (name, token) = hold(operations, good).await;
    operations
        .succeed(&name, token, text("42 rows"))
        .await
        .unwrap();

    let bad = new(NewOperation::self_executed("w"), "import-2").label("env", "dev");
    let (name, token) = hold(operations, bad).await;
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

    let own = new(NewOperation::self_executed("w"), "render-1");
    let json = [("frames", 240.0)];
    let fields: BTreeMap<String, prost_types::Value> = json
        .into_iter()
        .map(|(key, number)| {
            let kind = prost_types::value::Kind::NumberValue(number);
            (key.to_owned(), prost_types::Value { kind: Some(kind) })
        })
        .collect();
    let json = longrunning::Any {
        type_url: "type.googleapis.com/google.protobuf.Struct".into(),
        value: prost_types::Struct { fields }.encode_to_vec(),
    };
    let (name, token) = hold(operations, own.metadata(json)).await;
    operations
        .succeed(&name, token, text("done"))
        .await
        .unwrap();
}

/// The examples of the guide: tables whose first column is a filter in code and
/// whose last one names the operations that it finds, newest first.
fn examples() -> Vec<(String, Vec<String>)> {
    let guide = include_str!("../../docs/filters.md");
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

#[tokio::test]
async fn the_examples_of_the_guide_find_what_it_says() {
    let server = Server::start().await;
    of_the_guide(&server.operations).await;
    let mut client = server.client().await;
    let examples = examples();
    assert!(30 <= examples.len(), "{} examples", examples.len());
    for (filter, expected) in examples {
        assert_eq!(ids(&mut client, &filter, 0).await, expected, "{filter}");
        // Page by page it is the same.
        assert_eq!(ids(&mut client, &filter, 1).await, expected, "{filter}");
    }
}

#[tokio::test]
async fn the_refusals_of_the_guide_are_those_of_the_server() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let guide = include_str!("../../docs/filters.md");
    let rows = guide.lines().filter_map(|line| {
        let (filter, rest) = line.strip_prefix("    ")?.split_once("  →  ")?;
        Some((filter.trim(), rest.trim()))
    });
    let mut count = 0;
    for (filter, message) in rows {
        let problem = problem(client.list_operations(request(filter)).await);
        assert_eq!(
            problem.key(),
            (Code::InvalidArgument, "INVALID_FILTER"),
            "{filter}"
        );
        assert_eq!(problem.message, format!("filter: {message}"), "{filter}");
        count += 1;
    }
    assert!(5 <= count, "{count} refusals");
}

// LIST-11, ERR-2, ERR-4
#[tokio::test]
async fn a_bad_filter_is_an_invalid_argument_with_the_column_and_what_was_expected() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for (filter, column, expected) in [
        ("done = = true", 8, "expected a value"),
        ("foo = 1", 1, "expected one of the fields name, done, error"),
        ("done < true", 1, "no order"),
        ("state = runing", 9, "one of PENDING, RUNNING"),
        ("regex(name, '.*')", 1, "there are no functions"),
    ] {
        let problem = problem(client.list_operations(request(filter)).await);
        assert_eq!(
            problem.key(),
            (Code::InvalidArgument, "INVALID_FILTER"),
            "{filter}"
        );
        assert_eq!(problem.fields[0].0, "filter");
        let start = format!("filter: column {column}: ");
        assert!(problem.message.starts_with(&start), "{}", problem.message);
        assert!(problem.message.contains(expected), "{}", problem.message);
    }
    for hostile in [
        "(".repeat(8000),
        "a ".repeat(4000),
        "x".repeat(100_000),
        "-".repeat(8000),
    ] {
        let problem = problem(client.list_operations(request(&hostile)).await);
        assert_eq!(problem.key(), (Code::InvalidArgument, "INVALID_FILTER"));
    }
}

// LIST-2, LIST-5
#[tokio::test]
async fn pages_of_a_filtered_list_hold_all_of_it_in_order_and_their_tokens_are_bound_to_the_filter()
{
    let server = Server::start().await;
    let mut expected = Vec::new();
    for number in 0..300 {
        let name = pending(&server.operations).await;
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
                ids(&mut client, filter, page_size).await,
                expected,
                "{filter}"
            );
        }
    }
    let first = ListOperationsRequest {
        page_size: 1,
        ..request("done = true")
    };
    let first = client.list_operations(first).await.unwrap().into_inner();
    for other in ["done = false", "done=true", ""] {
        let other = ListOperationsRequest {
            page_token: first.next_page_token.clone(),
            ..request(other)
        };
        let problem = problem(client.list_operations(other).await);
        assert_eq!(problem.key(), (Code::InvalidArgument, "INVALID_PAGE_TOKEN"));
    }
}

#[tokio::test]
async fn a_list_with_a_filter_follows_every_change_at_once_and_shows_nothing_deleted() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let (name, token) = running(&server.operations).await;
    let (_, id) = name.as_str().rsplit_once('/').unwrap();
    assert_eq!(ids(&mut client, "state = RUNNING", 0).await, [id]);
    server
        .operations
        .succeed(&name, token, text("x"))
        .await
        .unwrap();
    assert!(ids(&mut client, "state = RUNNING", 0).await.is_empty());
    assert_eq!(ids(&mut client, "state = SUCCEEDED", 0).await, [id]);
    let (hidden, _) = running(&server.operations).await;
    server.operations.delete(&hidden).await.unwrap();
    server.operations.delete(&name).await.unwrap();
    for filter in [
        "done = false",
        "done = true",
        "state = RUNNING",
        "name:operations",
    ] {
        assert!(ids(&mut client, filter, 0).await.is_empty(), "{filter}");
    }
}

#[tokio::test]
async fn metadata_of_a_type_that_is_not_registered_matches_no_question_but_that_for_its_type() {
    let server = Server::start().await;
    let new = NewOperation::self_executed("w")
        .id("a")
        .metadata(own_metadata(1));
    server.operations.create(new).await.unwrap();
    let mut client = server.client().await;
    assert!(ids(&mut client, "metadata.x = 1", 0).await.is_empty());
    assert!(ids(&mut client, "NOT metadata.x = 1", 0).await.is_empty());
    let by_type = "metadata.@type = type.googleapis.com/acme.v1.RenderMetadata";
    assert_eq!(ids(&mut client, by_type, 0).await, ["a"]);
}
