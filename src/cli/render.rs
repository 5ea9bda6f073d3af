//! How operations look: tables and bars for people, ProtoJSON for programs.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::args::Output;
use crate::{
    clock::{Clock, Timestamp},
    proto::{
        google::{
            longrunning::{Operation, operation},
            rpc,
        },
        longrunning::v1::{OperationMetadata, Progress},
    },
    types::Types,
};

/// A progress bar on standard error.
#[derive(Debug)]
pub(super) struct Bar(ProgressBar);

/// What a row of a table shows.
struct Row {
    name: String,
    state: String,
    age: String,
    progress: String,
    labels: String,
}

/// Prints one operation.
pub(super) fn print_one(operation: &Operation, output: Output) {
    if output.is_json() {
        say(&pretty(&Types::built_in().operation(operation)));
        return;
    }
    let types = Types::built_in();
    let row = Row::new(operation);
    say(&format!("name      {}", row.name));
    say(&format!("state     {}", row.state));
    for (key, value) in [
        ("age", row.age),
        ("progress", row.progress),
        ("labels", row.labels),
    ] {
        if !value.is_empty() {
            say(&format!("{key:<9} {value}"));
        }
    }
    match &operation.result {
        Some(operation::Result::Response(response)) => {
            say(&format!("response  {}", types.any(response)));
        }
        Some(operation::Result::Error(error)) => {
            say(&format!("error     {}", error_text(error)));
            for detail in &error.details {
                say(&format!("          {}", types.any(detail)));
            }
        }
        None => {}
    }
}

/// Prints many operations.
pub(super) fn print_list(operations: &[Operation], output: Output) {
    if output.is_json() {
        let types = Types::built_in();
        let list: Vec<Value> = operations
            .iter()
            .map(|operation| types.operation(operation))
            .collect();
        say(&pretty(&json!({ "operations": list })));
        return;
    }
    if operations.is_empty() {
        eprintln!("no operations");
        return;
    }
    let titles = Row {
        name: "NAME".into(),
        state: "STATE".into(),
        age: "AGE".into(),
        progress: "PROGRESS".into(),
        labels: "LABELS".into(),
    };
    // A bar is for eyes; what reads the table as text gets the words alone.
    let with_bar = std::io::stdout().is_terminal();
    let rows = operations.iter().map(|operation| match with_bar {
        true => Row::new(operation).with_bar(operation),
        false => Row::new(operation),
    });
    let rows: Vec<Row> = std::iter::once(titles).chain(rows).collect();
    let width = |cell: fn(&Row) -> &str| {
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
        say(line.trim_end());
    }
}

/// Prints one state of several, on a line.
pub(super) fn print_state(operation: &Operation, output: Output) {
    if output.is_json() {
        say(&Types::built_in().operation(operation).to_string());
        return;
    }
    let row = Row::new(operation);
    let result = match &operation.result {
        Some(operation::Result::Response(response)) => Types::built_in().any(response).to_string(),
        Some(operation::Result::Error(error)) => error_text(error),
        None => row.progress,
    };
    say(&format!("{:<10}  {result}", row.state));
}

/// Prints a line on standard output. Whoever closed it, as `head` does, has
/// seen enough: that ends the program, and is no error.
pub(super) fn say(line: &str) {
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(0);
    }
}

/// Text that somebody else wrote, without what would control the terminal.
fn tame(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// ProtoJSON on several lines.
pub(super) fn pretty(json: &Value) -> String {
    format!("{json:#}")
}

fn error_text(error: &rpc::Status) -> String {
    let code = rpc::Code::try_from(error.code).map_or("UNKNOWN", |code| code.as_str_name());
    format!("{code}: {}", tame(&error.message))
}

fn metadata(operation: &Operation) -> Option<OperationMetadata> {
    Types::unpack(operation.metadata.as_ref())
}

// === impl Row ===

impl Row {
    fn new(operation: &Operation) -> Self {
        let metadata = metadata(operation);
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
                .map_or_else(String::new, |time| age(&time)),
            progress: metadata
                .progress
                .as_ref()
                .map_or_else(String::new, progress),
            labels: tame(&labels.join(",")),
        }
    }

    /// Puts a bar in front of the progress of what is not done.
    fn with_bar(mut self, operation: &Operation) -> Self {
        let progress = metadata(operation).and_then(|metadata| metadata.progress);
        if let Some(fraction) = progress.as_ref().and_then(fraction)
            && !operation.done
        {
            self.progress = format!("{} {}", bar(fraction), self.progress);
        }
        self
    }
}

/// How far it is, as a picture of ten letters: `[====>     ]`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "0 to 10"
)]
fn bar(fraction: f64) -> String {
    let done = (fraction * 10.0) as usize;
    let head = if done < 10 { ">" } else { "" };
    format!("[{:<10}]", format!("{}{head}", "=".repeat(done)))
}

/// A progress in a few words: `42% 1.2 GiB of 3.4 GiB, 12 of 30 files`.
fn progress(progress: &Progress) -> String {
    let mut words = Vec::new();
    if let Some(fraction) = fraction(progress) {
        words.push(format!("{:.0}%", fraction * 100.0));
    }
    let unit = progress.unit.as_str();
    let amount = |units: i64| match unit {
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
        (done, 0) => words.push(format!("{}{unit}", amount(done))),
        (done, total) => words.push(format!("{} of {}{unit}", amount(done), amount(total))),
    }
    if !progress.message.is_empty() {
        words.push(progress.message.clone());
    } else if !progress.stage.is_empty() {
        words.push(progress.stage.clone());
    }
    tame(&words.join(", "))
}

#[expect(clippy::cast_precision_loss, reason = "a part of a bar")]
fn fraction(progress: &Progress) -> Option<f64> {
    let units = || {
        (0 < progress.total_units).then(|| progress.done_units as f64 / progress.total_units as f64)
    };
    progress
        .fraction
        .or_else(units)
        .map(|fraction| fraction.clamp(0.0, 1.0))
}

fn age(time: &prost_types::Timestamp) -> String {
    let since = Clock::system().now().since(nanos(time));
    let seconds = since.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn nanos(time: &prost_types::Timestamp) -> Timestamp {
    Timestamp::from_nanos(
        time.seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(time.nanos.into()),
    )
}

// === impl Bar ===

impl Bar {
    /// A bar that is only drawn on a terminal.
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

    /// Shows how far an operation is.
    pub(super) fn show(&self, operation: &Operation) {
        let Some(metadata) = metadata(operation) else {
            return;
        };
        let Some(progress) = metadata.progress else {
            self.0
                .set_prefix(metadata.state().as_str_name().to_lowercase());
            return;
        };
        self.0.set_prefix(tame(&progress.stage));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 1000"
        )]
        self.0
            .set_position(fraction(&progress).map_or(0, |fraction| (fraction * 1000.0) as u64));
        self.0.set_message(self.words(&progress));
    }

    fn words(&self, progress: &Progress) -> String {
        let mut words = vec![progress.message.clone()];
        if progress.unit == "bytes" && 0 < progress.total_units {
            let bytes = |units: i64| HumanBytes(u64::try_from(units).unwrap_or(0));
            words.push(format!(
                "{} of {}",
                bytes(progress.done_units),
                bytes(progress.total_units)
            ));
        }
        if let Some(eta) = &progress.eta {
            let left = nanos(eta).since(Clock::system().now());
            words.push(format!(
                "{} left",
                humantime::format_duration(Duration::from_secs(left.as_secs()))
            ));
        }
        words.retain(|word| !word.is_empty());
        tame(&words.join(", "))
    }

    /// Says something above the bar.
    pub(super) fn say(&self, text: &str) {
        self.0.println(text);
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_of_a_table_has_ten_places() {
        assert_eq!(bar(0.0), "[>         ]");
        assert_eq!(bar(0.42), "[====>     ]");
        assert_eq!(bar(0.99), "[=========>]");
        assert_eq!(bar(1.0), "[==========]");
    }
}
