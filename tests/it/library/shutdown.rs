//! Shutdown: waits return, handlers may finish within the timeout, and unfinished
//! operations return to their queues.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use longrunning::{Any, Context, Failure, NewOperation, Operations, QueueName, State, WorkerId};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tonic::Code;

use crate::support::{
    GrpcTestServer, create_pending, create_running,
    error_details::expect_status_error,
    expect_response, get_request,
    operations::{start_operations, wait_for_waiters},
    operations_builder, string_value,
    test_storage::{TestStorage, WriteMode},
    wait_request,
};

const SECOND: Duration = Duration::from_secs(1);

/// Starts operations whose handler of queue `q` sends its context and runs for
/// `run_time`.
async fn start_with_slow_handler(
    run_time: Duration,
    started_tx: mpsc::Sender<Context>,
    storage: &TestStorage,
) -> Operations {
    let handler = move |context: Context| {
        let started_tx = started_tx.clone();
        async move {
            context.save_checkpoint(string_value("half way")).unwrap();
            started_tx.send(context).await.unwrap();
            tokio::time::sleep(run_time).await;
            Ok::<Any, Failure>(string_value("finished"))
        }
    };
    let builder = operations_builder().storage(storage.clone());
    builder.handler("q", 1, handler).start().await.unwrap()
}

// Rules: WAIT-10
#[tokio::test]
async fn shutdown_answers_every_wait_with_current_state() {
    let server = GrpcTestServer::start().await;
    let (name, _) = create_running(&server.operations).await;
    let mut waits = JoinSet::new();
    for _ in 0..50 {
        let (mut client, request) = (server.client().await, wait_request(&name, 600_000));
        waits.spawn(async move { client.wait_operation(request).await });
    }
    wait_for_waiters(&server.operations, 50).await;
    server.operations.shutdown(Duration::ZERO).await;
    for result in waits.join_all().await {
        assert!(!result.unwrap().into_inner().done);
    }
    assert_eq!(server.operations.waiter_count(), 0);
    server.shutdown().await;
}

// Rules: SHUTDOWN-2
#[tokio::test]
async fn draining_server_still_serves_reads() {
    let server = GrpcTestServer::start().await;
    let name = create_pending(&server.operations).await;
    server.operations.shutdown(Duration::ZERO).await;
    let mut client = server.client().await;
    let read = client
        .get_operation(get_request(name.as_str()))
        .await
        .unwrap();
    assert!(!read.into_inner().done);
    assert!(
        !client
            .wait_operation(wait_request(&name, 60_000))
            .await
            .unwrap()
            .into_inner()
            .done
    );
    let unknown = client
        .get_operation(get_request("operations/unknown"))
        .await;
    assert_eq!(expect_status_error(unknown).code, Code::NotFound);
}

// Rules: SHUTDOWN-3
#[tokio::test(start_paused = true)]
async fn handler_finishing_within_shutdown_timeout_completes() {
    let (started_tx, mut started_rx) = mpsc::channel(9);
    let operations = start_with_slow_handler(5 * SECOND, started_tx, &TestStorage::new()).await;
    let name = operations
        .submit("q", string_value(""))
        .await
        .unwrap()
        .name_owned();
    let next = operations
        .submit("q", string_value(""))
        .await
        .unwrap()
        .name_owned();
    started_rx.recv().await.unwrap();
    let start = Instant::now();
    operations.shutdown(20 * SECOND).await;
    assert_eq!(start.elapsed(), 5 * SECOND);
    let done = operations.get_cached(&name).unwrap();
    assert_eq!(expect_response(&done.to_proto()), string_value("finished"));
    let next = operations.get_cached(&next).unwrap();
    assert_eq!(
        (next.state(), next.attempt()),
        (State::Pending, 0),
        "expected no further lease"
    );
}

// Rules: SHUTDOWN-3
#[tokio::test(start_paused = true)]
async fn handler_exceeding_shutdown_timeout_is_dropped_and_released() {
    let (started_tx, mut started_rx) = mpsc::channel(9);
    let storage = TestStorage::new();
    let operations = start_with_slow_handler(3600 * SECOND, started_tx, &storage).await;
    let name = operations
        .submit("q", string_value(""))
        .await
        .unwrap()
        .name_owned();
    let context = started_rx.recv().await.unwrap();
    let start = Instant::now();
    operations.shutdown(20 * SECOND).await;
    assert_eq!(start.elapsed(), 20 * SECOND);
    let released = operations.get_cached(&name).unwrap();
    assert_eq!(released.state(), State::Pending);
    assert!(released.lease().is_none());
    assert_eq!(
        released.checkpoint().unwrap().any(),
        &string_value("half way")
    );
    assert!(
        context.is_cancelled(),
        "expected the context to be cancelled after its attempt"
    );
}

// The last checkpoint is saved even without a timeout.
// Rules: SHUTDOWN-3
#[tokio::test(start_paused = true)]
async fn shutdown_without_timeout_saves_last_checkpoint() {
    let (started_tx, mut started_rx) = mpsc::channel(9);
    let operations = start_with_slow_handler(3600 * SECOND, started_tx, &TestStorage::new()).await;
    let name = operations
        .submit("q", string_value(""))
        .await
        .unwrap()
        .name_owned();
    started_rx.recv().await.unwrap();
    operations.shutdown(Duration::ZERO).await;
    let released = operations.get_cached(&name).unwrap();
    assert_eq!(released.state(), State::Pending);
    assert_eq!(
        released.checkpoint().unwrap().any(),
        &string_value("half way")
    );
}

// A lease that is being written at shutdown does not stay without a holder.
// Rules: SHUTDOWN-4
#[tokio::test(start_paused = true)]
async fn lease_in_progress_at_shutdown_returns_to_queue() {
    let (started_tx, _started_rx) = mpsc::channel(9);
    let storage = TestStorage::new();
    let operations = start_with_slow_handler(SECOND, started_tx, &storage).await;
    let name = operations
        .submit("q", string_value(""))
        .await
        .unwrap()
        .name_owned();
    // The pool has not run yet; hold its write.
    storage.set_write_mode(WriteMode::Hold);
    storage.wait_for_started_writes(2).await;
    let shutdown = operations.shutdown(10 * SECOND);
    let open_gate = async {
        tokio::task::yield_now().await;
        storage.set_write_mode(WriteMode::Succeed);
    };
    tokio::join!(shutdown, open_gate);
    let operation = operations.get_cached(&name).unwrap();
    assert_eq!(
        (operation.state(), operation.is_done()),
        (State::Pending, false)
    );
}

// Rules: QUEUE-10, SHUTDOWN-2
#[tokio::test(start_paused = true)]
async fn lease_during_shutdown_is_rejected() {
    let operations = start_operations().await;
    let (queue, worker) = (QueueName::parse("q").unwrap(), WorkerId::new("w"));
    let poll = {
        let (operations, queue, worker) = (operations.clone(), queue.clone(), worker.clone());
        tokio::spawn(async move { operations.lease(&queue, &worker).await })
    };
    tokio::task::yield_now().await;
    operations.shutdown(Duration::ZERO).await;
    for poll in [poll.await.unwrap(), operations.lease(&queue, &worker).await] {
        assert_eq!(poll.unwrap_err().reason(), "SHUTTING_DOWN");
    }
}

// Rules: HANDLER-8
#[tokio::test(start_paused = true)]
async fn workers_stop_when_last_handle_is_dropped() {
    let (started_tx, mut started_rx) = mpsc::channel(9);
    let storage = TestStorage::new();
    let operations = start_with_slow_handler(3600 * SECOND, started_tx, &storage).await;
    operations.create(NewOperation::queued("q")).await.unwrap();
    let context = started_rx.recv().await.unwrap();
    drop(operations);
    context.cancelled().await;
    while !storage.is_released() {
        tokio::task::yield_now().await;
    }
    let stored = storage.into_stored();
    assert_eq!(stored[0].state(), State::Pending);
}

// An unwritable store must not delay shutdown beyond the timeout.
// Rules: SHUTDOWN-5
#[tokio::test(start_paused = true)]
async fn shutdown_with_failing_storage_ends_within_timeout() {
    let (started_tx, mut started_rx) = mpsc::channel(9);
    let storage = TestStorage::new();
    let operations = start_with_slow_handler(5 * SECOND, started_tx, &storage).await;
    let new = NewOperation::queued("q").lease_duration(3600 * SECOND);
    operations.create(new).await.unwrap();
    started_rx.recv().await.unwrap();
    storage.set_write_mode(WriteMode::Fail);
    let start = Instant::now();
    operations.shutdown(20 * SECOND).await;
    assert!(start.elapsed() < 30 * SECOND, "{:?}", start.elapsed());
}

// At most one live lease, and no handler runs without one.
// Rules: LEASE-2, SHUTDOWN-3
#[tokio::test(start_paused = true)]
async fn handler_stops_before_its_operation_is_released() {
    struct ClearOnDrop(Arc<AtomicBool>);
    impl Drop for ClearOnDrop {
        fn drop(&mut self) {
            self.0.store(false, Ordering::SeqCst);
        }
    }
    let is_running = Arc::new(AtomicBool::new(false));
    let (started_tx, mut started_rx) = mpsc::channel(9);
    let handler = {
        let is_running = is_running.clone();
        move |_: Context| {
            let (is_running, started_tx) = (is_running.clone(), started_tx.clone());
            async move {
                is_running.store(true, Ordering::SeqCst);
                let _clear_on_drop = ClearOnDrop(is_running);
                started_tx.send(()).await.unwrap();
                std::future::pending::<Result<Any, Failure>>().await
            }
        }
    };
    let storage = TestStorage::new();
    let builder = operations_builder().storage(storage.clone());
    let operations = builder.handler("q", 1, handler).start().await.unwrap();
    operations.submit("q", string_value("")).await.unwrap();
    started_rx.recv().await.unwrap();
    storage.set_write_mode(WriteMode::Hold);
    let before = storage.started_writes();
    let observed = async {
        storage.wait_for_started_writes(before + 1).await;
        let is_running = is_running.load(Ordering::SeqCst);
        storage.set_write_mode(WriteMode::Succeed);
        is_running
    };
    let ((), is_running) = tokio::join!(operations.shutdown(Duration::ZERO), observed);
    assert!(
        !is_running,
        "expected the handler to stop before its lease is released"
    );
}
