//! The command `serve`: flags, logs, listeners, signals and malformed connections.

use std::process::Stdio;

use longrunning::proto::google::longrunning::WaitOperationRequest;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    task::JoinSet,
};
use tonic::Code;

use crate::support::{
    get_request,
    operations::list_request,
    serve_process::{
        ServeProcess, endless_checksum_directory, longrunning_command, run_command, stderr, stdout,
    },
};

// Rules: CLI-1
#[tokio::test]
async fn help_of_every_command_shows_flags_defaults_and_variables() {
    for command in [
        "serve",
        "demo",
        "get",
        "list",
        "wait",
        "watch",
        "cancel",
        "delete",
        "healthcheck",
    ] {
        let output = run_command(&[command, "--help"]).await;
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(stdout(&output).contains("Usage: longrunning"), "{command}");
    }
    let help = run_command(&["serve", "--help"]).await;
    // The help text is wrapped to the terminal width.
    let help = stdout(&help)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    for text in [
        "127.0.0.1:8470",
        "127.0.0.1:8472",
        "LONGRUNNING_LISTEN",
        "default: 20s",
        "default: 10m",
    ] {
        assert!(help.contains(text), "{text}");
    }
}

// Rules: CLI-2
#[tokio::test]
async fn usage_error_exits_with_2_and_names_cause() {
    for (arguments, expected) in [
        (vec!["serve", "--lissen", "x"], "--lissen"),
        (vec!["serve", "--listen", "8470"], "write host:port"),
        (
            vec!["serve", "--shutdown-timeout", "soon"],
            "--shutdown-timeout",
        ),
        (vec!["serve", "--lease-duration", "1ms"], "at least 1s"),
        (
            vec!["serve", "--config", "/nowhere/x.toml"],
            "/nowhere/x.toml",
        ),
        (vec!["serve", "--log-filter", "a=b=c"], "invalid log filter"),
        (vec!["serve", "--demo", "/nowhere"], "/nowhere"),
        (vec!["get"], "<NAME>"),
        (
            vec!["get", "x", "--endpoint", "ftp://x"],
            "http://HOST:PORT",
        ),
        (
            vec!["get", "x", "--endpoint", "http://127.0.0.1:1"],
            "cannot connect to http://127.0.0.1:1",
        ),
        (vec!["dance"], "dance"),
    ] {
        let output = run_command(&arguments).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(
            stderr(&output).contains(expected),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
}

// Rules: CONN-7
#[tokio::test]
async fn port_in_use_error_names_listener() {
    let program = ServeProcess::serve(&[]).await;
    let output = run_command(&[
        "serve",
        "--listen",
        &program.client_address,
        "--admin-listen",
        "none",
    ])
    .await;
    assert_eq!(output.status.code(), Some(2));
    let expected = format!(
        "client listener: cannot listen on {}",
        program.client_address
    );
    assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
}

// Rules: ADM-1, MET-1
#[tokio::test]
async fn probes_reflect_server_lifecycle() {
    let program = ServeProcess::serve(&[]).await;
    assert!(
        program
            .admin_get("/livez")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(
        program
            .admin_get("/readyz")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(
        program
            .admin_get("/nothing")
            .await
            .starts_with("HTTP/1.1 404")
    );
    assert!(
        program
            .admin_get("/metrics")
            .await
            .contains("longrunning_operations{state=\"PENDING\"} 0")
    );
    assert_eq!(
        program.run_command(&["healthcheck"]).await.status.code(),
        Some(0)
    );
    program.signal("TERM").await;
    let endpoint = program.endpoint();
    assert_eq!(program.wait_for_exit().await, Some(0));
    assert_eq!(
        run_command(&["healthcheck", "--endpoint", &endpoint])
            .await
            .status
            .code(),
        Some(1)
    );
}

// Rules: SHUTDOWN-1, WAIT-10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_answers_1000_open_waits_and_exits_with_0() {
    let directory = endless_checksum_directory();
    let program = ServeProcess::serve_demo(directory.path()).await;
    let name = program.create_checksum("").await;
    let clients = [
        program.client().await,
        program.client().await,
        program.client().await,
    ];
    let mut waits = JoinSet::new();
    for number in 0..1000 {
        let (mut client, name) = (clients[number % clients.len()].clone(), name.clone());
        waits.spawn(async move {
            client
                .wait_operation(WaitOperationRequest {
                    name,
                    timeout: None,
                })
                .await
        });
    }
    while !program
        .admin_get("/metrics")
        .await
        .contains("longrunning_open_waits 1000")
    {
        tokio::task::yield_now().await;
    }
    program.signal("TERM").await;
    while let Some(result) = waits.join_next().await {
        assert!(!result.unwrap().unwrap().into_inner().done);
    }
    drop(clients);
    assert_eq!(program.wait_for_exit().await, Some(0));
}

// Rules: SHUTDOWN-6, ADM-1
#[tokio::test]
async fn second_signal_aborts_drain() {
    let directory = endless_checksum_directory();
    let mut program = ServeProcess::serve(&[
        "--demo",
        directory.path().to_str().unwrap(),
        "--shutdown-timeout",
        "1h",
    ])
    .await;
    program.create_checksum("").await;
    program.signal("TERM").await;
    while !program.read_log_line().await.contains("shutting down") {}
    assert!(
        program
            .admin_get("/readyz")
            .await
            .starts_with("HTTP/1.1 503")
    );
    assert!(
        program
            .admin_get("/livez")
            .await
            .starts_with("HTTP/1.1 200")
    );
    program.signal("INT").await;
    assert_eq!(program.wait_for_exit().await, Some(1));
}

// Rules: CONN-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_survives_1000_garbage_connections() {
    let program = ServeProcess::serve(&[]).await;
    let mut connections = JoinSet::new();
    for seed in 0..1000_u32 {
        let address = program.client_address.clone();
        connections.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // Half of them start with the HTTP/2 preface, so that its parser gets the garbage.
            let prefix: &[u8] = if seed % 2 == 0 {
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            } else {
                b""
            };
            let garbage: Vec<u8> = (0..64)
                .flat_map(|i: u32| seed.wrapping_mul(2 * i + 1).to_le_bytes())
                .collect();
            let _ = stream.write_all(prefix).await;
            let _ = stream.write_all(&garbage).await;
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
    }
    while connections.join_next().await.is_some() {}
    let list = program
        .client()
        .await
        .list_operations(list_request(""))
        .await
        .unwrap();
    assert!(list.into_inner().operations.is_empty());
}

// Rules: LIMIT-1
#[tokio::test]
async fn oversized_message_is_rejected_and_connection_stays_open() {
    let program = ServeProcess::serve(&["--max-message-bytes", "64KiB"]).await;
    let mut client = program.client().await;
    let oversized = get_request(&"x".repeat(100_000));
    let rejected = client.get_operation(oversized).await.unwrap_err();
    assert_eq!(rejected.code(), Code::ResourceExhausted);
    let missing = client.get_operation(get_request("operations/x")).await;
    assert_eq!(missing.unwrap_err().code(), Code::NotFound);
}

// Rules: ADM-2
#[tokio::test]
async fn log_is_json_without_terminal() {
    let ports = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--worker-listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
    ];
    let mut child = longrunning_command(&ports)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    for listener in ["clients", "workers", "admin"] {
        let line = lines
            .next_line()
            .await
            .unwrap()
            .expect("expected a log line");
        let field = format!("\"{listener}\":\"127.0.0.1:");
        assert!(
            line.starts_with('{')
                && line.contains("\"message\":\"listening\"")
                && line.contains(&field),
            "{line}"
        );
    }
    let line = lines
        .next_line()
        .await
        .unwrap()
        .expect("expected a log line");
    assert!(line.contains("\"message\":\"serving\""), "{line}");
}
