//! A client of google.longrunning.Operations: list, get and wait.
//!
//! `cargo run --example client`, while `longrunning serve --demo` runs. Set
//! LONGRUNNING_ENDPOINT for a server other than <http://127.0.0.1:8470>.

use std::{env, error::Error, time::Duration};

use longrunning::proto::google::longrunning::{
    GetOperationRequest, ListOperationsRequest, Operation, WaitOperationRequest,
    operation::Result::{Error as Failed, Response},
    operations_client::OperationsClient,
};
use longrunning::proto::longrunning::v1::OperationMetadata;
use tonic::{Code, Status, transport::Channel};

#[tokio::main]
#[expect(
    clippy::disallowed_methods,
    reason = "examples read the environment directly"
)]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoint = env::var("LONGRUNNING_ENDPOINT");
    let endpoint = endpoint.unwrap_or_else(|_| "http://127.0.0.1:8470".to_owned());
    let channel = Channel::from_shared(endpoint.clone())?.connect().await;
    let channel = channel.map_err(|_| format!("cannot connect to {endpoint}"))?;
    let mut client = OperationsClient::new(channel);

    // The ten newest operations of all parents.
    let request = ListOperationsRequest {
        name: "-".to_owned(),
        page_size: 10,
        ..Default::default()
    };
    let page = client.list_operations(request).await?.into_inner();
    for operation in &page.operations {
        println!("{} {}", operation.name, state_name(operation));
    }
    let Some(newest) = page.operations.first() else {
        println!("the server has no operations");
        return Ok(());
    };

    let name = newest.name.clone();
    let get = GetOperationRequest { name: name.clone() };
    let current = client.get_operation(get).await?.into_inner();
    println!("newest: {} {}", current.name, state_name(&current));

    match wait(&mut client, name).await?.result {
        Some(Response(response)) => println!("done: {}", response.type_url),
        Some(Failed(error)) => println!("failed: code {}, {}", error.code, error.message),
        None => println!("done without a result"),
    }
    Ok(())
}

/// Waits until the operation is done. Each call waits 30 s, below the idle timeout of
/// common proxies.
async fn wait(client: &mut OperationsClient<Channel>, name: String) -> Result<Operation, Status> {
    loop {
        let request = WaitOperationRequest {
            name: name.clone(),
            timeout: Duration::from_secs(30).try_into().ok(),
        };
        match client.wait_operation(request).await {
            Ok(response) if response.get_ref().done => return Ok(response.into_inner()),
            Ok(_) => {}
            Err(status) if status.code() == Code::Unavailable => {}
            Err(status) => return Err(status),
        }
        // The server may return early; do not poll in a busy loop.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Returns the state from the metadata, or `?` if a handler set metadata of its own
/// type.
fn state_name(operation: &Operation) -> &'static str {
    let metadata = operation.metadata.as_ref();
    let metadata = metadata.and_then(|any| any.to_msg::<OperationMetadata>().ok());
    metadata.map_or("?", |metadata| metadata.state().as_str_name())
}
