//! The file of a server, as those who run it handle it: the examples of
//! `docs/durability.md` as they stand there, and the commands for files.

use std::{process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

use crate::support::program::{Program, complained, run, said};

const PAGE: &str = include_str!("../../docs/durability.md");

/// Longer than the script takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The commands of the page, in one script: its jobs are those of one shell.
fn script() -> String {
    // Whatever ends it, no server is left.
    let mut script = String::from("trap 'kill -9 $(jobs -p)' EXIT\n");
    for block in PAGE.split("<!-- tried -->\n```console\n").skip(1) {
        let (block, _) = block.split_once("```").unwrap();
        for line in block.lines() {
            let Some(line) = line.strip_prefix("$ ") else {
                continue;
            };
            script.push_str(line);
            script.push('\n');
            if line.ends_with('&') {
                // A reader takes longer to the next line than a server to start, and
                // sees when it ends instead.
                script.push_str("until longrunning healthcheck 2>/dev/null; do kill -0 $!; done\n");
            }
        }
    }
    script
}

#[tokio::test]
async fn the_examples_of_the_page_survive_a_kill_and_a_restore() {
    let place = tempfile::tempdir().unwrap();
    let own = std::path::Path::new(env!("CARGO_BIN_EXE_longrunning"));
    let path = std::env::var("PATH").unwrap();
    let socket = |name: &str| format!("unix:{}", place.path().join(name).display());
    let mut bash = Command::new("bash");
    bash.args(["-eo", "pipefail", "-c", &script()])
        .current_dir(place.path())
        .env(
            "PATH",
            format!("{}:{path}", own.parent().unwrap().display()),
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
    let group = format!("-{}", child.id().expect("it runs"));
    let Ok(output) = timeout(PATIENCE, child.wait_with_output()).await else {
        let kill = Command::new("kill").args(["-9", "--", &group]).status();
        panic!("the script does not end: {:?}", kill.await);
    };
    let output = output.unwrap();
    let text = said(&output);
    assert!(output.status.success(), "{text}\n{}", complained(&output));
    // The creation, the list after the kill, the backup, the list after the restore.
    let seen = text.matches("kind=report").count();
    assert_eq!(seen, 4, "{text}");
    assert!(text.contains("copied operations.db to monday.db"), "{text}");
    assert!(text.contains("operations  1: 1 PENDING"), "{text}");
}

#[tokio::test]
async fn inspect_tells_what_a_file_holds_also_while_a_server_has_it_open() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("operations.db");
    let file = file.to_str().unwrap();
    let program = Program::serve(&["--store", &format!("sqlite:{file}")]).await;
    let workers = format!("http://{}", program.workers);
    let submit = [
        "submit",
        "q",
        "--worker-endpoint",
        &workers,
        "--label",
        "n=1",
    ];
    for _ in 0..3 {
        assert!(run(&submit).await.status.success());
    }
    let inspected = run(&["inspect", file, "--limit", "2"]).await;
    let text = said(&inspected);
    assert!(inspected.status.success(), "{}", complained(&inspected));
    assert!(text.contains("operations  3: 3 PENDING"), "{text}");
    assert_eq!(text.matches("n=1").count(), 2, "{text}");

    let inspected = run(&["inspect", file, "--output", "json"]).await;
    let json: serde_json::Value = serde_json::from_str(said(&inspected)).unwrap();
    assert_eq!(json["states"]["PENDING"], 3, "{json:#}");
    assert_eq!(json["operations"].as_array().unwrap().len(), 3);
    assert_eq!(json["damaged"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn what_is_wrong_with_a_store_is_said_in_one_line() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("operations.db");
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
        let mut words: Vec<String> = serve.map(str::to_owned).to_vec();
        words.extend([
            "--admin-listen".into(),
            "none".into(),
            "--log".into(),
            "error".into(),
        ]);
        words.extend(["--store".into(), store]);
        async move {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            run(&words).await
        }
    };
    let copy = place.path().join("copy.db");
    let copy = copy.to_str().unwrap();
    let nowhere = place.path().join("no/such/file.db");
    let nowhere = nowhere.to_str().unwrap();
    for (output, expected) in [
        (run(&["inspect", file]).await, "there is no file"),
        (
            run(&["backup", "--store", &store, copy]).await,
            "there is no file",
        ),
        (
            run(&["backup", "--store", "memory", copy]).await,
            "sqlite:PATH",
        ),
        (serve("sqlite:".into()).await, "sqlite:PATH"),
        (serve("redis:x".into()).await, "sqlite:PATH"),
        (serve(format!("sqlite:{nowhere}")).await, "directory"),
    ] {
        let text = complained(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let program = Program::serve(&["--store", &store]).await;
    let second = serve(store.clone()).await;
    let text = complained(&second);
    assert!(text.contains("in use by another process"), "{text}");
    assert_eq!(
        (second.status.code(), text.lines().count()),
        (Some(2), 1),
        "{text}"
    );
    assert!(
        run(&["backup", "--store", &store, copy])
            .await
            .status
            .success()
    );
    let again = run(&["backup", "--store", &store, copy]).await;
    assert!(complained(&again).contains("exists already"));
    drop(program);
}
