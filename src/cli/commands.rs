//! The client commands: get, list, wait, watch, cancel, delete and healthcheck.

use std::{future::Future, io::IsTerminal, time::Duration};

use tokio::{
    select,
    time::{Instant, sleep},
};
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    args::{
        EXIT_FAILED, EXIT_INTERRUPTED, EXIT_SUCCESS, EXIT_TIMEOUT, HealthArgs, ListArgs, NameArgs,
        OperationArgs, WaitArgs,
    },
    client::{CliError, Endpoint, full_name},
    render::{ProgressDisplay, print_operation, print_operations, print_state},
};
use crate::proto::{
    google::longrunning::{
        CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
        Operation, WaitOperationRequest, operation,
    },
    longrunning::v1::WatchOperationRequest,
};

/// The timeout of one WaitOperation call, below the idle timeout of common proxies.
const WAIT_CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The minimum interval between two WaitOperation calls.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// The timeout of a health check.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// The number of consecutive failed calls after which a wait fails.
const MAX_CONSECUTIVE_FAILURES: u32 = 30;

type CommandResult = Result<u8, CliError>;

pub(super) async fn get(args: OperationArgs) -> CommandResult {
    let name = full_name(args.name.name);
    let endpoint = &args.name.server.endpoint;
    let mut types = args.print.types.resolver(endpoint)?;
    let mut client = endpoint.operations_client().await?;
    let operation = client
        .get_operation(GetOperationRequest { name })
        .await?
        .into_inner();
    print_operation(
        types.resolve_for([&operation]).await,
        &operation,
        args.print.output,
    );
    Ok(exit_code(&operation))
}

pub(super) async fn list(args: ListArgs) -> CommandResult {
    let mut types = args.print.types.resolver(&args.server.endpoint)?;
    let mut client = args.server.endpoint.operations_client().await?;
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let (mut operations, mut page_token) = (Vec::new(), String::new());
    loop {
        let remaining = limit.saturating_sub(operations.len());
        let request = ListOperationsRequest {
            name: args.parent.clone(),
            page_size: i32::try_from(remaining).unwrap_or(i32::MAX),
            page_token,
            filter: args.filter.clone(),
            ..Default::default()
        };
        if remaining == 0 {
            break;
        }
        let page = client.list_operations(request).await?.into_inner();
        operations.extend(page.operations);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    operations.truncate(limit);
    // A table needs only built-in types.
    let unresolved: &[Operation] = if args.print.output.is_json() {
        &operations
    } else {
        &[]
    };
    print_operations(
        types.resolve_for(unresolved).await,
        &operations,
        args.print.output,
    );
    Ok(EXIT_SUCCESS)
}

pub(super) async fn wait(args: WaitArgs) -> CommandResult {
    let name = full_name(args.operation.name.name.clone());
    let endpoint = &args.operation.name.server.endpoint;
    let mut types = args.operation.print.types.resolver(endpoint)?;
    let deadline = args
        .timeout
        .and_then(|timeout| Instant::now().checked_add(timeout));
    let show_progress = std::io::stderr().is_terminal();
    let wait_until_done = async {
        if show_progress && let Some(operation) = wait_via_watch(&args, &name).await? {
            return Ok(operation);
        }
        wait_via_poll(&args, &name).await
    };
    let operation = match with_deadline(deadline, interruptible(wait_until_done)).await {
        Some(Some(operation)) => operation?,
        Some(None) => return Ok(EXIT_INTERRUPTED),
        None => {
            eprintln!("error: timed out: {name} is not done");
            return Ok(EXIT_TIMEOUT);
        }
    };
    let known = types.resolve_for([&operation]).await;
    print_operation(known, &operation, args.operation.print.output);
    Ok(exit_code(&operation))
}

/// Waits with a progress bar. Returns `None` if the server ended or refused the
/// watch.
async fn wait_via_watch(args: &WaitArgs, name: &str) -> Result<Option<Operation>, CliError> {
    let mut client = args.operation.name.server.endpoint.watch_client().await?;
    let request = WatchOperationRequest {
        name: name.to_owned(),
    };
    let mut states = match client.watch_operation(request).await {
        Ok(states) => states.into_inner(),
        // The server has no watch service, or too many watches.
        Err(status) if matches!(status.code(), Code::Unimplemented | Code::ResourceExhausted) => {
            return Ok(None);
        }
        Err(status) => return Err(status.into()),
    };
    let bar = ProgressDisplay::new();
    loop {
        match states.message().await {
            Ok(Some(operation)) if operation.done => return Ok(Some(operation)),
            Ok(Some(operation)) => bar.update(&operation),
            // The server shuts down or is unreachable.
            Ok(None) => return Ok(None),
            Err(status) if is_unavailable(&status) => return Ok(None),
            Err(status) => return Err(status.into()),
        }
    }
}

async fn wait_via_poll(args: &WaitArgs, name: &str) -> Result<Operation, CliError> {
    let mut client = args
        .operation
        .name
        .server
        .endpoint
        .operations_client_without_timeout()
        .await?;
    let mut failures = 0;
    loop {
        let timeout = prost_types::Duration::try_from(WAIT_CALL_TIMEOUT).ok();
        let started = Instant::now();
        let request = WaitOperationRequest {
            name: name.to_owned(),
            timeout,
        };
        match client.wait_operation(request).await {
            Ok(response) if response.get_ref().done => return Ok(response.into_inner()),
            Ok(_) => failures = 0,
            Err(status) if is_unavailable(&status) && failures < MAX_CONSECUTIVE_FAILURES => {
                if failures == 0 {
                    eprintln!("server unreachable, retrying: {}", status.message());
                }
                failures += 1;
            }
            Err(status) => return Err(status.into()),
        }
        // The server may return early; do not poll in a busy loop.
        sleep(RETRY_DELAY.saturating_sub(started.elapsed())).await;
    }
}

/// Returns `true` if the server is unreachable, restarting or draining. tonic
/// reports a broken connection as UNKNOWN without details.
fn is_unavailable(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => true,
        Code::Unknown => status.details().is_empty(),
        _ => false,
    }
}

pub(super) async fn watch(args: OperationArgs) -> CommandResult {
    let name = full_name(args.name.name);
    let output = args.print.output;
    let mut types = args.print.types.resolver(&args.name.server.endpoint)?;
    let mut client = args.name.server.endpoint.watch_client().await?;
    let mut states = client
        .watch_operation(WatchOperationRequest { name })
        .await?
        .into_inner();
    let print_states = async {
        let mut last = None;
        while let Some(operation) = states.message().await? {
            print_state(types.resolve_for([&operation]).await, &operation, output);
            last = Some(operation);
        }
        Ok::<_, Status>(last)
    };
    match interruptible(print_states).await {
        None => Ok(EXIT_INTERRUPTED),
        Some(last) => Ok(last?.as_ref().map_or(EXIT_SUCCESS, exit_code)),
    }
}

pub(super) async fn cancel(args: NameArgs) -> CommandResult {
    let name = full_name(args.name);
    let mut client = args.server.endpoint.operations_client().await?;
    client
        .cancel_operation(CancelOperationRequest { name: name.clone() })
        .await?;
    eprintln!("requested cancellation of {name}; see its result with `longrunning wait {name}`");
    Ok(EXIT_SUCCESS)
}

pub(super) async fn delete(args: NameArgs) -> CommandResult {
    let name = full_name(args.name);
    let mut client = args.server.endpoint.operations_client().await?;
    client
        .delete_operation(DeleteOperationRequest { name: name.clone() })
        .await?;
    eprintln!("deleted {name}");
    Ok(EXIT_SUCCESS)
}

pub(super) async fn healthcheck(args: HealthArgs) -> CommandResult {
    let endpoint = args
        .endpoint
        .unwrap_or_else(|| Endpoint::from_listen_address(&args.listen));
    let mut client = HealthClient::new(endpoint.connect(Some(HEALTHCHECK_TIMEOUT)).await?);
    let health = client
        .check(HealthCheckRequest {
            service: String::new(),
        })
        .await?
        .into_inner();
    if health.status() == ServingStatus::Serving {
        return Ok(EXIT_SUCCESS);
    }
    eprintln!("error: server at {endpoint} is not serving");
    Ok(EXIT_FAILED)
}

/// Returns the exit code for an operation: [`EXIT_FAILED`] if it has an error.
pub(super) fn exit_code(operation: &Operation) -> u8 {
    match operation.result {
        Some(operation::Result::Error(_)) => EXIT_FAILED,
        Some(operation::Result::Response(_)) | None => EXIT_SUCCESS,
    }
}

/// Runs a future until Ctrl-C. Returns `None` if interrupted.
pub(super) async fn interruptible<T>(future: impl Future<Output = T>) -> Option<T> {
    select! {
        output = future => Some(output),
        _ = tokio::signal::ctrl_c() => None,
    }
}

/// Runs a future until the deadline, if any. Returns `None` if it passed.
async fn with_deadline<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}
