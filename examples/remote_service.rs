//! A service that uses a separate server: its slow method creates an operation on
//! the server, returns it and executes it in the service's process.
//!
//! `cargo run --example remote_service`, while `longrunning serve` runs. Calls its
//! own method once and waits for the operation as a client. Set
//! LONGRUNNING_ENDPOINT (for clients) and LONGRUNNING_WORKER_ENDPOINT (for services)
//! for a server other than <http://127.0.0.1:8470> and <http://127.0.0.1:8471>.

use std::{env, error::Error, process, time::Duration};

use longrunning::{
    Any, Context, Failure, NewOperation, Progress,
    client::Client,
    proto::google::longrunning::{
        Operation, WaitOperationRequest, operations_client::OperationsClient,
    },
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
        context.report_progress(Progress {
            done_units: shelf,
            total_units: 10,
            unit: "shelves".to_owned(),
            ..Progress::default()
        });
    }
    Ok(Any::default()) // a message of your own
}

/// Your API. Its slow method returns an operation immediately.
struct Bookstore(Client);

impl Bookstore {
    /// Has the signature of a method that tonic generates from
    /// `rpc ExportBooks(…) returns (google.longrunning.Operation)`.
    async fn export_books(&self, request: Request<String>) -> Result<Response<Operation>, Status> {
        let new_operation = NewOperation::self_executed("")
            .method("bookstore.v1.Bookstore/ExportBooks")
            .label("store", request.get_ref());
        let running = self.0.start(new_operation, export).await?;
        Ok(Response::new(running.operation)) // the handler keeps running
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let worker_channel = channel_from_env("LONGRUNNING_WORKER_ENDPOINT", "http://127.0.0.1:8471")?;
    let id = format!("bookstore/{}", process::id());
    let api = Bookstore(Client::new(worker_channel, &id)?);
    let request = Request::new("main-street".to_owned());
    let operation = api.export_books(request).await?.into_inner();
    println!("created {}", operation.name);

    let client_channel = channel_from_env("LONGRUNNING_ENDPOINT", "http://127.0.0.1:8470")?;
    let request = WaitOperationRequest {
        name: operation.name,
        timeout: Duration::from_secs(30).try_into().ok(),
    };
    let last = OperationsClient::new(client_channel)
        .wait_operation(request)
        .await?;
    println!("done: {}", last.into_inner().done);
    api.0.shutdown(Duration::from_secs(10)).await;
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "examples read the environment directly"
)]
fn channel_from_env(variable: &str, default_url: &str) -> Result<Channel, Box<dyn Error>> {
    let url = env::var(variable).unwrap_or_else(|_| default_url.to_owned());
    let channel = Channel::from_shared(url)?
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_while_idle(true);
    Ok(channel.connect_lazy())
}
