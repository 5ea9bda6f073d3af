//! The commands `submit`, `work` and `run`, as processes beside a server.

use std::{path::Path, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::support::serve_process::{ServeProcess, longrunning_command, stderr, stdout};

/// Returns the flags for the endpoints of a server.
fn endpoint_flags(program: &ServeProcess) -> [String; 4] {
    [
        "--worker-endpoint".into(),
        format!("http://{}", program.worker_address),
        "--endpoint".into(),
        program.endpoint(),
    ]
}

async fn send_signal(child: &Child, name: &str) {
    let id = child.id().expect("expected a running process").to_string();
    let kill = Command::new("kill").args(["-s", name, &id]).status();
    assert!(kill.await.unwrap().success());
}

/// Submits an operation and waits until the command of a worker runs it.
async fn spawn_busy_worker(
    program: &ServeProcess,
    arguments: &[&str],
    script: &str,
    directory: &Path,
) -> Child {
    let flags = endpoint_flags(program);
    let mut submit = longrunning_command(&["submit", "q", "--id", "one"]);
    let submitted = submit.args(&flags).output().await.unwrap();
    assert!(submitted.status.success());
    let ready_file = directory.join("ready");
    let script = format!(
        "{script}; echo > {}; while :; do sleep 0.01; done",
        ready_file.display()
    );
    let worker = longrunning_command(&["work", "--queue", "q", "--worker-endpoint", &flags[1]])
        .args(arguments)
        .args(["--", "sh", "-c", &script])
        .stderr(Stdio::piped())
        .spawn();
    while !ready_file.exists() {
        tokio::task::yield_now().await;
    }
    worker.unwrap()
}

/// Returns `true` if this process ignores SIGHUP, as after `nohup`.
fn is_sighup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 != 0)
}

async fn is_pending(program: &ServeProcess) -> bool {
    let got = program
        .run_command(&["get", "one", "--output", "json"])
        .await;
    stdout(&got).contains("\"PENDING\"")
}

// Rules: CLI-5, COMMAND-4
#[tokio::test]
async fn sigterm_or_sighup_drains_worker_and_sends_sigterm_to_command() {
    for name in ["TERM", "HUP"] {
        if name == "HUP" && is_sighup_ignored() {
            eprintln!(
                "skipped: this process ignores SIGHUP (nohup), and its children inherit that"
            );
            continue;
        }
        let program = ServeProcess::serve(&[]).await;
        let directory = tempfile::tempdir().unwrap();
        let saved_file = directory.path().join("saved");
        let script = format!("trap 'echo > {}; exit 0' TERM", saved_file.display());
        let mut worker = spawn_busy_worker(
            &program,
            &["--shutdown-timeout", "2s"],
            &script,
            directory.path(),
        )
        .await;
        send_signal(&worker, name).await;
        // A hangup closes the terminal, too.
        drop(worker.stderr.take());
        assert_eq!(worker.wait().await.unwrap().code(), Some(0), "{name}");
        assert!(saved_file.exists(), "{name}");
        assert!(is_pending(&program).await, "{name}");
    }
}

// Rules: CLI-5
#[tokio::test]
async fn second_signal_releases_operation_immediately() {
    let program = ServeProcess::serve(&[]).await;
    let directory = tempfile::tempdir().unwrap();
    let arguments = [
        "--shutdown-timeout",
        "1h",
        "--log-filter",
        "longrunning=info",
    ];
    let mut worker =
        spawn_busy_worker(&program, &arguments, "trap '' TERM", directory.path()).await;
    send_signal(&worker, "TERM").await;
    let mut lines = BufReader::new(worker.stderr.take().unwrap()).lines();
    while !lines
        .next_line()
        .await
        .unwrap()
        .expect("expected a log line")
        .contains("draining")
    {}
    send_signal(&worker, "TERM").await;
    assert_eq!(worker.wait().await.unwrap().code(), Some(130));
    assert!(is_pending(&program).await);
}

// Rules: CLI-2, CLIENT-9
#[tokio::test]
async fn worker_reports_invalid_log_filter_and_unreachable_server() {
    let arguments = [
        "work",
        "--queue",
        "q",
        "--log-filter",
        "a=b=c",
        "--",
        "true",
    ];
    let rejected = longrunning_command(&arguments).output().await.unwrap();
    assert_eq!(rejected.status.code(), Some(2));
    assert!(stderr(&rejected).contains("invalid log filter"));

    let unreachable = [
        "work",
        "--queue",
        "q",
        "--worker-endpoint",
        "http://127.0.0.1:1",
    ];
    let mut worker = longrunning_command(&unreachable)
        .args(["--", "true"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(worker.stderr.take().unwrap()).lines();
    let mut line = String::new();
    while !line.contains("server unreachable, retrying") {
        line = lines
            .next_line()
            .await
            .unwrap()
            .expect("expected a log line");
    }
    assert!(line.contains("WARN") && line.contains("refused"), "{line}");
}

// Rules: COMMAND-1, COMMAND-2
#[tokio::test]
async fn submitted_operation_is_executed_by_worker_command() {
    let program = ServeProcess::serve(&[]).await;
    let flags = endpoint_flags(&program);
    let script = r#"echo "::progress 1/2 steps"; read input; echo "{\"got\": $input}""#;
    let mut worker = longrunning_command(&["work", "--queue", "q", "--worker-endpoint", &flags[1]])
        .args(["--", "sh", "-c", script])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let submitted = longrunning_command(&["submit", "q", "--input", "{\"a\": 1}", "--wait"])
        .args(["--output", "json"])
        .args(&flags)
        .output()
        .await
        .unwrap();
    assert_eq!(submitted.status.code(), Some(0), "{}", stderr(&submitted));
    assert!(
        stdout(&submitted).contains(r#""got""#),
        "{}",
        stdout(&submitted)
    );
    send_signal(&worker, "TERM").await;
    assert_eq!(worker.wait().await.unwrap().code(), Some(0));
}

// Rules: CLI-3
#[tokio::test]
async fn run_creates_operation_and_maps_outcome_to_exit_code() {
    let program = ServeProcess::serve(&[]).await;
    let flags = endpoint_flags(&program);
    for (script, code, expected) in [
        ("echo hello", 0, "hello"),
        ("echo no such book >&2; exit 3", 1, "no such book"),
    ] {
        let output = longrunning_command(&["run", "--label", "k=v"])
            .args(&flags)
            .args(["--", "sh", "-c", script])
            .output()
            .await
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stdout(&output).contains(expected), "{}", stdout(&output));
    }
    let rejected = longrunning_command(&["run"])
        .args(&flags)
        .args(["--", "no-such-program"])
        .output()
        .await
        .unwrap();
    assert_eq!(rejected.status.code(), Some(2));
    assert!(stderr(&rejected).contains("not found"));
}

// Rules: CLI-3
#[tokio::test]
async fn interrupted_run_cancels_operation_and_exits_with_130() {
    let program = ServeProcess::serve(&[]).await;
    let flags = endpoint_flags(&program);
    let mut run = longrunning_command(&["run"])
        .args(&flags)
        .args(["--", "sh", "-c", "echo ready >&2; sleep 600"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(run.stderr.take().unwrap()).lines();
    while lines.next_line().await.unwrap().expect("expected output") != "ready" {}
    send_signal(&run, "INT").await;
    let output = run.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(stdout(&output).contains("CANCELLED"), "{}", stdout(&output));
}
