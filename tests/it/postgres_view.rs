//! Servers that show fewer done operations than PostgreSQL holds. Without one on the
//! machine this says so and does nothing.

use longrunning::{
    OperationName, PostgresOptions, proto::google::longrunning::ListOperationsRequest,
};

use crate::{
    postgres::{MINUTE, finished, list, queued, server},
    support::postgres::schema,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_beyond_the_limit_of_the_view_is_read_from_the_database() {
    let Some(options) = schema() else { return };
    let options = PostgresOptions {
        view_limit: Some(7),
        ..options
    };
    let one = server(&options).await;
    let mut names = Vec::new();
    for at in 0..60 {
        names.push(if at % 5 == 0 {
            queued(&one).await
        } else {
            finished(&one).await
        });
    }
    names.reverse();
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    // One that begins now shows no more than the limit from the first moment on.
    let other = server(&options).await;
    for operations in [&one, &other] {
        for page_size in [1, 7, 60, 0] {
            let request = ListOperationsRequest {
                page_size,
                ..Default::default()
            };
            assert_eq!(
                list(operations, request).await,
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
        assert_eq!(list(operations, filtered("done=true")).await.len(), 48);
        assert_eq!(list(operations, filtered("done=false")).await.len(), 12);
        let elsewhere = ListOperationsRequest {
            name: "projects/p".into(),
            ..Default::default()
        };
        assert!(list(operations, elsewhere).await.is_empty());
    }
    let shown = names.iter().filter(|name| {
        other
            .get(&OperationName::parse(name.as_str()).unwrap())
            .is_ok()
    });
    assert_eq!(shown.count(), 7 + 12);
    for name in &names {
        let name = OperationName::parse(name.as_str()).unwrap();
        let (here, there) = (
            one.look(&name).await.unwrap(),
            other.look(&name).await.unwrap(),
        );
        assert_eq!(here.bytes(), there.bytes());
        if here.is_done() {
            assert_eq!(
                other.wait(&name, MINUTE).await.unwrap().bytes(),
                here.bytes()
            );
            let mut watch = other.watch(&name).await.unwrap();
            let seen = watch.next().await.unwrap().unwrap();
            assert_eq!(seen.bytes(), here.bytes());
            assert!(watch.next().await.is_none());
            assert!(other.cancel(&name).await.unwrap().is_done());
            other.delete(&name).await.unwrap();
            assert_eq!(
                other.look(&name).await.unwrap_err().reason(),
                "OPERATION_NOT_FOUND"
            );
        }
    }
    assert_eq!(
        list(&other, ListOperationsRequest::default()).await.len(),
        12
    );
}
