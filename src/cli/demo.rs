//! `longrunning demo`: the main job on real input. It starts the real server on
//! free ports and then behaves like any client of it.

use std::{
    io::{IsTerminal, stderr},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use tokio::{select, signal::ctrl_c};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming, transport::Channel};

use super::{
    args::{BAD_CALL, INTERRUPTED},
    client::{CallError, Endpoint},
    commands::exit_code,
    render::{Bar, pretty, say},
};
use crate::{
    demo::service::new_checksum,
    operations::operations::Operations,
    proto::{
        google::longrunning::{
            CancelOperationRequest, Operation, operations_client::OperationsClient,
        },
        longrunning::v1::{WatchOperationRequest, operation_watch_client::OperationWatchClient},
    },
    server::{AppError, Config, LogFormat, init_telemetry, signals},
    tasks::Tasks,
    types::{Enums, Types},
};

#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// The directory whose files are hashed
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// Leave the server up until Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// Why the demo could not be shown.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Create(#[from] crate::error::Error),
    #[error("{0}")]
    Call(CallError),
    #[error("{0}")]
    Other(String),
}

/// Runs the demo; returns the exit code.
pub(super) async fn demo(args: DemoArgs) -> u8 {
    // The log of the server would tear the bar.
    let _ = init_telemetry(LogFormat::Text, "warn");
    match show(args).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            BAD_CALL
        }
    }
}

async fn show(args: DemoArgs) -> Result<u8, DemoError> {
    let unusable = |error| DemoError::App(AppError::Demo(args.directory.clone(), error));
    let directory = args.directory.canonicalize().map_err(unusable)?;
    let app = config(directory.clone()).build().await?;
    let operations = app.operations().clone();
    let (clients, admin) = (
        app.clients().to_string(),
        app.admin().map(|admin| admin.to_string()),
    );
    eprintln!("serving google.longrunning.Operations on {clients}");

    let stop = CancellationToken::new();
    let tasks = Tasks::default();
    let stopped = stop.clone().cancelled_owned();
    let serving = tasks.spawn("server", app.run(stopped, std::future::pending()));
    let shown = follow(&operations, &directory, &clients).await;
    if let Ok((last, _)) = &shown {
        say(&pretty(&Types::built_in().operation(last, Enums::Names)));
        print_lines(&last.name, &clients, admin.as_deref(), args.keep);
        if args.keep {
            let (stopped, _) = signals().map_err(|error| DemoError::Other(error.to_string()))?;
            stopped.await;
        }
    }
    stop.cancel();
    if let Err(error) = serving.await {
        return Err(DemoError::Other(format!("the server broke off: {error}")));
    }
    let (last, interrupted) = shown?;
    Ok(if interrupted {
        INTERRUPTED
    } else {
        exit_code(&last)
    })
}

/// Creates the operation and watches it to its end, through gRPC. Ctrl-C
/// cancels it, and its end is still watched.
async fn follow(
    operations: &Operations,
    directory: &std::path::Path,
    clients: &str,
) -> Result<(Operation, bool), DemoError> {
    let created = operations.create(new_checksum(directory)).await?;
    let name = created.operation.name().to_owned();
    eprintln!(
        "created {name}: SHA-256 of every file below {}",
        directory.display()
    );
    let endpoint: Endpoint = format!("http://{clients}")
        .parse()
        .map_err(DemoError::Other)?;
    let channel = endpoint.channel(None).await.map_err(DemoError::Call)?;
    let mut watch = OperationWatchClient::new(channel.clone());
    let states = watch
        .watch_operation(WatchOperationRequest { name: name.clone() })
        .await?
        .into_inner();
    watch_to_the_end(states, channel, &name).await
}

async fn watch_to_the_end(
    mut states: Streaming<Operation>,
    channel: Channel,
    name: &str,
) -> Result<(Operation, bool), DemoError> {
    let bar = stderr().is_terminal().then(Bar::new);
    let (mut interrupted, mut last) = (false, None);
    loop {
        select! {
            state = states.message() => match state? {
                Some(operation) => {
                    if let Some(bar) = &bar {
                        bar.show(&operation);
                    }
                    last = Some(operation);
                }
                None => break,
            },
            _ = ctrl_c() => {
                // Whoever presses it twice does not want to see the end.
                if std::mem::replace(&mut interrupted, true) {
                    break;
                }
                let text = format!("cancelling {name}; press Ctrl-C again to leave at once");
                match &bar {
                    Some(bar) => bar.say(&text),
                    None => eprintln!("{text}"),
                }
                let cancel = CancelOperationRequest { name: name.to_owned() };
                OperationsClient::new(channel.clone()).cancel_operation(cancel).await?;
            }
        }
    }
    drop(bar);
    let last = last.ok_or_else(|| {
        DemoError::Other("the server showed no state of the operation".to_owned())
    })?;
    Ok((last, interrupted))
}

/// The lines with which anybody can look at the operation.
fn print_lines(name: &str, clients: &str, admin: Option<&str>, kept: bool) {
    let up = if kept {
        "the server stays up until Ctrl-C"
    } else {
        "with --keep the server stays up for this"
    };
    eprintln!("\nLook at it ({up}):");
    eprintln!(
        "  grpcurl -plaintext -d '{{\"name\":\"{name}\"}}' {clients} google.longrunning.Operations/GetOperation"
    );
    eprintln!("  longrunning get {name} --endpoint http://{clients}");
    eprintln!("  curl -s http://{clients}/v1/{name}");
    if let Some(admin) = admin {
        eprintln!("  curl -s http://{admin}/metrics");
    }
}

/// A server whose clients are this program and whoever it tells.
fn config(directory: PathBuf) -> Config {
    Config {
        worker_listen: None,
        grace: Duration::from_secs(5),
        demo: Some(directory),
        ..Config::default()
    }
}

impl From<Status> for DemoError {
    fn from(status: Status) -> Self {
        Self::Call(status.into())
    }
}
