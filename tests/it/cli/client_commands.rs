//! Client commands against a running server: output and exit codes.

use std::{path::Path, process::Stdio};

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::serve_process::{
    ServeProcess, endless_checksum_directory, longrunning_command, run_command, stderr, stdout,
};

/// Creates a directory with two small files; returns it with its expected digest.
fn two_file_directory() -> (tempfile::TempDir, &'static str) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a"), "hello\n").unwrap();
    std::fs::write(directory.path().join("b"), "").unwrap();
    // (sha256sum a; sha256sum b) | sha256sum
    (
        directory,
        "a63274ae4ed2aefabdeb54e957f7578ef7251e73327728ca66f13480bfd9e237",
    )
}

async fn run_demo(directory: &Path) -> std::process::Output {
    run_command(&["demo", directory.to_str().unwrap()]).await
}

#[tokio::test]
async fn demo_prints_checksum_operation_and_example_commands() {
    let (directory, digest) = two_file_directory();
    let output = run_demo(directory.path()).await;
    assert_eq!(output.status.code(), Some(0));
    let json = stdout(&output);
    for expected in [
        "\"done\": true",
        "\"files\": \"2\"",
        "\"bytes\": \"6\"",
        digest,
        "\"state\": \"SUCCEEDED\"",
    ] {
        assert!(json.contains(expected), "expected {expected} in {json}");
    }
    for line in [
        "grpcurl -plaintext",
        "curl -s http://",
        "longrunning get operations/",
    ] {
        assert!(stderr(&output).contains(line), "{line}");
    }
}

// Rules: CLI-2
#[tokio::test]
async fn demo_with_missing_directory_exits_with_2() {
    let output = run_demo(Path::new("/nowhere")).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("/nowhere"));
}

// Rules: CLI-3
#[tokio::test]
async fn commands_exit_with_0_on_success_and_1_for_failed_operation() {
    let (directory, _) = two_file_directory();
    let program = ServeProcess::serve_demo(directory.path()).await;
    let succeeded_name = program.create_checksum("").await;
    let failed_name = program.create_checksum("missing").await;

    let waited = program.run_command(&["wait", &succeeded_name]).await;
    assert_eq!(waited.status.code(), Some(0));
    assert!(stdout(&waited).contains("SUCCEEDED"), "{}", stdout(&waited));
    let waited = program
        .run_command(&["wait", &failed_name, "--output", "json"])
        .await;
    assert_eq!(waited.status.code(), Some(1));
    assert!(
        stdout(&waited).contains("DIRECTORY_NOT_FOUND"),
        "{}",
        stdout(&waited)
    );

    // A bare id means operations/ID.
    let id = succeeded_name.strip_prefix("operations/").unwrap();
    assert_eq!(
        program.run_command(&["get", id]).await.status.code(),
        Some(0)
    );
    assert_eq!(
        program
            .run_command(&["get", &failed_name])
            .await
            .status
            .code(),
        Some(1)
    );
    assert_eq!(
        program
            .run_command(&["watch", &failed_name])
            .await
            .status
            .code(),
        Some(1)
    );

    let list = program.run_command(&["list"]).await;
    let lines: Vec<&str> = stdout(&list).lines().collect();
    assert!(
        lines[0].starts_with("NAME") && lines[0].contains("STATE"),
        "{lines:?}"
    );
    assert!(
        lines[1].starts_with(&failed_name) && lines[2].starts_with(&succeeded_name),
        "newest first: {lines:?}"
    );
    assert_eq!(
        stdout(&program.run_command(&["list", "--limit", "1"]).await)
            .lines()
            .count(),
        2
    );

    let failed = program
        .run_command(&["list", "--filter", "state = FAILED"])
        .await;
    let names: Vec<_> = stdout(&failed).lines().skip(1).collect();
    assert!(
        names.len() == 1 && names[0].starts_with(&failed_name),
        "{names:?}"
    );
    let json = program
        .run_command(&["list", "--filter", "error.code:*", "--output", "json"])
        .await;
    assert!(stdout(&json).contains(&failed_name) && !stdout(&json).contains(&succeeded_name));
    let rejected = program
        .run_command(&["list", "--filter", "state = = FAILED"])
        .await;
    assert_eq!(rejected.status.code(), Some(2));
    assert!(stderr(&rejected).contains("(INVALID_FILTER): filter: column 9"));

    assert_eq!(
        program
            .run_command(&["delete", &succeeded_name])
            .await
            .status
            .code(),
        Some(0)
    );
    let deleted = program.run_command(&["get", &succeeded_name]).await;
    assert_eq!(deleted.status.code(), Some(2));
    assert!(
        stderr(&deleted).contains("NOT_FOUND (OPERATION_NOT_FOUND)"),
        "{}",
        stderr(&deleted)
    );
}

// Rules: CLI-3
#[tokio::test]
async fn wait_timeout_exits_with_3_and_cancel_stops_handler() {
    let directory = endless_checksum_directory();
    let program = ServeProcess::serve_demo(directory.path()).await;
    let name = program.create_checksum("").await;
    let waited = program
        .run_command(&["wait", &name, "--timeout", "50ms"])
        .await;
    assert_eq!(waited.status.code(), Some(3));
    assert_eq!(
        program.run_command(&["cancel", &name]).await.status.code(),
        Some(0)
    );
    let waited = program.run_command(&["wait", &name]).await;
    assert_eq!(waited.status.code(), Some(1));
    assert!(stdout(&waited).contains("CANCELLED"), "{}", stdout(&waited));
}

// Rules: CLI-3
#[tokio::test]
async fn ctrl_c_cancels_demo_and_exits_with_130() {
    let directory = endless_checksum_directory();
    let mut child = longrunning_command(&["demo", directory.path().to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while !lines
        .next_line()
        .await
        .unwrap()
        .expect("expected more output")
        .starts_with("created ")
    {}
    let pid = child.id().unwrap().to_string();
    // Before the demo installs its handler, SIGINT would kill it.
    let status_file = format!("/proc/{pid}/status");
    while !std::fs::read_to_string(&status_file)
        .unwrap()
        .lines()
        .any(|line| {
            line.strip_prefix("SigCgt:")
                .is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() & 2 != 0)
        })
    {
        tokio::task::yield_now().await;
    }
    assert!(
        tokio::process::Command::new("kill")
            .args(["-s", "INT", &pid])
            .status()
            .await
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(
        stdout(&output).contains("\"code\": 1"),
        "{}",
        stdout(&output)
    );
}

// Rules: DEL-4
#[tokio::test]
async fn deleted_operation_is_listed_and_cancelled_over_worker_listener() {
    let program = ServeProcess::serve(&[]).await;
    let workers = format!("http://{}", program.worker_address);
    let run = async |arguments: &[&str]| {
        let output = program
            .run_command(&[arguments, &["--worker-endpoint", &workers]].concat())
            .await;
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output).to_owned()
    };
    let submitted = run(&["submit", "q"]).await;
    let name = submitted
        .split_whitespace()
        .find(|word| word.starts_with("operations/"));
    let name = name.unwrap();
    let deleted = program.run_command(&["delete", name]).await;
    assert_eq!(deleted.status.code(), Some(0));
    assert_eq!(run(&["list"]).await, "");
    let table = run(&["list", "--show-deleted"]).await;
    assert!(
        table.contains(name) && table.contains("PENDING (deleted)"),
        "{table}"
    );
    let json = run(&["list", "--show-deleted", "--output", "json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["deletedNames"], serde_json::json!([name]));
    run(&["cancel", "--deleted", name]).await;
    assert_eq!(run(&["list", "--show-deleted"]).await, "");
}
