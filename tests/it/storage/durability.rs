//! A change becomes visible only after it is durable, and a write that was started
//! completes even if its caller is dropped.

use longrunning::{
    Error, NewOperation, Operations, QueueName, Report, State, WorkerId, proto::google::rpc::Code,
};

use crate::support::{
    create_pending, create_running, create_succeeded, progress, string_value,
    test_storage::{TestStorage, WriteMode},
};

async fn start(storage: &TestStorage) -> Operations {
    crate::support::operations_builder()
        .storage(storage.clone())
        .start()
        .await
        .unwrap()
}

fn queue() -> QueueName {
    QueueName::parse("idle").unwrap()
}

// Rules: DUR-2
#[tokio::test]
async fn change_is_invisible_until_it_is_durable() {
    let storage = TestStorage::new();
    let operations = start(&storage).await;
    let (name, token) = create_running(&operations).await;
    let before = operations.get_cached(&name).unwrap();
    let mut watch = operations.watch(&name).await.unwrap();
    watch.next().await.unwrap().unwrap();

    storage.set_write_mode(WriteMode::Hold);
    let new = NewOperation::queued("idle").id("new");
    let mut create = Box::pin(operations.create(new));
    let mut succeed = Box::pin(operations.succeed(&name, token, string_value("done")));
    assert!(futures_util::poll!(create.as_mut()).is_pending());
    assert!(futures_util::poll!(succeed.as_mut()).is_pending());
    storage.wait_for_started_writes(3).await;
    assert_eq!(
        operations.get_cached(&name).unwrap().bytes(),
        before.bytes()
    );
    assert!(
        operations
            .get_cached(&"operations/new".parse().unwrap())
            .is_err()
    );
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

    storage.set_write_mode(WriteMode::Succeed);
    assert_eq!(create.await.unwrap().operation.name(), "operations/new");
    assert!(succeed.await.unwrap().is_done());
    assert!(watch.next().await.unwrap().unwrap().is_done());
    assert_eq!(lease.await.unwrap().name(), "operations/new");
}

// Rules: DUR-3
#[tokio::test]
async fn failed_write_is_rejected_and_changes_nothing() {
    let storage = TestStorage::new();
    let operations = start(&storage).await;
    let (running, token) = create_running(&operations).await;
    let pending = create_pending(&operations).await;
    let done = create_succeeded(&operations).await;
    let current = |name| operations.get_cached(name).unwrap();
    let before = [&running, &pending, &done]
        .map(|name| (current(name).bytes().to_vec(), current(name).revision()));
    let log = storage.write_log();

    storage.set_write_mode(WriteMode::Fail);
    let report = Report {
        progress: Some(progress(1)),
        ..Report::default()
    };
    let create = NewOperation::queued("idle").request_id("r").id("new");
    let results = [
        operations
            .create(create.clone())
            .await
            .map(|created| created.operation),
        operations.cancel(&running).await,
        operations.cancel(&pending).await,
        operations.report(&running, token, report).await,
        operations.renew(&running, token).await,
        operations.release(&running, token).await,
        operations.succeed(&running, token, string_value("x")).await,
        operations.lease(&queue(), &WorkerId::new("w")).await,
    ];
    for result in results {
        assert_eq!(result.unwrap_err(), Error::StoreUnavailable);
    }
    for name in [&running, &pending, &done] {
        assert_eq!(
            operations.delete(name).await.unwrap_err(),
            Error::StoreUnavailable
        );
    }
    let after = [&running, &pending, &done]
        .map(|name| (current(name).bytes().to_vec(), current(name).revision()));
    assert_eq!(after, before);
    assert_eq!(storage.write_log(), log);

    // Failed writes leak neither queue positions nor ids.
    storage.set_write_mode(WriteMode::Succeed);
    let leased = operations
        .lease(&queue(), &WorkerId::new("w"))
        .await
        .unwrap();
    assert_eq!(leased.name_owned(), pending);
    assert!(!operations.create(create).await.unwrap().already_existed);
    operations
        .succeed(&running, token, string_value("x"))
        .await
        .unwrap();
}

// Rules: DUR-3
#[tokio::test]
async fn dropped_caller_does_not_abort_its_write() {
    let storage = TestStorage::new();
    let operations = start(&storage).await;
    let (name, token) = create_running(&operations).await;
    storage.set_write_mode(WriteMode::Hold);
    let new = NewOperation::queued("idle").id("new");
    let mut create = Box::pin(operations.create(new));
    let mut succeed = Box::pin(operations.succeed(&name, token, string_value("done")));
    assert!(futures_util::poll!(create.as_mut()).is_pending());
    assert!(futures_util::poll!(succeed.as_mut()).is_pending());
    storage.wait_for_started_writes(3).await;
    drop((create, succeed));
    storage.set_write_mode(WriteMode::Succeed);
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

// Rules: DUR-4
#[tokio::test]
async fn writes_of_one_operation_are_serialized() {
    let storage = TestStorage::new();
    let operations = start(&storage).await;
    let (name, token) = create_running(&operations).await;
    storage.set_write_mode(WriteMode::Hold);
    let mut reports: Vec<_> = (1..=5)
        .map(|done_units| {
            let report = Report {
                progress: Some(progress(done_units)),
                ..Report::default()
            };
            Box::pin(operations.report(&name, token, report))
        })
        .collect();
    for report in &mut reports {
        assert!(futures_util::poll!(report.as_mut()).is_pending());
    }
    storage.wait_for_started_writes(2).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        storage.started_writes(),
        2,
        "expected the second write to wait for the first"
    );
    storage.set_write_mode(WriteMode::Succeed);
    for report in reports {
        report.await.unwrap();
    }
    let revisions: Vec<_> = (0..=5).map(|n| format!("put {name} r{n}")).collect();
    assert_eq!(storage.write_log(), revisions);
    assert_eq!(
        operations
            .get_cached(&name)
            .unwrap()
            .progress()
            .unwrap()
            .done_units,
        5
    );
}

// Rules: DEL-1
#[tokio::test]
async fn deleted_operation_is_removed_from_storage_once_done() {
    let storage = TestStorage::new();
    let operations = start(&storage).await;
    let name = create_succeeded(&operations).await;
    operations.delete(&name).await.unwrap();
    assert_eq!(
        storage.write_log().last().unwrap(),
        &format!("delete {name}")
    );
    let (name, token) = create_running(&operations).await;
    operations.delete(&name).await.unwrap();
    assert!(
        storage.write_log().last().unwrap().starts_with("put"),
        "expected a running operation to stay in storage"
    );
    operations
        .succeed(&name, token, string_value("unseen"))
        .await
        .unwrap();
    assert_eq!(
        storage.write_log().last().unwrap(),
        &format!("delete {name}")
    );
}

// A lease request that is dropped before its response leaves no lease.
// Rules: LEASE-5
#[tokio::test]
async fn abandoned_lease_request_returns_operation_to_queue() {
    let storage = TestStorage::new();
    let operations = start(&storage).await;
    let name = create_pending(&operations).await;
    storage.set_write_mode(WriteMode::Hold);
    let (queue, worker) = (queue(), WorkerId::new("gone"));
    let mut lease = Box::pin(operations.lease(&queue, &worker));
    assert!(futures_util::poll!(lease.as_mut()).is_pending());
    storage.wait_for_started_writes(2).await;
    drop(lease);
    storage.set_write_mode(WriteMode::Succeed);
    // Another worker gets it at once, not after the lease of the first has expired.
    let other_worker = WorkerId::new("here");
    let leased = operations.lease(&queue, &other_worker);
    let leased = tokio::time::timeout(std::time::Duration::from_secs(60), leased).await;
    let leased = leased
        .expect("expected the operation to be leasable")
        .unwrap();
    assert_eq!(leased.name_owned(), name);
    assert_eq!(leased.lease().unwrap().holder, other_worker);
}

// Rules: DUR-8
#[tokio::test]
async fn unreadable_storage_prevents_server_start() {
    #[derive(Debug)]
    struct UnreadableStorage;
    impl longrunning::Storage for UnreadableStorage {
        fn load(
            &self,
            _: longrunning::LoadSink,
        ) -> futures_util::future::BoxFuture<'_, Result<(), longrunning::StorageError>> {
            Box::pin(std::future::ready(Err(longrunning::StorageError::new(
                longrunning::StorageErrorKind::Unavailable,
                "damaged",
            ))))
        }

        fn write(&self, _: longrunning::Write, completion: longrunning::Completion) {
            completion.complete(Ok(()));
        }
    }
    let error = crate::support::operations_builder()
        .storage(UnreadableStorage)
        .start()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("damaged"));
}

// A short storage failure does not affect a handler.
// Rules: HANDLER-6
#[tokio::test(start_paused = true)]
async fn report_that_failed_to_write_is_retried_with_next_renewal() {
    let storage = TestStorage::new();
    let (context_sender, mut context_receiver) = tokio::sync::mpsc::channel(1);
    let handler = move |context: longrunning::Context| {
        let started = context_sender.clone();
        async move {
            started.send(context).await.unwrap();
            std::future::pending::<Result<longrunning::Any, longrunning::Failure>>().await
        }
    };
    let builder = crate::support::operations_builder().storage(storage.clone());
    let operations = builder.handler("q", 1, handler).start().await.unwrap();
    let name = operations
        .submit("q", string_value(""))
        .await
        .unwrap()
        .name_owned();
    let context = context_receiver.recv().await.unwrap();
    storage.set_write_mode(WriteMode::Fail);
    context.save_checkpoint(string_value("row 7")).unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert!(operations.get_cached(&name).unwrap().checkpoint().is_none());
    storage.set_write_mode(WriteMode::Succeed);
    tokio::time::sleep(std::time::Duration::from_secs(20)).await;
    let operation = operations.get_cached(&name).unwrap();
    assert_eq!(
        operation
            .checkpoint()
            .map(|checkpoint| checkpoint.any().clone()),
        Some(string_value("row 7"))
    );
}

// An outcome is retried for as long as the lease lasts.
// Rules: HANDLER-6
#[tokio::test(start_paused = true)]
async fn outcome_that_failed_to_write_is_retried_until_it_succeeds() {
    let storage = TestStorage::new();
    let finish = std::sync::Arc::new(tokio::sync::Notify::new());
    let handler = {
        let finish = finish.clone();
        move |_: longrunning::Context| {
            let finish = finish.clone();
            async move {
                finish.notified().await;
                Ok::<_, longrunning::Failure>(string_value("precious"))
            }
        }
    };
    let builder = crate::support::operations_builder().storage(storage.clone());
    let operations = builder.handler("q", 1, handler).start().await.unwrap();
    let name = operations
        .submit("q", string_value(""))
        .await
        .unwrap()
        .name_owned();
    storage.wait_for_started_writes(2).await;
    storage.set_write_mode(WriteMode::Fail);
    finish.notify_one();
    tokio::time::sleep(std::time::Duration::from_secs(15)).await;
    assert!(!operations.get_cached(&name).unwrap().is_done());
    storage.set_write_mode(WriteMode::Succeed);
    let done = operations
        .wait(&name, std::time::Duration::from_secs(5))
        .await
        .unwrap();
    assert_eq!(
        crate::support::expect_response(&done.to_proto()),
        string_value("precious")
    );
}

// A timeout is a change that must be durable like any other.
// Rules: STATE-13
#[tokio::test(start_paused = true)]
async fn timeout_that_failed_to_write_is_retried_until_it_succeeds() {
    let storage = TestStorage::new();
    let operations = start(&storage).await;
    let new = NewOperation::self_executed("w").total_timeout(std::time::Duration::from_secs(10));
    let name = operations.create(new).await.unwrap().operation.name_owned();
    storage.set_write_mode(WriteMode::Fail);
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    let unfinished = operations.get_cached(&name).unwrap();
    assert_eq!(unfinished.state(), State::Running);
    storage.set_write_mode(WriteMode::Succeed);
    let done = operations
        .wait(&name, std::time::Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(
        crate::support::expect_error(&done.to_proto()).code,
        Code::DeadlineExceeded as i32
    );
}

// Rules: STATE-13
#[tokio::test(start_paused = true)]
async fn overdue_timers_write_nothing_while_storage_rejects_writes() {
    let storage = TestStorage::new();
    let operations = start(&storage).await;
    let timeout = std::time::Duration::from_secs(10);
    let mut names = Vec::new();
    for _ in 0..100 {
        let new = NewOperation::self_executed("w").total_timeout(timeout);
        names.push(operations.create(new).await.unwrap().operation.name_owned());
    }
    storage.set_write_mode(WriteMode::Fail);
    tokio::time::sleep(6 * timeout).await;
    assert_eq!(storage.started_writes(), names.len());
    storage.set_write_mode(WriteMode::Succeed);
    for name in &names {
        assert!(operations.wait(name, timeout).await.unwrap().is_done());
    }
    // Each operation had one timer left.
    assert_eq!(storage.started_writes(), 2 * names.len());
}
