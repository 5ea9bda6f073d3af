//! A handler that runs a program for each operation: starts its process group,
//! terminates it on cancellation and maps its exit status to a result.

use std::{
    ffi::{OsStr, OsString},
    fmt, io,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use prost_types::Any;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::AsyncWriteExt,
    pin,
    process::{Child, Command},
    select,
    time::timeout,
    try_join,
};
use tracing::{debug, warn};

use super::{
    command_output::{CommandOutput, MAX_OUTPUT_BYTES, OutputTooLargeError, StderrTail},
    context::Context,
    handler::Handler,
};
use crate::{
    operation::{options::QueueName, outcome::Failure},
    proto::google::rpc::Code,
    types::TypeRegistry,
};

/// The maximum size of an environment value. Linux rejects one above 128 KiB.
const MAX_ENV_VALUE_BYTES: usize = 100 << 10;
/// The time to read output from child processes that outlive the program.
const OUTPUT_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// The trace context keys passed as environment variables. A fixed list, because
/// creators choose the keys and must not be able to set PATH.
const TRACE_CONTEXT_KEYS: [&str; 4] = ["traceparent", "tracestate", "baggage", "b3"];

/// Runs a program for each operation, in a process group of its own.
///
/// Input: JSON on standard input and in `LONGRUNNING_INPUT` (omitted above
/// 100 KiB). A `google.protobuf.Struct`, `Value`, `ListValue` or wrapper is passed
/// as its plain value, another known type as ProtoJSON with `@type`, an unknown
/// type as `{"@type", "value": "<base64>"}`. Without an input, standard input is
/// empty and the variable is unset.
///
/// Environment: `LONGRUNNING_OPERATION` (full name), `LONGRUNNING_ATTEMPT`,
/// `LONGRUNNING_LEASE_TOKEN` (base64), `LONGRUNNING_QUEUE` and
/// `LONGRUNNING_CHECKPOINT` (JSON) if they exist, and `TRACEPARENT`,
/// `TRACESTATE`, `BAGGAGE` and `B3` if the creator set them.
///
/// Output: a line `::progress 0.4 message`, `::progress 40% message` or
/// `::progress 3/10 unit message` on standard output reports progress, and
/// `::checkpoint TEXT-or-JSON` saves a checkpoint. All other output, at most 2 MiB,
/// is the response: a JSON object becomes a `google.protobuf.Struct`, no output
/// `Empty`, and other text a `StringValue`.
///
/// Exit: code 0 means success. Any other code is a retryable failure whose message
/// includes the last lines of standard error. Cancellation, a lost lease and the
/// shutdown timeout send SIGTERM to the process group, then SIGKILL. Processes
/// left in the group are killed when the program exits.
pub struct CommandHandler {
    program: OsString,
    arguments: Vec<OsString>,
    kill_after: Duration,
    stderr_callback: Option<Box<StderrCallback>>,
    types: TypeRegistry,
}

type StderrCallback = dyn Fn(&Context, &str) + Send + Sync;

/// A command that cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidCommand {
    /// No program is given.
    #[error("command is empty; specify a program and its arguments")]
    Empty,
    /// The program does not exist.
    #[error("program {0:?} not found; specify its path or install it in a directory of PATH")]
    NotFound(OsString),
    /// The file is not executable.
    #[error("{0:?} is not executable; run chmod +x or specify another program")]
    NotExecutable(OsString),
}

/// The process group of a started program. Killed when dropped; tokio then reaps
/// the program.
struct ProcessGroup {
    child: Child,
    leader: Option<Pid>,
}

/// The end of a program.
struct ProcessExit {
    status: io::Result<ExitStatus>,
    /// `true` if the program was sent SIGTERM before.
    termination_requested: bool,
}

// === impl CommandHandler ===

impl CommandHandler {
    /// Creates a handler for a program and its arguments.
    ///
    /// # Errors
    /// [`InvalidCommand`] if the program does not exist or is not executable. It is
    /// checked here, so that a wrong name fails before the first operation.
    pub fn new<T: Into<OsString>>(
        command: impl IntoIterator<Item = T>,
    ) -> Result<Self, InvalidCommand> {
        let mut argv = command.into_iter().map(Into::into);
        let program: OsString = argv.next().unwrap_or_default();
        check_program(&program)?;
        Ok(Self {
            program,
            arguments: argv.collect(),
            kill_after: Duration::from_secs(10),
            stderr_callback: None,
            types: TypeRegistry::built_in(),
        })
    }

    /// Sets the types that are converted to and from JSON. The default is
    /// `google.protobuf`, `google.rpc` and `longrunning.v1`.
    #[must_use]
    pub fn with_types(mut self, types: &TypeRegistry) -> Self {
        self.types = types.clone();
        self
    }

    /// Sets the time between SIGTERM and SIGKILL. The default is 10 s. A shorter
    /// `cancel_grace_period` of the operation takes precedence.
    #[must_use]
    pub fn kill_after(mut self, delay: Duration) -> Self {
        self.kill_after = delay;
        self
    }

    /// Sets a callback for each line of standard error. By default, the lines are
    /// logged at level `debug`.
    #[must_use]
    pub fn on_stderr_line(
        mut self,
        callback: impl Fn(&Context, &str) + Send + Sync + 'static,
    ) -> Self {
        self.stderr_callback = Some(Box::new(callback));
        self
    }

    fn build_command(&self, context: &Context, input: Option<&str>) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let to_json = |any| self.types.to_plain_json(any).to_string();
        let checkpoint = context.checkpoint().map(to_json);
        if checkpoint.as_deref().is_some_and(exceeds_env_limit) {
            warn!(operation.name = %context.name(), "checkpoint exceeds 100 KiB, starting the command without LONGRUNNING_CHECKPOINT");
        }
        let lease_token = STANDARD.encode(context.lease_token().as_bytes());
        for (key, value) in [
            ("INPUT", input.map(str::to_owned)),
            ("OPERATION", Some(context.name().to_owned())),
            ("ATTEMPT", Some(context.attempt().to_string())),
            ("LEASE_TOKEN", Some(lease_token)),
            ("QUEUE", context.queue().map(QueueName::to_string)),
            ("CHECKPOINT", checkpoint),
        ] {
            let value = value.filter(|value| !exceeds_env_limit(value));
            let key = format!("LONGRUNNING_{key}");
            set_env(&mut command, &key, value.as_deref());
        }
        for key in TRACE_CONTEXT_KEYS {
            let mut entries = context.trace_context().iter();
            let value = entries.find_map(|(name, value)| (name == key).then_some(value));
            set_env(&mut command, &key.to_uppercase(), value);
        }
        command
    }

    fn start_failure(&self, error: &io::Error) -> Failure {
        let message = format!("failed to start {self}: {error}");
        Failure::new(Code::Unavailable, message)
            .with_reason("COMMAND_START_FAILED")
            .retryable()
    }

    fn output_too_large_failure(&self) -> Failure {
        let message = format!(
            "{self} wrote more than {} MiB to standard output; store large results elsewhere and print a reference",
            MAX_OUTPUT_BYTES >> 20
        );
        Failure::new(Code::ResourceExhausted, message).with_reason("OUTPUT_TOO_LARGE")
    }

    fn exit_failure(
        &self,
        status: &io::Result<ExitStatus>,
        stderr_tail: Option<String>,
    ) -> Failure {
        let (reason, description) = match status {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => ("COMMAND_FAILED", format!("exited with code {code}")),
                (None, signal) => {
                    let signal = signal.unwrap_or_default();
                    ("COMMAND_KILLED", format!("was killed by signal {signal}"))
                }
            },
            Err(error) => (
                "COMMAND_FAILED",
                format!("has an unknown exit status: {error}"),
            ),
        };
        let stderr_tail = stderr_tail.map_or_else(String::new, |text| format!(": {text}"));
        Failure::new(Code::Unknown, format!("{self} {description}{stderr_tail}"))
            .with_reason(reason)
            .retryable()
    }
}

impl Handler for CommandHandler {
    fn shutdown_grace(&self) -> Duration {
        self.kill_after
    }

    async fn run(&self, context: Context) -> Result<Any, Failure> {
        let input = context.input().map(|input| self.types.to_plain_json(input));
        let input = input.map(|input| input.to_string());
        let child = self.build_command(&context, input.as_deref()).spawn();
        let mut group = ProcessGroup::new(child.map_err(|error| self.start_failure(&error))?);
        let (mut output, mut stderr_tail) = (CommandOutput::default(), StderrTail::default());
        let exit = {
            let child = &mut group.child;
            let (stdin, stdout, stderr) =
                (child.stdin.take(), child.stdout.take(), child.stderr.take());
            let write_stdin = async {
                let (mut stdin, input) =
                    (stdin.expect("stdin is piped"), input.unwrap_or_default());
                // A program may exit without reading its input.
                let _ = stdin.write_all(input.as_bytes()).await;
                Ok(())
            };
            let read_stdout = output.read(stdout.expect("stdout is piped"), &context, &self.types);
            let handle_line = |line: &str| match &self.stderr_callback {
                Some(callback) => callback(&context, line),
                None => debug!(line, "command wrote to standard error"),
            };
            let read_stderr = stderr_tail.read(stderr.expect("stderr is piped"), handle_line);
            let io = async { try_join!(write_stdin, read_stdout, read_stderr).map(|_| ()) };
            let grace = context.cancel_grace_period().unwrap_or(self.kill_after);
            let exit = group.wait_for_exit(&context, grace.min(self.kill_after));
            pin!(io, exit);
            select! {
                io_result = &mut io => match io_result {
                    Ok(()) => Ok(exit.await),
                    Err(OutputTooLargeError) => Err(OutputTooLargeError),
                },
                exit = &mut exit => match timeout(OUTPUT_DRAIN_TIMEOUT, io).await {
                    Ok(Err(OutputTooLargeError)) => Err(OutputTooLargeError),
                    Ok(Ok(())) | Err(_) => Ok(exit),
                },
            }
        };
        let Ok(ProcessExit {
            status,
            termination_requested,
        }) = exit
        else {
            return Err(self.output_too_large_failure());
        };
        let text = output.into_text();
        if status.as_ref().is_ok_and(ExitStatus::success)
            && !(termination_requested && text.is_empty())
        {
            return Ok(match text.as_str() {
                "" => Any::default(),
                text => self.types.parse_output(text),
            });
        }
        Err(if termination_requested {
            Failure::cancelled()
        } else {
            self.exit_failure(&status, stderr_tail.into_text())
        })
    }
}

impl fmt::Display for CommandHandler {
    /// Writes the program without its arguments, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.program.display())
    }
}

impl fmt::Debug for CommandHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandHandler")
            .field("program", &self.program)
            .field("kill_after", &self.kill_after)
            .finish_non_exhaustive()
    }
}

// === impl ProcessGroup ===

impl ProcessGroup {
    fn new(child: Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        let leader = id.and_then(Pid::from_raw);
        Self { child, leader }
    }

    /// Waits until the program exits. On cancellation, sends SIGTERM, and SIGKILL
    /// after `grace`.
    async fn wait_for_exit(&mut self, context: &Context, grace: Duration) -> ProcessExit {
        select! {
            biased;
            status = self.child.wait() => {
                return ProcessExit { status, termination_requested: false };
            }
            () = context.cancelled() => self.signal(Signal::TERM),
        }
        let status = match timeout(grace, self.child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                self.signal(Signal::KILL);
                self.child.wait().await
            }
        };
        ProcessExit {
            status,
            termination_requested: true,
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(leader) = self.leader {
            // Fails only if the group has no processes left.
            let _ = kill_process_group(leader, signal);
        }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

fn set_env(command: &mut Command, key: &str, value: Option<&str>) {
    match value {
        Some(value) => command.env(key, value),
        // An inherited value belongs to another operation.
        None => command.env_remove(key),
    };
}

fn exceeds_env_limit(value: &str) -> bool {
    value.len() > MAX_ENV_VALUE_BYTES
}

/// Checks that a program exists and is executable, as execvp would find it.
fn check_program(program: &OsStr) -> Result<(), InvalidCommand> {
    if program.is_empty() {
        return Err(InvalidCommand::Empty);
    }
    if program.as_encoded_bytes().contains(&b'/') {
        return match is_executable(Path::new(program)) {
            Some(true) => Ok(()),
            Some(false) => Err(InvalidCommand::NotExecutable(program.to_owned())),
            None => Err(InvalidCommand::NotFound(program.to_owned())),
        };
    }
    #[expect(clippy::disallowed_methods, reason = "execvp reads the same variable")]
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_found = std::env::split_paths(&path)
        .any(|directory| is_executable(&directory.join(program)) == Some(true));
    let not_found = || InvalidCommand::NotFound(program.to_owned());
    is_found.then_some(()).ok_or_else(not_found)
}

/// Returns whether a file is executable, or `None` if it does not exist.
fn is_executable(path: &Path) -> Option<bool> {
    let metadata = path.metadata().ok()?;
    Some(metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
