//! The program on other wires than the usual ones: Unix sockets, closed pipes,
//! streams without an end, compressed and huge requests.

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
    Server, get,
    problem::{Problem, problem},
    program::{Program, command, complained, endless, run, said},
    raw::{self, Raw},
    running,
};

/// So long a step may take before the test has failed.
const GUARD: Duration = Duration::from_secs(30);

async fn channel(endpoint: String) -> Channel {
    Endpoint::from_shared(endpoint)
        .unwrap()
        .connect()
        .await
        .unwrap()
}

// ERR-1
#[tokio::test]
async fn a_directory_of_100_kb_is_refused_in_few_words_and_the_connection_lives_on() {
    let directory = tempfile::tempdir().unwrap();
    let program = Program::demo(directory.path()).await;
    let channel = channel(program.endpoint()).await;
    let mut checksums = ChecksumsClient::new(channel.clone());
    for piece in ["../", "/x", "\u{1f980}/../../", "/\u{7}"] {
        let directory = piece.repeat(100_000 / piece.len());
        let request = CreateChecksumRequest { directory };
        let refused = checksums.create_checksum(request).await.expect_err(piece);
        assert_eq!(refused.code(), Code::InvalidArgument, "{piece:?}");
        assert!(refused.message().len() <= 1024, "{piece:?}");
        assert!(refused.details().len() <= 4096, "{piece:?}");
        Problem::of(&refused);
    }
    let mut operations = OperationsClient::new(channel);
    let missing = operations.get_operation(get("operations/x")).await;
    assert_eq!(problem(missing).code, Code::NotFound);
}

#[tokio::test]
async fn a_missing_directory_is_no_way_out_of_the_offered_one() {
    let parent = tempfile::tempdir().unwrap();
    std::fs::write(parent.path().join("secret"), "not offered").unwrap();
    let offered = parent.path().join("offered");
    std::fs::create_dir(&offered).unwrap();
    let program = Program::demo(&offered).await;
    let mut checksums = ChecksumsClient::new(channel(program.endpoint()).await);
    for directory in ["..", "missing/..", "missing/../..", "../missing"] {
        let directory = directory.to_owned();
        let request = CreateChecksumRequest { directory };
        let refused = problem(checksums.create_checksum(request).await);
        assert_eq!(refused.key(), (Code::InvalidArgument, "DIRECTORY_OUTSIDE"));
    }
}

#[tokio::test]
async fn a_compressed_request_is_unimplemented_and_told_why() {
    let server = Server::start().await;
    let (name, _) = running(&server.operations).await;
    let channel = server.channel().await;
    let path = "/google.longrunning.Operations/GetOperation";
    let message = prost::Message::encode_to_vec(&get(name.as_str()));
    let mut request = Request::new(message.clone());
    let gzip = "gzip".parse().unwrap();
    request.metadata_mut().insert("grpc-encoding", gzip);
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let refused = problem(grpc.unary(request, path.parse().unwrap(), Raw).await);
    assert_eq!(refused.key(), (Code::Unimplemented, "NOT_SUPPORTED"));
    assert!(refused.message.contains("ompress"), "{}", refused.message);
    // A method that is missing is another matter.
    let unknown = "/google.longrunning.Operations/Nothing";
    let unknown = problem(raw::call(channel.clone(), unknown, Vec::new()).await);
    assert_eq!(unknown.key(), (Code::Unimplemented, "METHOD_UNKNOWN"));
    raw::call(channel, path, message).await.unwrap();
}

#[tokio::test]
async fn every_command_reaches_a_server_on_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a"), "hello\n").unwrap();
    let sockets = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", sockets.path().join("s").display());
    let mut server = command(&[
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
        .expect("it starts")
        .contains("listening clients=")
    {}
    let mut checksums = ChecksumsClient::new(channel(address.clone()).await);
    let name = checksums
        .create_checksum(CreateChecksumRequest::default())
        .await
        .unwrap()
        .into_inner()
        .name;
    for line in [
        vec!["healthcheck"],
        vec!["wait", &name],
        vec!["get", &name],
        vec!["watch", &name],
        vec!["list"],
        vec!["cancel", &name],
        vec!["delete", &name],
    ] {
        let output = run(&[&line[..], &["--endpoint", &address]].concat()).await;
        let problem = complained(&output);
        assert_eq!(output.status.code(), Some(0), "{line:?}: {problem}");
        if line == ["list"] {
            assert!(said(&output).contains(&name));
        }
    }
    // In a container, the probe knows where its server listens.
    let probe = command(&["healthcheck"])
        .env("LONGRUNNING_LISTEN", &address)
        .output()
        .await
        .unwrap();
    assert_eq!(probe.status.code(), Some(0), "{}", complained(&probe));
    let missing = format!("unix:{}", sockets.path().join("missing").display());
    let probe = run(&["healthcheck", "--endpoint", &missing]).await;
    assert_eq!(probe.status.code(), Some(1));
    let asked = run(&["get", &name, "--endpoint", &missing]).await;
    assert_eq!(asked.status.code(), Some(2));
}

#[tokio::test]
async fn a_command_whose_reader_has_gone_ends_without_a_panic() {
    let directory = endless();
    let program = Program::demo(directory.path()).await;
    let name = program.checksum("").await;
    for line in [
        vec!["list", "--output", "json"],
        vec!["list"],
        vec!["get", &name, "--output", "json"],
        vec!["get", &name],
        vec!["--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = command(&line)
            .env("LONGRUNNING_ENDPOINT", program.endpoint())
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.wait_with_output().await.unwrap();
        let problem = complained(&output);
        assert!(!problem.contains("panicked"), "{line:?}: {problem}");
        assert_ne!(output.status.code(), Some(101), "{line:?}");
    }
}

// BEHAVIOUR §10
#[tokio::test]
async fn a_watched_health_does_not_use_up_the_grace() {
    let program = Program::serve(&["--grace", "1h"]).await;
    let mut health = HealthClient::new(channel(program.endpoint()).await);
    let request = HealthCheckRequest::default();
    let mut states = health.watch(request).await.unwrap().into_inner();
    let mut next = async || states.message().await.unwrap().unwrap().status();
    assert_eq!(next().await, ServingStatus::Serving);
    program.signal("TERM").await;
    // What is told twice is no news.
    while next().await != ServingStatus::NotServing {}
    let end = tokio::time::timeout(GUARD, program.end()).await;
    assert_eq!(end.expect("it ends long before its grace"), Some(0));
}

#[tokio::test]
async fn a_wait_of_more_years_than_the_clock_has_does_not_panic() {
    for timeout in ["300000years", "500000000000years"] {
        let line = [
            "wait",
            "x",
            "--timeout",
            timeout,
            "--endpoint",
            "http://127.0.0.1:1",
        ];
        let output = run(&line).await;
        let problem = complained(&output);
        assert_eq!(output.status.code(), Some(2), "{problem}");
        assert!(problem.contains("no server answers"), "{problem}");
    }
}
