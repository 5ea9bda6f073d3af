//! Database files as operators handle them: the examples of `docs/durability.md`,
//! `inspect`, `backup` and `restore`, and files that vanish.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{process::Command, time::timeout};

use crate::support::serve_process::{
    ServeProcess, longrunning_command, run_command, stderr, stdout,
};

const DURABILITY_GUIDE: &str = include_str!("../../../docs/durability.md");

/// Longer than the script takes on a slow machine.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(120);

/// Returns the commands of the guide as one script, because they share background jobs.
fn guide_script() -> String {
    // Kills the servers however the script ends.
    let mut script = String::from("trap 'kill -9 $(jobs -p)' EXIT\n");
    for block in DURABILITY_GUIDE
        .split("<!-- tried -->\n```console\n")
        .skip(1)
    {
        let (block, _) = block.split_once("```").unwrap();
        for line in block.lines() {
            let Some(line) = line.strip_prefix("$ ") else {
                continue;
            };
            script.push_str(line);
            script.push('\n');
            if line.ends_with('&') {
                // The script is faster than a reader: it waits until the server serves, and
                // fails if the server exits.
                script.push_str("until longrunning healthcheck 2>/dev/null; do kill -0 $!; done\n");
            }
        }
    }
    script
}

// Rules: DUR-1, SQLITE-5
#[tokio::test]
async fn durability_guide_examples_survive_kill_and_restore() {
    let directory = tempfile::tempdir().unwrap();
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_longrunning"));
    let path = std::env::var("PATH").unwrap();
    let socket = |name: &str| format!("unix:{}", directory.path().join(name).display());
    let mut bash = Command::new("bash");
    bash.args(["-eo", "pipefail", "-c", &guide_script()])
        .current_dir(directory.path())
        .env(
            "PATH",
            format!("{}:{path}", binary.parent().unwrap().display()),
        )
        .env("LONGRUNNING_LISTEN", socket("clients"))
        .env("LONGRUNNING_ENDPOINT", socket("clients"))
        .env("LONGRUNNING_WORKER_LISTEN", socket("workers"))
        .env("LONGRUNNING_WORKER_ENDPOINT", socket("workers"))
        .env("LONGRUNNING_ADMIN_LISTEN", "none")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let child = bash.spawn().unwrap();
    let group = format!("-{}", child.id().expect("expected a running script"));
    let Ok(output) = timeout(SCRIPT_TIMEOUT, child.wait_with_output()).await else {
        let kill = Command::new("kill").args(["-9", "--", &group]).status();
        panic!("the script does not exit: {:?}", kill.await);
    };
    let output = output.unwrap();
    let text = stdout(&output);
    assert!(output.status.success(), "{text}\n{}", stderr(&output));
    // After submit, after the kill, in the backup, and after the restore.
    let listed_count = text.matches("kind=report").count();
    assert_eq!(listed_count, 4, "{text}");
    assert!(text.contains("copied operations.db to monday.db"), "{text}");
    assert!(text.contains("operations  1: 1 PENDING"), "{text}");
}

// Rules: SQLITE-9
#[tokio::test]
async fn inspect_reads_database_while_server_has_it_open() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("operations.db");
    let file = file.to_str().unwrap();
    let server = ServeProcess::serve(&["--store", &format!("sqlite:{file}")]).await;
    let worker_endpoint = format!("http://{}", server.worker_address);
    let submit = [
        "submit",
        "q",
        "--worker-endpoint",
        &worker_endpoint,
        "--label",
        "n=1",
    ];
    for _ in 0..3 {
        assert!(run_command(&submit).await.status.success());
    }
    let inspected = run_command(&["inspect", file, "--limit", "2"]).await;
    let text = stdout(&inspected);
    assert!(inspected.status.success(), "{}", stderr(&inspected));
    assert!(text.contains("operations  3: 3 PENDING"), "{text}");
    assert_eq!(text.matches("n=1").count(), 2, "{text}");

    let inspected = run_command(&["inspect", file, "--output", "json"]).await;
    let json: serde_json::Value = serde_json::from_str(stdout(&inspected)).unwrap();
    assert_eq!(json["states"]["PENDING"], 3, "{json:#}");
    assert_eq!(json["operations"].as_array().unwrap().len(), 3);
    assert_eq!(json["damaged"].as_array().unwrap().len(), 0);
}

// Rules: SQLITE-8
#[tokio::test]
async fn database_open_errors_are_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("operations.db");
    let file = file.to_str().unwrap();
    let store = format!("sqlite:{file}");
    let serve = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--worker-listen",
        "none",
    ];
    let serve = |store: String| {
        let mut arguments: Vec<String> = serve.map(str::to_owned).to_vec();
        arguments.extend([
            "--admin-listen".into(),
            "none".into(),
            "--log-filter".into(),
            "error".into(),
        ]);
        arguments.extend(["--store".into(), store]);
        async move {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            run_command(&arguments).await
        }
    };
    let copy = directory.path().join("copy.db");
    let copy = copy.to_str().unwrap();
    let missing_directory_file = directory.path().join("no/such/file.db");
    let missing_directory_file = missing_directory_file.to_str().unwrap();
    for (output, expected) in [
        (run_command(&["inspect", file]).await, "there is no file"),
        (
            run_command(&["backup", "--store", &store, copy]).await,
            "there is no file",
        ),
        (
            run_command(&["backup", "--store", "memory", copy]).await,
            "sqlite:PATH",
        ),
        (serve("sqlite:".into()).await, "sqlite:PATH"),
        (serve("redis:x".into()).await, "sqlite:PATH"),
        (
            serve(format!("sqlite:{missing_directory_file}")).await,
            "directory",
        ),
    ] {
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let server = ServeProcess::serve(&["--store", &store]).await;
    let second = serve(store.clone()).await;
    let text = stderr(&second);
    assert!(text.contains("in use by another process"), "{text}");
    assert_eq!(
        (second.status.code(), text.lines().count()),
        (Some(2), 1),
        "{text}"
    );
    assert!(
        run_command(&["backup", "--store", &store, copy])
            .await
            .status
            .success()
    );
    let second_backup = run_command(&["backup", "--store", &store, copy]).await;
    assert!(stderr(&second_backup).contains("already exists"));
    drop(server);
}

/// Creates an operation.
async fn submit(server: &ServeProcess, input_bytes: usize) -> Output {
    let worker_endpoint = format!("http://{}", server.worker_address);
    let input = format!("{{\"data\": \"{}\"}}", "x".repeat(input_bytes));
    let arguments = ["submit", "q", "--worker-endpoint", &worker_endpoint];
    longrunning_command(&arguments)
        .args(["--input", &input])
        .output()
        .await
        .unwrap()
}

// Rules: SQLITE-13, ADM-1
#[tokio::test]
async fn server_is_not_ready_and_rejects_changes_once_file_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("operations.db");
    let server = ServeProcess::serve(&["--store", &format!("sqlite:{}", file.display())]).await;
    assert!(submit(&server, 10).await.status.success());
    for path in ["operations.db", "operations.db-wal", "operations.db-shm"] {
        std::fs::remove_file(directory.path().join(path)).unwrap();
    }
    let readiness = server.admin_get("/readyz").await;
    assert!(readiness.starts_with("HTTP/1.1 503"), "{readiness}");
    assert!(readiness.contains("was removed"), "{readiness}");
    let rejected = submit(&server, 10).await;
    assert_eq!(rejected.status.code(), Some(2), "{}", stdout(&rejected));
    assert!(stderr(&rejected).contains("UNAVAILABLE"));
    server.signal("TERM").await;
    assert_eq!(server.wait_for_exit().await, Some(0));

    let store = format!("sqlite:{}", file.display());
    let start = run_command(&["serve", "--store", &store, "--listen", "127.0.0.1:0"]).await;
    let text = stderr(&start);
    assert_eq!(start.status.code(), Some(2), "{text}");
    assert!(
        text.contains("is missing, but 1 writes were acknowledged"),
        "{text}"
    );
    assert!(!file.exists());
}

// Rules: SQLITE-12
#[tokio::test]
async fn restore_of_running_server_is_rejected_and_of_stopped_one_succeeds() {
    let directory = tempfile::tempdir().unwrap();
    let (file, backup) = (
        directory.path().join("operations.db"),
        directory.path().join("backup.db"),
    );
    let (file, backup) = (file.to_str().unwrap(), backup.to_str().unwrap());
    let store = format!("sqlite:{file}");
    let mut server = ServeProcess::serve(&["--store", &store]).await;
    assert!(submit(&server, 10).await.status.success());
    let copied = run_command(&["backup", "--store", &store, backup]).await;
    assert!(copied.status.success(), "{}", stderr(&copied));
    assert!(submit(&server, 10).await.status.success());
    for (target, expected) in [
        (file, "in use by another process"),
        (&*store, "without sqlite:"),
        (backup, "is the backup itself"),
    ] {
        let rejected = run_command(&["restore", backup, target]).await;
        assert_eq!(rejected.status.code(), Some(2));
        assert!(stderr(&rejected).contains(expected));
    }
    server.child.kill().await.unwrap();
    let restored = run_command(&["restore", backup, file]).await;
    let text = stdout(&restored);
    assert!(restored.status.success(), "{}", stderr(&restored));
    assert!(text.contains("the previous file is"), "{text}");
    let server = ServeProcess::serve(&["--store", &store]).await;
    let list = server.run_command(&["list"]).await;
    assert_eq!(stdout(&list).matches("PENDING").count(), 1);
}

// Rules: SQLITE-14
#[tokio::test]
async fn change_beyond_file_size_limit_is_rejected_and_server_lives() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("operations.db");
    let server = ServeProcess::serve(&["--store", &format!("sqlite:{}", file.display())]).await;
    let pid = server.child.id().unwrap().to_string();
    let set_limit = |limit: &str| {
        let mut command = Command::new("prlimit");
        command.args(["--pid", &pid, &format!("--fsize={limit}:unlimited")]);
        command.status()
    };
    let Ok(status) = set_limit("300000").await else {
        eprintln!("skipped: there is no prlimit");
        return;
    };
    assert!(status.success());
    let mut rejected = submit(&server, 100_000).await;
    while rejected.status.success() {
        rejected = submit(&server, 100_000).await;
    }
    let text = stderr(&rejected);
    assert!(text.contains("UNAVAILABLE"), "{text}");
    let readiness = server.admin_get("/readyz").await;
    assert!(readiness.starts_with("HTTP/1.1 503"), "{readiness}");
    assert!(set_limit("unlimited").await.unwrap().success());
    assert!(submit(&server, 100_000).await.status.success());
    let readiness = server.admin_get("/readyz").await;
    assert!(readiness.starts_with("HTTP/1.1 200"), "{readiness}");
}
