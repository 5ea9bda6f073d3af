//! What the program says while it runs: readable lines on a terminal, JSON
//! otherwise, always on standard error. What is said is decided where it happens.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text if standard error is a terminal, else JSON.
    Auto,
    /// Readable lines.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts the log. `filter` is a level or directives, such as
/// `info,longrunning=debug`.
///
/// # Errors
/// A message for people, if the filter cannot be parsed.
pub fn init(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| format!("{filter:?} is not a log filter: {error}"))?;
    let is_text = match format {
        LogFormat::Text => true,
        LogFormat::Json => false,
        LogFormat::Auto => stderr().is_terminal(),
    };
    let registry = tracing_subscriber::registry().with(filter);
    // Nobody may read the log after a hangup, and there is no other place to
    // complain about that; a program must not fall over it.
    let layer = fmt::layer().with_writer(stderr).log_internal_errors(false);
    // A second start, as in tests, leaves the first log in place.
    let _ = if is_text {
        let text = layer.with_ansi(stderr().is_terminal()).with_target(false);
        registry.with(text).try_init()
    } else {
        registry.with(layer.json().flatten_event(true)).try_init()
    };
    Ok(())
}
