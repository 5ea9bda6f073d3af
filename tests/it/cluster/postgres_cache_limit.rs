//! Servers whose cache limit evicts done operations. Skipped with a notice if
//! PostgreSQL is not installed.

use longrunning::{OperationName, proto::google::longrunning::ListOperationsRequest};

use super::{
    MINUTE, create_queued,
    postgres::{list_names, start_server},
};
use crate::support::{create_succeeded, postgres::test_config};

// Rules: CLU-13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_beyond_cache_limit_are_read_from_database() {
    let Some(config) = test_config() else { return };
    let config = config.with_cache_limit(7);
    let server_a = start_server(&config).await;
    let mut names = Vec::new();
    for index in 0..60 {
        names.push(if index % 5 == 0 {
            create_queued(&server_a).await
        } else {
            create_succeeded(&server_a).await
        });
    }
    names.reverse();
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    // A new server applies the limit while it loads.
    let server_b = start_server(&config).await;
    for operations in [&server_a, &server_b] {
        for page_size in [1, 7, 60, 0] {
            let request = ListOperationsRequest {
                page_size,
                ..Default::default()
            };
            assert_eq!(
                list_names(operations, request).await,
                names,
                "pages of {page_size}"
            );
        }
        let filtered = |filter: &str| ListOperationsRequest {
            name: "operations".into(),
            filter: filter.into(),
            page_size: 3,
            ..Default::default()
        };
        assert_eq!(
            list_names(operations, filtered("done=true")).await.len(),
            48
        );
        assert_eq!(
            list_names(operations, filtered("done=false")).await.len(),
            12
        );
        let other_parent_request = ListOperationsRequest {
            name: "projects/p".into(),
            ..Default::default()
        };
        assert!(
            list_names(operations, other_parent_request)
                .await
                .is_empty()
        );
    }
    let cached = names.iter().filter(|name| {
        server_b
            .get_cached(&OperationName::parse(name.as_str()).unwrap())
            .is_ok()
    });
    assert_eq!(cached.count(), 7 + 12);
    for name in &names {
        let name = OperationName::parse(name.as_str()).unwrap();
        let (first, second) = (
            server_a.get(&name).await.unwrap(),
            server_b.get(&name).await.unwrap(),
        );
        assert_eq!(first.bytes(), second.bytes());
        if first.is_done() {
            assert_eq!(
                server_b.wait(&name, MINUTE).await.unwrap().bytes(),
                first.bytes()
            );
            let mut watch = server_b.watch(&name).await.unwrap();
            let watched = watch.next().await.unwrap().unwrap();
            assert_eq!(watched.bytes(), first.bytes());
            assert!(watch.next().await.is_none());
            assert!(server_b.cancel(&name).await.unwrap().is_done());
            server_b.delete(&name).await.unwrap();
            assert_eq!(
                server_b.get(&name).await.unwrap_err().reason(),
                "OPERATION_NOT_FOUND"
            );
        }
    }
    assert_eq!(
        list_names(&server_b, ListOperationsRequest::default())
            .await
            .len(),
        12
    );
}
