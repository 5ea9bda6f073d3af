//! An in-process handler with progress, checkpoints, cancellation and a retry.
//!
//! `cargo run --example in_process_handler`. The first attempt fails halfway; the
//! second one resumes from the checkpoint.

use std::{error::Error, time::Duration};

use longrunning::{
    Any, Context, Failure, Handler, NewOperation, Operations, Payload, Progress, RetryPolicy,
    proto::google::rpc::Code,
};
use tokio::{select, time::sleep};

/// Copies one row every 100 ms. A handler is a function, or a type like this one.
struct Copy {
    rows: i64,
}

impl Handler for Copy {
    async fn run(&self, context: Context) -> Result<Any, Failure> {
        let checkpoint = context.checkpoint().and_then(|value| value.to_msg().ok());
        let first_row: i64 = checkpoint.unwrap_or(0);
        println!("attempt {} starts at row {first_row}", context.attempt());
        for row in first_row..self.rows {
            select! {
                () = context.cancelled() => return Err(Failure::cancelled()),
                () = sleep(Duration::from_millis(100)) => {}
            }
            if row == self.rows / 2 && context.attempt() == 1 {
                let failure = Failure::new(Code::Unavailable, "source disconnected");
                return Err(failure.with_reason("SOURCE_UNAVAILABLE").retryable());
            }
            let copied = row + 1;
            context.report_progress(Progress {
                done_units: copied,
                total_units: self.rows,
                unit: "rows".to_owned(),
                ..Progress::default()
            });
            let checkpoint = Payload::pack(&copied).any().clone();
            let saved = context.save_checkpoint(checkpoint);
            saved.expect("packed message has a valid type URL");
        }
        Ok(Payload::pack(&self.rows).any().clone())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let builder = Operations::builder().handler("copy", 2, Copy { rows: 20 });
    let operations = builder.start().await?;
    let new = NewOperation::queued("copy")
        .label("table", "users")
        .attempt_timeout(Duration::from_secs(30))
        .retry_policy(RetryPolicy::with_max_attempts(3));
    let name = operations.create(new).await?.operation.name_owned();

    // Prints every change until the operation is done. `operations.wait` returns
    // only the final state.
    let mut watch = operations.watch(&name).await?;
    while let Some(state) = watch.next().await {
        let operation = state?;
        let state = operation.state().as_str_name();
        match operation.progress() {
            Some(rows) => println!("{state} {} of {}", rows.done_units, rows.total_units),
            None => println!("{state}"),
        }
    }
    println!("{:#?}", operations.get_cached(&name)?.to_proto().result);
    operations.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
