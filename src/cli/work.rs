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
    args::{ConnectArgs, INTERRUPTED, PrintArgs},
    client::CallError,
    commands::exit_code,
    render::{Bar, print_one},
    submit::{NewArgs, WorkerArgs},
    types::TypesArgs,
};
use crate::{
    operations::creation::NewOperation,
    proto::longrunning::v1::WatchOperationRequest,
    remote::{Creator, Worker, WorkerError},
    server::{self, LogFormat, init_telemetry},
    worker::command::{CommandError, CommandHandler},
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
    grace: Duration,
    /// What to log: a level, or directives such as info,longrunning=debug
    #[arg(
        long,
        env = "LONGRUNNING_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    log: String,
    #[command(flatten)]
    types: TypesArgs,
    #[command(flatten)]
    command: CommandArgs,
}

#[derive(Args, Debug)]
pub(super) struct RunArgs {
    #[command(flatten)]
    new: NewArgs,
    #[command(flatten)]
    connect: ConnectArgs,
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
    worker: WorkerArgs,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Works until a signal; returns the exit code.
pub(super) async fn work(args: WorkArgs) -> Result<u8, CallError> {
    // What is leased and how it ends is in the log.
    let log = init_telemetry(LogFormat::Auto, &args.log);
    log.map_err(|error| CallError::refused(format!("--log: {error}")))?;
    let (stop, abort) = signals().map_err(CallError::refused)?;
    let id = args.command.worker_id();
    let channel = args.command.worker.worker_endpoint.lazy()?;
    let mut worker = Worker::new(channel, &id)
        .map_err(CallError::refused)?
        .grace(args.grace);
    let types = args.types.load()?;
    for queue in &args.queues {
        let handler = args.command.handler()?.types(&types);
        worker = worker.handler(queue, args.concurrency, handler);
    }
    say(format_args!(
        "{id} works on {} of {}; Ctrl-C drains",
        args.queues.join(", "),
        args.command.worker.worker_endpoint
    ));
    match worker.run_or_abort(stop, abort).await {
        Ok(true) => Ok(0),
        Ok(false) => Ok(INTERRUPTED),
        Err(WorkerError::Refused(status)) => Err(status.into()),
        Err(error) => Err(CallError::refused(error)),
    }
}

/// As those of the server, and a hangup is a first signal: nobody would stop a
/// command whose worker went down with its terminal.
fn signals() -> io::Result<(impl Future<Output = ()>, impl Future<Output = ()>)> {
    let (stop, abort) = server::signals()?;
    // `nohup` has it ignored, and that is to stay so.
    let hangup = (!is_hangup_ignored()).then(|| signal(SignalKind::hangup()));
    let hangup = hangup.transpose()?;
    let hung_up = async {
        match hangup {
            Some(mut hangup) => _ = hangup.recv().await,
            None => pending().await,
        }
    };
    let stop = async {
        select! {
            () = stop => {}
            () = hung_up => {}
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
fn say(line: impl Display) {
    let _ = writeln!(stderr(), "{line}");
}

/// Runs the command as an operation; returns the exit code.
pub(super) async fn run(args: RunArgs) -> Result<u8, CallError> {
    let (stop, abort) = signals().map_err(CallError::refused)?;
    let mut types = args.print.types.known(&args.connect.endpoint)?;
    let handler = args.command.handler()?;
    let handler = handler.show_stderr(|_, line| say(line));
    let channel = args.command.worker.worker_endpoint.channel(None).await?;
    let creator = Creator::new(channel, &args.command.worker_id()).map_err(CallError::refused)?;
    let new = args.new.apply(NewOperation::self_executed(""));
    let started = creator.start(new, handler).await?;
    let (name, signal) = (started.operation.name.clone(), started.stop_signal());
    if started.reused {
        let known = types.of([&started.operation]).await;
        print_one(known, &started.operation, args.print.output);
        say(format_args!(
            "this request was made before; `longrunning wait {name}` follows its operation"
        ));
        return Ok(exit_code(&started.operation));
    }
    if stderr().is_terminal() {
        say(format_args!("created {name}"));
    }
    let mut interrupted = false;
    let finished = started.finished();
    tokio::pin!(finished, stop, abort);
    let bar = show(&args.connect, &name);
    tokio::pin!(bar);
    let finished = loop {
        select! {
            finished = &mut finished => break finished?,
            () = &mut stop, if !interrupted => {
                interrupted = true;
                say(format_args!("cancelling {name}; press Ctrl-C again to leave at once"));
                signal.cancel();
            }
            () = &mut abort => return Ok(INTERRUPTED),
            () = &mut bar => {}
        }
    };
    print_one(types.of([&finished]).await, &finished, args.print.output);
    Ok(if interrupted {
        INTERRUPTED
    } else {
        exit_code(&finished)
    })
}

/// Shows a progress bar on a terminal, for ever. A server that cannot be asked
/// for progress is no reason to stop the work.
async fn show(connect: &ConnectArgs, name: &str) {
    if stderr().is_terminal()
        && let Ok(mut client) = connect.endpoint.watch().await
    {
        let request = WatchOperationRequest {
            name: name.to_owned(),
        };
        if let Ok(states) = client.watch_operation(request).await {
            let (mut states, bar) = (states.into_inner(), Bar::new());
            while let Ok(Some(operation)) = states.message().await {
                bar.show(&operation);
            }
        }
    }
    std::future::pending::<()>().await;
}

// === impl CommandArgs ===

impl CommandArgs {
    fn handler(&self) -> Result<CommandHandler, CallError> {
        let handler = CommandHandler::new(&self.command);
        let handler = handler.map_err(|error: CommandError| CallError::refused(error))?;
        Ok(handler.kill_after(self.kill_after))
    }

    fn worker_id(&self) -> String {
        let usual = || {
            let host = rustix::system::uname();
            let host = host.nodename().to_string_lossy().into_owned();
            format!("{host}/{}", std::process::id())
        };
        self.worker_id.clone().unwrap_or_else(usual)
    }
}
