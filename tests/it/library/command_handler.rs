//! Commands as handlers: the input and environment of a program, its output, its exit
//! code, and how it is stopped. The programs are `sh` scripts.

use std::{path::Path, sync::Arc, time::Duration};

use longrunning::{
    Any, CommandHandler, ExecutionOptions, InvalidCommand, NewOperation, Operation, Operations,
    Payload, RetryPolicy,
    proto::google::{longrunning as google, rpc::Code},
};
use parking_lot::Mutex;
use prost::{Message, Name};

use crate::support::{
    assertions::{assert_error_code, assert_failed_with},
    decode_metadata, expect_error, expect_response, operations_builder, string_value,
};

const MINUTE: Duration = Duration::from_secs(60);

fn sh(script: &str) -> CommandHandler {
    CommandHandler::new(["sh", "-c", script]).unwrap()
}

/// Starts operations with a command as the handler of queue `q`, and three attempts.
async fn start_with_command(command: CommandHandler) -> Operations {
    let retry = RetryPolicy::with_max_attempts(3).with_initial_backoff(Duration::ZERO);
    let defaults = ExecutionOptions::default().with_retry_policy(retry);
    let builder = operations_builder().default_options(defaults);
    builder.handler("q", 1, command).start().await.unwrap()
}

fn queued() -> NewOperation {
    NewOperation::queued("q")
}

async fn wait_until_done(operations: &Operations, operation: &Operation) -> google::Operation {
    let name = operation.name_owned();
    let done = operations.wait(&name, 10 * MINUTE).await.unwrap();
    assert!(done.is_done(), "{done:?}");
    done.to_proto()
}

async fn run_command(command: CommandHandler, new: NewOperation) -> google::Operation {
    let operations = start_with_command(command).await;
    let created = operations.create(new).await.unwrap().operation;
    wait_until_done(&operations, &created).await
}

/// Returns the text of a response of type StringValue.
fn response_text(operation: &google::Operation) -> String {
    let response = expect_response(operation);
    assert_eq!(response.type_url, String::type_url());
    String::decode(response.value.as_slice()).unwrap()
}

/// Creates an operation and waits until its command reports progress.
async fn wait_for_progress(operations: &Operations, new: NewOperation) -> Arc<Operation> {
    let created = operations.create(new).await.unwrap().operation;
    let mut watch = operations.watch(&created.name_owned()).await.unwrap();
    while let Some(operation) = watch.next().await {
        let operation = operation.unwrap();
        if decode_metadata(&operation.to_proto()).progress.is_some() {
            return operation;
        }
    }
    panic!("expected progress before completion");
}

fn pack<M: Name>(message: &M) -> Any {
    Payload::pack(message).any().clone()
}

/// Waits until the process that wrote its id into `pid_file` has exited.
async fn wait_for_exit(pid_file: &Path) {
    let id = std::fs::read_to_string(pid_file).unwrap();
    let status = format!("/proc/{}/stat", id.trim());
    // A zombie has exited, but its parent has not reaped it yet.
    while std::fs::read_to_string(&status).is_ok_and(|stat| !stat.contains(") Z ")) {
        tokio::task::yield_now().await;
    }
}

// Rules: COMMAND-1
#[tokio::test]
async fn input_is_plain_json_on_stdin_and_in_environment() {
    let script = r#"printf '%s %s' "$(cat)" "$LONGRUNNING_INPUT""#;
    for (input, json) in [
        (string_value("a \"b\""), r#""a \"b\"""#),
        (pack(&true), "true"),
        (
            pack(&prost_types::Duration::default()),
            r#"{"@type":"type.googleapis.com/google.protobuf.Duration","value":"0s"}"#,
        ),
        (
            Any {
                type_url: "acme.com/a.B".into(),
                value: vec![1, 2],
            },
            r#"{"@type":"acme.com/a.B","value":"AQI="}"#,
        ),
    ] {
        let done = run_command(sh(script), queued().input(input)).await;
        assert_eq!(response_text(&done), format!("{json} {json}"));
    }
}

// Rules: COMMAND-1
#[tokio::test]
async fn missing_input_gives_empty_stdin_and_unset_variable() {
    let script = r#"printf '%s %s' "$(wc -c)" "${LONGRUNNING_INPUT-unset}""#;
    assert_eq!(
        response_text(&run_command(sh(script), queued()).await),
        "0 unset"
    );
}

// Rules: COMMAND-1
#[tokio::test]
async fn large_input_is_on_stdin_only_and_may_stay_unread() {
    let large = queued().input(string_value(&"x".repeat(300 << 10)));
    let script = r#"printf '%s %s' "${LONGRUNNING_INPUT-unset}" "$(wc -c)""#;
    let done = run_command(sh(script), large.clone()).await;
    assert_eq!(response_text(&done), format!("unset {}", (300 << 10) + 2));
    assert_eq!(
        response_text(&run_command(sh("echo unread"), large.clone()).await),
        "unread"
    );
    // The leftover child process keeps stdin open and does not read it.
    let done = run_command(sh("sleep 1000 & echo left"), large).await;
    assert_eq!(response_text(&done), "left");
}

// Rules: COMMAND-1
#[tokio::test]
async fn command_environment_describes_operation_and_attempt() {
    let script = r#"printf '%s|' "$LONGRUNNING_OPERATION" "$LONGRUNNING_ATTEMPT" "$LONGRUNNING_QUEUE" \
        "${#LONGRUNNING_LEASE_TOKEN}" "${LONGRUNNING_CHECKPOINT-unset}" "$TRACEPARENT" "${TRACESTATE-unset}"
        command -v cat"#;
    let new = queued()
        .parent("projects/p1")
        .id("one")
        .trace_context("traceparent", "00-4bf92f-01")
        // A trace context must not override PATH.
        .trace_context("path", "/nowhere");
    let output = response_text(&run_command(sh(script), new).await);
    let expected = "projects/p1/operations/one|1|q|24|unset|00-4bf92f-01|unset|";
    assert!(
        output.starts_with(expected) && output.ends_with("/cat"),
        "{output}"
    );
}

// Rules: COMMAND-2
#[tokio::test]
async fn stdout_becomes_response() {
    let response = async |script: &str| expect_response(&run_command(sh(script), queued()).await);
    for script in ["", "echo"] {
        let empty = response(script).await;
        assert_eq!(empty.type_url, "type.googleapis.com/google.protobuf.Empty");
    }
    let object = response(r#"echo '{"pages": 3}'"#).await;
    let object = prost_types::Struct::decode(object.value.as_slice()).unwrap();
    assert_eq!(object.fields["pages"], 3.0.into());
    for (script, expected) in [
        (r"printf 'a\n\nb\n\n'", "a\n\nb\n"),
        ("echo '[1]'", "[1]"),
        (r"printf '\377'", "\u{fffd}"),
    ] {
        assert_eq!(response(script).await, string_value(expected), "{script}");
    }
}

// Rules: COMMAND-2
#[tokio::test]
async fn output_directives_are_reported_and_removed_from_response() {
    let script = r#"echo one; echo '::progress 3/10 files in a'; echo '::progress soon'; printf two
        [ -p /dev/stdin ] && read -r _; exit 0"#;
    let operations = start_with_command(sh(script)).await;
    let created = operations.create(queued()).await.unwrap().operation;
    let done = wait_until_done(&operations, &created).await;
    assert_eq!(response_text(&done), "one\n::progress soon\ntwo");
    let progress = decode_metadata(&done).progress.unwrap();
    // Success completes the reported 3 of 10.
    assert_eq!((progress.done_units, progress.total_units), (10, 10));
    assert_eq!(
        (progress.unit.as_str(), progress.message.as_str()),
        ("files", "in a")
    );
}

// Rules: HEARTBEAT-9
#[tokio::test]
async fn retried_command_gets_checkpoint_of_failed_attempt() {
    let script = r#"echo "$LONGRUNNING_ATTEMPT ${LONGRUNNING_CHECKPOINT-none}"
        case $LONGRUNNING_ATTEMPT in
            1) echo '::checkpoint {"row": 7}'; exit 1 ;;
            2) [ "$LONGRUNNING_CHECKPOINT" = '{"row":7}' ] && echo '::checkpoint row 8'; exit 1 ;;
        esac"#;
    assert_eq!(
        response_text(&run_command(sh(script), queued()).await),
        "3 \"row 8\""
    );
}

// Rules: COMMAND-3
#[tokio::test]
async fn nonzero_exit_or_signal_is_failure_with_stderr_tail() {
    let script = "echo early >&2; echo useless; echo 'no such file' >&2; exit 3";
    let failed = run_command(sh(script), queued()).await;
    assert_failed_with(&failed, Code::Unknown, "COMMAND_FAILED");
    assert_eq!(
        expect_error(&failed).message,
        "`sh` exited with code 3: early\nno such file"
    );
    let killed = run_command(sh("kill -KILL $$"), queued()).await;
    assert_failed_with(&killed, Code::Unknown, "COMMAND_KILLED");
    assert_eq!(expect_error(&killed).message, "`sh` was killed by signal 9");
}

// Rules: COMMAND-3
#[tokio::test]
async fn stderr_callback_gets_each_line() {
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let captured_lines = lines.clone();
    let command = sh("echo one >&2; echo two >&2").on_stderr_line(move |context, line| {
        assert_eq!(context.attempt(), 1);
        captured_lines.lock().push(line.to_owned());
    });
    run_command(command, queued()).await;
    assert_eq!(*lines.lock(), ["one", "two"]);
}

// Rules: COMMAND-6
#[tokio::test]
async fn missing_program_fails_at_construction_or_at_spawn() {
    let construction_error = |program: &str| CommandHandler::new([program]).unwrap_err();
    assert_eq!(
        CommandHandler::new([""; 0]).unwrap_err(),
        InvalidCommand::Empty
    );
    assert_eq!(
        construction_error("no-such-program"),
        InvalidCommand::NotFound("no-such-program".into())
    );
    assert_eq!(
        construction_error("/etc/passwd"),
        InvalidCommand::NotExecutable("/etc/passwd".into())
    );

    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("program");
    std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
    let command = CommandHandler::new([&program]).unwrap();
    std::fs::remove_file(&program).unwrap();
    let failed = run_command(command, queued()).await;
    assert_failed_with(&failed, Code::Unavailable, "COMMAND_START_FAILED");
}

// Rules: COMMAND-2
#[tokio::test]
async fn unbounded_output_kills_command() {
    let directory = tempfile::tempdir().unwrap();
    let pid_file = directory.path().join("id");
    for endless in ["exec yes", "exec cat /dev/zero"] {
        let script = format!("echo $$ > {}; {endless}", pid_file.display());
        let failed = run_command(sh(&script), queued()).await;
        assert_failed_with(&failed, Code::ResourceExhausted, "OUTPUT_TOO_LARGE");
        wait_for_exit(&pid_file).await;
    }
}

// Rules: COMMAND-5
#[tokio::test]
async fn leftover_child_processes_are_killed_and_do_not_delay_completion() {
    let directory = tempfile::tempdir().unwrap();
    let pid_file = directory.path().join("id");
    let script = format!("sleep 1000 & echo $! > {}; printf done", pid_file.display());
    assert_eq!(
        response_text(&run_command(sh(&script), queued()).await),
        "done"
    );
    wait_for_exit(&pid_file).await;
}

// Rules: COMMAND-4
#[tokio::test]
async fn cancelled_command_gets_sigterm_and_may_still_succeed() {
    for (script, response) in [
        ("trap 'echo saved; exit 0' TERM", Some("saved")),
        ("trap 'exit 0' TERM", None),
        ("trap 'echo broken; exit 1' TERM", None),
        (":", None),
    ] {
        let script = format!("{script}; echo '::progress 0.5'; while :; do sleep 0.01; done");
        let operations = start_with_command(sh(&script)).await;
        let operation = wait_for_progress(&operations, queued()).await;
        operations.cancel(&operation.name_owned()).await.unwrap();
        let done = wait_until_done(&operations, &operation).await;
        match response {
            Some(expected) => assert_eq!(response_text(&done), expected),
            None => assert_error_code(&done, Code::Cancelled),
        }
    }
}

// Rules: COMMAND-4
#[tokio::test]
async fn command_ignoring_sigterm_is_killed_with_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let pid_file = directory.path().join("id");
    let script = format!(
        "trap '' TERM; sleep 1000 & echo $! > {}; echo '::progress 0.5'; while :; do wait; done",
        pid_file.display()
    );
    let operations = start_with_command(sh(&script).kill_after(Duration::from_millis(1))).await;
    let operation = wait_for_progress(&operations, queued()).await;
    operations.cancel(&operation.name_owned()).await.unwrap();
    let done = wait_until_done(&operations, &operation).await;
    assert_error_code(&done, Code::Cancelled);
    wait_for_exit(&pid_file).await;
}

// Rules: COMMAND-4
#[tokio::test]
async fn command_with_lost_lease_is_killed_with_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let (pid_file, child_pid_file) = (directory.path().join("id"), directory.path().join("other"));
    let script = format!(
        "trap '' TERM; echo $$ > {}; sleep 1000 & echo $! > {}; echo '::progress 0.5'; wait; wait",
        pid_file.display(),
        child_pid_file.display()
    );
    let operations = start_with_command(sh(&script)).await;
    wait_for_progress(&operations, queued()).await;
    operations.shutdown(Duration::ZERO).await;
    wait_for_exit(&pid_file).await;
    wait_for_exit(&child_pid_file).await;
}

// Rules: COMMAND-4
#[tokio::test]
async fn command_exceeding_shutdown_grace_gets_sigterm_before_sigkill() {
    let directory = tempfile::tempdir().unwrap();
    let saved = directory.path().join("saved");
    let script = format!(
        "trap 'echo yes > {}; exit 0' TERM; echo '::progress 0.5'; while :; do sleep 0.01; done",
        saved.display()
    );
    let operations = start_with_command(sh(&script)).await;
    wait_for_progress(&operations, queued()).await;
    operations.shutdown(Duration::ZERO).await;
    assert_eq!(std::fs::read_to_string(saved).unwrap(), "yes\n");
}
