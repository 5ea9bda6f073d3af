//! In-process handlers, from lease to outcome.

use std::{sync::Arc, time::Duration};

use longrunning::{
    Any, Context, ExecutionOptions, Failure, NewOperation, Operations, Progress, RetryPolicy,
    State, proto::google::rpc::Code,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::support::{
    assertions::{assert_error_code, assert_failed_with},
    decode_metadata, expect_error, expect_response,
    handlers::never_ending_handler,
    operations_builder, progress, string_value,
};

const MINUTE: Duration = Duration::from_secs(60);

/// Starts operations with a handler of queue `q`, three attempts and no backoff.
async fn start_with_handler<H: longrunning::Handler>(concurrency: usize, handler: H) -> Operations {
    let retry = RetryPolicy::with_max_attempts(3).with_initial_backoff(Duration::ZERO);
    let defaults = ExecutionOptions::default().with_retry_policy(retry);
    let builder = operations_builder().default_options(defaults);
    builder
        .handler("q", concurrency, handler)
        .start()
        .await
        .unwrap()
}

async fn run_to_completion(
    operations: &Operations,
    new: NewOperation,
) -> Arc<longrunning::Operation> {
    let name = operations.create(new).await.unwrap().operation.name_owned();
    let done = operations.wait(&name, 10 * MINUTE).await.unwrap();
    assert!(done.is_done(), "{done:?}");
    done
}

fn queued() -> NewOperation {
    NewOperation::queued("q")
}

// Rules: HANDLER-1
#[tokio::test]
async fn handler_return_value_is_operation_outcome() {
    let operations = start_with_handler(2, |context: Context| async move {
        let input: String = context.input_as().unwrap();
        match input.as_str() {
            "nothing" => Ok(Any::default()),
            "bad" => Ok(Any {
                type_url: "no type".into(),
                value: vec![1],
            }),
            "fail" => Err(Failure::new(Code::NotFound, "no such file").with_reason("NO_FILE")),
            _ => Ok(string_value(&input)),
        }
    })
    .await;
    let run = async |input: &str| {
        run_to_completion(&operations, queued().input(string_value(input)))
            .await
            .to_proto()
    };
    assert_eq!(expect_response(&run("echo").await), string_value("echo"));
    let nothing = expect_response(&run("nothing").await);
    assert_eq!(
        nothing.type_url,
        "type.googleapis.com/google.protobuf.Empty"
    );
    assert_failed_with(&run("fail").await, Code::NotFound, "NO_FILE");
    assert_failed_with(&run("bad").await, Code::Internal, "INVALID_RESULT");
}

// Rules: HANDLER-1
#[tokio::test]
async fn handler_panic_is_internal_error_and_pool_continues() {
    let operations = start_with_handler(1, |context: Context| async move {
        match context.input_as::<String>() {
            Ok(message) => panic!("{message}"),
            Err(_) => Ok(string_value("fine")),
        }
    })
    .await;
    for _ in 0..3 {
        let done = run_to_completion(&operations, queued().input(string_value("it broke"))).await;
        let failed = done.to_proto();
        assert_failed_with(&failed, Code::Internal, "HANDLER_PANICKED");
        assert!(expect_error(&failed).message.contains("it broke"));
        assert_eq!(done.attempt(), 1, "expected no retry after a panic");
    }
    assert_eq!(
        expect_response(&run_to_completion(&operations, queued()).await.to_proto()),
        string_value("fine")
    );
}

// Rules: CAN-5
#[tokio::test]
async fn cancel_reaches_in_process_handler() {
    let (started_tx, mut started_rx) = mpsc::channel(1);
    let operations = start_with_handler(1, move |context: Context| {
        let started_tx = started_tx.clone();
        async move {
            assert!(!context.is_cancelled());
            started_tx.send(()).await.unwrap();
            context.cancelled().await;
            assert!(context.is_cancelled());
            Err(Failure::cancelled())
        }
    })
    .await;
    let name = operations
        .create(queued())
        .await
        .unwrap()
        .operation
        .name_owned();
    started_rx.recv().await.unwrap();
    operations.cancel(&name).await.unwrap();
    let done = operations.wait(&name, MINUTE).await.unwrap();
    assert_eq!(done.state(), State::Cancelled);
    assert_error_code(&done.to_proto(), Code::Cancelled);
}

// Rules: CAN-2
#[tokio::test]
async fn cancelled_handler_may_still_succeed() {
    let (started_tx, mut started_rx) = mpsc::channel(1);
    let operations = start_with_handler(1, move |context: Context| {
        let started_tx = started_tx.clone();
        async move {
            started_tx.send(()).await.unwrap();
            context.cancelled().await;
            Ok(string_value("done anyway"))
        }
    })
    .await;
    let name = operations
        .create(queued())
        .await
        .unwrap()
        .operation
        .name_owned();
    started_rx.recv().await.unwrap();
    operations.cancel(&name).await.unwrap();
    let done = operations.wait(&name, MINUTE).await.unwrap();
    assert_eq!(
        expect_response(&done.to_proto()),
        string_value("done anyway")
    );
    assert!(done.cancel_requested());
}

// Rules: CAN-6, HANDLER-5
#[tokio::test(start_paused = true)]
async fn handler_ignoring_cancel_is_dropped_after_cancel_grace_period() {
    let (started_tx, mut started_rx) = mpsc::channel(9);
    let (dropped_tx, dropped_rx) = oneshot::channel();
    let operations = start_with_handler(1, never_ending_handler(started_tx, dropped_tx)).await;
    let new = queued().cancel_grace_period(Duration::from_secs(5));
    let name = operations.create(new).await.unwrap().operation.name_owned();
    let context = started_rx.recv().await.unwrap();
    let start = tokio::time::Instant::now();
    operations.cancel(&name).await.unwrap();
    dropped_rx.await.unwrap();
    assert!(
        (5..7).contains(&start.elapsed().as_secs()),
        "{:?}",
        start.elapsed()
    );
    assert!(context.is_cancelled());
    let done = operations.get_cached(&name).unwrap();
    assert_eq!(done.state(), State::Cancelled);
}

// Rules: HANDLER-3
#[tokio::test(start_paused = true)]
async fn handler_with_lost_lease_is_cancelled_and_dropped() {
    for is_total_timeout in [true, false] {
        let (started_tx, mut started_rx) = mpsc::channel(9);
        let (dropped_tx, dropped_rx) = oneshot::channel();
        let operations = start_with_handler(1, never_ending_handler(started_tx, dropped_tx)).await;
        let limit = Duration::from_secs(90);
        let new = if is_total_timeout {
            queued().total_timeout(limit)
        } else {
            queued().attempt_timeout(limit)
        };
        let name = operations.create(new).await.unwrap().operation.name_owned();
        let context = started_rx.recv().await.unwrap();
        dropped_rx.await.unwrap();
        context.cancelled().await;
        if is_total_timeout {
            let failed = operations.get_cached(&name).unwrap().to_proto();
            assert_failed_with(&failed, Code::DeadlineExceeded, "TOTAL_TIMEOUT");
        } else {
            assert_eq!(started_rx.recv().await.unwrap().attempt(), 2);
        }
    }
}

// The server renews the lease of a running handler.
// Rules: HANDLER-3
#[tokio::test(start_paused = true)]
async fn handler_lease_is_renewed_while_handler_runs() {
    let operations = start_with_handler(1, |_: Context| async {
        tokio::time::sleep(24 * 60 * MINUTE).await;
        Ok(string_value("a day later"))
    })
    .await;
    let name = operations
        .create(queued())
        .await
        .unwrap()
        .operation
        .name_owned();
    let done = operations.wait(&name, 48 * 60 * MINUTE).await.unwrap();
    assert_eq!(
        expect_response(&done.to_proto()),
        string_value("a day later")
    );
    assert_eq!(done.attempt(), 1);
}

// Rules: HANDLER-4
#[tokio::test(start_paused = true)]
async fn progress_is_coalesced_to_latest_value() {
    let (reported, gate) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let operations = start_with_handler(1, {
        let (reported, gate) = (reported.clone(), gate.clone());
        move |context: Context| {
            let (reported, gate) = (reported.clone(), gate.clone());
            async move {
                for units in 1..=100_000 {
                    context.report_progress(progress(units));
                }
                reported.notify_one();
                gate.notified().await;
                let last = Progress {
                    total_units: 0,
                    ..progress(100_001)
                };
                context.report_progress(last);
                Ok(string_value("end"))
            }
        }
    })
    .await;
    let name = operations
        .create(queued())
        .await
        .unwrap()
        .operation
        .name_owned();
    reported.notified().await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    let operation = operations.get_cached(&name).unwrap();
    assert_eq!(operation.progress().unwrap().done_units, 100_000);
    assert!(operation.revision() < 5, "{} changes", operation.revision());
    gate.notify_one();
    let done = operations.wait(&name, MINUTE).await.unwrap();
    let metadata = decode_metadata(&done.to_proto());
    assert_eq!(metadata.progress.unwrap().done_units, 100_001);
}

// Rules: HEARTBEAT-9
#[tokio::test(start_paused = true)]
async fn next_attempt_gets_checkpoint() {
    for delay in [Duration::ZERO, Duration::from_secs(1)] {
        let operations = start_with_handler(1, move |context: Context| async move {
            match context.checkpoint() {
                Some(checkpoint) => Ok(checkpoint.clone()),
                None => {
                    context
                        .save_checkpoint(string_value(&format!("row {}", context.attempt())))
                        .unwrap();
                    tokio::time::sleep(delay).await;
                    Err(Failure::new(Code::Unavailable, "half way").retryable())
                }
            }
        })
        .await;
        let done = run_to_completion(&operations, queued()).await.to_proto();
        assert_eq!(
            expect_response(&done),
            string_value("row 1"),
            "after {delay:?}"
        );
    }
}

// Rules: STATE-4
#[tokio::test]
async fn retryable_handler_failure_is_retried_until_max_attempts() {
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let operations = start_with_handler(1, {
        let attempts = attempts.clone();
        move |context: Context| {
            attempts.lock().push(context.attempt());
            async {
                Err(Failure::new(Code::Unavailable, "busy")
                    .with_reason("BUSY")
                    .retryable())
            }
        }
    })
    .await;
    let done = run_to_completion(&operations, queued()).await;
    assert_failed_with(&done.to_proto(), Code::Unavailable, "BUSY");
    assert_eq!(*attempts.lock(), [1, 2, 3]);
}
