//! Nothing is shown before the journal has kept it, and what has begun goes to
//! its end. What a restart makes of it is in `recovery`.

use longrunning::{
    Error, NewOperation, Operations, QueueName, Report, Stage, WorkerId, proto::google::rpc::Code,
};

use crate::support::{
    journal::{Gate, TestJournal},
    pending, progress, running, succeeded, text,
};

async fn start(journal: &TestJournal) -> Operations {
    crate::support::operations()
        .journal(journal.clone())
        .start()
        .await
        .unwrap()
}

fn queue() -> QueueName {
    QueueName::parse("nobody").unwrap()
}

#[tokio::test]
async fn nothing_is_visible_before_the_journal_has_kept_it() {
    let journal = TestJournal::new();
    let operations = start(&journal).await;
    let (name, token) = running(&operations).await;
    let before = operations.get(&name).unwrap();
    let mut watch = operations.watch(&name).await.unwrap();
    watch.next().await.unwrap().unwrap();

    journal.set(Gate::Shut);
    let new = NewOperation::queued("nobody").id("new");
    let mut create = Box::pin(operations.create(new));
    let mut succeed = Box::pin(operations.succeed(&name, token, text("done")));
    assert!(futures_util::poll!(create.as_mut()).is_pending());
    assert!(futures_util::poll!(succeed.as_mut()).is_pending());
    journal.begun(3).await;
    assert_eq!(operations.get(&name).unwrap().bytes(), before.bytes());
    assert!(operations.get(&"operations/new".parse().unwrap()).is_err());
    assert_eq!(
        operations
            .list(&Default::default())
            .await
            .unwrap()
            .operations
            .len(),
        1
    );
    assert!(futures_util::poll!(Box::pin(watch.next())).is_pending());
    let worker = WorkerId::new("w");
    let queue = queue();
    let mut lease = Box::pin(operations.lease(&queue, &worker));
    assert!(futures_util::poll!(lease.as_mut()).is_pending());

    journal.set(Gate::Open);
    assert_eq!(create.await.unwrap().operation.name(), "operations/new");
    assert!(succeed.await.unwrap().is_done());
    assert!(watch.next().await.unwrap().unwrap().is_done());
    assert_eq!(lease.await.unwrap().name(), "operations/new");
}

#[tokio::test]
async fn a_change_that_cannot_be_kept_is_refused_and_changes_nothing() {
    let journal = TestJournal::new();
    let operations = start(&journal).await;
    let (runs, token) = running(&operations).await;
    let waits = pending(&operations).await;
    let done = succeeded(&operations).await;
    let seen = |name| operations.get(name).unwrap();
    let before =
        [&runs, &waits, &done].map(|name| (seen(name).bytes().to_vec(), seen(name).revision()));
    let log = journal.log();

    journal.set(Gate::Broken);
    let report = Report {
        progress: Some(progress(1)),
        ..Report::default()
    };
    let create = NewOperation::queued("nobody").request_id("r").id("new");
    let refused = [
        operations
            .create(create.clone())
            .await
            .map(|created| created.operation),
        operations.cancel(&runs).await,
        operations.cancel(&waits).await,
        operations.report(&runs, token, report).await,
        operations.renew(&runs, token).await,
        operations.release(&runs, token).await,
        operations.succeed(&runs, token, text("x")).await,
        operations.lease(&queue(), &WorkerId::new("w")).await,
    ];
    for refused in refused {
        assert_eq!(refused.unwrap_err(), Error::StoreUnavailable);
    }
    for name in [&runs, &waits, &done] {
        assert_eq!(
            operations.delete(name).await.unwrap_err(),
            Error::StoreUnavailable
        );
    }
    let after =
        [&runs, &waits, &done].map(|name| (seen(name).bytes().to_vec(), seen(name).revision()));
    assert_eq!(after, before);
    assert_eq!(journal.log(), log);

    // And afterwards everything goes on: no place is lost, no id is taken.
    journal.set(Gate::Open);
    let leased = operations
        .lease(&queue(), &WorkerId::new("w"))
        .await
        .unwrap();
    assert_eq!(leased.owned_name(), waits);
    assert!(!operations.create(create).await.unwrap().reused);
    operations.succeed(&runs, token, text("x")).await.unwrap();
}

#[tokio::test]
async fn a_caller_that_goes_away_in_the_middle_does_not_lose_the_change() {
    let journal = TestJournal::new();
    let operations = start(&journal).await;
    let (name, token) = running(&operations).await;
    journal.set(Gate::Shut);
    let new = NewOperation::queued("nobody").id("new");
    let mut create = Box::pin(operations.create(new));
    let mut succeed = Box::pin(operations.succeed(&name, token, text("done")));
    assert!(futures_util::poll!(create.as_mut()).is_pending());
    assert!(futures_util::poll!(succeed.as_mut()).is_pending());
    journal.begun(3).await;
    drop((create, succeed));
    journal.set(Gate::Open);
    let done = operations
        .wait(&name, std::time::Duration::from_secs(60))
        .await
        .unwrap();
    assert!(done.is_done());
    let leased = operations
        .lease(&queue(), &WorkerId::new("w"))
        .await
        .unwrap();
    assert_eq!(leased.name(), "operations/new");
}

#[tokio::test]
async fn changes_of_one_operation_are_appended_one_after_the_other() {
    let journal = TestJournal::new();
    let operations = start(&journal).await;
    let (name, token) = running(&operations).await;
    journal.set(Gate::Shut);
    let mut reports: Vec<_> = (1..=5)
        .map(|done| {
            let report = Report {
                progress: Some(progress(done)),
                ..Report::default()
            };
            Box::pin(operations.report(&name, token, report))
        })
        .collect();
    for report in &mut reports {
        assert!(futures_util::poll!(report.as_mut()).is_pending());
    }
    journal.begun(2).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(journal.count(), 2, "the second append waits for the first");
    journal.set(Gate::Open);
    for report in reports {
        report.await.unwrap();
    }
    let revisions: Vec<_> = (0..=5).map(|n| format!("put {name} r{n}")).collect();
    assert_eq!(journal.log(), revisions);
    assert_eq!(
        operations
            .get(&name)
            .unwrap()
            .progress()
            .unwrap()
            .done_units,
        5
    );
}

#[tokio::test]
async fn a_done_operation_that_is_deleted_or_expires_is_forgotten_by_the_journal_too() {
    let journal = TestJournal::new();
    let operations = start(&journal).await;
    let name = succeeded(&operations).await;
    operations.delete(&name).await.unwrap();
    assert_eq!(journal.log().last().unwrap(), &format!("forget {name}"));
    let (name, token) = running(&operations).await;
    operations.delete(&name).await.unwrap();
    assert!(
        journal.log().last().unwrap().starts_with("put"),
        "it still runs"
    );
    operations
        .succeed(&name, token, text("unseen"))
        .await
        .unwrap();
    assert_eq!(journal.log().last().unwrap(), &format!("forget {name}"));
}

// BEHAVIOUR §5: who asks for a lease and leaves before the answer has no lease.
#[tokio::test]
async fn a_lease_that_nobody_waits_for_any_more_goes_back_to_its_queue() {
    let journal = TestJournal::new();
    let operations = start(&journal).await;
    let name = pending(&operations).await;
    journal.set(Gate::Shut);
    let (queue, worker) = (queue(), WorkerId::new("gone"));
    let mut lease = Box::pin(operations.lease(&queue, &worker));
    assert!(futures_util::poll!(lease.as_mut()).is_pending());
    journal.begun(2).await;
    drop(lease);
    journal.set(Gate::Open);
    // Somebody else gets it now, and not after the lease of a worker that is gone.
    let other = WorkerId::new("here");
    let leased = operations.lease(&queue, &other);
    let leased = tokio::time::timeout(std::time::Duration::from_secs(60), leased).await;
    let leased = leased.expect("the operation is free").unwrap();
    assert_eq!(leased.owned_name(), name);
    assert_eq!(leased.lease().unwrap().holder, other);
}

// BEHAVIOUR §9
#[tokio::test]
async fn a_journal_that_cannot_be_read_keeps_the_server_from_starting() {
    struct Unreadable;
    impl longrunning::Journal for Unreadable {
        fn replay(
            &self,
            _: longrunning::Show,
        ) -> longrunning::BoxFuture<'_, Result<(), longrunning::JournalError>> {
            Box::pin(std::future::ready(Err(longrunning::JournalError(
                "damaged".into(),
            ))))
        }

        fn append(&self, _: longrunning::Entry, then: longrunning::Then) {
            then.call(Ok(()));
        }
    }
    let refused = crate::support::operations()
        .journal(Unreadable)
        .start()
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("damaged"));
}

// BEHAVIOUR §5: a short trouble of the store costs a handler nothing.
#[tokio::test(start_paused = true)]
async fn a_report_that_could_not_be_kept_is_tried_again_with_the_next_renewal() {
    let journal = TestJournal::new();
    let (started, mut starts) = tokio::sync::mpsc::channel(1);
    let handler = move |context: longrunning::Context| {
        let started = started.clone();
        async move {
            started.send(context).await.unwrap();
            std::future::pending::<Result<longrunning::Any, longrunning::Failure>>().await
        }
    };
    let builder = crate::support::operations().journal(journal.clone());
    let operations = builder.handler("q", 1, handler).start().await.unwrap();
    let name = operations.submit("q", text("")).await.unwrap().owned_name();
    let context = starts.recv().await.unwrap();
    journal.set(Gate::Broken);
    context.keep_checkpoint(text("row 7")).unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert!(operations.get(&name).unwrap().checkpoint().is_none());
    journal.set(Gate::Open);
    tokio::time::sleep(std::time::Duration::from_secs(20)).await;
    let kept = operations.get(&name).unwrap();
    assert_eq!(
        kept.checkpoint().map(|kept| kept.any().clone()),
        Some(text("row 7"))
    );
}

// BEHAVIOUR §5: an outcome waits for the store, as long as the lease lasts.
#[tokio::test(start_paused = true)]
async fn an_outcome_that_could_not_be_kept_is_tried_again_until_it_can() {
    let journal = TestJournal::new();
    let finish = std::sync::Arc::new(tokio::sync::Notify::new());
    let handler = {
        let finish = finish.clone();
        move |_: longrunning::Context| {
            let finish = finish.clone();
            async move {
                finish.notified().await;
                Ok::<_, longrunning::Failure>(text("precious"))
            }
        }
    };
    let builder = crate::support::operations().journal(journal.clone());
    let operations = builder.handler("q", 1, handler).start().await.unwrap();
    let name = operations.submit("q", text("")).await.unwrap().owned_name();
    journal.begun(2).await;
    journal.set(Gate::Broken);
    finish.notify_one();
    tokio::time::sleep(std::time::Duration::from_secs(15)).await;
    assert!(!operations.get(&name).unwrap().is_done());
    journal.set(Gate::Open);
    let done = operations
        .wait(&name, std::time::Duration::from_secs(5))
        .await
        .unwrap();
    assert_eq!(crate::support::response(&done.to_proto()), text("precious"));
}

// A time that passes is a change like any other.
#[tokio::test(start_paused = true)]
async fn a_timeout_that_cannot_be_kept_is_tried_again_until_it_can() {
    let journal = TestJournal::new();
    let operations = start(&journal).await;
    let new = NewOperation::self_executed("w").total_timeout(std::time::Duration::from_secs(10));
    let name = operations.create(new).await.unwrap().operation.owned_name();
    journal.set(Gate::Broken);
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert!(matches!(
        operations.get(&name).unwrap().stage(),
        Stage::Running(_)
    ));
    journal.set(Gate::Open);
    let done = operations
        .wait(&name, std::time::Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(
        crate::support::error(&done.to_proto()).code,
        Code::DeadlineExceeded as i32
    );
}
