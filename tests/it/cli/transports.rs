//! Unusual transports: Unix sockets, closed pipes, endless streams, compressed and
//! oversized requests.

use std::{process::Stdio, time::Duration};

use longrunning::proto::{
    google::longrunning::operations_client::OperationsClient,
    longrunning::demo::v1::{CreateChecksumRequest, checksums_client::ChecksumsClient},
};
use tokio::io::{AsyncBufReadExt, BufReader};
use tonic::{
    Code, Request,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::support::{
    GrpcTestServer, create_running,
    error_details::{ErrorDetails, expect_status_error},
    get_request,
    raw_requests::{RawBytesCodec, raw_unary_call},
    serve_process::{
        ServeProcess, endless_checksum_directory, longrunning_command, run_command, stderr, stdout,
    },
};

/// Time limit for one step of a test.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

async fn connect(endpoint: String) -> Channel {
    Endpoint::from_shared(endpoint)
        .unwrap()
        .connect()
        .await
        .unwrap()
}

// Rules: ERR-1
#[tokio::test]
async fn error_for_100_kb_directory_is_short_and_connection_stays_open() {
    let directory = tempfile::tempdir().unwrap();
    let program = ServeProcess::serve_demo(directory.path()).await;
    let channel = connect(program.endpoint()).await;
    let mut checksums = ChecksumsClient::new(channel.clone());
    for piece in ["../", "/x", "\u{1f980}/../../", "/\u{7}"] {
        let directory = piece.repeat(100_000 / piece.len());
        let request = CreateChecksumRequest { directory };
        let rejected = checksums.create_checksum(request).await.expect_err(piece);
        assert_eq!(rejected.code(), Code::InvalidArgument, "{piece:?}");
        assert!(rejected.message().len() <= 1024, "{piece:?}");
        assert!(rejected.details().len() <= 4096, "{piece:?}");
        ErrorDetails::from_status(&rejected);
    }
    let mut operations = OperationsClient::new(channel);
    let missing = operations.get_operation(get_request("operations/x")).await;
    assert_eq!(expect_status_error(missing).code, Code::NotFound);
}

// Rules: CLI-7
#[tokio::test]
async fn directory_traversal_through_missing_directory_is_rejected() {
    let parent = tempfile::tempdir().unwrap();
    std::fs::write(parent.path().join("secret"), "not offered").unwrap();
    let offered = parent.path().join("offered");
    std::fs::create_dir(&offered).unwrap();
    let program = ServeProcess::serve_demo(&offered).await;
    let mut checksums = ChecksumsClient::new(connect(program.endpoint()).await);
    for directory in ["..", "missing/..", "missing/../..", "../missing"] {
        let directory = directory.to_owned();
        let request = CreateChecksumRequest { directory };
        let rejected = expect_status_error(checksums.create_checksum(request).await);
        assert_eq!(
            rejected.code_and_reason(),
            (Code::InvalidArgument, "DIRECTORY_OUTSIDE_ROOT")
        );
    }
}

// Rules: ERR-7
#[tokio::test]
async fn compressed_request_is_unimplemented_with_reason() {
    let server = GrpcTestServer::start().await;
    let (name, _) = create_running(&server.operations).await;
    let channel = server.channel().await;
    let path = "/google.longrunning.Operations/GetOperation";
    let message = prost::Message::encode_to_vec(&get_request(name.as_str()));
    let mut request = Request::new(message.clone());
    let gzip = "gzip".parse().unwrap();
    request.metadata_mut().insert("grpc-encoding", gzip);
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let rejected = expect_status_error(
        grpc.unary(request, path.parse().unwrap(), RawBytesCodec)
            .await,
    );
    assert_eq!(
        rejected.code_and_reason(),
        (Code::Unimplemented, "NOT_SUPPORTED")
    );
    assert!(rejected.message.contains("ompress"), "{}", rejected.message);
    // An unknown method has the same code and another reason.
    let unknown = "/google.longrunning.Operations/Nothing";
    let unknown = expect_status_error(raw_unary_call(channel.clone(), unknown, Vec::new()).await);
    assert_eq!(
        unknown.code_and_reason(),
        (Code::Unimplemented, "UNKNOWN_METHOD")
    );
    raw_unary_call(channel, path, message).await.unwrap();
}

// Rules: CLI-4
#[tokio::test]
async fn every_command_works_over_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a"), "hello\n").unwrap();
    let sockets = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", sockets.path().join("s").display());
    let mut server = longrunning_command(&[
        "serve",
        "--listen",
        &address,
        "--worker-listen",
        "none",
        "--admin-listen",
        "none",
    ])
    .args(["--demo", directory.path().to_str().unwrap()])
    .args(["--log-format", "text"])
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let mut log = BufReader::new(server.stderr.take().unwrap()).lines();
    while !log
        .next_line()
        .await
        .unwrap()
        .expect("expected a log line")
        .contains("listening clients=")
    {}
    let mut checksums = ChecksumsClient::new(connect(address.clone()).await);
    let name = checksums
        .create_checksum(CreateChecksumRequest::default())
        .await
        .unwrap()
        .into_inner()
        .name;
    for arguments in [
        vec!["healthcheck"],
        vec!["wait", &name],
        vec!["get", &name],
        vec!["watch", &name],
        vec!["list"],
        vec!["cancel", &name],
        vec!["delete", &name],
    ] {
        let output = run_command(&[&arguments[..], &["--endpoint", &address]].concat()).await;
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}");
        if arguments == ["list"] {
            assert!(stdout(&output).contains(&name));
        }
    }
    // In a container, the probe has the environment of its server.
    let probe = longrunning_command(&["healthcheck"])
        .env("LONGRUNNING_LISTEN", &address)
        .output()
        .await
        .unwrap();
    assert_eq!(probe.status.code(), Some(0), "{}", stderr(&probe));
    let missing = format!("unix:{}", sockets.path().join("missing").display());
    let probe = run_command(&["healthcheck", "--endpoint", &missing]).await;
    assert_eq!(probe.status.code(), Some(1));
    let output = run_command(&["get", &name, "--endpoint", &missing]).await;
    assert_eq!(output.status.code(), Some(2));
}

// Rules: CLI-4
#[tokio::test]
async fn command_with_closed_stdout_exits_without_panic() {
    let directory = endless_checksum_directory();
    let program = ServeProcess::serve_demo(directory.path()).await;
    let name = program.create_checksum("").await;
    for arguments in [
        vec!["list", "--output", "json"],
        vec!["list"],
        vec!["get", &name, "--output", "json"],
        vec!["get", &name],
        vec!["--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = longrunning_command(&arguments)
            .env("LONGRUNNING_ENDPOINT", program.endpoint())
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.wait_with_output().await.unwrap();
        let stderr = stderr(&output);
        assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
        assert_ne!(output.status.code(), Some(101), "{arguments:?}");
    }
}

// Rules: SHUTDOWN-5
#[tokio::test]
async fn open_health_watch_does_not_delay_shutdown() {
    let program = ServeProcess::serve(&["--shutdown-timeout", "1h"]).await;
    let mut health = HealthClient::new(connect(program.endpoint()).await);
    let request = HealthCheckRequest::default();
    let mut states = health.watch(request).await.unwrap().into_inner();
    let mut next_status = async || states.message().await.unwrap().unwrap().status();
    assert_eq!(next_status().await, ServingStatus::Serving);
    program.signal("TERM").await;
    // The same status may be sent more than once.
    while next_status().await != ServingStatus::NotServing {}
    let exit_code = tokio::time::timeout(STEP_TIMEOUT, program.wait_for_exit()).await;
    assert_eq!(
        exit_code.expect("expected an exit before the shutdown timeout"),
        Some(0)
    );
}

// Rules: STATE-12, WAIT-7
#[tokio::test]
async fn wait_timeout_beyond_clock_range_does_not_panic() {
    for timeout in ["300000years", "500000000000years"] {
        let arguments = [
            "wait",
            "x",
            "--timeout",
            timeout,
            "--endpoint",
            "http://127.0.0.1:1",
        ];
        let output = run_command(&arguments).await;
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("cannot connect to"), "{stderr}");
    }
}
