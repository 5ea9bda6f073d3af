//! `longrunning work` and `longrunning run`: a command for each operation of a
//! queue, and a command as one operation. Running a command is done by `worker`,
//! keeping leases by `remote`.

use std::{
    ffi::OsString,
    fmt::Display,
    future::{Future, pending},
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
    args::{EXIT_INTERRUPTED, EndpointArgs, PrintArgs},
    client::CliError,
    commands::exit_code,
    render::{ProgressDisplay, print_operation},
    submit::{NewOperationArgs, WorkerEndpointArgs},
    types::TypesArgs,
};
use crate::{
    client::{Client, Worker, WorkerError},
    proto::longrunning::v1::WatchOperationRequest,
    server::{self, LogFormat, init_telemetry},
    service::new_operation::NewOperation,
    worker::command::{CommandHandler, InvalidCommand},
};

#[derive(Args, Debug)]
pub(super) struct WorkArgs {
    /// A queue to take operations from; repeatable
    #[arg(long = "queue", value_name = "QUEUE", required = true)]
    queues: Vec<String>,
    /// How many operations of each queue run at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    concurrency: usize,
    /// How long running commands may go on after SIGTERM, SIGHUP or Ctrl-C; when --kill-after of it
    /// is left, at most a quarter, they get SIGTERM
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = parse_duration)]
    shutdown_timeout: Duration,
    /// What to log: a level, or directives such as info,longrunning=debug
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

/// The command, and who runs it for whom.
#[derive(Args, Debug)]
struct CommandArgs {
    /// How long after SIGTERM a command gets SIGKILL
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    kill_after: Duration,
    /// Who works, for people; no other worker has the same [default: HOST/PID]
    #[arg(long, value_name = "ID")]
    worker_id: Option<String>,
    #[command(flatten)]
    worker: WorkerEndpointArgs,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Works until a signal; returns the exit code.
pub(super) async fn work(args: WorkArgs) -> Result<u8, CliError> {
    // What is leased and how it ends is in the log.
    let telemetry = init_telemetry(LogFormat::Auto, &args.log_filter);
    telemetry.map_err(|error| CliError::local(format!("--log-filter: {error}")))?;
    let (stop, abort) = stop_signals().map_err(CliError::local)?;
    let id = args.command.worker_id();
    let channel = args.command.worker.worker_endpoint.connect_lazy()?;
    let mut worker = Worker::new(channel, &id)
        .map_err(CliError::local)?
        .shutdown_timeout(args.shutdown_timeout);
    let types = args.types.load()?;
    for queue in &args.queues {
        let handler = args.command.handler()?.with_types(&types);
        worker = worker.handler(queue, args.concurrency, handler);
    }
    print_stderr_line(format_args!(
        "{id} works on {} of {}; Ctrl-C drains",
        args.queues.join(", "),
        args.command.worker.worker_endpoint
    ));
    match worker.run_or_abort(stop, abort).await {
        Ok(true) => Ok(0),
        Ok(false) => Ok(EXIT_INTERRUPTED),
        Err(WorkerError::Rejected(status)) => Err(status.into()),
        Err(error) => Err(CliError::local(error)),
    }
}

/// As those of the server, and a hangup is a first signal: nobody would stop a
/// command whose worker went down with its terminal.
fn stop_signals() -> io::Result<(impl Future<Output = ()>, impl Future<Output = ()>)> {
    let (stop, abort) = server::shutdown_signals()?;
    // `nohup` has it ignored, and that is to stay so.
    let hangup = (!is_hangup_ignored()).then(|| signal(SignalKind::hangup()));
    let hangup = hangup.transpose()?;
    let hangup_received = async {
        match hangup {
            Some(mut hangup) => _ = hangup.recv().await,
            None => pending().await,
        }
    };
    let stop = async {
        select! {
            () = stop => {}
            () = hangup_received => {}
        }
    };
    Ok((stop, abort))
}

/// Whether the program was started with SIGHUP ignored, where the system tells.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The lowest bit stands for signal 1.
    ignored.is_some_and(|mask| {
        mask.trim()
            .ends_with(['1', '3', '5', '7', '9', 'b', 'd', 'f'])
    })
}

/// A line on standard error, which may be gone with its terminal.
fn print_stderr_line(line: impl Display) {
    let _ = writeln!(stderr(), "{line}");
}

/// Runs the command as an operation; returns the exit code.
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
        let known = types.resolve_for([&running.operation]).await;
        print_operation(known, &running.operation, args.print.output);
        print_stderr_line(format_args!(
            "this request was made before; `longrunning wait {name}` follows its operation"
        ));
        return Ok(exit_code(&running.operation));
    }
    if stderr().is_terminal() {
        print_stderr_line(format_args!("created {name}"));
    }
    let mut interrupted = false;
    let finished = running.join();
    tokio::pin!(finished, stop, abort);
    let bar = show_progress(&args.server, &name);
    tokio::pin!(bar);
    let finished = loop {
        select! {
            finished = &mut finished => break finished?,
            () = &mut stop, if !interrupted => {
                interrupted = true;
                print_stderr_line(format_args!("cancelling {name}; press Ctrl-C again to leave at once"));
                cancellation_token.cancel();
            }
            () = &mut abort => return Ok(EXIT_INTERRUPTED),
            () = &mut bar => {}
        }
    };
    print_operation(
        types.resolve_for([&finished]).await,
        &finished,
        args.print.output,
    );
    Ok(if interrupted {
        EXIT_INTERRUPTED
    } else {
        exit_code(&finished)
    })
}

/// Shows a progress bar on a terminal, for ever. A server that cannot be asked
/// for progress is no reason to stop the work.
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
        let handler = CommandHandler::new(&self.command);
        let handler = handler.map_err(|error: InvalidCommand| CliError::local(error))?;
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
