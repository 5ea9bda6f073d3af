//! The log of `serve` and `work` when the reader of standard error stops.

use std::{process::Stdio, time::Duration};

use tokio::{io::AsyncReadExt, net::unix::pipe, time::timeout};
use tonic::Code;

use crate::support::{
    get_request,
    serve_process::{ServeProcess, endless_checksum_directory, longrunning_command},
};

/// Far longer than anything here takes, and shorter than the patience of CI.
const HANG_TIMEOUT: Duration = Duration::from_secs(120);

/// Returns the number of dropped lines.
async fn dropped_lines(program: &ServeProcess) -> u64 {
    let metrics = program.admin_get("/metrics").await;
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix("longrunning_log_dropped_lines_total "));
    value.expect("expected the metric").parse().unwrap()
}

/// Makes calls, each with many lines in the log that nothing reads, until lines are dropped.
async fn fill_log(program: &ServeProcess) {
    let mut client = program.client().await;
    while dropped_lines(program).await == 0 {
        for _ in 0..100 {
            let missing = client.get_operation(get_request("operations/x")).await;
            assert_eq!(missing.unwrap_err().code(), Code::NotFound);
        }
    }
}

/// Returns a pipe that is full, as standard error of a program, and its other end.
fn full_pipe() -> (Stdio, pipe::Receiver) {
    let (sender, receiver) = pipe::pipe().unwrap();
    while sender.try_write(&[b'-'; 4096]).is_ok() {}
    // A smaller write may still fit.
    while sender.try_write(b"-").is_ok() {}
    (sender.into_blocking_fd().unwrap().into(), receiver)
}

// Rules: ADM-3, SHUTDOWN-6
#[tokio::test]
async fn log_reader_that_stops_blocks_no_call_probe_or_signal() {
    let directory = endless_checksum_directory();
    let root = directory.path().to_str().unwrap();
    let arguments = [
        "--log-filter",
        "trace",
        "--demo",
        root,
        "--shutdown-timeout",
        "1h",
    ];
    let program = ServeProcess::serve(&arguments).await;
    let test = async {
        program.create_checksum("").await;
        fill_log(&program).await;
        let missing = program.client().await.get_operation(get_request("x")).await;
        assert_eq!(missing.unwrap_err().code(), Code::NotFound);
        let probe = program.admin_get("/livez").await;
        assert!(probe.starts_with("HTTP/1.1 200"), "{probe}");
        program.signal("TERM").await;
        while program
            .admin_get("/readyz")
            .await
            .starts_with("HTTP/1.1 200")
        {}
        program.signal("TERM").await;
        program.wait_for_exit().await
    };
    assert_eq!(timeout(HANG_TIMEOUT, test).await.unwrap(), Some(1));
}

// Rules: ADM-3, SHUTDOWN-1
#[tokio::test]
async fn dropped_log_lines_are_reported_when_log_is_read_again() {
    let mut program = ServeProcess::serve(&["--log-filter", "trace"]).await;
    let test = async {
        fill_log(&program).await;
        let dropped = dropped_lines(&program).await;
        let mut reported = 0;
        // The requests of `dropped_lines` are logged, too: the last of them may be dropped.
        while reported < dropped {
            let line = program.read_log_line().await;
            if let Some((_, count)) = line.split_once("log lines were dropped")
                && let Some((_, count)) = count.split_once("lines=")
            {
                reported += count.trim().parse::<u64>().unwrap();
            }
        }
        program.signal("TERM").await;
        while !program
            .read_log_line()
            .await
            .contains("stopped outcome=Drained")
        {}
        program.wait_for_exit().await
    };
    assert_eq!(timeout(HANG_TIMEOUT, test).await.unwrap(), Some(0));
}

// Rules: ADM-3, CLI-2
#[tokio::test]
async fn fatal_error_ends_program_although_standard_error_is_full() {
    for arguments in [
        &["serve", "--listen", "127.0.0.1:0", "--demo", "/nowhere"][..],
        &["work", "--queue", "-", "--", "true"],
    ] {
        for is_read in [false, true] {
            let (full, mut receiver) = full_pipe();
            let mut command = longrunning_command(arguments);
            command.env("LONGRUNNING_WORKER_LISTEN", "none");
            command.env("LONGRUNNING_ADMIN_LISTEN", "none");
            let mut child = command.stderr(full).spawn().unwrap();
            drop(command);
            let mut text = String::new();
            let test = async {
                if is_read {
                    receiver.read_to_string(&mut text).await.unwrap();
                }
                child.wait().await.unwrap().code()
            };
            let code = timeout(HANG_TIMEOUT, test).await.unwrap();
            assert_eq!(code, Some(2), "{arguments:?}");
            assert_eq!(
                text.contains("\nerror: ") || text.contains("-error: "),
                is_read,
                "{text}"
            );
        }
    }
}
