//! Handling of an unavailable server: which errors are transient, retry delays,
//! and a log that reports an outage once.

use std::{error::Error, time::Duration};

use tonic::{Code, Status};
use tracing::{debug, info, warn};

use crate::operation::{lease::LeaseToken, retry::RetryPolicy};

/// Exponential delays from 100 ms to 5 s with jitter, so that workers do not all
/// reconnect at once when a server returns.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Counts a failure and returns the delay before the next attempt.
    pub(crate) fn next_delay(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let policy = RetryPolicy {
            initial_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            jitter: 0.5,
            ..RetryPolicy::default()
        };
        policy.backoff(self.failures, LeaseToken::random().jitter_fraction())
    }

    /// Returns the maximum delay, and keeps returning it until a reset.
    pub(super) fn escalate_to_max_delay(&mut self) -> Duration {
        self.failures = u32::MAX - 1;
        self.next_delay()
    }

    /// Restarts at the initial delay. Call after a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Logs the start and the end of an outage once each.
#[derive(Debug)]
pub(super) struct FailureLog {
    rpc: &'static str,
    is_failing: bool,
}

impl FailureLog {
    /// Creates a log for calls of one method.
    pub(super) fn new(rpc: &'static str) -> Self {
        Self {
            rpc,
            is_failing: false,
        }
    }

    pub(super) fn record_failure(&mut self, status: &Status) {
        let (rpc, code, error) = (self.rpc, status.code(), status.message());
        if std::mem::replace(&mut self.is_failing, true) {
            debug!(rpc, ?code, error, "server still unreachable, retrying");
        } else {
            // A status that the server sent has no source.
            let root_cause = status.source().map(root_cause);
            warn!(
                rpc,
                ?code,
                error,
                root_cause,
                "server unreachable, retrying"
            );
        }
    }

    pub(super) fn record_success(&mut self) {
        if std::mem::take(&mut self.is_failing) {
            info!(rpc = self.rpc, "server reachable again");
        }
    }
}

/// Returns the message of the innermost source of an error, such as "connection
/// refused": the messages of transport errors do not include it.
pub(crate) fn root_cause(mut error: &dyn Error) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Returns `true` if the same call may succeed later: the server is unreachable,
/// draining or full, or the call timed out.
pub(super) fn is_transient(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => true,
        // STORE_FULL is transient; TOO_LARGE is not.
        Code::ResourceExhausted => !is_too_large(status),
        // tonic reports a broken connection with these codes, without details.
        Code::Unknown | Code::Internal => status.details().is_empty(),
        _ => false,
    }
}

/// Returns `true` if the server or the gRPC stack rejected the message size.
pub(super) fn is_too_large(status: &Status) -> bool {
    match status.code() {
        Code::OutOfRange => true,
        Code::ResourceExhausted => {
            let reason: &[u8] = b"TOO_LARGE";
            let mut parts = status.details().windows(reason.len());
            parts.any(|part| part == reason)
        }
        _ => false,
    }
}
