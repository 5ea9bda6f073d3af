//! The commands that ask a server: get, list, wait, watch, cancel, delete and
//! healthcheck. How they print lives in `render`.

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
    args::{FAILED, HealthArgs, INTERRUPTED, ListArgs, NOT_IN_TIME, NameArgs, OneArgs, WaitArgs},
    client::{CallError, Endpoint, full_name},
    render::{Bar, print_list, print_one, print_state},
};
use crate::proto::{
    google::longrunning::{
        CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
        Operation, WaitOperationRequest, operation,
    },
    longrunning::v1::WatchOperationRequest,
};

/// How long one call of a wait asks for; below what proxies cut off.
const WAIT_SLICE: Duration = Duration::from_secs(30);
/// The pause before a wait that the server broke off is taken up again.
const RETRY: Duration = Duration::from_secs(1);

/// How long a probe waits.
const PROBE: Duration = Duration::from_secs(5);
/// So many tries in a row find no server before a wait gives up.
const FAILURES: u32 = 30;

type Done = Result<u8, CallError>;

pub(super) async fn get(args: OneArgs) -> Done {
    let name = full_name(args.name.name);
    let mut client = args.name.connect.endpoint.operations().await?;
    let operation = client
        .get_operation(GetOperationRequest { name })
        .await?
        .into_inner();
    print_one(&operation, args.print.output);
    Ok(exit_code(&operation))
}

pub(super) async fn list(args: ListArgs) -> Done {
    let mut client = args.connect.endpoint.operations().await?;
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let (mut operations, mut page_token) = (Vec::new(), String::new());
    loop {
        let missing = limit.saturating_sub(operations.len());
        let request = ListOperationsRequest {
            name: args.parent.clone(),
            page_size: i32::try_from(missing).unwrap_or(i32::MAX),
            page_token,
            filter: args.filter.clone(),
            ..Default::default()
        };
        if missing == 0 {
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
    print_list(&operations, args.print.output);
    Ok(0)
}

pub(super) async fn wait(args: WaitArgs) -> Done {
    let name = full_name(args.one.name.name.clone());
    let deadline = args
        .timeout
        .and_then(|timeout| Instant::now().checked_add(timeout));
    let with_bar = std::io::stderr().is_terminal();
    let waited = async {
        if with_bar && let Some(operation) = wait_watching(&args, &name).await? {
            return Ok(operation);
        }
        wait_waiting(&args, &name).await
    };
    let operation = match within(deadline, interruptible(waited)).await {
        Some(Some(operation)) => operation?,
        Some(None) => return Ok(INTERRUPTED),
        None => {
            eprintln!("{name} is not done yet; wait longer, or watch it");
            return Ok(NOT_IN_TIME);
        }
    };
    print_one(&operation, args.one.print.output);
    Ok(exit_code(&operation))
}

/// Waits with a progress bar; none if the server has no watch to offer.
async fn wait_watching(args: &WaitArgs, name: &str) -> Result<Option<Operation>, CallError> {
    let mut client = args.one.name.connect.endpoint.watch().await?;
    let request = WatchOperationRequest {
        name: name.to_owned(),
    };
    let mut states = match client.watch_operation(request).await {
        Ok(states) => states.into_inner(),
        // It has no watch, or no room for one: the plain wait is answered.
        Err(status) if matches!(status.code(), Code::Unimplemented | Code::ResourceExhausted) => {
            return Ok(None);
        }
        Err(status) => return Err(status.into()),
    };
    let bar = Bar::new();
    loop {
        match states.message().await {
            Ok(Some(operation)) if operation.done => return Ok(Some(operation)),
            Ok(Some(operation)) => bar.show(&operation),
            // The server shuts down, or broke off: the plain wait goes on.
            Ok(None) => return Ok(None),
            Err(status) if is_away(&status) => return Ok(None),
            Err(status) => return Err(status.into()),
        }
    }
}

async fn wait_waiting(args: &WaitArgs, name: &str) -> Result<Operation, CallError> {
    let mut client = args.one.name.connect.endpoint.waiting().await?;
    let mut failures = 0;
    loop {
        let timeout = prost_types::Duration::try_from(WAIT_SLICE).ok();
        let begun = Instant::now();
        let request = WaitOperationRequest {
            name: name.to_owned(),
            timeout,
        };
        match client.wait_operation(request).await {
            Ok(response) if response.get_ref().done => return Ok(response.into_inner()),
            Ok(_) => failures = 0,
            Err(status) if is_away(&status) && failures < FAILURES => {
                if failures == 0 {
                    eprintln!("the server is away ({}); trying again", status.message());
                }
                failures += 1;
            }
            Err(status) => return Err(status.into()),
        }
        // A server may answer early; that must not become a storm of calls.
        sleep(RETRY.saturating_sub(begun.elapsed())).await;
    }
}

/// Whether the server restarts, drains or cannot be reached, so that another
/// try may help. UNKNOWN without details is how a broken connection looks.
fn is_away(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => true,
        Code::Unknown => status.details().is_empty(),
        _ => false,
    }
}

pub(super) async fn watch(args: OneArgs) -> Done {
    let name = full_name(args.name.name);
    let output = args.print.output;
    let mut client = args.name.connect.endpoint.watch().await?;
    let mut states = client
        .watch_operation(WatchOperationRequest { name })
        .await?
        .into_inner();
    let shown = async {
        let mut last = None;
        while let Some(operation) = states.message().await? {
            print_state(&operation, output);
            last = Some(operation);
        }
        Ok::<_, Status>(last)
    };
    match interruptible(shown).await {
        None => Ok(INTERRUPTED),
        Some(last) => Ok(last?.as_ref().map_or(0, exit_code)),
    }
}

pub(super) async fn cancel(args: NameArgs) -> Done {
    let name = full_name(args.name);
    let mut client = args.connect.endpoint.operations().await?;
    client
        .cancel_operation(CancelOperationRequest { name: name.clone() })
        .await?;
    eprintln!("asked {name} to stop; `longrunning wait {name}` shows how it ends");
    Ok(0)
}

pub(super) async fn delete(args: NameArgs) -> Done {
    let name = full_name(args.name);
    let mut client = args.connect.endpoint.operations().await?;
    client
        .delete_operation(DeleteOperationRequest { name: name.clone() })
        .await?;
    eprintln!("deleted {name}");
    Ok(0)
}

pub(super) async fn healthcheck(args: HealthArgs) -> Done {
    let endpoint = args
        .endpoint
        .unwrap_or_else(|| Endpoint::of_listener(&args.listen));
    let mut client = HealthClient::new(endpoint.channel(Some(PROBE)).await?);
    let health = client
        .check(HealthCheckRequest {
            service: String::new(),
        })
        .await?
        .into_inner();
    if health.status() == ServingStatus::Serving {
        return Ok(0);
    }
    eprintln!("the server at {endpoint} is not serving");
    Ok(FAILED)
}

/// The exit code that tells how an operation stands.
pub(super) fn exit_code(operation: &Operation) -> u8 {
    match operation.result {
        Some(operation::Result::Error(_)) => FAILED,
        Some(operation::Result::Response(_)) | None => 0,
    }
}

/// The result, or nothing if somebody presses Ctrl-C.
pub(super) async fn interruptible<T>(future: impl Future<Output = T>) -> Option<T> {
    select! {
        output = future => Some(output),
        _ = tokio::signal::ctrl_c() => None,
    }
}

async fn within<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}
