//! Handlers: the in-process workers of the library, from claim to outcome.

use std::{sync::Arc, time::Duration};

use longrunning::{
    Any, Context, Failure, NewOperation, Operations, RetryPolicy, State, Terms,
    proto::google::rpc::Code,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::support::{error, progress, reason, response, text};

const MINUTE: Duration = Duration::from_secs(60);

/// Operations whose queue `q` is worked on by `handler`, without pauses before retries.
async fn with<H: longrunning::Handler>(concurrency: usize, handler: H) -> Operations {
    let retry = RetryPolicy {
        initial_backoff: Duration::ZERO,
        ..RetryPolicy::attempts(3)
    };
    let defaults = Terms {
        retry,
        ..Terms::default()
    };
    let builder = crate::support::operations().defaults(defaults);
    builder
        .handler("q", concurrency, handler)
        .start()
        .await
        .unwrap()
}

async fn outcome(operations: &Operations, new: NewOperation) -> Arc<longrunning::Operation> {
    let name = operations.create(new).await.unwrap().operation.owned_name();
    let done = operations.wait(&name, 10 * MINUTE).await.unwrap();
    assert!(done.is_done(), "{done:?}");
    done
}

fn queued() -> NewOperation {
    NewOperation::queued("q")
}

#[tokio::test]
async fn what_a_handler_returns_is_the_outcome() {
    let operations = with(2, |context: Context| async move {
        let input: String = context.input_as().unwrap();
        match input.as_str() {
            "nothing" => Ok(Any::default()),
            "bad" => Ok(Any {
                type_url: "no type".into(),
                value: vec![1],
            }),
            "fail" => Err(Failure::new(Code::NotFound, "no such file").with_reason("NO_FILE")),
            _ => Ok(text(&input)),
        }
    })
    .await;
    let run = async |input: &str| {
        outcome(&operations, queued().input(text(input)))
            .await
            .to_proto()
    };
    assert_eq!(response(&run("echo").await), text("echo"));
    let nothing = response(&run("nothing").await);
    assert_eq!(
        nothing.type_url,
        "type.googleapis.com/google.protobuf.Empty"
    );
    let failed = error(&run("fail").await);
    assert_eq!((failed.code, reason(&failed).as_str()), (5, "NO_FILE"));
    let bad = error(&run("bad").await);
    assert_eq!((bad.code, reason(&bad).as_str()), (13, "BAD_RESULT"));
}

#[tokio::test]
async fn a_panic_of_a_handler_is_an_internal_error_and_the_pool_lives_on() {
    let operations = with(1, |context: Context| async move {
        match context.input_as::<String>() {
            Ok(message) => panic!("{message}"),
            Err(_) => Ok(text("fine")),
        }
    })
    .await;
    for _ in 0..3 {
        let done = outcome(&operations, queued().input(text("it broke"))).await;
        let error = error(&done.to_proto());
        assert_eq!(
            (error.code, reason(&error).as_str()),
            (13, "HANDLER_PANICKED")
        );
        assert!(error.message.contains("it broke"));
        assert_eq!(done.attempt(), 1, "a panic is not tried again");
    }
    assert_eq!(
        response(&outcome(&operations, queued()).await.to_proto()),
        text("fine")
    );
}

// CAN-5
#[tokio::test]
async fn a_cancellation_reaches_the_handler_through_the_store() {
    let (started, mut starts) = mpsc::channel(1);
    let operations = with(1, move |context: Context| {
        let started = started.clone();
        async move {
            assert!(!context.is_cancelled());
            started.send(()).await.unwrap();
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
        .owned_name();
    starts.recv().await.unwrap();
    operations.cancel(&name).await.unwrap();
    let done = operations.wait(&name, MINUTE).await.unwrap();
    assert_eq!(done.state(), State::Cancelled);
    assert_eq!(error(&done.to_proto()).code, 1);
}

// CAN-2
#[tokio::test]
async fn a_handler_that_was_cancelled_may_still_succeed() {
    let (started, mut starts) = mpsc::channel(1);
    let operations = with(1, move |context: Context| {
        let started = started.clone();
        async move {
            started.send(()).await.unwrap();
            context.cancelled().await;
            Ok(text("done anyway"))
        }
    })
    .await;
    let name = operations
        .create(queued())
        .await
        .unwrap()
        .operation
        .owned_name();
    starts.recv().await.unwrap();
    operations.cancel(&name).await.unwrap();
    let done = operations.wait(&name, MINUTE).await.unwrap();
    assert_eq!(response(&done.to_proto()), text("done anyway"));
    assert!(done.cancel_requested());
}

/// Says when the handler's future is dropped.
struct Dropped(Option<oneshot::Sender<()>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.take().unwrap().send(());
    }
}

/// A handler that never ends, and hears when it starts and when it is dropped.
fn deaf(started: mpsc::Sender<Context>, dropped: oneshot::Sender<()>) -> impl longrunning::Handler {
    let dropped = Arc::new(Mutex::new(Some(dropped)));
    move |context: Context| {
        let (started, dropped) = (started.clone(), dropped.clone());
        async move {
            let _dropped = dropped.lock().take().map(|sender| Dropped(Some(sender)));
            started.send(context).await.unwrap();
            std::future::pending::<Result<Any, Failure>>().await
        }
    }
}

// CAN-6
#[tokio::test(start_paused = true)]
async fn a_handler_that_ignores_a_cancellation_is_dropped_when_the_grace_is_over() {
    let (started, mut starts) = mpsc::channel(9);
    let (dropped, drops) = oneshot::channel();
    let operations = with(1, deaf(started, dropped)).await;
    let new = queued().cancel_grace(Duration::from_secs(5));
    let name = operations.create(new).await.unwrap().operation.owned_name();
    let context = starts.recv().await.unwrap();
    let begun = tokio::time::Instant::now();
    operations.cancel(&name).await.unwrap();
    drops.await.unwrap();
    assert!(
        (5..7).contains(&begun.elapsed().as_secs()),
        "{:?}",
        begun.elapsed()
    );
    assert!(context.is_cancelled());
    let done = operations.get(&name).unwrap();
    assert_eq!(done.state(), State::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn a_handler_is_dropped_when_its_lease_is_lost_and_told_so() {
    for total in [true, false] {
        let (started, mut starts) = mpsc::channel(9);
        let (dropped, drops) = oneshot::channel();
        let operations = with(1, deaf(started, dropped)).await;
        let limit = Duration::from_secs(90);
        let new = if total {
            queued().total_timeout(limit)
        } else {
            queued().attempt_timeout(limit)
        };
        let name = operations.create(new).await.unwrap().operation.owned_name();
        let context = starts.recv().await.unwrap();
        drops.await.unwrap();
        context.cancelled().await;
        if total {
            let error = error(&operations.get(&name).unwrap().to_proto());
            assert_eq!((error.code, reason(&error).as_str()), (4, "TOTAL_TIMEOUT"));
        } else {
            assert_eq!(starts.recv().await.unwrap().attempt(), 2);
        }
    }
}

// BEHAVIOUR §5: a handler that works on is renewed for it.
#[tokio::test(start_paused = true)]
async fn the_lease_of_a_handler_is_renewed_as_long_as_it_works() {
    let operations = with(1, |_: Context| async {
        tokio::time::sleep(24 * 60 * MINUTE).await;
        Ok(text("a day later"))
    })
    .await;
    let name = operations
        .create(queued())
        .await
        .unwrap()
        .operation
        .owned_name();
    let done = operations.wait(&name, 48 * 60 * MINUTE).await.unwrap();
    assert_eq!(response(&done.to_proto()), text("a day later"));
    assert_eq!(done.attempt(), 1);
}

#[tokio::test(start_paused = true)]
async fn progress_is_coalesced_and_the_newest_wins() {
    let (done, gate) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let operations = with(1, {
        let (done, gate) = (done.clone(), gate.clone());
        move |context: Context| {
            let (done, gate) = (done.clone(), gate.clone());
            async move {
                for units in 1..=100_000 {
                    context.progress(progress(units));
                }
                done.notify_one();
                gate.notified().await;
                context.progress(progress(100_001));
                Ok(text("end"))
            }
        }
    })
    .await;
    let name = operations
        .create(queued())
        .await
        .unwrap()
        .operation
        .owned_name();
    done.notified().await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    let shown = operations.get(&name).unwrap();
    assert_eq!(shown.progress().unwrap().done_units, 100_000);
    assert!(shown.revision() < 5, "{} changes", shown.revision());
    gate.notify_one();
    let end = operations.wait(&name, MINUTE).await.unwrap();
    let metadata = crate::support::metadata(&end.to_proto());
    assert_eq!(
        metadata.progress.unwrap().done_units,
        100_001,
        "the last word counts"
    );
}

// BEHAVIOUR §5
#[tokio::test(start_paused = true)]
async fn a_checkpoint_is_handed_to_the_next_attempt() {
    for pause in [Duration::ZERO, Duration::from_secs(1)] {
        let operations = with(1, move |context: Context| async move {
            match context.checkpoint() {
                Some(checkpoint) => Ok(checkpoint.clone()),
                None => {
                    context
                        .keep_checkpoint(text(&format!("row {}", context.attempt())))
                        .unwrap();
                    tokio::time::sleep(pause).await;
                    Err(Failure::new(Code::Unavailable, "half way").retryable())
                }
            }
        })
        .await;
        let done = outcome(&operations, queued()).await.to_proto();
        assert_eq!(response(&done), text("row 1"), "after {pause:?}");
    }
}

#[tokio::test]
async fn a_retryable_failure_is_tried_again_until_no_attempt_is_left() {
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let operations = with(1, {
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
    let done = outcome(&operations, queued()).await;
    let error = error(&done.to_proto());
    assert_eq!((error.code, reason(&error).as_str()), (14, "BUSY"));
    assert_eq!(*attempts.lock(), [1, 2, 3]);
}
