//! Long-running operations embedded in your own tonic server.
//!
//! `cargo run --example embed`. Creates one operation, waits for it and serves until
//! Ctrl-C or SIGTERM.

use std::{error::Error, time::Duration};

use longrunning::{
    Any, Context, Failure, NewOperation, Operations, Progress, operations_server,
    proto::google::longrunning::Operation, watch_server,
};
use tokio::{select, signal::unix, time::sleep};
use tonic::{Request, Response, Status, transport::Server, transport::server::TcpIncoming};

/// The slow work. Return a message of your own type as `Any`; an empty `Any` becomes
/// `google.protobuf.Empty`.
async fn report(context: Context) -> Result<Any, Failure> {
    for page in 1..=5 {
        select! {
            () = context.cancelled() => return Err(Failure::cancelled()),
            () = sleep(Duration::from_millis(200)) => {}
        }
        context.report_progress(Progress {
            done_units: page,
            total_units: 5,
            unit: "pages".to_owned(),
            ..Progress::default()
        });
    }
    Ok(Any::default())
}

/// Your API. Its slow method returns an operation immediately.
struct Reports(Operations);

impl Reports {
    /// Has the signature of a method that tonic generates from
    /// `rpc CreateReport(…) returns (google.longrunning.Operation)`.
    async fn create_report(&self, month: Request<String>) -> Result<Response<Operation>, Status> {
        let new_operation = NewOperation::queued("reports").label("month", month.get_ref());
        let created = self.0.create(new_operation).await?;
        Ok(Response::new(created.operation.to_proto()))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let builder = Operations::builder().handler("reports", 4, report);
    let operations = builder.start().await?;
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?;
    println!("serving on {}", incoming.local_addr()?);

    let api = Reports(operations.clone());
    let response = api
        .create_report(Request::new("2026-07".to_owned()))
        .await?;
    let name = response.into_inner().name.parse()?;
    println!("created {name}");
    let last = operations.wait(&name, Duration::from_secs(10)).await?;
    println!("{}", last.state().as_str_name());

    let mut terminate = unix::signal(unix::SignalKind::terminate())?;
    let stop = async move {
        select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        // Also ends open waits, so that tonic can close their connections.
        operations.shutdown(Duration::from_secs(10)).await;
    };
    Server::builder()
        .add_service(operations_server(&api.0))
        .add_service(watch_server(&api.0))
        .serve_with_incoming_shutdown(incoming, stop)
        .await?;
    Ok(())
}
