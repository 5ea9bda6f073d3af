//! Sets up logging to standard error: text on a terminal, else JSON.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// Format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogFormat {
    /// Text if standard error is a terminal, else JSON.
    Auto,
    /// Readable lines.
    Text,
    /// One JSON object per line.
    Json,
}

/// Installs the global log subscriber. `filter` is a level or directives, such as
/// `info,longrunning=debug`. Has no effect if a subscriber is installed already.
///
/// # Errors
/// The message for the user, if the filter is invalid.
pub fn init(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| format!("invalid log filter {filter:?}: {error}"))?;
    let is_text = match format {
        LogFormat::Text => true,
        LogFormat::Json => false,
        LogFormat::Auto => stderr().is_terminal(),
    };
    let registry = tracing_subscriber::registry().with(filter);
    // After a hangup, writes to standard error fail; reporting that there would panic.
    let layer = fmt::layer().with_writer(stderr).log_internal_errors(false);
    // Tests call this more than once.
    let _ = if is_text {
        let text = layer.with_ansi(stderr().is_terminal()).with_target(false);
        registry.with(text).try_init()
    } else {
        registry.with(layer.json().flatten_event(true)).try_init()
    };
    Ok(())
}
