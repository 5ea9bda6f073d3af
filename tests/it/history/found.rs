//! What histories have shown to be wrong, each as small as it can be.

use longrunning::{Entry, Journal, NewOperation, Operations, PostgresJournal, Then, Unkept};
use tokio::sync::oneshot;

use crate::support::{
    postgres::{journal, schema},
    table::Table,
};

async fn append(journal: &PostgresJournal, entry: Entry) -> Result<(), Unkept> {
    let (tell, told) = oneshot::channel();
    let then = Then::new(move |kept| tell.send(kept).expect("somebody waits"));
    journal.append(entry, then);
    told.await.unwrap()
}

// Two ends of an operation that was deleted were both acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_servers_that_let_go_of_an_operation_one_is_told_that_it_is_gone() {
    let Some(options) = schema() else { return };
    let (one, other) = (journal(&options).await, journal(&options).await);
    let maker = Operations::builder().start().await.unwrap();
    let made = maker.create(NewOperation::queued("jobs")).await.unwrap();
    append(&one, Entry::Put(made.operation.clone()))
        .await
        .unwrap();
    append(&one, Entry::Forget(made.operation.clone()))
        .await
        .unwrap();
    let late = append(&other, Entry::Forget(made.operation)).await;
    assert!(matches!(late, Err(Unkept::Stale(None))), "{late:?}");
}

#[tokio::test]
async fn a_server_that_has_nothing_to_change_knows_that_the_operation_is_gone() {
    let table = Table::default();
    let (one, mut other) = (table.replica().await, table.replica().await);
    let made = one
        .operations
        .create(NewOperation::queued("jobs"))
        .await
        .unwrap();
    let name = made.operation.owned_name();
    one.operations.cancel(&name).await.unwrap();
    other.catch_up().await;
    other.reads(false);
    one.operations.delete(&name).await.unwrap();
    // It is done, as far as the other server knows, so that nothing is to be done.
    let late = other.operations.cancel(&name).await;
    assert_eq!(late.unwrap_err().reason(), "OPERATION_NOT_FOUND");
}
