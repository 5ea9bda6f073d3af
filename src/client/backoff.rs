//! A server that is away: which errors pass, the pauses between tries, and what
//! the log says of it.

use std::{error::Error, time::Duration};

use tonic::{Code, Status};
use tracing::{debug, info, warn};

use crate::operation::{lease::LeaseToken, retry::RetryPolicy};

/// Pauses that grow from 100 ms to 5 s, each a part random, so that the workers
/// of a server that comes back do not all come at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    policy: RetryPolicy,
    tries: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            policy: RetryPolicy {
                initial_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(5),
                jitter: 0.5,
                ..RetryPolicy::default()
            },
            tries: 0,
        }
    }
}

impl Backoff {
    /// The next pause.
    pub(crate) fn next_delay(&mut self) -> Duration {
        self.tries = self.tries.saturating_add(1);
        self.policy
            .backoff(self.tries, LeaseToken::random().jitter_fraction())
    }

    /// The longest pause, which those that follow are too.
    pub(super) fn escalate_to_max_delay(&mut self) -> Duration {
        self.tries = u32::MAX - 1;
        self.next_delay()
    }

    /// Begins anew, after a success.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
}

/// Tells people once that calls begin to fail, and once that they get through
/// again.
#[derive(Debug)]
pub(super) struct FailureLog {
    rpc: &'static str,
    is_failing: bool,
}

impl FailureLog {
    /// All is well with these calls so far.
    pub(super) fn new(rpc: &'static str) -> Self {
        let is_failing = false;
        Self { rpc, is_failing }
    }

    pub(super) fn record_failure(&mut self, status: &Status) {
        let (rpc, code, error) = (self.rpc, status.code(), status.message());
        if std::mem::replace(&mut self.is_failing, true) {
            debug!(rpc, ?code, error, "still no answer; trying again");
        } else {
            let root_cause = root_cause(status);
            warn!(
                rpc,
                ?code,
                error,
                root_cause,
                "calls to the server fail; trying again and again"
            );
        }
    }

    pub(super) fn record_success(&mut self) {
        if std::mem::take(&mut self.is_failing) {
            info!(calls = self.rpc, "calls to the server get through again");
        }
    }
}

/// What lies at the bottom of an error, such as a refused connection; empty if
/// the server itself answered with it.
fn root_cause(status: &Status) -> String {
    let (mut deepest, mut source) = (String::new(), status.source());
    while let Some(error) = source {
        deepest = error.to_string();
        source = error.source();
    }
    deepest
}

/// Whether the same call may succeed later: the server is away, drains, is
/// full, or did not answer in time.
pub(super) fn is_transient(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted => true,
        // A full store is, a message that is too large is not.
        Code::ResourceExhausted => !is_too_large(status),
        // So a broken connection looks.
        Code::Unknown | Code::Internal => status.details().is_empty(),
        _ => false,
    }
}

/// Whether the server, or the stack on the way, takes no message of that size.
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
