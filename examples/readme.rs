//! The example in README.md, so that CI compiles it.

use longrunning::{Any, Context, Failure, NewOperation, Operations, Progress};
use longrunning::{operations_server, watch_server};
use std::{error::Error, time::Duration};

async fn report(context: Context) -> Result<Any, Failure> {
    for page in 1..=5 {
        tokio::time::sleep(Duration::from_secs(1)).await; // the slow work
        let mut progress = Progress::default();
        (progress.done_units, progress.total_units) = (page, 5);
        context.report_progress(progress);
    }
    Ok(Any::default()) // a message of your own
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let builder = Operations::builder().handler("reports", 4, report);
    let operations = builder.start().await?;
    let created = operations.create(NewOperation::queued("reports")).await?;
    println!("created {}", created.operation.name());
    let server = tonic::transport::Server::builder()
        .add_service(operations_server(&operations)) // beside your own services
        .add_service(watch_server(&operations));
    Ok(server.serve("127.0.0.1:8470".parse()?).await?)
}
