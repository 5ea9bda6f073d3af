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

/// The cells of a table row.
struct OperationRow {
    name: String,
    state: String,
    age: String,
    progress: String,
    labels: String,
}

/// Prints one operation.
pub(super) fn print_operation(types: &TypeRegistry, operation: &Operation, output: OutputFormat) {
    if output.is_json() {
        print_line(&pretty_json(
            &types.operation_to_json(operation, EnumFormat::Names),
        ));
        return;
    }
    let row = OperationRow::new(operation);
    print_line(&format!("name      {}", row.name));
    print_line(&format!("state     {}", row.state));
    for (key, value) in [
        ("age", row.age),
        ("progress", row.progress),
        ("labels", row.labels),
    ] {
        if !value.is_empty() {
            print_line(&format!("{key:<9} {value}"));
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

/// Prints a list of operations.
pub(super) fn print_operations(
    types: &TypeRegistry,
    operations: &[Operation],
    output: OutputFormat,
) {
    if output.is_json() {
        let list: Vec<Value> = operations
            .iter()
            .map(|operation| types.operation_to_json(operation, EnumFormat::Names))
            .collect();
        print_line(&pretty_json(&json!({ "operations": list })));
        return;
    }
    if operations.is_empty() {
        eprintln!("no operations");
        return;
    }
    let header = OperationRow {
        name: "NAME".into(),
        state: "STATE".into(),
        age: "AGE".into(),
        progress: "PROGRESS".into(),
        labels: "LABELS".into(),
    };
    // Text bars only on a terminal, to keep piped output easy to parse.
    let is_terminal = std::io::stdout().is_terminal();
    let rows = operations.iter().map(|operation| match is_terminal {
        true => OperationRow::new(operation).with_progress_bar(operation),
        false => OperationRow::new(operation),
    });
    let rows: Vec<OperationRow> = std::iter::once(header).chain(rows).collect();
    let width = |cell: fn(&OperationRow) -> &str| {
        rows.iter()
            .map(|row| cell(row).chars().count())
            .max()
            .unwrap_or(0)
    };
    let (name, state) = (width(|row| &row.name), width(|row| &row.state));
    let (age, progress) = (width(|row| &row.age), width(|row| &row.progress));
    for row in &rows {
        let line = format!(
            "{:<name$}  {:<state$}  {:>age$}  {:<progress$}  {}",
            row.name, row.state, row.age, row.progress, row.labels
        );
        print_line(line.trim_end());
    }
}

/// Prints one change of a watched operation on a line.
pub(super) fn print_state(types: &TypeRegistry, operation: &Operation, output: OutputFormat) {
    if output.is_json() {
        print_line(
            &types
                .operation_to_json(operation, EnumFormat::Names)
                .to_string(),
        );
        return;
    }
    let row = OperationRow::new(operation);
    let result = match &operation.result {
        Some(operation::Result::Response(response)) => types.any_to_json(response).to_string(),
        Some(operation::Result::Error(error)) => error_text(error),
        None => row.progress,
    };
    print_line(&format!("{:<10}  {result}", row.state));
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

/// Formats JSON with indentation.
pub(super) fn pretty_json(json: &Value) -> String {
    format!("{json:#}")
}

fn error_text(error: &rpc::Status) -> String {
    let code = rpc::Code::try_from(error.code).map_or("UNKNOWN", |code| code.as_str_name());
    format!("{code}: {}", sanitize(&error.message))
}

fn operation_metadata(operation: &Operation) -> Option<OperationMetadata> {
    TypeRegistry::unpack(operation.metadata.as_ref())
}

// === impl OperationRow ===

impl OperationRow {
    fn new(operation: &Operation) -> Self {
        let metadata = operation_metadata(operation);
        let state = match (&metadata, &operation.result) {
            (Some(metadata), _) => metadata.state().as_str_name(),
            (None, Some(operation::Result::Error(_))) => "FAILED",
            (None, Some(operation::Result::Response(_))) => "SUCCEEDED",
            (None, None) => "RUNNING",
        };
        let cancelling = metadata
            .as_ref()
            .is_some_and(|metadata| metadata.cancel_requested && !operation.done);
        let metadata = metadata.unwrap_or_default();
        let mut labels: Vec<String> = metadata
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        labels.sort();
        Self {
            name: operation.name.clone(),
            state: if cancelling {
                "CANCELLING".to_owned()
            } else {
                state.to_owned()
            },
            age: metadata
                .create_time
                .map_or_else(String::new, |time| format_age(&time)),
            progress: metadata
                .progress
                .as_ref()
                .map_or_else(String::new, progress_text),
            labels: sanitize(&labels.join(",")),
        }
    }

    /// Prepends a text bar to the progress unless the operation is done.
    fn with_progress_bar(mut self, operation: &Operation) -> Self {
        let progress = operation_metadata(operation).and_then(|metadata| metadata.progress);
        if let Some(fraction) = progress.as_ref().and_then(progress_fraction)
            && !operation.done
        {
            self.progress = format!("{} {}", text_bar(fraction), self.progress);
        }
        self
    }
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
    let unit = progress.unit.as_str();
    let format_units = |units: i64| match unit {
        "bytes" => HumanBytes(u64::try_from(units).unwrap_or(0)).to_string(),
        _ => units.to_string(),
    };
    let unit = if unit == "bytes" || unit.is_empty() {
        String::new()
    } else {
        format!(" {unit}")
    };
    match (progress.done_units, progress.total_units) {
        (0, 0) => {}
        (done, 0) => parts.push(format!("{}{unit}", format_units(done))),
        (done, total) => parts.push(format!(
            "{} of {}{unit}",
            format_units(done),
            format_units(total)
        )),
    }
    if !progress.message.is_empty() {
        parts.push(progress.message.clone());
    } else if !progress.stage.is_empty() {
        parts.push(progress.stage.clone());
    }
    sanitize(&parts.join(", "))
}

#[expect(clippy::cast_precision_loss, reason = "displayed only")]
fn progress_fraction(progress: &Progress) -> Option<f64> {
    let units = || {
        (progress.total_units > 0).then(|| progress.done_units as f64 / progress.total_units as f64)
    };
    progress
        .fraction
        .or_else(units)
        .map(|fraction| fraction.clamp(0.0, 1.0))
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
    Timestamp::from_nanos(
        time.seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(time.nanos.into()),
    )
}

// === impl ProgressDisplay ===

impl ProgressDisplay {
    /// Creates a bar, which is drawn only on a terminal.
    pub(super) fn new() -> Self {
        let bar = ProgressBar::new(1000);
        let style =
            ProgressStyle::with_template("{spinner} {prefix} [{bar:20}] {percent:>3}%  {wide_msg}");
        bar.set_style(
            style
                .expect("the template is constant")
                .progress_chars("=> "),
        );
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(bar)
    }

    /// Shows the progress of an operation.
    pub(super) fn update(&self, operation: &Operation) {
        let Some(metadata) = operation_metadata(operation) else {
            return;
        };
        let Some(progress) = metadata.progress else {
            self.0
                .set_prefix(metadata.state().as_str_name().to_lowercase());
            return;
        };
        self.0.set_prefix(sanitize(&progress.stage));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 1000"
        )]
        self.0.set_position(
            progress_fraction(&progress).map_or(0, |fraction| (fraction * 1000.0) as u64),
        );
        self.0.set_message(self.message_text(&progress));
    }

    fn message_text(&self, progress: &Progress) -> String {
        let mut parts = vec![progress.message.clone()];
        if progress.unit == "bytes" && progress.total_units > 0 {
            let bytes = |units: i64| HumanBytes(u64::try_from(units).unwrap_or(0));
            parts.push(format!(
                "{} of {}",
                bytes(progress.done_units),
                bytes(progress.total_units)
            ));
        }
        if let Some(eta) = &progress.eta {
            let remaining = to_timestamp(eta).since(Clock::system().now());
            parts.push(format!(
                "{} left",
                humantime::format_duration(Duration::from_secs(remaining.as_secs()))
            ));
        }
        parts.retain(|part| !part.is_empty());
        sanitize(&parts.join(", "))
    }

    /// Prints a line above the bar.
    pub(super) fn print_above(&self, text: &str) {
        self.0.println(text);
    }

    /// Removes the bar.
    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        self.clear();
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
