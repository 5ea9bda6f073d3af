//! Sets up logging to standard error: text on a terminal, else JSON.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt::Display,
    io::{IsTerminal, stderr},
    panic, thread,
    time::Duration,
};

use tracing::error;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use super::log_queue::LogQueue;

/// How long the end of the process waits for a reader of the log.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

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

/// Writes the queued lines of the log when it is dropped, for at most a second.
#[derive(Debug)]
#[must_use = "lines that are still queued at the end of the process are lost without it"]
pub struct LogGuard(LogQueue);

/// Installs the global log subscriber. `filter` is a level or directives, such as
/// `info,longrunning=debug`. Has no effect if a subscriber is installed already.
///
/// No thread that logs waits for standard error: lines are queued, and dropped while the
/// queue is full.
///
/// # Errors
/// The message for the user, if the filter is invalid or no thread can be started.
pub fn init(format: LogFormat, filter: &str) -> Result<LogGuard, String> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| format!("invalid log filter {filter:?}: {error}"))?;
    let is_text = match format {
        LogFormat::Text => true,
        LogFormat::Json => false,
        LogFormat::Auto => stderr().is_terminal(),
    };
    let registry = tracing_subscriber::registry().with(filter);
    let queue =
        LogQueue::start().map_err(|error| format!("failed to start the log thread: {error}"))?;
    let writer = queue.clone();
    // Errors of the formatter would be written to standard error, which may block.
    let layer = fmt::layer().with_writer(writer).log_internal_errors(false);
    // Tests call this more than once.
    let _ = if is_text {
        let text = layer.with_ansi(stderr().is_terminal()).with_target(false);
        registry.with(text).try_init()
    } else {
        registry.with(layer.json().flatten_event(true)).try_init()
    };
    Ok(LogGuard(queue))
}

/// Makes panics of the process lines of the log. By default they are written to standard
/// error by the thread that panics, which blocks if nothing reads there.
pub fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        let is_captured = backtrace.status() == BacktraceStatus::Captured;
        error!(
            error = panic.payload_as_str().unwrap_or("not a text"),
            location = panic.location().map(display),
            thread.name = thread::current().name(),
            backtrace = is_captured.then(|| display(&backtrace)),
            "panic"
        );
    }));
}

// === impl LogGuard ===

impl LogGuard {
    /// Writes a line to standard error, after the log. Queues it even if the log is full.
    pub fn write_line(&self, line: impl Display) {
        self.0.push(format!("{line}\n").as_bytes(), false);
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.0.flush(FLUSH_TIMEOUT);
    }
}
