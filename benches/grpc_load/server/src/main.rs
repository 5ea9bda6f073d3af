//! The server under load: `longrunning serve` with its defaults, one connection thread and
//! prepared operations.
//!
//! `load-server DIR [THREADS [MORE]]` writes the requests of the load (`NAME.request`), the
//! expected responses (`NAME.stored`) and all operations in one message for the peers
//! (`stored.binpb`) to DIR, creates MORE further running operations, prints
//! `listening CLIENTS ADMIN WORKERS` and serves. LOG is the log filter.

use std::{env, error::Error, fs, path::Path, time::Duration};

use longrunning::{
    Any, NewOperation, Operations,
    proto::google::longrunning::{
        GetOperationRequest, ListOperationsRequest, ListOperationsResponse, Operation,
        WaitOperationRequest,
    },
    server::{Config, LogFormat, init_telemetry, shutdown_signals},
};
use prost::Message;

/// The encoded sizes of the done operations.
const SIZES_BYTES: [usize; 4] = [272, 1_349, 8_517, 65_864];
/// The number of pending operations for waits.
const PENDING_COUNT: usize = 3_000;

fn main() -> Result<(), Box<dyn Error>> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve())
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let dir = arguments
        .next()
        .ok_or("usage: load-server DIR [THREADS [MORE]]")?;
    let connection_threads = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let more = arguments.next().map_or(Ok(0), |text| text.parse())?;
    let _log = init_telemetry(
        LogFormat::Text,
        &env::var("LOG").unwrap_or("info".to_owned()),
    )?;
    let (stop, abort) = shutdown_signals()?;
    let mut config = Config::default();
    config.connection_threads = connection_threads;
    config.limits.max_operations += more;
    let app = config.bind_and_start().await?;
    fill(app.operations(), Path::new(&dir)).await?;
    for _ in 0..more {
        // No worker renews these leases.
        let new = NewOperation::self_executed("load").lease_duration(Duration::from_secs(86_400));
        app.operations().create(new).await?;
    }
    let admin = app.admin_addr().ok_or("the admin listener is disabled")?;
    let workers = app.worker_addr().ok_or("the worker listener is disabled")?;
    println!("listening {} {admin} {workers}", app.client_addr());
    app.run(stop, abort).await;
    Ok(())
}

async fn fill(operations: &Operations, dir: &Path) -> Result<(), Box<dyn Error>> {
    let mut stored = ListOperationsResponse::default();
    for size in SIZES_BYTES {
        let bytes = create_done(operations, size).await?;
        let name = Operation::decode(&*bytes)?.name;
        let request = GetOperationRequest { name }.encode_to_vec();
        fs::write(dir.join(format!("get-{size}.request")), framed(&request))?;
        fs::write(dir.join(format!("get-{size}.stored")), &bytes)?;
        stored.operations.push(Operation::decode(&*bytes)?);
    }
    for number in 0..PENDING_COUNT {
        let new = NewOperation::queued("unserved").id(&format!("waited-{number:04}"));
        let operation = operations.create(new).await?.operation;
        stored
            .operations
            .push(Operation::decode(operation.bytes())?);
    }
    let page = ListOperationsRequest {
        page_size: 100,
        ..Default::default()
    };
    fs::write(dir.join("list.request"), framed(&page.encode_to_vec()))?;
    // Matches nothing, so that each page uses its whole time budget.
    let scan = ListOperationsRequest {
        filter: "metadata.attempt = 7".to_owned(),
        ..page
    };
    fs::write(dir.join("scan.request"), framed(&scan.encode_to_vec()))?;
    let wait = WaitOperationRequest {
        name: "operations/waited-0000".to_owned(),
        timeout: Some(Duration::from_secs(300).try_into()?),
    };
    fs::write(dir.join("wait.request"), framed(&wait.encode_to_vec()))?;
    fs::write(dir.join("empty.request"), framed(&[]))?;
    fs::write(dir.join("stored.binpb"), stored.encode_to_vec())?;
    Ok(())
}

/// Creates a done operation of exactly `size` encoded bytes. The size of its times varies, so
/// that several attempts may be needed.
async fn create_done(operations: &Operations, size: usize) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut filling = size / 2;
    for attempt in 0..1_000 {
        let new = NewOperation::self_executed("load").id(&format!("done-{size}-{attempt:03}"));
        let created = operations.create(new).await?.operation;
        let token = created.lease().ok_or("the operation has no lease")?.token;
        let response = Any {
            type_url: "type.googleapis.com/bench.Filling".to_owned(),
            value: vec![b'.'; filling],
        };
        let name = created.name_owned();
        let done = operations.succeed(&name, token, response).await?;
        let bytes = done.bytes();
        if bytes.len() == size {
            return Ok(bytes.to_vec());
        }
        filling = (filling + size)
            .checked_sub(bytes.len())
            .ok_or("the size is too small for an operation")?;
        operations.delete(&name).await?;
    }
    Err("no attempt produced an operation of this size".into())
}

/// Prefixes a message with the gRPC header of an uncompressed message.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("requests are small");
    [&[0], &length.to_be_bytes()[..], message].concat()
}
