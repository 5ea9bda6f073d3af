//! Pages of ListOperations (AIP-158): no operation is skipped or repeated, and no page
//! is too large.

use std::collections::HashSet;

use longrunning::{
    NewOperation, OperationName, Operations,
    proto::google::longrunning::{
        ListOperationsRequest, ListOperationsResponse, Operation,
        operations_client::OperationsClient,
    },
};
use prost::Message;
use tonic::Code;

use crate::support::{
    GrpcClient, GrpcTestServer, create_pending, create_running, error_details::expect_status_error,
    operations::page_request, string_value,
};

async fn fetch_page(
    client: &mut GrpcClient,
    request: ListOperationsRequest,
) -> ListOperationsResponse {
    client.list_operations(request).await.unwrap().into_inner()
}

/// Fetches all pages with the same `page_size`.
async fn fetch_all_pages(
    client: &mut GrpcClient,
    name: &str,
    page_size: i32,
) -> Vec<Vec<Operation>> {
    let (mut pages, mut token) = (Vec::new(), String::new());
    loop {
        let page = fetch_page(client, page_request(name, page_size, &token)).await;
        pages.push(page.operations);
        if page.next_page_token.is_empty() {
            return pages;
        }
        assert_ne!(page.next_page_token, token, "expected a new page token");
        token = page.next_page_token;
    }
}

async fn create_operations(operations: &Operations, count: usize) -> Vec<OperationName> {
    let mut names = Vec::new();
    for _ in 0..count {
        names.push(create_pending(operations).await);
    }
    names
}

fn flatten_names(pages: &[Vec<Operation>]) -> Vec<String> {
    pages
        .iter()
        .flatten()
        .map(|operation| operation.name.clone())
        .collect()
}

// Rules: LIST-1
#[tokio::test]
async fn page_size_0_is_100_and_above_1000_is_1000_and_negative_is_invalid() {
    let server = GrpcTestServer::start().await;
    create_operations(&server.operations, 1050).await;
    let mut client = server.client().await;
    for (size, count) in [
        (0, 100),
        (1, 1),
        (999, 999),
        (1000, 1000),
        (1001, 1000),
        (i32::MAX, 1000),
    ] {
        let page = fetch_page(&mut client, page_request("", size, "")).await;
        assert_eq!(page.operations.len(), count, "{size}");
        assert!(!page.next_page_token.is_empty());
    }
    for size in [-1, i32::MIN] {
        let details = expect_status_error(client.list_operations(page_request("", size, "")).await);
        assert_eq!(
            details.code_and_reason(),
            (Code::InvalidArgument, "INVALID_PAGE_SIZE")
        );
    }
}

// Rules: LIST-2
#[tokio::test]
async fn page_token_is_empty_only_on_last_page() {
    let server = GrpcTestServer::start().await;
    let mut client = server.client().await;
    let empty = fetch_page(&mut client, page_request("", 3, "")).await;
    assert_eq!(empty, ListOperationsResponse::default());
    for count in 1..=9 {
        create_pending(&server.operations).await;
        for size in 1..=9_i32 {
            let pages = fetch_all_pages(&mut client, "", size).await;
            let size = usize::try_from(size).unwrap();
            assert_eq!(
                pages.len(),
                usize::div_ceil(count, size),
                "{count} in pages of {size}"
            );
            assert!(pages.iter().all(|page| !page.is_empty()));
            assert_eq!(flatten_names(&pages).len(), count);
        }
    }
}

// Rules: LIST-3
#[tokio::test]
async fn page_token_is_url_safe_and_opaque() {
    let server = GrpcTestServer::start().await;
    let names = create_operations(&server.operations, 50).await;
    let mut client = server.client().await;
    let mut tokens = HashSet::new();
    for size in 1..50 {
        let token = fetch_page(&mut client, page_request("", size, ""))
            .await
            .next_page_token;
        assert!(
            token
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        );
        let decoded = decode_base64_lossy(&token);
        for name in &names {
            let id = name.as_str().strip_prefix("operations/").unwrap();
            assert!(!decoded.contains(id) && !token.contains(id));
        }
        assert!(tokens.insert(token));
    }
}

/// Decodes a page token as a client could that looks for a meaning in it.
fn decode_base64_lossy(token: &str) -> String {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(token)
        .unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

// Rules: LIST-4
#[tokio::test]
async fn page_size_may_change_between_pages() {
    let server = GrpcTestServer::start().await;
    let names = create_operations(&server.operations, 10).await;
    let mut client = server.client().await;
    let (mut seen, mut token) = (Vec::new(), String::new());
    for (size, count) in [(2, 2), (5, 5), (1, 1), (0, 2)] {
        let page = fetch_page(&mut client, page_request("", size, &token)).await;
        assert_eq!(page.operations.len(), count);
        seen.extend(page.operations.into_iter().map(|operation| operation.name));
        token = page.next_page_token;
    }
    assert!(token.is_empty());
    assert!(
        seen.iter()
            .eq(names.iter().rev().map(OperationName::as_str))
    );
}

// Rules: LIST-5, LIST-6
#[tokio::test]
async fn page_token_is_bound_to_list_name_and_filter() {
    let server = GrpcTestServer::start().await;
    create_operations(&server.operations, 3).await;
    for _ in 0..3 {
        let new = NewOperation::queued("q").parent("projects/p");
        server.operations.create(new).await.unwrap();
    }
    let mut client = server.client().await;
    let scopes = [
        "",
        "-",
        "operations",
        "projects/p",
        "projects/p/operations",
        "projects/-",
    ];
    for token_scope in scopes {
        let token = fetch_page(&mut client, page_request(token_scope, 1, ""))
            .await
            .next_page_token;
        for list_scope in scopes {
            let result = client
                .list_operations(page_request(list_scope, 1, &token))
                .await;
            if token_scope == list_scope {
                assert_eq!(result.unwrap().into_inner().operations.len(), 1);
            } else {
                let details = expect_status_error(result);
                assert_eq!(
                    details.code_and_reason(),
                    (Code::InvalidArgument, "INVALID_PAGE_TOKEN")
                );
            }
        }
        let filter = ListOperationsRequest {
            filter: " ".into(),
            ..page_request(token_scope, 1, &token)
        };
        let details = expect_status_error(client.list_operations(filter).await);
        assert_eq!(
            details.code_and_reason(),
            (Code::InvalidArgument, "INVALID_PAGE_TOKEN")
        );
    }
}

// Rules: LIST-7
#[tokio::test]
async fn unknown_or_modified_page_token_is_invalid() {
    let server = GrpcTestServer::start().await;
    create_operations(&server.operations, 3).await;
    let mut client = server.client().await;
    let good = fetch_page(&mut client, page_request("", 1, ""))
        .await
        .next_page_token;
    let mut bad: Vec<String> = [
        "x",
        "AAAA",
        "====",
        "é",
        "eyJvZmZzZXQiOjF9",
        "\0",
        "operations/x",
    ]
    .map(str::to_owned)
    .into();
    bad.push("A".repeat(22));
    bad.push("A".repeat(100_000));
    bad.push(format!("{good}A"));
    bad.push(good[1..].to_owned());
    bad.push(format!(" {good}"));
    for index in 0..good.len() {
        let other = if good.as_bytes()[index] == b'A' {
            "B"
        } else {
            "A"
        };
        let mut changed = good.clone();
        changed.replace_range(index..=index, other);
        bad.push(changed);
    }
    for token in bad {
        let details =
            expect_status_error(client.list_operations(page_request("", 1, &token)).await);
        assert_eq!(
            details.code_and_reason(),
            (Code::InvalidArgument, "INVALID_PAGE_TOKEN"),
            "{token:?}"
        );
    }
    fetch_page(&mut client, page_request("", 1, &good)).await;
}

// Rules: LIST-8
#[tokio::test]
async fn deletes_and_inserts_between_pages_cause_no_gaps_or_duplicates() {
    let server = GrpcTestServer::start().await;
    let names = create_operations(&server.operations, 30).await;
    let mut client = server.client().await;
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = fetch_page(&mut client, page_request("operations", 4, &token)).await;
        let listed: Vec<String> = page
            .operations
            .into_iter()
            .map(|operation| operation.name)
            .collect();
        // Delete every listed operation, including the one that the token points at,
        // and create new ones, which belong before the first page.
        for name in &listed {
            let name = name.parse().unwrap();
            server.operations.cancel(&name).await.unwrap();
            server.operations.delete(&name).await.unwrap();
        }
        create_operations(&server.operations, 3).await;
        seen.extend(listed);
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert!(
        seen.iter()
            .eq(names.iter().rev().map(OperationName::as_str))
    );
}

// Also if the first operations of the next page were deleted.
// Rules: LIST-8
#[tokio::test]
async fn page_token_pointing_at_deleted_operations_continues_list() {
    let server = GrpcTestServer::start().await;
    let names = create_operations(&server.operations, 6).await;
    let mut client = server.client().await;
    let token = fetch_page(&mut client, page_request("", 2, ""))
        .await
        .next_page_token;
    for name in &names[2..4] {
        server.operations.delete(name).await.unwrap();
    }
    let rest = fetch_page(&mut client, page_request("", 2, &token)).await;
    assert_eq!(rest.operations[0].name, names[1].as_str());
    assert_eq!(rest.operations[1].name, names[0].as_str());
    assert!(rest.next_page_token.is_empty());
}

// Rules: LIST-15
#[tokio::test]
async fn page_stays_below_3_mib_for_default_clients() {
    let server = GrpcTestServer::start().await;
    let large = string_value(&"x".repeat(1_000_000));
    for _ in 0..7 {
        let (name, token) = create_running(&server.operations).await;
        server
            .operations
            .succeed(&name, token, large.clone())
            .await
            .unwrap();
    }
    // A client with default settings rejects messages above 4 MiB.
    let mut client = OperationsClient::new(server.channel().await);
    let (mut counts, mut token) = (Vec::new(), String::new());
    loop {
        let page = client
            .list_operations(page_request("", 1000, &token))
            .await
            .unwrap()
            .into_inner();
        assert!(page.encoded_len() <= 3 << 20);
        counts.push(page.operations.len());
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(counts, [3, 3, 1]);
}

// A wildcard list of few matches among many other parents ends, with short pages.
// Rules: LIST-10
#[tokio::test]
async fn wildcard_list_finds_few_matches_among_45000_operations() {
    let server = GrpcTestServer::start().await;
    let operations = &server.operations;
    let rare = |id: &str| NewOperation::queued("q").parent("rare/r").id(id);
    operations.create(rare("old")).await.unwrap();
    for _ in 0..45_000 {
        operations
            .create(NewOperation::self_executed("w"))
            .await
            .unwrap();
    }
    operations.create(rare("new")).await.unwrap();
    let mut client = server.client().await;
    let pages = fetch_all_pages(&mut client, "rare/-", 10).await;
    assert_eq!(
        flatten_names(&pages),
        ["rare/r/operations/new", "rare/r/operations/old"]
    );
    assert!(pages.len() <= 4);
}
