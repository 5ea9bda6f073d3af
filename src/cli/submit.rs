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
    args::{ConnectArgs, INTERRUPTED, NameArgs, OneArgs, PrintArgs, WaitArgs},
    client::{CallError, Endpoint},
    commands,
    render::print_one,
};
use crate::{
    operation::retry::RetryPolicy, operations::creation::NewOperation,
    proto::longrunning::v1::operation_worker_client::OperationWorkerClient, types::Types,
};

/// Where services and workers connect.
#[derive(Args, Debug)]
pub(super) struct WorkerArgs {
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
pub(super) struct NewArgs {
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
    new: NewArgs,
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
    worker: WorkerArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    print: PrintArgs,
}

/// Creates the operation; returns the exit code.
pub(super) async fn submit(args: SubmitArgs) -> Result<u8, CallError> {
    let mut new = args.new.apply(NewOperation::queued(&args.queue));
    let mut types = args.print.types.known(&args.worker.worker_endpoint)?;
    if let Some(input) = &args.input {
        let types = match &args.input_type {
            Some(name) => types.with(name).await,
            None => types.of([]).await,
        };
        let input = input_of(types, input, args.input_type.as_deref());
        new = new.input(input.map_err(CallError::refused)?);
    }
    if args.priority != 0 {
        new = new.priority(args.priority);
    }
    if let Some(retries) = args.retries {
        new = new.retry(RetryPolicy::attempts(retries.saturating_add(1)));
    }
    let channel = args
        .worker
        .worker_endpoint
        .channel(Some(super::client::CALL));
    let mut client = OperationWorkerClient::new(channel.await?);
    let request = tonic::Request::new(new.into());
    let created = client.create_operation(request).await?.into_inner();
    let operation = created.operation.unwrap_or_default();
    if !args.wait {
        print_one(types.of([&operation]).await, &operation, args.print.output);
        return Ok(0);
    }
    let name = operation.name;
    if std::io::stderr().is_terminal() {
        eprintln!("created {name}");
    }
    let one = OneArgs {
        name: NameArgs {
            name: name.clone(),
            connect: args.connect,
        },
        print: args.print,
    };
    let code = commands::wait(WaitArgs { one, timeout: None }).await?;
    if code == INTERRUPTED {
        eprintln!("{name} goes on; `longrunning cancel {name}` asks it to stop");
    }
    Ok(code)
}

// === impl NewArgs ===

impl NewArgs {
    /// Puts these wishes into a new operation.
    pub(super) fn apply(self, mut new: NewOperation) -> NewOperation {
        new = new.parent(&self.parent);
        if let Some(id) = &self.id {
            new = new.id(id);
        }
        if let Some(id) = &self.request_id {
            new = new.request_id(id);
        }
        for (key, value) in &self.labels {
            new = new.label(key, value);
        }
        if let Some(method) = &self.method {
            new = new.method(method);
        }
        if let Some(timeout) = self.timeout {
            new = new.total_timeout(timeout);
        }
        new
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// The message that the flag `--input` stands for.
fn input_of(types: &Types, input: &str, input_type: Option<&str>) -> Result<Any, String> {
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
    let usual = if json.is_object() {
        "google.protobuf.Struct"
    } else {
        "google.protobuf.Value"
    };
    let packed = types.pack(input_type.unwrap_or(usual), &json);
    packed.map_err(|error| format!("--input: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(input: &str, input_type: Option<&str>) -> Result<String, String> {
        input_of(&Types::built_in(), input, input_type).map(|any| any.type_url)
    }

    #[test]
    fn an_object_is_a_struct_and_other_json_a_value_unless_a_type_is_named() {
        let google = |name: &str| Ok(format!("type.googleapis.com/google.{name}"));
        assert_eq!(url(r#"{"a": 1}"#, None), google("protobuf.Struct"));
        assert_eq!(url("[1]", None), google("protobuf.Value"));
        assert_eq!(
            url(r#"{"code": 5}"#, Some("google.rpc.Status")),
            google("rpc.Status")
        );
    }

    #[test]
    fn what_is_no_input_is_refused_in_words() {
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
            let refused = url(input, input_type).unwrap_err();
            assert!(refused.contains(problem), "{refused}");
        }
    }
}
