//! Follows operations of a server as any client does: list, get, wait.
//!
//! `cargo run --example client`, while `longrunning serve --demo` runs. The
//! server is LONGRUNNING_ENDPOINT, by default <http://127.0.0.1:8470>.

use std::{env, error::Error, time::Duration};

use longrunning::proto::google::longrunning::{
    GetOperationRequest, ListOperationsRequest, Operation, WaitOperationRequest,
    operation::Result::{Error as Failed, Response},
    operations_client::OperationsClient,
};
use longrunning::proto::longrunning::v1::OperationMetadata;
use tonic::{Code, Status, transport::Channel};

#[tokio::main]
#[expect(clippy::disallowed_methods, reason = "a program of its own")]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoint = env::var("LONGRUNNING_ENDPOINT");
    let endpoint = endpoint.unwrap_or_else(|_| "http://127.0.0.1:8470".to_owned());
    let channel = Channel::from_shared(endpoint.clone())?.connect().await;
    let channel = channel.map_err(|_| format!("no server answers at {endpoint}"))?;
    let mut client = OperationsClient::new(channel);

    // The newest ten, of every parent.
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
    println!("the newest: {} {}", current.name, state_name(&current));

    match wait(&mut client, name).await?.result {
        Some(Response(response)) => println!("done: {}", response.type_url),
        Some(Failed(error)) => println!("failed: code {}, {}", error.code, error.message),
        None => println!("done without a result, which this server never does"),
    }
    Ok(())
}

/// Waits until it is done; 30 s a call, which is below what proxies cut off.
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
        // A server may answer early; that must not become a storm of calls.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The state in the server's own metadata; a producer may send another type.
fn state_name(operation: &Operation) -> &'static str {
    let metadata = operation.metadata.as_ref();
    let metadata = metadata.and_then(|any| any.to_msg::<OperationMetadata>().ok());
    metadata.map_or("?", |metadata| metadata.state().as_str_name())
}
