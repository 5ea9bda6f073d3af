//! Prints operations as tables, progress bars or ProtoJSON.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::args::OutputFormat;
use crate::{
    clock::{Clock, Timestamp},
    proto::{
        google::{
            longrunning::{Operation, operation},
            rpc,
        },
        longrunning::v1::{OperationMetadata, Progress},
    },
    types::{EnumFormat, TypeRegistry},
};

/// A progress bar on standard error.
#[derive(Debug)]
pub(super) struct ProgressDisplay(ProgressBar);

/// The columns of a table.
const COLUMNS: [&str; 5] = ["NAME", "STATE", "AGE", "PROGRESS", "LABELS"];

/// Prints one operation.
pub(super) fn print_operation(types: &TypeRegistry, operation: &Operation, output: OutputFormat) {
    if output.is_json() {
        let json = types.operation_to_json(operation, EnumFormat::Names);
        return print_json(&json);
    }
    for (key, value) in COLUMNS.iter().zip(table_row(operation)) {
        if !value.is_empty() {
            print_line(&format!("{:<9} {value}", key.to_lowercase()));
        }
    }
    match &operation.result {
        Some(operation::Result::Response(response)) => {
            print_line(&format!("response  {}", types.any_to_json(response)));
        }
        Some(operation::Result::Error(error)) => {
            print_line(&format!("error     {}", error_text(error)));
            for detail in &error.details {
                print_line(&format!("          {}", types.any_to_json(detail)));
            }
        }
        None => {}
    }
}

/// Prints a list of operations, and which of them were deleted.
pub(super) fn print_operations(
    types: &TypeRegistry,
    operations: &[Operation],
    deleted_names: &[String],
    output: OutputFormat,
) {
    if output.is_json() {
        let to_json = |operation| types.operation_to_json(operation, EnumFormat::Names);
        let list: Vec<Value> = operations.iter().map(to_json).collect();
        let mut json = json!({ "operations": list });
        if !deleted_names.is_empty() {
            json["deletedNames"] = json!(deleted_names);
        }
        return print_json(&json);
    }
    if operations.is_empty() {
        eprintln!("no operations");
        return;
    }
    // Text bars only on a terminal, to keep piped output easy to parse.
    let is_terminal = std::io::stdout().is_terminal();
    let rows = operations.iter().map(|operation| {
        let [name, mut state, age, progress, labels] = table_row(operation);
        if deleted_names.contains(&name) {
            state.push_str(" (deleted)");
        }
        let bar = is_terminal.then(|| progress_bar(operation)).flatten();
        let bar = bar.unwrap_or_default();
        [name, state, age, bar + &progress, labels]
    });
    let mut table = vec![COLUMNS.map(String::from)];
    table.extend(rows);
    let [name_width, state_width, age_width, progress_width, _] = [0, 1, 2, 3, 4].map(|column| {
        let widths = table.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    });
    for [name, state, age, progress, labels] in &table {
        let line = format!(
            "{name:<name_width$}  {state:<state_width$}  {age:>age_width$}  {progress:<progress_width$}  {labels}"
        );
        print_line(line.trim_end());
    }
}

/// Prints one change of a watched operation on a line.
pub(super) fn print_state(types: &TypeRegistry, operation: &Operation, output: OutputFormat) {
    if output.is_json() {
        let json = types.operation_to_json(operation, EnumFormat::Names);
        return print_line(&json.to_string());
    }
    let [_, state, _, progress, _] = table_row(operation);
    let result = match &operation.result {
        Some(operation::Result::Response(response)) => types.any_to_json(response).to_string(),
        Some(operation::Result::Error(error)) => error_text(error),
        None => progress,
    };
    print_line(&format!("{state:<10}  {result}"));
}

/// Prints a line on standard output. Exits with 0 if it is closed, as by `head`.
pub(super) fn print_line(line: &str) {
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(0);
    }
}

/// Replaces control characters, which could manipulate the terminal.
fn sanitize(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// Prints JSON with indentation.
pub(super) fn print_json(json: &Value) {
    print_line(&format!("{json:#}"));
}

fn error_text(error: &rpc::Status) -> String {
    let code = rpc::Code::try_from(error.code).map_or("UNKNOWN", |code| code.as_str_name());
    format!("{code}: {}", sanitize(&error.message))
}

fn operation_metadata(operation: &Operation) -> Option<OperationMetadata> {
    TypeRegistry::unpack(operation.metadata.as_ref())
}

/// Returns the cells of the [`COLUMNS`]; those without a value are empty.
fn table_row(operation: &Operation) -> [String; 5] {
    let metadata = operation_metadata(operation);
    let state = match (&metadata, &operation.result) {
        (Some(metadata), _) if metadata.cancel_requested && !operation.done => "CANCELLING",
        (Some(metadata), _) => metadata.state().as_str_name(),
        (None, Some(operation::Result::Error(_))) => "FAILED",
        (None, Some(operation::Result::Response(_))) => "SUCCEEDED",
        (None, None) => "RUNNING",
    };
    let metadata = metadata.as_ref();
    let labels = metadata.iter().flat_map(|metadata| &metadata.labels);
    let mut labels: Vec<String> = labels
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    labels.sort();
    let age = metadata
        .and_then(|metadata| metadata.create_time.as_ref())
        .map(format_age);
    let progress = metadata
        .and_then(|metadata| metadata.progress.as_ref())
        .map(progress_text);
    [
        operation.name.clone(),
        state.to_owned(),
        age.unwrap_or_default(),
        progress.unwrap_or_default(),
        sanitize(&labels.join(",")),
    ]
}

/// Returns the bar before the progress, or `None` if the operation is done or its
/// fraction is unknown.
fn progress_bar(operation: &Operation) -> Option<String> {
    let progress = operation_metadata(operation)?.progress?;
    let fraction = progress_fraction(&progress).filter(|_| !operation.done)?;
    Some(format!("{} ", text_bar(fraction)))
}

/// Formats a fraction from 0 to 1 as a bar of ten columns: `[====>     ]`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "0 to 10"
)]
fn text_bar(fraction: f64) -> String {
    let done = (fraction * 10.0) as usize;
    let head = if done < 10 { ">" } else { "" };
    format!("[{:<10}]", format!("{}{head}", "=".repeat(done)))
}

/// Formats a progress: `42%, 1.2 GiB of 3.4 GiB, 12 of 30 files`.
fn progress_text(progress: &Progress) -> String {
    let mut parts = Vec::new();
    if let Some(fraction) = progress_fraction(progress) {
        parts.push(format!("{:.0}%", fraction * 100.0));
    }
    let format_units = |units: i64| match progress.unit.as_str() {
        "bytes" => human_bytes(units).to_string(),
        _ => units.to_string(),
    };
    let unit = match progress.unit.as_str() {
        "bytes" | "" => String::new(),
        unit => format!(" {unit}"),
    };
    let done = format_units(progress.done_units);
    match (progress.done_units, progress.total_units) {
        (0, 0) => {}
        (_, 0) => parts.push(format!("{done}{unit}")),
        (_, total) => parts.push(format!("{done} of {}{unit}", format_units(total))),
    }
    if !progress.message.is_empty() {
        parts.push(progress.message.clone());
    } else if !progress.stage.is_empty() {
        parts.push(progress.stage.clone());
    }
    sanitize(&parts.join(", "))
}

fn human_bytes(bytes: i64) -> HumanBytes {
    HumanBytes(u64::try_from(bytes).unwrap_or(0))
}

#[expect(clippy::cast_precision_loss, reason = "displayed only")]
fn progress_fraction(progress: &Progress) -> Option<f64> {
    let (done, total) = (progress.done_units as f64, progress.total_units as f64);
    let fraction = progress
        .fraction
        .or_else(|| (total > 0.0).then(|| done / total));
    fraction.map(|fraction| fraction.clamp(0.0, 1.0))
}

fn format_age(time: &prost_types::Timestamp) -> String {
    let elapsed = Clock::system().now().since(to_timestamp(time));
    let seconds = elapsed.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn to_timestamp(time: &prost_types::Timestamp) -> Timestamp {
    let nanos = time.seconds.saturating_mul(1_000_000_000);
    Timestamp::from_nanos(nanos.saturating_add(time.nanos.into()))
}

// === impl ProgressDisplay ===

impl ProgressDisplay {
    /// Creates a bar, which is drawn only on a terminal.
    pub(super) fn new() -> Self {
        let bar = ProgressBar::new(1000);
        let style =
            ProgressStyle::with_template("{spinner} {prefix} [{bar:20}] {percent:>3}%  {wide_msg}");
        let style = style.expect("the template is constant");
        bar.set_style(style.progress_chars("=> "));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(bar)
    }

    /// Shows the progress of an operation.
    pub(super) fn update(&self, operation: &Operation) {
        let Some(metadata) = operation_metadata(operation) else {
            return;
        };
        let Some(progress) = &metadata.progress else {
            let state = metadata.state().as_str_name();
            return self.0.set_prefix(state.to_lowercase());
        };
        self.0.set_prefix(sanitize(&progress.stage));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 1000"
        )]
        let position = (progress_fraction(progress).unwrap_or(0.0) * 1000.0) as u64;
        self.0.set_position(position);
        let mut parts = vec![progress.message.clone()];
        if progress.unit == "bytes" && progress.total_units > 0 {
            let total = human_bytes(progress.total_units);
            parts.push(format!("{} of {total}", human_bytes(progress.done_units)));
        }
        if let Some(eta) = &progress.eta {
            let remaining = to_timestamp(eta).since(Clock::system().now());
            let remaining = Duration::from_secs(remaining.as_secs());
            parts.push(format!("{} left", humantime::format_duration(remaining)));
        }
        parts.retain(|part| !part.is_empty());
        self.0.set_message(sanitize(&parts.join(", ")));
    }

    /// Prints a line above the bar.
    pub(super) fn print_above(&self, text: &str) {
        self.0.println(text);
    }
}

impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_bar_has_10_columns() {
        assert_eq!(text_bar(0.0), "[>         ]");
        assert_eq!(text_bar(0.42), "[====>     ]");
        assert_eq!(text_bar(0.99), "[=========>]");
        assert_eq!(text_bar(1.0), "[==========]");
    }
}
