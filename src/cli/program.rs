//! The command line: parses flags, environment and config file, and dispatches to
//! the command.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{
    Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches, Parser, Subcommand,
    error::ErrorKind,
};
use tokio::runtime;

use super::{
    args::{
        CancelArgs, EXIT_ERROR, EXIT_FAILED, EXIT_SUCCESS, HealthArgs, ListArgs, NameArgs,
        OperationArgs, WaitArgs,
    },
    commands, demo, queue_config, serve, sqlite_file, submit, worker,
};
use crate::server::ignore_file_size_signal;

/// The missing server for google.longrunning.Operations (AIP-151).
#[derive(Debug, Parser)]
#[command(name = "longrunning", version, about, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 success, 1 operation failed or cancelled, 2 usage or server error, \
    3 timeout, 130 interrupted."
)]
struct Cli {
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Run the server
    Serve(Box<serve::ServeArgs>),
    /// Start a server, hash a directory as an operation and watch its progress
    Demo(demo::DemoArgs),
    /// Create an operation for the workers of a queue
    Submit(Box<submit::SubmitArgs>),
    /// Run a worker: execute a command for each operation of a queue
    Work(Box<worker::WorkArgs>),
    /// Run a command in this process as one operation
    Run(Box<worker::RunArgs>),
    /// Print the current state of an operation
    Get(OperationArgs),
    /// List operations, newest first
    List(ListArgs),
    /// Wait until an operation is done and print it
    Wait(WaitArgs),
    /// Print every change of an operation until it is done
    Watch(OperationArgs),
    /// Request cancellation of an operation; its worker decides how it ends
    Cancel(CancelArgs),
    /// Delete an operation without cancelling it: its work is still executed, the result is discarded
    Delete(NameArgs),
    /// Copy the SQLite file of a server, which may be running
    Backup(sqlite_file::BackupArgs),
    /// Replace the SQLite file of a stopped server by a backup
    Restore(sqlite_file::RestoreArgs),
    /// Print the contents of a server's SQLite file
    Inspect(sqlite_file::InspectArgs),
    /// Exit with 0 if the server is serving, else with 1; for container probes
    Healthcheck(HealthArgs),
    /// Print the version
    Version,
}

/// Runs the program with the arguments of the process and returns its exit code.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match parse(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            if error.kind() == ErrorKind::ValueValidation {
                eprintln!(
                    "The value may come from an environment variable (LONGRUNNING_...) or the --config file."
                );
            }
            let is_error = error.use_stderr();
            return ExitCode::from(if is_error { EXIT_ERROR } else { EXIT_SUCCESS });
        }
    };
    let mut runtime = match cli.command {
        CliCommand::Serve(_) | CliCommand::Demo(_) => runtime::Builder::new_multi_thread(),
        _ => runtime::Builder::new_current_thread(),
    };
    match runtime.enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(dispatch(cli.command));
            // Blocking tasks of an interrupted demo must not delay the exit.
            runtime.shutdown_background();
            ExitCode::from(code)
        }
        Err(error) => {
            eprintln!("error: cannot start the async runtime: {error}");
            ExitCode::from(EXIT_ERROR)
        }
    }
}

async fn dispatch(command: CliCommand) -> u8 {
    if let Err(error) = ignore_file_size_signal() {
        eprintln!("warning: a write beyond the file size limit will end this process: {error}");
    }
    let result = match command {
        CliCommand::Serve(args) => serve::serve(*args).await,
        CliCommand::Demo(args) => demo::demo(args).await,
        CliCommand::Submit(args) => submit::submit(*args).await,
        CliCommand::Work(args) => worker::work(*args).await,
        CliCommand::Run(args) => worker::run(*args).await,
        CliCommand::Get(args) => commands::get(args).await,
        CliCommand::List(args) => commands::list(args).await,
        CliCommand::Wait(args) => commands::wait(args).await,
        CliCommand::Watch(args) => commands::watch(args).await,
        CliCommand::Cancel(args) => commands::cancel(args).await,
        CliCommand::Delete(args) => commands::delete(args).await,
        CliCommand::Backup(args) => sqlite_file::backup(&args),
        CliCommand::Restore(args) => sqlite_file::restore(&args),
        CliCommand::Inspect(args) => sqlite_file::inspect(&args),
        CliCommand::Version => {
            println!("longrunning {}", env!("CARGO_PKG_VERSION"));
            Ok(EXIT_SUCCESS)
        }
        // Docker reserves exit code 2 of health checks.
        CliCommand::Healthcheck(args) => commands::healthcheck(args).await.or_else(|error| {
            eprintln!("error: {error}");
            Ok(EXIT_FAILED)
        }),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        EXIT_ERROR
    })
}

/// Returns the declaration of the command line, with a variable for each flag of `serve`.
fn cli_command() -> Command {
    let add_variable = |arg: Arg| {
        let flag = arg.get_long().unwrap_or_default().to_uppercase();
        arg.env(format!("LONGRUNNING_{}", flag.replace('-', "_")))
    };
    Cli::command().mut_subcommand("serve", |serve| serve.mut_args(add_variable))
}

/// Parses the command line. Flags override the environment, which overrides the
/// config file. Values of the file become defaults of the flags, so that the same
/// validation applies and `--help` shows them.
fn parse(arguments: &[OsString]) -> Result<Cli, clap::Error> {
    let mut command = cli_command();
    let mut queues = Vec::new();
    if let Some(path) = config_path(&command, arguments) {
        let file = path.display();
        let config_error = |text: String| cli_command().error(ErrorKind::InvalidValue, text);
        let text = std::fs::read_to_string(&path)
            .map_err(|error| config_error(format!("cannot read config file {file}: {error}")))?;
        let mut table: toml::Table = text.parse().map_err(|error| {
            config_error(format!("config file {file} is not valid TOML: {error}"))
        })?;
        let setting_error = |error: String| config_error(format!("{file}: {error}"));
        queues = queue_config::take_queues(&mut table).map_err(setting_error)?;
        let serve = command
            .find_subcommand("serve")
            .expect("Cli declares serve");
        let serve = with_config_defaults(serve.clone(), table).map_err(setting_error)?;
        command = command.mut_subcommand("serve", |_| serve);
    }
    let matches = command.try_get_matches_from(arguments)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    if let CliCommand::Serve(serve) = &mut cli.command {
        serve.queues = queues;
    }
    Ok(cli)
}

/// Returns the `--config` file of `serve`, or `None`. Ignores errors in other
/// arguments, which the full parse reports.
fn config_path(command: &Command, arguments: &[OsString]) -> Option<PathBuf> {
    let ignore_errors = |serve: Command| serve.ignore_errors(true).disable_help_flag(true);
    let lenient = command.clone().ignore_errors(true);
    let lenient = lenient.mut_subcommand("serve", ignore_errors);
    let matches: ArgMatches = lenient.try_get_matches_from(arguments).ok()?;
    let path = matches
        .subcommand_matches("serve")?
        .get_one::<PathBuf>("config");
    path.filter(|path| !path.as_os_str().is_empty()).cloned()
}

fn with_config_defaults(mut serve: Command, table: toml::Table) -> Result<Command, String> {
    for (key, value) in table {
        let is_flag = |arg: &&Arg| {
            let aliases = arg.get_all_aliases().unwrap_or_default();
            key != "config" && (arg.get_long() == Some(&key) || aliases.contains(&key.as_str()))
        };
        let Some((id, is_list)) = serve.get_arguments().find(is_flag).map(|arg| {
            let is_list = matches!(arg.get_action(), ArgAction::Append);
            (arg.get_id().clone(), is_list)
        }) else {
            let known: Vec<_> = serve
                .get_arguments()
                .filter_map(Arg::get_long)
                .filter(|known| !["config", "help"].contains(known))
                .collect();
            let known = known.join(", ");
            return Err(format!(
                "unknown setting {key:?}; use one of {known}, or [[queue]]"
            ));
        };
        let text = match value {
            toml::Value::Array(values) if is_list => {
                let texts = values.iter().map(|value| value.as_str().map(str::to_owned));
                let texts: Option<Vec<String>> = texts.collect();
                let texts = texts.ok_or_else(|| format!("{key} must be a list of strings"))?;
                serve = serve.mut_arg(id, |arg| arg.default_values(texts));
                continue;
            }
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            other => {
                let kind = other.type_str();
                return Err(format!("{key} must be a string or a number, not {kind}"));
            }
        };
        serve = serve.mut_arg(id, |arg| arg.default_value(text));
    }
    Ok(serve)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Rules: CLI-1
    #[test]
    fn cli_declaration_is_consistent() {
        cli_command().debug_assert();
    }

    // Rules: CLI-1
    #[test]
    fn variables_of_serve_keep_their_names() {
        let command = cli_command();
        let serve = command.find_subcommand("serve").unwrap();
        let variables = serve.get_arguments().filter_map(Arg::get_env);
        let variables: Vec<_> = variables.filter_map(|name| name.to_str()).collect();
        // Variables derive from flags: to rename a flag breaks deployments that set its variable.
        assert_eq!(
            variables,
            [
                "LONGRUNNING_CONFIG",
                "LONGRUNNING_LISTEN",
                "LONGRUNNING_WORKER_LISTEN",
                "LONGRUNNING_ADMIN_LISTEN",
                "LONGRUNNING_SOCKET_MODE",
                "LONGRUNNING_STORE",
                "LONGRUNNING_STORE_SCHEMA",
                "LONGRUNNING_STORE_NOTIFY_URL",
                "LONGRUNNING_CACHE_DONE_OPERATIONS",
                "LONGRUNNING_READ_CONSISTENCY",
                "LONGRUNNING_CONNECTION_THREADS",
                "LONGRUNNING_SHUTDOWN_TIMEOUT",
                "LONGRUNNING_DEFAULT_WAIT_TIMEOUT",
                "LONGRUNNING_MAX_WAIT_TIMEOUT",
                "LONGRUNNING_RETENTION",
                "LONGRUNNING_LEASE_DURATION",
                "LONGRUNNING_MAX_OPERATIONS",
                "LONGRUNNING_MAX_TOTAL_BYTES",
                "LONGRUNNING_MAX_OPERATION_BYTES",
                "LONGRUNNING_MAX_MESSAGE_BYTES",
                "LONGRUNNING_MAX_QUEUE_LENGTH",
                "LONGRUNNING_MAX_WAITERS",
                "LONGRUNNING_MAX_CONNECTIONS",
                "LONGRUNNING_HTTP_PREFIX",
                "LONGRUNNING_CORS_ORIGIN",
                "LONGRUNNING_LOG_FILTER",
                "LONGRUNNING_LOG_FORMAT",
                "LONGRUNNING_DEMO",
                "LONGRUNNING_DESCRIPTOR_SET",
                "LONGRUNNING_REFLECTION_UPSTREAM",
            ]
        );
    }

    // Rules: CLI-1
    #[test]
    fn config_file_values_become_defaults_and_flags_override_them() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "listen = \"127.0.0.1:1\"\nmax-operations = 7\nshutdown-timeout = \"3s\"\n\
             [[queue]]\nname = \"thumbs\"\ncommand = [\"true\"]\n",
        )
        .unwrap();
        let path = file.path().to_str().unwrap();
        let arguments = [
            "longrunning",
            "serve",
            "--config",
            path,
            "--shutdown-timeout",
            "4s",
        ]
        .map(OsString::from);
        let CliCommand::Serve(args) = parse(&arguments).unwrap().command else {
            panic!("command is not serve")
        };
        let config = args.into_config();
        assert_eq!(config.listen.to_string(), "127.0.0.1:1");
        assert_eq!(config.limits.max_operations, 7);
        assert_eq!(config.shutdown_timeout.as_secs(), 4);
        assert_eq!(config.queues[0].name, "thumbs");
    }

    // Rules: CLI-2
    #[test]
    fn invalid_config_file_is_rejected_with_path_and_setting() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let arguments = ["longrunning", "serve", "--config", path].map(OsString::from);
        for (text, problem) in [
            ("lissen = \"x\"", "unknown setting \"lissen\""),
            (
                "listen = [1]",
                "listen must be a string or a number, not array",
            ),
            ("= 1", "is not valid TOML"),
            ("[[queue]]\nname = \"thumbs\"", "queue \"thumbs\""),
            ("shutdown-timeout = \"soon\"", "soon"),
        ] {
            std::fs::write(file.path(), text).unwrap();
            let error = parse(&arguments).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
        let missing = ["longrunning", "serve", "--config", "/nowhere.toml"].map(OsString::from);
        assert!(
            parse(&missing)
                .unwrap_err()
                .to_string()
                .contains("/nowhere.toml")
        );
    }
}
