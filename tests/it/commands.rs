//! The commands: what they print and how they exit, against a running server.

use std::{path::Path, process::Stdio};

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::program::{Program, command, complained, endless, run, said};

/// A directory with two small files, and the digest that `sha256sum` gives.
fn small() -> (tempfile::TempDir, &'static str) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a"), "hello\n").unwrap();
    std::fs::write(directory.path().join("b"), "").unwrap();
    // (sha256sum a; sha256sum b) | sha256sum
    (
        directory,
        "a63274ae4ed2aefabdeb54e957f7578ef7251e73327728ca66f13480bfd9e237",
    )
}

async fn demo(directory: &Path) -> std::process::Output {
    run(&["demo", directory.to_str().unwrap()]).await
}

#[tokio::test]
async fn the_demo_hashes_a_directory_and_prints_the_operation_and_how_to_look_at_it() {
    let (directory, digest) = small();
    let output = demo(directory.path()).await;
    assert_eq!(output.status.code(), Some(0));
    let json = said(&output);
    for part in [
        "\"done\": true",
        "\"files\": \"2\"",
        "\"bytes\": \"6\"",
        digest,
        "\"state\": \"SUCCEEDED\"",
    ] {
        assert!(json.contains(part), "{part} is not in {json}");
    }
    for line in [
        "grpcurl -plaintext",
        "curl -s --http2-prior-knowledge",
        "longrunning get operations/",
    ] {
        assert!(complained(&output).contains(line), "{line}");
    }
}

#[tokio::test]
async fn the_demo_of_a_missing_directory_is_a_bad_call() {
    let output = demo(Path::new("/nowhere")).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(complained(&output).contains("/nowhere"));
}

#[tokio::test]
async fn commands_exit_with_0_for_success_and_1_for_a_failed_operation() {
    let (directory, _) = small();
    let program = Program::demo(directory.path()).await;
    let good = program.checksum("").await;
    let bad = program.checksum("missing").await;

    let waited = program.ask(&["wait", &good]).await;
    assert_eq!(waited.status.code(), Some(0));
    assert!(said(&waited).contains("SUCCEEDED"), "{}", said(&waited));
    let waited = program.ask(&["wait", &bad, "--output", "json"]).await;
    assert_eq!(waited.status.code(), Some(1));
    assert!(
        said(&waited).contains("DIRECTORY_NOT_FOUND"),
        "{}",
        said(&waited)
    );

    // A bare id stands for operations/ID.
    let id = good.strip_prefix("operations/").unwrap();
    assert_eq!(program.ask(&["get", id]).await.status.code(), Some(0));
    assert_eq!(program.ask(&["get", &bad]).await.status.code(), Some(1));
    assert_eq!(program.ask(&["watch", &bad]).await.status.code(), Some(1));

    let list = program.ask(&["list"]).await;
    let lines: Vec<&str> = said(&list).lines().collect();
    assert!(
        lines[0].starts_with("NAME") && lines[0].contains("STATE"),
        "{lines:?}"
    );
    assert!(
        lines[1].starts_with(&bad) && lines[2].starts_with(&good),
        "newest first: {lines:?}"
    );
    assert_eq!(
        said(&program.ask(&["list", "--limit", "1"]).await)
            .lines()
            .count(),
        2
    );

    let failed = program.ask(&["list", "--filter", "state = FAILED"]).await;
    let names: Vec<_> = said(&failed).lines().skip(1).collect();
    assert!(names.len() == 1 && names[0].starts_with(&bad), "{names:?}");
    let json = program
        .ask(&["list", "--filter", "error.code:*", "--output", "json"])
        .await;
    assert!(said(&json).contains(&bad) && !said(&json).contains(&good));
    let refused = program.ask(&["list", "--filter", "state = = FAILED"]).await;
    assert_eq!(refused.status.code(), Some(2));
    assert!(complained(&refused).contains("(INVALID_FILTER): filter: column 9"));

    assert_eq!(program.ask(&["delete", &good]).await.status.code(), Some(0));
    let gone = program.ask(&["get", &good]).await;
    assert_eq!(gone.status.code(), Some(2));
    assert!(
        complained(&gone).contains("NOT_FOUND (OPERATION_NOT_FOUND)"),
        "{}",
        complained(&gone)
    );
}

#[tokio::test]
async fn wait_gives_up_with_3_and_cancel_ends_the_work() {
    let directory = endless();
    let program = Program::demo(directory.path()).await;
    let name = program.checksum("").await;
    let waited = program.ask(&["wait", &name, "--timeout", "50ms"]).await;
    assert_eq!(waited.status.code(), Some(3));
    assert_eq!(program.ask(&["cancel", &name]).await.status.code(), Some(0));
    let waited = program.ask(&["wait", &name]).await;
    assert_eq!(waited.status.code(), Some(1));
    assert!(said(&waited).contains("CANCELLED"), "{}", said(&waited));
}

#[tokio::test]
async fn ctrl_c_cancels_the_demo_and_exits_with_130() {
    let directory = endless();
    let mut child = command(&["demo", directory.path().to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while !lines
        .next_line()
        .await
        .unwrap()
        .expect("it goes on")
        .starts_with("created ")
    {}
    let pid = child.id().unwrap().to_string();
    // Until the demo listens for it, the signal would end it the rough way.
    let caught = format!("/proc/{pid}/status");
    while !std::fs::read_to_string(&caught)
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
    assert!(said(&output).contains("\"code\": 1"), "{}", said(&output));
}
