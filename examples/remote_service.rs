//! A service next to a server: its slow method creates an operation there,
//! returns it at once, and does the work in its own process.
//!
//! `cargo run --example remote_service`, while `longrunning serve` runs. It
//! calls its own method once and follows the operation as a client does. The
//! server is LONGRUNNING_ENDPOINT for clients and LONGRUNNING_WORKER_ENDPOINT
//! for services, by default <http://127.0.0.1:8470> and <http://127.0.0.1:8471>.

use std::{env, error::Error, process, time::Duration};

use longrunning::{
    Any, Context, Failure, NewOperation, Progress,
    proto::google::longrunning::{
        Operation, WaitOperationRequest, operations_client::OperationsClient,
    },
    remote::Creator,
};
use tokio::{select, time::sleep};
use tonic::{Request, Response, Status, transport::Channel};

/// The slow work.
async fn export(context: Context) -> Result<Any, Failure> {
    for shelf in 1..=10 {
        select! {
            () = context.cancelled() => return Err(Failure::cancelled()),
            () = sleep(Duration::from_millis(100)) => {}
        }
        context.progress(Progress {
            done_units: shelf,
            total_units: 10,
            unit: "shelves".to_owned(),
            ..Progress::default()
        });
    }
    Ok(Any::default()) // a message of your own
}

/// Your API. Its slow method returns the operation at once.
struct Bookstore(Creator);

impl Bookstore {
    /// Has the signature of a method that tonic generates from
    /// `rpc ExportBooks(…) returns (google.longrunning.Operation)`.
    async fn export_books(&self, request: Request<String>) -> Result<Response<Operation>, Status> {
        let new = NewOperation::self_executed("")
            .method("bookstore.v1.Bookstore/ExportBooks")
            .label("store", request.get_ref());
        let started = self.0.start(new, export).await?;
        let operation = started.operation.clone();
        // How it ended is known to the server; here it would only be logged.
        tokio::spawn(started.finished());
        Ok(Response::new(operation))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let workers = endpoint("LONGRUNNING_WORKER_ENDPOINT", "http://127.0.0.1:8471")?;
    let id = format!("bookstore/{}", process::id());
    let api = Bookstore(Creator::new(workers, &id)?);
    let request = Request::new("main-street".to_owned());
    let operation = api.export_books(request).await?.into_inner();
    println!("created {}", operation.name);

    let clients = endpoint("LONGRUNNING_ENDPOINT", "http://127.0.0.1:8470")?;
    let request = WaitOperationRequest {
        name: operation.name,
        timeout: Duration::from_secs(30).try_into().ok(),
    };
    let last = OperationsClient::new(clients)
        .wait_operation(request)
        .await?;
    println!("done: {}", last.into_inner().done);
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a program of its own")]
fn endpoint(variable: &str, usual: &str) -> Result<Channel, Box<dyn Error>> {
    let url = env::var(variable).unwrap_or_else(|_| usual.to_owned());
    let channel = Channel::from_shared(url)?
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_while_idle(true);
    Ok(channel.connect_lazy())
}
