//! A remote worker: leases operations of a queue from a server and executes them.
//!
//! `cargo run --example remote_worker`, while `longrunning serve` runs, and
//! `longrunning submit copy --input '{"rows": 30}' --wait` in another terminal. Runs
//! until Ctrl-C or SIGTERM, then drains. Set LONGRUNNING_WORKER_ENDPOINT for a server
//! other than <http://127.0.0.1:8471>.

use std::{env, error::Error, process, time::Duration};

use longrunning::{Any, Context, Failure, Payload, Progress, client, proto::google::rpc::Code};
use prost::Message;
use prost_types::{Struct, value::Kind};
use tokio::{select, signal::unix, time::sleep};
use tonic::transport::Channel;

/// Copies one row every 100 ms and resumes from the checkpoint of a lost attempt.
/// Pass `context.attempt()` to other systems as a fencing token, so that they can
/// reject an older attempt.
async fn copy(context: Context) -> Result<Any, Failure> {
    let rows = requested_rows(&context)?;
    let checkpoint = context.checkpoint().and_then(|value| value.to_msg().ok());
    let first_row: i64 = checkpoint.unwrap_or(0);
    println!(
        "{} attempt {} starts at row {first_row}",
        context.name(),
        context.attempt()
    );
    for row in first_row..rows {
        select! {
            () = context.cancelled() => return Err(Failure::cancelled()),
            () = sleep(Duration::from_millis(100)) => {}
        }
        context.report_progress(Progress {
            done_units: row + 1,
            total_units: rows,
            unit: "rows".to_owned(),
            ..Progress::default()
        });
        context.save_checkpoint(Payload::pack(&(row + 1)).any().clone())?;
    }
    Ok(Payload::pack(&rows).any().clone())
}

/// Returns the field `rows` of an input like `{"rows": 30}`, a
/// `google.protobuf.Struct`.
fn requested_rows(context: &Context) -> Result<i64, Failure> {
    let input = context
        .input()
        .and_then(|input| Struct::decode(&*input.value).ok());
    let rows = input.and_then(|mut input| input.fields.remove("rows")?.kind);
    match rows {
        #[expect(clippy::cast_possible_truncation, reason = "a number of rows")]
        Some(Kind::NumberValue(rows)) if rows >= 0.0 => Ok(rows as i64),
        _ => {
            let message = "input must be like {\"rows\": 30}";
            Err(Failure::new(Code::InvalidArgument, message).with_reason("INVALID_INPUT"))
        }
    }
}

#[tokio::main]
#[expect(
    clippy::disallowed_methods,
    reason = "examples read the environment directly"
)]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoint = env::var("LONGRUNNING_WORKER_ENDPOINT");
    let endpoint = endpoint.unwrap_or_else(|_| "http://127.0.0.1:8471".to_owned());
    // Keep-alives detect the loss of the server. It need not be running yet.
    let channel = Channel::from_shared(endpoint)?
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_while_idle(true)
        .connect_lazy();
    let mut terminate = unix::signal(unix::SignalKind::terminate())?;
    let stop = async move {
        select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    let id = format!("copier/{}", process::id());
    client::Worker::new(channel, &id)?
        .handler("copy", 4, copy)
        .shutdown_timeout(Duration::from_secs(10))
        .run(stop)
        .await?;
    println!("drained");
    Ok(())
}
