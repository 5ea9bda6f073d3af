//! Commands as executors: what a program is given, and what becomes of what it
//! says and of how it ends. The programs are real scripts of `sh`.

use std::{path::Path, sync::Arc, time::Duration};

use longrunning::{
    Any, CommandError, CommandHandler, NewOperation, Operation, Operations, Payload, RetryPolicy,
    Terms, proto::google::longrunning as google,
};
use parking_lot::Mutex;
use prost::{Message, Name};

use crate::support::{error, metadata, reason, response, text};

const MINUTE: Duration = Duration::from_secs(60);

fn sh(script: &str) -> CommandHandler {
    CommandHandler::new(["sh", "-c", script]).unwrap()
}

/// Operations whose queue `q` is worked on by a command, up to three times.
async fn with(command: CommandHandler) -> Operations {
    let retry = RetryPolicy {
        initial_backoff: Duration::ZERO,
        ..RetryPolicy::attempts(3)
    };
    let defaults = Terms {
        retry,
        ..Terms::default()
    };
    let builder = crate::support::operations().defaults(defaults);
    builder.handler("q", 1, command).start().await.unwrap()
}

fn queued() -> NewOperation {
    NewOperation::queued("q")
}

async fn done(operations: &Operations, operation: &Operation) -> google::Operation {
    let name = operation.owned_name();
    let done = operations.wait(&name, 10 * MINUTE).await.unwrap();
    assert!(done.is_done(), "{done:?}");
    done.to_proto()
}

async fn run(command: CommandHandler, new: NewOperation) -> google::Operation {
    let operations = with(command).await;
    let created = operations.create(new).await.unwrap().operation;
    done(&operations, &created).await
}

/// The text of a response that is a StringValue.
fn said(operation: &google::Operation) -> String {
    let response = response(operation);
    assert_eq!(response.type_url, String::type_url());
    String::decode(response.value.as_slice()).unwrap()
}

/// Runs a command until it reports progress.
async fn started(operations: &Operations, new: NewOperation) -> Arc<Operation> {
    let created = operations.create(new).await.unwrap().operation;
    let mut watch = operations.watch(&created.owned_name()).await.unwrap();
    while let Some(state) = watch.next().await {
        let state = state.unwrap();
        if metadata(&state.to_proto()).progress.is_some() {
            return state;
        }
    }
    panic!("it ended without progress");
}

fn packed<M: Name>(message: &M) -> Any {
    Payload::pack(message).any().clone()
}

/// Whether a process that wrote its id into a file is gone.
async fn is_gone(file: &Path) {
    let id = std::fs::read_to_string(file).unwrap();
    let status = format!("/proc/{}/stat", id.trim());
    // One that nobody has reaped yet is a zombie.
    while std::fs::read_to_string(&status).is_ok_and(|stat| !stat.contains(") Z ")) {
        tokio::task::yield_now().await;
    }
}

// BEHAVIOUR §5
#[tokio::test]
async fn a_command_finds_the_input_as_bare_json_on_standard_input_and_in_the_environment() {
    let script = r#"printf '%s %s' "$(cat)" "$LONGRUNNING_INPUT""#;
    for (input, json) in [
        (text("a \"b\""), r#""a \"b\"""#),
        (packed(&true), "true"),
        (
            packed(&prost_types::Duration::default()),
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
        let done = run(sh(script), queued().input(input)).await;
        assert_eq!(said(&done), format!("{json} {json}"));
    }
}

#[tokio::test]
async fn without_an_input_a_command_reads_nothing_and_the_variable_is_not_set() {
    let script = r#"printf '%s %s' "$(wc -c)" "${LONGRUNNING_INPUT-unset}""#;
    assert_eq!(said(&run(sh(script), queued()).await), "0 unset");
}

#[tokio::test]
async fn a_large_input_comes_on_standard_input_only_and_need_not_be_read() {
    let large = queued().input(text(&"x".repeat(300 << 10)));
    let script = r#"printf '%s %s' "${LONGRUNNING_INPUT-unset}" "$(wc -c)""#;
    let done = run(sh(script), large.clone()).await;
    assert_eq!(said(&done), format!("unset {}", (300 << 10) + 2));
    assert_eq!(said(&run(sh("echo unread"), large.clone()).await), "unread");
    // Neither read nor closed, by what is left behind.
    let done = run(sh("sleep 1000 & echo left"), large).await;
    assert_eq!(said(&done), "left");
}

#[tokio::test]
async fn a_command_finds_in_its_environment_what_it_works_on() {
    let script = r#"printf '%s|' "$LONGRUNNING_OPERATION" "$LONGRUNNING_ATTEMPT" "$LONGRUNNING_QUEUE" \
        "${#LONGRUNNING_LEASE_TOKEN}" "${LONGRUNNING_CHECKPOINT-unset}" "$TRACEPARENT" "${TRACESTATE-unset}"
        command -v cat"#;
    let new = queued()
        .parent("projects/p1")
        .id("one")
        .trace("traceparent", "00-4bf92f-01")
        // Creators may name anything, and must not get to choose programs.
        .trace("path", "/nowhere");
    let said = said(&run(sh(script), new).await);
    let expected = "projects/p1/operations/one|1|q|24|unset|00-4bf92f-01|unset|";
    assert!(
        said.starts_with(expected) && said.ends_with("/cat"),
        "{said}"
    );
}

#[tokio::test]
async fn standard_output_is_the_response() {
    let response = async |script: &str| response(&run(sh(script), queued()).await);
    for nothing in ["", "echo"] {
        let empty = response(nothing).await;
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
        assert_eq!(response(script).await, text(expected), "{script}");
    }
}

#[tokio::test]
async fn lines_that_report_are_progress_and_checkpoint_and_no_part_of_the_response() {
    let script = r#"echo one; echo '::progress 3/10 files in a'; echo '::progress soon'; printf two
        [ -p /dev/stdin ] && read -r _; exit 0"#;
    let operations = with(sh(script)).await;
    let created = operations.create(queued()).await.unwrap().operation;
    let done = done(&operations, &created).await;
    assert_eq!(said(&done), "one\n::progress soon\ntwo");
    let progress = metadata(&done).progress.unwrap();
    assert_eq!((progress.done_units, progress.total_units), (3, 10));
    assert_eq!(
        (progress.unit.as_str(), progress.message.as_str()),
        ("files", "in a")
    );
}

#[tokio::test]
async fn a_failed_attempt_is_retried_and_the_next_finds_the_checkpoint() {
    let script = r#"echo "$LONGRUNNING_ATTEMPT ${LONGRUNNING_CHECKPOINT-none}"
        case $LONGRUNNING_ATTEMPT in
            1) echo '::checkpoint {"row": 7}'; exit 1 ;;
            2) [ "$LONGRUNNING_CHECKPOINT" = '{"row":7}' ] && echo '::checkpoint row 8'; exit 1 ;;
        esac"#;
    assert_eq!(said(&run(sh(script), queued()).await), "3 \"row 8\"");
}

#[tokio::test]
async fn another_exit_code_is_a_failure_with_the_end_of_standard_error() {
    let script = "echo early >&2; echo useless; echo 'no such file' >&2; exit 3";
    let failed = error(&run(sh(script), queued()).await);
    assert_eq!(
        (failed.code, reason(&failed).as_str()),
        (2, "COMMAND_FAILED")
    );
    assert_eq!(
        failed.message,
        "`sh` exited with code 3: early\nno such file"
    );
    let killed = error(&run(sh("kill -KILL $$"), queued()).await);
    assert_eq!(
        (killed.code, reason(&killed).as_str()),
        (2, "COMMAND_KILLED")
    );
    assert_eq!(killed.message, "`sh` was killed by signal 9");
}

#[tokio::test]
async fn each_line_of_standard_error_is_shown_to_who_wants_it() {
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let shown = lines.clone();
    let command = sh("echo one >&2; echo two >&2").show_stderr(move |context, line| {
        assert_eq!(context.attempt(), 1);
        shown.lock().push(line.to_owned());
    });
    run(command, queued()).await;
    assert_eq!(*lines.lock(), ["one", "two"]);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_refused_at_once_and_one_that_vanished_when_it_starts() {
    let refused = |word: &str| CommandHandler::new([word]).unwrap_err();
    assert_eq!(
        CommandHandler::new([""; 0]).unwrap_err(),
        CommandError::Empty
    );
    assert_eq!(
        refused("no-such-program"),
        CommandError::NotFound("no-such-program".into())
    );
    assert_eq!(
        refused("/etc/passwd"),
        CommandError::NotExecutable("/etc/passwd".into())
    );

    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("program");
    std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
    let command = CommandHandler::new([&program]).unwrap();
    std::fs::remove_file(&program).unwrap();
    let failed = error(&run(command, queued()).await);
    assert_eq!(
        (failed.code, reason(&failed).as_str()),
        (14, "COMMAND_NOT_STARTED")
    );
}

#[tokio::test]
async fn output_without_end_ends_the_command() {
    let directory = tempfile::tempdir().unwrap();
    let id = directory.path().join("id");
    for endless in ["exec yes", "exec cat /dev/zero"] {
        let script = format!("echo $$ > {}; {endless}", id.display());
        let failed = error(&run(sh(&script), queued()).await);
        assert_eq!(
            (failed.code, reason(&failed).as_str()),
            (8, "OUTPUT_TOO_LARGE")
        );
        is_gone(&id).await;
    }
}

#[tokio::test]
async fn what_a_command_leaves_behind_does_not_hold_the_operation_and_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let id = directory.path().join("id");
    let script = format!("sleep 1000 & echo $! > {}; printf done", id.display());
    assert_eq!(said(&run(sh(&script), queued()).await), "done");
    is_gone(&id).await;
}

#[tokio::test]
async fn a_cancelled_command_gets_sigterm_and_may_still_succeed() {
    for (script, code) in [
        ("trap 'echo saved; exit 0' TERM", None),
        ("trap 'exit 0' TERM", Some(1)),
        ("trap 'echo broken; exit 1' TERM", Some(1)),
        (":", Some(1)),
    ] {
        let script = format!("{script}; echo '::progress 0.5'; while :; do sleep 0.01; done");
        let operations = with(sh(&script)).await;
        let state = started(&operations, queued()).await;
        operations.cancel(&state.owned_name()).await.unwrap();
        let done = done(&operations, &state).await;
        match code {
            None => assert_eq!(said(&done), "saved"),
            Some(code) => assert_eq!(error(&done).code, code),
        }
    }
}

#[tokio::test]
async fn a_command_that_ignores_sigterm_is_killed_with_all_that_it_started() {
    let directory = tempfile::tempdir().unwrap();
    let id = directory.path().join("id");
    let script = format!(
        "trap '' TERM; sleep 1000 & echo $! > {}; echo '::progress 0.5'; while :; do wait; done",
        id.display()
    );
    let operations = with(sh(&script).kill_after(Duration::from_millis(1))).await;
    let state = started(&operations, queued()).await;
    operations.cancel(&state.owned_name()).await.unwrap();
    assert_eq!(error(&done(&operations, &state).await).code, 1);
    is_gone(&id).await;
}

#[tokio::test]
async fn a_command_whose_lease_is_lost_is_killed_with_all_that_it_started() {
    let directory = tempfile::tempdir().unwrap();
    let (id, other) = (directory.path().join("id"), directory.path().join("other"));
    let script = format!(
        "trap '' TERM; echo $$ > {}; sleep 1000 & echo $! > {}; echo '::progress 0.5'; wait; wait",
        id.display(),
        other.display()
    );
    let operations = with(sh(&script)).await;
    started(&operations, queued()).await;
    operations.shutdown(Duration::ZERO).await;
    is_gone(&id).await;
    is_gone(&other).await;
}

#[tokio::test]
async fn a_command_that_outlives_the_grace_gets_sigterm_before_it_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let saved = directory.path().join("saved");
    let script = format!(
        "trap 'echo yes > {}; exit 0' TERM; echo '::progress 0.5'; while :; do sleep 0.01; done",
        saved.display()
    );
    let operations = with(sh(&script)).await;
    started(&operations, queued()).await;
    operations.shutdown(Duration::ZERO).await;
    assert_eq!(std::fs::read_to_string(saved).unwrap(), "yes\n");
}
