//! Client commands across a restart of the server.

use std::process::Stdio;

use longrunning::proto::longrunning::v1::operation_worker_client::OperationWorkerClient;
use tokio::io::{AsyncBufReadExt, BufReader};
use tonic::transport::Endpoint;

use crate::support::{
    harness::{finish_request, lease_request, queued_request},
    postgres::free_port,
    serve_process::{ServeProcess, longrunning_command},
    string_value,
};
use longrunning::proto::longrunning::v1::finish_operation_request::Outcome;

type WorkerClient = OperationWorkerClient<tonic::transport::Channel>;

async fn start(store: &str, listen: &str) -> (ServeProcess, WorkerClient) {
    let server = ServeProcess::serve_at(listen, &["--store", store]).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", server.worker_address)).unwrap();
    let channel = endpoint.connect().await.unwrap();
    (server, OperationWorkerClient::new(channel))
}

// Rules: CLI-3
#[tokio::test]
async fn watch_and_wait_follow_operation_across_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", directory.path().join("o.db").display());
    let listen = format!("127.0.0.1:{}", free_port());
    let (mut server, mut worker) = start(&store, &listen).await;
    let created = worker.create_operation(queued_request("q")).await.unwrap();
    let name = created.into_inner().operation.unwrap().name;
    let follow = |command: &str| {
        let mut child = longrunning_command(&[command, &name, "--endpoint", &listen]);
        child.stdout(Stdio::piped()).stderr(Stdio::piped());
        child.spawn().unwrap()
    };
    let (mut watch, mut wait) = (follow("watch"), follow("wait"));
    let mut states = BufReader::new(watch.stdout.take().unwrap()).lines();
    let first = states.next_line().await.unwrap().unwrap();
    assert!(first.starts_with("PENDING"), "{first}");
    let both_wait = "longrunning_open_waits 2";
    while !server.admin_get("/metrics").await.contains(both_wait) {
        tokio::task::yield_now().await;
    }
    server.child.kill().await.unwrap();
    // Both have noticed it.
    for child in [&mut watch, &mut wait] {
        let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
        let noticed = errors.next_line().await.unwrap().unwrap();
        assert!(noticed.contains("retrying"), "{noticed}");
    }
    let (_server, mut worker) = start(&store, &listen).await;
    let leased = worker.lease_operations(lease_request(&["q"], "w", 1)).await;
    let lease = leased.unwrap().into_inner().leases.remove(0);
    let finish = finish_request(&lease, Outcome::Response(string_value("kept")));
    worker.finish_operation(finish).await.unwrap();
    let mut last = first;
    while let Some(state) = states.next_line().await.unwrap() {
        last = state;
    }
    assert!(last.starts_with("SUCCEEDED"), "{last}");
    assert_eq!(watch.wait().await.unwrap().code(), Some(0));
    let waited = wait.wait_with_output().await.unwrap();
    assert_eq!(waited.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&waited.stdout).contains("SUCCEEDED"));
}
