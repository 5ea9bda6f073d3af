//! The commands that create and do work: `submit`, `work` and `run`, as
//! processes beside a server.

use std::{path::Path, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::support::program::{Program, command, complained, said};

/// The flags that name the server.
fn server(program: &Program) -> [String; 4] {
    let http = |address: &str| format!("http://{address}");
    let workers = http(&program.workers);
    let clients = http(&program.clients);
    [
        "--worker-endpoint".into(),
        workers,
        "--endpoint".into(),
        clients,
    ]
}

async fn signal(child: &Child, name: &str) {
    let id = child.id().expect("it runs").to_string();
    let kill = Command::new("kill").args(["-s", name, &id]).status();
    assert!(kill.await.unwrap().success());
}

/// A worker whose command says by a file that it runs.
async fn busy(program: &Program, arguments: &[&str], script: &str, directory: &Path) -> Child {
    let flags = server(program);
    let mut submit = command(&["submit", "q", "--id", "one"]);
    let submitted = submit.args(&flags).output().await.unwrap();
    assert!(submitted.status.success());
    let ready = directory.join("ready");
    let script = format!(
        "{script}; echo > {}; while :; do sleep 0.01; done",
        ready.display()
    );
    let worker = command(&["work", "--queue", "q", "--worker-endpoint", &flags[1]])
        .args(arguments)
        .args(["--", "sh", "-c", &script])
        .stderr(Stdio::piped())
        .spawn();
    while !ready.exists() {
        tokio::task::yield_now().await;
    }
    worker.unwrap()
}

/// A program that was started by `nohup` is not to end with its terminal.
fn hangups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 != 0)
}

async fn is_pending(program: &Program) -> bool {
    let got = program.ask(&["get", "one", "--output", "json"]).await;
    said(&got).contains("\"PENDING\"")
}

#[tokio::test]
async fn a_command_gets_sigterm_before_the_grace_is_over_and_a_hangup_drains_too() {
    for name in ["TERM", "HUP"] {
        if name == "HUP" && hangups_are_ignored() {
            eprintln!(
                "skipped: who runs the tests ignores SIGHUP, as nohup does, and so do its children"
            );
            continue;
        }
        let program = Program::serve(&[]).await;
        let directory = tempfile::tempdir().unwrap();
        let saved = directory.path().join("saved");
        let script = format!("trap 'echo > {}; exit 0' TERM", saved.display());
        let mut worker = busy(&program, &["--grace", "2s"], &script, directory.path()).await;
        signal(&worker, name).await;
        // What hangs up takes the terminal away.
        drop(worker.stderr.take());
        assert_eq!(worker.wait().await.unwrap().code(), Some(0), "{name}");
        assert!(saved.exists(), "{name}");
        assert!(is_pending(&program).await, "{name}");
    }
}

#[tokio::test]
async fn a_second_signal_gives_the_operation_back_at_once() {
    let program = Program::serve(&[]).await;
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--grace", "1h", "--log", "longrunning=info"];
    let mut worker = busy(&program, &arguments, "trap '' TERM", directory.path()).await;
    signal(&worker, "TERM").await;
    let mut lines = BufReader::new(worker.stderr.take().unwrap()).lines();
    while !lines
        .next_line()
        .await
        .unwrap()
        .expect("it drains")
        .contains("draining")
    {}
    signal(&worker, "TERM").await;
    assert_eq!(worker.wait().await.unwrap().code(), Some(130));
    assert!(is_pending(&program).await);
}

#[tokio::test]
async fn a_worker_says_what_is_wrong_with_its_log_filter_and_that_no_server_answers() {
    let refused = ["work", "--queue", "q", "--log", "a=b=c", "--", "true"];
    let refused = command(&refused).output().await.unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(complained(&refused).contains("not a log filter"));

    let nobody = [
        "work",
        "--queue",
        "q",
        "--worker-endpoint",
        "http://127.0.0.1:1",
    ];
    let mut worker = command(&nobody)
        .args(["--", "true"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(worker.stderr.take().unwrap()).lines();
    let mut line = String::new();
    while !line.contains("calls to the server fail") {
        line = lines.next_line().await.unwrap().expect("it says so");
    }
    assert!(line.contains("WARN") && line.contains("refused"), "{line}");
}

#[tokio::test]
async fn what_is_submitted_is_done_by_the_command_of_a_worker() {
    let program = Program::serve(&[]).await;
    let flags = server(&program);
    let script = r#"echo "::progress 1/2 steps"; read input; echo "{\"got\": $input}""#;
    let mut worker = command(&["work", "--queue", "q", "--worker-endpoint", &flags[1]])
        .args(["--", "sh", "-c", script])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let submitted = command(&["submit", "q", "--input", "{\"a\": 1}", "--wait"])
        .args(["--output", "json"])
        .args(&flags)
        .output()
        .await
        .unwrap();
    assert_eq!(
        submitted.status.code(),
        Some(0),
        "{}",
        complained(&submitted)
    );
    assert!(
        said(&submitted).contains(r#""got""#),
        "{}",
        said(&submitted)
    );
    // SIGTERM drains.
    signal(&worker, "TERM").await;
    assert_eq!(worker.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_command_that_is_run_is_an_operation_and_its_end_the_exit_code() {
    let program = Program::serve(&[]).await;
    let flags = server(&program);
    for (script, code, expected) in [
        ("echo hello", 0, "hello"),
        ("echo no such book >&2; exit 3", 1, "no such book"),
    ] {
        let ran = command(&["run", "--label", "k=v"])
            .args(&flags)
            .args(["--", "sh", "-c", script])
            .output()
            .await
            .unwrap();
        assert_eq!(ran.status.code(), Some(code), "{}", complained(&ran));
        assert!(said(&ran).contains(expected), "{}", said(&ran));
    }
    let refused = command(&["run"])
        .args(&flags)
        .args(["--", "no-such-program"])
        .output()
        .await
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(complained(&refused).contains("there is no program"));
}

#[tokio::test]
async fn an_interrupted_run_ends_its_operation_as_cancelled_with_130() {
    let program = Program::serve(&[]).await;
    let flags = server(&program);
    let mut run = command(&["run"])
        .args(&flags)
        .args(["--", "sh", "-c", "echo ready >&2; sleep 600"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(run.stderr.take().unwrap()).lines();
    while lines.next_line().await.unwrap().expect("it begins") != "ready" {}
    signal(&run, "INT").await;
    let output = run.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(said(&output).contains("CANCELLED"), "{}", said(&output));
}
