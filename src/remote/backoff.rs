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
    pub(crate) fn pause(&mut self) -> Duration {
        self.tries = self.tries.saturating_add(1);
        self.policy
            .backoff(self.tries, LeaseToken::random().fraction())
    }

    /// The longest pause, which those that follow are too.
    pub(super) fn longest(&mut self) -> Duration {
        self.tries = u32::MAX - 1;
        self.pause()
    }

    /// Begins anew, after a success.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
}

/// Tells people once that calls begin to fail, and once that they get through
/// again.
#[derive(Debug)]
pub(super) struct Streak {
    calls: &'static str,
    fails: bool,
}

impl Streak {
    /// All is well with these calls so far.
    pub(super) fn new(calls: &'static str) -> Self {
        let fails = false;
        Self { calls, fails }
    }

    pub(super) fn failed(&mut self, status: &Status) {
        let (calls, code, message) = (self.calls, status.code(), status.message());
        if std::mem::replace(&mut self.fails, true) {
            debug!(calls, ?code, message, "still no answer; trying again");
        } else {
            let cause = cause(status);
            warn!(
                calls,
                ?code,
                message,
                cause,
                "calls to the server fail; trying again and again"
            );
        }
    }

    pub(super) fn passed(&mut self) {
        if std::mem::take(&mut self.fails) {
            info!(calls = self.calls, "calls to the server get through again");
        }
    }
}

/// What lies at the bottom of an error, such as a refused connection; empty if
/// the server itself answered with it.
fn cause(status: &Status) -> String {
    let (mut bottom, mut next) = (String::new(), status.source());
    while let Some(error) = next {
        bottom = error.to_string();
        next = error.source();
    }
    bottom
}

/// Whether the same call may succeed later: the server is away, drains, is
/// full, or did not answer in time.
pub(super) fn is_passing(status: &Status) -> bool {
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
