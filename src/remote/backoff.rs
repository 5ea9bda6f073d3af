//! Pauses between tries to reach a server that is away.

use std::time::Duration;

use tonic::{Code, Status};

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

    /// Begins anew, after a success.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
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
    let has_reason = |reason: &[u8]| {
        let mut parts = status.details().windows(reason.len());
        parts.any(|part| part == reason)
    };
    match status.code() {
        Code::OutOfRange => true,
        Code::ResourceExhausted => has_reason(b"TOO_LARGE"),
        _ => false,
    }
}
