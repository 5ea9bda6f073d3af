//! `longrunning work` and `longrunning run`: a worker that executes a command for
//! each operation of a queue, and a command executed as one operation.

use std::{
    ffi::OsString,
    fmt::Display,
    future::Future,
    io::{self, IsTerminal, Write, stderr},
    time::Duration,
};

use clap::Args;
use humantime::parse_duration;
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
};

use super::{
    args::{
        EXIT_ERROR, EXIT_INTERRUPTED, EXIT_SUCCESS, EndpointArgs, PrintArgs, WorkerEndpointArgs,
    },
    client::CliError,
    commands::print_result,
    render::ProgressDisplay,
    submit::NewOperationArgs,
    types::TypesArgs,
};
use crate::{
    client::{Client, Worker, WorkerError},
    proto::longrunning::v1::WatchOperationRequest,
    server::{self, LogFormat, LogGuard, init_telemetry, log_panics},
    service::new_operation::NewOperation,
    worker::command::CommandHandler,
};

#[derive(Args, Debug)]
pub(super) struct WorkArgs {
    /// Queue to lease operations from; repeatable
    #[arg(long = "queue", value_name = "QUEUE", required = true)]
    queues: Vec<String>,
    /// Maximum number of operations of each queue that run at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    concurrency: usize,
    /// Maximum duration of a graceful shutdown after SIGTERM, SIGHUP or Ctrl-C. Commands still
    /// running get SIGTERM before its end: by --kill-after, or by a quarter of the duration if that
    /// is less
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = parse_duration)]
    shutdown_timeout: Duration,
    /// Stop a command when its lease expires because the server cannot be reached, so that it does
    /// not run beside its successor. By default it goes on, and its result is sent when a server
    /// answers
    #[arg(long)]
    fence: bool,
    /// Log filter: a level, or directives such as info,longrunning=debug
    #[arg(
        long,
        env = "LONGRUNNING_LOG_FILTER",
        value_name = "FILTER",
        default_value = "info"
    )]
    log_filter: String,
    #[command(flatten)]
    types: TypesArgs,
    #[command(flatten)]
    command: CommandArgs,
}

#[derive(Args, Debug)]
pub(super) struct RunArgs {
    #[command(flatten)]
    new_operation: NewOperationArgs,
    #[command(flatten)]
    server: EndpointArgs,
    #[command(flatten)]
    print: PrintArgs,
    #[command(flatten)]
    command: CommandArgs,
}

/// The command, the worker id and the server's endpoint for workers.
#[derive(Args, Debug)]
struct CommandArgs {
    /// Time between SIGTERM and SIGKILL for a command
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    kill_after: Duration,
    /// Worker id shown in logs; must be unique [default: HOST/PID]
    #[arg(long, value_name = "ID")]
    worker_id: Option<String>,
    #[command(flatten)]
    worker: WorkerEndpointArgs,
    /// Program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs the worker until a signal. Returns the exit code.
pub(super) async fn work(args: WorkArgs) -> Result<u8, CliError> {
    let log = init_telemetry(LogFormat::Auto, &args.log_filter)
        .map_err(|error| CliError::local(format!("--log-filter: {error}")))?;
    log_panics();
    // Through the log: standard error may block, and signals end nothing any more.
    Ok(run_worker(args, &log).await.unwrap_or_else(|error| {
        log.write_line(format_args!("error: {error}"));
        EXIT_ERROR
    }))
}

async fn run_worker(args: WorkArgs, log: &LogGuard) -> Result<u8, CliError> {
    let (stop, abort) = stop_signals().map_err(CliError::local)?;
    let id = args.command.worker_id();
    let channel = args.command.worker.worker_endpoint.connect_lazy()?;
    let mut worker = Worker::new(channel, &id)
        .map_err(CliError::local)?
        .shutdown_timeout(args.shutdown_timeout)
        .fence(args.fence);
    let types = args.types.load()?;
    for queue in &args.queues {
        let handler = args.command.handler()?.with_types(&types);
        worker = worker.handler(queue, args.concurrency, handler);
    }
    log.write_line(format_args!(
        "worker {id} leases from queue {} at {}; Ctrl-C drains",
        args.queues.join(", "),
        args.command.worker.worker_endpoint
    ));
    match worker.run_or_abort(stop, abort).await {
        Ok(true) => Ok(EXIT_SUCCESS),
        Ok(false) => Ok(EXIT_INTERRUPTED),
        Err(WorkerError::Rejected(status)) => Err(status.into()),
        Err(error) => Err(CliError::local(error)),
    }
}

/// Returns futures for the first and the second signal, like the server's, with
/// SIGHUP as a first signal: commands must not outlive the worker's terminal.
fn stop_signals() -> io::Result<(impl Future<Output = ()>, impl Future<Output = ()>)> {
    let (stop, abort) = server::shutdown_signals()?;
    // `nohup` starts the program with SIGHUP ignored; keep it ignored.
    let hangup = (!is_hangup_ignored()).then(|| signal(SignalKind::hangup()));
    let mut hangup = hangup.transpose()?;
    let stop = async move {
        match &mut hangup {
            Some(hangup) => select! {
                () = stop => {}
                _ = hangup.recv() => {}
            },
            None => stop.await,
        }
    };
    Ok((stop, abort))
}

/// Returns `true` if the program was started with SIGHUP ignored. Always `false`
/// without /proc.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The lowest bit is signal 1, SIGHUP.
    let odd_digits = ['1', '3', '5', '7', '9', 'b', 'd', 'f'];
    ignored.is_some_and(|mask| mask.trim().ends_with(odd_digits))
}

/// Prints a line on standard error. Ignores errors: the terminal may be gone.
fn print_stderr_line(line: impl Display) {
    let _ = writeln!(stderr(), "{line}");
}

/// Runs the command as one operation. Returns the exit code.
pub(super) async fn run(args: RunArgs) -> Result<u8, CliError> {
    let (stop, abort) = stop_signals().map_err(CliError::local)?;
    let mut types = args.print.types.resolver(&args.server.endpoint)?;
    let handler = args.command.handler()?;
    let handler = handler.on_stderr_line(|_, line| print_stderr_line(line));
    let channel = args.command.worker.worker_endpoint.connect(None).await?;
    let client = Client::new(channel, &args.command.worker_id()).map_err(CliError::local)?;
    let new_operation = args.new_operation.apply(NewOperation::self_executed(""));
    let running = client.start(new_operation, handler).await?;
    let (name, cancellation_token) = (running.operation.name.clone(), running.cancellation_token());
    if running.already_existed {
        let code = print_result(&mut types, &running.operation, args.print.output).await;
        print_stderr_line(format_args!(
            "operation {name} already exists for this request id; follow it with `longrunning wait {name}`"
        ));
        return Ok(code);
    }
    if stderr().is_terminal() {
        print_stderr_line(format_args!("created {name}"));
    }
    let mut interrupted = false;
    let join = running.join();
    tokio::pin!(join, stop, abort);
    let bar = show_progress(&args.server, &name);
    tokio::pin!(bar);
    let finished = loop {
        select! {
            finished = &mut join => break finished?,
            () = &mut stop, if !interrupted => {
                interrupted = true;
                print_stderr_line(format_args!("cancelling {name}; press Ctrl-C again to exit immediately"));
                cancellation_token.cancel();
            }
            () = &mut abort => return Ok(EXIT_INTERRUPTED),
            () = &mut bar => {}
        }
    };
    let code = print_result(&mut types, &finished, args.print.output).await;
    Ok(if interrupted { EXIT_INTERRUPTED } else { code })
}

/// Shows a progress bar on a terminal. Never returns, and ignores errors, which must
/// not stop the command.
async fn show_progress(server: &EndpointArgs, name: &str) {
    if stderr().is_terminal()
        && let Ok(mut client) = server.endpoint.watch_client().await
    {
        let request = WatchOperationRequest {
            name: name.to_owned(),
        };
        if let Ok(states) = client.watch_operation(request).await {
            let (mut states, bar) = (states.into_inner(), ProgressDisplay::new());
            while let Ok(Some(operation)) = states.message().await {
                bar.update(&operation);
            }
        }
    }
    std::future::pending::<()>().await;
}

// === impl CommandArgs ===

impl CommandArgs {
    fn handler(&self) -> Result<CommandHandler, CliError> {
        let handler = CommandHandler::new(&self.command).map_err(CliError::local)?;
        Ok(handler.kill_after(self.kill_after))
    }

    fn worker_id(&self) -> String {
        let default_id = || {
            let host = rustix::system::uname();
            let host = host.nodename().to_string_lossy().into_owned();
            format!("{host}/{}", std::process::id())
        };
        self.worker_id.clone().unwrap_or_else(default_id)
    }
}
