//! `longrunning submit`: creates an operation for the workers of a queue. What
//! is common to the commands that create is declared here too.

use std::{
    io::{IsTerminal, Read},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use humantime::parse_duration;
use prost_types::Any;
use serde_json::Value;

use super::{
    args::{EXIT_INTERRUPTED, EndpointArgs, NameArgs, OperationArgs, PrintArgs, WaitArgs},
    client::{CliError, Endpoint},
    commands,
    render::print_operation,
};
use crate::{
    operation::retry::RetryPolicy,
    proto::longrunning::v1::operation_worker_client::OperationWorkerClient,
    service::new_operation::NewOperation, types::TypeRegistry,
};

/// Where services and workers connect.
#[derive(Args, Debug)]
pub(super) struct WorkerEndpointArgs {
    /// The server's listener for workers, http://HOST:PORT or unix:PATH
    #[arg(
        long,
        env = "LONGRUNNING_WORKER_ENDPOINT",
        value_name = "URL",
        default_value = "http://127.0.0.1:8471"
    )]
    pub(super) worker_endpoint: Endpoint,
}

/// What a new operation is called by, and how long it may take.
#[derive(Args, Debug)]
pub(super) struct NewOperationArgs {
    /// What it lives under, such as projects/p1
    #[arg(
        long,
        value_name = "PARENT",
        default_value = "",
        hide_default_value = true
    )]
    parent: String,
    /// Its ID [default: a new one]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Makes the call idempotent: the same ID and content is the same operation
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// A label; repeatable
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// The method that it belongs to, such as bookstore.v1.Bookstore/ExportBooks
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// The longest time from now to done, as 90s or 2h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
}

#[derive(Args, Debug)]
pub(super) struct SubmitArgs {
    /// The queue
    #[arg(value_name = "QUEUE")]
    queue: String,
    /// What the worker gets: JSON, @FILE with JSON, or - for standard input
    #[arg(long, value_name = "JSON")]
    input: Option<String>,
    /// The message type of the input [default: google.protobuf.Struct, or Value]
    #[arg(long = "type", value_name = "MESSAGE", requires = "input")]
    input_type: Option<String>,
    #[command(flatten)]
    new_operation: NewOperationArgs,
    /// Higher is leased first
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    priority: i32,
    /// How often a failed attempt is tried again
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
    /// Wait until it is done, and print that
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    worker: WorkerEndpointArgs,
    #[command(flatten)]
    server: EndpointArgs,
    #[command(flatten)]
    print: PrintArgs,
}

/// Creates the operation; returns the exit code.
pub(super) async fn submit(args: SubmitArgs) -> Result<u8, CliError> {
    let mut new_operation = args.new_operation.apply(NewOperation::queued(&args.queue));
    let mut types = args.print.types.resolver(&args.worker.worker_endpoint)?;
    if let Some(input) = &args.input {
        let types = match &args.input_type {
            Some(name) => types.resolve(name).await,
            None => types.resolve_for([]).await,
        };
        let input = parse_input(types, input, args.input_type.as_deref());
        new_operation = new_operation.input(input.map_err(CliError::local)?);
    }
    if args.priority != 0 {
        new_operation = new_operation.priority(args.priority);
    }
    if let Some(retries) = args.retries {
        new_operation =
            new_operation.retry_policy(RetryPolicy::with_max_attempts(retries.saturating_add(1)));
    }
    let channel = args
        .worker
        .worker_endpoint
        .connect(Some(super::client::CALL_TIMEOUT));
    let mut client = OperationWorkerClient::new(channel.await?);
    let request = tonic::Request::new(new_operation.into());
    let created = client.create_operation(request).await?.into_inner();
    let operation = created.operation.unwrap_or_default();
    if !args.wait {
        print_operation(
            types.resolve_for([&operation]).await,
            &operation,
            args.print.output,
        );
        return Ok(0);
    }
    let name = operation.name;
    if std::io::stderr().is_terminal() {
        eprintln!("created {name}");
    }
    let operation = OperationArgs {
        name: NameArgs {
            name: name.clone(),
            server: args.server,
        },
        print: args.print,
    };
    let code = commands::wait(WaitArgs {
        operation,
        timeout: None,
    })
    .await?;
    if code == EXIT_INTERRUPTED {
        eprintln!("{name} goes on; `longrunning cancel {name}` asks it to stop");
    }
    Ok(code)
}

// === impl NewArgs ===

impl NewOperationArgs {
    /// Puts these wishes into a new operation.
    pub(super) fn apply(self, mut new_operation: NewOperation) -> NewOperation {
        new_operation = new_operation.parent(&self.parent);
        if let Some(id) = &self.id {
            new_operation = new_operation.id(id);
        }
        if let Some(id) = &self.request_id {
            new_operation = new_operation.request_id(id);
        }
        for (key, value) in &self.labels {
            new_operation = new_operation.label(key, value);
        }
        if let Some(method) = &self.method {
            new_operation = new_operation.method(method);
        }
        if let Some(timeout) = self.timeout {
            new_operation = new_operation.total_timeout(timeout);
        }
        new_operation
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// The message that the flag `--input` stands for.
fn parse_input(types: &TypeRegistry, input: &str, input_type: Option<&str>) -> Result<Any, String> {
    let text = match input.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(PathBuf::from(path))
            .map_err(|error| format!("--input: cannot read {path:?}: {error}"))?,
        None if input == "-" => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| format!("--input: cannot read standard input: {error}"))?;
            text
        }
        None => input.to_owned(),
    };
    let json: Value = serde_json::from_str(&text).map_err(|error| {
        format!("--input is not JSON: {error}; a text stands in quotes, as in '\"text\"'")
    })?;
    let default_type = if json.is_object() {
        "google.protobuf.Struct"
    } else {
        "google.protobuf.Value"
    };
    let packed = types.pack(input_type.unwrap_or(default_type), &json);
    packed.map_err(|error| format!("--input: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input_type_url(input: &str, input_type: Option<&str>) -> Result<String, String> {
        parse_input(&TypeRegistry::built_in(), input, input_type).map(|any| any.type_url)
    }

    #[test]
    fn object_is_struct_and_other_json_is_value_unless_type_is_given() {
        let google = |name: &str| Ok(format!("type.googleapis.com/google.{name}"));
        assert_eq!(
            input_type_url(r#"{"a": 1}"#, None),
            google("protobuf.Struct")
        );
        assert_eq!(input_type_url("[1]", None), google("protobuf.Value"));
        assert_eq!(
            input_type_url(r#"{"code": 5}"#, Some("google.rpc.Status")),
            google("rpc.Status")
        );
    }

    #[test]
    fn invalid_input_is_rejected_with_message() {
        for (input, input_type, problem) in [
            ("text", None, "is not JSON"),
            ("@/nowhere", None, "cannot read \"/nowhere\""),
            ("{}", Some("no.Such"), "no.Such"),
            (
                "{\"code\": \"x\"}",
                Some("google.rpc.Status"),
                "google.rpc.Status",
            ),
        ] {
            let error = input_type_url(input, input_type).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
