//! The commands that create and do work: `submit`, `work` and `run`, as
//! processes beside a server.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};

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
    let pid = worker.id().unwrap().to_string();
    let kill = tokio::process::Command::new("kill").arg(pid).status().await;
    assert!(kill.unwrap().success());
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
    let pid = run.id().unwrap().to_string();
    let kill = tokio::process::Command::new("kill")
        .args(["-INT", &pid])
        .status()
        .await;
    assert!(kill.unwrap().success());
    let output = run.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(said(&output).contains("CANCELLED"), "{}", said(&output));
}
