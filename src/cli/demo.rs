//! `longrunning demo`: starts a server, creates one operation and follows it as a
//! client.

use std::{
    io::{IsTerminal, stderr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use tokio::{select, signal::ctrl_c};
use tokio_util::sync::CancellationToken;
use tonic::{Streaming, transport::Channel};

use super::{
    args::EXIT_INTERRUPTED,
    client::{CliError, Endpoint},
    commands::exit_code,
    render::{ProgressDisplay, print_json},
};
use crate::{
    demo::service::new_checksum_operation,
    proto::{
        google::longrunning::{
            CancelOperationRequest, Operation, operations_client::OperationsClient,
        },
        longrunning::v1::{WatchOperationRequest, operation_watch_client::OperationWatchClient},
    },
    server::{AppError, Config, LogFormat, init_telemetry, shutdown_signals},
    service::operations::Operations,
    tasks::Tasks,
    types::{EnumFormat, TypeRegistry},
};

#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// Directory whose files are hashed
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// Keep the server running until Ctrl-C
    #[arg(long)]
    keep_running: bool,
}

/// Runs the demo; returns the exit code.
pub(super) async fn demo(args: DemoArgs) -> Result<u8, CliError> {
    // Log lines would break the progress bar.
    let _log = init_telemetry(LogFormat::Text, "warn");
    let directory = args.directory.canonicalize().map_err(|source| {
        let path = args.directory.clone();
        CliError::local(AppError::DemoDirectory { path, source })
    })?;
    // On free local ports, without a workers listener.
    let config = Config {
        worker_listen: None,
        shutdown_timeout: Duration::from_secs(5),
        demo_directory: Some(directory.clone()),
        ..Config::default()
    };
    let app = config.bind_and_start().await.map_err(CliError::local)?;
    let operations = app.operations().clone();
    let client_address = app.client_addr().to_string();
    let admin_address = app.admin_addr().map(|admin| admin.to_string());
    eprintln!("serving google.longrunning.Operations at {client_address}");

    let stop = CancellationToken::new();
    let tasks = Tasks::default();
    let stopped = stop.clone().cancelled_owned();
    let server_task = tasks.spawn("server", app.run(stopped, std::future::pending()));
    let result = create_and_watch(&operations, &directory, &client_address).await;
    if let Ok((last, _)) = &result {
        let json = TypeRegistry::built_in().operation_to_json(last, EnumFormat::Names);
        print_json(&json);
        let admin_address = admin_address.as_deref();
        print_example_commands(
            &last.name,
            &client_address,
            admin_address,
            args.keep_running,
        );
        if args.keep_running {
            let (stopped, _) = shutdown_signals().map_err(CliError::local)?;
            stopped.await;
        }
    }
    stop.cancel();
    if let Err(error) = server_task.await {
        return Err(CliError::local(format!("server task failed: {error}")));
    }
    let (last, interrupted) = result?;
    Ok(if interrupted {
        EXIT_INTERRUPTED
    } else {
        exit_code(&last)
    })
}

/// Creates the operation and watches it through gRPC until it is done. Returns its
/// last state, and `true` if Ctrl-C was pressed, which cancels the operation.
async fn create_and_watch(
    operations: &Operations,
    directory: &Path,
    client_address: &str,
) -> Result<(Operation, bool), CliError> {
    let created = operations.create(new_checksum_operation(directory)).await;
    let name = created
        .map_err(CliError::local)?
        .operation
        .name()
        .to_owned();
    let directory = directory.display();
    eprintln!("created {name}: SHA-256 of every file below {directory}");
    let endpoint = format!("http://{client_address}").parse::<Endpoint>();
    let channel = endpoint.map_err(CliError::Local)?.connect(None).await?;
    let mut watch = OperationWatchClient::new(channel.clone());
    let request = WatchOperationRequest { name: name.clone() };
    let states = watch.watch_operation(request).await?.into_inner();
    watch_until_done(states, channel, &name).await
}

async fn watch_until_done(
    mut states: Streaming<Operation>,
    channel: Channel,
    name: &str,
) -> Result<(Operation, bool), CliError> {
    let bar = stderr().is_terminal().then(ProgressDisplay::new);
    let (mut interrupted, mut last) = (false, None);
    loop {
        select! {
            state = states.message() => match state? {
                Some(operation) => {
                    if let Some(bar) = &bar {
                        bar.update(&operation);
                    }
                    last = Some(operation);
                }
                None => break,
            },
            _ = ctrl_c() => {
                if std::mem::replace(&mut interrupted, true) {
                    break;
                }
                let text = format!("cancelling {name}; press Ctrl-C again to exit immediately");
                match &bar {
                    Some(bar) => bar.print_above(&text),
                    None => eprintln!("{text}"),
                }
                let cancel = CancelOperationRequest { name: name.to_owned() };
                OperationsClient::new(channel.clone()).cancel_operation(cancel).await?;
            }
        }
    }
    drop(bar);
    let last =
        last.ok_or_else(|| CliError::local("server closed the watch without sending a state"))?;
    Ok((last, interrupted))
}

/// Prints commands that read the operation and the metrics.
fn print_example_commands(
    name: &str,
    client_address: &str,
    admin_address: Option<&str>,
    keep_running: bool,
) {
    let lifetime_hint = if keep_running {
        "the server runs until Ctrl-C"
    } else {
        "use --keep-running to keep the server running"
    };
    eprintln!("\nCommands to try ({lifetime_hint}):");
    eprintln!(
        "  grpcurl -plaintext -d '{{\"name\":\"{name}\"}}' {client_address} google.longrunning.Operations/GetOperation"
    );
    eprintln!("  longrunning get {name} --endpoint http://{client_address}");
    eprintln!("  curl -s http://{client_address}/v1/{name}");
    if let Some(admin) = admin_address {
        eprintln!("  curl -s http://{admin}/metrics");
    }
}
