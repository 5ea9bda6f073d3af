//! The client commands: get, list, wait, watch, cancel, delete and healthcheck.

use std::{future::Future, io::IsTerminal, time::Duration};

use tokio::{
    select,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    args::{
        CancelArgs, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_SUCCESS, EXIT_TIMEOUT, HealthArgs,
        ListArgs, NameArgs, OperationArgs, OutputFormat, WaitArgs,
    },
    client::{CALL_TIMEOUT, CliError, Endpoint, full_name},
    render::{ProgressDisplay, print_operation, print_operations, print_state},
    types::TypeResolver,
};
use crate::proto::{
    google::{
        longrunning::{
            CancelOperationRequest, DeleteOperationRequest, GetOperationRequest,
            ListOperationsRequest, Operation, WaitOperationRequest, operation,
            operations_client::OperationsClient,
        },
        rpc,
    },
    longrunning::v1::{
        self as admin, WatchOperationRequest, operation_admin_client::OperationAdminClient,
        operation_watch_client::OperationWatchClient,
    },
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
    let response = client.get_operation(GetOperationRequest { name }).await?;
    Ok(print_result(&mut types, response.get_ref(), args.print.output).await)
}

/// Prints an operation and returns its exit code.
pub(super) async fn print_result(
    types: &mut TypeResolver,
    operation: &Operation,
    output: OutputFormat,
) -> u8 {
    print_operation(types.resolve_for([operation]).await, operation, output);
    exit_code(operation)
}

pub(super) async fn list(args: ListArgs) -> CommandResult {
    let endpoint = if args.show_deleted {
        &args.worker.worker_endpoint
    } else {
        &args.server.endpoint
    };
    let mut types = args.print.types.resolver(endpoint)?;
    let channel = endpoint.connect(Some(CALL_TIMEOUT)).await?;
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let mut listed = admin::ListOperationsResponse::default();
    while listed.operations.len() < limit {
        let page_size = i32::try_from(limit - listed.operations.len()).unwrap_or(i32::MAX);
        let page_token = std::mem::take(&mut listed.next_page_token);
        let page = list_page(channel.clone(), &args, page_size, page_token).await?;
        listed.operations.extend(page.operations);
        listed.deleted_names.extend(page.deleted_names);
        listed.next_page_token = page.next_page_token;
        if listed.next_page_token.is_empty() {
            break;
        }
    }
    listed.operations.truncate(limit);
    let output = args.print.output;
    // A table needs only built-in types.
    let unresolved: &[Operation] = if output.is_json() {
        &listed.operations
    } else {
        &[]
    };
    let types = types.resolve_for(unresolved).await;
    print_operations(types, &listed.operations, &listed.deleted_names, output);
    Ok(EXIT_SUCCESS)
}

/// Returns one page: of OperationAdmin with `--show-deleted`, else of Operations.
async fn list_page(
    channel: Channel,
    args: &ListArgs,
    page_size: i32,
    page_token: String,
) -> Result<admin::ListOperationsResponse, Status> {
    let (name, filter) = (args.parent.clone(), args.filter.clone());
    if args.show_deleted {
        let request = admin::ListOperationsRequest {
            name,
            filter,
            page_size,
            page_token,
            show_deleted: true,
        };
        let mut client = OperationAdminClient::new(channel);
        return Ok(client.list_operations(request).await?.into_inner());
    }
    let request = ListOperationsRequest {
        name,
        filter,
        page_size,
        page_token,
        ..Default::default()
    };
    let mut client = OperationsClient::new(channel);
    let page = client.list_operations(request).await?.into_inner();
    Ok(admin::ListOperationsResponse {
        operations: page.operations,
        next_page_token: page.next_page_token,
        deleted_names: Vec::new(),
    })
}

pub(super) async fn wait(args: WaitArgs) -> CommandResult {
    let name = full_name(args.operation.name.name.clone());
    let endpoint = &args.operation.name.server.endpoint;
    let mut types = args.operation.print.types.resolver(endpoint)?;
    let max_wait = args.timeout.unwrap_or(Duration::MAX);
    let show_progress = std::io::stderr().is_terminal();
    let wait_until_done = async {
        // Calls reconnect by themselves after a restart of the server.
        let channel = endpoint.connect(None).await?;
        if show_progress && let Some(operation) = wait_via_watch(channel.clone(), &name).await? {
            return Ok(operation);
        }
        wait_via_poll(channel, &name).await
    };
    let operation = match timeout(max_wait, interruptible(wait_until_done)).await {
        Ok(Some(operation)) => operation?,
        Ok(None) => return Ok(EXIT_INTERRUPTED),
        Err(_) => {
            eprintln!("error: timed out: {name} is not done");
            return Ok(EXIT_TIMEOUT);
        }
    };
    Ok(print_result(&mut types, &operation, args.operation.print.output).await)
}

/// Waits with a progress bar. Returns `None` if the server ended or refused the
/// watch.
async fn wait_via_watch(channel: Channel, name: &str) -> Result<Option<Operation>, CliError> {
    let mut client = OperationWatchClient::new(channel);
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

async fn wait_via_poll(channel: Channel, name: &str) -> Result<Operation, CliError> {
    let mut client = OperationsClient::new(channel);
    let mut failures = 0;
    loop {
        let started = Instant::now();
        let request = WaitOperationRequest {
            name: name.to_owned(),
            timeout: WAIT_CALL_TIMEOUT.try_into().ok(),
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
        Code::Unknown => status.details().is_empty(),
        code => code == Code::Unavailable,
    }
}

pub(super) async fn watch(args: OperationArgs) -> CommandResult {
    let name = full_name(args.name.name);
    let endpoint = &args.name.server.endpoint;
    let mut types = args.print.types.resolver(endpoint)?;
    let mut client = OperationWatchClient::new(endpoint.connect(None).await?);
    let follow = async {
        let (mut last, mut failures) = (None, 0);
        loop {
            let request = WatchOperationRequest { name: name.clone() };
            let mut states = client.watch_operation(request).await;
            let interruption = loop {
                let state = match &mut states {
                    Ok(response) => response.get_mut().message().await,
                    Err(status) => break status.clone(),
                };
                match state {
                    Ok(Some(operation)) => {
                        failures = 0;
                        // A new watch begins with the state that the last one ended with.
                        if last.as_ref() != Some(&operation) {
                            let types = types.resolve_for([&operation]).await;
                            print_state(types, &operation, args.print.output);
                        }
                        if operation.done {
                            return Ok(operation);
                        }
                        last = Some(operation);
                    }
                    Ok(None) => break Status::unavailable("the server ended the watch"),
                    Err(status) => break status,
                }
            };
            if !is_unavailable(&interruption) || failures == MAX_CONSECUTIVE_FAILURES {
                return Err(interruption);
            }
            if failures == 0 {
                eprintln!("server unreachable, retrying: {}", interruption.message());
            }
            failures += 1;
            sleep(RETRY_DELAY).await;
        }
    };
    match interruptible(follow).await {
        None => Ok(EXIT_INTERRUPTED),
        Some(last) => Ok(exit_code(&last?)),
    }
}

pub(super) async fn cancel(args: CancelArgs) -> CommandResult {
    let name = full_name(args.name.name);
    if args.deleted {
        let channel = args.worker.worker_endpoint.connect(Some(CALL_TIMEOUT));
        let request = admin::CancelOperationRequest { name: name.clone() };
        let mut client = OperationAdminClient::new(channel.await?);
        client.cancel_operation(request).await?;
        eprintln!("requested cancellation of {name}, which is removed when it is done");
        return Ok(EXIT_SUCCESS);
    }
    let mut client = args.name.server.endpoint.operations_client().await?;
    let request = CancelOperationRequest { name: name.clone() };
    client.cancel_operation(request).await?;
    let request = GetOperationRequest { name: name.clone() };
    let is_cancelled = |error: &rpc::Status| error.code == i32::from(rpc::Code::Cancelled);
    match client
        .get_operation(request)
        .await
        .map(|it| it.into_inner().result)
    {
        Ok(Some(operation::Result::Error(error))) if is_cancelled(&error) => {
            eprintln!("cancelled {name}");
        }
        Ok(Some(_)) => eprintln!("{name} was done before; see `longrunning get {name}`"),
        // It may have been deleted meanwhile.
        Ok(None) | Err(_) => eprintln!(
            "requested cancellation of {name}; see its result with `longrunning wait {name}`"
        ),
    }
    Ok(EXIT_SUCCESS)
}

pub(super) async fn delete(args: NameArgs) -> CommandResult {
    let name = full_name(args.name);
    let mut client = args.server.endpoint.operations_client().await?;
    let request = DeleteOperationRequest { name: name.clone() };
    client.delete_operation(request).await?;
    eprintln!("deleted {name}");
    Ok(EXIT_SUCCESS)
}

pub(super) async fn healthcheck(args: HealthArgs) -> CommandResult {
    let default_endpoint = || Endpoint::from_listen_address(&args.listen);
    let endpoint = args.endpoint.unwrap_or_else(default_endpoint);
    let mut client = HealthClient::new(endpoint.connect(Some(HEALTHCHECK_TIMEOUT)).await?);
    let health = client.check(HealthCheckRequest::default()).await?;
    if health.get_ref().status() == ServingStatus::Serving {
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
