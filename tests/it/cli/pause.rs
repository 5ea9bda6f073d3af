//! A paused server: SIGSTOP, as a frozen container or a migrated virtual machine.

use longrunning::proto::longrunning::v1::{
    CreateOperationRequest, directive::Kind, operation_worker_client::OperationWorkerClient,
};
use tokio::time::{Duration, sleep};
use tonic::transport::Endpoint;

use crate::support::{
    decode_metadata, get_request,
    harness::{
        heartbeat_request, lease_heartbeat, lease_request, proto_seconds, queued_request,
        self_executed_request,
    },
    serve_process::ServeProcess,
};

// Real time: paused processes know no other.
// Rules: LEASE-11
#[tokio::test]
async fn server_paused_longer_than_leases_ends_none() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("operations.db");
    for store in ["memory".to_owned(), format!("sqlite:{}", file.display())] {
        let mut server = ServeProcess::serve(&["--store", &store]).await;
        let endpoint = format!("http://{}", server.worker_address);
        let channel = Endpoint::from_shared(endpoint).unwrap().connect().await;
        let mut worker = OperationWorkerClient::new(channel.unwrap());
        let lease_duration = proto_seconds(1);
        let queued = CreateOperationRequest {
            lease_duration,
            ..queued_request("q")
        };
        worker.create_operation(queued).await.unwrap();
        let leased = worker.lease_operations(lease_request(&["q"], "w", 1)).await;
        let leased = leased.unwrap().into_inner().leases.remove(0);
        let self_executed = CreateOperationRequest {
            lease_duration,
            ..self_executed_request("w")
        };
        let created = worker.create_operation(self_executed).await.unwrap();
        let created = created.into_inner().lease.unwrap();
        let heartbeats = || [lease_heartbeat(&leased), lease_heartbeat(&created)];
        let confirmed = worker.heartbeat(heartbeat_request("w", heartbeats())).await;
        assert!(confirmed.is_ok());

        server.signal("STOP").await;
        sleep(Duration::from_secs(3)).await;
        server.signal("CONT").await;
        let mut client = server.client().await;
        for lease in [&leased, &created] {
            let operation = client.get_operation(get_request(&lease.name)).await;
            let metadata = decode_metadata(&operation.unwrap().into_inner());
            assert_eq!(metadata.attempts.len(), 1, "{metadata:?}");
            assert_eq!(metadata.end_time, None, "{metadata:?}");
        }
        let renewed = worker.heartbeat(heartbeat_request("w", heartbeats())).await;
        for directive in renewed.unwrap().into_inner().directives {
            assert_eq!(directive.kind(), Kind::Continue, "{directive:?}");
        }
        while !server.read_log_line().await.contains("process was paused") {}
    }
}
